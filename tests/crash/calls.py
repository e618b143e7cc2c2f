"""What strace wrote of a process, as calls that change files below one folder."""

from __future__ import annotations

import codecs
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CHANGING = tuple(
    name
    for names in (
        "openat open creat write pwrite64 writev pwritev pwritev2 fsync fdatasync sync_file_range copy_file_range",
        "rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat mkdir mkdirat rmdir sendfile",
        "truncate ftruncate fallocate chmod fchmod fchmodat chown fchown fchownat",
    )
    for name in names.split()
)
"""Every system call that changes what a folder holds, or opens a file for that."""

TRACED = ",".join(f"?{name}" for name in CHANGING)
"""For `strace -e trace=`; the question marks let it pass over names that this machine's kernel does not have."""

_OPENING = frozenset({"openat", "open", "creat"})
_WRITABLE = re.compile(r"O_(?:WRONLY|RDWR|CREAT|TRUNC)\b")
_BEGUN = re.compile(r"^(\d+) +(\w+)\((.*)$", re.DOTALL)
_UNFINISHED = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$", re.DOTALL)
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_RESULT = re.compile(r"^(.*)\) += (-?\d+|\?)(.*)$", re.DOTALL)
_TOKEN = re.compile(
    r'"((?:[^"\\]|\\.)*)"(\.\.\.)?|(-?\d+|AT_FDCWD)<((?:[^>\\]|\\.)*)>(\(deleted\))?|(-?\d+|[A-Z_|0-9]+)'
)
_KILLED = re.compile(r"^(\d+) +\+\+\+ killed by SIGKILL \+\+\+$")


@dataclass(frozen=True)
class Call:
    """One call below the folder.

    Attributes:
        thread: Identifier of the thread that made it.
        name: Of the system call.
        paths: What it names, relative to the folder and without an open descriptor's "deleted": one path, or source
            and target.
        folder: For calls relative to an open folder: that folder, else empty.
        data: What it writes.
        numbers: Its plain numbers, in order (length, offset, mode).
        flags: The words among its arguments.
        result: What it returned, none when it never did.
        is_injected: Whether strace made that up.
    """

    thread: int
    name: str
    paths: tuple[str, ...]
    folder: str
    data: bytes
    numbers: tuple[int, ...]
    flags: str
    result: int | None
    is_injected: bool

    @property
    def is_changing(self) -> bool:
        """Whether it changes something, or opens a file for that."""
        return self.name not in _OPENING or self.name == "creat" or bool(_WRITABLE.search(self.flags))

    @property
    def filters(self) -> tuple[str, ...]:
        """Paths that `strace -P` finds it by."""
        return (self.folder,) if self.folder else self.paths


def read_calls(log: Path, below: Path) -> list[Call]:
    """The calls of a log that concern a folder, in the order in which they were finished."""
    return [call for call in (_call(line, str(below)) for line in _whole_lines(log)) if call is not None]


def killed_threads(log: Path) -> set[int]:
    """Threads that SIGKILL ended."""
    with log.open(encoding="latin-1") as lines:
        return {int(found[1]) for found in map(_KILLED.match, (line.rstrip("\n") for line in lines)) if found}


def _whole_lines(log: Path) -> Iterator[str]:
    """Every call on a line of its own, begun and resumed halves put together; those that never ended come last."""
    open_calls: dict[str, tuple[str, str]] = {}
    with log.open(encoding="latin-1", newline="\n") as lines:
        for raw in lines:
            line = raw.rstrip("\n")
            if found := _UNFINISHED.match(line):
                open_calls[found[1]] = (found[2], found[3])
            elif found := _RESUMED.match(line):
                name, start = open_calls.pop(found[1], (found[2], ""))
                yield f"{found[1]} {name}({start}{found[3]}"
            elif _BEGUN.match(line):
                yield line
    for thread, (name, start) in open_calls.items():
        yield f"{thread} {name}({start}) = ?"


def _call(line: str, below: str) -> Call | None:
    begun = _BEGUN.match(line)
    if begun is None or begun[2] not in CHANGING or below not in line:
        return None
    ended = _RESULT.match(begun[3])
    if ended is None:
        return None
    name = begun[2]
    texts: list[bytes] = []
    opened: list[str] = []
    numbers: list[int] = []
    flags: list[str] = []
    for text, cut, _number, path, _deleted, word in _TOKEN.findall(ended[1]):
        if path or _number:
            opened.append(_text(path).decode())
        elif word:
            if word.lstrip("-").isdigit():
                numbers.append(int(word, 8) if word.startswith("0") else int(word))
            else:
                flags.append(word)
        else:
            if cut:
                raise ValueError(f"strace cut a string short; it needs a larger -s: {line[:200]}")
            texts.append(_text(text))
    is_writing = "write" in name
    folder, paths = "", opened[:1] if is_writing or not texts else []
    if not paths:
        paths = [item.decode() for item in texts]
        if name.endswith(("at", "at2")) and not paths[0].startswith("/"):
            folder = opened[0]
            paths = [f"{folder}/{item}" if not item.startswith("/") else item for item in paths]
    inside = [item for item in paths if item == below or item.startswith(f"{below}/")]
    if not inside:
        return None
    result = None if ended[2] == "?" else int(ended[2])
    return Call(
        thread=int(begun[1]),
        name=name,
        paths=tuple(_relative(item, below) for item in paths),
        folder=_relative(folder, below) if folder else "",
        data=texts[0] if is_writing and texts else b"",
        numbers=tuple(numbers),
        flags="|".join(flags),
        result=result,
        is_injected="INJECTED" in ended[3],
    )


def _relative(path: str, below: str) -> str:
    return path.removeprefix(below).removeprefix("/") or "."


def _text(escaped: str) -> bytes:
    """A string as strace prints it, in C's escapes."""
    decoded: bytes = codecs.escape_decode(escaped.encode("latin-1"))[0]
    return decoded


@dataclass(frozen=True)
class Point:
    """One moment of a run: the nth call of its name that a thread makes on a path, just before it is carried out.

    Attributes:
        call: Name of the system call.
        path: What `strace -P` is told, relative to the folder.
        number: From 1, counted among the calls of one thread that the path selects.
        what: The call for people, and to compare with the one that was hit.
    """

    call: str
    path: str
    number: int
    what: str


def points_of(calls: Iterable[Call]) -> list[Point]:
    """A point for every changing call, in order.

    Two threads that make the same call on the same path share its points, because strace cannot tell them apart: the
    first to come there is struck. That concerns the syncs of a few folders, at the start and later.
    """
    counts: dict[tuple[int, str, str], int] = defaultdict(int)
    points: dict[Point, None] = {}
    for call in calls:
        for path in call.filters:
            counts[call.thread, call.name, path] += 1
        if call.is_changing and call.result is not None:
            path = _rarest(call)
            points.setdefault(Point(call.name, path, counts[call.thread, call.name, path], describe(call)))
    return list(points)


def describe(call: Call) -> str:
    """A call for people, the same in every run.

    In which order a folder's names are removed is the file system's choice, so the name is left out there.
    """
    if call.folder:
        return f"{call.name} in {call.folder}"
    size = f" ({len(call.data)} bytes)" if call.data else ""
    return f"{call.name} {' -> '.join(call.paths)}{size}"


def _rarest(call: Call) -> str:
    """The one of the paths that fewest calls share: the temporary one, or what is renamed."""
    if call.name.startswith("rename") and not call.folder:
        return call.paths[0]
    return next((path for path in call.filters if ".tmp-" in path or path.startswith("partial")), call.filters[-1])
