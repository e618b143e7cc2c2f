"""A sensor that only publishes: its device gets a model with topics, then a better one, then the first one back."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.e2e.device import Device
from tests.e2e.stack import Stack
from tests.integration.binding_ground import Sensor, sensor

pytestmark = [pytest.mark.e2e, pytest.mark.system, pytest.mark.timeout(180)]

TOPICS = "waves/{device}=heights/{device}/{module}"


def ship(stack: Stack, device: Device, offset: int, *more: str) -> Any:
    """Publish the next version with the command line, and deploy it."""
    path, golden = stack.model_files(offset)
    where = ["--condition", f"deviceId = '{device.name}'", "--probation-ms", "0", "--json", *more]
    shipped = stack.run("packager", "ship", str(path), "--name", device.model, "--golden", str(golden), *where)
    assert shipped.exit_code == 0, shipped.stdout + shipped.stderr
    return shipped.document


def question(number: int) -> bytes:
    """A request that tells its number."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0, 0, 0]}
    return json.dumps({"id": str(number), "inputs": [tensor]}).encode()


def test_a_sensor_without_code_follows_updates_and_a_rollback(stack: Stack) -> None:
    device = stack.device("buoy-1", "buoy")
    with device.config.open("a", encoding="utf-8") as file:
        file.write(f"[binding]\nport = {stack.broker.port}\n")
    ship(stack, device, 1, "--bind", TOPICS)
    device.start()
    device.wait(lambda: _is_bound(device), "the topics to be bound")
    shown = stack.run("edge-agent", "status", "--config", str(device.config))
    assert shown.exit_code == 0
    assert "waves/buoy-1 -> heights/buoy-1/buoy" in shown.stdout
    with sensor(stack.broker.port, "heights/#", name="shore") as shore:
        is_over = threading.Event()
        sent: list[int] = []

        def publish() -> None:
            while not is_over.wait(0.01):
                sent.append(len(sent))
                shore.publish("waves/buoy-1", question(sent[-1]))

        publisher = threading.Thread(target=publish, daemon=True)
        publisher.start()
        try:
            _wait_for(device, shore, 1)
            ship(stack, device, 2, "--bind", TOPICS)
            _wait_for(device, shore, 2)
            back = stack.run("edge-agent", "rollback", "buoy", "--config", str(device.config))
            assert back.exit_code == 0, back.stderr
            seen = len(shore.heard)
            device.wait(lambda: 1.0 in _values(shore)[seen:], "the first model to answer again")
        finally:
            is_over.set()
            publisher.join(30)
        device.wait(
            lambda: {int(heard.document["id"]) for heard in shore.heard} == set(sent), "an answer to every message"
        )


def test_messages_wait_while_the_agent_is_gone(stack: Stack) -> None:
    device = stack.device("buoy-2", "dinghy")
    with device.config.open("a", encoding="utf-8") as file:
        file.write(f"[binding]\nport = {stack.broker.port}\n")
    ship(stack, device, 1, "--bind", TOPICS)
    device.start()
    device.wait(lambda: _is_bound(device), "the topics to be bound")
    with sensor(stack.broker.port, "heights/#", name="pier") as pier:
        for number in range(300):
            pier.publish("waves/buoy-2", question(number))
            if number == 100:
                device.kill()
            if number == 200:
                device.start()
        device.wait(
            lambda: {int(heard.document["id"]) for heard in pier.heard} == set(range(300)), "an answer to every message"
        )
        assert set(_values(pier)) == {1.0}


def _values(shore: Sensor) -> list[float]:
    return [heard.document["outputs"][0]["data"][0] for heard in list(shore.heard)]


def _wait_for(device: Device, shore: Sensor, value: float) -> None:
    device.wait(lambda: value in _values(shore), f"predictions of {value}")


def _is_bound(device: Device) -> bool:
    binding = device.status().get("binding") or {}
    module = (binding.get("modules") or {}).get(device.model)
    return bool(module and module["online"] and module["bindings"])
