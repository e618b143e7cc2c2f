"""The rules of the emulated hub without a network: twins, queues, the log, faults, and what a restart keeps."""

from __future__ import annotations

import itertools
import json

import pytest

from device_sim.iothub import troubles
from device_sim.iothub.hub import Hub
from device_sim.iothub.identities import HubError
from device_sim.iothub.limits import C2D_DELIVERIES_MAX, C2D_TTL_MS, MODULES_MAX
from device_sim.iothub.messages import encode_bag, parse_bag
from device_sim.iothub.stored import restore, to_store
from edge_contract.errors import EdgeError
from edge_contract.hub import HubAddress

_PUMP = HubAddress("pump")


class _Clock:
    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def hub(clock: _Clock) -> Hub:
    numbers = itertools.count()
    made = Hub("hub.example", lambda: clock.now_ms, lambda: f"{next(numbers):0>22}==")
    made.create(_PUMP)
    return made


def test_every_write_has_a_version_of_its_own(hub: Hub) -> None:
    for _ in range(3):
        hub.write_twin(_PUMP, {"properties": {"desired": {"a": 1}}}, is_patch=True)
    assert hub.twin(_PUMP).desired.document() == {"a": 1, "$version": 4}
    hub.write_twin(_PUMP, {"properties": {"desired": {"b": 2}}}, is_patch=False)
    assert hub.twin(_PUMP).desired.document() == {"b": 2, "$version": 5}


def test_a_refused_write_changes_nothing(hub: Hub) -> None:
    before = json.dumps(hub.twin_document(_PUMP))
    for bad, status in (
        ({"a b": 1}, 400),
        ({"a": "x" * 5000}, 400),
        ({"a": 2**53}, 400),
        ({"a": ["x" * 4000] * 9}, 413),
    ):
        with pytest.raises(HubError) as refused:
            hub.write_twin(_PUMP, {"properties": {"desired": bad}}, is_patch=True)
        assert refused.value.status == status
    assert json.dumps(hub.twin_document(_PUMP)) == before


def test_a_write_under_another_tag_is_refused(hub: Hub) -> None:
    etag = hub.twin(_PUMP).etag
    hub.write_twin(_PUMP, {"tags": {"site": "north"}}, is_patch=True, etag=f'"{etag}"')
    with pytest.raises(HubError) as refused:
        hub.write_twin(_PUMP, {"tags": {"site": "south"}}, is_patch=True, etag=f'"{etag}"')
    assert refused.value.status == 412
    assert hub.twin(_PUMP).tags == {"site": "north"}


def test_metadata_says_when_each_value_was_written(hub: Hub, clock: _Clock) -> None:
    hub.write_twin(_PUMP, {"properties": {"desired": {"a": {"b": 1}}}}, is_patch=True)
    clock.now_ms += 60_000
    hub.write_twin(_PUMP, {"properties": {"desired": {"a": {"c": 2}}}}, is_patch=True)
    metadata = hub.twin_document(_PUMP)["properties"]["desired"]["$metadata"]
    assert metadata["a"]["b"]["$lastUpdated"] < metadata["a"]["c"]["$lastUpdated"]
    assert metadata["$lastUpdated"] == metadata["a"]["$lastUpdated"] == metadata["a"]["c"]["$lastUpdated"]


def test_a_message_expires(hub: Hub, clock: _Clock) -> None:
    hub.send(_PUMP, b"x")
    clock.now_ms += C2D_TTL_MS + 1
    assert hub.pending(_PUMP) == []


def test_a_message_is_given_up_after_its_deliveries(hub: Hub) -> None:
    message = hub.send(_PUMP, b"x")
    for _ in range(C2D_DELIVERIES_MAX):
        assert hub.pending(_PUMP) == [message]
        hub.delivered(_PUMP, message)
    assert hub.pending(_PUMP) == []


def test_a_device_has_a_bounded_number_of_modules(hub: Hub) -> None:
    for number in range(MODULES_MAX):
        hub.create(HubAddress("pump", f"m{number}"))
    with pytest.raises(HubError) as refused:
        hub.create(HubAddress("pump", "one-more"))
    assert refused.value.status == 403
    hub.delete(_PUMP)
    assert hub.identities == {}


def test_a_device_that_becomes_one_of_iot_edge_gets_the_modules_of_the_runtime(hub: Hub) -> None:
    assert hub.modules("pump") == []
    hub.update(_PUMP, {"capabilities": {"iotEdge": True}})
    assert [identity.address.module for identity in hub.modules("pump")] == ["$edgeAgent", "$edgeHub"]


def test_the_log_keeps_the_order_of_a_device_in_its_partition(hub: Hub) -> None:
    for number in range(5):
        hub.take(_PUMP, str(number).encode(), {}, {}, "sas")
    partition = hub.telemetry.partition_of("pump")
    assert [event.body for event in hub.telemetry.read(partition, 2, 10)] == [b"2", b"3", b"4"]
    assert [event.sequence for event in hub.telemetry.read(partition, 0, 10)] == list(range(5))
    assert [event.body for event in hub.drain_telemetry(2)] == [b"0", b"1"]
    assert [event.body for event in hub.drain_telemetry()] == [b"2", b"3", b"4"]
    assert hub.drain_telemetry() == []


def test_what_is_stored_comes_back(hub: Hub) -> None:
    hub.create(HubAddress("pump", "models"))
    hub.write_twin(_PUMP, {"tags": {"a": 1}, "properties": {"desired": {"b": {"c": [1]}}}}, is_patch=True)
    hub.write_reported(_PUMP, {"d": True})
    hub.subscribe(_PUMP, "$iothub/methods/POST/#")
    hub.send(_PUMP, b"\x00\xff", {"k": None}, {"$.mid": "1"})
    hub.put_document("configuration", "c", {"priority": 1})
    other = Hub("hub.example", hub.now_ms, hub.new_key)
    for kind, name in sorted(hub.changed):
        document = to_store(hub, kind, name)
        assert document is not None
        restore(other, kind, name, json.loads(json.dumps(document)))
    assert other.identities == hub.identities
    assert other.twins == hub.twins
    assert other.subscriptions == hub.subscriptions
    assert other.queues == hub.queues
    assert other.documents == hub.documents


def test_properties_of_a_topic_come_back() -> None:
    values = {"$.mid": "ä/b", "empty": "", "alone": None, "a=b&c": "%"}
    assert parse_bag(encode_bag(values)) == values
    assert parse_bag("/?a=1/") == {"a": "1"}


def test_faults_are_met_in_order_and_by_whom_they_are_for() -> None:
    faults = troubles.Faults()
    faults.add(troubles.Fault("refuse", "connect", count=2, device="pump"))
    faults.add(troubles.Fault("drop", "connect"))
    assert [getattr(faults.take("connect", who), "kind", "") for who in ("gate", "pump/models", "pump", "pump")] == [
        "drop",
        "refuse",
        "refuse",
        "",
    ]
    with pytest.raises(EdgeError):
        faults.add(troubles.Fault("explode", "connect"))


def test_a_bucket_gives_its_rate() -> None:
    rates = troubles.Rates(1)
    assert sum(rates.take(troubles.REPORTED, 1_000_000) for _ in range(80)) == 50
    assert sum(rates.take(troubles.REPORTED, 1_000_500) for _ in range(80)) == 25
    assert all(troubles.Rates(0).take(troubles.REPORTED, 0) for _ in range(80))
