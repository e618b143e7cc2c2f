"""What goes wrong around a worker: the live model keeps answering, and the reason is told with its code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.inference import InferenceClient, Tensor
from edge_agent.serving.limits import ORPHAN_FOLDER, ServingLimits
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from tests.integration.serving import MODULE, PATIENT, Serving, X, serving
from tests.support.net import wait_until
from tests.support.require import REPOSITORY_ROOT
from tests.support.slots import adder, adder_golden, adder_slot, onnx_model, write_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ONNX = Member("digits", "onnx", "model.onnx")
SCRIPT = Member("digits", "script", "score.py")
QUICK = ServingLimits(load_ms=4_000, prove_ms=4_000, drain_ms=500, answer_ms=500, exit_ms=500)


def _script(state: Serving, source: str, *, version: int = 2, **more: Any) -> tuple[Digest, Path]:
    return write_slot(state.slots, [SCRIPT], {"score.py": textwrap.dedent(source).encode()}, version=version, **more)


def _damaged(state: Serving, case: str) -> tuple[Digest, Path]:
    if case == "wrong outputs":
        return write_slot(state.slots, [ONNX], {"model.onnx": adder(7)}, version=2, golden=adder_golden(8))
    if case == "not finite":
        return write_slot(state.slots, [ONNX], {"model.onnx": adder(float("nan"))}, version=2, golden=adder_golden(8))
    if case == "half a file":
        return write_slot(state.slots, [ONNX], {"model.onnx": adder(7)[:50]}, version=2)
    if case == "no such member":
        return write_slot(
            state.slots, [ONNX], {"model.onnx": adder(7)}, version=2, golden=adder_golden(7, member="other")
        )
    if case == "dies":
        return _script(state, "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\ndef run(data): pass\n")
    if case == "exits":
        return _script(state, "import os\nos._exit(3)\ndef run(data): pass\n")
    if case == "never loads":
        return _script(state, "import threading\nthreading.Event().wait()\ndef run(data): pass\n")
    assert case == "needs all memory"
    return adder_slot(state.slots, 7.0, version=2, load_peak_bytes=2**50)


@pytest.mark.parametrize(
    ("case", "code", "says"),
    [
        ("wrong outputs", "model.golden-mismatch", "largest error is 1 "),
        ("not finite", "model.output-invalid", "NaN"),
        ("half a file", "model.load-failed", "onnxruntime"),
        ("no such member", "artifact.golden-invalid", "'other'"),
        ("dies", "model.worker-crashed", "SIGSEGV"),
        ("exits", "model.worker-crashed", "exit code 3"),
        ("never loads", "model.timeout", "to load the model"),
        ("needs all memory", "device.memory-short", "bytes of memory"),
    ],
)
def test_a_damaged_bundle_is_refused_and_the_live_model_keeps_answering(
    tmp_path: Path, case: str, code: str, says: str
) -> None:
    limits = ServingLimits(load_ms=3_000) if case == "never loads" else PATIENT
    with serving(tmp_path, limits) as state:
        good = adder_slot(state.slots, 1.0)
        if case == "never loads":
            state.supervisor = state.supervisor
        state.supervisor.ensure(MODULE, *good)
        live = state.supervisor.worker_pid(MODULE)
        with state.client() as client:
            with pytest.raises(EdgeError) as caught:
                state.supervisor.prove(MODULE, *_damaged(state, case))
            assert caught.value.code == code
            assert says in caught.value.detail
            assert client.infer("digits", [X]).manifest == good[0]
            with pytest.raises(EdgeError):
                state.supervisor.activate(MODULE, Digest.of(b"never proved"))
            assert client.infer("digits", [X]).manifest == good[0]
        assert state.supervisor.worker_pid(MODULE) == live
        assert _children() == {live}, "the candidate is gone"
        assert state.exits.empty()


def _children() -> set[int]:
    """Processes this one has started and that still run, other than helpers of the test itself."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(stat[1]) == os.getpid() and b"edge_agent.worker" in command:
                found.add(int(entry.name))
    return found


