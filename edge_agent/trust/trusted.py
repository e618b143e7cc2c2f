"""The ordered set of trusted metadata of one repository, on python-tuf's metadata API. Pure: no file, clock or network.

The order is the law (TUF specification 1.0, section 5): root, timestamp, snapshot, targets, delegated targets. Each
`update_*` verifies bytes against what is trusted already and changes nothing when it refuses them:

1. Root N+1 needs the signatures that root N and root N+1 ask for; the last root must not be expired.
2. A timestamp needs root's signatures, a version that does not fall, a snapshot version that does not fall, and must
   not be expired. An old one, even expired, still serves as the measure of what would be a rollback.
3. A snapshot needs the length and hashes in the timestamp, root's signatures, the version in the timestamp; no role
   it lists may fall or vanish; and it must not be expired.
4. Targets need the length and hashes in the snapshot, the signatures of root or of the delegator, the version in the
   snapshot, and must not be expired.

ngclient, python-tuf's own client, is not used: it asks the system for the time, writes without a sync, and imports a
networking stack this process has no other use for.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar, cast

from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Signature
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Key, Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from edge_agent.trust.search import Search
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

_WALL_MS_MAX: Final = 253_402_300_799_000  # the end of the year 9999, which is as far as metadata can be valid
_MINUTE: Final = "%Y-%m-%dT%H:%MZ"
_T = TypeVar("_T", Root, Timestamp, Snapshot, Targets)
_V = TypeVar("_V")


_UNREADABLE: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, FormatError)


@dataclass(frozen=True, slots=True)
class _Read(Generic[_T]):
    """Metadata that was read and not verified yet.

    `content` is the canonical form of the bytes that came, not of what python-tuf made of them: it fills in defaults,
    and what is verified has to be what was sent.
    """

    signed: _T
    content: bytes
    signatures: dict[str, Signature]


class TrustedSet:
    """What is trusted of one repository during one refresh. Used by one thread."""

    def __init__(self, repository: str, root: bytes) -> None:
        """Begin with a root that was trusted before.

        Args:
            repository: Name for messages, for example "director" or "image".
            root: Trusted root metadata; may be expired, because a newer one may follow.

        Raises:
            EdgeError: `trust.metadata-invalid`, `trust.signature-invalid`.
        """
        self._repository = repository
        self._now: datetime | None = None
        read = self._parse(Root, root, "root")
        self._require_signatures(read.signed, read, "root")
        self._root = read.signed
        self._timestamp: Timestamp | None = None
        self._snapshot: Snapshot | None = None
        self._targets: dict[str, Targets] = {}
        self._delegations: set[tuple[str, str | None]] = set()

    @property
    def root(self) -> Root:
        """The newest trusted root."""
        return self._root

    @property
    def timestamp(self) -> Timestamp:
        """The trusted timestamp; `RuntimeError` before there is one."""
        return _present(self._timestamp)

    @property
    def snapshot(self) -> Snapshot:
        """The trusted snapshot; `RuntimeError` before there is one."""
        return _present(self._snapshot)

    @property
    def targets(self) -> Targets:
        """The trusted top-level targets; `RuntimeError` before there are any."""
        return self.trusted_targets("targets")

    @property
    def fresh_until_ms(self) -> int:
        """When the first piece of what is trusted expires, milliseconds since 1970."""
        trusted = (self._root, self._timestamp, self._snapshot, *self._targets.values())
        return int(min(signed.expires.timestamp() for signed in trusted if signed is not None) * 1000)

    @property
    def signed_ms(self) -> int | None:
        """When the timestamp was signed, if it says so; milliseconds since 1970.

        None for a time at which something of what is trusted was expired: then it could not have been signed, and
        whoever holds the timestamp's key alone shall not get further than what other keys signed (ADR 15).
        """
        said: Any = self.timestamp.unrecognized_fields.get("lighterman")
        value = said.get("signed_ms") if isinstance(said, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < self.fresh_until_ms:
            return None
        return value

    def update_root(self, data: bytes) -> bool:
        """Take the next root.

        Returns:
            Whether a key of timestamp or snapshot was taken away: then the old ones of these are no measure any more,
            so that a repository whose keys were stolen can recover from versions that were driven up (TUF 5.3.11).

        Raises:
            EdgeError: `trust.metadata-invalid`, `trust.signature-invalid`, `trust.metadata-rollback`,
                `trust.metadata-mismatch`.
        """
        read = self._parse(Root, data, "root")
        new, old = read.signed, self._root
        if new.version <= old.version:
            raise self._error("metadata-rollback", f"root version {new.version} does not follow {old.version}")
        if new.version != old.version + 1:
            raise self._error("metadata-mismatch", f"root version {new.version} does not follow {old.version}")
        self._require_signatures(old, read, "root")
        self._require_signatures(new, read, "root")
        self._root = new
        return any(_keys(old, role) - _keys(new, role) for role in ("timestamp", "snapshot"))

    def is_measure(self, role: str, data: bytes | None) -> bool:
        """Whether a timestamp or snapshot from disk would serve to notice a rollback under the newest root."""
        if role == "timestamp":
            return self._measure(Timestamp, data, role) is not None
        return self._measure(Snapshot, data, role) is not None

    @property
    def timestamp_keys(self) -> str:
        """Digest of the keys and the threshold that the newest root names for the timestamp."""
        threshold = self._root.roles["timestamp"].threshold
        return str(Digest.of("\n".join([str(threshold), *sorted(_keys(self._root, "timestamp"))]).encode()))

    def begin(self, wall_ms: int) -> None:
        """End the walk along roots: from here on everything is judged by a time, beginning with the last root.

        Args:
            wall_ms: Milliseconds since 1970.

        Raises:
            EdgeError: `trust.metadata-expired`.
        """
        self._now = datetime.fromtimestamp(min(max(wall_ms, 0), _WALL_MS_MAX) / 1000, UTC)
        self._require_fresh(self._root, "root")

    def update_timestamp(self, data: bytes, old: bytes | None) -> bool:
        """Take the newest timestamp.

        Args:
            data: What the repository serves now.
            old: The timestamp trusted before, or none; one that today's root would not have signed is no measure.

        Returns:
            Whether it takes the old one's place. The same version is the same statement; the one trusted first stands,
            unless it is expired: what is on disk never holds up a refresh.

        Raises:
            EdgeError: any `trust.` code.
        """
        new = self._verified(Timestamp, data, "timestamp")
        before = self._measure(Timestamp, old, "timestamp")
        if before is not None:
            if new.version < before.version:
                raise self._fall("timestamp", before.version, new.version)
            if new.version == before.version and not before.is_expired(_present(self._now)):
                new = before
            if new.snapshot_meta.version < before.snapshot_meta.version:
                raise self._fall("snapshot", before.snapshot_meta.version, new.snapshot_meta.version)
        self._require_fresh(new, "timestamp")
        self._timestamp = new
        return new is not before

    def update_snapshot(self, data: bytes, old: bytes | None) -> None:
        """Take the snapshot that the timestamp names.

        Args:
            data: Its bytes, from the repository or from disk.
            old: The snapshot trusted before, or none.

        Raises:
            EdgeError: any `trust.` code.
        """
        meta = self.timestamp.snapshot_meta
        self._require_content(data, meta, "snapshot")
        new = self._verified(Snapshot, data, "snapshot")
        self._require_version(new, meta, "snapshot")
        before = self._measure(Snapshot, old, "snapshot")
        for name, listed in (before.meta if before else {}).items():
            now = new.meta.get(name)
            if now is None:
                raise self._error("metadata-rollback", f"the snapshot no longer lists {name}")
            if now.version < listed.version:
                raise self._fall(name, listed.version, now.version)
        self._require_fresh(new, "snapshot")
        self._snapshot = new

    def targets_meta(self, role: str) -> MetaFile:
        """What the snapshot says of the targets metadata of a role.

        Raises:
            EdgeError: `trust.metadata-mismatch` when it says nothing.
        """
        meta = self.snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise self._error("metadata-mismatch", f"the snapshot does not list {role}")
        return meta

    def update_targets(self, data: bytes, role: str = "targets", delegator: str | None = None) -> Targets:
        """Take the targets metadata of a role.

        Args:
            data: Its bytes, from the repository or from disk.
            role: The role's name.
            delegator: The trusted role that delegates to it; none for the top-level targets.

        Raises:
            EdgeError: any `trust.` code.
        """
        meta = self.targets_meta(role)
        self._require_content(data, meta, role)
        read = self._parse(Targets, data, role)
        self._require_signatures(self._root if delegator is None else self._targets[delegator], read, role)
        self._require_version(read.signed, meta, role)
        self._require_fresh(read.signed, role)
        self._targets[role] = read.signed
        self._delegations.add((role, delegator))
        return read.signed

    def search(self, path: str) -> Search:
        """Begin the search for a target through the delegations (TUF 5.6.7); the top-level targets are trusted."""
        return Search(self.trusted_targets, path)

    def has_targets(self, role: str, delegator: str) -> bool:
        """Whether the metadata of a role was taken with the signatures that this delegator asks for."""
        return (role, delegator) in self._delegations

    def trusted_targets(self, role: str) -> Targets:
        """The trusted targets metadata of a role; `RuntimeError` before it was taken."""
        return _present(self._targets.get(role))

    def _verified(self, kind: type[_T], data: bytes, role: str) -> _T:
        read = self._parse(kind, data, role)
        self._require_signatures(self._root, read, role)
        return read.signed

    def _measure(self, kind: type[_T], data: bytes | None, role: str) -> _T | None:
        """Metadata from disk that only serves to notice a rollback: may be expired; none if damaged or of old keys."""
        if data is None:
            return None
        try:
            return self._verified(kind, data, role)
        except EdgeError:
            return None

    def _parse(self, kind: type[_T], data: bytes, role: str) -> "_Read[_T]":
        try:
            document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
            content = (encode_canonical(document["signed"]) or "").encode("utf-8")
            metadata = cast(Metadata[_T], Metadata.from_dict(document))
        except _UNREADABLE as error:
            raise self._error("metadata-invalid", f"{role} cannot be read: {error!r}") from None
        if not isinstance(metadata.signed, kind):
            raise self._error("metadata-invalid", f"{role} is {metadata.signed.type} metadata")
        return _Read(metadata.signed, content, metadata.signatures)

    def _require_signatures(self, delegator: Root | Targets, read: "_Read[_T]", role: str) -> None:
        try:
            result = delegator.get_verification_result(role, read.content, read.signatures)
            # By content: the same key under two names is one key, and its signature one signature.
            count = len({_content(key) for key in result.signed.values()})
            if count < result.threshold:
                raise self._error(
                    "signature-invalid", f"{role} has valid signatures of {count} keys, {result.threshold} are needed"
                )
        except _UNREADABLE as error:
            raise self._error("metadata-invalid", f"{role} cannot be checked: {error!r}") from None

    def _require_content(self, data: bytes, meta: MetaFile, role: str) -> None:
        try:
            meta.verify_length_and_hashes(data)
        except RepositoryError as error:
            raise self._error("metadata-mismatch", f"{role} is not the file that was announced: {error}") from None

    def _require_version(self, signed: Signed, meta: MetaFile, role: str) -> None:
        if signed.version != meta.version:
            raise self._error(
                "metadata-mismatch", f"{role} has version {signed.version}, version {meta.version} was announced"
            )

    def _require_fresh(self, signed: Signed, role: str) -> None:
        now = _present(self._now)
        if signed.is_expired(now):
            raise EdgeError(
                "trust.metadata-expired",
                f"{self._repository} repository: {role} version {signed.version} expired at {signed.expires:{_MINUTE}}",
                f"For this device it is {now:{_MINUTE}}. If that is right, the repository has to be refreshed.",
            )

    def _fall(self, what: str, before: int, now: int) -> EdgeError:
        return self._error("metadata-rollback", f"{what} falls from version {before} to {now}")

    def _error(self, name: str, detail: str) -> EdgeError:
        return EdgeError(f"trust.{name}", f"{self._repository} repository: {detail}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _present(value: _V | None) -> _V:
    if value is None:
        raise RuntimeError("metadata was asked for before it was trusted")
    return value


def _keys(root: Root, role: str) -> frozenset[str]:
    """Keys of a role, by content and not by name alone."""
    keys = (root.keys.get(keyid) for keyid in root.roles[role].keyids)
    return frozenset(_content(key) for key in keys if key is not None)


def _content(key: Key) -> str:
    return f"{key.keytype} {key.scheme} {sorted(key.keyval.items())}"
