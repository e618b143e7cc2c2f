"""Workers stay within what the signed policy lets them use; what this machine cannot hold them to is told."""

from __future__ import annotations

import os
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edge_agent.inference import InferenceClient
from edge_agent.serving.cgroups import CgroupError, CgroupTree
from edge_agent.serving.limits import ServingLimits
from edge_contract.deployment import Policy
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import MIB
from edge_contract.runtime import Member
from edge_contract.terms import Resources
from tests.integration.serving import MODULE, Serving, X, serving
from tests.support.net import wait_until
from tests.support.slots import adder_slot, write_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

# A short time until a worker counts as stuck is also a short time between two looks at its memory.
LIMITS = ServingLimits(load_ms=60_000, serve_ms=30_000, answer_ms=10_000, exit_ms=5_000, stuck_ms=6_000)
SCRIPT = Member("digits", "script", "score.py")
OTHER = "other"
SOURCE = textwrap.dedent("""
    import os, time
    kept = []
    def run(data):
        if data == "allocate":
            while True:
                kept.append(bytearray(os.urandom(1024)) * 8192)
        if data == "leak":
            for _ in range(int(os.environ["LEAK_MIB_OF_TEST"])):
                kept.append(os.urandom(1024) * 1024)
        if data == "fork":
            while True:
                try:
                    if os.fork() == 0:
                        time.sleep(600)
                        os._exit(0)
                except OSError as error:
                    return f"no more: {error.strerror}"
        if data == "spin":
            end = time.monotonic() + 2
            while time.monotonic() < end:
                pass
            return time.process_time()
        return [data]
""").encode()


def _script(state: Serving, **config: str) -> tuple[Digest, Path]:
    return write_slot(state.slots, [SCRIPT], {"score.py": SOURCE}, config=config)


def _bounded(**resources: Any) -> Policy:
    return Policy(resources=Resources(**resources))


def _has_groups(controller: str) -> bool:
    try:
        return controller in CgroupTree.find().controllers
    except CgroupError:
        return False


class Others:
    """Clients of another module that keep asking on a connection each; they must notice nothing at all."""

    def __init__(self, state: Serving) -> None:
        state.supervisor.ensure(OTHER, *adder_slot(state.slots, 1.0))
        self._state = state
        self._is_stopped = threading.Event()
        self.count = 0
        self.error = ""
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            with self._state.client(module=OTHER, tcp=True) as client:
                while not self._is_stopped.is_set():
                    client.infer("digits", [X])
                    self.count += 1
        except (OSError, EdgeError) as error:
            self.error = repr(error)

    def check(self) -> None:
        """They were answered all along, and are now."""
        before = self.count
        wait_until(lambda: self.count > before + 10 or self.error, 60)
        self._is_stopped.set()
        self._thread.join(60)
        assert self.error == ""


def test_a_model_that_allocates_without_end_hurts_itself_alone(tmp_path: Path) -> None:
    with serving(tmp_path, LIMITS) as state:
        others = Others(state)
        slot = _script(state)
        state.supervisor.ensure(MODULE, *slot, _bounded(memory_bytes_max=160 * MIB))
        pid = state.supervisor.worker_pid(MODULE)
        with state.client(tcp=True) as client:
            assert client.infer_json("digits", "fine").result == ["fine"]
            with pytest.raises(EdgeError) as caught:
                client.infer_json("digits", "allocate")
        # A control group ends the worker, an rlimit fails the request; then the worker has too much resident and ends.
        assert caught.value.code in ("device.memory-short", "model.worker-crashed", "network.cut")
        assert state.exits.get(timeout=60) == (MODULE, slot[0])
        state.supervisor.ensure(MODULE, *slot, _bounded(memory_bytes_max=160 * MIB))
        assert state.supervisor.worker_pid(MODULE) not in (None, pid)
        with state.client(tcp=True) as client:
            assert client.infer_json("digits", "fine").result == ["fine"]
        others.check()


def test_a_model_that_leaks_slowly_is_ended_at_its_bound(tmp_path: Path) -> None:
    with serving(tmp_path, LIMITS) as state:
        slot = _script(state, LEAK_MIB_OF_TEST="200")
        state.supervisor.ensure(MODULE, *slot, _bounded(memory_bytes_max=160 * MIB))
        with state.client(tcp=True) as client:
            for _ in range(2):
                try:
                    client.infer_json("digits", "leak")
                except EdgeError:
                    break
            assert state.exits.get(timeout=60) == (MODULE, slot[0])


def test_a_bundle_that_needs_more_than_the_policy_gives_is_refused_and_the_live_one_stays(tmp_path: Path) -> None:
    with serving(tmp_path, LIMITS) as state:
        good = adder_slot(state.slots, 1.0)
        state.supervisor.ensure(MODULE, *good)
        large = adder_slot(state.slots, 2.0, version=2, load_peak_bytes=300 * MIB)
        with pytest.raises(EdgeError) as caught:
            state.supervisor.restart(MODULE, *large, _bounded(memory_bytes_max=200 * MIB))
        assert caught.value.code == "device.memory-short"
        assert str(300 * MIB) in caught.value.detail
        assert str(200 * MIB) in caught.value.detail
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == good[0]


