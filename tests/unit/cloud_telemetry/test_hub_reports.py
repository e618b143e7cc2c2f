"""Reports out of twins: each new one is taken once, and one that makes trouble hides no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from cloud_registry.assembly import SystemClock
from cloud_registry.collect.hub_reports import TwinReports
from cloud_registry.hub_directory import HubDirectory
from cloud_registry.metrics import RegistryMetrics
from cloud_registry.ports import ReportMessage, ReportVerdict
from edge_contract.errors import EdgeError
from edge_contract.hub import HubAddress, report_parts
from edge_contract.jsonio import JsonObject
from tests.unit.cloud_telemetry.test_hub_writer import Devices

_REFUSED = "lighterman_collector_reports_refused_total"


class Hub:
    """Answers queries with rows."""

    def __init__(self) -> None:
        self.devices: list[JsonObject] = []
        self.modules: list[JsonObject] = []

    def query(self, text: str) -> Iterator[JsonObject]:
        return iter(self.modules if "devices.modules" in text else self.devices)

    def patch_desired(self, address: HubAddress, patch: JsonObject) -> None:
        raise AssertionError("nothing is written")

    def desired(self, address: HubAddress) -> JsonObject:
        raise AssertionError("nothing else is read")


class Fleet:
    """Takes reports, or raises what is in `errors` for a device."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.errors: dict[str, EdgeError] = {}
        self.verdict = ReportVerdict()

    def take_reports(self, device: str, messages: Sequence[ReportMessage]) -> Sequence[ReportVerdict]:
        if device in self.errors:
            raise self.errors[device]
        assert all(message.is_copy for message in messages)
        self.taken += [(device, message.content) for message in messages]
        return [self.verdict]


def refused(metrics: RegistryMetrics) -> list[str]:
    return [line for line in metrics.render()[0].decode().splitlines() if line.startswith(_REFUSED)]


def row(device: str, number: int, module: str = "", **more: Any) -> JsonObject:
    said = {"boot": "00" * 8, "number": number, "report": {"parts": report_parts(f"{device} {number}".encode())}}
    return {"deviceId": device, "moduleId": module, "reported": {"lighterman": {**said, **more}}}


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def metrics() -> RegistryMetrics:
    return RegistryMetrics()


@pytest.fixture
def reader(hub: Hub, fleet: Fleet, metrics: RegistryMetrics) -> TwinReports:
    devices = Devices(a={}, b={}, c={"iothub": "edge/models"})
    directory = HubDirectory(devices, is_default=True)
    return TwinReports(hub, directory, fleet, SystemClock(), metrics, 60)  # type: ignore[arg-type]


def test_each_report_is_taken_once_from_devices_and_modules(reader: TwinReports, hub: Hub, fleet: Fleet) -> None:
    hub.devices, hub.modules = [row("a", 1)], [row("edge", 7, "models"), row("edge", 1, "other")]
    assert reader.read() == 2
    assert fleet.taken == [("a", b"a 1"), ("c", b"edge 7")]
    assert reader.read() == 0
    hub.devices = [row("a", 2)]
    assert reader.read() == 1


def test_a_report_that_came_as_a_message_before_is_no_replay(
    reader: TwinReports, hub: Hub, fleet: Fleet, metrics: RegistryMetrics
) -> None:
    hub.devices = [row("a", 1)]
    fleet.verdict = ReportVerdict("trust.report-replayed", "the newest report came a second time")
    assert reader.read() == 0
    assert refused(metrics) == []
    hub.devices = [row("a", 2)]
    fleet.verdict = ReportVerdict("trust.report-unsigned", "somebody wrote it into the twin")
    assert reader.read() == 0
    assert refused(metrics) == [f'{_REFUSED}{{code="trust.report-unsigned"}} 1.0']


@pytest.mark.parametrize(
    "bad",
    [
        {"deviceId": "a", "moduleId": "", "reported": None},
        {"deviceId": "a", "moduleId": "", "reported": {"lighterman": 5}},
        row("a", 1, report={"parts": None}),
        row("a", 1, report={"parts": ["%"]}),
        row("a", 1, boot=5),
        row("nobody", 1),
    ],
)
def test_what_is_no_report_is_passed_over(reader: TwinReports, hub: Hub, fleet: Fleet, bad: JsonObject) -> None:
    hub.devices = [bad, row("b", 1)]
    assert reader.read() == 1
    assert fleet.taken == [("b", b"b 1")]


def test_a_report_that_the_database_chokes_on_hides_no_other(reader: TwinReports, hub: Hub, fleet: Fleet) -> None:
    hub.devices = [row("a", 1), row("b", 1)]
    fleet.errors["a"] = EdgeError("internal.bug", "it chokes")
    assert reader.read() == 1
    assert fleet.taken == [("b", b"b 1")]


def test_a_database_that_is_away_is_asked_again(reader: TwinReports, hub: Hub, fleet: Fleet) -> None:
    hub.devices = [row("a", 1)]
    fleet.errors["a"] = EdgeError("cloud.unavailable", "away")
    with pytest.raises(EdgeError):
        reader.read()
    fleet.errors.clear()
    assert reader.read() == 1
