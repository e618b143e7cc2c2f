"""What Microsoft's SDK leaves to its caller, with the SDK itself: the link covers it, nothing acknowledged is lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_sim.iothub.running import Emulator
from edge_agent.config import IotHubConfig
from edge_agent.link.iothub import IotHubLink
from edge_agent.link.iothub_sdk import AzureSdk
from edge_agent.store.spool import SqliteSpool
from edge_contract.hub import HubAddress, HubDesired, HubSettings
from edge_contract.jsonio import JsonObject
from edge_contract.signed import REPORT_TYPE, Envelope
from edge_contract.telemetry import Ack, Batch
from edge_contract.twin import Report
from tests.support.iothub import SDK_LEAKS
from tests.support.net import wait_until

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings(SDK_LEAKS)]
_WAIT_S = 40.0
BOOT = "00" * 8
REPORT = Envelope(
    REPORT_TYPE, Report("dev-1", BOOT, 1, 0, "linux/amd64", "1.0").to_bytes(), "aa", b"signature"
).to_bytes()


class Device:
    """A link to the emulator with Microsoft's SDK, and what it said."""

    def __init__(self, hub: Emulator, name: str, folder: Path, **options: Any) -> None:
        self.hub, self.name = hub, name
        secret, ca = folder / "hub", folder / "ca.pem"
        secret.write_text(hub.add_device(name))
        ca.write_text(hub.ca_pem)
        self.sdk = AzureSdk(IotHubConfig(secret, ca), name)
        self.link = IotHubLink(self.sdk, retry_ms_first=20, retry_ms_max=100, reported_ms=10, **options)
        self.nudges: list[int] = []
        self.acks: list[Ack] = []
        self.online: list[bool] = []

    def start(self) -> None:
        """Start, and wait until it is up."""
        self.link.start(self.nudges.append, self.acks.append, self.online.append)
        self.until(True)

    def until(self, is_online: bool) -> None:
        """Wait until the link said so last."""
        wait_until(lambda: self.online[-1:] == [is_online], _WAIT_S, what=f"online={is_online}")

    def nudge(self, version: int) -> None:
        """Nudge, and wait until the device heard it."""
        self.hub.admin.desired(device=self.name, desired=HubDesired.nudge_patch(version))
        wait_until(lambda: version in self.nudges, _WAIT_S, what=f"nudge {version}")


@pytest.fixture
def device(hub: Emulator, name: str, tmp_path: Path) -> Iterator[Device]:
    made = Device(hub, name, tmp_path)
    yield made
    made.link.stop()


def dropped(device: Device) -> None:
    """End the connection, and wait until it is up again."""
    count = len(device.online)
    device.hub.admin.disconnect(device=device.name)
    wait_until(lambda: len(device.online) > count, _WAIT_S)
    device.until(True)


def test_every_connection_subscribes_anew_so_a_hub_that_forgot_is_no_trouble(device: Device) -> None:
    device.start()
    device.nudge(1)
    hub = device.hub

    hub.call(hub.hub.subscriptions.clear)
    dropped(device)
    device.nudge(2)


def test_a_refusal_on_a_reconnect_is_not_final(device: Device) -> None:
    device.start()
    device.hub.admin.fault(kind="refuse", operation="connect", device=device.name, code=5, count=5)
    dropped(device)
    device.nudge(3)


def test_a_twin_that_never_comes_holds_up_one_connection_for_a_bounded_time(
    hub: Emulator, name: str, tmp_path: Path
) -> None:
    device = Device(hub, name, tmp_path, open_ms_max=2_000)
    hub.admin.fault(kind="lose", operation="twin-get", device=name)
    try:
        device.start()
        device.nudge(1)
    finally:
        device.link.stop()


