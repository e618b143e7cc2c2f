"""Brokers for one machine: they start on a free port, carry a full batch, and end when told."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import aiomqtt
import pytest

from device_sim import broker
from device_sim.processes import is_listening, spawn, wait_until
from edge_contract.errors import EdgeError
from edge_contract.limits import BATCH_BYTES_MAX
from tests.support.require import require_program


async def _echo(port: int, message: bytes) -> bytes:
    async with (
        asyncio.timeout(20),
        aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V311) as client,
    ):
        await client.subscribe("lighterman/1/dev-1/telemetry", qos=1)
        await client.publish("lighterman/1/dev-1/telemetry", message, qos=1)
        async for received in client.messages:
            return bytes(received.payload)
    raise AssertionError("the connection ended")


def test_the_embedded_broker_carries_a_full_batch(tmp_path: Path) -> None:
    running = broker.start_embedded(tmp_path / "broker.log")
    try:
        message = os.urandom(BATCH_BYTES_MAX)
        assert asyncio.run(_echo(running.port, message)) == message
    finally:
        running.child.stop()
    assert not is_listening(running.port)
    assert running.child.popen.returncode in (0, -signal.SIGTERM)


def test_mosquitto_starts_with_the_configuration_it_is_given(tmp_path: Path) -> None:
    require_program("mosquitto")

    def configure(port: int) -> Path:
        path = tmp_path / "mosquitto.conf"
        path.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        return path

    running = broker.start_mosquitto(tmp_path / "broker.log", configure)
    try:
        assert asyncio.run(_echo(running.port, b"hello")) == b"hello"
    finally:
        running.child.stop()
    assert not running.child.is_running


def test_a_wished_broker_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "find_mosquitto", lambda: None)
    assert broker.choose_kind("auto") == "embedded"
    with pytest.raises(EdgeError, match=r"config\.dependency-missing.*apt install mosquitto"):
        broker.choose_kind("mosquitto")


def test_a_child_that_ends_instead_of_coming_up_is_quoted(tmp_path: Path) -> None:
    child = spawn("the parrot", ["sh", "-c", "echo it is no more; exit 3"], tmp_path / "log")
    with pytest.raises(EdgeError, match=r"its process ended.*it is no more"):
        wait_until(lambda: False, 20, "the parrot", child)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"config\.dependency-missing"):
        spawn("the parrot", ["/nowhere/parrot"], tmp_path / "log")
