"""What answers is asked at the module's own socket, and computes its golden vectors again, while clients go on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.ports import Attestation
from edge_agent.serving.limits import ServingLimits
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.runtime import GOLDEN_PATH, Member
from edge_contract.tensors import TensorSpec
from tests.integration.serving import MODULE, Hammer, Serving, X, serving, start_hammers
from tests.support.net import wait_until
from tests.support.slots import adder_golden, adder_slot, write_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ATTESTATIONS = 10
SCRIPT = Member(
    "digits", "script", "score.py", (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),)
)
OTHER = Digest.of(b"somebody else's bundle")


@contextlib.contextmanager
def _under_load(state: Serving) -> Iterator[list[Hammer]]:
    """Clients that ask all the time, none of which may see anything but good answers."""
    hammers, threads, is_stopped = start_hammers(state)
    try:
        wait_until(lambda: all(h.error or h.count > 5 for h in hammers), 60, what="every client to get answers")
        yield hammers
    finally:
        is_stopped.set()
        for thread in threads:
            thread.join(60)
    assert [hammer.error for hammer in hammers] == [""] * len(hammers)


def test_attesting_under_load_loses_nothing_and_counts_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        bundle = adder_slot(state.slots, 10.0)
        golden = state.supervisor.ensure(MODULE, *bundle)
        with _under_load(state) as hammers:
            for _ in range(ATTESTATIONS):
                before = [hammer.count for hammer in hammers]
                assert state.supervisor.attest(MODULE) == Attestation(bundle[0], golden)
                wait_until(
                    lambda before=before: all(  # type: ignore[misc]
                        h.error or h.count > count for h, count in zip(hammers, before, strict=True)
                    ),
                    60,
                    what="every client to go on",
                )
        health = state.supervisor.health(MODULE)
        assert (health.requests, health.failures) == (sum(hammer.count for hammer in hammers), 0)
        assert state.exits.empty()


def test_a_busy_slow_model_is_attested_within_a_bound(tmp_path: Path) -> None:
    """Requests wait for the only thread at all times: the golden vectors wait a while, then take their turn."""
    source = b"import time\ndef run(data):\n    time.sleep(0.02)\n    return {'y': data['x'] + 10}\n"
    with serving(tmp_path) as state:
        bundle = write_slot(state.slots, [SCRIPT], {"score.py": source}, golden=adder_golden(10.0))
        golden = state.supervisor.ensure(MODULE, *bundle)
        with _under_load(state):
            begun = time.monotonic()
            assert state.supervisor.attest(MODULE) == Attestation(bundle[0], golden)
            assert time.monotonic() - begun < 30


# --- who answers


STRANGER = """
import os, socket, sys
path, reply = sys.argv[1], sys.argv[2].encode("latin-1").decode("unicode_escape").encode()
os.unlink(path)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(path)
    listener.listen()
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.sendall(reply)
        if reply:
            connection.close()
        else:
            sys.stdin.read()
"""


@contextlib.contextmanager
def _stranger(path: Path, reply: str) -> Iterator[None]:
    """Another process that takes the path of a module's socket over and says this to all who come."""
    process = subprocess.Popen(
        [sys.executable, "-c", STRANGER, str(path), reply], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        yield
    finally:
        process.kill()
        process.communicate()


def _reply(manifest: Digest) -> str:
    return rf"HTTP/1.1 200 OK\r\nLighterman-Manifest: {manifest}\r\nContent-Length: 2\r\n\r\n{{}}"


def test_another_bundle_at_the_socket_is_told_of_and_the_own_socket_comes_back(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        bundle = adder_slot(state.slots, 10.0)
        golden = state.supervisor.ensure(MODULE, *bundle)
        path = state.supervisor.addresses(MODULE)[0]
        with state.client() as kept, state.client(tcp=True) as tcp:
            for client in (kept, tcp):
                client.infer("digits", [X])
            with _stranger(path, _reply(OTHER)):
                assert state.supervisor.attest(MODULE) == Attestation(OTHER, None)
                assert state.supervisor.attest(MODULE) == Attestation(bundle[0], golden)
            with state.client() as fresh:
                for client in (kept, tcp, fresh):
                    assert client.infer("digits", [X]).manifest == bundle[0]
        assert oct(path.stat().st_mode)[-3:] == "660"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n", "model.not-serving"),
        ("HTTP/1.1 503 No\\r\\nLighterman-Manifest: {live}\\r\\n\\r\\n", "model.not-serving"),
        ("HTTP/1.1 200 OK\\r\\n" + 2 * "Lighterman-Manifest: {live}\\r\\n" + "\\r\\n", "model.not-serving"),
        ("HTTP/1.1 200 OK\\r\\nLighterman-Manifest: sha256:12\\r\\n\\r\\n", "model.not-serving"),
        ("\\x00\\xff" * 8_000, "model.not-serving"),
        ("HTTP/1.1 200", "model.not-serving"),
        ("HTTP/1.1 200 OK\\r\\nLighterman-Manifest: {live}\\r\\n\\r\\n", "device.answers-otherwise"),
        ("", "model.timeout"),
    ],
    ids=["no manifest", "refuses", "two manifests", "no digest", "rubbish", "ends", "claims to be us", "silent"],
)
def test_a_stranger_at_the_socket_proves_nothing(tmp_path: Path, reply: str, code: str) -> None:
    with serving(tmp_path, ServingLimits(load_ms=60_000, serve_ms=30_000, ask_ms=2_000)) as state:
        bundle = adder_slot(state.slots, 10.0)
        golden = state.supervisor.ensure(MODULE, *bundle)
        with _stranger(state.supervisor.addresses(MODULE)[0], reply.replace("{live}", str(bundle[0]))):
            with pytest.raises(EdgeError) as caught:
                state.supervisor.attest(MODULE)
            assert caught.value.code == code
            assert state.supervisor.attest(MODULE) == Attestation(bundle[0], golden)


