"""The process that holds the device's key, so that the control process has neither the key nor `cryptography`.

It is started when something is to be signed, answers JSON lines on its pipes, and ends when it had nothing to do for a
while, which gives its memory back. Whoever asks sees none of that: `KeyHolder` is a `ports.DeviceSigner`.

The first line it reads says which key: {"uri": ..., "folder": ..., "idle_ms": ...}. It answers
{"keyid": ..., "algorithm": ...}, and then each {"content": base64} with {"signature": base64}, or with {"error": ...},
after which it ends: the next one begins with nothing that is stale.
"""

import base64
import contextlib
import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from edge_agent.identity import KeyPlace
from edge_agent.limits import (
    KEYHOLDER_IDLE_MS,
    KEYHOLDER_LINE_BYTES_MAX,
    KEYHOLDER_MS_MAX,
    KEYHOLDER_TRIES_MAX,
)
from edge_contract.codes import CODES
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, dump, parse_object

_LOG: Final = logging.getLogger(__name__)
_PIECE_BYTES: Final = 65_536
_COMMAND: Final = (sys.executable, "-P", "-m", "edge_agent.keyholder")


class KeyHolder:
    """Implements `ports.DeviceSigner` with a process of its own. Any thread; one signature at a time."""

    def __init__(
        self,
        place: Callable[[], KeyPlace],
        *,
        command: tuple[str, ...] = _COMMAND,
        idle_ms: int = KEYHOLDER_IDLE_MS,
        timeout_ms: int = KEYHOLDER_MS_MAX,
    ) -> None:
        """Describe the key; no process is started yet.

        Args:
            place: Says which key this device has now; it changes when the key is renewed.
            command: The process's program and arguments.
            idle_ms: When it ends by itself.
            timeout_ms: How long one signature may take; then the process is killed.
        """
        self._place = place
        self._command = command
        self._idle_ms = idle_ms
        self._timeout_ms = timeout_ms
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._refusal: tuple[KeyPlace, EdgeError] | None = None

    @property
    def keyid(self) -> str:
        """See `ports.DeviceSigner.keyid`."""
        return self._place().keyid

    @property
    def algorithm(self) -> str:
        """See `ports.DeviceSigner.algorithm`."""
        return self._place().algorithm

    def sign(self, content: bytes) -> bytes:
        """See `ports.DeviceSigner.sign`.

        Raises:
            EdgeError: `device.key-unusable`, `device.memory-short` when the process cannot be started.
        """
        with self._lock:
            place = self._place()
            if self._refusal is not None and self._refusal[0] == place:
                error = self._refusal[1]
                raise EdgeError(error.code, error.detail, error.hint)
            deadline = time.monotonic() + self._timeout_ms / 1000
            for _ in range(KEYHOLDER_TRIES_MAX):
                answer = self._ask(place, content, deadline)
                if answer is not None:
                    return self._signature(place, answer)
            raise EdgeError("device.key-unusable", "the process that holds the key ends before it answers")

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _ask(self, place: KeyPlace, content: bytes, deadline: float) -> JsonObject | None:
        """The answer, or none when the process has ended instead, which it may do at any time."""
        if self._process is not None and self._process.place != place:
            self._end()
        try:
            if self._process is None:
                self._process = process = _Process(self._command, place)
                told = {"uri": place.uri, "folder": str(place.folder), "idle_ms": self._idle_ms}
                process.tell(dump(told), deadline)
            self._process.tell(dump({"content": base64.b64encode(content).decode("ascii")}), deadline)
            line = self._process.hear(deadline)
        except TimeoutError:
            self._end()
            detail = f"nothing was signed within {self._timeout_ms} ms"
            raise EdgeError("device.key-unusable", detail, "Is the token or TPM that holds the key well?") from None
        except BrokenPipeError:
            line = b""
        except OSError as error:
            self._end()
            raise EdgeError("device.memory-short", f"the process that holds the key cannot start: {error}") from error
        if not line:
            self._end()
            return None
        try:
            return parse_object(line, "the key's answer", KEYHOLDER_LINE_BYTES_MAX)
        except ContractError as error:
            self._end()
            raise EdgeError("internal.bug", f"the process that holds the key says {error.detail}") from None

    def _signature(self, place: KeyPlace, answer: JsonObject) -> bytes:
        if "error" in answer:
            self._end()
            error = _error(answer["error"])
            if answer.get("is_final") is True:
                self._refusal = (place, error)
            raise error
        if answer.get("keyid") != place.keyid:
            self._end()
            raise EdgeError(
                "device.key-unusable",
                f"the key at {place.uri.partition('?')[0]} is another one than this device enrolled with",
                "Enrol the device again: edge-agent enroll --force.",
            )
        return base64.b64decode(str(answer.get("signature")))

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


