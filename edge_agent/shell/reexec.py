"""Makes this process a fresh program with the same process id: an upgrade of the agent that no client notices.

Workers outlive it as they outlive a crash. What lives in this process alone, listening sockets and connections of
clients that wait for a worker, goes along as descriptors that stay open.
"""

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, MutableMapping, Sequence
from typing import Final

from edge_contract.errors import EdgeError

_VARIABLE: Final = "LIGHTERMAN_PASSED"
_PASSED_MAX: Final = 4_096
_BLOCKED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_log = logging.getLogger(__name__)


def reexec(named: Sequence[tuple[str, int]], is_wanted: Callable[[], bool]) -> None:
    """Start the program anew, from whatever is installed now, with the same arguments. Main thread.

    Signals that come before it can handle them wait until `take_signals`.

    Args:
        named: Descriptors to pass on, each with its name.
        is_wanted: Asked once no signal can come in between any more; when it is false, this returns.

    Raises:
        EdgeError: `internal.bug` when the program cannot be started; nothing was passed on then.
    """
    for _name, fd in named:
        os.set_inheritable(fd, True)
    passed = {"pid": os.getpid(), "named": [[name, fd] for name, fd in named]}
    environment = {**os.environ, _VARIABLE: json.dumps(passed)}
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    if not is_wanted():
        take_signals()
        return
    _log.info("starting anew as %s", sys.executable)
    logging.shutdown()
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError as error:
        take_signals()
        raise EdgeError("internal.bug", f"{sys.executable} cannot be started anew: {error.strerror}") from error


def take_signals() -> None:
    """Let signals in again that were held back; once their handlers are there."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)


def take_passed(environment: MutableMapping[str, str]) -> list[tuple[str, int]] | None:
    """Take what the program passed on that this process was before; none when it was none.

    Args:
        environment: The process's own; what is understood is removed.
    """
    text = environment.pop(_VARIABLE, "")
    if not text:
        return None
    try:
        passed = json.loads(text)
        if passed["pid"] != os.getpid():
            return None
        named = [(str(name), int(fd)) for name, fd in passed["named"][:_PASSED_MAX]]
    except (ValueError, KeyError, TypeError):
        return None
    for _name, fd in named:
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
    return named