def test_a_script_that_takes_more_than_it_said_while_loading_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, LIMITS) as state:
        good = adder_slot(state.slots, 1.0)
        state.supervisor.ensure(MODULE, *good)
        source = b"import os\nkept = [os.urandom(1024) * 1024 for _ in range(800)]\ndef run(data): return data\n"
        greedy = write_slot(state.slots, [SCRIPT], {"score.py": source}, version=2)
        with pytest.raises(EdgeError) as caught:
            state.supervisor.restart(MODULE, *greedy, _bounded(memory_bytes_max=160 * MIB))
        assert caught.value.code in ("device.memory-short", "model.load-failed")
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == good[0]
        assert state.exits.empty()


def test_processors_and_priority_are_those_of_the_policy_and_are_told(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    with serving(tmp_path, LIMITS) as state:
        slot = adder_slot(state.slots, 1.0)
        state.supervisor.ensure(MODULE, *slot, _bounded(cpus=(cpu,), nice=7, cpu_permille_max=500))
        pid = state.supervisor.worker_pid(MODULE)
        assert pid is not None
        tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        assert {frozenset(os.sched_getaffinity(task)) for task in tasks} == {frozenset({cpu})}
        assert {os.getpriority(os.PRIO_PROCESS, task) for task in tasks} == {7}
        told = state.supervisor.limits_in_force(MODULE)
        assert told["process"] == pid
        assert told["applied"]["cpus"]["value"] == [cpu]
        assert told["applied"]["nice"] == {"value": 7, "by": "priority"}
        # Half a core is what a control group can hold it to, and nothing else can when the processors are given.
        assert ("cpu_permille_max" in told["applied"]) is _has_groups("cpu")
        assert ("cpu_permille_max" in told["refused"]) is not _has_groups("cpu")
        # Another policy for the same bundle needs no other worker.
        state.supervisor.ensure(MODULE, *slot, _bounded(nice=9))
        assert state.supervisor.worker_pid(MODULE) == pid
        assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)
        assert os.getpriority(os.PRIO_PROCESS, pid) == 9
        assert set(state.supervisor.limits_in_force(MODULE)["applied"]) >= {"nice"}


def test_processors_that_are_not_there_bound_nothing_and_fail_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, LIMITS) as state:
        state.supervisor.ensure(MODULE, *adder_slot(state.slots, 1.0), _bounded(cpus=(1000,)))
        assert "none of them" in state.supervisor.limits_in_force(MODULE)["refused"]["cpus"]
        with state.client() as client:
            client.infer("digits", [X])


def test_without_bounds_nothing_is_bounded(tmp_path: Path) -> None:
    with serving(tmp_path, LIMITS) as state:
        assert state.supervisor.limits_in_force(MODULE) == {}
        state.supervisor.ensure(MODULE, *adder_slot(state.slots, 1.0))
        told = state.supervisor.limits_in_force(MODULE)
        assert set(told["applied"]) <= {"processes_max"}
        assert told["refused"] == {}


@pytest.mark.skipif(not _has_groups("pids"), reason="control groups with `pids` are not permitted here")
def test_a_fork_bomb_is_bounded_and_ends_with_its_worker(tmp_path: Path) -> None:
    with serving(tmp_path, LIMITS) as state:
        others = Others(state)
        slot = _script(state)
        state.supervisor.ensure(MODULE, *slot)
        with InferenceClient(state.supervisor.addresses(MODULE)[1:], 60) as client:
            assert "no more" in str(client.infer_json("digits", "fork").result)
        pid = state.supervisor.worker_pid(MODULE)
        assert pid is not None
        os.kill(pid, 9)
        assert state.exits.get(timeout=60) == (MODULE, slot[0])
        group = CgroupTree.find().group(f"{MODULE}.{pid}")
        wait_until(lambda: not (group.folder / "cgroup.procs").read_text(), 60)
        wait_until(lambda: group.remove(0), 60)
        state.supervisor.ensure(MODULE, *slot)
        others.check()


@pytest.mark.skipif(not _has_groups("cpu"), reason="control groups with `cpu` are not permitted here")
def test_half_a_core_is_half_a_core(tmp_path: Path) -> None:
    with serving(tmp_path, LIMITS) as state:
        state.supervisor.ensure(MODULE, *_script(state), _bounded(cpu_permille_max=500))
        with InferenceClient(state.supervisor.addresses(MODULE)[1:], 60) as client:
            before = float(client.infer_json("digits", "spin").result)
            begun = time.monotonic()
            spent = float(client.infer_json("digits", "spin").result) - before
            assert spent / (time.monotonic() - begun) < 0.65
