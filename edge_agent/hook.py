"""The device owner's own program, asked before an update goes on: is this a good moment?

It is run without a shell, with the arguments GATE MODULE MODEL VERSION DIGEST, and gets the same and the deployment as
one JSON object on standard input. Its exit code is the answer: 0 goes on, 75 (EX_TEMPFAIL) waits, with the seconds to
wait as a number on the last line of its output if it likes, anything else is an error.
"""

import contextlib
import logging
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Final

from edge_agent.keyuri import without_pin
from edge_agent.limits import (
    HOOK_DETAIL_CHARS_MAX,
    HOOK_MS_DEFAULT,
    HOOK_OUTPUT_BYTES_MAX,
    HOOK_WAIT_MS_DEFAULT,
    HOOK_WAIT_MS_MAX,
    HOOK_WAIT_MS_MIN,
)
from edge_contract.deployment import Assignment
from edge_contract.errors import EdgeError
from edge_contract.jsonio import dump

WAIT: Final = os.EX_TEMPFAIL
_LOG: Final = logging.getLogger(__name__)


class CommandHook:
    """Implements `ports.UpdateHook` with a program. Used by one thread."""

    def __init__(self, program: Path, timeout_ms: int = HOOK_MS_DEFAULT) -> None:
        """Name the program; it is run at each question.

        Args:
            program: An executable file.
            timeout_ms: How long it may run; then it is killed, with everything in its process group.
        """
        self._program = program
        self._timeout_ms = timeout_ms

    def ask(self, gate: str, assignment: Assignment) -> int:
        """See `ports.UpdateHook.ask`."""
        artifact = assignment.artifact
        words = [gate, assignment.module, artifact.model, str(artifact.version), str(assignment.manifest)]
        question = dump(
            {
                "gate": gate,
                "module": assignment.module,
                "model": artifact.model,
                "version": artifact.version,
                "manifest": str(assignment.manifest),
                "deployment": assignment.deployment,
            }
        )
        code, said, complaint = self._run(words, question)
        if complaint:
            _LOG.info("%s: %s", self._program, complaint)
        if code == 0:
            return 0
        if code == WAIT:
            return _wait_ms(said)
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise self._failed(f"ended with {how}" + (f": {complaint}" if complaint else ""))

    def _run(self, words: list[str], question: bytes) -> tuple[int, str, str]:
        """Exit code, what it said last, and what it complained of last.

        Its output goes to files without names, so that nobody waits at a pipe that its children hold open.
        """
        with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            source.write(question)
            source.seek(0)
            try:
                process = subprocess.Popen(
                    [str(self._program), *words],
                    stdin=source,
                    stdout=out,
                    stderr=err,
                    cwd="/",
                    env=without_pin(os.environ),
                    start_new_session=True,
                )
            except OSError as error:
                raise self._failed(f"could not be run: {error.strerror or error}") from None
            try:
                code = process.wait(self._timeout_ms / 1000)
            except subprocess.TimeoutExpired:
                raise self._failed(f"did not answer within {self._timeout_ms} ms") from None
            finally:
                _end(process)
            return code, _last_line(out), _last_line(err)

    def _failed(self, why: str) -> EdgeError:
        hint = f"Exit with 0 to go on, {WAIT} to wait. The update waits and asks again."
        return EdgeError("device.hook-failed", f"the hook {self._program} {why}", hint)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the program's process group, and collect the program."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - HOOK_OUTPUT_BYTES_MAX))
    lines = file.read(HOOK_OUTPUT_BYTES_MAX).decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip()[:HOOK_DETAIL_CHARS_MAX] if lines else ""


def _wait_ms(said: str) -> int:
    """What a hook that asks to wait said, in milliseconds and within bounds."""
    try:
        wanted = float(said) * 1000
        if not 0 <= wanted < float("inf"):
            raise ValueError
    except ValueError:
        return HOOK_WAIT_MS_DEFAULT
    return int(min(HOOK_WAIT_MS_MAX, max(HOOK_WAIT_MS_MIN, wanted)))
