"""The TUF image repository: authors sign targets and bins, the server signs snapshot and timestamp (ADR 0008).

Every document lies in the metadata table under its consistent-snapshot name without `.json` (`3.root`, `7.bins-0a`);
`root` and `timestamp` are the current ones. Every change replaces `timestamp`, and expects the one it was made from:
of two publishes at the same moment one is refused, and a reader never sees half of either.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from cloud_registry.adapters import tuf_rules
from cloud_registry.adapters.tuf_keys import DIRECTOR, IMAGE, OnlineKeys
from cloud_registry.limits import (
    METADATA_ATTEMPTS_MAX,
    METADATA_HISTORY,
    PARSED_BINS_MAX,
    SNAPSHOT_LIFE_MS,
    TARGETS_BYTES_MAX,
    TIMESTAMP_LIFE_MS,
)
from cloud_registry.ports import Clock, ImageTarget, MetadataRow, MetadataTable
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_ROOT: Final = Root.type
_TARGETS: Final = Targets.type
_SNAPSHOT: Final = Snapshot.type
_TIMESTAMP: Final = Timestamp.type
_TIMESTAMP_FILE: Final = f"{_TIMESTAMP}.json"


@dataclass(frozen=True, slots=True)
class _Current:
    """The repository at one timestamp; immutable.

    Attributes:
        timestamp_version: Version of the timestamp, 0 before the first.
        root_version: Version of the root.
        root: The current root.
        snapshot: The current snapshot, or none before the first targets.
        targets: The current top-level targets, or none.
    """

    timestamp_version: int
    root_version: int
    root: Root
    snapshot: Snapshot | None
    targets: Targets | None

    def version_of(self, role: str) -> int:
        """Version of targets or a bin, 0 when there is none."""
        meta = None if self.snapshot is None else self.snapshot.meta.get(f"{role}.json")
        return 0 if meta is None else meta.version

    @property
    def versions(self) -> dict[str, int]:
        """Version of targets and every bin."""
        meta = {} if self.snapshot is None else self.snapshot.meta
        return {name.removesuffix(".json"): file.version for name, file in meta.items()}


class TufImageRepository:
    """The `ImageRepository` port. Any thread; several processes may share the metadata table."""

    def __init__(self, table: MetadataTable, keys: OnlineKeys, clock: Clock) -> None:
        """Use a metadata table and the server's keys."""
        self._table = table
        self._keys = keys
        self._clock = clock
        self._lock = threading.Lock()
        self._current: _Current | None = None
        self._bins: OrderedDict[tuple[str, int], Targets] = OrderedDict()

    # --- roots ---

    def root(self) -> bytes | None:
        """See `ImageRepository.root`."""
        return self._root_of(IMAGE)

    def _root_of(self, repository: str) -> bytes | None:
        row = self._table.get(repository, _ROOT)
        return None if row is None else row[1]

    def trust_summary(self) -> JsonObject:
        """See `ImageRepository.trust_summary`."""
        rows = {name: self._table.get(name, _ROOT) for name in (IMAGE, DIRECTOR)}
        return {
            "initialised": all(row is not None for row in rows.values()),
            "online_keys": self._keys.public(),
            **{f"{name}_root_version": 0 if row is None else row[0] for name, row in rows.items()},
        }

    def submit_roots(self, image: bytes | None, director: bytes | None) -> None:
        """See `ImageRepository.submit_roots`; a root that is already the current one changes nothing."""
        rows: list[MetadataRow] = []
        expect: dict[tuple[str, str], int] = {}
        now = self._clock.wall_ms()
        for repository, data in ((IMAGE, image), (DIRECTOR, director)):
            former = self._table.get(repository, _ROOT)
            if data is None or (former is not None and former[1] == data):
                continue
            root = tuf_rules.next_root(repository, data, None if former is None else former[1], self._keys, now)
            if repository == IMAGE:
                self._require_targets_still_valid(root)
            rows.append(MetadataRow(repository, _ROOT, root.version, data))
            rows.append(MetadataRow(repository, f"{root.version}.{_ROOT}", root.version, data))
            expect[repository, _ROOT] = root.version - 1
        if rows:
            self._table.put_many(rows, expect)

    def _require_targets_still_valid(self, root: Root) -> None:
        """Refuse a root under which devices could not verify the targets of this moment."""
        row = self._table.get(IMAGE, _TIMESTAMP)
        if row is None:
            return
        name = f"{self._now().version_of(_TARGETS)}.{_TARGETS}"
        try:
            tuf_rules.verify(
                root, _TARGETS, tuf_rules.read_targets(self._stored(name), _TARGETS), "the current targets"
            )
        except EdgeError as error:
            raise EdgeError(
                error.code,
                f"under the new root the current targets are not signed any more: {error.detail}",
                "First publish targets that carry signatures of the old and the new keys, then the root.",
            ) from None

    # --- targets ---

    def submit_metadata(self, files: Mapping[str, bytes]) -> None:
        """See `ImageRepository.submit_metadata`; files that are all current already change nothing.

        The first submission brings the targets and every bin. A later one brings what changed.
        """
        current = self._now()
        if not files:
            raise EdgeError("trust.metadata-invalid", "no metadata came", "Send targets, bins, or both.")
        if all(self._is_current(current, role, data) for role, data in files.items()):
            return
        versions = current.versions | self._check(current, files)
        now = self._clock.wall_ms()
        rows = [MetadataRow(IMAGE, f"{versions[role]}.{role}", versions[role], data) for role, data in files.items()]
        outdated = [(IMAGE, f"{versions[role] - METADATA_HISTORY}.{role}") for role in files]
        self._sign_and_store(current, versions, now, rows, outdated)

    def _is_current(self, current: _Current, role: str, data: bytes) -> bool:
        version = current.version_of(role)
        row = None if version == 0 else self._table.get(IMAGE, f"{version}.{role}")
        return row is not None and row[1] == data

    def _check(self, current: _Current, files: Mapping[str, bytes]) -> dict[str, int]:
        """Verify submitted metadata against root and delegation; the new versions by role."""
        now = self._clock.wall_ms()
        targets = current.targets
        if _TARGETS in files:
            metadata = tuf_rules.read_targets(files[_TARGETS], _TARGETS)
            tuf_rules.verify(current.root, _TARGETS, metadata, _TARGETS)
            targets = metadata.signed
        if targets is None:
            raise EdgeError("trust.metadata-invalid", "the first publish has to bring the targets and every bin")
        bins = tuf_rules.succinct_roles(targets)
        names = set(bins.get_roles())
        unknown = sorted(set(files) - names - {_TARGETS})
        if unknown:
            raise EdgeError("trust.metadata-invalid", f"nothing delegates to {unknown[0][:80]!r}")
        versions: dict[str, int] = {}
        for role, data in files.items():
            content = targets
            if role != _TARGETS:
                metadata = tuf_rules.read_targets(data, role)
                tuf_rules.verify(targets, role, metadata, role)
                content = metadata.signed
                tuf_rules.check_bin(role, content, bins)
            _require_next(role, content, current.version_of(role))
            tuf_rules.require_fresh(content.expires, now, role)
            versions[role] = content.version
        if _TARGETS in files:
            self._require_other_bins_valid(current, targets, names - set(files))
        return versions

    def _require_other_bins_valid(self, current: _Current, targets: Targets, others: set[str]) -> None:
        """With new targets, every bin that did not come along has to be there and verify under them."""
        same = current.targets is not None and current.targets.delegations == targets.delegations
        for role in sorted(others):
            version = current.version_of(role)
            if version == 0:
                raise EdgeError(
                    "trust.metadata-invalid", f"{role} is missing", "Publish every bin along with the targets."
                )
            if not same:
                stored = tuf_rules.read_targets(self._stored(f"{version}.{role}"), role)
                tuf_rules.verify(targets, role, stored, role)

    def _sign_and_store(
        self,
        current: _Current,
        versions: Mapping[str, int],
        now: int,
        rows: list[MetadataRow],
        outdated: list[tuple[str, str]],
    ) -> None:
        """Sign a snapshot and a timestamp over new versions; everything in one transaction."""
        number = 1 if current.snapshot is None else current.snapshot.version + 1
        snapshot = tuf_rules.signed(tuf_rules.new_snapshot(number, versions, now, SNAPSHOT_LIFE_MS), IMAGE, self._keys)
        rows.append(MetadataRow(IMAGE, f"{number}.{_SNAPSHOT}", number, snapshot))
        outdated.append((IMAGE, f"{number - METADATA_HISTORY}.{_SNAPSHOT}"))
        self._store_timestamp(current, number, snapshot, now, rows, outdated)

    def _store_timestamp(
        self,
        current: _Current,
        number: int,
        snapshot: bytes,
        now: int,
        rows: list[MetadataRow],
        outdated: list[tuple[str, str]],
    ) -> None:
        version = current.timestamp_version + 1
        timestamp = tuf_rules.signed(
            tuf_rules.new_timestamp(version, number, snapshot, now, TIMESTAMP_LIFE_MS), IMAGE, self._keys
        )
        rows.append(MetadataRow(IMAGE, _TIMESTAMP, version, timestamp))
        expect = {(IMAGE, _TIMESTAMP): current.timestamp_version, (IMAGE, _ROOT): current.root_version}
        self._table.put_many(rows, expect, outdated)

    # --- reading ---

    def read(self, filename: str) -> bytes:
        """See `ImageRepository.read`; a timestamp or snapshot that is past half its life is signed anew first."""
        if filename == _TIMESTAMP_FILE:
            return self._fresh_timestamp()
        number, dot, role = filename.removesuffix(".json").partition(".")
        if not filename.endswith(".json") or not dot or not number.isdecimal() or number.startswith("0") or not role:
            raise _no_file(filename)
        row = self._table.get(IMAGE, f"{number}.{role}") if len(filename) <= 128 else None
        if row is None:
            raise _no_file(filename)
        return row[1]

    def _fresh_timestamp(self) -> bytes:
        for _ in range(METADATA_ATTEMPTS_MAX):
            row = self._table.get(IMAGE, _TIMESTAMP)
            if row is None:
                raise _no_file(_TIMESTAMP_FILE)
            now = self._clock.wall_ms()
            timestamp = tuf_rules.read(Timestamp, row[1], _TIMESTAMP, TARGETS_BYTES_MAX).signed
            if not tuf_rules.is_past_half(timestamp.expires, now, TIMESTAMP_LIFE_MS):
                return row[1]
            try:
                self._renew(now)
            except EdgeError as error:
                # Somebody else published or renewed meanwhile: theirs will do.
                if error.code != "cloud.conflict":
                    raise
        raise EdgeError("cloud.unavailable", "the timestamp changes too fast to be renewed", "Try again.")

    def _renew(self, now: int) -> None:
        current = self._now()
        if current.snapshot is None:
            raise _no_file(_TIMESTAMP_FILE)
        if tuf_rules.is_past_half(current.snapshot.expires, now, SNAPSHOT_LIFE_MS):
            self._sign_and_store(current, current.versions, now, [], [])
            return
        number = current.snapshot.version
        self._store_timestamp(current, number, self._stored(f"{number}.{_SNAPSHOT}"), now, [], [])

    def target(self, path: str) -> ImageTarget | None:
        """See `ImageRepository.target`."""
        if self._table.get(IMAGE, _TIMESTAMP) is None:
            return None
        current = self._now()
        if current.targets is None:
            return None
        role = tuf_rules.succinct_roles(current.targets).get_role_for_target(path)
        found = self._bin(role, current.version_of(role)).targets.get(path)
        return None if found is None else tuf_rules.image_target(path, found)

    # --- inside ---

    def _bin(self, role: str, version: int) -> Targets:
        with self._lock:
            known = self._bins.get((role, version))
            if known is not None:
                self._bins.move_to_end((role, version))
                return known
        content = tuf_rules.read_targets(self._stored(f"{version}.{role}"), role).signed
        with self._lock:
            self._bins[role, version] = content
            while len(self._bins) > PARSED_BINS_MAX:
                self._bins.popitem(last=False)
        return content

    def _now(self) -> _Current:
        """The repository as the table has it, read again only when its timestamp or root changed.

        Raises:
            EdgeError: `trust.root-unknown` before the first root.
        """
        for _ in range(METADATA_ATTEMPTS_MAX):
            root_row, row = self._table.get(IMAGE, _ROOT), self._table.get(IMAGE, _TIMESTAMP)
            if root_row is None:
                raise EdgeError(
                    "trust.root-unknown", "the image repository has no root", "Run `packager keys init` first."
                )
            version = 0 if row is None else row[0]
            with self._lock:
                known = self._current
            if known is not None and (known.timestamp_version, known.root_version) == (version, root_row[0]):
                return known
            loaded = self._load(root_row, row)
            if loaded is not None:
                with self._lock:
                    self._current = loaded
                return loaded
        raise EdgeError("cloud.unavailable", "the image repository changes too fast to be read", "Try again.")

    def _load(self, root_row: tuple[int, bytes], row: tuple[int, bytes] | None) -> _Current | None:
        """Read what a timestamp names; none if somebody replaced so much meanwhile that it is gone."""
        root = tuf_rules.read(Root, root_row[1], _ROOT, TARGETS_BYTES_MAX).signed
        if row is None:
            return _Current(0, root_row[0], root, None, None)
        timestamp = tuf_rules.read(Timestamp, row[1], _TIMESTAMP, TARGETS_BYTES_MAX).signed
        try:
            data = self._stored(f"{timestamp.snapshot_meta.version}.{_SNAPSHOT}")
            snapshot = tuf_rules.read(Snapshot, data, _SNAPSHOT, TARGETS_BYTES_MAX).signed
            version = snapshot.meta[f"{_TARGETS}.json"].version
            targets = tuf_rules.read_targets(self._stored(f"{version}.{_TARGETS}"), _TARGETS).signed
        except EdgeError as error:
            if error.code == "cloud.not-found":
                return None
            raise
        return _Current(row[0], root_row[0], root, snapshot, targets)

    def _stored(self, name: str) -> bytes:
        row = self._table.get(IMAGE, name)
        if row is None:
            raise _no_file(f"{name}.json")
        return row[1]


def _require_next(role: str, content: Targets, version: int) -> None:
    if content.version != version + 1:
        raise EdgeError(
            "cloud.conflict",
            f"{role} has version {content.version}, the next one is {version + 1}",
            "Fetch the current metadata and sign again.",
        )


def _no_file(filename: str) -> EdgeError:
    return EdgeError("cloud.not-found", f"there is no metadata file {filename[:80]!r}")
