"""What processes cost, as Linux counts it: processor time and memory of a process and everything below it."""

import os
import socket
import time
from pathlib import Path

_PROC = Path("/proc")


def tree(pid: int) -> list[int]:
    """A process and all its descendants that live now."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            try:
                text = (entry / "stat").read_text(encoding="ascii", errors="replace")
            except OSError:
                continue
            children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, new = [], [pid]
    while new:
        found += new
        new = [child for parent in new for child in children.get(parent, [])]
    return found


def cpu_ms(pid: int) -> float:
    """Processor time of the processes of the tree, ended threads included, to the nanosecond; milliseconds."""
    total = 0
    for process in tree(pid):
        try:
            # The clock that clock_getcpuclockid(3) gives for a process.
            total += time.clock_gettime_ns((~process << 3) | 2)
        except OSError:
            continue
    return total / 1e6


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident and proportional memory (RSS, PSS) of the tree, MB of 1,048,576 bytes."""
    resident = proportional = 0
    for process in tree(pid):
        try:
            lines = (_PROC / str(process) / "smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("Rss:"):
                resident += int(line.split()[1])
            elif line.startswith("Pss:"):
                proportional += int(line.split()[1])
    return resident / 1024, proportional / 1024


def free_port() -> int:
    """A port of this host that nobody listened on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))
