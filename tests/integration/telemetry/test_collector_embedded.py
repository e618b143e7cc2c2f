"""The collector behind the embedded broker that needs no Debian package; it speaks MQTT 3.1.1 and has no sessions."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cloud_registry.adapters.link_mqtt import MqttNudger
from cloud_registry.collect.service import Collector
from cloud_registry.config import MqttConfig
from edge_contract import topics
from edge_contract.twin import Nudge
from tests.integration.telemetry.parts import Device, cloud
from tests.support.net import LOOPBACK, free_low_port, is_listening, wait_until
from tests.support.processes import Child, start_process

pytest.importorskip("iotcore", reason="the embedded broker is not installed: pip install iotcore")
pytestmark = pytest.mark.timeout(120)

_SERVE = """
import sys
from iotcore import Broker
Broker(port=int(sys.argv[1]), listen="127.0.0.1", max_payload_size=524288).run_forever()
"""
_STARTS_MAX = 5


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Where an embedded broker listens."""
    for _ in range(_STARTS_MAX):
        chosen = free_low_port()
        child = start_process([sys.executable, "-c", _SERVE, str(chosen)], log_path=tmp_path / "iotcore.log")
        try:
            wait_until(partial(_has_settled, child, chosen), 20, what="the broker")
            if child.is_running:
                yield chosen
                return
        finally:
            child.stop()
    raise AssertionError((tmp_path / "iotcore.log").read_text()[-2_000:])


def _has_settled(child: Child, port: int) -> bool:
    return not child.is_running or is_listening(port)


def test_telemetry_reports_and_nudges_travel(port: int, tmp_path: Path) -> None:
    config = MqttConfig(host=LOOPBACK, port=port)
    with cloud(tmp_path, config) as own:
        own.enrol("d1", "d2")
        collector = Collector(own.config, own.fleet, own.clock, flush_ms=30)
        nudger = MqttNudger(config)
        devices = [Device(name, port) for name in ("d1", "d2")]
        try:
            collector.start()
            wait_until(lambda: collector.is_ready, 15, what="the collector")
            assert devices[0].peer.subscribe(topics.nudge("d1")) == [True]
            threads = [threading.Thread(target=device.deliver, args=(100, 5, threading.Event())) for device in devices]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            devices[0].report(1)
            wait_until(lambda: own.report_of("d1"), 10, what="the report")
            nudger.nudge("d1", 4)
            wait_until(lambda: devices[0].heard, 10, what="the nudge")
            assert devices[0].heard == [(topics.nudge("d1"), Nudge(4).to_bytes())]
        finally:
            for device in devices:
                device.close()
            nudger.close()
            collector.close()
        assert own.counts() == {"d1": (100, 100, 100), "d2": (100, 100, 100)}
