"""The agent is killed at one moment of an update after another. Its model goes on answering; started again, the agent
adopts it and finishes.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.device import Device
from tests.e2e.stack import Shipment, Stack
from tests.integration.adopting import has_ended
from tests.support.proxy import RoughProxy, rough_proxy

pytestmark = [pytest.mark.e2e, pytest.mark.system]

MIB = 1024 * 1024
TRICKLE_S = 0.005
PROBATION_MS = 400
LATE = ("verifying", "staging", "testing", "activating", "probation", "committing", "idle")


@dataclass
class Victim:
    """A device that survives one test after the other."""

    device: Device
    proxy: RoughProxy
    live: Shipment


@pytest.fixture(scope="module")
def victim(stack_of_session: Stack) -> Iterator[Victim]:
    """A device with a live model, behind a proxy."""
    stack_of_session.heal()
    with stack_of_session.ending_devices(), rough_proxy(stack_of_session.port) as proxy:
        device, first = stack_of_session.live_device("crane-1", "crane", f"http://127.0.0.1:{proxy.port}")
        yield Victim(device, proxy, first)


@pytest.mark.parametrize("moment", ["nudged", "fetching", "testing", "activating", "probation"])
def test_an_agent_killed_during_an_update_starts_again_and_finishes(
    stack_of_session: Stack, victim: Victim, moment: str
) -> None:
    stack, device, proxy = stack_of_session, victim.device, victim.proxy
    old = victim.live
    with device.asker() as asker:
        asker.wait_for(old.version)
        proxy.delay_s = TRICKLE_S if moment == "fetching" else 0.0
        new = stack.ship("crane", old.version + 1, device.name, padding_bytes=4 * MIB, probation_ms=PROBATION_MS)
        _wait_for(device, moment)
        fetched = device.partial_bytes()
        device.kill_agent()
        asker.go_on(3)
        proxy.delay_s = 0.0
        device.start()
        device.wait(lambda: device.module().get("serving"), "the model to be served by the new agent")
        asker.go_on(1)
        assert asker.newest() in (old.version, new.version)
        device.wait_confirmed(new.manifest)
        asker.wait_for(new.version)
        if moment == "fetching":
            assert 0 < fetched < new.size
            assert device.status()["bytes_fetched"] <= new.size - fetched + MIB
    asker.require_flawless()
    assert set(asker.answered.values()) <= {old.version, new.version}
    assert stack.wait_standing(new, device.name, "confirmed")["error"] is None
    victim.live = new
    _require_all_telemetry(stack, device)


def test_an_agent_that_starts_anew_keeps_its_model_and_ends_it_with_itself(
    stack_of_session: Stack, victim: Victim
) -> None:
    device = victim.device
    with device.asker() as asker:
        asker.wait_for(victim.live.version)
        workers, first = device.workers(), device.status()["boot"]
        assert len(workers) == 1
        assert device.child is not None
        pid = device.child.pid
        command = [str(Path(sys.executable).with_name("edge-agent")), "reload", "--config", str(device.config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        second = device.status()["boot"]
        assert second > first
        device.child.send(signal.SIGHUP)
        device.wait(lambda: device.status().get("boot", second) > second, "the agent to start anew")
        device.wait(lambda: device.module().get("serving"), "the model to be served by the new agent")
        asker.go_on()
        assert device.workers() == workers
        assert device.child.pid == pid
        assert device.child.is_running
    asker.require_flawless()
    _require_all_telemetry(stack_of_session, device)
    device.stop()
    assert device.workers() == []
    assert has_ended(workers[0])


def _require_all_telemetry(stack: Stack, device: Device) -> None:
    """Require that what every start of the agent wrote down, each a boot of its own, arrived whole and once."""
    device.wait(lambda: device.status()["spool"]["records"] == 0, "the spool to be empty")
    sql = "SELECT boot, min(seq), max(seq), count(*) FROM telemetry WHERE device = '{}' GROUP BY boot"
    rows = stack.query(sql.format(device.name))
    assert len(rows) > 1
    assert [(low, high) for _, low, high, _ in rows] == [(1, count) for *_, count in rows]


def _wait_for(device: Device, moment: str) -> None:
    """Wait until the journal says that the moment has come, or has just passed."""
    if moment == "nudged":
        device.wait_phase("resolving", "fetching", *LATE[:-1])
    elif moment == "fetching":
        device.wait(lambda: device.partial_bytes() > MIB, "the download to be under way")
    else:
        device.wait_phase(*LATE[LATE.index(moment) : -1])
