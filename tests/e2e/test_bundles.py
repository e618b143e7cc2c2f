"""Bundles a device does not want, an operator who changes his mind, and two agents on one device."""

from __future__ import annotations

import json

import pytest

from edge_agent.platforms import detect_platform
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.system]

SOMEWHERE_ELSE = "linux/arm/v7" if detect_platform() != "linux/arm/v7" else "linux/amd64"


def test_a_bundle_for_another_platform_alone_is_refused_by_name(stack: Stack) -> None:
    device, first = stack.live_device("kite-1", "kite")
    with device.asker() as asker:
        asker.wait_for(1)
        second = stack.ship("kite", 2, device.name, platform=SOMEWHERE_ELSE)
        item = stack.wait_standing(second, device.name, "refused")
        assert item["error"]["code"] == "artifact.platform-mismatch"
        assert item["outcome"] == "refused"
        shown = stack.run("cloud-registry", "deployments", "devices", second.deployment)
        assert shown.exit_code == 0
        assert "artifact.platform-mismatch" in shown.stdout
        where = ["--condition", f"deviceId = '{device.name}'"]
        waited = stack.run("packager", "deploy", "kite:2", *where, "--wait", "--json")
        assert waited.exit_code == 1
        assert waited.document["wait"]["failed"][0]["error"]["code"] == "artifact.platform-mismatch"
        assert device.module()["live"] == str(first.manifest)
        third = stack.ship("kite", 3, device.name)
        device.wait_confirmed(third.manifest)
        asker.wait_for(3)
    asker.require_flawless()


def test_a_damaged_model_is_refused_on_its_golden_vectors_and_a_good_one_accepted(stack: Stack) -> None:
    device, first = stack.live_device("sextant-1", "sextant")
    where = ["--condition", f"deviceId = '{device.name}'", "--wait", "--timeout-s", "60", "--json"]
    with device.asker() as asker:
        asker.wait_for(1)
        path, golden = stack.model_files(7, golden=2.0)
        careful = stack.run("packager", "ship", str(path), "--name", "sextant", "--golden", str(golden), *where)
        assert (careful.exit_code, careful.error_code) == (5, "model.golden-mismatch")
        careless = ["--golden", str(golden), "--trust-golden", "--probation-ms", "0"]
        shipped = stack.run("packager", "ship", str(path), "--name", "sextant", *careless, *where)
        assert shipped.exit_code == 1
        (failed,) = shipped.document["wait"]["failed"]
        assert (failed["outcome"], failed["error"]["code"]) == ("refused", "model.golden-mismatch")
        bad = shipped.document["push"]["manifests"][detect_platform()]
        assert device.module()["live"] == str(first.manifest)
        asker.go_on()
        path, golden = stack.model_files(3)
        good = ["--golden", str(golden), "--probation-ms", "0"]
        shipped = stack.run("packager", "ship", str(path), "--name", "sextant", *good, *where)
        assert shipped.exit_code == 0, shipped.stdout + shipped.stderr
        assert shipped.document["version"] == 3, "what was refused before it was sent got no number"
        asker.wait_for(3)
        # What failed here once is not tried again.
        again = stack.run("packager", "deploy", "sextant:2", "--allow-release-rollback", *where)
        assert again.exit_code == 1
        assert again.document["wait"]["failed"][0]["error"]["code"] == "artifact.quarantined"
        assert device.module()["live"] != bad
        asker.go_on()
    asker.require_flawless()
    assert set(asker.answered.values()) == {1, 3}


def test_rollback_gives_the_fallback_back(stack: Stack) -> None:
    device, first = stack.live_device("anchor-1", "anchor")
    nothing = stack.run("edge-agent", "rollback", "anchor", "--config", str(device.config), "--json")
    assert (nothing.exit_code, nothing.error_code) == (6, "device.no-fallback")
    second = stack.ship("anchor", 2, device.name)
    device.wait_confirmed(second.manifest)
    with device.asker() as asker:
        asker.wait_for(2)
        done = stack.run("edge-agent", "rollback", "anchor", "--config", str(device.config), "--json")
        assert done.exit_code == 0, done.stderr
        assert done.document == {"module": "anchor", "fallback": str(first.manifest)}
        asker.wait_for(1)
        device.wait(lambda: device.module()["phase"] == "idle", "the rollback to end")
        assert stack.wait_standing(second, device.name, "rolled_back")["phase"] == "idle"
        said = stack.run("edge-agent", "status", "--config", str(device.config), "--json")
        assert said.exit_code == 0
        module = said.document["modules"]["anchor"]
        assert (said.document["device"], module["live"], module["version"], module["serving"]) == (
            device.name,
            str(first.manifest),
            1,
            True,
        )
        unknown = stack.run("edge-agent", "rollback", "nothing", "--config", str(device.config), "--json")
        assert (unknown.exit_code, unknown.error_code) == (2, "config.invalid")
        # The operator's word holds until there is a newer one.
        asker.go_on()
        third = stack.ship("anchor", 3, device.name)
        device.wait_confirmed(third.manifest)
        asker.wait_for(3)
    asker.require_flawless()


def test_a_second_agent_on_the_same_data_is_turned_away(stack: Stack) -> None:
    device, _ = stack.live_device("berth-1", "berth")
    with device.asker() as asker:
        asker.wait_for(1)
        second = stack.run("edge-agent", "run", "--config", str(device.config))
        assert second.exit_code == 6
        assert "device.busy" in second.stderr
        again = ["--url", stack.url, "--token", "lme_x", "--force", "--data", str(device.data), "--json"]
        enrolled = stack.run("edge-agent", "enroll", *again)
        assert (enrolled.exit_code, enrolled.error_code) == (6, "device.busy")
        asker.go_on()
    asker.require_flawless()
    assert device.status()["device"] == device.name


def test_without_an_agent_the_command_lines_say_so(stack: Stack) -> None:
    device, _ = stack.live_device("wreck-1", "wreck")
    device.stop()
    for arguments in (["status"], ["rollback", "wreck"]):
        said = stack.run("edge-agent", *arguments, "--config", str(device.config), "--json")
        assert (said.exit_code, said.error_code) == (7, "network.unreachable")
    unknown = stack.run("edge-agent", "run", "--data", str(stack.folder / "nobody"))
    assert unknown.exit_code == 6
    assert "device.not-enrolled" in unknown.stderr
    journal = json.loads((device.data / "journal.json").read_bytes())
    assert journal["record"]["modules"]["wreck"]["outcome"] == "confirmed"
