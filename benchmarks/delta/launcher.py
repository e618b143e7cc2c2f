"""Runs one program and tells what it cost.

    python -S -E launcher.py RESULT PROGRAM [ARGUMENT ...]

A process of its own, small, because Linux counts what a process held before it became another program into the peak
of the other; so nothing but the standard library's smallest parts is imported here.
"""

import os
import sys


def main() -> None:
    """Write status, processor seconds, peak of resident memory (bytes) to the file RESULT, a line each."""
    result, command = sys.argv[1], sys.argv[2:]
    pid = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    lines = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    with open(result, "w", encoding="ascii") as file:
        file.write("\n".join(str(line) for line in lines))


if __name__ == "__main__":
    main()
