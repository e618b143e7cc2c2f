"""A model of a disk that forgets: what was synced, what was not, and what may be left of it after a power cut.

It is fed the calls of a real run. A file keeps the bytes of its last sync, a folder the names of its last sync; what
came after may be there or not, in any combination that a policy allows. That is weaker than any file system in use
promises: what survives here survives on those.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from edge_agent.store import durable
from tests.crash.calls import Call


class Loss(StrEnum):
    """What a power cut takes of what was not synced."""

    ALL = "all"  # every byte and every name
    DATA = "data"  # every byte; names are there (journalled metadata, late data)
    NAMES = "names"  # every name; the bytes are there
    LATEST = "latest"  # changes of names from a drawn one on, and drawn ends of files
    SOME = "some"  # drawn changes of names, and drawn ends of files
    NOTHING = "nothing"  # as after a kill


_SECTOR_BYTES = 512
DRAWN = frozenset({Loss.LATEST, Loss.SOME})


@dataclass
class Node:
    """A file or a folder.

    Attributes:
        number: Its inode number.
        mode: Permission bits.
        data: Bytes as a reader sees them.
        safe: Bytes that survive.
        names: Of a folder: what its names mean to a reader; none for a file.
        safe_names: The names that survive.
        waiting: Changes of names that are not synced: which change it was part of, the name, what it means now.
    """

    number: int
    mode: int
    data: bytes = b""
    safe: bytes = b""
    names: dict[str, Node] | None = None
    safe_names: dict[str, Node] = field(default_factory=dict)
    waiting: list[tuple[int, str, Node | None]] = field(default_factory=list)

    def folder(self) -> dict[str, Node]:
        """The names of a folder."""
        if self.names is None:
            raise NotADirectoryError(f"inode {self.number} is a file")
        return self.names


Tree = dict[str, tuple[int, int, bytes | None]]
"""Inode, mode and bytes (none for a folder) by path."""


class ForgetfulDisk:
    """The model. Used by one thread."""

    def __init__(self, source: Path) -> None:
        """Begin with what lies in a real folder, all of it synced."""
        self._count = 0
        self._change = 0
        self._by_inode: dict[int, Node] = {}
        self.root = self._take_in(source)
        self._by_inode.clear()

    def _take_in(self, path: Path) -> Node:
        found = path.lstat()
        if (known := self._by_inode.get(found.st_ino)) is not None:
            return known
        node = self._new(stat.S_IMODE(found.st_mode), path.is_dir())
        self._by_inode[found.st_ino] = node
        if node.names is not None:
            for item in durable.list_folder(path):
                node.names[item.name] = self._take_in(item)
            node.safe_names = dict(node.names)
        else:
            node.data = node.safe = path.read_bytes()
        return node

    def _new(self, mode: int, is_folder: bool) -> Node:
        self._count += 1
        return Node(self._count, mode, names={} if is_folder else None)

    # -- what calls do ---------------------------------------------------------------------------------------------

    def apply(self, call: Call) -> None:
        """Let one call happen. One that failed or never ended changes nothing."""
        if call.result is None or call.result < 0:
            return
        self._change += 1
        action: Callable[[Call], None] = getattr(self, f"_{_ACTIONS[call.name]}")
        action(call)

    def _open(self, call: Call) -> None:
        parent, name = self._place(call.paths[0])
        if "O_CREAT" in call.flags and name not in parent.folder():
            self._set(parent, name, self._new(call.numbers[-1] if call.numbers else 0o600, False))
        elif "O_TRUNC" in call.flags:
            parent.folder()[name].data = b""

    def _write(self, call: Call) -> None:
        node = self._find(call.paths[0])
        if node is None:
            return  # a file that has no name any more
        data = call.data[: call.result]
        # Every plain write of the agent goes to the end of its file; SQLite says where.
        at = call.numbers[-1] if call.name.startswith("p") else len(node.data)
        node.data = node.data[:at].ljust(at, b"\0") + data + node.data[at + len(data) :]

    def _sync(self, call: Call) -> None:
        node = self._find(call.paths[0])
        if node is None:
            return
        node.safe = node.data
        if node.names is not None:
            node.safe_names = dict(node.names)
            node.waiting.clear()

    def _rename(self, call: Call) -> None:
        source, target = call.paths
        moved = self._find(source)
        if moved is None:
            raise FileNotFoundError(source)
        if moved is self._find(target):
            return  # two names of one file: POSIX leaves both
        self._set(*self._place(source), None)
        self._set(*self._place(target), moved)

    def _link(self, call: Call) -> None:
        source, target = call.paths
        node = self._find(source)
        if node is None:
            raise FileNotFoundError(source)
        self._set(*self._place(target), node)

    def _unlink(self, call: Call) -> None:
        self._set(*self._place(call.paths[0]), None)

    def _mkdir(self, call: Call) -> None:
        self._set(*self._place(call.paths[0]), self._new(call.numbers[-1], True))

    def _truncate(self, call: Call) -> None:
        node = self._find(call.paths[0])
        if node is not None:
            node.data = node.data[: call.numbers[-1]].ljust(call.numbers[-1], b"\0")

    def _mode(self, call: Call) -> None:
        node = self._find(call.paths[0])
        if node is not None:
            node.mode = call.numbers[-1]

    def _nothing(self, call: Call) -> None:
        """It changes nothing that is modelled."""

    def _set(self, parent: Node, name: str, node: Node | None) -> None:
        names = parent.folder()
        if node is None:
            del names[name]
        else:
            names[name] = node
        parent.waiting.append((self._change, name, node))

    def _find(self, path: str) -> Node | None:
        node = self.root
        for part in path.split("/"):
            if part == ".":
                continue
            if node.names is None or part not in node.names:
                return None
            node = node.names[part]
        return node

    def _place(self, path: str) -> tuple[Node, str]:
        above, _, name = path.rpartition("/")
        parent = self._find(above or ".")
        if parent is None:
            raise FileNotFoundError(path)
        return parent, name

    # -- what is left ----------------------------------------------------------------------------------------------

    def after(self, loss: Loss, draw: random.Random) -> Tree:
        """What a power cut at this instant leaves."""
        changes = sorted({change for node in self._nodes() for change, _, _ in node.waiting})
        kept: set[int] = set()
        if loss in (Loss.DATA, Loss.NOTHING):
            kept = set(changes)
        elif loss is Loss.LATEST:
            kept = set(changes[: draw.randint(0, len(changes))])
        elif loss is Loss.SOME:
            kept = {change for change in changes if draw.random() < 0.5}
        bytes_of: dict[int, bytes] = {}
        tree: Tree = {}
        self._leave(self.root, "", loss, kept, draw, bytes_of, tree)
        return tree

    def _leave(
        self,
        folder: Node,
        path: str,
        loss: Loss,
        kept: set[int],
        draw: random.Random,
        bytes_of: dict[int, bytes],
        tree: Tree,
    ) -> None:
        names = dict(folder.safe_names)
        for change, name, node in folder.waiting:
            if change not in kept:
                continue
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node
        for name, node in sorted(names.items()):
            place = f"{path}{name}"
            if node.names is not None:
                tree[place] = (node.number, node.mode, None)
                self._leave(node, f"{place}/", loss, kept, draw, bytes_of, tree)
                continue
            if node.number not in bytes_of:
                bytes_of[node.number] = _bytes_left(node, loss, draw)
            tree[place] = (node.number, node.mode, bytes_of[node.number])

    def _nodes(self) -> Iterator[Node]:
        seen: dict[int, Node] = {}
        todo = [self.root]
        while todo:
            node = todo.pop()
            if node.number in seen:
                continue
            seen[node.number] = node
            if node.names is not None:
                todo += [*node.names.values(), *node.safe_names.values()]
                todo += [item for _, _, item in node.waiting if item is not None]
        return iter(seen.values())


def _bytes_left(node: Node, loss: Loss, draw: random.Random) -> bytes:
    if node.data == node.safe or loss in (Loss.NAMES, Loss.NOTHING):
        return node.data
    if loss not in DRAWN:
        return node.safe
    # Sector by sector the old bytes or the new ones; the length may be there before the bytes are, as zeros.
    length = draw.choice((len(node.safe), len(node.data), draw.randint(*sorted((len(node.safe), len(node.data))))))
    left = bytearray()
    for start in range(0, length, _SECTOR_BYTES):
        end = min(start + _SECTOR_BYTES, length)
        old, new = (data[start:end].ljust(end - start, b"\0") for data in (node.safe, node.data))
        left += old if old == new else draw.choice((old, new))
    return bytes(left)


_ACTIONS = {
    "openat": "open",
    "open": "open",
    "creat": "open",
    "write": "write",
    "pwrite64": "write",
    "fsync": "sync",
    "fdatasync": "sync",
    "rename": "rename",
    "renameat": "rename",
    "renameat2": "rename",
    "link": "link",
    "linkat": "link",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "rmdir": "unlink",
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
    "truncate": "truncate",
    "ftruncate": "truncate",
    "chmod": "mode",
    "fchmod": "mode",
    "fchmodat": "mode",
    "chown": "nothing",
    "fchown": "nothing",
    "fchownat": "nothing",
}
"""What the model does for a call; one that is missing here is an error and not passed over."""


def tree_of(folder: Path) -> Tree:
    """What lies in a real folder, in the model's words; inode numbers are the real ones."""
    tree: Tree = {}
    for path in durable.walk(folder):
        found = path.lstat()
        data = None if path.is_dir() else path.read_bytes()
        tree[str(path.relative_to(folder))] = (found.st_ino, stat.S_IMODE(found.st_mode), data)
    return tree