def test_a_socket_whose_file_was_removed_is_made_anew(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        bundle = adder_slot(state.slots, 10.0)
        state.supervisor.ensure(MODULE, *bundle)
        pid, path = state.supervisor.worker_pid(MODULE), state.supervisor.addresses(MODULE)[0]
        path.unlink()
        with pytest.raises(EdgeError) as caught:
            state.supervisor.attest(MODULE)
        assert caught.value.code == "model.not-serving"
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == bundle[0]
        path.unlink()
        state.supervisor.ensure(MODULE, *bundle)
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == bundle[0]
        # The next worker inherits the new one.
        path.unlink()
        state.supervisor.restart(MODULE, *bundle)
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == bundle[0]
        assert state.supervisor.worker_pid(MODULE) != pid


def test_a_candidate_that_was_proved_already_gets_the_new_socket_too(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        one, two = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *one)
        state.supervisor.prove(MODULE, *two)
        state.supervisor.addresses(MODULE)[0].unlink()
        with pytest.raises(EdgeError):
            state.supervisor.attest(MODULE)
        state.supervisor.activate(MODULE, two[0])
        assert state.supervisor.attest(MODULE).manifest == two[0]
        with state.client() as client, state.client(tcp=True) as tcp:
            assert client.infer("digits", [X]).manifest == two[0]
            assert tcp.infer("digits", [X]).manifest == two[0]


def test_a_stuck_worker_attests_nothing_within_a_bound(tmp_path: Path) -> None:
    with serving(tmp_path, ServingLimits(load_ms=60_000, serve_ms=30_000, ask_ms=500)) as state:
        state.supervisor.ensure(MODULE, *adder_slot(state.slots, 10.0))
        pid = state.supervisor.worker_pid(MODULE)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EdgeError) as caught:
            state.supervisor.attest(MODULE)
        assert caught.value.code == "model.timeout"
        os.kill(pid, signal.SIGCONT)


def test_a_worker_that_dies_while_it_is_asked_is_told_of_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, ServingLimits(load_ms=60_000, serve_ms=30_000, ask_ms=60_000)) as state:
        bundle = adder_slot(state.slots, 10.0)
        state.supervisor.ensure(MODULE, *bundle)
        pid = state.supervisor.worker_pid(MODULE)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # so that the question is certainly under way
        ending = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
        ending.start()
        begun = time.monotonic()
        with pytest.raises(EdgeError) as caught:
            state.supervisor.attest(MODULE)
        assert caught.value.code in ("model.worker-crashed", "model.not-serving")
        assert time.monotonic() - begun < 30
        assert state.exits.get(timeout=30) == (MODULE, bundle[0])


# --- what it computes


def _counting(state: Serving, after: int, step: str) -> tuple[Digest, Path]:
    """A script that computes otherwise after so many calls."""
    source = f"""
calls = 0
def run(data):
    global calls
    calls += 1
    return {{"y": data["x"] + (10 if calls <= {after} else {step})}}
"""
    return write_slot(state.slots, [SCRIPT], {"score.py": source.encode()}, golden=adder_golden(10.0))


# The proof takes one call for the golden vectors and four to warm up.
CALLS_BEFORE = 8


