"""Nudges and acknowledgements over a hub: coalesced, bounded in rate, tried again; addresses by tag; checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from cloud_registry.adapters.feed_eventhub import Checkpoints, EventToken
from cloud_registry.adapters.link_iothub import HubWriter
from cloud_registry.core.condition import Condition
from cloud_registry.hub_directory import HubDirectory
from cloud_registry.limits import HUB_KNOWN_S
from cloud_registry.ports import MetadataRow
from edge_contract.errors import EdgeError
from edge_contract.hub import HubAddress, HubDesired
from edge_contract.jsonio import JsonObject
from edge_contract.telemetry import Ack
from tests.support.net import wait_until

BOOT, OLD = "01" * 8, "00" * 8


class Devices:
    """The registry's devices with their tags."""

    def __init__(self, **tags: dict[str, str]) -> None:
        self.known = tags
        self.asked = 0

    def tags(self, device: str) -> dict[str, str] | None:
        self.asked += 1
        return self.known.get(device)

    def matching(self, condition: Condition) -> list[str]:
        return [name for name, tags in self.known.items() if repr(tags.get("iothub")) in str(condition)]


@dataclass
class Hub:
    """A hub that keeps what was written; the next writes raise what is in `errors`."""

    writes: list[tuple[HubAddress, JsonObject]] = field(default_factory=list)
    errors: list[EdgeError] = field(default_factory=list)
    twin: JsonObject = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def patch_desired(self, address: HubAddress, patch: JsonObject) -> None:
        assert self.gate.wait(20)
        if self.errors:
            raise self.errors.pop(0)
        self.writes.append((address, patch))

    def desired(self, address: HubAddress) -> JsonObject:
        return self.twin

    def query(self, text: str) -> Iterator[JsonObject]:
        return iter(())


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def writer(hub: Hub) -> Iterator[HubWriter]:
    devices = Devices(**{"dev-1": {}, "dev-2": {"iothub": "edge-2/models"}})
    made = HubWriter(hub, HubDirectory(devices, is_default=True), writes_per_s=1_000)
    made.start()
    yield made
    hub.gate.set()
    made.close()


def said(hub: Hub) -> list[tuple[str, HubDesired]]:
    return [(str(address), HubDesired.read(patch["lighterman"])) for address, patch in hub.writes]


def test_a_nudge_and_an_acknowledgement_reach_the_devices_address(hub: Hub, writer: HubWriter) -> None:
    writer.nudge("dev-1", 7)
    wait_until(lambda: len(hub.writes) == 1, 20)
    writer.send_ack("dev-2", Ack({BOOT: 5}))
    wait_until(lambda: len(hub.writes) == 2, 20)
    assert said(hub) == [("dev-1", HubDesired(7)), ("edge-2/models", HubDesired(ack=Ack({BOOT: 5})))]


def test_what_waits_goes_together_and_only_the_newest_of_it(hub: Hub, writer: HubWriter) -> None:
    hub.gate.clear()
    writer.nudge("dev-2", 1)
    for version in (3, 2):
        writer.nudge("dev-1", version)
    for mark in (4, 9, 6):
        writer.send_ack("dev-1", Ack({BOOT: mark}))
    hub.gate.set()
    wait_until(lambda: len(hub.writes) == 2, 20)
    assert said(hub)[1] == ("dev-1", HubDesired(3, Ack({BOOT: 9})))


def test_boots_of_long_ago_are_taken_out_of_the_twin(hub: Hub, writer: HubWriter) -> None:
    hub.twin = {"lighterman": {"ack": {"upto": {OLD: 90}}}}
    writer.send_ack("dev-1", Ack({BOOT: 1}))
    wait_until(lambda: hub.writes, 20)
    assert hub.writes[0][1]["lighterman"]["ack"]["upto"] == {BOOT: 1, OLD: None}


