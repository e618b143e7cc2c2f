"""The C programs of the benchmarks: compiled when they are needed, into a folder of the run's own."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_SOURCES: Final = Path(__file__).parent / "native"
_PATIENCE_S: Final = 30.0


class Native:
    """The load generator and the echo server."""

    def __init__(self, folder: Path) -> None:
        """Compile into an existing folder.

        Raises:
            RuntimeError: Without a C compiler.
        """
        compiler = shutil.which("cc")
        if compiler is None:
            raise RuntimeError("this benchmark needs a C compiler (cc); on Debian: apt-get install gcc libc6-dev")
        self._folder = folder
        self._count = 0
        for name in ("echo", "load"):
            command = [compiler, "-O2", "-pthread", "-o", str(folder / name), str(_SOURCES / f"{name}.c")]
            subprocess.run(command, check=True)

    @contextlib.contextmanager
    def echo(self, address: str, in_bytes: int, out_bytes: int) -> Iterator[int]:
        """An echo server while the block runs; gives its process id."""
        command = [str(self._folder / "echo"), address, str(in_bytes), str(out_bytes)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()
                yield process.pid
            finally:
                process.kill()

    def load(
        self, mode: str, address: str, request: bytes, connections: int, seconds: float, manifests: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Run the load generator to its end; see `native/load.c`."""
        process = self.start_load(mode, address, request, connections, seconds, manifests)
        return finish(process, seconds)

    def start_load(
        self,
        mode: str,
        address: str,
        request: bytes,
        connections: int,
        seconds: float,
        manifests: tuple[str, ...] = (),
        pause_us: int = 0,
    ) -> "subprocess.Popen[str]":
        """Start the load generator; `finish` ends it."""
        self._count += 1
        file = self._folder / f"request-{self._count}"
        file.write_bytes(request)
        command = [str(self._folder / "load"), mode, address, str(file), str(connections), str(seconds)]
        if manifests or pause_us:
            known = self._folder / f"manifests-{self._count}"
            known.write_text("\n".join(manifests), encoding="ascii")
            command += [str(known), str(pause_us)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]", seconds: float = 0.0) -> dict[str, Any]:
    """Wait for a load generator and read what it found; ask it to end at once when `seconds` is 0."""
    if not seconds:
        process.terminate()
    text, _ = process.communicate(timeout=seconds + _PATIENCE_S)
    found: dict[str, Any] = json.loads(text)
    return found
