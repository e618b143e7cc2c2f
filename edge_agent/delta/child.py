"""The process that decodes: it is given three descriptors, and can open nothing more, no file and no socket.

Beside them it has the kernel's count of idle time, by which it rests (`pacing`). It steps back behind everything else
on the device, is the first to go when memory is short, and ends with its agent. What it reads was verified by the
agent; what it makes will be.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import resource
import threading
import time
from pathlib import Path
from typing import BinaryIO, Final

from edge_agent.delta.frames import ORDER_BYTES_MAX, Frame, Kind, Order
from edge_agent.delta.limits import (
    CPU_BYTES_PER_S_MIN,
    CPU_S_FIRST,
    CPU_S_LAST,
    DATA_SLACK_BYTES,
    LOWEST_PRIORITY,
    STATE_BYTES_MAX,
)
from edge_agent.delta.pacing import Pace
from edge_agent.store import durable
from edge_contract.errors import EdgeError

_INPUT: Final = 0
_OUTPUT: Final = 1
_ERRORS: Final = 2
_FIRST_OURS: Final = 3
_ASIDE: Final = 64
"""Where descriptors lie while they change places; nobody passes so many."""
_FIRST_TO_GO: Final = "1000"
_IOPRIO_SET: Final = {
    ("x86_64", 8): 251,
    ("aarch64", 8): 30,
    ("riscv64", 8): 30,
    ("aarch64", 4): 314,
    ("armv7l", 4): 314,
    ("armv6l", 4): 314,
    ("x86_64", 4): 289,
    ("i686", 4): 289,
}
"""Number of `ioprio_set(2)`, which no library wraps, by machine and size of a pointer in this program."""
_IOPRIO_IDLE: Final = 3 << 13
_IOPRIO_PROCESS: Final = 1


def main() -> None:
    """Do what standard input says; the answer is on standard output."""
    answers = fcntl.fcntl(_OUTPUT, fcntl.F_DUPFD, _ASIDE)
    os.dup2(_ERRORS, _OUTPUT)  # what a library prints is no frame
    order = _read_order()
    _end_with_agent()
    _step_back()
    state = _read_state(order.state_fd)
    files = _take_descriptors(order, answers)
    try:
        _decode(order, state, *files)
    except EdgeError as error:
        last = Frame.of_error(error)
    except MemoryError:
        last = Frame.of_error(EdgeError("device.memory-short", "decoding a delta took more memory than it said"))
    except OSError as error:
        problem = durable.disk_error(error, "decoding a delta")
        if error.errno == errno.EFBIG:
            problem = EdgeError("artifact.delta-invalid", "the delta makes more than it says")
        last = Frame.of_error(problem)
    else:
        last = Frame(Kind.DONE, order.new_bytes, order.new_bytes)
    _answer(last)
    os._exit(0)


def _decode(order: Order, state: bytes, base: BinaryIO, delta: BinaryIO, output: BinaryIO) -> None:
    # Before the limits, because an import opens files.
    from edge_delta.decode import decode

    pace = Pace(_open_load())
    _confine(order)
    lengths = {"base_bytes": order.base_bytes, "new_bytes": order.new_bytes}
    for point in decode(base, delta, output, **lengths, resume=state or None, between=pace):
        output.flush()
        if point.output_bytes < order.new_bytes:
            _answer(Frame(Kind.CHECKPOINT, point.output_bytes, point.verified_bytes, point.data))


def _answer(frame: Frame) -> None:
    durable.write_all(_ANSWERS, frame.to_bytes())


# -- what it is told ---------------------------------------------------------------------------------------------------

_BASE, _DELTA, _MADE, _ANSWERS, _LOAD = range(_FIRST_OURS, _FIRST_OURS + 5)


def _read_order() -> Order:
    """The line. Nothing is read ahead: whoever wrote it holds the other end until it ends."""
    line = b""
    while not line.endswith(b"\n") and len(line) < ORDER_BYTES_MAX:
        more = os.read(_INPUT, 1)
        if not more:
            os._exit(1)  # the agent is gone
        line += more
    return Order(**json.loads(line))


def _read_state(number: int) -> bytes:
    with open(number, "rb", closefd=False) as file:
        file.seek(0)
        return file.read(STATE_BYTES_MAX)


def _take_descriptors(order: Order, answers: int) -> tuple[BinaryIO, BinaryIO, BinaryIO]:
    """Have them directly behind the standard ones, so that a limit on their number leaves no room for another."""
    given = (order.base_fd, order.delta_fd, order.output_fd, answers)
    aside = [fcntl.fcntl(number, fcntl.F_DUPFD, _ASIDE) for number in given]
    for place, number in enumerate(aside, _FIRST_OURS):
        os.dup2(number, place)
    os.closerange(_ANSWERS + 1, max(*order.descriptors, *aside) + 1)
    for number in (_BASE, _DELTA, _MADE):
        os.lseek(number, 0, os.SEEK_SET)
    return os.fdopen(_BASE, "rb"), os.fdopen(_DELTA, "rb"), os.fdopen(_MADE, "r+b")


# -- how modest it is --------------------------------------------------------------------------------------------------


def _end_with_agent() -> None:
    def watch() -> None:
        os.read(_INPUT, 1)
        os._exit(1)

    threading.Thread(target=watch, name="agent-watch", daemon=True).start()


def _step_back() -> None:
    """Let everything else go first. Where the kernel does not let us, we are no more polite than others."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST_PRIORITY)
    for name, value in (("oom_score_adj", _FIRST_TO_GO), ("autogroup", str(LOWEST_PRIORITY))):
        with contextlib.suppress(OSError):
            # A session of its own is a group of its own to the scheduler, in which `nice` alone would say nothing.
            Path("/proc/self", name).write_text(value, encoding="ascii")
    number = _IOPRIO_SET.get((platform.machine(), ctypes.sizeof(ctypes.c_void_p)))
    if number is not None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).syscall(number, _IOPRIO_PROCESS, 0, _IOPRIO_IDLE)


def _open_load() -> int:
    """The kernel's counts of what the processors do, for the time when nothing can be opened any more."""
    try:
        number = os.open("/proc/stat", os.O_RDONLY)
    except OSError:
        number = os.open(os.devnull, os.O_RDONLY)  # says nothing, so that we rest; and takes the place
    if number != _LOAD:
        os.dup2(number, _LOAD)
        os.close(number)
    return _LOAD


def _confine(order: Order) -> None:
    """Bound what it may use from here on, whatever the delta makes it do."""
    cpu_s = CPU_S_FIRST + order.new_bytes // CPU_BYTES_PER_S_MIN + int(time.process_time())
    with contextlib.suppress(OSError, ValueError):
        # The harder bound later: at that the kernel kills, which the agent would take for a lack of memory.
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + CPU_S_LAST))
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, _data_bytes() + order.peak_bytes + DATA_SLACK_BYTES),
        (resource.RLIMIT_FSIZE, order.new_bytes),
        (resource.RLIMIT_NOFILE, _LOAD + 1),
        (resource.RLIMIT_NPROC, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # a tighter bound is in force already
            resource.setrlimit(limit, (value, value))


def _data_bytes() -> int:
    """Memory of its own that this process has by now; what `RLIMIT_DATA` counts (setrlimit(2))."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
