"""The agent as a module of IoT Edge: enrols by itself, takes inputs from the hub, swaps models in its one container."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from device_sim.iothub.running import Emulator
from device_sim.iothub.workload import Workload
from edge_contract.hub import TWIN_KEY
from tests.e2e.device import Device
from tests.e2e.stack import Stack
from tests.support.iothub import running_hub
from tests.support.net import wait_until
from tests.support.processes import start_process
from tests.support.require import REPOSITORY_ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.system, pytest.mark.timeout(180)]

MODULE = "reader"
MODEL = "meter"
_PROGRAM = str(Path(sys.executable).with_name("edge-agent"))
_WAIT_S = 60.0
_POLL_MS = 600_000  # so that nothing but a nudge brings news


class EdgeDevice(Device):
    """A device whose agent is the process of a module's container."""

    def __init__(self, folder: Path, name: str, environment: Mapping[str, str]) -> None:
        """Say what its container's environment is."""
        super().__init__(folder, name, MODEL)
        self.environment = {**environment, "LIGHTERMAN_AGENT_CONFIG": str(self.config)}

    def start(self) -> None:
        """Start the container's entry point."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith("LIGHTERMAN_")}
        log = self._folder / "agent.log"
        argv = [_PROGRAM, "module"]
        self.child = start_process(argv, log_path=log, env={**plain, **self.environment}, cwd=REPOSITORY_ROOT)

    def health(self) -> int:
        """Exit code of the container's health check."""
        done = subprocess.run(
            [_PROGRAM, "healthcheck"], env={**os.environ, **self.environment}, check=False, timeout=60
        )
        return done.returncode


class Hub:
    """The hub as the device's neighbours see it: they send to inputs and read what went upstream."""

    def __init__(self, emulator: Emulator, data: Path, device: str) -> None:
        """Speak for one device, and run IoT Edge's daemon on it."""
        self.emulator, self.data, self.device = emulator, data, device
        self.daemon = Workload(emulator, device, data / "workload.sock")
        self.daemon.start()
        self.outputs: list[dict[str, Any]] = []
        self.sent = 0

    def ask(self) -> None:
        """Send the next request to the module's input; it tells its number."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [0, 0, 0]}
        text = json.dumps({"id": str(self.sent), "inputs": [tensor]})
        self.sent += 1
        self.emulator.admin.input(device=self.device, module=MODULE, input=MODEL, text=text)

    def nudge(self, version: int) -> None:
        """Say in the module's twin that the director has news."""
        desired = {TWIN_KEY: {"director_version": version}}
        self.emulator.admin.desired(device=self.device, module=MODULE, desired=desired)

    def answers(self) -> list[tuple[int, float]]:
        """Numbers and predictions that went to the module's output so far."""
        for event in self.emulator.admin.drain_telemetry():
            if event["system"].get("output-name") == MODEL:
                self.outputs.append(event)
        documents = [json.loads(event["text"]) for event in self.outputs]
        return [(int(document["id"]), document["outputs"][0]["data"][0]) for document in documents]

    def numbers(self) -> set[int]:
        """Numbers that were answered so far."""
        return {number for number, _ in self.answers()}

    def wait_answers(self, count: int) -> list[tuple[int, float]]:
        """Wait for so many of them."""
        wait_until(lambda: len(self.answers()) >= count, _WAIT_S, what=f"{count} predictions", poll_s=0.05)
        return self.answers()

    def restart(self) -> None:
        """End the emulator and start it from its file, at the same address."""
        host = self.emulator.host
        self.stop()
        self.emulator = Emulator(host, data=self.data).start()
        self.daemon = Workload(self.emulator, self.device, self.daemon.path)
        self.daemon.start()

    def stop(self) -> None:
        """End the daemon and the emulator."""
        self.daemon.stop()
        self.emulator.stop()


@contextmanager
def edge(stack: Stack, name: str) -> Iterator[tuple[EdgeDevice, Hub]]:
    """A device of IoT Edge with a module that is not enrolled."""
    data = stack.folder / f"{name}-hub"
    data.mkdir()
    with running_hub(data) as emulator:
        emulator.add_device(name, edge=True)
        emulator.add_module(name, MODULE)
        hub = Hub(emulator, data, name)
        with stack.client() as client:
            token = client.create_enrolment_token(name)["token"]
        environment = hub.daemon.environment(MODULE) | {
            "LIGHTERMAN_ENROLMENT_TOKEN": token,
            "LIGHTERMAN_REGISTRY_URL": stack.url,
            "LIGHTERMAN_POLL_MS": str(_POLL_MS),
        }
        device = EdgeDevice(stack.folder / name, name, environment)
        try:
            yield device, hub
        finally:
            device.stop()
            hub.stop()


