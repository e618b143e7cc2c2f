"""Help for tests of serving with real worker processes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.inference import InferenceClient, Tensor
from edge_agent.serving.limits import ServingLimits
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject

MODULE = "line"
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
def serving(folder: Path, limits: ServingLimits = PATIENT) -> Iterator[Serving]:
    """A supervisor in a folder of its own, closed at the end; every worker it started is gone then."""
    run_dir, slots = folder / "run", folder / "slots"
    run_dir.mkdir()
    state = Serving(run_dir, slots)
    lock = threading.Lock()

    def on_sample(module: str, record: JsonObject) -> None:
        with lock:
            state.samples.append((module, record))

    state.supervisor = WorkerSupervisor(
        run_dir, on_sample, lambda module, manifest: state.exits.put((module, manifest)), limits=limits
    )
    try:
        yield state
    finally:
        state.supervisor.close()
