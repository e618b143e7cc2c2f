"""Help for tests of serving with real worker processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.inference import InferenceClient, Tensor
from edge_agent.serving.limits import ServingLimits
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject

MODULE = "line"
CLIENTS = 8
X = Tensor("x", "FP32", (1, 4), [1.0, 2.0, 3.0, 4.0])

# The machine that runs the tests may be busy with other things.
PATIENT = ServingLimits(load_ms=60_000, serve_ms=30_000, drain_ms=20_000, answer_ms=10_000, exit_ms=10_000)


@dataclass
class Serving:
    """A supervisor and what it told.

    Attributes:
        supervisor: Under test.
        run_dir: Its run directory.
        slots: Where slots go.
        exits: (module, manifest) of workers that ended by themselves.
    """

    run_dir: Path
    slots: Path
    exits: queue.Queue[tuple[str, Digest]] = field(default_factory=queue.Queue)
    samples: list[tuple[str, JsonObject]] = field(default_factory=list)
    supervisor: WorkerSupervisor = field(init=False)

    def client(self, *, tcp: bool = False, module: str = MODULE) -> InferenceClient:
        """A client of a module, on its unix socket or its TCP port."""
        unix_path, host, port = self.supervisor.addresses(module)
        return InferenceClient((host, port) if tcp else unix_path)

    def log(self, module: str = MODULE) -> str:
        """What workers of a module have printed."""
        path = self.run_dir / f"{module}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


@contextlib.contextmanager
def serving(folder: Path, limits: ServingLimits = PATIENT, **more: Any) -> Iterator[Serving]:
    """A supervisor in a folder of its own, closed at the end; every worker it started is gone then."""
    run_dir, slots = folder / "run", folder / "slots"
    run_dir.mkdir()
    state = Serving(run_dir, slots)
    lock = threading.Lock()

    def on_sample(module: str, record: JsonObject) -> None:
        with lock:
            state.samples.append((module, record))

    state.supervisor = WorkerSupervisor(
        run_dir, on_sample, lambda module, manifest: state.exits.put((module, manifest)), limits=limits, **more
    )
    try:
        yield state
    finally:
        state.supervisor.close()


@dataclass
class Hammer:
    """One client that asks as fast as it can over one kept-alive connection, without any retry.

    Attributes:
        answers: (manifest, first element of the answer) in order, only where one differs from the one before.
        count: All answers.
        longest_s: The longest wait for one.
        error: What went wrong, if anything.
    """

    address: Path | tuple[str, int]
    is_stopped: threading.Event
    answers: list[tuple[str, float]] = field(default_factory=list)
    count: int = 0
    longest_s: float = 0.0
    error: str = ""

    def run(self) -> None:
        """Ask until stopped."""
        try:
            self._ask()
        except (OSError, http.client.HTTPException, KeyError, ValueError, AssertionError) as error:
            self.error = f"{type(error).__name__}: {error}"

    def _ask(self) -> None:
        document = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
        body = json.dumps(document)
        connection = _Kept(self.address)
        connection.connect()
        first = connection.sock
        while not self.is_stopped.is_set():
            begun = time.monotonic()
            connection.request("POST", "/v2/models/digits/infer", body)
            reply = connection.getresponse()
            content = reply.read()
            self.longest_s = max(self.longest_s, time.monotonic() - begun)
            assert reply.status == 200, content
            answer = (reply.headers["Lighterman-Manifest"], json.loads(content)["outputs"][0]["data"][0])
            if not self.answers or answer != self.answers[-1]:
                self.answers.append(answer)
            self.count += 1
            assert connection.sock is first, "the connection was closed on the way"
        connection.close()


class _Kept(http.client.HTTPConnection):
    """A connection that never connects again by itself."""

    auto_open = 0

    def __init__(self, address: Path | tuple[str, int]) -> None:
        super().__init__("device")
        self._address = address

    def connect(self) -> None:
        """Connect to the unix socket or the TCP port."""
        if isinstance(self._address, Path):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(60)
            self.sock.connect(str(self._address))
        else:
            self.sock = socket.create_connection(self._address, timeout=60)


def start_hammers(state: Serving) -> tuple[list[Hammer], list[threading.Thread], threading.Event]:
    """Clients on both sockets, asking already; set the event and join the threads to end them."""
    return hammer(*state.supervisor.addresses(MODULE))


def hammer(unix_path: Path, host: str, port: int) -> tuple[list[Hammer], list[threading.Thread], threading.Event]:
    """As `start_hammers`, for a module that answers there."""
    is_stopped = threading.Event()
    hammers = [Hammer(unix_path if number % 2 else (host, port), is_stopped) for number in range(CLIENTS)]
    threads = [threading.Thread(target=hammer.run, daemon=True) for hammer in hammers]
    for thread in threads:
        thread.start()
    return hammers, threads, is_stopped
