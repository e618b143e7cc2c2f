"""The collector behind a real broker: whatever falls over, each record is stored once and none is lost."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud_registry.adapters.lake import ParquetLake
from cloud_registry.adapters.link_mqtt import MqttNudger
from cloud_registry.client import RegistryClient
from cloud_registry.collect.service import Collector
from cloud_registry.config import MqttConfig
from cloud_registry.metrics import RegistryMetrics
from cloud_registry.ports import LakeFile, LakeRow
from edge_contract import topics
from edge_contract.errors import EdgeError
from edge_contract.twin import Nudge
from tests.integration.telemetry.parts import BOOT, Cloud, Device, Peer, cloud
from tests.support.devicekey import TestKey
from tests.support.mosquitto import MosquittoBroker, mosquitto
from tests.support.net import LOOPBACK, free_low_port, wait_until
from tests.support.processes import Child, start_process
from tests.unit.cloud_telemetry.making import batch

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@contextlib.contextmanager
def collecting(beside: Cloud, **options: Any) -> Iterator[Collector]:
    """A collector in this process, ready."""
    collector = Collector(beside.config, beside.fleet, beside.clock, flush_ms=30, **options)
    try:
        collector.start()
        wait_until(lambda: collector.is_ready, 15, what="the collector to connect")
        yield collector
    finally:
        collector.close()


@pytest.fixture
def beside(tmp_path: Path, broker: MosquittoBroker) -> Iterator[Cloud]:
    """A registry beside a plain broker that knows three devices."""
    with cloud(tmp_path, MqttConfig(host=broker.host, port=broker.port)) as made:
        made.enrol("d1", "d2", "d3")
        yield made


@contextlib.contextmanager
def devices(port: int, *names: str) -> Iterator[list[Device]]:
    """Connected devices."""
    with contextlib.ExitStack() as stack:
        made = []
        for name in names:
            device = Device(name, port)
            stack.callback(device.close)
            made.append(device)
        yield made


def test_batches_reach_the_lake_and_reports_the_database(beside: Cloud, broker: MosquittoBroker) -> None:
    with collecting(beside), devices(broker.port, "d1", "d2") as (first, second):
        first.send(1, 5)
        second.send(1, 3)
        first.wait_acked(5)
        second.wait_acked(3)
        assert beside.counts() == {"d1": (5, 5, 5), "d2": (3, 3, 3)}
        sent = first.report(1)
        wait_until(lambda: beside.report_of("d1"), 10, what="the report")
    assert beside.query("SELECT seq, latency_us, request_id FROM predictions WHERE device = 'd2' ORDER BY seq") == [
        [1, 121, "r1"],
        [2, 122, "r2"],
        [3, 123, "r3"],
    ]
    assert beside.query("SELECT device, number, agent_version FROM reports") == [["d1", 1, sent.agent_version]]


def test_a_repeated_batch_is_acknowledged_again_and_stored_once(beside: Cloud, broker: MosquittoBroker) -> None:
    with collecting(beside), devices(broker.port, "d1") as (device,):
        for _ in range(3):
            device.acked = 0
            device.send(1, 5)
            device.wait_acked(5)
    assert beside.counts() == {"d1": (5, 5, 5)}


def test_poisoned_messages_are_counted_and_hold_nobody_up(beside: Cloud, broker: MosquittoBroker) -> None:
    metrics = RegistryMetrics()
    with collecting(beside, metrics=metrics), devices(broker.port, "d1", "stranger") as (device, stranger):
        publish = device.peer.client.publish
        for content in (b"", b"\xff", b"{}", b"[" * 50_000, b"x" * 300_000, batch("d2", 1, 2, BOOT).to_bytes()):
            publish(topics.telemetry("d1"), content, qos=1)
            publish(topics.report("d1"), content, qos=1)
        publish(topics.telemetry("d1"), b"quick and bad", qos=0)
        stranger.send(1, 1)
        stranger.report(1)
        device.send(1, 5)
        device.report(9, key=TestKey.make())
        device.report(1)
        device.report(1)
        device.wait_acked(5)
        wait_until(lambda: beside.report_of("d1"), 10, what="the report")
        wait_until(lambda: b'kind="report",outcome="dropped"} 9.0' in metrics.render()[0], 10, what="the count")
        wait_until(lambda: b'kind="telemetry",outcome="dropped"} 8.0' in metrics.render()[0], 10, what="the count")
        assert stranger.acked == 0
        shown = metrics.render()[0].decode()
    refused = {"trust.report-unsigned": 7, "trust.report-replayed": 1, "cloud.not-found": 1}
    for code, count in refused.items():
        assert f'lighterman_collector_reports_refused_total{{code="{code}"}} {count}.0' in shown
    assert beside.counts() == {"d1": (5, 5, 5)}


def test_a_broker_that_goes_away_and_comes_back_loses_nothing(beside: Cloud, broker: MosquittoBroker) -> None:
    with collecting(beside) as collector, devices(broker.port, "d1") as (device,):
        device.send(1, 5)
        device.wait_acked(5)
        broker.kill()
        wait_until(lambda: not collector.is_ready, 15, what="the collector to notice")
        broker.start()
        device.deliver(10, 5, threading.Event())
    assert beside.counts() == {"d1": (10, 10, 10)}


class SickFleet:
    """The database, sometimes out of reach."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.is_sick = False
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)

        def call(*arguments: Any) -> Any:
            if self.is_sick:
                self.refused += 1
                raise EdgeError("cloud.unavailable", "the database is down, as the test wants it")
            return method(*arguments)

        return call