def test_a_candidate_that_dies_before_it_is_activated_changes_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        good, next_one = adder_slot(state.slots, 1.0), adder_slot(state.slots, 2.0, version=2)
        state.supervisor.ensure(MODULE, *good)
        live = state.supervisor.worker_pid(MODULE)
        state.supervisor.prove(MODULE, *next_one)
        (candidate,) = _children() - {live}
        os.kill(candidate, signal.SIGKILL)
        with state.client() as client:
            with pytest.raises(EdgeError) as caught:
                state.supervisor.activate(MODULE, next_one[0])
            assert caught.value.code == "model.worker-crashed"
            assert "SIGKILL" in caught.value.detail
            assert "memory" in caught.value.hint
            assert client.infer("digits", [X]).manifest == good[0]
        # And the next attempt works.
        state.supervisor.ensure(MODULE, *next_one)
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == next_one[0]


HOLDING = """
    import os, time
    def run(data):
        if data == "hold":
            open(os.environ["STARTED_OF_TEST"], "w").close()
            deadline = time.monotonic() + 60
            while os.path.exists(os.environ["HOLD_OF_TEST"]) and time.monotonic() < deadline:
                time.sleep(0.005)
        return os.environ["NAME_OF_TEST"]
"""


def test_a_candidate_that_dies_during_the_hand_over_gives_way_to_the_live_model(tmp_path: Path) -> None:
    """A request holds the drain open; the new worker is killed meanwhile; the old one goes on with its connections."""
    hold, started = tmp_path / "hold", tmp_path / "started"
    hold.touch()
    with serving(tmp_path) as state:
        config = {"HOLD_OF_TEST": str(hold), "STARTED_OF_TEST": str(started)}
        old = _script(state, HOLDING, version=1, config={**config, "NAME_OF_TEST": "old"})
        new = _script(state, HOLDING, version=2, config={**config, "NAME_OF_TEST": "new"})
        state.supervisor.ensure(MODULE, *old)
        live = state.supervisor.worker_pid(MODULE)
        held: list[object] = []

        def ask() -> None:
            with state.client() as client:
                held.extend([client.infer_json("digits", "hold").result, client.infer_json("digits", "again").result])

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        wait_until(started.exists, 30, what="the request to be computed")
        state.supervisor.prove(MODULE, *new)
        (candidate,) = _children() - {live}
        failed: list[EdgeError] = []

        def swap() -> None:
            try:
                state.supervisor.activate(MODULE, new[0])
            except EdgeError as error:
                failed.append(error)

        swapping = threading.Thread(target=swap, daemon=True)
        swapping.start()
        with state.client(tcp=True) as fresh:
            # Once the new one answers on a connection that the old one may have had, the hand-over has begun. (The
            # model itself is not asked: the old one is still busy with the first request.)
            wait_until(lambda: fresh.metadata("digits")["versions"] == ["2"], 30, what="the new worker to serve")
        os.kill(candidate, signal.SIGKILL)
        wait_until(lambda: candidate not in _children(), 30, what="the new worker to be gone")
        hold.unlink()
        swapping.join(60)
        asking.join(60)
        assert [error.code for error in failed] == ["model.worker-crashed"]
        assert held == ["old", "old"]
        assert state.supervisor.worker_pid(MODULE) == live
        with state.client() as client:
            assert _result(client) == "old"
        assert state.exits.empty()


def _result(client: Any) -> object:
    return client.infer_json("digits", "quick").result