def ship(stack: Stack, device: EdgeDevice, hub: Hub, offset: int) -> None:
    """Publish the next version, assign it, and nudge through the twin."""
    shipment = stack.ship(MODEL, offset, device.name)
    hub.nudge(device.status()["director_version"] + 1)
    device.wait_confirmed(shipment.manifest)


def test_a_module_follows_updates_in_its_one_container(stack: Stack) -> None:
    with edge(stack, "gate-1") as (device, hub):
        device.start()
        assert device.child is not None
        container = device.child.pid
        device.wait(lambda: device.status().get("online"), "the module to be enrolled and connected")
        assert device.health() == 0
        # What comes before there is a model waits for one.
        for _ in range(5):
            hub.ask()
        ship(stack, device, hub, 1)
        assert hub.wait_answers(5) == [(number, 1.0) for number in range(5)]
        event = hub.outputs[0]
        assert (event["device"], event["module"]) == ("gate-1", MODULE)
        assert event["properties"]["lighterman-module"] == MODEL
        assert event["properties"]["lighterman-version"] == "1"

        # Another model while messages stream in: each is answered once, in order, by one or the other.
        is_over = threading.Event()

        def stream() -> None:
            while not is_over.wait(0.02):
                hub.ask()

        sender = threading.Thread(target=stream, daemon=True)
        sender.start()
        try:
            ship(stack, device, hub, 2)
            device.wait(lambda: hub.answers()[-1][1] == 2.0, "the second model to answer", poll_s=0.2)
        finally:
            is_over.set()
            sender.join(_WAIT_S)
        answers = hub.wait_answers(hub.sent)
        assert [number for number, _ in answers] == list(range(hub.sent))
        assert [value for _, value in answers] == sorted(value for _, value in answers)
        assert {value for _, value in answers} == {1.0, 2.0}

        # Connections end with messages underway: some come twice, none is missing.
        for place in range(60):
            hub.ask()
            if place in (10, 30):
                hub.emulator.admin.disconnect(device=hub.device, module=MODULE)
            if place == 20:
                hub.emulator.admin.fault(kind="drop", operation="d2c", count=1)
        wait_until(lambda: hub.numbers() == set(range(hub.sent)), _WAIT_S, what="every number to be answered")

        hub.restart()
        device.wait(lambda: not device.status()["online"] or _is_connected(hub), "the module to notice")
        device.wait(lambda: _is_connected(hub), "the module to come back")
        hub.ask()
        wait_until(lambda: (hub.sent - 1, 2.0) in hub.answers(), _WAIT_S, what="an answer after the restart")

        assert device.child.pid == container
        assert device.child.is_running
        relay = device.status()["binding"]["relay"]
        assert relay["inputs"] >= hub.sent
        assert (relay["dropped"], relay["outputs_dropped"], relay["invalid"]) == ({}, 0, 0)

        # A new container over the same folder needs no token; what came while it was away is answered.
        device.stop()
        assert device.health() == 1
        del device.environment["LIGHTERMAN_ENROLMENT_TOKEN"]
        for _ in range(30):
            hub.ask()
        device.start()
        wait_until(lambda: hub.numbers() == set(range(hub.sent)), _WAIT_S, what="every number to be answered")
        last = [number for number, _ in hub.answers()][-30:]
        assert last == list(range(hub.sent - 30, hub.sent))


def test_a_module_waits_for_its_registry_and_ends_when_told(stack: Stack) -> None:
    with edge(stack, "gate-2") as (device, _):
        device.environment["LIGHTERMAN_REGISTRY_URL"] = "http://127.0.0.1:9"
        device.start()
        assert device.child is not None
        device.wait(lambda: "the next try" in device.child.tail() if device.child else False, "a try that fails")
        assert device.health() == 0
        device.child.send(signal.SIGTERM)
        assert device.child.wait(_WAIT_S) == 0
        assert device.environment["LIGHTERMAN_ENROLMENT_TOKEN"] not in device.child.output()


def _is_connected(hub: Hub) -> bool:
    return f"{hub.device}/{MODULE}" in hub.emulator.admin.state()["connected"]
