"""The first process of a container: hands signals on, buries orphans, and ends as the service ended.

The kernel treats process 1 unlike any other: signals without a handler do nothing to it, and every process whose parent
has ended becomes its child. A model's script may leave such processes behind. Burying them in the service itself would
take the end of workers away from who waits for it, so the service becomes a child, as with any small init.
"""

import os
import signal
from types import FrameType
from typing import Final

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_SIGNALLED: Final = 128


def become_a_child_of_init() -> None:
    """Return at once in an ordinary process. In process 1, return in a child, while process 1 waits for its end.

    Must be called before there are threads.
    """
    if os.getpid() == 1:
        watch_over_a_child()


def watch_over_a_child() -> None:
    """Fork; return in the child. The parent ends with the child's exit code, or 128 and the number of its signal."""
    # Blocked until there is somebody to hand them to: one that comes in between must not be lost.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child == 0:
        # A terminal signals its whole foreground group: without this a Ctrl-C would come twice, and twice means hurry.
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
        return

    def hand_on(signum: int, _frame: FrameType | None) -> None:
        # It is buried by nobody but the loop below, so its id is still its own.
        os.kill(child, signum)

    for number in _PASSED_ON:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, old)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else _SIGNALLED - code)
