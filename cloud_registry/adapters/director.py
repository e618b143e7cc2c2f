"""The TUF director: for each device, signed on demand, which of the genuine bundles it should run.

A device's targets, snapshot and timestamp are one row of the metadata table, replaced in one step, with the version
before the current one still in it: a device that fetched the timestamp a moment ago can go on. Targets get a new
version only when the assignments change or the old ones near their expiry, so that the version of the targets can tell
devices and operators whether there is something new.

When the root trusts other online keys, everything is signed anew at the next question, by the new key and once more by
the old one, for the device that read the old root a moment ago.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from securesystemslib.signer import Signer
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp

from cloud_registry.adapters import tuf_rules
from cloud_registry.adapters.tuf_keys import DIRECTOR, OnlineKeys
from cloud_registry.limits import (
    DIRECTOR_TARGETS_LIFE_MS,
    METADATA_ATTEMPTS_MAX,
    METADATA_BYTES_MAX,
    ROOT_BYTES_MAX,
    SNAPSHOT_LIFE_MS,
    TIMESTAMP_LIFE_MS,
    VERSION_MAX,
)
from cloud_registry.ports import AssignmentSource, Clock, MetadataRow, MetadataTable
from edge_contract.codes import CODES, Category
from edge_contract.deployment import Assignment, director_custom, target_path
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import Fields, dump, parse_object
from edge_contract.names import device_name

LOGGER = logging.getLogger(__name__)
_ROW: Final = "current"
_KEPT: Final = 2
_ROLES: Final = (Targets.type, Snapshot.type, Timestamp.type)


@dataclass(frozen=True, slots=True)
class _Shelf:
    """Everything signed for one device.

    Attributes:
        content: Digest of what the targets say; tells whether the assignments changed.
        targets: File by version, the newest last; likewise the others.
        snapshots: File by version.
        timestamp: The one timestamp, with its version.
        renew_ms: When the first of them has used half of its life, by role.
        keyids: Identifier of the key that signed the newest, by role.
    """

    content: str = ""
    targets: dict[int, bytes] = field(default_factory=dict)
    snapshots: dict[int, bytes] = field(default_factory=dict)
    timestamp: tuple[int, bytes] = (0, b"")
    renew_ms: dict[str, int] = field(default_factory=dict)
    keyids: dict[str, str] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """Version of the newest targets."""
        return max(self.targets, default=0)

    @property
    def snapshot_version(self) -> int:
        """Version of the newest snapshot."""
        return max(self.snapshots, default=0)

    def to_bytes(self) -> bytes:
        """The row's document."""
        return dump(
            {
                "content": self.content,
                "targets": {str(number): data.decode() for number, data in self.targets.items()},
                "snapshots": {str(number): data.decode() for number, data in self.snapshots.items()},
                "timestamp": {str(self.timestamp[0]): self.timestamp[1].decode()},
                "renew_ms": self.renew_ms,
                "keyids": self.keyids,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "_Shelf":
        """Read what `to_bytes` wrote."""
        fields = Fields(
            parse_object(data, "director row", METADATA_BYTES_MAX), "director row", "trust.metadata-invalid"
        )

        def files(name: str) -> dict[int, bytes]:
            found = {int(number): text.encode() for number, text in fields.mapping(name, _KEPT, len(data)).items()}
            return dict(sorted(found.items()))

        times = Fields(fields.take("renew_ms"), "director row", "trust.metadata-invalid")
        return cls(
            content=fields.text("content"),
            targets=files("targets"),
            snapshots=files("snapshots"),
            timestamp=next(iter(files("timestamp").items())),
            renew_ms={role: times.integer(role) for role in _ROLES},
            keyids=fields.mapping("keyids", len(_ROLES)),
        )


class TufDirector:
    """The `Director` port. Any thread; several processes may share the metadata table."""

    def __init__(self, table: MetadataTable, keys: OnlineKeys, assignments: AssignmentSource, clock: Clock) -> None:
        """Use a metadata table, the server's keys, and what the operators decided."""
        self._table = table
        self._keys = keys
        self._assignments = assignments
        self._clock = clock
        self._online: _Online | None = None  # replaced as a whole, so that threads need no lock

    def root(self) -> bytes | None:
        """See `Director.root`."""
        row = self._table.get(DIRECTOR, "root")
        return None if row is None else row[1]

    def metadata(self, device: str, filename: str) -> bytes:
        """See `Director.metadata`. Only asking for the timestamp takes in new assignments."""
        if filename == "timestamp.json":
            return self._current(device).timestamp[1]
        number, _, role = filename.removesuffix(".json").partition(".")
        if not filename.endswith(".json") or not number.isdecimal() or number.startswith("0") or len(number) > 9:
            raise _no_file(device, filename)
        if role == "root":
            row = self._table.get(DIRECTOR, f"{number}.root")
            data = None if row is None else row[1]
        else:
            self._require_root()
            shelf = self._stored(device)[1]
            files = {Targets.type: shelf.targets, Snapshot.type: shelf.snapshots}.get(role, {})
            data = files.get(int(number))
        if data is None:
            raise _no_file(device, filename)
        return data

    def version(self, device: str) -> int:
        """See `Director.version`."""
        return 0 if self.root() is None else self._current(device).version

    def invalidate(self, device: str) -> None:
        """See `Director.invalidate`: nothing is held in memory, so there is nothing to drop."""
        LOGGER.debug("the assignments of %s changed", device)

    def forget(self, device: str) -> None:
        """See `Director.forget`."""
        self._table.remove_repository(_repository(device))

    # --- inside ---

    def _require_root(self) -> "_Online":
        """The keys that the root of this moment trusts.

        Raises:
            EdgeError: `trust.root-unknown` before the first root, `config.*` when they cannot be used.
        """
        row = self._table.get(DIRECTOR, "root")
        if row is None:
            raise EdgeError("trust.root-unknown", "the director has no root", "Run `packager keys init` first.")
        known = self._online
        if known is None or known.root_data != row[1]:
            root = tuf_rules.read(Root, row[1], "the director root", ROOT_BYTES_MAX).signed
            signers = {role: tuf_rules.trusted_signer(root, DIRECTOR, role, self._keys) for role in _ROLES}
            known = self._online = _Online(row[1], signers)
        return known

    def _stored(self, device: str) -> tuple[int, _Shelf]:
        row = self._table.get(_repository(device), _ROW)
        return (0, _Shelf()) if row is None else (row[0], _Shelf.from_bytes(row[1]))

    def _current(self, device: str) -> _Shelf:
        """What is signed for a device, after taking in its assignments and renewing what is past half its life."""
        for _ in range(METADATA_ATTEMPTS_MAX):
            # The row first: assignments that change after it was read conflict with us, or are seen next time.
            row_version, shelf = self._stored(device)
            assignments = self._assignments.assignments(device)
            try:
                updated = self._updated(device, shelf, assignments, self._require_root())
            except EdgeError as error:
                # What was signed before holds until it expires, also while the keys are out of reach.
                if shelf.version == 0 or CODES[error.code].category is not Category.CONFIG:
                    raise
                LOGGER.error("the metadata of %s cannot be signed anew: %s", device, error)
                return shelf
            if updated is shelf:
                return shelf
            row = MetadataRow(_repository(device), _ROW, row_version + 1, updated.to_bytes())
            try:
                self._table.put_many([row], {(row.repository, row.name): row_version})
            except EdgeError as error:
                if error.code != "cloud.conflict":
                    raise
                continue
            return updated
        raise EdgeError("cloud.unavailable", f"the metadata of {device} changes too fast", "Try again.")

    def _updated(self, device: str, shelf: _Shelf, assignments: Sequence[Assignment], online: "_Online") -> _Shelf:
        now = self._clock.wall_ms()
        targets = _targets_of(assignments)
        content = str(Digest.of(dump({path: target.to_dict() for path, target in targets.items()})))
        # New keys of any role replace all three: what an outdated key signed would be worth nothing to a device.
        is_new = content != shelf.content or shelf.keyids != online.keyids
        if is_new or now >= shelf.renew_ms[Targets.type]:
            shelf = self._with_targets(device, shelf, targets, content, now, online)
            is_new = True
        if is_new or now >= shelf.renew_ms[Snapshot.type]:
            shelf = self._with_snapshot(shelf, now, online)
            is_new = True
        if is_new or now >= shelf.renew_ms[Timestamp.type]:
            shelf = self._with_timestamp(shelf, now, online)
        return shelf

    def _with_targets(
        self, device: str, shelf: _Shelf, targets: dict[str, TargetFile], content: str, now: int, online: "_Online"
    ) -> _Shelf:
        number = _following(shelf.version, shelf, online)
        part = Targets(
            version=number,
            expires=tuf_rules.later(now, DIRECTOR_TARGETS_LIFE_MS),
            targets=targets,
            # Says whose metadata it is also when nothing is assigned, so that nobody can hand it to another device.
            unrecognized_fields={"lighterman": {"device": device}},
        )
        files = _newest(shelf.targets, number, self._signed(part, shelf, online))
        return replace(
            shelf, content=content, targets=files, renew_ms=_renewal(shelf, Targets.type, now, DIRECTOR_TARGETS_LIFE_MS)
        )

    def _with_snapshot(self, shelf: _Shelf, now: int, online: "_Online") -> _Shelf:
        number = _following(shelf.snapshot_version, shelf, online)
        targets = tuf_rules.listed(shelf.version, shelf.targets[shelf.version])
        part = tuf_rules.new_snapshot(number, {Targets.type: targets}, now, SNAPSHOT_LIFE_MS)
        return replace(
            shelf,
            snapshots=_newest(shelf.snapshots, number, self._signed(part, shelf, online)),
            renew_ms=_renewal(shelf, Snapshot.type, now, SNAPSHOT_LIFE_MS),
        )

    def _with_timestamp(self, shelf: _Shelf, now: int, online: "_Online") -> _Shelf:
        number = _following(shelf.timestamp[0], shelf, online)
        newest = shelf.snapshot_version
        part = tuf_rules.new_timestamp(number, newest, shelf.snapshots[newest], now, TIMESTAMP_LIFE_MS)
        return replace(
            shelf,
            timestamp=(number, self._signed(part, shelf, online)),
            renew_ms=_renewal(shelf, Timestamp.type, now, TIMESTAMP_LIFE_MS),
            # The last step: until here the shelf names the keys that its former files are signed by.
            keyids=online.keyids,
        )

    def _signed(self, part: tuf_rules.Part, shelf: _Shelf, online: "_Online") -> bytes:
        role, keyid = part.type, shelf.keyids.get(part.type)
        if keyid is None or keyid == online.keyids[role]:
            return tuf_rules.signed(part, online.signers[role])
        before = self._keys.trusted(DIRECTOR, role, (keyid,))
        return tuf_rules.signed(part, online.signers[role], before[0].signer if before else None)


@dataclass(frozen=True, slots=True)
class _Online:
    """The keys that one director root trusts.

    Attributes:
        root_data: The root's bytes.
        signers: This server's key by role.
    """

    root_data: bytes
    signers: dict[str, Signer]

    @property
    def keyids(self) -> dict[str, str]:
        """Identifiers of the keys by role."""
        return {role: str(signer.public_key.keyid) for role, signer in self.signers.items()}


def _following(version: int, shelf: _Shelf, online: _Online) -> int:
    """The next version; under new keys, numbers that a thief drove up are given up, as devices do."""
    return 1 if version >= VERSION_MAX and shelf.keyids != online.keyids else version + 1


def _targets_of(assignments: Sequence[Assignment]) -> dict[str, TargetFile]:
    """One target a bundle, which names every module that is to run it."""
    by_path: dict[str, list[Assignment]] = {}
    for item in assignments:
        path = target_path(item.artifact.model, item.artifact.version, item.manifest)
        by_path.setdefault(path, []).append(item)
    return {
        path: TargetFile(
            items[0].manifest_bytes, {"sha256": items[0].manifest.hex}, path, {"custom": director_custom(items)}
        )
        for path, items in by_path.items()
    }


def _renewal(shelf: _Shelf, role: str, now: int, life_ms: int) -> dict[str, int]:
    return shelf.renew_ms | {role: now + life_ms // 2}


def _newest(files: dict[int, bytes], number: int, data: bytes) -> dict[int, bytes]:
    """The files with a new one, without the oldest; without all of them when the numbering starts again."""
    kept = {version: former for version, former in files.items() if version < number}
    return dict(sorted((kept | {number: data}).items())[-_KEPT:])


def _repository(device: str) -> str:
    return f"{DIRECTOR}/{device_name(device)}"


def _no_file(device: str, filename: str) -> EdgeError:
    return EdgeError("cloud.not-found", f"{device} has no metadata file {filename[:80]!r}")
