"""Deltas of a fleet in one process: each is decoded once, whichever device comes first, and the others take a copy.

Devices that hold the same base get the same delta: a thousand of them would decode the same bytes a thousand times on
one machine. All the rest, from the choice to the comparison with the signed digest, each device does itself.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_agent.delta.process import ChildDecoding, Decoding, OnCheckpoint, Work
from edge_agent.store import durable
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

KEPT_MAX: Final = 64
"""Outputs kept; of more, the one that was made first goes. A fleet updates from a few versions at a time."""
_POLL_S: Final = 0.1


class SharedDecoding:
    """Implements `edge_agent.delta.process.Decoding` for many devices. Any thread."""

    def __init__(self, folder: Path, decode: Decoding | None = None) -> None:
        """Keep what was decoded in a folder that is this fleet's own; what is in it goes.

        Args:
            folder: On the disk of the devices.
            decode: Decodes; in a process of its own when none.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._decode = decode or ChildDecoding()
        self._lock = threading.Lock()  # guards the next two
        self._turns: dict[Digest, threading.Lock] = {}
        self._failed: dict[Digest, EdgeError] = {}
        self.decoded = 0

    def __call__(self, work: Work, on_checkpoint: OnCheckpoint, is_cancelled: Callable[[], bool]) -> None:
        """See `Decoding`. There are no checkpoints: what another device decoded is here at once."""
        del on_checkpoint
        digest = work.delta.digest
        with self._lock:
            turn = self._turns.setdefault(digest, threading.Lock())
        while not turn.acquire(timeout=_POLL_S):
            if is_cancelled():
                raise EdgeError("network.cut", "decoding a delta was cancelled")
        try:
            with durable.disk_errors("taking what another device decoded"):
                self._copy(self._made(work, is_cancelled), work.output_fd)
        finally:
            turn.release()

    def close(self) -> None:
        """Remove what was kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _made(self, work: Work, is_cancelled: Callable[[], bool]) -> Path:
        """The output, made if it is not there; its delta's turn is the caller's."""
        digest = work.delta.digest
        path = self._folder / digest.hex
        if path.is_file():
            return path
        if (before := self._failed.get(digest)) is not None:
            raise EdgeError(before.code, before.detail, before.hint)
        making = path.with_suffix(".making")
        with making.open("w+b") as output:
            alone = Work(work.delta, work.base_fd, work.delta_fd, output.fileno())
            try:
                self._decode(alone, lambda *_: None, is_cancelled)
            except EdgeError as error:
                if not is_cancelled():
                    self._failed[digest] = error
                raise
        making.replace(path)
        with self._lock:
            self.decoded += 1
            kept = sorted(self._folder.glob("*"), key=lambda item: item.stat().st_mtime_ns)
            for old in [item for item in kept if not item.suffix][:-KEPT_MAX]:
                old.unlink(missing_ok=True)
        return path

    @staticmethod
    def _copy(source: Path, output_fd: int) -> None:
        os.ftruncate(output_fd, 0)
        os.lseek(output_fd, 0, os.SEEK_SET)
        with source.open("rb") as file, open(output_fd, "wb", closefd=False) as output:
            shutil.copyfileobj(file, output)
