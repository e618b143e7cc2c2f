"""Threads that take turns on one core.

The interpreter lets one thread run at a time. Where each of several threads computes for a few microseconds, handing
the interpreter to a thread on another core costs more than the computing: waking a core takes 40 us and more in a
virtual machine. Measured with eight clients of a tiny model on two cores: 16,000 answers a second spread over both,
44,000 on one. Linux's scheduler cannot know that and spreads them.
"""

import contextlib
import os


def share_core(is_shared: bool) -> None:
    """Bind the calling thread to the core that such threads of this process share, or let it go wherever it may.

    The core is one of those that the process may use now, another one for neighbouring process ids, so that two workers
    need not meet on it.
    """
    process = os.getpid()
    with contextlib.suppress(OSError):
        allowed = os.sched_getaffinity(process)
        core = sorted(allowed)[process % len(allowed)]
        os.sched_setaffinity(0, {core} if is_shared else allowed)