def test_a_model_whose_outputs_have_changed_is_found(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        bundle = _counting(state, CALLS_BEFORE, "11")
        golden = state.supervisor.ensure(MODULE, *bundle)
        assert state.supervisor.attest(MODULE) == Attestation(bundle[0], golden)
        with state.client() as client:
            for _ in range(CALLS_BEFORE):
                client.infer("digits", [X])
            with pytest.raises(EdgeError) as caught:
                state.supervisor.attest(MODULE)
            assert caught.value.code == "model.golden-mismatch"
            assert "largest error is 1 " in caught.value.detail
            assert client.infer("digits", [X]).outputs["y"].data == [12.0, 13.0, 14.0, 15.0], "it answers all the same"
        assert state.supervisor.health(MODULE).is_alive


def test_a_change_within_the_tolerance_shows_in_the_digest(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        bundle = _counting(state, CALLS_BEFORE, "10.000001")
        golden = state.supervisor.ensure(MODULE, *bundle)
        with state.client() as client:
            for _ in range(CALLS_BEFORE):
                client.infer("digits", [X])
        attested = state.supervisor.attest(MODULE)
        assert attested.manifest == bundle[0]
        assert attested.golden not in (None, golden)


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_damaged_golden_vectors_are_the_disks_fault_and_not_the_models(tmp_path: Path, damage: str) -> None:
    with serving(tmp_path) as state:
        bundle = adder_slot(state.slots, 10.0)
        state.supervisor.ensure(MODULE, *bundle)
        file = bundle[1] / "files" / GOLDEN_PATH
        content = bytearray(file.read_bytes())
        content[-1] ^= 0x40
        file.write_bytes(content) if damage == "changed" else file.unlink()
        with pytest.raises(EdgeError) as caught:
            state.supervisor.attest(MODULE)
        assert caught.value.code == "device.disk-corrupt"
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == bundle[0]


HELD = b"""
import os, time
def run(data):
    deadline = time.monotonic() + 60
    while os.path.exists(os.environ["FOLDER_OF_TEST"] + "/hold") and time.monotonic() < deadline:
        time.sleep(0.005)
    with open(os.environ["FOLDER_OF_TEST"] + "/calls", "a") as file:
        file.write(".")
    return {"y": data["x"] + (11 if os.path.exists(os.environ["FOLDER_OF_TEST"] + "/wrong") else 10)}
"""
BRIEF = ServingLimits(load_ms=60_000, serve_ms=30_000, ask_ms=30_000, golden_ms=300, drain_ms=60_000)


def _held(state: Serving, folder: Path) -> tuple[Digest, Path]:
    """A script that waits as long as the file `hold` is there, and is wrong once the file `wrong` is there."""
    config = {"FOLDER_OF_TEST": str(folder)}
    return write_slot(state.slots, [SCRIPT], {"score.py": HELD}, golden=adder_golden(10.0), config=config)


def test_golden_vectors_that_take_too_long_are_given_up_and_never_computed_twice_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, BRIEF) as state:
        bundle = _held(state, tmp_path)
        golden = state.supervisor.ensure(MODULE, *bundle)
        calls = len((tmp_path / "calls").read_text())
        (tmp_path / "hold").touch()
        for _ in range(3):  # all but the first join the run that the first has given up
            with pytest.raises(EdgeError) as caught:
                state.supervisor.attest(MODULE)
            assert caught.value.code == "model.timeout"
            assert "golden vectors" in caught.value.detail
        assert state.supervisor.health(MODULE).is_alive
        with state.client() as client:
            assert client.metadata("digits")["versions"] == ["1"]
            (tmp_path / "hold").unlink()
            attested: list[Attestation] = []
            attempts = 0

            def is_attested() -> bool:
                nonlocal attempts
                attempts += 1  # the machine may be too slow for the short bound of this test
                with contextlib.suppress(EdgeError):
                    attested.append(state.supervisor.attest(MODULE))
                return bool(attested)

            wait_until(is_attested, 30, what="the golden vectors to be computed")
            assert attested == [Attestation(bundle[0], golden)]
            client.infer("digits", [X])  # behind whatever still waits for the script's only thread
        assert len((tmp_path / "calls").read_text()) - calls <= 1 + attempts + 1


def test_an_answer_that_comes_too_late_is_nobodys(tmp_path: Path) -> None:
    with serving(tmp_path, BRIEF) as state:
        state.supervisor.ensure(MODULE, *_held(state, tmp_path))
        (tmp_path / "hold").touch()
        with pytest.raises(EdgeError) as caught:
            state.supervisor.attest(MODULE)
        assert caught.value.code == "model.timeout"
        (tmp_path / "hold").unlink()
        late = state.supervisor._live[MODULE]._events
        wait_until(lambda: not late.empty(), 30, what="the late answer, which says that all is well")
        (tmp_path / "wrong").touch()
        with pytest.raises(EdgeError) as caught:
            state.supervisor.attest(MODULE)
        assert caught.value.code in ("model.golden-mismatch", "model.timeout")


def test_a_swap_does_not_wait_for_golden_vectors_that_were_given_up(tmp_path: Path) -> None:
    with serving(tmp_path, BRIEF) as state:
        new = adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *_held(state, tmp_path))
        (tmp_path / "hold").touch()
        try:
            with pytest.raises(EdgeError):
                state.supervisor.attest(MODULE)
            begun = time.monotonic()
            state.supervisor.ensure(MODULE, *new)
            assert time.monotonic() - begun < 30
        finally:
            (tmp_path / "hold").unlink()
        assert state.supervisor.worker_pid(MODULE) is not None
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == new[0]