def test_a_database_that_is_down_delays_acknowledgements_and_loses_nothing(
    beside: Cloud, broker: MosquittoBroker
) -> None:
    fleet = SickFleet(beside.fleet)
    collector = Collector(beside.config, fleet, beside.clock, flush_ms=30, metrics=RegistryMetrics())
    try:
        collector.start()
        wait_until(lambda: collector.is_ready, 15, what="the collector to connect")
        with devices(broker.port, "d1", "d2") as (first, second):
            fleet.is_sick = True
            first.send(1, 5)
            first.report(1)
            wait_until(lambda: fleet.refused >= 3, 20, what="some tries")
            second.send(1, 3)
            assert (first.acked, second.acked) == (0, 0)
            fleet.is_sick = False
            first.wait_acked(5)
            second.wait_acked(3)
            wait_until(lambda: beside.report_of("d1"), 10, what="the report")
    finally:
        collector.close()
    assert beside.counts() == {"d1": (5, 5, 5), "d2": (3, 3, 3)}


def test_a_full_disk_delays_telemetry_and_not_reports(
    beside: Cloud, broker: MosquittoBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    is_full = threading.Event()
    is_full.set()
    write = ParquetLake.write

    def sometimes(lake: ParquetLake, rows: Sequence[LakeRow]) -> LakeFile:
        tries.append(len(rows))
        if is_full.is_set():
            raise EdgeError("device.disk-full", "no space is left, as the test wants it")
        return write(lake, rows)

    monkeypatch.setattr(ParquetLake, "write", sometimes)
    metrics = RegistryMetrics()
    with collecting(beside, metrics=metrics), devices(broker.port, "d1") as (device,):
        device.send(1, 5)
        wait_until(lambda: len(tries) >= 2, 20, what="some tries")
        assert device.acked == 0
        assert b'lighterman_collector_blocked{kind="telemetry"} 1.0' in metrics.render()[0]
        device.report(1)
        wait_until(lambda: beside.report_of("d1"), 10, what="the report")
        is_full.clear()
        device.wait_acked(5)
    assert beside.counts() == {"d1": (5, 5, 5)}


def test_more_than_the_queue_holds_stays_with_the_broker_and_no_record_is_lost(
    beside: Cloud, broker: MosquittoBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cloud_registry.collect.intake.QUEUE_MESSAGES_MAX", 3)
    fleet = SickFleet(beside.fleet)
    collector = Collector(beside.config, fleet, beside.clock, flush_ms=30, metrics=RegistryMetrics())
    names = ("d1", "d2", "d3")
    try:
        collector.start()
        wait_until(lambda: collector.is_ready, 15, what="the collector to connect")
        with devices(broker.port, *names) as made:
            fleet.is_sick = True
            made[0].send(1, 2)
            wait_until(lambda: fleet.refused, 10, what="the first failure")
            for _ in range(3):
                for device in made:
                    device.send(1, 2)
            fleet.is_sick = False
            # Nobody repeats anything: what did not fit comes from the broker, after a new connection.
            for device in made:
                device.wait_acked(2)
            wait_until(lambda: "asking for the rest again" in caplog.text, 20, what="the new connection")
            wait_until(lambda: collector.is_ready, 20, what="the new connection")
            stop = threading.Event()
            for device in made:
                device.deliver(4, 2, stop)
    finally:
        collector.close()
    assert beside.counts() == dict.fromkeys(names, (4, 4, 4))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_collectors_share_the_work_and_store_each_record_once(
    tmp_path: Path, broker: MosquittoBroker, kind: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres_url") if kind == "postgresql" else ""
    mqtt = MqttConfig(host=broker.host, port=broker.port, shared_group="collectors")
    names = [f"d{number}" for number in range(4)]
    metrics = [RegistryMetrics(), RegistryMetrics()]
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(cloud(tmp_path, mqtt, url))
        shared.enrol(*names)
        for each in metrics:
            stack.enter_context(collecting(shared, metrics=each))
        made = stack.enter_context(devices(broker.port, *names))
        stop = threading.Event()
        stack.callback(stop.set)
        # Every batch twice, so that both collectors get the same one at the same time.
        threads = [threading.Thread(target=send_twice, args=(device, 60, stop)) for device in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert [device.acked for device in made] == [60] * len(made)
        assert shared.counts() == dict.fromkeys(names, (60, 60, 60))
    for each in metrics:
        assert b'samples_total{outcome="stored"} 0.0' not in each.render()[0]


def send_twice(device: Device, count: int, stop: threading.Event) -> None:
    """Deliver, with every batch sent twice at once."""
    while device.acked < count and not stop.is_set():
        last = min(count, device.acked + 3)
        device.send(device.acked + 1, last)
        device.send(device.acked + 1, last)
        with device.peer.changed:
            device.peer.changed.wait_for(lambda want=last: device.acked >= want, 0.5)  # type: ignore[misc]


def start_collector(beside: Cloud, log: Path, *more: str) -> Child:
    """`cloud-registry collect` as a user starts it."""
    mqtt = beside.config.mqtt
    program = "from cloud_registry.cli import main; main()"
    command = [sys.executable, "-c", program, "collect", "--data-dir", str(beside.config.data_dir)]
    command += ["--mqtt-host", mqtt.host, "--mqtt-port", str(mqtt.port), "--flush-ms", "20", *more]
    return start_process(command, log_path=log)


@pytest.mark.slow
def test_a_collector_killed_again_and_again_in_mid_stream_loses_and_repeats_nothing(
    tmp_path: Path, beside: Cloud, broker: MosquittoBroker
) -> None:
    count, kills = 240, 4
    names = ("d1", "d2", "d3")
    stop = threading.Event()
    log = tmp_path / "collector.log"
    with devices(broker.port, *names) as made:
        threads = [threading.Thread(target=device.deliver, args=(count, 5, stop)) for device in made]
        child = start_collector(beside, log)
        try:
            for thread in threads:
                thread.start()
            for kill in range(1, kills + 1):
                goal = kill * count // (kills + 1)
                wait_until(lambda want=goal: made[0].acked >= want, 60, what=f"{goal} records")  # type: ignore[misc]
                child.kill()
                child.stop()
                acked = {device.name: device.acked for device in made}
                stored = beside.counts()
                for name, upto in acked.items():
                    assert stored[name][0] == stored[name][1] == stored[name][2] >= upto
                child = start_collector(beside, log)
            for thread in threads:
                thread.join(60)
        finally:
            stop.set()
            child.stop()
        assert [device.acked for device in made] == [count] * len(made)
    assert beside.counts() == dict.fromkeys(names, (count, count, count))


def test_the_collector_ends_in_order_when_it_is_asked_to(
    tmp_path: Path, beside: Cloud, broker: MosquittoBroker
) -> None:
    port = free_low_port()
    child = start_collector(beside, tmp_path / "collector.log", "--metrics-port", str(port))
    try:
        with devices(broker.port, "d1") as (device,):
            device.deliver(20, 5, threading.Event())
        shown = httpx.get(f"http://{LOOPBACK}:{port}/metrics", trust_env=False).text
        assert 'lighterman_collector_samples_total{outcome="stored"} 20.0' in shown
        assert child.stop() == 0
    finally:
        child.stop()
    assert beside.counts() == {"d1": (20, 20, 20)}
    assert list((beside.config.lake_dir / "staging").iterdir()) == []
    assert "Traceback" not in child.output()


def test_the_server_collects_too_and_answers_questions_about_it(
    tmp_path: Path, beside: Cloud, broker: MosquittoBroker
) -> None:
    program = "from cloud_registry.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", "--data-dir", str(beside.config.data_dir), "--port", "0"]
    command += ["--mqtt-host", broker.host, "--mqtt-port", str(broker.port)]
    child = start_process([*command, "--admin-token-file", str(tmp_path / "token")], log_path=tmp_path / "serve.log")
    try:
        found = wait_until(lambda: re.search(r"listening on (\S+)", child.output()), 40, what="the server")
        assert found is not None
        with devices(broker.port, "d1") as (device,):
            device.deliver(20, 5, threading.Event())
        token = (tmp_path / "token").read_text().strip()
        with RegistryClient(found[1], token) as client:
            result = client.query("SELECT count(*) AS n FROM predictions")
            assert (result["columns"], result["rows"]) == (["n"], [[20]])
            with pytest.raises(EdgeError) as caught:
                client.query("SELECT * FROM read_text('/etc/passwd')")
            assert caught.value.code == "cloud.query-invalid"
        shown = httpx.get(f"{found[1]}/metrics", trust_env=False).text
        assert 'lighterman_collector_link_up{kind="telemetry"} 1.0' in shown
        assert 'lighterman_queries_total{outcome="refused"} 1.0' in shown
        assert 'lighterman_http_requests_total{method="POST",status="2xx"} 1.0' in shown
        assert child.stop() == 0
    finally:
        child.stop()
    assert "Traceback" not in child.output()


def test_nudges_reach_the_device_they_are_for(beside: Cloud, broker: MosquittoBroker) -> None:
    nudger = MqttNudger(beside.config.mqtt)
    peer = Peer(broker.port, "d1")
    try:
        assert peer.subscribe(topics.nudge("d1")) == [True]
        nudger.nudge("d2", 3)
        nudger.nudge("d1", 4)
        assert Nudge.parse(peer.wait_for(topics.nudge("d1"))) == Nudge(4)
    finally:
        peer.close()
        nudger.close()


def test_nudges_wait_for_a_broker_that_is_away(tmp_path: Path, beside: Cloud, broker: MosquittoBroker) -> None:
    with mosquitto(tmp_path) as late:
        late.stop()
        nudger = MqttNudger(replace(beside.config.mqtt, port=late.port))
        try:
            nudger.nudge("d1", 4)
            assert not nudger.is_ready
            late.start()
            wait_until(lambda: topics.nudge("d1").encode() in late.log_path.read_bytes(), 20, what="the nudge")
        finally:
            nudger.close()
