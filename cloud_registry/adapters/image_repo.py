"""The TUF image repository: authors sign every level of targets, the server signs snapshot and timestamp (ADR 0008).

Every document lies in the metadata table under its consistent-snapshot name without `.json` (`3.root`, `7.bins-0a`);
`root` and `timestamp` are the current ones. Every change replaces `timestamp`, and expects the one it was made from:
of two publishes at the same moment one is refused, and a reader never sees half of either.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tuf.api.metadata import MetaFile, Root, Snapshot, Targets, Timestamp

from cloud_registry.adapters import tuf_delegations, tuf_rules
from cloud_registry.adapters.tuf_keys import DIRECTOR, IMAGE, ONLINE_ROLES, OnlineKeys, every_role
from cloud_registry.limits import (
    METADATA_ATTEMPTS_MAX,
    METADATA_HISTORY,
    PARSED_BINS_MAX,
    SNAPSHOT_LIFE_MS,
    TARGETS_BYTES_MAX,
    TIMESTAMP_LIFE_MS,
    VERSION_MAX,
)
from cloud_registry.ports import Clock, ImageTarget, MetadataRow, MetadataTable, OnlineKeyWish
from edge_contract.codes import CODES, Category
from edge_contract.delegation import model_of
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

LOGGER = logging.getLogger(__name__)
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
        """Version of any targets role, 0 when there is none."""
        meta = None if self.snapshot is None else self.snapshot.meta.get(f"{role}.json")
        return 0 if meta is None else meta.version

    @property
    def listed(self) -> dict[str, MetaFile]:
        """Version, length and digest of every targets role that was ever published."""
        meta = {} if self.snapshot is None else self.snapshot.meta
        return {name.removesuffix(".json"): file for name, file in meta.items()}


class TufImageRepository:
    """The `ImageRepository` port. Any thread; several processes may share the metadata table."""

    def __init__(self, table: MetadataTable, keys: OnlineKeys, clock: Clock) -> None:
        """Use a metadata table and the server's keys."""
        self._table = table
        self._keys = keys
        self._clock = clock
        self._lock = threading.Lock()
        self._current: _Current | None = None
        self._lists: OrderedDict[tuple[str, int], Targets] = OrderedDict()

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
        current: JsonObject = {name: {} for name in ONLINE_ROLES}
        waiting: JsonObject = {name: {} for name in ONLINE_ROLES}
        for name, role in every_role():
            used = self._used(name, role)
            newest = self._keys.generations(name, role)[-1]
            trusted = self._keys.trusted(name, role, used)
            current[name][role] = (trusted[-1] if trusted else newest).describe()
            if used and newest.public.keyid not in used:
                waiting[name][role] = newest.describe()
        return {
            "initialised": all(row is not None for row in rows.values()),
            "online_keys": current,
            "next_online_keys": waiting,
            **{f"{name}_root_version": 0 if row is None else row[0] for name, row in rows.items()},
        }

    def prepare_online_keys(self, wishes: Sequence[OnlineKeyWish], is_afresh: bool) -> JsonObject:
        """See `ImageRepository.prepare_online_keys`."""
        known = {(wish.repository, wish.role): wish for wish in wishes}
        unknown = sorted(set(known) - set(every_role()))
        if unknown:
            raise EdgeError("cloud.bad-request", f"{'/'.join(unknown[0])[:80]!r} is no role with an online key")
        for name, role in known or every_role():
            wish = known.get((name, role), OnlineKeyWish(name, role))
            self._keys.prepare(name, role, self._used(name, role), wish.uri, is_afresh)
        return self.trust_summary()

    def _used(self, repository: str, role: str) -> Collection[str]:
        """Identifiers of the keys that the current root trusts for a role; none before the first root."""
        data = self._root_of(repository)
        if data is None:
            return ()
        return tuple(tuf_rules.read(Root, data, _ROOT, TARGETS_BYTES_MAX).signed.roles[role].keyids)

    def submit_roots(self, image: bytes | None, director: bytes | None) -> None:
        """See `ImageRepository.submit_roots`; a root that is already the current one changes nothing."""
        rows: list[MetadataRow] = []
        outdated: list[tuple[str, str]] = []
        expect: dict[tuple[str, str], int] = {}
        now = self._clock.wall_ms()
        for repository, data in ((IMAGE, image), (DIRECTOR, director)):
            former = self._table.get(repository, _ROOT)
            if data is None or (former is not None and former[1] == data):
                continue
            root = tuf_rules.next_root(repository, data, None if former is None else former[1], self._keys, now)
            if repository == IMAGE and self._table.get(IMAGE, _TIMESTAMP) is not None:
                current = self._now()
                self._require_targets_still_valid(root, current)
                if current.snapshot is not None and _has_other_online_keys(current.root, root):
                    self._sign_all(_under(current, root), current.listed, now, rows, outdated, current.root)
                    expect[IMAGE, _TIMESTAMP] = current.timestamp_version
            rows.append(MetadataRow(repository, _ROOT, root.version, data))
            rows.append(MetadataRow(repository, f"{root.version}.{_ROOT}", root.version, data))
            expect[repository, _ROOT] = root.version - 1
        if rows:
            self._table.put_many(rows, expect, outdated)

    def _require_targets_still_valid(self, root: Root, current: _Current) -> None:
        """Refuse a root under which devices could not verify the targets of this moment."""
        name = f"{current.version_of(_TARGETS)}.{_TARGETS}"
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

        The first submission brings the targets, the catalogue and every bin. A later one brings what changed.
        """
        current = self._now()
        if not files:
            raise EdgeError("trust.metadata-invalid", "no metadata came", "Send signed targets of any level.")
        if all(self._is_current(current, role, data) for role, data in files.items()):
            return
        versions = self._check(current, files)
        now = self._clock.wall_ms()
        rows = [MetadataRow(IMAGE, f"{versions[role]}.{role}", versions[role], data) for role, data in files.items()]
        outdated = [(IMAGE, f"{versions[role] - METADATA_HISTORY}.{role}") for role in files]
        listed = {role: tuf_rules.listed(versions[role], data) for role, data in files.items()}
        self._sign_and_store(current, current.listed | listed, now, rows, outdated)

    def _is_current(self, current: _Current, role: str, data: bytes) -> bool:
        version = current.version_of(role)
        row = None if version == 0 else self._table.get(IMAGE, f"{version}.{role}")
        return row is not None and row[1] == data

    def _check(self, current: _Current, files: Mapping[str, bytes]) -> dict[str, int]:
        """Verify submitted metadata, each role against its delegator as it will be; the new versions by role."""
        now = self._clock.wall_ms()
        own = self._keys.own_keyids()
        parents = {role: tuf_delegations.parent_of(role) for role in files}
        checked: dict[str, Targets] = {}
        # A delegator first: what comes along with it is judged by its new version.
        for role in sorted(files, key=lambda name: (_depth(parents[name]), name)):
            metadata = tuf_rules.read_targets(files[role], role)
            parent = self._delegator(current, checked, role, parents[role])
            tuf_rules.verify(current.root if parent is None else parent, role, metadata, role)
            tuf_delegations.check_content(role, metadata.signed, parent, own)
            _require_next(role, metadata.signed, current.version_of(role))
            tuf_rules.require_fresh(metadata.signed.expires, now, role)
            checked[role] = metadata.signed
        for role, content in checked.items():
            self._require_others_valid(current, role, content, set(files))
        return {role: content.version for role, content in checked.items()}

    def _delegator(
        self, current: _Current, checked: Mapping[str, Targets], role: str, parent: str | None
    ) -> Targets | None:
        if parent is None:
            return None
        content = checked.get(parent) or self._content(current, parent)
        if content is None:
            why = "the first publish has to bring the targets, the catalogue and every bin"
            raise EdgeError("trust.metadata-invalid", why)
        if not tuf_delegations.delegates_to(content, role):
            raise EdgeError("trust.metadata-invalid", f"{parent} does not delegate to {role[:80]!r}")
        return content

    def _content(self, current: _Current, role: str) -> Targets | None:
        """Current metadata of a role, or none."""
        if role == _TARGETS:
            return current.targets
        version = current.version_of(role)
        return self._list(role, version) if version else None

    def _require_others_valid(self, current: _Current, role: str, content: Targets, brought: set[str]) -> None:
        """With a new version of a delegator, every delegate that did not come along has to be there and verify."""
        before = self._content(current, role)
        bins = tuf_delegations.bins_of(content)
        children = set(tuf_delegations.top_roles(content)) | set(() if bins is None else bins.get_roles())
        for child in sorted(children - brought):
            version = current.version_of(child)
            if version == 0 and model_of(child) is not None:
                continue  # nobody has signed for this model yet
            if version == 0:
                raise EdgeError(
                    "trust.metadata-invalid", f"{child} is missing", f"Publish everything that {role} delegates to."
                )
            if not tuf_delegations.is_same_delegation(before, content, child):
                stored = tuf_rules.read_targets(self._stored(f"{version}.{child}"), child)
                tuf_rules.verify(content, child, stored, child)

    def _sign_and_store(
        self,
        current: _Current,
        listed: Mapping[str, MetaFile],
        now: int,
        rows: list[MetadataRow],
        outdated: list[tuple[str, str]],
    ) -> None:
        """Sign a snapshot and a timestamp over new versions; everything in one transaction."""
        self._sign_all(current, listed, now, rows, outdated)
        self._store(current, rows, outdated)

    def _sign_all(
        self,
        current: _Current,
        listed: Mapping[str, MetaFile],
        now: int,
        rows: list[MetadataRow],
        outdated: list[tuple[str, str]],
        former: Root | None = None,
    ) -> None:
        number = 1 if current.snapshot is None else _following(current.snapshot.version, former)
        content = tuf_rules.new_snapshot(number, listed, now, SNAPSHOT_LIFE_MS)
        snapshot = self._signed(content, current.root, former)
        rows.append(MetadataRow(IMAGE, f"{number}.{_SNAPSHOT}", number, snapshot))
        outdated.append((IMAGE, f"{number - METADATA_HISTORY}.{_SNAPSHOT}"))
        rows.append(self._timestamp_row(current, number, snapshot, now, former))

    def _timestamp_row(
        self, current: _Current, number: int, snapshot: bytes, now: int, former: Root | None = None
    ) -> MetadataRow:
        version = _following(current.timestamp_version, former)
        content = tuf_rules.new_timestamp(version, number, snapshot, now, TIMESTAMP_LIFE_MS)
        return MetadataRow(IMAGE, _TIMESTAMP, version, self._signed(content, current.root, former))

    def _signed(self, content: tuf_rules.Part, root: Root, former: Root | None) -> bytes:
        signer = tuf_rules.trusted_signer(root, IMAGE, content.type, self._keys)
        before = [] if former is None else self._keys.trusted(IMAGE, content.type, former.roles[content.type].keyids)
        return tuf_rules.signed(content, signer, before[-1].signer if before else None)

    def _store(self, current: _Current, rows: list[MetadataRow], outdated: list[tuple[str, str]]) -> None:
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
                if CODES[error.code].category is Category.CONFIG and timestamp.expires > tuf_rules.instant(now):
                    LOGGER.error("the timestamp cannot be renewed: %s", error)
                    return row[1]
                # Somebody else published or renewed meanwhile: theirs will do.
                if error.code != "cloud.conflict":
                    raise
        raise EdgeError("cloud.unavailable", "the timestamp changes too fast to be renewed", "Try again.")

    def _renew(self, now: int) -> None:
        current = self._now()
        if current.snapshot is None:
            raise _no_file(_TIMESTAMP_FILE)
        if tuf_rules.is_past_half(current.snapshot.expires, now, SNAPSHOT_LIFE_MS):
            self._sign_and_store(current, current.listed, now, [], [])
            return
        number = current.snapshot.version
        row = self._timestamp_row(current, number, self._stored(f"{number}.{_SNAPSHOT}"), now)
        self._store(current, [row], [])

    def target(self, path: str) -> ImageTarget | None:
        """See `ImageRepository.target`."""
        if self._table.get(IMAGE, _TIMESTAMP) is None:
            return None
        current = self._now()
        if current.targets is None:
            return None
        content = self._content(current, tuf_delegations.holder_of(current.targets, path))
        bins = None if content is None else tuf_delegations.bins_of(content)
        if bins is not None:
            content = self._content(current, bins.get_role_for_target(path))
        found = None if content is None else content.targets.get(path)
        return None if found is None else tuf_rules.image_target(path, found)

    # --- inside ---

    def _list(self, role: str, version: int) -> Targets:
        with self._lock:
            known = self._lists.get((role, version))
            if known is not None:
                self._lists.move_to_end((role, version))
                return known
        content = tuf_rules.read_targets(self._stored(f"{version}.{role}"), role).signed
        with self._lock:
            self._lists[role, version] = content
            while len(self._lists) > PARSED_BINS_MAX:
                self._lists.popitem(last=False)
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


def _depth(parent: str | None) -> int:
    """How far a role is from the root, by its delegator."""
    return 0 if parent is None else 1 if parent == _TARGETS else 2


def _has_other_online_keys(before: Root, after: Root) -> bool:
    return any(set(before.roles[role].keyids) != set(after.roles[role].keyids) for role in ONLINE_ROLES[IMAGE])


def _under(current: _Current, root: Root) -> _Current:
    return replace(current, root=root, root_version=root.version)


def _following(version: int, former: Root | None) -> int:
    """The next version; under new keys, numbers that a thief drove up are given up, as devices do."""
    return 1 if former is not None and version >= VERSION_MAX else version + 1