def test_a_worker_that_is_killed_is_reported_and_its_sockets_go_on(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        good = adder_slot(state.slots, 1.0)
        state.supervisor.ensure(MODULE, *good)
        pid = state.supervisor.worker_pid(MODULE)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert state.exits.get(timeout=30) == (MODULE, good[0])
        assert not state.supervisor.health(MODULE).is_alive
        assert state.supervisor.worker_pid(MODULE) is None
        # A client that connects meanwhile waits in the kernel's queue and is answered by the next worker.
        with state.client() as client:
            answers: list[Digest] = []
            asking = threading.Thread(target=lambda: answers.append(client.infer("digits", [X]).manifest), daemon=True)
            asking.start()
            state.supervisor.ensure(MODULE, *good)
            asking.join(30)
            assert answers == [good[0]]
        assert state.supervisor.health(MODULE).is_alive


def test_a_client_that_was_cut_off_by_a_crash_repeats_its_request_once(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        good = adder_slot(state.slots, 1.0)
        state.supervisor.ensure(MODULE, *good)
        with state.client() as client, state.client(tcp=True) as other:
            for one in (client, other):
                assert one.infer("digits", [X]).manifest == good[0]
            pid = state.supervisor.worker_pid(MODULE)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            state.exits.get(timeout=30)
            state.supervisor.ensure(MODULE, *good)
            for one in (client, other):
                assert one.infer("digits", [X]).manifest == good[0]


def test_a_stuck_worker_is_not_alive_and_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, QUICK) as state:
        good = adder_slot(state.slots, 1.0)
        _patiently(state, good)
        pid = state.supervisor.worker_pid(MODULE)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert not state.supervisor.health(MODULE).is_alive
        _patiently(state, good)
        assert state.supervisor.worker_pid(MODULE) not in (None, pid)
        assert pid not in _children()
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == good[0]


def test_a_stuck_worker_does_not_hold_up_its_replacement(tmp_path: Path) -> None:
    with serving(tmp_path, QUICK) as state:
        good, next_one = adder_slot(state.slots, 1.0), adder_slot(state.slots, 2.0, version=2)
        _patiently(state, good)
        pid = state.supervisor.worker_pid(MODULE)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        _patiently(state, next_one)
        assert _children() == {state.supervisor.worker_pid(MODULE)}
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == next_one[0]


def _patiently(state: Serving, bundle: tuple[Digest, Path]) -> None:
    """Ensure, again where a busy machine was slower than the test's short bounds."""
    for _ in range(3):
        try:
            state.supervisor.ensure(MODULE, *bundle)
            return
        except EdgeError as error:
            if error.code != "model.timeout":
                raise
    raise AssertionError("the machine is too slow for this test")


def test_failures_of_the_model_are_counted_for_its_probation(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        state.supervisor.ensure(MODULE, *_script(state, "def run(data): return 1 / data\n"))
        with state.client() as client:
            assert client.infer_json("digits", 2).result == 0.5
            for _ in range(3):
                with pytest.raises(EdgeError) as caught:
                    client.infer_json("digits", 0)
                assert caught.value.code == "model.inference-failed"
                assert "ZeroDivisionError" in caught.value.detail
        health = state.supervisor.health(MODULE)
        assert (health.is_alive, health.requests, health.failures) == (True, 4, 3)


def test_what_a_worker_prints_is_in_its_log_within_a_bound(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        source = """
            import sys
            print("hello from the script")
            def run(data):
                print("x" * 100_000, file=sys.stderr)
                return None
        """
        state.supervisor.ensure(MODULE, *_script(state, source))
        assert "hello from the script" in state.log()
        with state.client() as client:
            for _ in range(12):
                client.infer_json("digits", {})
        files = sorted(state.run_dir.glob("line.log*"))
        assert [path.name for path in files] == ["line.log", "line.log.1"]
        assert all(path.stat().st_size <= 256 * 1024 for path in files)


AGENT = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_contract.digest import Digest
supervisor = WorkerSupervisor(Path({run!r}), lambda *_: None, lambda *_: None)
supervisor.ensure("line", Digest({manifest!r}), Path({slot!r}))
unix_path, host, port = supervisor.addresses("line")
heavy = [name for name in ("numpy", "onnxruntime", "httptools", "asyncio", "ai_edge_litert") if name in sys.modules]
print(json.dumps({{"pid": supervisor.worker_pid("line"), "heavy": heavy, "port": port}}), flush=True)
sys.stdin.read()
"""


def _counter() -> bytes:
    """An ONNX model that goes round a loop `n` times: quick in warm-up with 0, without end when a request says so."""

    def build(helper: Any) -> tuple[list[Any], list[Any], list[Any]]:
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["go_in"], ["go_out"]),
                helper.make_node("Add", ["sum_in", "i"], ["sum_out"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", 7, []),
                helper.make_tensor_value_info("go_in", 9, []),
                helper.make_tensor_value_info("sum_in", 7, []),
            ],
            [helper.make_tensor_value_info("go_out", 9, []), helper.make_tensor_value_info("sum_out", 7, [])],
        )
        loop = helper.make_node("Loop", ["n", "go", "zero"], ["sum"], body=body)
        value = helper.make_tensor_value_info
        return [loop], [value("n", 7, [])], [value("sum", 7, [])]

    return onnx_model(build, {"go": np.array(True), "zero": np.array(0, dtype=np.int64)})


def _has_ended(pid: int) -> bool:
    """Whether a process that is nobody's child any more has ended; whoever inherited it may reap it later."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _is_silent(port: int) -> bool:
    """Whether a worker does not even say that it is alive."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.settimeout(0.3)
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
        try:
            return not sock.recv(1)
        except TimeoutError:
            return True


@pytest.mark.parametrize("is_stuck", [False, True], ids=["idle", "stuck in a model on its event loop"])
def test_a_worker_ends_with_its_agent_and_the_agent_imports_nothing_heavy(tmp_path: Path, is_stuck: bool) -> None:
    (tmp_path / "run").mkdir()
    manifest, slot = write_slot(tmp_path / "slots", [ONNX], {"model.onnx": _counter()})
    program = AGENT.format(root=str(REPOSITORY_ROOT), run=str(tmp_path / "run"), manifest=str(manifest), slot=str(slot))
    agent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert agent.stdout is not None
        told = json.loads(agent.stdout.readline())
        assert told["heavy"] == []
        pid, port = told["pid"], told["port"]
        with InferenceClient(("127.0.0.1", port)) as client:
            assert client.infer("digits", [Tensor("n", "INT64", (), [5])]).outputs["sum"].data == [10]
        if is_stuck:
            body = b'{"inputs":[{"name":"n","datatype":"INT64","shape":[],"data":[1152921504606846976]}]}'
            head = b"POST /v2/models/digits/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
            with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
                sock.sendall(head + body)
                wait_until(lambda: _is_silent(port), 30, what="the worker to be stuck")
        agent.kill()
        wait_until(lambda: _has_ended(pid), 30, what="the worker to end")
    finally:
        agent.kill()
        agent.communicate()


def test_closing_finishes_what_was_begun(tmp_path: Path) -> None:
    hold, started = tmp_path / "hold", tmp_path / "started"
    hold.touch()
    results: list[object] = []
    with serving(tmp_path) as state:
        config = {"HOLD_OF_TEST": str(hold), "STARTED_OF_TEST": str(started), "NAME_OF_TEST": "done"}
        state.supervisor.ensure(MODULE, *_script(state, HOLDING, config=config))
        client = state.client()
        asking = threading.Thread(
            target=lambda: results.append(client.infer_json("digits", "hold").result), daemon=True
        )
        asking.start()
        wait_until(started.exists, 30, what="the request to be computed")
        closing = threading.Thread(target=state.supervisor.close, daemon=True)
        unix_path = state.supervisor.addresses(MODULE)[0]
        closing.start()
        # While a request is still computed nobody new is kept waiting for a worker that will not come.
        wait_until(lambda: not unix_path.exists(), 5, what="the socket to be closed")
        hold.unlink()
        closing.join(30)
        asking.join(30)
        client.close()
    assert results == ["done"]
    assert _children() == set()
    assert not list(state.run_dir.glob("*.sock"))


def test_a_stopped_module_refuses_clients_at_once_and_can_serve_again(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        good = adder_slot(state.slots, 1.0)
        state.supervisor.ensure(MODULE, *good)
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == good[0]
            state.supervisor.stop(MODULE)
            with pytest.raises(EdgeError) as caught:
                client.infer("digits", [X])
            assert caught.value.code == "network.unreachable"
        with pytest.raises(EdgeError) as caught:
            state.supervisor.addresses(MODULE)
        assert caught.value.code == "model.not-serving"
        assert _children() == set()
        assert state.exits.empty()
        state.supervisor.ensure(MODULE, *good)
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == good[0]


def test_a_run_directory_without_room_for_orphans_ends_no_agent(tmp_path: Path) -> None:
    (tmp_path / ORPHAN_FOLDER).touch()  # no folder can be made, as on a disk that is full or read-only
    supervisor = WorkerSupervisor(tmp_path, lambda *_: None, lambda *_: None, is_outlived=True)
    supervisor.adopt()
    supervisor.close()
