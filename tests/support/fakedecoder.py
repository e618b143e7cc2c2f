"""A decoder that does what its delta says, in the process that ships: everything but `edge_delta.decode` is real.

A delta is JSON: `{"new": hex, "stop": place, "how": what happens there}`; a checkpoint comes every `STEP` bytes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from edge_contract.delta import Delta
from edge_contract.digest import Digest

STEP = 1_000
COMMAND = (sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
           "from tests.support.fakedecoder import main; main()")  # fmt: skip


def fake_delta(base: bytes, new: bytes, stop: int = -1, how: str = "") -> tuple[Delta, bytes]:
    """A delta as metadata name it, and its bytes.

    Args:
        base: What it starts from.
        new: What it makes.
        stop: Where something happens; never when negative.
        how: What: `invalid`, `exit`, `kill`, `hang`, `busy`, `spin` (until its time is up), `memory`, `file`, `socket`,
            `long`, `print`, `garbage`.
    """
    data = json.dumps({"new": new.hex(), "stop": stop, "how": how}).encode()
    found = Delta(Digest.of(base), len(base), Digest.of(new), len(new), Digest.of(data), 1, 1_000_000)
    return Delta(**{**{name: getattr(found, name) for name in found.__slots__}, "bytes": len(data)}), data


def decode(
    base: BinaryIO,
    delta: BinaryIO,
    output: BinaryIO,
    *,
    base_bytes: int,
    new_bytes: int,
    resume: bytes | None = None,
    between: Callable[[], None] = lambda: None,
) -> Iterator[Any]:
    """Like `edge_delta.decode.decode`."""
    from edge_delta.decode import Checkpoint

    assert len(base.read()) == base_bytes
    said = json.loads(delta.read())
    new, place = bytes.fromhex(said["new"]), int(resume or b"0")
    assert output.read() == new[:place], "the output is not cut to the checkpoint"
    while place < len(new):
        between()
        if 0 <= said["stop"] <= place:
            new = _happen(said["how"], new)
        output.write(new[place : place + STEP])
        place = min(place + STEP, len(new))
        # As the real one: what is vouched for lags behind.
        yield Checkpoint(place, place if place == len(new) else place - place % (2 * STEP), str(place).encode())


def _happen(how: str, new: bytes) -> bytes:
    from edge_delta.errors import DeltaError

    if how == "invalid":
        raise DeltaError("the test says so")
    if how == "exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(3600)
    if how in ("busy", "spin"):
        _spin(is_bounded=how == "spin")
    if how == "memory":
        held = [bytearray(1_000_000) for _ in range(1_000)]
        raise AssertionError(f"{len(held)} MB were to be had")
    if how == "file":
        Path("/etc/hostname").read_bytes()
    if how == "socket":
        socket.socket().close()
    if how == "print":
        sys.stdout.write("a library says something\n")
        sys.stdout.flush()
    if how == "garbage":
        os.write(6, b"this is no frame of any kind")
    if how == "wrong":
        return b"\0" * len(new)
    if how == "long":
        return new + b"more" * 1_000
    return new


def _spin(is_bounded: bool) -> None:
    if is_bounded:
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1, hard))
    while True:
        sum(range(100_000))


def main() -> None:
    """The process."""
    import edge_delta.decode
    from edge_agent.delta.child import main as child

    edge_delta.decode.decode = decode
    child()