def test_a_message_that_is_never_acknowledged_ends_the_connection_within_its_bound(
    hub: Emulator, name: str, tmp_path: Path
) -> None:
    device = Device(hub, name, tmp_path, send_ms_max=1_000)
    try:
        device.start()
        hub.admin.fault(kind="lose-puback", operation="d2c", device=name)
        assert device.link.send_batch(b"once")
        device.until(False)
        device.until(True)
        assert device.link.send_batch(b"twice")
        device.nudge(1)
    finally:
        device.link.stop()


def test_tokens_live_long_and_not_all_the_same_so_that_their_renewal_is_no_storm(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int]] = []

    def randint(low: int, high: int) -> int:
        drawn.append((low, high))
        return high

    with monkeypatch.context() as patched:
        patched.setattr(random, "randint", randint)
        client = device.sdk.client()
    try:
        ((least, most),) = drawn
        assert client._mqtt_pipeline.pipeline_configuration.sastoken.ttl == most
        assert 3_600 <= least < most
    finally:
        client.shutdown()


def test_waits_between_connects_grow_to_a_bound_and_are_drawn(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    monkeypatch.setattr(random, "uniform", uniform)
    device.hub.admin.fault(kind="refuse", operation="connect", device=device.name, code=3, count=5)
    device.start()
    halves = [high for _low, high in drawn[:5]]
    assert halves == [0.01, 0.02, 0.04, 0.05, 0.05]


def test_a_throttled_write_of_the_twin_is_tried_again_on_the_same_connection(device: Device) -> None:
    device.start()
    device.hub.admin.fault(kind="throttle", operation="reported", device=device.name, count=2)
    assert device.link.send_report(REPORT)
    wait_until(lambda: "lighterman" in device.hub.admin.twin(device=device.name)["properties"]["reported"], _WAIT_S)
    assert device.online == [True]


def test_a_patch_that_was_lost_is_made_up_for_when_the_next_one_comes(device: Device) -> None:
    device.start()
    device.nudge(1)
    device.hub.admin.fault(kind="lose", operation="desired", device=device.name)
    device.hub.admin.desired(device=device.name, desired=HubDesired.ack_patch({BOOT: 5}))
    device.nudge(2)  # says no word of the acknowledgement
    wait_until(lambda: Ack({BOOT: 5}) in device.acks, _WAIT_S)
    assert device.hub.call(device.hub.faults.shown) == []
    assert device.online == [True]


def test_a_patch_that_was_lost_and_that_none_follows_is_in_the_twin_that_is_read_now_and_then(
    hub: Emulator, name: str, tmp_path: Path
) -> None:
    device = Device(hub, name, tmp_path, twin_ms=500)
    device.start()
    try:
        hub.admin.fault(kind="lose", operation="desired", device=name)
        device.nudge(1)
        assert hub.call(hub.faults.shown) == []  # it met the patch
        assert device.online == [True]
    finally:
        device.link.stop()


def test_a_patch_without_a_version_is_heard_because_the_sdk_is_told_to_keep_no_count(device: Device) -> None:
    device.start()
    session: Any = device.hub.hub.links[HubAddress.parse(device.name)]
    topic, content = "$iothub/twin/PATCH/properties/desired/", b'{"lighterman":{"director_version":3}}'
    device.hub.call(lambda: session._wire.publish(topic, content))
    wait_until(lambda: device.nudges == [3], _WAIT_S)
    assert device.online == [True]


def test_a_twin_whose_reading_is_throttled_after_a_lost_patch_is_read_soon(device: Device) -> None:
    device.start()
    device.nudge(1)
    for kind, operation in (("lose", "desired"), ("throttle", "twin-get")):
        device.hub.admin.fault(kind=kind, operation=operation, device=device.name)
    device.hub.admin.desired(device=device.name, desired=HubDesired.ack_patch({BOOT: 5}))
    device.nudge(2)
    wait_until(lambda: Ack({BOOT: 5}) in device.acks, _WAIT_S)
    assert device.hub.call(device.hub.faults.shown) == []
    assert device.online == [True]


class Asked:
    """Operations for a link without an agent."""

    def __init__(self) -> None:
        self.settings: list[HubSettings] = []

    def perform(self, method: str, arguments: JsonObject) -> JsonObject:
        return {"method": method, **arguments}

    def set(self, settings: HubSettings) -> None:
        self.settings.append(settings)


def test_methods_and_settings_come_through_and_are_reported(hub: Emulator, name: str, tmp_path: Path) -> None:
    asked = Asked()
    device = Device(hub, name, tmp_path, operations=asked, methods=("ping", "collect-logs"))
    device.start()
    try:
        answer = hub.admin.method(device=name, name="collect-logs", payload={"source": "agent"})
        assert (answer["status"], answer["payload"]) == (200, {"method": "collect-logs", "source": "agent"})
        refused = hub.admin.method(device=name, name="rollback", payload={"module": "digits"})
        assert (refused["status"], refused["payload"]["error"]["code"]) == (400, "config.invalid")
        device.link.send_report(REPORT)
        hub.admin.desired(device=name, desired={"lighterman": {"settings": {"report_ms": 7_000}}})
        wait_until(lambda: asked.settings == [HubSettings(report_ms=7_000)], _WAIT_S)

        def reported() -> Any:
            return hub.admin.twin(device=name)["properties"]["reported"].get("lighterman", {}).get("settings")

        wait_until(lambda: reported() == {"report_ms": 7_000}, _WAIT_S)
    finally:
        device.link.stop()


def test_nothing_acknowledged_is_lost_whatever_the_hub_does(hub: Emulator, name: str, tmp_path: Path) -> None:
    """The spool forgets what the cloud acknowledged; everything it ever took is in the cloud at the end."""
    device = Device(hub, name, tmp_path, open_ms_max=3_000, send_ms_max=500)
    spool = SqliteSpool(tmp_path / "spool.db", name, 4_000_000, BOOT)
    stored: set[int] = set()
    is_over = threading.Event()

    def collect() -> None:
        """The cloud: keep what came, then say so."""
        while not is_over.wait(0.02):
            for event in hub.admin.drain_telemetry():
                if event["device"] == name and event["properties"].get("kind") == "batch":
                    stored.update(sample.seq for sample in Batch.parse(event["text"].encode()).samples)
            upto = next((number for number in range(1, 10_000) if number not in stored), 1) - 1
            if upto:
                hub.admin.desired(device=name, desired=HubDesired.ack_patch({BOOT: upto}))

    collector = threading.Thread(target=collect, daemon=True)
    chance = random.Random(5)
    kinds = ("drop", "lose-puback", "delay", "lose")
    device.start()
    collector.start()
    try:
        total = 0
        for _round in range(12):
            count = chance.randint(1, 8)
            spool.append([_record(total + number) for number in range(1, count + 1)])
            total += count
            hub.admin.fault(kind=chance.choice(kinds), operation="d2c", device=name, delay_ms=30)
            if chance.random() < 0.4:
                hub.admin.fault(kind="refuse", operation="connect", device=name, code=chance.choice((3, 5)))
                hub.admin.disconnect(device=name)
            _carry(device, spool)
        deadline = time.monotonic() + _WAIT_S
        while spool.backlog()[0] and time.monotonic() < deadline:
            _carry(device, spool)
        assert spool.backlog()[0] == 0
        assert stored == set(range(1, total + 1))
    finally:
        is_over.set()
        collector.join(20)
        device.link.stop()
        spool.close()


def _record(number: int) -> JsonObject:
    return {"kind": "event", "module": "", "taken_ms": 0, "body": {"n": number, "text": "x" * 200}}


def _carry(device: Device, spool: SqliteSpool) -> None:
    """Offer what waits once, and take the acknowledgements that came."""
    batch = spool.next_batch()
    if batch is not None:
        device.link.send_batch(batch.to_bytes())
    before = len(device.acks)
    end = time.monotonic() + 0.3
    while len(device.acks) == before and time.monotonic() < end:
        threading.Event().wait(0.01)
    for ack in device.acks[before:]:
        spool.acknowledge(ack)