def test_a_write_that_failed_is_tried_again_with_what_is_wished_by_then(
    hub: Hub, writer: HubWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud_registry.adapters.link_iothub.HUB_RETRY_MS", 50)
    hub.gate.clear()
    hub.errors = [EdgeError("cloud.unavailable", "429")]
    writer.nudge("dev-1", 1)
    writer.send_ack("dev-1", Ack({BOOT: 2}))
    hub.gate.set()
    wait_until(lambda: writer.error, 20)
    writer.nudge("dev-1", 5)
    wait_until(lambda: any(desired.director_version == 5 for _, desired in said(hub)), 20)
    wait_until(lambda: any(desired.ack == Ack({BOOT: 2}) for _, desired in said(hub)), 20)
    wait_until(lambda: writer.error is None, 20)


def test_a_bug_with_one_device_stops_no_other(hub: Hub, writer: HubWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(address: HubAddress) -> JsonObject:
        raise AttributeError("a twin without properties")

    monkeypatch.setattr(hub, "desired", fail)
    writer.send_ack("dev-1", Ack({BOOT: 1}))
    wait_until(lambda: writer.error, 20)
    assert writer.error is not None
    assert writer.error.code == "internal.bug"
    writer.nudge("dev-2", 2)
    wait_until(lambda: hub.writes, 20)
    assert said(hub) == [("edge-2/models", HubDesired(2))]


def test_an_address_that_the_hub_does_not_know_is_not_tried_for_ever(hub: Hub, writer: HubWriter) -> None:
    hub.errors = [EdgeError("cloud.not-found", "no such device")]
    writer.nudge("dev-1", 1)
    wait_until(lambda: not hub.errors, 20)
    writer.nudge("dev-2", 2)
    wait_until(lambda: hub.writes, 20)
    assert [address for address, _ in said(hub)] == ["edge-2/models"]


def test_a_device_that_nobody_knows_gets_nothing(hub: Hub, writer: HubWriter) -> None:
    writer.nudge("nobody", 1)
    writer.nudge("dev-1", 1)
    wait_until(lambda: hub.writes, 20)
    assert [address for address, _ in said(hub)] == ["dev-1"]


def test_addresses_come_from_tags_and_back() -> None:
    now = [0.0]
    devices = Devices(a={"iothub": "edge-1/models"}, b={}, c={"iothub": "x y"})
    directory = HubDirectory(devices, is_default=True, monotonic_s=lambda: now[0])
    assert directory.address("a") == HubAddress("edge-1", "models")
    assert directory.address("b") == HubAddress("b")
    assert directory.address("c") is None
    assert directory.device(HubAddress("edge-1", "models")) == "a"
    assert directory.device(HubAddress("b")) == "b"
    assert directory.device(HubAddress("a")) is None  # that name is not where it is
    assert directory.device(HubAddress("b", "models")) is None
    devices.known["d"] = {"iothub": "e"}
    devices.known["e"] = {}
    assert directory.device(HubAddress("e")) is None  # two say that it is theirs
    devices.known["b"] = {"iothub": "other"}
    asked = devices.asked
    assert directory.address("b") == HubAddress("b")
    assert devices.asked == asked
    now[0] += HUB_KNOWN_S + 1
    assert directory.address("b") == HubAddress("other")


def test_beside_a_broker_only_tagged_devices_are_the_hubs() -> None:
    directory = HubDirectory(Devices(a={"iothub": "a"}, b={}), is_default=False)
    assert directory.address("a") == HubAddress("a")
    assert directory.address("b") is None
    assert directory.device(HubAddress("b")) is None


class Table:
    """Documents in memory."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.on_put: Callable[[], None] = lambda: None

    def get(self, repository: str, name: str) -> tuple[int, bytes] | None:
        return self.rows.get((repository, name))

    def put_many(self, rows: list[MetadataRow], expect: object, remove: object = ()) -> None:
        self.on_put()
        self.rows.update({(row.repository, row.name): (row.version, row.data) for row in rows})


def token(partition: str, sequence: int) -> EventToken:
    return EventToken(partition, str(sequence * 100), sequence)


def test_a_checkpoint_never_passes_what_is_not_done_with() -> None:
    table = Table()
    points = Checkpoints(table, "batch")  # type: ignore[arg-type]
    assert points.positions(["0", "1"]) == {"0": "-1", "1": "-1"}
    for sequence in (1, 2, 3):
        points.taken(token("0", sequence))
    points.taken(token("1", 1))
    points.done(token("0", 2))
    points.done(token("1", 1))
    points.write()
    assert points.positions(["0", "1"]) == {"0": "-1", "1": "100"}
    points.done(token("0", 1))
    points.write()
    assert points.positions(["0"]) == {"0": "200"}


def test_a_checkpoint_that_could_not_be_written_is_written_with_the_next() -> None:
    table = Table()

    def fail() -> None:
        raise EdgeError("cloud.unavailable", "the database is away")

    points = Checkpoints(table, "batch")  # type: ignore[arg-type]
    points.taken(token("0", 1))
    points.done(token("0", 1))
    table.on_put = fail
    with pytest.raises(EdgeError):
        points.write()
    table.on_put = lambda: None
    points.write()
    assert points.positions(["0"]) == {"0": "100"}


def test_what_a_reader_took_and_nobody_was_done_with_comes_again() -> None:
    points = Checkpoints(Table(), "batch")  # type: ignore[arg-type]
    points.taken(token("0", 1))
    points.forget()
    points.done(token("0", 1))  # of the reader before
    points.taken(token("0", 1))
    points.write()
    assert points.positions(["0"]) == {"0": "-1"}


def test_a_partition_that_is_read_again_from_what_was_not_done_goes_on() -> None:
    points = Checkpoints(Table(), "batch")  # type: ignore[arg-type]
    started = points.positions(["0"])
    for sequence in (1, 2, 3):
        points.taken(token("0", sequence))
    points.done(token("0", 1))
    points.done(token("0", 3))
    assert started == {"0": "100"}, "where the library goes on when it comes back to the partition"
    for sequence in (2, 3):
        points.taken(token("0", sequence))
    points.done(token("0", 3))
    assert started == {"0": "100"}
    points.done(token("0", 2))  # of the first time
    points.done(token("0", 2))
    points.write()
    assert points.positions(["0"]) == {"0": "300"}
    points.taken(token("0", 4))
    points.done(token("0", 4))
    points.write()
    assert points.positions(["0"]) == {"0": "400"}