def contents(tree: Tree) -> dict[str, bytes | None]:
    """Bytes by path."""
    return {path: data for path, (_, _, data) in tree.items()}


def fingerprint(tree: Tree) -> bytes:
    """The same for trees that no program can tell apart but by time."""
    state = hashlib.sha256()
    links: dict[int, int] = {}
    for path, (number, mode, data) in sorted(tree.items()):
        link = links.setdefault(number, len(links))
        content = b"/" if data is None else _digest(data)
        state.update(f"{path}\0{link}\0{mode}\0".encode() + content)
    return state.digest()


@lru_cache(maxsize=4096)
def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Shelf:
    """Writes trees to a real folder quickly: large files are linked from a pool, because nobody writes them."""

    def __init__(self, folder: Path) -> None:
        """Use an empty folder on a file system with hard links."""
        self._pool = folder / "pool"
        self._pool.mkdir(parents=True)

    def put(self, tree: Tree, target: Path) -> None:
        """Write a tree to a folder that does not exist."""
        target.mkdir()
        made: dict[int, Path] = {}
        for path, (number, mode, data) in sorted(tree.items()):
            place = target / path
            if data is None:
                place.mkdir(mode=mode)
            elif number in made:
                os.link(made[number], place)
            else:
                self._put_file(place, number, mode, data)
                made[number] = place

    def _put_file(self, place: Path, number: int, mode: int, data: bytes) -> None:
        if mode & 0o222:
            place.write_bytes(data)
            place.chmod(mode)
            return
        pooled = self._pool / f"{number}-{mode:o}-{hashlib.sha256(data).hexdigest()}"
        if not pooled.exists():
            pooled.write_bytes(data)
            pooled.chmod(mode)
        os.link(pooled, place)
