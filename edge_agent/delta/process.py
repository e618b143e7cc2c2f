"""The agent's side of the process that decodes: starts it, takes its checkpoints, ends it. One thread at a time."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Final, Protocol

from edge_agent.delta.frames import Frame, FrameReader, Kind, Order
from edge_agent.delta.limits import END_MS_MAX, HEAP_STEP_BYTES, POLL_MS, READ_BYTES, STALL_MS_MAX
from edge_agent.serving.environment import worker_environment
from edge_agent.store import durable
from edge_contract.delta import Delta
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import dump

_COMMAND: Final = (sys.executable, "-P", "-m", "edge_agent.delta")
_ONE_THREAD: Final = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1"
)
DECODER_ENVIRONMENT: Final = {**_ONE_THREAD, "MALLOC_TOP_PAD_": str(HEAP_STEP_BYTES)}
"""A BLAS of several threads spins where it should wait; the decoder's products are small. And glibc gives memory back
to the kernel a little at a time unless it is told to keep some, which costs small deltas a quarter of their time."""

OnCheckpoint = Callable[[int, int, bytes], None]
"""Takes (output bytes, verified bytes, decoder's state) of what is flushed; makes it durable before it returns."""


@dataclass(frozen=True, slots=True)
class Work:
    """One decoding, from its beginning or from a checkpoint.

    Attributes:
        delta: What is decoded.
        base_fd: The base, verified through this descriptor.
        delta_fd: The delta, likewise.
        output_fd: What has been made so far, for reading and writing; cut to where the checkpoint is.
        state: The decoder's state there; empty at the beginning.
    """

    delta: Delta
    base_fd: int
    delta_fd: int
    output_fd: int
    state: bytes = b""


class Decoding(Protocol):
    """Decodes a delta into a file."""

    def __call__(self, work: Work, on_checkpoint: OnCheckpoint, is_cancelled: Callable[[], bool]) -> None:
        """Write all of the output; nobody has compared its digest when this returns.

        Raises:
            EdgeError: `artifact.delta-invalid`, `device.*`, `internal.*`; `network.cut` when cancelled.
        """
        ...


class ChildDecoding:
    """Implements `Decoding` with a process of its own, which has numpy and zstandard and nothing else of the agent."""

    def __init__(
        self,
        command: tuple[str, ...] = _COMMAND,
        stall_ms: int = STALL_MS_MAX,
        environment: Mapping[str, str] = os.environ,
        on_start: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Describe the process; none is started yet.

        Args:
            command: Its program and arguments.
            stall_ms: How long it may come to no further checkpoint before it is given up.
            environment: What is passed on of it is what a worker gets.
            on_start: Told the process's number before that has anything to do.
        """
        self._command = command
        self._stall_ms = stall_ms
        self._environment = environment
        self._on_start = on_start

    def __call__(self, work: Work, on_checkpoint: OnCheckpoint, is_cancelled: Callable[[], bool]) -> None:
        """See `Decoding`."""
        with contextlib.ExitStack() as stack:
            try:
                state_fd = stack.enter_context(_in_memory(work.state))
                order = Order(work.base_fd, work.delta_fd, work.output_fd, state_fd, *_figures(work.delta))
                process = self._start(order)
            except OSError as error:
                raise EdgeError("device.memory-short", f"decoding a delta could not begin: {error}") from error
            told, said = stack.enter_context(_ended(process))
            self._on_start(process.pid)
            with contextlib.suppress(BrokenPipeError):  # what became of it is seen below
                durable.write_all(told.fileno(), dump(order.to_json()) + b"\n")
            self._follow(process, said, work.delta, on_checkpoint, is_cancelled)

    def _start(self, order: Order) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=order.descriptors,
            env={**worker_environment(self._environment), **DECODER_ENVIRONMENT},
            start_new_session=True,  # an interrupt typed at the agent is for the agent
        )

    def _follow(
        self,
        process: subprocess.Popen[bytes],
        said: IO[bytes],
        delta: Delta,
        on_checkpoint: OnCheckpoint,
        is_cancelled: Callable[[], bool],
    ) -> None:
        frames, output_bytes = FrameReader(), 0
        stalls_at = time.monotonic() + self._stall_ms / 1000
        while True:
            frame = _next(said, frames, is_cancelled, stalls_at)
            if frame is None:
                raise _crashed(process)
            if frame.kind is not Kind.CHECKPOINT:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_MS_MAX / 1000)  # that was its last word
            if frame.kind is Kind.ERROR:
                raise frame.error()
            if frame.kind is Kind.DONE:
                return
            if not output_bytes < frame.output_bytes < delta.new_bytes or frame.verified_bytes > frame.output_bytes:
                raise EdgeError("internal.bug", f"a decoder came from byte {output_bytes} to {frame.output_bytes}")
            output_bytes = frame.output_bytes
            on_checkpoint(output_bytes, frame.verified_bytes, frame.data)
            stalls_at = time.monotonic() + self._stall_ms / 1000


def _figures(delta: Delta) -> tuple[int, int, int]:
    return delta.base_bytes, delta.new_bytes, delta.peak_bytes


def _next(said: IO[bytes], frames: FrameReader, is_cancelled: Callable[[], bool], stalls_at: float) -> Frame | None:
    """The next frame; none when the process has ended without one.

    Raises:
        EdgeError: `network.cut` when cancelled, `device.step-overdue`, `internal.bug`.
    """
    poller = select.poll()
    poller.register(said, select.POLLIN)
    while True:
        try:
            frame = frames.next()
        except ContractError as error:
            raise EdgeError("internal.bug", error.detail) from None
        if frame is not None:
            return frame
        if is_cancelled():
            raise EdgeError("network.cut", "decoding a delta was cancelled")
        if time.monotonic() > stalls_at:
            raise EdgeError("device.step-overdue", "decoding a delta came to no further checkpoint in time")
        if poller.poll(POLL_MS):
            data = said.read(READ_BYTES)
            if not data:
                return None
            frames.feed(data)


def _crashed(process: subprocess.Popen[bytes]) -> EdgeError:
    try:
        code = process.wait(END_MS_MAX / 1000)
    except subprocess.TimeoutExpired:
        return EdgeError("internal.bug", "the process that decodes a delta hangs at its end")
    if code == -signal.SIGKILL:
        return EdgeError("device.memory-short", "the process that decodes a delta was killed")
    if code == -signal.SIGXCPU:
        return EdgeError("device.step-overdue", "decoding a delta took more processor time than it may")
    return EdgeError("internal.bug", f"the process that decodes a delta ended with exit code {code}")


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The process's standard input and output; when the block ends, so does it."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin as told, process.stdout as said:
            try:
                yield told, said
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
    finally:
        process.wait()


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    """A descriptor that reads these bytes: a pipe would have to wait for whoever reads it."""
    number = os.memfd_create("decoding", os.MFD_CLOEXEC)
    try:
        durable.write_all(number, data)
        yield number
    finally:
        os.close(number)
