"""`ports.Link` over a real broker, and over a stand-in for IoT Hub: what the shell counts on, whoever carries it."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_agent.config import IotHubConfig
from edge_agent.link.iothub import IotHubLink
from edge_agent.link.iothub_sdk import AzureSdk
from edge_agent.link.mqtt import MqttAddress, MqttLink
from edge_agent.ports import Link
from edge_contract import topics
from edge_contract.errors import ContractError
from edge_contract.telemetry import Ack
from edge_contract.twin import Nudge
from tests.support.fakehub import FakeHub
from tests.support.iothub import SDK_LEAKS, running_hub
from tests.support.mosquitto import mosquitto
from tests.support.mqttpeer import mqtt_peer
from tests.support.net import LOOPBACK, wait_until

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings(SDK_LEAKS)]
DEVICE = "dev-1"


@dataclass
class Heard:
    """What a link's callbacks were given."""

    nudges: list[int] = field(default_factory=list)
    acks: list[Ack] = field(default_factory=list)
    online: list[bool] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def start(self, link: Link) -> None:
        """Start a link with these callbacks."""

        def note(target: list[object]) -> Callable[[object], None]:
            def take(value: object) -> None:
                self.threads.add(threading.get_ident())
                target.append(value)

            return take

        link.start(note(self.nudges), note(self.acks), note(self.online))  # type: ignore[arg-type]

    def wait_online(self, is_online: bool = True) -> None:
        """Until the link said so last."""
        wait_until(lambda: self.online[-1:] == [is_online], 20, what=f"online={is_online}")


@dataclass
class Bench:
    """A link that is not started yet, the cloud's end of it, and a way to take the broker away."""

    link: Link
    say: Callable[[str, bytes], None]
    wait_for: Callable[[Callable[[list[tuple[str, bytes]]], object]], None]
    outage: Callable[[], AbstractContextManager[None]]


@contextmanager
def over_mqtt(folder: Path) -> Iterator[Bench]:
    with mosquitto(folder) as broker:
        link = MqttLink(MqttAddress(LOOPBACK, broker.port), DEVICE, retry_ms_first=50, retry_ms_max=200)
        with mqtt_peer(broker.port) as peer:

            @contextmanager
            def outage() -> Iterator[None]:
                broker.kill()
                yield
                broker.start()
                peer.wait_ready()

            yield Bench(link, peer.publish, peer.wait_for, outage)
        link.stop()


@contextmanager
def over_iothub(_folder: Path) -> Iterator[Bench]:
    hub = FakeHub()
    link = IotHubLink(hub, retry_ms_first=50, retry_ms_max=200)
    names = {"report": topics.report(DEVICE), "batch": topics.telemetry(DEVICE)}

    def say(topic: str, message: bytes) -> None:
        if topic == topics.ack(DEVICE):
            hub.tell(message, kind="ack")
        elif topic == topics.nudge(DEVICE):
            try:
                hub.patch({"lighterman": {"director_version": Nudge.parse(message).director_version}})
            except ContractError:
                hub.patch({"lighterman": {"director_version": message}})

    def wait_for(predicate: Callable[[list[tuple[str, bytes]]], object]) -> None:
        wait_until(lambda: predicate([(names[kind], content) for kind, content in list(hub.sent)]), 20)

    @contextmanager
    def outage() -> Iterator[None]:
        hub.is_away = True
        if hub.clients:
            hub.drop()
        yield
        hub.is_away = False

    yield Bench(link, say, wait_for, outage)
    link.stop()


@contextmanager
def over_the_real_sdk(folder: Path) -> Iterator[Bench]:
    """The same link with Microsoft's SDK, against the emulator of the hub."""
    with running_hub() as hub:
        secret, ca = folder / "hub", folder / "ca.pem"
        secret.write_text(hub.add_device(DEVICE))
        ca.write_text(hub.ca_pem)
        link = IotHubLink(AzureSdk(IotHubConfig(secret, ca), DEVICE), retry_ms_first=50, retry_ms_max=200)
        names = {"report": topics.report(DEVICE), "batch": topics.telemetry(DEVICE)}
        came: list[tuple[str, bytes]] = []

        def say(topic: str, message: bytes) -> None:
            if topic == topics.ack(DEVICE):
                content = base64.b64encode(message[:65_536]).decode()  # the hub itself takes no more
                hub.admin.c2d(device=DEVICE, base64=content, properties={"kind": "ack"})
            elif topic == topics.nudge(DEVICE):
                try:
                    version: object = Nudge.parse(message).director_version
                except ContractError:
                    version = message.decode("latin-1")[:1_000]
                hub.admin.desired(device=DEVICE, desired={"lighterman": {"director_version": version}})

        def heard() -> list[tuple[str, bytes]]:
            for event in hub.admin.drain_telemetry():
                body = event["text"].encode() if "text" in event else base64.b64decode(event["base64"])
                came.append((names[event["properties"]["kind"]], body))
            return came

        def wait_for(predicate: Callable[[list[tuple[str, bytes]]], object]) -> None:
            wait_until(lambda: predicate(heard()), 20)

        yield Bench(link, say, wait_for, hub.outage)
        link.stop()


