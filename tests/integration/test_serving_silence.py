"""A worker keeps to itself: no file below the home folder, no socket of the internet family that is not ours.

onnxruntime >= 1.29 makes a device id below `~/.cache` when it is imported and looks for its vendor's collector some
seconds after the first session. It keeps quiet by itself where the variable CI is set, so these tests run without it,
and without the variable that switches it off: the package has to set that.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_agent.inference import InferenceClient, Tensor
from edge_contract.jsonio import JsonObject
from edge_contract.runtime import Member
from tests.integration.serving import X
from tests.support.require import REPOSITORY_ROOT, require_program
from tests.support.slots import adder, adder_golden, write_slot
from tests.unit.worker.tiny_models import tflite_adder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

_DEADLINE_S = 60.0
# Without the switch the first look for the collector came 9 s after the session was made.
_WATCHED_S = 15.0


@dataclass
class _Worker:
    """A worker started by hand, and our end of its control channel."""

    control: socket.socket
    unix_path: Path
    process: subprocess.Popen[bytes]

    def command(self, op: str) -> None:
        """Send a command without arguments."""
        self.control.sendall(json.dumps({"op": op}).encode() + b"\n")

    def expect(self, event: str) -> JsonObject:
        """Read the next event, which has to be this one."""
        line = b""
        while not line.endswith(b"\n"):
            byte = self.control.recv(1)
            assert byte, "the worker ended"
            line += byte
        message: JsonObject = json.loads(line)
        assert message["event"] == event, message
        return message


@contextlib.contextmanager
def _worker(folder: Path, slot: Path, home: Path, wrapper: Sequence[str] = ()) -> Iterator[_Worker]:
    """A worker under another program, with next to nothing in its environment."""
    unix_path = folder / "w.sock"
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_INET) as tcp:
        unix.bind(str(unix_path))
        tcp.bind(("127.0.0.1", 0))
        for sock in (unix, tcp):
            sock.listen()
            sock.setblocking(False)
        fds = (theirs.fileno(), unix.fileno(), tcp.fileno())
        names = ("--control-fd", "--unix-fd", "--tcp-fd")
        options = [text for name, fd in zip(names, fds, strict=True) for text in (name, str(fd))]
        process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "edge_agent.worker", "--slot", str(slot), "--module", "line", *options],
            env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY_ROOT)},
            cwd=folder,
            pass_fds=fds,
        )
        theirs.close()
        ours.settimeout(_DEADLINE_S)
        try:
            yield _Worker(ours, unix_path, process)
        finally:
            ours.close()
            try:
                process.wait(_DEADLINE_S)
            finally:
                process.kill()
                process.wait()


def _bundle(folder: Path) -> Path:
    """A slot with a model for every engine that is here."""
    members = [Member("digits", "onnx", "model.onnx"), Member("code", "script", "score.py")]
    files = {"model.onnx": adder(1), "score.py": b"def run(data): return data\n"}
    with contextlib.suppress(pytest.skip.Exception):
        files["model.tflite"] = tflite_adder(1)
        members.append(Member("lite", "litert", "model.tflite"))
    _manifest, slot = write_slot(folder / "slots", members, files, golden=adder_golden(1))
    return slot


def _use(worker: _Worker) -> None:
    """Load, prove, serve, and ask every model once."""
    worker.command("prove")
    loaded = worker.expect("loaded")
    assert loaded["peak_bytes"] > 0
    worker.expect("proved")
    worker.command("serve")
    worker.expect("serving")
    with InferenceClient(worker.unix_path) as client:
        assert client.infer("digits", [X]).outputs["y"].data == [2.0, 3.0, 4.0, 5.0]
        assert client.infer_json("code", {"any": "thing"}).result == {"any": "thing"}
        with contextlib.suppress(pytest.skip.Exception):
            tflite_adder(1)
            assert client.infer("lite", [Tensor("x", "FP32", (1, 4), [1, 2, 3, 4])]).outputs["y"].data == [2, 3, 4, 5]


def test_a_worker_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with _worker(tmp_path, _bundle(tmp_path), home) as worker:
        _use(worker)
    assert worker.process.returncode == 0
    assert list(home.rglob("*")) == []


@pytest.mark.slow
@pytest.mark.system
def test_a_worker_opens_no_socket_of_its_own(tmp_path: Path) -> None:
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    strace = require_program("strace")
    wrapper = [strace, "-f", "-qq", "-e", "trace=%network,openat,open,creat,mkdir", "-o", str(trace)]
    with _worker(tmp_path, _bundle(tmp_path), home, wrapper) as worker:
        _use(worker)
        threading.Event().wait(_WATCHED_S)  # to see that nothing happens takes its time
        with InferenceClient(worker.unix_path) as client:
            assert client.is_ready()
    calls = trace.read_text(errors="replace").splitlines()
    assert any("accept4(" in call for call in calls), "the trace shows what the worker did"
    assert any("libonnxruntime" in call or "onnxruntime_pybind11_state" in call for call in calls)
    internet = [call for call in calls if re.search(r"\bsocket\(AF_INET6?\b|sa_family=AF_INET6?\b", call)]
    # Accepting and asking about the sockets we gave it is all it may do with the family.
    assert [call for call in internet if not re.search(r"\b(accept4|getsockname|getpeername)\(", call)] == []
    assert [call for call in calls if re.search(r"\bconnect\(", call)] == []
    below_home = [call for call in calls if f'"{home}/' in call]
    assert [call for call in below_home if re.search(r"O_CREAT|O_WRONLY|O_RDWR|\bmkdir\(|\bcreat\(", call)] == []
    assert list(home.rglob("*")) == []
