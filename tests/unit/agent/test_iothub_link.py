"""The link over Azure IoT Hub against a scripted SDK: what the SDK leaves to its caller."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import IotHubConfig, ProvisioningConfig, parse_config
from edge_agent.limits import HUB_MESSAGE_BYTES_MAX
from edge_agent.link.iothub import IotHubLink
from edge_agent.ports import LinkInput
from edge_contract.errors import EdgeError
from edge_contract.hub import HubSettings, join_report
from edge_contract.limits import BATCH_BYTES_MAX
from edge_contract.phases import Phase
from edge_contract.signed import REPORT_TYPE, Envelope
from edge_contract.telemetry import Ack, Batch, Sample
from edge_contract.twin import Report, ReportedModule
from tests.support.fakehub import ConnectionFailedError, CredentialError, FakeHub, ServiceError
from tests.support.net import wait_until

ACK = Ack({"00" * 8: 5})


class Bench:
    """A hub, a link to it, and what the link said."""

    def __init__(self) -> None:
        self.hub = FakeHub()
        self.link = IotHubLink(self.hub, retry_ms_first=5, retry_ms_max=20, open_ms_max=5_000, send_ms_max=200)
        self.nudges: list[int] = []
        self.acks: list[Ack] = []
        self.online: list[bool] = []

    def start(self) -> None:
        self.link.start(self.nudges.append, self.acks.append, self.online.append)
        wait_until(lambda: self.online, 10)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.hub.release.set()
    made.link.stop()


def desired(version: Any, **properties: Any) -> dict[str, Any]:
    return {"$version": version, "lighterman": properties}


def test_the_sdk_is_not_imported_with_the_module() -> None:
    code = "import sys, edge_agent.link.iothub; sys.exit('azure' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("error", [CredentialError(), ConnectionFailedError(), RuntimeError("inner layer")])
def test_no_refusal_is_final(bench: Bench, error: Exception) -> None:
    bench.hub.script = [error, error, error]
    bench.start()
    assert bench.online == [True]
    assert len(bench.hub.clients) == 4
    assert all(client.is_shut_down for client in bench.hub.clients[:3])


def test_why_it_is_refused_can_be_asked(bench: Bench) -> None:
    bench.hub.script = [CredentialError()] * 500
    bench.link.start(bench.nudges.append, bench.acks.append, bench.online.append)
    wait_until(lambda: bench.link.error, 10)
    assert bench.link.error is not None
    assert bench.link.error.code == "network.refused"


def test_the_twin_is_read_again_after_every_connect(bench: Bench) -> None:
    bench.hub.twin = {"desired": desired(3, director_version=7)}
    bench.start()
    wait_until(lambda: bench.nudges == [7], 10)
    bench.hub.twin = {"desired": desired(4, director_version=8)}
    bench.hub.drop()
    wait_until(lambda: bench.nudges == [7, 8], 10)
    assert bench.online == [True, False, True]


@pytest.mark.parametrize(
    "rubbish",
    [None, [], "x", {}, desired(None), desired("x", director_version="9"), desired(9, ack={"upto": [1]}),
     desired(9, director_version=-1), desired(9, director_version=True), {"lighterman": 5}],
)  # fmt: skip
def test_rubbish_in_the_twin_is_passed_over(bench: Bench, rubbish: Any) -> None:
    bench.hub.twin = {"desired": rubbish}
    bench.start()
    bench.hub.patch(rubbish)
    bench.hub.patch({"lighterman": {"director_version": 2, "ack": {"upto": ACK.upto}}})  # without $version
    wait_until(lambda: bench.acks == [ACK], 10)
    assert bench.nudges == [2]
    assert bench.online == [True]


def test_a_patch_older_than_the_document_is_passed_over(bench: Bench) -> None:
    bench.hub.twin = {"desired": desired(5, director_version=50)}
    bench.start()
    bench.hub.patch(desired(4, director_version=40))
    bench.hub.patch(desired(6, director_version=60))
    wait_until(lambda: 60 in bench.nudges, 10)
    assert bench.nudges == [50, 60]


def test_acknowledgements_come_as_messages_and_rubbish_is_passed_over(bench: Bench) -> None:
    bench.start()
    for rubbish in (b"", b"\xff", b"[" * 500, "text", None, 5):
        bench.hub.tell(rubbish, kind="ack")
    bench.hub.tell(ACK.to_bytes(), kind="other")
    bench.hub.tell(ACK.to_bytes(), kind="ack")
    wait_until(lambda: bench.acks, 10)
    assert bench.acks == [ACK]
    assert bench.online == [True]


def test_a_send_without_answer_ends_the_connection_and_blocks_nobody(bench: Bench) -> None:
    bench.start()
    bench.hub.is_mute = True
    assert bench.link.send_batch(b"lost")
    wait_until(lambda: bench.online[:2] == [True, False], 10)
    bench.hub.is_mute = False
    wait_until(lambda: bench.online == [True, False, True], 10)
    assert bench.link.send_report(b"report")
    wait_until(lambda: bench.hub.sent == [("report", b"report")], 10)


def test_calls_that_never_come_back_do_not_end_the_link(bench: Bench) -> None:
    bench.link = IotHubLink(bench.hub, retry_ms_first=5, retry_ms_max=20, open_ms_max=50, patience_ms=50)
    bench.hub.twins_lost = 6
    bench.start()
    assert bench.online == [True]
    assert len(bench.hub.clients) == 7


def test_a_batch_too_long_for_the_hub_goes_in_parts(bench: Bench) -> None:
    samples = tuple(Sample(n, "event", "", "", 0, None, 0, {"text": "x" * 26_000}) for n in range(1, 11))
    whole = Batch("dev-1", "00" * 8, samples).to_bytes()
    assert HUB_MESSAGE_BYTES_MAX < len(whole) <= BATCH_BYTES_MAX
    bench.start()
    assert bench.link.send_batch(whole)
    wait_until(lambda: len(bench.hub.sent) == 2, 10)
    assert [s.seq for _, part in bench.hub.sent for s in Batch.parse(part).samples] == list(range(1, 11))
    assert not bench.link.send_batch(b"x" * (HUB_MESSAGE_BYTES_MAX + 1))


def test_stopping_is_bounded_and_offline_nothing_is_taken(bench: Bench) -> None:
    assert not bench.link.send_report(b"early")
    bench.hub.is_away = True
    bench.link.start(bench.nudges.append, bench.acks.append, bench.online.append)
    assert not bench.link.send_report(b"still away")
    bench.link.stop()
    assert bench.online == []


class Asked:
    """Operations that remember what they were asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.settings: list[HubSettings] = []
        self.error: Exception | None = None
        self.answer: dict[str, Any] = {"alive": True}

    def perform(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((method, arguments))
        if self.error is not None:
            raise self.error
        return self.answer

    def set(self, settings: HubSettings) -> None:
        self.settings.append(settings)


@pytest.fixture
def asked(bench: Bench) -> Asked:
    operations = Asked()
    bench.link = IotHubLink(
        bench.hub, retry_ms_first=5, retry_ms_max=20, reported_ms=10, operations=operations, methods=("ping", "hold")
    )
    return operations


def envelope(number: int = 1, **modules: ReportedModule) -> bytes:
    report = Report("dev-1", "00" * 8, number, 0, "linux/amd64", "1.0", 7, modules)
    return Envelope(REPORT_TYPE, report.to_bytes(), "aa", b"signature").to_bytes()


def test_direct_methods_are_answered(bench: Bench, asked: Asked) -> None:
    bench.start()
    assert bench.hub.call("ping") == (200, {"alive": True})
    assert bench.hub.call("hold", {"module": "digits"})[0] == 200
    assert asked.calls == [("ping", {}), ("hold", {"module": "digits"})]


@pytest.mark.parametrize(
    ("name", "arguments", "error", "status", "code"),
    [
        ("rollback", None, None, 400, "config.invalid"),
        ("reboot", None, None, 400, "config.invalid"),
        ("ping", [1], None, 400, "config.invalid"),
        ("ping", None, EdgeError("config.invalid", "no such module"), 400, "config.invalid"),
        ("ping", None, EdgeError("device.no-fallback", "nothing to go back to"), 500, "device.no-fallback"),
        ("ping", None, TimeoutError(), 500, "device.busy"),
        ("ping", None, ZeroDivisionError(), 500, "internal.bug"),
    ],
)
def test_a_method_that_is_not_permitted_or_fails_is_answered_with_a_code(
    bench: Bench, asked: Asked, name: str, arguments: Any, error: Exception | None, status: int, code: str
) -> None:
    asked.error = error
    bench.start()
    found, answer = bench.hub.call(name, arguments)
    assert (found, answer["error"]["code"]) == (status, code)
    assert bench.hub.call(name, arguments)[0] == status  # and the next one is answered too


def test_an_answer_too_long_for_the_hub_is_an_error(bench: Bench, asked: Asked) -> None:
    asked.answer = {"logs": "x" * 200_000}
    bench.start()
    assert bench.hub.call("ping")[0] == 500


def test_settings_take_effect_merge_and_go_back(bench: Bench, asked: Asked) -> None:
    bench.hub.twin = {"desired": desired(1, settings={"report_ms": 2_000})}
    bench.start()
    wait_until(lambda: asked.settings == [HubSettings(report_ms=2_000)], 10)
    bench.hub.patch(desired(2, settings={"poll_ms": 3_000}))
    wait_until(lambda: asked.settings[1:] == [HubSettings(3_000, 2_000)], 10)
    bench.hub.patch(desired(3, director_version=4))
    bench.hub.patch(desired(4, settings={"report_ms": None}))
    wait_until(lambda: asked.settings[2:] == [HubSettings(3_000)], 10)
    bench.hub.patch(desired(5, settings=None))
    wait_until(lambda: asked.settings[3:] == [HubSettings()], 10)
    assert bench.nudges == [4]


def test_bad_settings_change_nothing_and_are_reported(bench: Bench, asked: Asked) -> None:
    bench.hub.twin = {"desired": desired(1, settings={"report_ms": 2_000})}
    bench.start()
    assert bench.link.send_report(envelope())
    bench.hub.patch(desired(2, director_version=9, settings={"report_ms": -5}))
    wait_until(lambda: bench.nudges == [9], 10)
    wait_until(lambda: "settings_error" in str(bench.hub.patches[-1:]), 10)
    assert asked.settings == [HubSettings(report_ms=2_000)]
    bench.hub.patch(desired(3, settings={"report_ms": 2_000}))
    wait_until(lambda: bench.hub.patches[-1]["lighterman"] == {"settings_error": None}, 10)


def test_reported_properties_say_what_changed_and_after_a_connect_what_is_missing(bench: Bench, asked: Asked) -> None:
    bench.start()
    first = envelope(digits=ReportedModule(Phase.IDLE, None, "digits", 3))
    assert bench.link.send_report(first)
    wait_until(lambda: bench.hub.patches, 10)
    whole = bench.hub.patches[0]["lighterman"]
    assert whole["modules"] == {"digits": {"model": "digits", "version": 3, "phase": "idle"}}
    assert join_report(whole["report"]["parts"]) == first
    assert bench.link.send_report(envelope(2))
    wait_until(lambda: len(bench.hub.patches) == 2, 10)
    change = bench.hub.patches[1]["lighterman"]
    assert set(change) == {"number", "modules", "report"}
    assert change["modules"] == {"digits": None}
    bench.hub.twin = {"desired": desired(1), "reported": {"lighterman": {"number": 2, "old": 1}}}
    bench.hub.drop()
    wait_until(lambda: len(bench.hub.patches) == 3, 10)
    again = bench.hub.patches[2]["lighterman"]
    assert again["old"] is None
    assert "number" not in again
    assert again["agent_version"] == "1.0"


def test_a_rejected_write_of_the_twin_costs_no_connection(bench: Bench, asked: Asked) -> None:
    error = RuntimeError("a client error")
    error.__cause__ = ServiceError("twin operation returned status 429")
    bench.hub.rejections = [error, error]
    bench.start()
    assert bench.link.send_report(envelope())
    wait_until(lambda: bench.hub.patches, 10)
    assert bench.online == [True]
    assert bench.hub.rejections == []


def test_a_patch_that_was_missed_is_in_the_twin_that_is_read_then(bench: Bench) -> None:
    bench.hub.twin = {"desired": desired(1)}
    bench.start()
    bench.hub.twin = {"desired": desired(3, director_version=30, ack={"upto": ACK.upto})}
    bench.hub.patch(desired(3, director_version=30))  # the one before, with the acknowledgement, was lost
    wait_until(lambda: bench.acks == [ACK], 10)
    assert set(bench.nudges) == {30}
    bench.hub.twin = {"desired": desired(6, director_version=40, ack={"upto": {"11" * 8: 9}})}
    bench.hub.patch(desired(6, director_version=40))
    wait_until(lambda: Ack({"11" * 8: 9}) in bench.acks, 10)
    assert bench.online == [True]


def test_a_report_that_comes_while_another_is_written_is_written_too(bench: Bench, asked: Asked) -> None:
    bench.start()
    hub, link = bench.hub, bench.link
    hub.on_patch = lambda: link.send_report(envelope(2))
    assert link.send_report(envelope(1))
    wait_until(lambda: [patch["lighterman"].get("number") for patch in hub.patches] == [1, 2], 10)


def test_the_twin_is_read_now_and_then_because_patches_may_be_lost(bench: Bench) -> None:
    bench.link = IotHubLink(bench.hub, retry_ms_first=5, retry_ms_max=20, twin_ms=20)
    bench.hub.twin = {"desired": desired(1)}
    bench.start()
    bench.hub.twin = {"desired": desired(2, director_version=5)}
    wait_until(lambda: bench.nudges == [5], 10)
    assert bench.online == [True]


def test_a_listener_that_fails_does_not_end_the_link(bench: Bench) -> None:
    failures = [RuntimeError("no more threads")]

    def nudged(version: int) -> None:
        if failures:
            raise failures.pop()
        bench.nudges.append(version)

    bench.hub.twin = {"desired": desired(1, director_version=1)}
    bench.link.start(nudged, bench.acks.append, bench.online.append)
    wait_until(lambda: bench.nudges == [1], 10)
    assert bench.online[-1] is True


def test_a_listener_that_fails_when_the_link_goes_down_does_not_end_it_either(bench: Bench) -> None:
    def told(is_online: bool) -> None:
        bench.online.append(is_online)
        if not is_online:
            raise RuntimeError("no more threads")

    bench.link.start(bench.nudges.append, bench.acks.append, told)
    wait_until(lambda: bench.online == [True], 10)
    bench.hub.drop()
    wait_until(lambda: bench.online == [True, False, True], 10)


def test_refused_credentials_are_told_to_who_derived_them(bench: Bench) -> None:
    bench.hub.script = [CredentialError(), ConnectionFailedError()]
    bench.start()
    assert bench.hub.refusals == 1


def test_a_modules_inputs_are_handed_over_and_its_outputs_sent(bench: Bench) -> None:
    heard: list[LinkInput] = []
    bench.link.listen(heard.append)
    bench.start()
    bench.hub.input("digits", b"{}", camera="7")
    wait_until(lambda: heard, 10)
    assert heard == [LinkInput("digits", b"{}", {"camera": "7"}, "application/json")]
    assert bench.link.send_output("digits", b"answer", {"a": "b"}, "application/json")
    wait_until(lambda: bench.hub.sent, 10)
    assert bench.hub.sent == [("digits application/json {'a': 'b'}", b"answer")]


def test_the_configuration_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "edge-agent.toml"
    text = '[iothub]\nconnection_string_file = "hub"\nca = "ca.pem"\ngateway = "gw"\n'
    assert parse_config(text, file).iothub == IotHubConfig(tmp_path / "hub", tmp_path / "ca.pem", "gw")
    assert parse_config("", file).iothub is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("edge = true", IotHubConfig(is_edge=True)),
        ('host = "h"\nkey_file = "/k"', IotHubConfig(host="h", key_file=Path("/k"))),
        ('host = "h"\ndevice = "d"\nmodule = "m"\nkey_file = "/k"\nmethods = ["ping"]',
         IotHubConfig(host="h", device="d", module="m", key_file=Path("/k"), methods=("ping",))),
        ('host = "h"\ncertificate = "/c"\ncertificate_key = "/k"\nwebsockets = true',
         IotHubConfig(host="h", certificate=Path("/c"), certificate_key=Path("/k"), websockets=True)),
        ('key_file = "/k"\n[iothub.provisioning]\nscope = "0ne"\nregistration = "r"',
         IotHubConfig(key_file=Path("/k"), provisioning=ProvisioningConfig("0ne", "r"))),
        ('[iothub.provisioning]\nscope = "0ne"\ngroup_key_file = "/g"',
         IotHubConfig(provisioning=ProvisioningConfig("0ne", group_key_file=Path("/g")))),
    ],
)  # fmt: skip
def test_every_kind_of_identity_can_be_configured(text: str, expected: IotHubConfig) -> None:
    assert parse_config(f"[iothub]\n{text}\n", Path("/etc/agent.toml")).iothub == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        'connection_string_file = "x"\nport = 1',
        'connection_string_file = "x"\nedge = true',
        'key_file = "k"',
        'certificate = "c"\nhost = "h"',
        'connection_string_file = "x"\nhost = "h"',
        'connection_string_file = "x"\nmethods = ["reboot"]',
        'host = "h"\nkey_file = "k"\npassphrase_file = "p"',
        '[iothub.provisioning]\nscope = "0ne"',
        'key_file = "k"\n[iothub.provisioning]\nregistration = "r"',
        'key_file = "k"\nhost = "h"\n[iothub.provisioning]\nscope = "0ne"',
    ],
)
def test_a_wrong_identity_is_refused_by_the_name_of_its_key(text: str) -> None:
    with pytest.raises(EdgeError, match="iothub"):
        parse_config(f"[iothub]\n{text}\n", Path("/etc/agent.toml"))