IMPLEMENTATIONS: dict[str, Callable[[Path], AbstractContextManager[Bench]]] = {
    "mqtt": over_mqtt,
    "iothub": over_iothub,
    "iothub, real SDK": over_the_real_sdk,
}


@pytest.fixture(params=IMPLEMENTATIONS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with IMPLEMENTATIONS[request.param](tmp_path) as made:
        yield made


def test_messages_reach_the_cloud_under_the_devices_topics(bench: Bench) -> None:
    heard = Heard()
    heard.start(bench.link)
    heard.wait_online()
    assert bench.link.send_report(b"report")
    assert bench.link.send_batch(b"batch")
    bench.wait_for(lambda all_: {(topics.report(DEVICE), b"report"), (topics.telemetry(DEVICE), b"batch")} <= set(all_))


def test_nudges_and_acknowledgements_reach_the_device_on_one_thread(bench: Bench) -> None:
    heard = Heard()
    heard.start(bench.link)
    heard.wait_online()
    bench.say(topics.nudge(DEVICE), Nudge(17).to_bytes())
    bench.say(topics.ack(DEVICE), Ack({"00" * 8: 5}).to_bytes())
    bench.say(topics.nudge("dev-2"), Nudge(99).to_bytes())
    bench.say(topics.nudge(DEVICE), Nudge(18).to_bytes())
    wait_until(lambda: heard.nudges == [17, 18], 20)
    assert heard.acks == [Ack({"00" * 8: 5})]
    assert len(heard.threads) == 1
    assert threading.get_ident() not in heard.threads


@pytest.mark.parametrize(
    "rubbish", [b"", b"\xff" * 10, b"{}", b"[" * 1000, b'{"schema":"lighterman.nudge/1"}', b"x" * 100_000]
)
def test_rubbish_on_our_topics_is_passed_over(bench: Bench, rubbish: bytes) -> None:
    heard = Heard()
    heard.start(bench.link)
    heard.wait_online()
    for topic in (topics.nudge(DEVICE), topics.ack(DEVICE)):
        bench.say(topic, rubbish)
    bench.say(topics.nudge(DEVICE), Nudge(1).to_bytes())
    wait_until(lambda: heard.nudges == [1], 20)
    assert heard.acks == []
    assert heard.online == [True]


def test_nothing_is_taken_before_the_link_is_up(bench: Bench) -> None:
    assert not bench.link.send_report(b"report")
    assert not bench.link.send_batch(b"batch")


def test_an_outage_is_noticed_and_survived(bench: Bench) -> None:
    heard = Heard()
    heard.start(bench.link)
    heard.wait_online()
    with bench.outage():
        heard.wait_online(False)
        assert not bench.link.send_batch(b"while away")
    heard.wait_online()
    assert heard.online == [True, False, True]
    assert bench.link.send_batch(b"back again")
    bench.wait_for(lambda all_: (topics.telemetry(DEVICE), b"back again") in all_)
    bench.say(topics.nudge(DEVICE), Nudge(3).to_bytes())
    wait_until(lambda: heard.nudges == [3], 20)


def test_large_batches_pass_whole(bench: Bench) -> None:
    heard = Heard()
    heard.start(bench.link)
    heard.wait_online()
    batch = bytes(range(256)) * 1000
    assert bench.link.send_batch(batch)
    bench.wait_for(lambda all_: (topics.telemetry(DEVICE), batch) in all_)


def test_a_stopped_link_takes_nothing_and_stops_only_once(bench: Bench) -> None:
    heard = Heard()
    heard.start(bench.link)
    heard.wait_online()
    bench.link.send_report(b"last words")
    bench.link.stop()
    bench.wait_for(lambda all_: (topics.report(DEVICE), b"last words") in all_)
    assert not bench.link.send_report(b"too late")
    assert heard.online == [True, False]


def test_a_link_without_a_broker_can_be_stopped(bench: Bench) -> None:
    with bench.outage():
        heard = Heard()
        heard.start(bench.link)
        bench.link.stop()
        assert heard.online == []
