"""One TUF repository as a client sees it: fetches, verifies, and keeps on disk what has held."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from edge_agent.limits import (
    ROOT_BYTES_MAX,
    ROOT_ROTATIONS_MAX,
    SNAPSHOT_BYTES_MAX,
    TARGETS_BYTES_MAX,
    TIMESTAMP_BYTES_MAX,
)
from edge_agent.trust.metastore import MetadataStore, encoded
from edge_agent.trust.source import FetchMetadata
from edge_agent.trust.target import Target
from edge_agent.trust.timefloor import SignedTime, Times
from edge_agent.trust.trusted import TrustedSet
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

_ENROL: Final = "Enrol it again: edge-agent enroll --force."
_LOG: Final = logging.getLogger(__name__)


class Repository:
    """One repository during one refresh after the other. Used by one thread.

    Attributes:
        timestamp: Digest of the timestamp that was fetched last, as it was served.
    """

    def __init__(
        self, name: str, store: MetadataStore, fetch: FetchMetadata, *, is_eager: bool = False, hint: str = _ENROL
    ) -> None:
        """Put it together; nothing is read yet.

        Args:
            name: Name for messages, and the one under which `Times` knows it: "director" or "image".
            store: Where trusted metadata is kept.
            fetch: Fetches files of the repository.
            is_eager: Write every piece as it is verified, as the TUF specification does; otherwise `commit` writes
                all but roots, when the whole chain has held and nothing else speaks against it.
            hint: What to do when there is no root.
        """
        self.timestamp = Digest.of(b"")
        self._name = name
        self._store = store
        self._fetch_file = fetch
        self._is_eager = is_eager
        self._hint = hint
        self._trusted: TrustedSet | None = None
        self._verified: dict[str, bytes] = {}  # by role, in the order they were verified

    def refresh(self, times: Times) -> TrustedSet:
        """Verify the chain from the root to the top-level targets.

        Args:
            times: What to judge expiry by.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`, `device.*`.
        """
        self._verified = {}
        self._trusted = None
        trusted = self._update_root()
        trusted.begin(times.of(self._name, trusted.timestamp_keys))
        self._trusted = trusted
        old = self._store.read("timestamp")
        data = self._require("timestamp.json", TIMESTAMP_BYTES_MAX)
        self.timestamp = Digest.of(data)
        if trusted.update_timestamp(data, old):
            self._take("timestamp", data)
        self._update_snapshot(trusted)
        self._update_targets("targets", None)
        return trusted

    def find(self, path: str) -> Target | None:
        """Look a target up through the delegations.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`, `device.*`.
        """
        trusted = self._current()
        search = trusted.search(path)
        while (step := search.next_role()) is not None:
            role, delegator = step
            if not trusted.has_targets(role, delegator):
                self._update_targets(role, delegator)
            search.take()
        return search.found

    def commit(self) -> None:
        """Write what was verified since `refresh`, and forget delegated metadata nobody asked for.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`.
        """
        for role, data in self._verified.items():
            self._store.write(role, data)
        self._store.keep_only({"root", "timestamp", *self._verified})

    @property
    def signed_time(self) -> SignedTime:
        """When the trusted timestamp says it was signed, 0 if it says nothing to believe, and whose word that is."""
        trusted = self._current()
        return SignedTime(trusted.signed_ms or 0, trusted.timestamp_keys)

    def _update_root(self) -> TrustedSet:
        trusted = self._stored_root()
        for _ in range(ROOT_ROTATIONS_MAX):
            newer = self._fetch_file(f"{trusted.root.version + 1}.root.json", ROOT_BYTES_MAX)
            if newer is None:
                break
            if trusted.update_root(newer):
                # Before the root: a power cut in between must not leave the old measures beside the new keys. What the
                # new keys did not sign is none, and stays until something takes its place.
                for role in ("timestamp", "snapshot"):
                    if trusted.is_measure(role, self._store.read(role)):
                        self._store.remove(role)
            self._store.write("root", newer)
            _LOG.info("%s repository: root version %d is trusted now", self._name, trusted.root.version)
        return trusted

    def _stored_root(self) -> TrustedSet:
        """Begin with the newest root on disk; if that is damaged, with the very first, from which the walk goes on."""
        newest, first = self._store.read("root"), self._store.first_root()
        if newest is not None:
            try:
                return TrustedSet(self._name, newest)
            except EdgeError:
                if first is None or first == newest:
                    raise
        if first is None:
            raise EdgeError(
                "trust.root-unknown", f"there is no root metadata of the {self._name} repository here", self._hint
            )
        _LOG.warning("%s repository: the root on disk is damaged, beginning with the first one", self._name)
        trusted = TrustedSet(self._name, first)
        self._store.write("root", first)
        return trusted

    def _update_snapshot(self, trusted: TrustedSet) -> None:
        meta = trusted.timestamp.snapshot_meta
        old = self._store.read("snapshot")
        data = old
        if data is None or not _holds(partial(trusted.update_snapshot, data, old)):
            data = self._require(self._versioned("snapshot", meta.version), _bound(meta.length, SNAPSHOT_BYTES_MAX))
            trusted.update_snapshot(data, old)
        self._take("snapshot", data)

    def _update_targets(self, role: str, delegator: str | None) -> None:
        trusted = self._current()
        meta = trusted.targets_meta(role)
        data = self._store.read(role)
        if data is None or not _holds(partial(trusted.update_targets, data, role, delegator)):
            data = self._require(self._versioned(role, meta.version), _bound(meta.length, TARGETS_BYTES_MAX))
            trusted.update_targets(data, role, delegator)
        self._take(role, data)

    def _take(self, role: str, data: bytes) -> None:
        self._verified[role] = data
        if self._is_eager:
            self._store.write(role, data)

    def _versioned(self, role: str, version: int) -> str:
        name = f"{encoded(role)}.json"
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
