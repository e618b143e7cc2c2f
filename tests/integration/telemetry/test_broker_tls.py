"""The broker as `broker-config` writes it: certificates decide who speaks, roles decide what is said to whom."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from cloud_registry.adapters.broker_roster import CONTROL_TOPIC, RESPONSE_TOPIC, MosquittoRoster
from cloud_registry.adapters.link_mqtt import MqttNudger
from cloud_registry.adapters.pki import LocalAuthority
from cloud_registry.assembly import SystemClock, build_services
from cloud_registry.broker import BrokerPlan, write_broker_config
from cloud_registry.collect.service import Collector
from edge_contract import topics
from edge_contract.twin import Nudge
from tests.integration.telemetry.parts import Cloud, Device, Peer
from tests.integration.telemetry.secure import V5, V311, SecureBroker, cloud_peer, device_peer
from tests.support.net import LOOPBACK, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5"])
def test_a_device_hears_its_own_topics_and_is_refused_everything_else(
    secure: SecureBroker, protocol: MQTTProtocolVersion
) -> None:
    forbidden = [
        topics.nudge("d2"),
        topics.ack("d2"),
        topics.report("d1"),
        topics.telemetry("d2"),
        "lighterman/1/+/nudge",
        "lighterman/#",
        "#",
        "+/+/+/+",
        "$SYS/#",
        CONTROL_TOPIC,
        RESPONSE_TOPIC,
        "$CONTROL/#",
        f"$share/g/{topics.nudge('d1')}",
        f"$share/g/{topics.ALL_TELEMETRY}",
    ]
    with device_peer(secure, "d1", protocol) as peer:
        assert peer.subscribe(topics.nudge("d1"), topics.ack("d1")) == [True, True]
        assert {name: peer.subscribe(name) for name in forbidden} == {name: [False] for name in forbidden}


@pytest.mark.parametrize("protocol", [V311, V5], ids=["3.1.1", "5"])
def test_a_device_cannot_speak_for_another_or_for_the_cloud(
    secure: SecureBroker, protocol: MQTTProtocolVersion
) -> None:
    own = [topics.report("d1"), topics.telemetry("d1")]
    forged = [
        topics.report("d2"),
        topics.telemetry("d2"),
        topics.nudge("d1"),
        topics.nudge("d2"),
        topics.ack("d2"),
        "lighterman/1/d1/report/more",
        "anything",
        CONTROL_TOPIC,
        RESPONSE_TOPIC,
    ]
    with cloud_peer(secure, "collector") as collector, device_peer(secure, "d2") as victim:
        assert collector.subscribe(topics.ALL_REPORTS, topics.ALL_TELEMETRY) == [True, True]
        assert victim.subscribe(topics.nudge("d2"), topics.ack("d2")) == [True, True]
        with device_peer(secure, "d1", protocol) as peer:
            for topic in forged:
                answer = peer.publish(topic, b"forged")
                # 3.1.1 has no way to say no.
                assert protocol == V311 or answer == "Not authorized", topic
            for topic in own:
                peer.publish(topic, b"own")
            collector.wait_for(own[-1])
        collector.publish(topics.ack("d2"), b"last")
        victim.wait_for(topics.ack("d2"))
    assert sorted(collector.messages) == sorted((topic, b"own") for topic in own)
    assert victim.messages == [(topics.ack("d2"), b"last")]


def test_the_common_name_decides_and_not_the_client_identifier(secure: SecureBroker) -> None:
    with device_peer(secure, "d2") as victim:
        assert victim.subscribe(topics.ack("d2")) == [True]
        impostor = Peer(secure.device_port, "d2", tls=secure.tls("d1"))
        try:
            assert impostor.subscribe(topics.ack("d2")) == [False]
            assert impostor.subscribe(topics.ack("d1")) == [True]
            with cloud_peer(secure, "collector") as collector:
                collector.publish(topics.ack("d2"), b"still here")
            victim.wait_for(topics.ack("d2"))
        finally:
            impostor.close()
        assert victim.losses == []


def test_without_a_certificate_of_our_authority_nobody_gets_in(secure: SecureBroker, tmp_path: Path) -> None:
    stranger = LocalAuthority(tmp_path / "other", SystemClock())
    bare = ssl.create_default_context(cafile=str(secure.files.ca))
    for port in (secure.device_port, secure.cloud_port):
        assert is_let_in(port, secure.tls("d1"))
        assert not is_let_in(port, secure.tls("d1", stranger))
        assert not is_let_in(port, bare)
        assert not is_let_in(port, None)


def is_let_in(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether the broker answers a plain MQTT 3.1.1 CONNECT with "accepted"."""
    with socket.create_connection((LOOPBACK, port), timeout=5) as plain, contextlib.ExitStack() as stack:
        try:
            link = (
                plain if context is None else stack.enter_context(context.wrap_socket(plain, server_hostname=LOOPBACK))
            )
            link.sendall(b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02d1")
            return link.recv(4) == b"\x20\x02\x00\x00"
        except OSError:
            return False


def test_a_device_with_a_certificate_that_is_not_on_the_list_may_do_nothing(secure: SecureBroker) -> None:
    for port in (secure.device_port, secure.cloud_port):
        peer = Peer(port, "d9", tls=secure.tls("d9"), protocol=V5)
        try:
            assert peer.subscribe(topics.ack("d9"), topics.nudge("d9"), "#") == [False] * 3
            assert peer.publish(topics.telemetry("d9"), b"x") == "Not authorized"
        finally:
            peer.close()


def test_a_collector_by_itself_reads_and_answers_everybody_and_administers_nothing(secure: SecureBroker) -> None:
    with cloud_peer(secure, "collector") as peer:
        shared = [f"$share/collectors/{name}" for name in (topics.ALL_REPORTS, topics.ALL_TELEMETRY)]
        assert peer.subscribe(*shared) == [True, True]
        assert peer.publish(topics.ack("d1"), b"x") != "Not authorized"
        assert peer.publish(topics.nudge("d1"), b"x") != "Not authorized"
        assert peer.subscribe("#", RESPONSE_TOPIC, "lighterman/1/+/nudge") == [False] * 3
        command = {"commands": [{"command": "createClient", "username": "mallory"}]}
        assert peer.publish(CONTROL_TOPIC, json.dumps(command).encode()) == "Not authorized"
        assert peer.publish(topics.report("d1"), b"forged") == "Not authorized"


# --- The list of devices ---


@contextlib.contextmanager
def roster_of(beside: Cloud, names: list[str]) -> Iterator[MosquittoRoster]:
    """A roster that is in step with devices whose identities are their names."""
    roster = MosquittoRoster(beside.config.mqtt, lambda: {name: name for name in names})
    try:
        wait_until(lambda: roster.is_synced, 20, what="the roster")
        yield roster
    finally:
        roster.close()


def test_a_device_enrolled_later_gets_in_at_once_and_a_deleted_one_is_put_out(
    secure: SecureBroker, beside: Cloud
) -> None:
    names = ["d1", "d2"]
    with roster_of(beside, names) as roster, device_peer(secure, "late") as peer:
        assert peer.subscribe(topics.ack("late")) == [False]
        names.append("late")
        roster.admit("late", "late")
        wait_until(lambda: roster.is_synced, 10, what="the roster")
        wait_until(lambda: peer.subscribe(topics.ack("late"))[-1], 10, what="the entry")
        names.remove("late")
        roster.remove("late")
        wait_until(lambda: peer.losses, 10, what="the end of its connection")
    with device_peer(secure, "late") as again:
        assert again.subscribe(topics.ack("late")) == [False]


def test_the_list_is_compared_at_every_connection_and_other_entries_are_left_alone(
    secure: SecureBroker, beside: Cloud
) -> None:
    with roster_of(beside, ["d1", "d2"]), cloud_peer(secure, "registry") as administrator:
        assert administrator.subscribe(RESPONSE_TOPIC) == [True]
        command = {"commands": [{"command": "createClient", "username": "dashboard", "password": "x"}]}
        administrator.publish(CONTROL_TOPIC, json.dumps(command).encode())
        administrator.wait_for(RESPONSE_TOPIC)
    # d2 was deleted and d3 enrolled while nobody watched; the broker restarted too, from its own file.
    secure.stop()
    assert secure.start()
    with roster_of(beside, ["d1", "d3"]):
        entries = json.loads(secure.files.roster.read_text())
    names = {client["username"] for client in entries["clients"]}
    assert names == {"cloud:registry", "cloud:collector", "dashboard", "d1", "d3"}
    roles = {role["rolename"] for role in entries["roles"]}
    assert {"device:d1", "device:d3"} <= roles
    assert "device:d2" not in roles


def test_many_devices_are_added_in_bounded_messages(secure: SecureBroker, beside: Cloud) -> None:
    names = ["d1", "d2", *(f"fleet-{number}" for number in range(250))]
    with roster_of(beside, names), device_peer(secure, "fleet-249") as peer:
        assert peer.subscribe(topics.nudge("fleet-249")) == [True]


def test_a_broker_that_is_away_when_a_device_enrols_hears_of_it_later(secure: SecureBroker, beside: Cloud) -> None:
    names = ["d1", "d2"]
    with roster_of(beside, names) as roster:
        secure.stop()
        wait_until(lambda: not roster.is_synced, 10, what="the loss")
        names.append("d3")
        roster.admit("d3", "d3")
        assert secure.start()
        wait_until(lambda: roster.is_synced, 30, what="the roster")
        with device_peer(secure, "d3") as peer:
            assert peer.subscribe(topics.ack("d3")) == [True]


# --- Everything together ---


def test_telemetry_reports_and_nudges_travel_over_tls(secure: SecureBroker, beside: Cloud) -> None:
    collector = Collector(beside.config, beside.fleet, beside.clock, flush_ms=30)
    nudger = MqttNudger(beside.config.mqtt)
    device = Device("d1", secure.device_port, tls=secure.tls("d1"))
    try:
        collector.start()
        wait_until(lambda: collector.is_ready, 15, what="the collector")
        assert device.peer.subscribe(topics.nudge("d1")) == [True]
        device.send(1, 5)
        device.wait_acked(5)
        device.report(1)
        wait_until(lambda: beside.report_of("d1"), 10, what="the report")
        nudger.nudge("d1", 4)
        wait_until(lambda: device.heard, 10, what="the nudge")
        assert device.heard == [(topics.nudge("d1"), Nudge(4).to_bytes())]
    finally:
        device.close()
        nudger.close()
        collector.close()
    assert beside.counts() == {"d1": (5, 5, 5)}


def test_a_message_larger_than_any_of_ours_is_not_taken(secure: SecureBroker) -> None:
    with cloud_peer(secure, "collector") as collector, device_peer(secure, "d1", V5) as peer:
        assert collector.subscribe(topics.ALL_TELEMETRY) == [True]
        peer.client.publish(topics.telemetry("d1"), bytes(2_000_000), qos=0)
        peer.publish(topics.telemetry("d1"), b"small", wait_s=20)
        collector.wait_for(topics.telemetry("d1"))
        assert [len(content) for _, content in collector.messages] == [5]


def test_the_registry_keeps_the_list_when_it_is_told_to(secure: SecureBroker, beside: Cloud) -> None:
    services = build_services(beside.config)
    try:
        beside.enrol("d7")
        (identity,) = (identity for identity, name in services.enrolments.identities().items() if name == "d7")
        services.roster.admit(identity, "d7")
        with device_peer(secure, identity) as peer:
            wait_until(lambda: peer.subscribe(topics.ack("d7"))[-1], 20, what="the entry", poll_s=0.2)
    finally:
        services.close()


def test_writing_again_renews_certificates_and_keeps_the_list(secure: SecureBroker) -> None:
    folder = secure.files.config.parent
    before = (folder / "broker" / "server.crt").read_bytes()
    secure.files.roster.write_text('{"kept": true}')
    user = pwd.getpwuid(os.geteuid()).pw_name
    plan = BrokerPlan([LOOPBACK], secure.device_port, LOOPBACK, secure.cloud_port, user=user)
    again = write_broker_config(folder, secure.authority, plan, {"d9": "d9"})
    assert not again.is_new
    assert json.loads(secure.files.roster.read_text()) == {"kept": True}
    assert (folder / "broker" / "server.crt").read_bytes() != before
