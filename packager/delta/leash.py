"""Ends a process with the one that started it, also when that was killed and could end nothing itself."""

import os
import signal
import threading


def follow_input(ends_group: bool = False) -> None:
    """End this process when its standard input ends: whoever started it holds the other end, and writes no more.

    What runs here afterwards finds an empty standard input.

    Args:
        ends_group: End the whole process group, which has to be one of its own.
    """
    leash = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)

    def watch() -> None:
        os.read(leash, 1)
        if ends_group:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="leash", daemon=True).start()
