"""Our own server, as the benchmarks run it: a process with the agent's supervisor, and its workers."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from benchmarks._bundles import Bundle

_END_S: Final = 60.0


class Ours:
    """The process and how to speak to it."""

    def __init__(self, run_dir: Path, compiled_dir: Path | None = None, is_adopting: bool = False) -> None:
        """Start it in a folder that exists; workers of a process that was killed there are adopted where asked."""
        command = [sys.executable, "-m", "benchmarks._serving_agent", str(run_dir)]
        command += [str(compiled_dir or ""), "adopt" if is_adopting else ""]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def __enter__(self) -> "Ours":
        """Use it in a block that ends it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it with its workers."""
        self.end()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the serving process ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, op: str, module: str, bundle: Bundle | None = None) -> dict[str, Any]:
        """Have one command carried out; see `_serving_agent`."""
        command = {"op": op, "module": module}
        if bundle is not None:
            command |= {"manifest": str(bundle.manifest), "slot": str(bundle.slot)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._read()

    def worker(self, module: str) -> int:
        """Process id of the live worker."""
        return int(self.do("pid", module)["pid"])

    def address(self, module: str, kind: str) -> str:
        """Where it answers, as the load generator wants it; `unix` or `tcp`."""
        return str(self.do("where", module)[kind])

    def kill(self) -> None:
        """As a crash: without a word, its workers stay."""
        self.process.kill()
        self._forget()

    def end(self) -> None:
        """End it with its workers."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(_END_S)
        self._forget()

    def _forget(self) -> None:
        with contextlib.suppress(BrokenPipeError), self.process:
            pass  # closes the pipes and takes the exit code
