"""A module of IoT Edge with real workers: inputs come back as outputs, whatever happens in between."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_agent.binding.keeper import BindingKeeper
from edge_agent.binding.limits import RELAY_ANSWER_BYTES_MAX
from edge_agent.binding.relay import InputRelay
from edge_contract.bindings import read_binding
from edge_contract.runtime import Member
from tests.integration.serving import MODULE, Serving, serving
from tests.support.edge_messages import EdgeMessages, Output
from tests.support.net import wait_until
from tests.support.slots import adder_slot, write_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

_WAIT_S = 60.0
ERRORS = f"{MODULE}_error"

SCRIPT = b"""
def run(data):
    return {"text": "x" * int(data)}
"""


@dataclass
class Edge:
    """What a test works with."""

    serving: Serving
    messages: EdgeMessages
    keeper: BindingKeeper

    def report(self) -> dict[str, Any]:
        """How the bindings stand."""
        return self.keeper.report() or {}

    def ask(self, number: int, **properties: str) -> None:
        """Deliver a request that tells its number."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}
        self.messages.put(MODULE, json.dumps({"id": str(number), "inputs": [tensor]}).encode(), **properties)


@contextlib.contextmanager
def edge(folder: Path) -> Iterator[Edge]:
    """A supervisor, and a keeper with a relay and no broker."""
    messages = EdgeMessages()
    with serving(folder) as state:
        relay = InputRelay(messages)
        live = state.supervisor.live_manifests
        keeper = BindingKeeper(None, "cam-7", state.run_dir, state.slots, live, relay=relay)
        keeper.start()
        try:
            yield Edge(state, messages, keeper)
        finally:
            keeper.stop()


def ids(outputs: list[Output]) -> list[int]:
    return [int(output.document["id"]) for output in outputs]


def test_inputs_become_outputs_over_swaps_and_the_death_of_every_process(tmp_path: Path) -> None:
    with edge(tmp_path) as module:
        # Messages come before there is a model.
        for number in range(20):
            module.ask(number)
        first = adder_slot(module.serving.slots, 1.0)
        module.serving.supervisor.ensure(MODULE, *first)
        assert ids(module.messages.wait(MODULE, 20)) == list(range(20))
        module.ask(20, correlation_id="q-20", lighterman_hops="2")
        output = module.messages.wait(MODULE, 21)[-1]
        assert output.document["outputs"][0]["data"] == [1.0] * 4
        assert output.content_type == "application/json"
        assert output.properties["correlation-id"] == "q-20"
        assert output.properties["lighterman-hops"] == "3"
        assert output.properties["lighterman-manifest"] == str(first[0])
        assert output.properties["lighterman-topic"] == f"inputs/{MODULE}"

        # A swap under a stream: every message is answered once, in order, by one or the other.
        sent = list(range(21))
        is_over = threading.Event()

        def stream() -> None:
            while not is_over.wait(0.005):
                sent.append(len(sent))
                module.ask(sent[-1])

        asker = threading.Thread(target=stream, daemon=True)
        asker.start()
        try:
            module.serving.supervisor.ensure(MODULE, *adder_slot(module.serving.slots, 2.0, version=2))
            wait_until(lambda: 2.0 in values(module), _WAIT_S, what="the second model to answer")
        finally:
            is_over.set()
            asker.join(_WAIT_S)
        assert ids(module.messages.wait(MODULE, len(sent))) == sent
        assert sorted(values(module)) == values(module)

        # The binding process is killed with messages in it, and so is the worker: they are answered all the same.
        os.kill(binding_pid(module), signal.SIGKILL)
        more = list(range(len(sent), len(sent) + 50))
        for number in more:
            module.ask(number)
        answered = module.messages.wait(MODULE, len(sent) + len(more))
        assert set(ids(answered)) == {*sent, *more}
        wait_until(lambda: module.report().get("relay", {}).get("unanswered") == 0, _WAIT_S, what="all to be done")
        relay = module.report()["relay"]
        assert (relay["inputs"], relay["dropped"], relay["outputs_dropped"]) == (len(sent) + len(more), {}, 0)
        shown = module.report()["modules"][MODULE]
        assert shown["online"]
        assert shown["protocol"] == "IoT Edge"


def test_bad_messages_and_long_answers_go_to_the_error_output(tmp_path: Path) -> None:
    with edge(tmp_path) as module:
        member = Member("echo", "script", "score.py", options={"imports": "device"})
        mqtt = read_binding({"name": "mqtt", "member": "echo", "input_topic": "in/a", "output_topic": "out/a"})
        slot = write_slot(module.serving.slots, [member], {"score.py": SCRIPT}, bindings=(mqtt,))
        module.serving.supervisor.ensure(MODULE, *slot)
        module.messages.put(MODULE, b"not JSON")
        module.messages.put(MODULE, b"3", lighterman_hops="99")
        module.messages.put(MODULE, str(RELAY_ANSWER_BYTES_MAX).encode())
        module.messages.put(MODULE, b"3")
        (good,) = module.messages.wait(MODULE)
        assert good.document["result"] == {"text": "xxx"}
        codes = [output.properties["lighterman-code"] for output in module.messages.wait(ERRORS, 3)]
        assert codes == ["model.input-invalid", "model.input-invalid", "model.output-invalid"]
        # A topic for MQTT has no broker here; it is said, and does not keep the module from its input.
        (refused,) = module.report()["refused"]
        assert refused["binding"] == "mqtt"
        assert "no [binding]" in refused["why"]


def values(module: Edge) -> list[float]:
    return [output.document["outputs"][0]["data"][0] for output in module.messages.on(MODULE)]


def binding_pid(module: Edge) -> int:
    process = module.keeper._process
    assert process is not None
    return process.pid
