"""Deployments: assignments follow conditions, tags, enrolments and bundles; standings follow reports."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edge_contract.deployment import ActivationMode, Assignment, Policy, Window
from edge_contract.digest import Digest
from edge_contract.phases import Outcome, Phase
from edge_contract.twin import Report, ReportedDeployment, ReportedError, ReportedModule
from tests.integration.registry.running import Registry, error_of, made_up_bundle

MANIFEST_1 = made_up_bundle("digits", 1, "linux/arm64").manifest
MANIFEST_2 = made_up_bundle("digits", 2, "linux/arm64").manifest
BOOT_1, BOOT_2 = "00000000000000b1", "00000000000000b2"


@pytest.fixture
def fleet(registry: Registry) -> Registry:
    """Two versions with bundles for arm64, three devices."""
    for version in (1, 2):
        registry.register("digits")
        registry.bundle("digits", version)
    registry.enrol("cam-1", site="north")
    registry.enrol("cam-2", site="north")
    registry.enrol("cam-3", site="south")
    return registry


def assigned(registry: Registry, device: str) -> tuple[Assignment, ...]:
    return registry.services.assignments.assignments(device)


def versions(registry: Registry) -> dict[str, int]:
    """Assigned version by device, where there is one."""
    wishes = {item["name"]: item["desired"] for item in registry.client().all_devices()}
    return {name: desired["digits"]["version"] for name, desired in wishes.items() if "digits" in desired}


def report(
    registry: Registry,
    device: str,
    deployment: str,
    manifest: Digest = MANIFEST_1,
    outcome: Outcome | None = Outcome.CONFIRMED,
    number: int = 1,
    boot: str = BOOT_1,
    live: Digest | None = MANIFEST_1,
    error: ReportedError | None = None,
    **more: Any,
) -> bool:
    module = ReportedModule(
        Phase.IDLE if outcome else Phase.FETCHING,
        live=live,
        model="digits" if live else "",
        version=1 if live else 0,
        serving=live is not None,
        deployment=ReportedDeployment(deployment, manifest, outcome, error),
        **({"answering": live} | more),
    )
    message = Report(device, boot, number, 0, "linux/arm64", "1.0", 3, {"digits": module})
    return registry.report(message).is_applied


def test_a_deployment_assigns_to_every_device_that_matches(fleet: Registry) -> None:
    made = fleet.client().create_deployment("digits", 1, "tags.site = 'north'", policy={"probation_ms": 500})
    assert (made["state"], made["devices"], made["counts"]["pending"], made["module"]) == ("active", 2, 2, "digits")
    assert versions(fleet) == {"cam-1": 1, "cam-2": 1}
    (assignment,) = assigned(fleet, "cam-1")
    assert (assignment.module, assignment.deployment, assignment.manifest) == ("digits", made["id"], MANIFEST_1)
    assert (assignment.manifest_bytes, assignment.policy.probation_ms) == (321, 500)
    assert assignment.artifact.repository == "bundles/digits"
    assert assigned(fleet, "cam-3") == ()
    assert error_of(assigned, fleet, "cam-9").code == "cloud.not-found"


def test_windows_and_the_way_to_change_over_reach_the_signed_policy(fleet: Registry) -> None:
    client = fleet.client()
    windows = [{"days": [1, 2, 3, 4, 5], "start_minute": 120, "length_minutes": 180}]
    policy = {"windows": windows, "activation": "stop_first"}
    made = client.create_deployment("digits", 1, "deviceId = 'cam-1'", policy=policy)
    assert (made["policy"]["windows"], made["policy"]["activation"]) == (windows, "stop_first")
    (assignment,) = assigned(fleet, "cam-1")
    assert assignment.policy == Policy(
        windows=(Window(120, 180, (1, 2, 3, 4, 5)),), activation=ActivationMode.STOP_FIRST
    )
    changed = client.update_deployment(made["id"], {"policy": {"windows": [{"start_minute": 0, "length_minutes": 60}]}})
    assert changed["policy"]["windows"] == [{"days": [], "start_minute": 0, "length_minutes": 60}]
    assert assigned(fleet, "cam-1")[0].policy == Policy(windows=(Window(0, 60),))
    assert client.deployment_history(made["id"])[-1]["detail"]["policy"]["from"]["activation"] == "stop_first"


def test_devices_that_enrol_or_change_tags_later_get_it_too(fleet: Registry) -> None:
    client = fleet.client()
    client.create_deployment("digits", 1, "tags.site = 'north'")
    fleet.enrol("cam-4", site="north")
    client.set_tags("cam-3", {"site": "north"})
    client.set_tags("cam-1", {"site": "south"})
    assert versions(fleet) == {"cam-2": 1, "cam-3": 1, "cam-4": 1}


def test_the_newest_deployment_wins_and_cancelling_it_brings_the_former_back(fleet: Registry) -> None:
    client = fleet.client()
    first = client.create_deployment("digits", 1, "*")["id"]
    second = client.create_deployment("digits", 2, "tags.site = 'north'")["id"]
    assert versions(fleet) == {"cam-1": 2, "cam-2": 2, "cam-3": 1}
    assert client.deployment(first)["state"] == "active"
    third = client.create_deployment("digits", 2, "*")["id"]
    assert [client.deployment(item)["state"] for item in (first, second, third)] == [
        "superseded",
        "superseded",
        "active",
    ]
    assert client.cancel_deployment(third)["state"] == "cancelled"
    assert client.cancel_deployment(third)["state"] == "cancelled"
    assert versions(fleet) == {"cam-1": 2, "cam-2": 2, "cam-3": 1}


def test_a_higher_priority_holds_against_newer_deployments(fleet: Registry) -> None:
    client = fleet.client()
    client.create_deployment("digits", 1, "deviceId = 'cam-1'", priority=10)
    client.create_deployment("digits", 2, "*")
    assert versions(fleet) == {"cam-1": 1, "cam-2": 2, "cam-3": 2}


def test_a_device_without_a_bundle_for_its_platform_is_listed_as_refused(fleet: Registry) -> None:
    fleet.enrol("pc-1", platform="linux/amd64")
    client = fleet.client()
    made = client.create_deployment("digits", 1, "deviceId = 'pc-1'")
    (item,) = client.deployment_devices(made["id"])
    assert (item["standing"], item["outcome"], item["error"]["code"]) == (
        "refused",
        "refused",
        "artifact.platform-mismatch",
    )
    assert "linux/amd64" in item["error"]["detail"]
    assert made["counts"]["refused"] == 1
    assert made["state"] == "active"


def test_a_bundle_that_comes_later_reaches_the_devices_that_waited(fleet: Registry) -> None:
    fleet.enrol("pc-1", platform="linux/amd64")
    client = fleet.client()
    made = client.create_deployment("digits", 1, "*")["id"]
    fleet.bundle("digits", 1, "linux/amd64")
    assert versions(fleet)["pc-1"] == 1
    assert client.deployment(made)["counts"]["pending"] == 4


def test_a_bundle_never_changes(fleet: Registry) -> None:
    other = made_up_bundle("digits", 2, "linux/arm64")
    error = error_of(fleet.services.models.add_bundles, "digits", 1, [other])
    assert error.code == "cloud.conflict"
    fleet.bundle("digits", 1)
    assert [item["digest"] for item in fleet.client().bundles("digits", 1)] == [str(MANIFEST_1)]


def test_a_bundle_for_other_hardware_is_refused_on_a_device(fleet: Registry) -> None:
    fleet.register("digits")
    wanted = made_up_bundle("digits", 3, "linux/arm64", ("board-7",))
    fleet.services.models.add_bundles("digits", 3, [wanted])
    fleet.enrol("cam-7", hardware_id="board-7")
    fleet.client().create_deployment("digits", 3, "*")
    assert versions(fleet) == {"cam-7": 3}


def test_an_explicit_update_starts_the_devices_anew_and_is_remembered(fleet: Registry) -> None:
    client = fleet.client()
    made = client.create_deployment("digits", 1, "tags.site = 'north'")["id"]
    assert report(fleet, "cam-1", made)
    assert client.deployment(made)["counts"]["confirmed"] == 1
    fleet.clock.now_ms += 5_000
    changed = client.update_deployment(made, {"version": 2, "condition": "*"})
    assert (changed["version"], changed["devices"], changed["counts"]["pending"]) == (2, 3, 3)
    assert versions(fleet) == {"cam-1": 2, "cam-2": 2, "cam-3": 2}
    # A late report about the former version changes nothing.
    assert report(fleet, "cam-1", made, number=2)
    assert client.deployment(made)["counts"]["pending"] == 3
    history = client.deployment_history(made)
    assert [line["kind"] for line in history] == ["created", "updated"]
    assert history[1]["detail"] == {
        "version": {"from": 1, "to": 2},
        "condition": {"from": "tags.site = 'north'", "to": "*"},
    }
    assert history[1]["changed_by"] == "admin"


def test_a_changed_policy_reaches_the_assignments_and_starts_nothing_anew(fleet: Registry) -> None:
    client = fleet.client()
    made = client.create_deployment("digits", 1, "*")["id"]
    report(fleet, "cam-1", made)
    client.update_deployment(made, {"policy": {"sampling_ratio": 0.25}})
    assert assigned(fleet, "cam-1")[0].policy.sampling_ratio == 0.25
    assert client.deployment(made)["counts"]["confirmed"] == 1
    client.update_deployment(made, {"policy": {"sampling_ratio": 0.25}})
    created, updated = client.deployment_history(made)
    assert created["detail"]["policy"]["sampling_ratio"] is None
    assert updated["detail"]["policy"]["to"]["sampling_ratio"] == 0.25


def test_a_cancelled_deployment_is_not_changed(fleet: Registry) -> None:
    client = fleet.client()
    made = client.create_deployment("digits", 1, "*")["id"]
    client.cancel_deployment(made)
    assert error_of(client.update_deployment, made, {"version": 2}).code == "cloud.conflict"
    assert versions(fleet) == {}
    assert client.deployment(made)["counts"]["superseded"] == 3


def test_reports_move_the_standing(fleet: Registry) -> None:
    client = fleet.client()
    made = client.create_deployment("digits", 1, "*")["id"]
    report(fleet, "cam-1", made, outcome=None, live=None)
    report(fleet, "cam-2", made)
    why = ReportedError("model.golden-mismatch", "off by 3.5", Phase.TESTING, 1)
    report(fleet, "cam-3", made, outcome=Outcome.REFUSED, live=None, error=why)
    found = {item["device"]: item for item in client.deployment_devices(made)}
    assert {name: item["standing"] for name, item in found.items()} == {
        "cam-1": "in_progress",
        "cam-2": "confirmed",
        "cam-3": "refused",
    }
    assert found["cam-3"]["error"] == {"code": "model.golden-mismatch", "detail": "off by 3.5"}
    assert found["cam-1"]["phase"] == "fetching"
    assert found["cam-2"]["reported_at"] == "2026-09-21T14:13:20.000Z"
    counts = client.deployment(made)["counts"]
    assert {name: number for name, number in counts.items() if number} == {
        "in_progress": 1,
        "confirmed": 1,
        "refused": 1,
    }


def test_the_newest_report_wins_whatever_the_order_of_arrival(fleet: Registry) -> None:
    made = fleet.client().create_deployment("digits", 1, "*")["id"]
    assert report(fleet, "cam-1", made, number=5)
    assert not report(fleet, "cam-1", made, number=5, outcome=None)
    assert not report(fleet, "cam-1", made, number=4, outcome=None)
    assert report(fleet, "cam-1", made, number=1, boot=BOOT_2)
    assert not report(fleet, "cam-1", made, number=6, boot=BOOT_1, outcome=None)
    device = fleet.client().device("cam-1")
    assert (device["report"]["boot"], device["report"]["number"], device["director_version"]) == (BOOT_2, 1, 3)
    assert device["is_online"]
    fleet.clock.now_ms += 600_000
    assert not fleet.client().device("cam-1")["is_online"]


def test_what_was_confirmed_and_then_changed_shows_until_it_holds_again(fleet: Registry) -> None:
    client = fleet.client()
    made = client.create_deployment("digits", 1, "deviceId = 'cam-1'")["id"]
    first, other = Digest.of(b"outputs"), Digest.of(b"other outputs")

    def seen(number: int, **facts: Any) -> tuple[str, str | None]:
        report(fleet, "cam-1", made, number=number, **facts)
        (item,) = client.deployment_devices(made)
        counts = client.deployment(made)["counts"]
        assert {name for name, count in counts.items() if count} == {item["standing"]}
        metrics = fleet.request("GET", "/metrics", "").text
        assert f'lighterman_deployment_devices{{standing="{item["standing"]}"}} 1.0' in metrics
        return item["standing"], None if item["error"] is None else item["error"]["code"]

    assert seen(1, answering=None) == ("in_progress", None)
    assert seen(2, golden=first) == ("confirmed", None)
    assert seen(3, golden=first, answering=None) == ("confirmed", None)
    assert seen(4, golden=first, answering=MANIFEST_2) == ("reverted", "device.answers-otherwise")
    assert seen(5, golden=first, answering=None) == ("reverted", "device.answers-otherwise")
    assert seen(6, golden=first) == ("confirmed", None)
    assert seen(7, golden=other) == ("confirmed", "model.outputs-changed")
    assert seen(8, golden=first) == ("confirmed", None)
    assert seen(9, golden=first, live=MANIFEST_2) == ("reverted", "device.answers-otherwise")
    # A newer wish: how the former one ended stays written.
    client.create_deployment("digits", 2, "deviceId = 'cam-1'")
    assert client.deployment_devices(made)[0]["standing"] == "reverted"
    # The same deployment with another version starts anew, and remembers nothing of the former outputs.
    again = client.create_deployment("digits", 1, "deviceId = 'cam-1'")["id"]
    report(fleet, "cam-1", again, number=10, golden=other)
    assert client.deployment_devices(again)[0]["standing"] == "confirmed"


def test_a_deployment_that_a_device_did_not_take_is_refused_with_its_code(fleet: Registry) -> None:
    client = fleet.client()
    first = client.create_deployment("digits", 2, "deviceId = 'cam-1'")["id"]
    report(fleet, "cam-1", first, MANIFEST_2, live=MANIFEST_2)
    second = client.create_deployment("digits", 1, "deviceId = 'cam-1'")["id"]
    why = ReportedError("trust.release-rollback", "1 is below 2", Phase.IDLE, 0)
    refused = ReportedDeployment(second, MANIFEST_1, Outcome.REFUSED, why)
    report(fleet, "cam-1", first, MANIFEST_2, number=2, live=MANIFEST_2, refused=refused)
    (item,) = client.deployment_devices(second)
    assert (item["standing"], item["outcome"]) == ("refused", "refused")
    assert item["error"]["code"] == "trust.release-rollback"
    # With the permit it goes on.
    client.update_deployment(second, {"policy": {"allow_release_rollback": True}})
    report(fleet, "cam-1", second, number=3, outcome=None, live=MANIFEST_2)
    assert client.deployment_devices(second)[0]["standing"] == "in_progress"


def test_a_device_that_runs_a_version_keeps_it_from_being_deleted(fleet: Registry) -> None:
    client = fleet.client()
    made = client.create_deployment("digits", 1, "*")["id"]
    report(fleet, "cam-1", made)
    client.cancel_deployment(made)
    error = error_of(client.delete_version, "digits", 1)
    assert error.code == "cloud.in-use"
    assert [(item["kind"], item["name"]) for item in error.extras["needed_by"]] == [("device", "cam-1")]  # type: ignore[attr-defined]
    client.delete_version("digits", 2)


def test_a_preview_changes_nothing(fleet: Registry) -> None:
    client = fleet.client()
    assert client.preview("tags.site = 'north'") == {"devices": ["cam-1", "cam-2"], "count": 2}
    assert client.preview("tags.site = 'west'") == {"devices": [], "count": 0}
    assert error_of(client.preview, "tags.site =").code == "cloud.condition-invalid"
    assert client.deployments()["items"] == []


def test_an_alias_is_taken_at_the_moment_of_the_deployment(fleet: Registry) -> None:
    client = fleet.client()
    client.set_alias("digits", "production", 1)
    made = client.create_deployment("digits", "production", "*", module="reader", name="spring")
    client.set_alias("digits", "production", 2)
    assert (made["version"], made["module"], made["name"]) == (1, "reader", "spring")
    assert assigned(fleet, "cam-1")[0].module == "reader"
    assert client.deployment(made["id"])["version"] == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"condition": "colour = 'red'"}, "cloud.condition-invalid"),
        ({"version": 9}, "cloud.not-found"),
        ({"version": "nowhere"}, "cloud.not-found"),
        ({"model": "faces"}, "cloud.not-found"),
        ({"module": "../x"}, "cloud.name-invalid"),
        ({"priority": -1}, "cloud.bad-request"),
        ({"policy": {"sampling_ratio": 2}}, "cloud.bad-request"),
        ({"policy": {"probation_ms": -5}}, "cloud.bad-request"),
        ({"policy": {"window": 1}}, "cloud.bad-request"),
        ({"policy": {"windows": [{"start_minute": 1440, "length_minutes": 1}]}}, "cloud.bad-request"),
        ({"policy": {"windows": [{"start_minute": 0, "length_minutes": 0}]}}, "cloud.bad-request"),
        ({"policy": {"windows": [{"start_minute": 0, "length_minutes": 9, "days": [8]}]}}, "cloud.bad-request"),
        ({"policy": {"windows": [{"start_minute": 0, "length_minutes": 9}] * 15}}, "cloud.bad-request"),
        ({"policy": {"activation": "hope"}}, "cloud.bad-request"),
        ({"version": True}, "cloud.bad-request"),
    ],
)
def test_an_odd_deployment_is_refused(local_registry: Registry, change: dict[str, object], code: str) -> None:
    local_registry.register("digits")
    body = {"model": "digits", "version": 1, "condition": "*"} | change
    answer = local_registry.request("POST", "/api/v1/deployments", json=body)
    assert answer.json()["code"] == code
    assert local_registry.client().deployments()["items"] == []


@pytest.mark.parametrize("identifier", ["d1", "d1-zzzzzz", "d1-abcdef", "%00", "x" * 300])
def test_an_unknown_deployment_is_not_found(local_registry: Registry, identifier: str) -> None:
    answer = local_registry.request("GET", f"/api/v1/deployments/{identifier}")
    assert (answer.status_code, answer.json()["code"]) == (404, "cloud.not-found")


def test_deployments_are_listed_newest_first_in_pages(fleet: Registry) -> None:
    client = fleet.client()
    made = [client.create_deployment("digits", 1, "*", name=f"n{number}")["id"] for number in range(5)]
    first = client.deployments(limit=3)
    second = client.deployments(limit=3, cursor=first["next"])
    assert [item["id"] for page in (first, second) for item in page["items"]] == made[::-1]
    assert second["next"] is None


def test_racing_changes_leave_every_module_with_the_right_deployment(fleet: Registry) -> None:
    """Deployments, tags and enrolments at once: what is assigned in the end is what the rules say of the end."""
    client = fleet.client()

    def change(number: int) -> None:
        if number % 4 == 0:
            client.create_deployment("digits", 1 + number % 2, f"tags.group = '{number % 3}'")
        elif number % 4 == 1:
            client.set_tags(f"cam-{1 + number % 3}", {"group": str(number % 3)})
        elif number % 4 == 2:
            fleet.enrol(f"new-{number}", group=str(number % 3))
        else:
            client.create_deployment("digits", 2, f"tags.group = '{number % 3}'", priority=number % 2)

    with ThreadPoolExecutor(8) as changers:
        list(changers.map(change, range(24)))
    deployments = client.deployments(limit=200)["items"]
    for device in client.all_devices():
        matching = [
            item for item in deployments if f"'{device['tags'].get('group')}'" in item["condition"]
        ]  # newest first already
        best = max(matching, key=lambda item: (item["priority"], int(item["id"][1:].split("-")[0])), default=None)
        desired = device["desired"].get("digits")
        assert (desired and desired["deployment"]) == (best and best["id"]), json.dumps(device)
