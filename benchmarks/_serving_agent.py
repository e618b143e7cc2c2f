"""The agent's side of serving in a process of its own, told what to do on standard input.

    python -m benchmarks._serving_agent RUN_DIR COMPILED_DIR IS_ADOPTING

One JSON object a line in, one out: `{"op": "ensure" | "swap", "module", "manifest", "slot"}`, `{"op": "pid" | "where",
"module"}`, `{"op": "end"}`. It is the supervisor that the agent uses, with everything switched on; samples are taken
and thrown away.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from edge_agent.serving.supervisor import WorkerSupervisor
from edge_contract.digest import Digest


class _Agent:
    """A supervisor, and what was collected."""

    def __init__(self, run_dir: Path, compiled_dir: Path | None, is_adopting: bool) -> None:
        self.samples = 0
        self.exited = threading.Event()
        self.supervisor = WorkerSupervisor(
            run_dir, self._sampled, self._exited, is_outlived=True, compiled_dir=compiled_dir
        )
        if is_adopting:
            self.supervisor.adopt()
        self._slots: dict[str, tuple[Digest, Path]] = {}

    def _sampled(self, _module: str, _record: Any) -> None:
        self.samples += 1

    def _exited(self, module: str, _manifest: Digest) -> None:
        # As the agent's core does at a first failure: at once, from the live slot.
        threading.Thread(target=lambda: self.supervisor.ensure(module, *self._slots[module])).start()

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command."""
        module, begun = command.get("module", ""), time.perf_counter()
        if command["op"] == "pid":
            return {"pid": self.supervisor.worker_pid(module)}
        if command["op"] == "where":
            unix, host, port = self.supervisor.addresses(module)
            return {"unix": f"unix:{unix}", "tcp": f"tcp:{host}:{port}"}
        bundle = Digest(command["manifest"]), Path(command["slot"])
        self._slots[module] = bundle
        if command["op"] == "swap":
            self.supervisor.prove(module, *bundle)
            proved = time.perf_counter()
            gap_ms = self.supervisor.activate(module, bundle[0])
            return {"gap_ms": gap_ms, "activate_ms": (time.perf_counter() - proved) * 1000}
        self.supervisor.ensure(module, *bundle)
        self.supervisor.set_sampling(module, 1.0)
        return {"ms": (time.perf_counter() - begun) * 1000}


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main(run_dir: str, compiled_dir: str, is_adopting: str) -> None:
    """Do what is told until the input ends."""
    agent = _Agent(Path(run_dir), Path(compiled_dir) if compiled_dir else None, is_adopting == "adopt")
    _say({})
    for line in sys.stdin:
        command = json.loads(line)
        if command["op"] == "end":
            break
        _say(agent.do(command))
    agent.supervisor.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
