"""Full verification of both repositories, with python-tuf: the I/O around the pure rest.

Order: director (root chain, timestamp, snapshot, targets, device), then, only when something is assigned, the image
repository (the same chain, and for each assignment the bin that holds it), then agreement of both.

A repository's timestamp, snapshot and targets are written only when the whole chain has held, for the director
including the name of the device: otherwise metadata of another device, properly signed, would become the measure that
refuses our own. Roots are written one by one as they verify.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tuf.api.metadata import TargetFile

from edge_agent.limits import (
    ROOT_BYTES_MAX,
    ROOT_ROTATIONS_MAX,
    SNAPSHOT_BYTES_MAX,
    TARGETS_BYTES_MAX,
    TIMESTAMP_BYTES_MAX,
)
from edge_agent.ports import Desired
from edge_agent.trust.match import director_assignments, require_agreement
from edge_agent.trust.metastore import MetadataStore
from edge_agent.trust.receipt import Receipt
from edge_agent.trust.source import FetchMetadata
from edge_agent.trust.trusted import TrustedSet
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

_LOG: Final = logging.getLogger(__name__)


class FullVerification:
    """Verifies what a device should run; call it with the time. Used by one thread."""

    def __init__(self, folder: Path, device: str, director: FetchMetadata, image: FetchMetadata) -> None:
        """Put it together; nothing is read yet.

        Args:
            folder: For example `<data>/trust`; `director/` and `image/` below it hold trusted metadata.
            device: Name of this device.
            director: Fetches files of this device's director repository.
            image: Fetches files of the image repository.
        """
        self._device = device
        self._director = _Repository("director", MetadataStore(folder / "director"), director)
        self._image = _Repository("image", MetadataStore(folder / "image"), image)

    def __call__(self, wall_ms: int) -> Receipt:
        """Bring trusted metadata up to date and give what it says.

        Args:
            wall_ms: The time to judge expiry by, milliseconds since 1970.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`, `device.*`.
        """
        director = self._director.refresh(wall_ms)
        assigned = director_assignments(director.targets, self._device)
        self._director.commit()
        fresh_until_ms = director.fresh_until_ms
        image_timestamp: Digest | None = None
        if assigned:
            image = self._image.refresh(wall_ms)
            found = [self._image.find(target.path) for _, target in assigned]
            self._image.commit()
            for (assignment, target), genuine in zip(assigned, found, strict=True):
                require_agreement(assignment, target, genuine)
            fresh_until_ms = min(fresh_until_ms, image.fresh_until_ms)
            image_timestamp = self._image.timestamp
        desired = Desired(director.targets.version, tuple(assignment for assignment, _ in assigned))
        return Receipt(desired, fresh_until_ms, self._director.timestamp, image_timestamp)


class _Repository:
    """One repository during one refresh after the other: fetches, verifies, and writes what has held.

    `timestamp` is the digest of the timestamp that was fetched last.
    """

    def __init__(self, name: str, store: MetadataStore, fetch: FetchMetadata) -> None:
        self.store = store
        self._name = name
        self._fetch_file = fetch
        self._trusted: TrustedSet | None = None
        self.timestamp = Digest.of(b"")
        self._verified: dict[str, bytes] = {}  # by role, in the order they were verified

    def refresh(self, wall_ms: int) -> TrustedSet:
        """The chain from the root to the top-level targets; nothing but roots is written."""
        self._verified = {}
        self._trusted = trusted = self._update_root(wall_ms)
        old = self.store.read("timestamp")
        data = self._require("timestamp.json", TIMESTAMP_BYTES_MAX)
        self.timestamp = Digest.of(data)
        if trusted.update_timestamp(data, old):
            self._verified["timestamp"] = data
        self._update_snapshot(trusted)
        self._update_targets("targets", None)
        return trusted

    def find(self, path: str) -> TargetFile | None:
        """Look a target up through the delegations."""
        trusted = self._current()
        search = trusted.search(path)
        while (step := search.next_role()) is not None:
            role, delegator = step
            if not trusted.has_targets(role, delegator):
                self._update_targets(role, delegator)
            search.take()
        return search.found

    def commit(self) -> None:
        """Write what was verified since `refresh`, and forget delegated metadata nobody asked for."""
        for role, data in self._verified.items():
            self.store.write(role, data)
        self.store.keep_only({"root", "timestamp", *self._verified})

    def _update_root(self, wall_ms: int) -> TrustedSet:
        data = self.store.read("root")
        if data is None:
            raise EdgeError(
                "trust.root-unknown",
                f"this device has no root metadata of the {self._name} repository",
                "Enrol it again: edge-agent enroll --force.",
            )
        trusted = TrustedSet(self._name, data, wall_ms)
        for _ in range(ROOT_ROTATIONS_MAX):
            newer = self._fetch_file(f"{trusted.root.version + 1}.root.json", ROOT_BYTES_MAX)
            if newer is None:
                break
            if trusted.update_root(newer):
                # Before the root: a power cut in between must not leave the old measures beside the new keys.
                self.store.remove("timestamp")
                self.store.remove("snapshot")
            self.store.write("root", newer)
            _LOG.info("%s repository: root version %d is trusted now", self._name, trusted.root.version)
        trusted.require_fresh_root()
        return trusted

    def _update_snapshot(self, trusted: TrustedSet) -> None:
        meta = trusted.timestamp.snapshot_meta
        old = self.store.read("snapshot")
        data = old
        if data is None or not _holds(partial(trusted.update_snapshot, data, old)):
            data = self._require(self._versioned("snapshot", meta.version), _bound(meta.length, SNAPSHOT_BYTES_MAX))
            trusted.update_snapshot(data, old)
        self._verified["snapshot"] = data

    def _update_targets(self, role: str, delegator: str | None) -> None:
        trusted = self._current()
        meta = trusted.targets_meta(role)
        data = self.store.read(role)
        if data is None or not _holds(partial(trusted.update_targets, data, role, delegator)):
            data = self._require(self._versioned(role, meta.version), _bound(meta.length, TARGETS_BYTES_MAX))
            trusted.update_targets(data, role, delegator)
        self._verified[role] = data

    def _versioned(self, role: str, version: int) -> str:
        name = f"{quote(role, safe='')}.json"
        return f"{version}.{name}" if self._current().root.consistent_snapshot else name

    def _require(self, name: str, bytes_max: int) -> bytes:
        data = self._fetch_file(name, bytes_max)
        if data is None:
            raise EdgeError("cloud.unavailable", f"the {self._name} repository does not have {name} yet")
        return data

    def _current(self) -> TrustedSet:
        if self._trusted is None:
            raise RuntimeError("metadata was asked for before it was refreshed")
        return self._trusted


def _holds(update: Callable[[], object]) -> bool:
    """Whether metadata from disk still is what is announced; if not, it is fetched and judged with all its errors."""
    try:
        update()
    except EdgeError:
        return False
    return True


def _bound(length: int | None, bytes_max: int) -> int:
    return bytes_max if length is None else min(length, bytes_max)
