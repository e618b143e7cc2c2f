"""What is special to the MQTT link: certificates, refusals, queues, many open files."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.limits import LINK_OUTBOX_MAX
from edge_agent.link.mqtt import MqttAddress, MqttLink, MqttTls
from edge_contract import topics
from tests.support.certs import Authority
from tests.support.mosquitto import MosquittoBroker, mosquitto
from tests.support.mqttpeer import mqtt_peer
from tests.support.net import LOOPBACK, free_port, wait_until

DEVICE = "dev-1"


class Running:
    """A started link that notes when it is online."""

    def __init__(self, address: MqttAddress, **options: bool) -> None:
        self.online: list[bool] = []
        self.link = MqttLink(address, DEVICE, retry_ms_first=20, retry_ms_max=50, **options)
        self.link.start(lambda _: None, lambda _: None, self.online.append)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.stop()

    def wait_online(self) -> None:
        wait_until(lambda: self.online[-1:] == [True], 20, what="the link")

    def wait_error(self) -> str:
        error = wait_until(lambda: self.link.error, 20, what="an error of the link")
        assert error is not None
        assert self.online == []
        return error.code


class Secured:
    """A broker that wants a certificate of one authority, and people with certificates."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "ours")
        self.strange = Authority(folder, "strange")
        self.server = self.authority.issue("server", LOOPBACK)
        self.device = self.authority.issue(DEVICE)
        self.stranger = self.strange.issue("stranger")

    @property
    def lines(self) -> tuple[str, ...]:
        return (
            "allow_anonymous true",
            f"cafile {self.authority.file}",
            f"certfile {self.server.certificate}",
            f"keyfile {self.server.key}",
            "require_certificate true",
            "use_identity_as_username true",
        )


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    return Secured(tmp_path)


@pytest.fixture
def guarded(secured: Secured, tmp_path: Path) -> Iterator[MosquittoBroker]:
    folder = tmp_path / "broker"
    folder.mkdir()
    with mosquitto(folder, listener_lines=secured.lines) as broker:
        yield broker


@pytest.mark.system
def test_a_device_shows_its_certificate(secured: Secured, guarded: MosquittoBroker) -> None:
    tls = MqttTls(secured.authority.file, secured.device.certificate, secured.device.key)
    context = ssl.create_default_context(cafile=str(secured.authority.file))
    context.load_cert_chain(secured.device.certificate, secured.device.key)
    with Running(MqttAddress(LOOPBACK, guarded.port, tls)) as running, mqtt_peer(guarded.port, context) as peer:
        running.wait_online()
        batch = os.urandom(200_000)
        assert running.link.send_batch(batch)
        peer.wait_for(lambda heard: (topics.telemetry(DEVICE), batch) in heard)


@pytest.mark.system
def test_a_broker_of_another_authority_is_not_trusted(secured: Secured, guarded: MosquittoBroker) -> None:
    tls = MqttTls(secured.strange.file, secured.device.certificate, secured.device.key)
    with Running(MqttAddress(LOOPBACK, guarded.port, tls)) as running:
        assert running.wait_error() == "network.unreachable"


@pytest.mark.system
def test_a_strange_certificate_gets_no_link(secured: Secured, guarded: MosquittoBroker) -> None:
    tls = MqttTls(secured.authority.file, secured.stranger.certificate, secured.stranger.key)
    with Running(MqttAddress(LOOPBACK, guarded.port, tls)) as running:
        assert running.wait_error() in ("network.cut", "network.unreachable")


@pytest.mark.system
def test_a_renewed_certificate_is_shown_after_reconnecting(secured: Secured, guarded: MosquittoBroker) -> None:
    certificate, key = secured.device.certificate, secured.device.key
    first = certificate.read_bytes(), key.read_bytes()
    tls = MqttTls(secured.authority.file, certificate, key)
    with Running(MqttAddress(LOOPBACK, guarded.port, tls)) as running:
        running.wait_online()
        # One that the broker refuses shows that the files are read anew.
        certificate.write_bytes(secured.stranger.certificate.read_bytes())
        key.write_bytes(secured.stranger.key.read_bytes())
        running.link.reconnect()
        wait_until(lambda: running.link.error, 20, what="an error of the link")
        assert running.online == [True, False]
        certificate.write_bytes(first[0])
        key.write_bytes(first[1])
        wait_until(lambda: running.online == [True, False, True], 20, what="the link with the right certificate")


def test_a_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue(DEVICE)
    pair.key.write_text("nothing")
    tls = MqttTls(authority.file, pair.certificate, pair.key)
    with Running(MqttAddress(LOOPBACK, free_port(), tls)) as running:
        assert running.wait_error() == "config.key-invalid"


@pytest.mark.system
def test_refused_credentials_are_told_apart_from_an_outage(tmp_path: Path) -> None:
    with mosquitto(tmp_path, listener_lines=("allow_anonymous false",)) as broker:
        with Running(MqttAddress(LOOPBACK, broker.port, username="dev-1", password="wrong")) as running:
            assert running.wait_error() == "network.refused"
        with Running(MqttAddress(LOOPBACK, free_port())) as running:
            assert running.wait_error() == "network.unreachable"


def test_what_is_no_broker_is_given_up() -> None:
    with (
        socket.create_server((LOOPBACK, 0)) as listener,
        Running(MqttAddress(LOOPBACK, listener.getsockname()[1])) as running,
    ):
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n" + b"X: y\r\n" * 100)
            assert running.wait_error() == "network.cut"


@pytest.mark.system
def test_the_outbox_is_bounded_and_of_reports_the_newest_counts(broker: MosquittoBroker) -> None:
    with Running(MqttAddress(LOOPBACK, broker.port)) as running, mqtt_peer(broker.port) as peer:
        running.wait_online()
        taken = [running.link.send_batch(b"%d" % n) for n in range(LINK_OUTBOX_MAX * 40)]
        assert taken.count(True) >= LINK_OUTBOX_MAX
        for n in range(50):
            running.link.send_report(b"report %d" % n)
        wait_until(lambda: running.link.send_report(b"the last"), 20)
        peer.wait_for(lambda heard: (topics.report(DEVICE), b"the last") in heard)
        sent = [message for topic, message in peer.heard if topic == topics.telemetry(DEVICE)]
        assert sent == [b"%d" % n for n, was_taken in enumerate(taken) if was_taken][: len(sent)]


@pytest.mark.system
def test_a_process_with_many_open_files_still_has_a_link(broker: MosquittoBroker) -> None:
    """The loop that paho brings waits with select(), which knows no descriptor above 1023."""
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        assert max(descriptors) > 1023
        with Running(MqttAddress(LOOPBACK, broker.port)) as running:
            running.wait_online()
            assert running.link.send_report(b"here")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.mark.system
def test_a_persistent_link_hears_what_was_said_while_it_was_away(broker: MosquittoBroker) -> None:
    nudges: list[int] = []
    address = MqttAddress(LOOPBACK, broker.port)

    def start() -> MqttLink:
        link = MqttLink(address, DEVICE, is_persistent=True)
        online: list[bool] = []
        link.start(nudges.append, lambda _: None, online.append)
        wait_until(lambda: online == [True], 20)
        return link

    start().stop()
    with mqtt_peer(broker.port) as peer:
        peer.publish(topics.nudge(DEVICE), b'{"schema":"lighterman.nudge/1","director_version":7}')
    link = start()
    wait_until(lambda: nudges == [7], 20)
    link.stop()
