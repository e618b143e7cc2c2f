"""Makes compiled models in a process of its own: `python -m edge_agent.worker.compiling --slot S --member M --into D`.

Of its own, because a second and a third copy of the model are in memory for a moment, which the worker would not get
back whole, and because whatever the runtime does to the process must not reach who serves. The process has the lowest
priority, is the first to go when memory runs out, and ends with its worker.
"""

import argparse
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edge_agent.worker.compiled import CompiledModels
from edge_agent.worker.limits import COMPILE_MS_MAX
from edge_contract.errors import EdgeError

_log = logging.getLogger(__name__)

_LOWEST_PRIORITY: Final = 19
_REFUSED_EXIT: Final = 3


class Compiler:
    """Compiles members of a bundle one after another, in the background of the worker that serves it."""

    def __init__(self, slot: Path, folder: Path, members: Mapping[str, str]) -> None:
        """Prepare; nothing is started yet.

        Args:
            slot: The bundle's folder.
            folder: Of compiled models.
            members: Key of the compiled form by name of the member.
        """
        self._slot = slot
        self._folder = folder
        self._members = dict(members)

    def run(self) -> None:
        """Compile. Blocks; on any thread. What cannot be compiled is remembered, so that it is not tried again."""
        for name, key in self._members.items():
            command = [sys.executable, "-m", "edge_agent.worker.compiling"]
            command += ["--slot", str(self._slot), "--member", name, "--into", str(self._folder)]
            try:
                # Its standard input is its life line: the kernel closes it when this process ends.
                process = subprocess.Popen(command, stdin=subprocess.PIPE)
            except OSError as error:
                _log.warning("%r is not compiled: %s", name, error)
                return
            try:
                code = process.wait(COMPILE_MS_MAX / 1000)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            finally:
                if process.stdin is not None:
                    process.stdin.close()
            if code not in (0, _REFUSED_EXIT):
                self._refuse(key, f"the process that compiled it ended with {code}")

    def _refuse(self, key: str, reason: str) -> None:
        _log.warning("compiled models: %s", reason)
        try:
            CompiledModels(self._folder).refuse(key, reason)
        except EdgeError as error:
            _log.warning("compiled models: %s", error)


def compile_member(slot: Path, name: str, folder: Path) -> bool:
    """Make the compiled form of one member, and keep it if it computes bit by bit what the plain model computes.

    Args:
        slot: The bundle's folder.
        name: Of the member, of the engine onnx.
        folder: Of compiled models.

    Returns:
        Whether it is kept. Otherwise it is remembered that it cannot be.

    Raises:
        EdgeError: `device.disk-full`, `device.disk-error`, `model.load-failed`, `model.engine-unavailable`,
            `artifact.*`.
    """
    import numpy as np

    from edge_agent.worker.arrays import Array
    from edge_agent.worker.bundle import made_up_inputs, read_slot
    from edge_agent.worker.engines import NOTHING_SPECIAL, Place
    from edge_agent.worker.engines.onnx import OnnxEngine, save_compiled
    from edge_agent.worker.golden import pieces_of, read_golden_of

    def is_same(want: Array, got: Array) -> bool:
        if want.dtype != got.dtype or want.shape != got.shape:
            return False
        return bool((want == got).all()) if want.dtype.kind == "O" else want.tobytes() == got.tobytes()

    manifest, runtime = read_slot(slot)
    place = Place(slot / "files", slot / "site", manifest)
    member = next(item for item in runtime.members if item.name == name)
    models = CompiledModels(folder)
    with models.making() as making:
        models.require_space(2 * sum(path.stat().st_size for path in place.file(member.entry).parent.iterdir()))
        plain = OnnxEngine(member, place, NOTHING_SPECIAL)
        vectors = read_golden_of(runtime, place.files).get(name)
        feeds: Sequence[Mapping[str, Array]]
        feeds = pieces_of(name, plain, vectors) if vectors else [made_up_inputs(plain)]
        outputs = [spec.name for spec in plain.outputs]
        session = save_compiled(member, place, making)
        for feed in feeds:
            pairs = zip(plain.run(feed, outputs).values(), session.run(outputs, feed), strict=True)
            if not all(is_same(want, np.asarray(got)) for want, got in pairs):
                models.refuse(plain.key, "its outputs are not those of the plain model")
                return False
        models.keep(plain.key, making)
    return True


def _end_with_worker() -> None:
    """The worker holds the other end of standard input and never writes."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, name="worker-watch", daemon=True).start()


def _be_modest() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, _LOWEST_PRIORITY)
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:
        _log.debug("the kernel does not let this process be the first to go")


def main() -> None:
    """Read the command line, compile, end; the exit code says how it went."""
    parser = argparse.ArgumentParser(prog="edge_agent.worker.compiling", description="Started by a worker.")
    parser.add_argument("--slot", type=Path, required=True, help="folder of the unpacked bundle")
    parser.add_argument("--member", required=True, help="which of its models")
    parser.add_argument("--into", type=Path, required=True, help="folder of compiled models")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _end_with_worker()
    _be_modest()
    try:
        is_kept = compile_member(arguments.slot, arguments.member, arguments.into)
    except EdgeError as error:
        # A full disk may be otherwise tomorrow; everything else would end the same way.
        _log.warning("%r is not compiled: %s", arguments.member, error)
        os._exit(_REFUSED_EXIT if error.code.startswith("device.") else 1)
    _log.info("%r is compiled" if is_kept else "%r stays as it is", arguments.member)
    os._exit(0)


if __name__ == "__main__":
    main()
