"""A worker that was adopted crashes: its clients outlive it as those of any other, whoever accepted them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.integration.adopting import MODULE, agent_process, has_ended
from tests.integration.serving import _Kept
from tests.support.net import wait_until
from tests.support.slots import adder_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]})


def _use(connection: _Kept) -> None:
    before = connection.sock
    connection.request("POST", "/v2/models/digits/infer", BODY)
    reply = connection.getresponse()
    reply.read()
    assert reply.status == 200
    assert connection.sock is before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_connections_from_before_and_after_the_adoption_outlive_the_worker(
    tmp_path: Path, number: signal.Signals
) -> None:
    bundle = adder_slot(tmp_path / "slots", 1.0)
    limits = {"stuck_ms": 3_000} if number == signal.SIGSTOP else {}
    with agent_process(tmp_path, limits) as agent:
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        path, host, port = agent.addresses()
        kept = [_Kept(path), _Kept((host, port)), _Kept((host, port))]
        for connection in kept[:2]:
            connection.connect()
            _use(connection)
        agent.kill()
        _use(kept[1])
        agent.start()
        agent.ask("ensure", MODULE, *bundle)
        worker = agent.ask("worker_pid", MODULE)
        kept[2].connect()
        for connection in kept:
            _use(connection)
        # With what comes after it, it is certain that each is idle for the worker too.
        wait_until(lambda: agent.ask("health", MODULE)[0], 60)
        os.kill(worker, number)
        wait_until(lambda: has_ended(worker), 60)
        agent.ask("ensure", MODULE, *bundle)
        for connection in kept:
            _use(connection)
            connection.close()
