"""Reads the image repository's metadata from the registry and trusts none of it before it is verified.

The author's folder of keys holds the root that the author made (`image.root.json`); every newer root has to be signed
by the one before. What was seen last is kept beside it, so that a registry cannot hand out older metadata to have an
author sign a list with entries missing. Without a folder (`packager verify` on a strange machine) the first root is
taken as it comes, and the caller is told.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Snapshot, SuccinctRoles, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from cloud_registry.client import RegistryClient
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import dump, parse_object
from packager.files import disk_errors, write_durably
from packager.limits import METADATA_BYTES_MAX, ROOT_STEPS_MAX

_T = TypeVar("_T", Root, Targets, Snapshot, Timestamp)
_MISSING: Final = ("cloud.not-found", "artifact.not-found")
SEEN_FILE: Final = "seen.json"


@dataclass(frozen=True, slots=True)
class View:
    """Verified metadata of one moment.

    Attributes:
        root: The newest root.
        targets: Top-level targets.
        versions: Version of every targets role by name.
        bins: The bins that were asked for, by name.
    """

    root: Root
    targets: Targets
    versions: dict[str, int]
    bins: dict[str, Targets] = field(default_factory=dict)

    @property
    def succinct(self) -> SuccinctRoles:
        """The hash bins.

        Raises:
            EdgeError: `trust.metadata-invalid` when the targets delegate in another way.
        """
        delegations = self.targets.delegations
        if delegations is None or delegations.succinct_roles is None:
            raise EdgeError("trust.metadata-invalid", "the targets do not delegate to succinct hash bins")
        return delegations.succinct_roles

    def bin_of(self, path: str) -> str:
        """The name of the bin that a target path belongs to."""
        return self.succinct.get_role_for_target(path)

    def target(self, path: str) -> TargetFile | None:
        """What a fetched bin says of a path."""
        return self.bins[self.bin_of(path)].targets.get(path)


class ImageReader:
    """Reads one image repository. Used by one thread."""

    def __init__(self, client: RegistryClient, folder: Path | None) -> None:
        """Read from a registry.

        Args:
            client: Any token that may read metadata.
            folder: The author's folder with the pinned root, or none to trust the first root that comes.
        """
        self._client = client
        self._folder = folder

    @property
    def is_pinned(self) -> bool:
        """Whether the first root came from the author and not from the registry."""
        return self._folder is not None and (self._folder / root_file("image")).is_file()

    def root(self) -> Root:
        """The newest root, verified step by step from the pinned one, which it replaces.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`.
        """
        current = self._pinned()
        if current is None:
            current = _read(Root, self._fetch("image/1.root.json"), "the first root")
            _verify(current.signed, "root", current, "the first root")
        for _ in range(ROOT_STEPS_MAX):
            version = current.signed.version + 1
            try:
                data = self._fetch(f"image/{version}.root.json")
            except EdgeError as error:
                if error.code in _MISSING:
                    break
                raise
            following = _read(Root, data, f"root {version}")
            for delegator in (current.signed, following.signed):
                _verify(delegator, "root", following, f"root {version}")
            if following.signed.version != version:
                raise EdgeError("trust.metadata-rollback", f"root {version} says that it is {following.signed.version}")
            if _online_keys(following.signed) != _online_keys(current.signed):
                self._forget_seen()
            current = following
            if self._folder is not None:
                write_durably(self._folder / root_file("image"), data)
        return current.signed

    def _fetch(self, name: str) -> bytes:
        return self._client.tuf_file(name, METADATA_BYTES_MAX)

    def _pinned(self) -> Metadata[Root] | None:
        if self._folder is None or not self.is_pinned:
            return None
        path = self._folder / root_file("image")
        with disk_errors(path):
            return _read(Root, path.read_bytes(), str(path))

    # --- everything below the root ---

    def view(self, paths: Iterable[str] = (), *, every_bin: bool = False, allow_expired: bool = False) -> View:
        """Bring verified metadata.

        Args:
            paths: Target paths whose bins are wanted.
            every_bin: Fetch all bins.
            allow_expired: Take targets and bins past their expiry, in order to sign them anew.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`.
        """
        now = datetime.now(UTC)
        root = self.root()
        if not allow_expired:
            _require_fresh(root, now, "the root")
        timestamp = self._timestamp(root, now)
        snapshot = self._snapshot(root, timestamp, now)
        self._refuse_rollback(timestamp, snapshot)
        targets = self._targets(root, "targets", snapshot, now, allow_expired)
        versions = {name.removesuffix(".json"): meta.version for name, meta in snapshot.meta.items()}
        view = View(root, targets, versions)
        names = set(view.succinct.get_roles()) if every_bin else {view.bin_of(path) for path in paths}
        for name in sorted(names):
            view.bins[name] = self._targets(targets, name, snapshot, now, allow_expired)
        return view

    def _timestamp(self, root: Root, now: datetime) -> Timestamp:
        metadata = _read(Timestamp, self._fetch("image/timestamp.json"), "the timestamp")
        _verify(root, "timestamp", metadata, "the timestamp")
        _require_fresh(metadata.signed, now, "the timestamp")
        return metadata.signed

    def _snapshot(self, root: Root, timestamp: Timestamp, now: datetime) -> Snapshot:
        wanted = timestamp.snapshot_meta
        data = self._fetch(f"image/{wanted.version}.snapshot.json")
        metadata = _read(Snapshot, data, "the snapshot")
        _belongs(wanted, data, metadata.signed.version, "the snapshot")
        _verify(root, "snapshot", metadata, "the snapshot")
        _require_fresh(metadata.signed, now, "the snapshot")
        return metadata.signed

    def _targets(
        self, delegator: Root | Targets, name: str, snapshot: Snapshot, now: datetime, allow_expired: bool
    ) -> Targets:
        wanted = snapshot.meta.get(f"{name}.json")
        if wanted is None:
            raise EdgeError("trust.metadata-mismatch", f"the snapshot does not list {name}")
        data = self._fetch(f"image/{wanted.version}.{name}.json")
        metadata = _read(Targets, data, name)
        _belongs(wanted, data, metadata.signed.version, name)
        _verify(delegator, name, metadata, name)
        if not allow_expired:
            _require_fresh(metadata.signed, now, name)
        return metadata.signed

    def _refuse_rollback(self, timestamp: Timestamp, snapshot: Snapshot) -> None:
        """Compare with what was seen last, then remember this."""
        if self._folder is None:
            return
        now = {"timestamp": timestamp.version, "snapshot": snapshot.version}
        now |= {name.removesuffix(".json"): meta.version for name, meta in snapshot.meta.items()}
        path = self._folder / SEEN_FILE
        if path.is_file():
            with disk_errors(path):
                seen = parse_object(path.read_bytes(), str(path), METADATA_BYTES_MAX)
            for name, version in seen.items():
                if not isinstance(version, int) or now.get(name, 0) < version:
                    raise EdgeError(
                        "trust.metadata-rollback",
                        f"the registry has version {now.get(name, 0)} of {name}, this folder has seen {version}",
                        f"If the registry was restored from an old backup on purpose, remove {path}.",
                    )
            if seen == now:
                return
        write_durably(path, dump(now), 0o600)

    def remember(self, versions: Mapping[str, int]) -> None:
        """Note what was published from here, so that nothing older is taken later."""
        if self._folder is None:
            return
        path = self._folder / SEEN_FILE
        seen: dict[str, Any] = {}
        if path.is_file():
            with disk_errors(path):
                seen = parse_object(path.read_bytes(), str(path), METADATA_BYTES_MAX)
        write_durably(path, dump(seen | dict(versions)), 0o600)

    def _forget_seen(self) -> None:
        if self._folder is not None:
            (self._folder / SEEN_FILE).unlink(missing_ok=True)


def root_file(repository: str) -> str:
    """Name of the pinned root of a repository in a folder of keys."""
    return f"{repository}.root.json"


def read_root(data: bytes, what: str) -> Root:
    """Read root metadata that needs no verification, because the author has just made it or kept it.

    Raises:
        EdgeError: `trust.metadata-invalid`.
    """
    return _read(Root, data, what).signed


def _read(kind: type[_T], data: bytes, what: str) -> Metadata[_T]:
    try:
        # python-tuf takes the last of two equal keys, another reader may take the first.
        parse_object(data, what, METADATA_BYTES_MAX)
        metadata: Metadata[_T] = Metadata.from_bytes(data)
    except (ContractError, DeserializationError, json.JSONDecodeError) as error:
        raise EdgeError("trust.metadata-invalid", f"{what} cannot be read: {error}") from None
    if not isinstance(metadata.signed, kind):
        raise EdgeError("trust.metadata-invalid", f"{what} is metadata of another role")
    return metadata


def _verify(delegator: Root | Targets, role: str, metadata: Metadata[_T], what: str) -> None:
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (UnsignedMetadataError, RepositoryError, ValueError) as error:
        raise EdgeError("trust.signature-invalid", f"{what}: {error}", "Is this the registry you set up?") from None


def _belongs(wanted: Any, data: bytes, version: int, what: str) -> None:
    try:
        wanted.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise EdgeError("trust.metadata-mismatch", f"{what} is not the listed file: {error}") from None
    if version != wanted.version:
        raise EdgeError("trust.metadata-mismatch", f"{what} has version {version}, version {wanted.version} is listed")


def _require_fresh(signed: Root | Targets | Snapshot | Timestamp, now: datetime, what: str) -> None:
    if signed.is_expired(now):
        is_ours = isinstance(signed, Root | Targets)
        hint = "Sign it anew with `packager keys renew`." if is_ours else "Are the clocks here and there right?"
        raise EdgeError("trust.metadata-expired", f"{what} expired on {signed.expires.isoformat()}", hint)


def _online_keys(root: Root) -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(root.roles["snapshot"].keyids), frozenset(root.roles["timestamp"].keyids)
