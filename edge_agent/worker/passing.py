"""Which connections this worker gave away and which it got: an agent that comes after one that died in the middle of a
swap puts the two accounts together, so that each connection ends up with exactly one worker.
"""

import contextlib
import os
from collections import deque
from collections.abc import Collection

from edge_agent.worker.limits import ADOPTED_KEPT

Passed = tuple[int, str, bytes]
"""A connection's descriptor, its kind, and bytes that were received on it and not answered."""


class PassedOn:
    """The account of one worker. On the event loop. Connections go by the kernel's number of their socket, which is the
    same in every process.
    """

    def __init__(self) -> None:
        """Have passed on nothing yet."""
        self._limbo: dict[int, Passed] = {}
        self._adopted: deque[int] = deque(maxlen=ADOPTED_KEPT)

    @property
    def limbo(self) -> list[int]:
        """Connections that were given away since this worker began to serve, and may not have arrived."""
        return list(self._limbo)

    @property
    def adopted(self) -> list[int]:
        """Connections that came from other workers."""
        return list(self._adopted)

    def gave_away(self, fd: int, kind: str, pending: bytes) -> None:
        """Note one that is about to leave, and keep a duplicate of it until that is certain."""
        with contextlib.suppress(OSError):  # no descriptor left: it is lost if the agent ends this very moment
            number = _number(fd)
            old = self._limbo.pop(number, None)
            self._limbo[number] = (os.dup(fd), kind, pending)
            if old is not None:
                os.close(old[0])

    def came(self, fd: int) -> None:
        """Note one that came."""
        with contextlib.suppress(OSError):
            self._adopted.append(_number(fd))

    def take_back(self, gone: Collection[int]) -> list[Passed]:
        """Those that nobody got; the caller owns them. The others are closed here."""
        back = [passed for number, passed in self._limbo.items() if number not in gone]
        self._limbo = {number: passed for number, passed in self._limbo.items() if number in gone}
        self.forget()
        return back

    def forget(self) -> None:
        """Let go of what was given away: it has arrived, or its owner has seen to it."""
        for fd, _kind, _pending in self._limbo.values():
            os.close(fd)
        self._limbo.clear()


def _number(fd: int) -> int:
    return os.fstat(fd).st_ino