class _Process:
    """One process and its pipes. Used under the holder's lock, but for the thread that waits for its end."""

    def __init__(self, command: tuple[str, ...], place: KeyPlace) -> None:
        self.place = place
        self._inner = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # an interrupt typed at the agent is for the agent
        )
        if self._inner.stdin is None or self._inner.stdout is None:
            raise BrokenPipeError
        self._stdin, self._stdout = self._inner.stdin, self._inner.stdout
        os.set_blocking(self._stdin.fileno(), False)  # a question may be longer than the pipe
        self._lines = _Lines(self._stdout)
        # It ends by itself; somebody has to take note, or it stays in the list of processes.
        threading.Thread(target=self._inner.wait, name="keyholder", daemon=True).start()

    def tell(self, line: bytes, deadline: float) -> None:
        """Write one line.

        Raises:
            BrokenPipeError: When it has ended.
            TimeoutError: When it did not take the line before the deadline.
        """
        left = memoryview(line + b"\n")
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            while left:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                left = left[os.write(self._stdin.fileno(), left) :]

    def hear(self, deadline: float) -> bytes:
        """Read one line; empty when it has ended.

        Raises:
            TimeoutError: When no line came before the deadline.
        """
        return self._lines.next(deadline)

    def end(self) -> None:
        """Close the pipes and kill it: it holds nothing that could be lost."""
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self._inner.kill()


class _Lines:
    """Lines of a pipe, each awaited until an instant of the monotonic clock."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._rest = b""

    def next(self, deadline: float) -> bytes:
        """The next line; empty at the end of the pipe, and for a line that is too long.

        Raises:
            TimeoutError: When no line came in time.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._source, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                piece = os.read(self._source.fileno(), _PIECE_BYTES)
                if not piece or len(self._rest) > KEYHOLDER_LINE_BYTES_MAX:
                    return b""
                self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _error(value: object) -> EdgeError:
    error = value if isinstance(value, dict) else {}
    code = str(error.get("code"))
    return EdgeError(code if code in CODES else "internal.bug", str(error.get("detail")), str(error.get("hint", "")))


# --- the process's own side -------------------------------------------------------------------------------------------


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer questions until there are none for a while, or the pipe ends, or the key fails.

    Args:
        questions: Lines as the module's text says.
        answers: Gets a line for each.
    """
    lines = _Lines(questions)
    work = json.loads(lines.next(_in(KEYHOLDER_MS_MAX)) or b"null")
    if work is None:
        return
    from edge_agent.keys import PinRefusedError, open_key  # here, so that the parent's side never needs cryptography

    try:
        key = open_key(work["uri"], Path(work["folder"]))
        while line := lines.next(_in(work["idle_ms"])):
            signature = key.sign(base64.b64decode(json.loads(line)["content"]))
            _say(answers, {"keyid": key.keyid, "signature": base64.b64encode(signature).decode("ascii")})
    except TimeoutError:
        return
    except EdgeError as error:
        _say(answers, {"error": error.to_json(), "is_final": isinstance(error, PinRefusedError)})


def _in(wait_ms: int) -> float:
    return time.monotonic() + wait_ms / 1000


def _say(answers: IO[bytes], answer: JsonObject) -> None:
    answers.write(dump(answer) + b"\n")
    answers.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
