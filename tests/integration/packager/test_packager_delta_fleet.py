"""What devices reported decides which deltas are made first, and what a dry run says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edge_contract.delta import Delta
from edge_contract.digest import Digest
from edge_contract.phases import Phase
from edge_contract.twin import Report, ReportedModule
from packager.cli import main
from tests.integration.packager.conftest import PASSPHRASE, Author, Server
from tests.integration.registry.running import Registry, running_registry
from tests.unit.packager.weights import dense, trained, tuned

PLATFORM = "linux/amd64"
MODEL = "digits"


@dataclass
class Fleet:
    """Three releases of a model, and devices that report which one they run."""

    registry: Registry
    author: Author
    numbers: int = 0

    def device(self, name: str, live: int | None) -> None:
        """Enrol a device; with a version it reports that it runs it."""
        self.registry.enrol(name, PLATFORM)
        if live is None:
            return
        (bundle,) = [item for item in self.registry.client().bundles(MODEL, live) if item["platform"] == PLATFORM]
        self.numbers += 1
        manifest = Digest(bundle["digest"])
        module = ReportedModule(Phase.IDLE, live=manifest, answering=manifest)
        sent = Report(name, "00000000000000aa", self.numbers, 0, PLATFORM, "1.0", modules={MODEL: module})
        assert self.registry.report(sent).code is None

    def deltas(self) -> list[Delta]:
        """What the registry lists for the third release."""
        return [
            Delta.from_json({key: value for key, value in item.items() if key != "manifest"})
            for item in self.registry.client().deltas(MODEL, 3)
        ]


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Fleet]:
    """Version 2 on two devices, version 1 on one, nothing known of another."""
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    with running_registry(tmp_path / "data", start_ms=now_ms) as registry:
        monkeypatch.setenv("LIGHTERMAN_URL", registry.url)
        monkeypatch.setenv("LIGHTERMAN_TOKEN", registry.admin_token)
        monkeypatch.setenv("LIGHTERMAN_KEYS", str(tmp_path / "keys"))
        monkeypatch.setenv("LIGHTERMAN_KEY_PASSPHRASE", PASSPHRASE)
        monkeypatch.chdir(tmp_path)
        assert main(["keys", "init", str(tmp_path / "keys")]) == 0
        author = Author(Server(registry.url, registry.admin_token, tmp_path / "keys"), tmp_path, MODEL)
        weights = trained()
        for number in (1, 2, 3):
            dense(tmp_path, "model.onnx", weights)
            code, shipped = author.run(capsys, "ship", "model.onnx", "--name", MODEL)
            assert code == 0, shipped
            weights = tuned(weights, seed=number)
        found = Fleet(registry, author)
        for name, live in (("cam-1", 2), ("cam-2", 2), ("cam-3", 1), ("cam-4", None)):
            found.device(name, live)
        yield found


def test_deltas_are_made_for_what_devices_run_and_a_dry_run_counts_them(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("deploy", f"{MODEL}:3", "--condition", "*")
    code, before = fleet.author.run(capsys, *arguments, "--dry-run")
    assert code == 0, before
    assert [(row["base"], row["devices"], row["by"]) for row in before["rows"]] == [
        ("digits:2", 2, "full"), ("digits:1", 1, "full"), ("nothing known", 1, "full"),
    ]  # fmt: skip
    assert fleet.deltas() == []

    code, built = fleet.author.run(capsys, "delta", "build", f"{MODEL}:3")
    assert (code, [item["base_version"] for item in built["deltas"]]) == (0, [2, 1])

    code, after = fleet.author.run(capsys, *arguments, "--dry-run")
    assert [row["by"] for row in after["rows"]] == ["delta", "delta", "full"]
    saved = {item["base_version"]: item["new_bytes"] - item["bytes"] for item in built["deltas"]}
    full = before["rows"][0]["bytes"]
    assert [row["bytes"] for row in after["rows"]] == [full - saved[2], full - saved[1], before["rows"][2]["bytes"]]
    assert after["bytes_full"] == before["bytes"]
    assert after["bytes"] == before["bytes"] - 2 * saved[2] - saved[1]

    assert main([*arguments, "--dry-run"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].split()[:3] == ["digits:2", PLATFORM, "2"]
    assert f"{after['bytes_full']:,} without deltas" in table[-1]
    assert fleet.registry.client().deployments()["items"] == []


def test_a_deployment_makes_the_deltas_that_its_own_devices_can_use(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    code, deployed = fleet.author.run(capsys, "deploy", f"{MODEL}:3", "--condition", "deviceId = 'cam-3'")
    assert (code, deployed["deployment"]["devices"]) == (0, 1)
    assert [item["base_version"] for item in deployed["deltas"]["deltas"]] == [1]
    (delta,) = fleet.deltas()
    assert delta.bytes < 0.6 * delta.new_bytes


@pytest.mark.parametrize(("option", "reason"), [(("--no-deltas",), None), (("--budget-s", "0"), "the budget is spent")])
def test_a_deployment_without_deltas_is_made_all_the_same(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], option: tuple[str, ...], reason: str | None
) -> None:
    code, deployed = fleet.author.run(capsys, "deploy", f"{MODEL}:3", "--condition", "*", *option)
    assert (code, deployed["deployment"]["devices"]) == (0, 4)
    if reason is None:
        assert deployed["deltas"] is None
    else:
        assert {item["reason"] for item in deployed["deltas"]["skipped"]} == {reason}
    assert fleet.deltas() == []


def test_a_failure_to_make_deltas_is_a_warning(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    arguments: list[Any] = ["deploy", f"{MODEL}:3", "--condition", "*"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "warning: no more deltas were made" in printed
    assert fleet.registry.client().deployments()["items"][0]["model"] == MODEL


def test_shipping_to_devices_makes_deltas_on_the_way(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    dense(fleet.author.home, "model.onnx", tuned(tuned(trained(), seed=1), seed=7))
    code, shipped = fleet.author.run(capsys, "ship", "model.onnx", "--name", MODEL, "--condition", "deviceId = 'cam-1'")
    assert (code, shipped["version"]) == (0, 4)
    assert [item["base_version"] for item in shipped["deltas"]["deltas"]] == [2]
    dense(fleet.author.home, "model.onnx", tuned(trained(), seed=8))
    code, shipped = fleet.author.run(
        capsys, "ship", "model.onnx", "--name", MODEL, "--condition", "deviceId = 'cam-1'", "--no-deltas"
    )
    assert (code, shipped["version"], shipped["deltas"]) == (0, 5, None)
