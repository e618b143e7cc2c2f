"""Reads the image repository's metadata from the registry and trusts none of it before it is verified.

The author's folder of keys holds the root that the author made (`image.root.json`); every newer root has to be signed
by the one before. What was seen last is kept beside it, so that a registry cannot hand out older metadata to have an
author sign a list with entries missing. Without a folder (`packager verify` on a strange machine) the first root is
taken as it comes, and the caller is told.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (
    Delegations,
    Metadata,
    Role,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from cloud_registry.client import RegistryClient
from edge_contract.delegation import CATALOGUE, delegator_of, model_of
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import dump, parse_object
from packager.files import disk_errors, write_durably
from packager.limits import METADATA_BYTES_MAX, ROOT_STEPS_MAX
from packager.tufmake import RoleKeys

_T = TypeVar("_T", Root, Targets, Snapshot, Timestamp)
_MISSING: Final = ("cloud.not-found", "artifact.not-found")
SEEN_FILE: Final = "seen.json"


@dataclass(frozen=True, slots=True)
class View:
    """Verified metadata of one moment.

    Attributes:
        root: The newest root.
        targets: Top-level targets.
        versions: Version by name of every targets role that was ever published.
        roles: The delegated roles that were asked for, by name.
    """

    root: Root
    targets: Targets
    versions: dict[str, int]
    roles: dict[str, Targets] = field(default_factory=dict)

    def next_version(self, role: str) -> int:
        """The version that a role's metadata has to have next."""
        return self.versions.get(role, 0) + 1

    @property
    def models(self) -> dict[str, RoleKeys]:
        """The keys of every model that has its own."""
        named = {model_of(role): role for role in self._top.roles or {}}
        return {model: self.keys_of(role) for model, role in named.items() if model is not None}

    def first_of(self, path: str) -> str:
        """The role below the top that answers for a target path."""
        model = path.partition("/")[0]
        return next((role for role in self._top.roles or {} if model_of(role) == model), CATALOGUE)

    def holder_of(self, path: str) -> str:
        """The role whose list a target path belongs into."""
        first = self.first_of(path)
        bins = bins_of(self.roles.get(first))
        return first if bins is None else bins.get_role_for_target(path)

    def keys_of(self, role: str) -> RoleKeys:
        """The keys that have to sign a delegated role.

        Raises:
            EdgeError: `trust.metadata-invalid` when nothing delegates to it.
        """
        parent = delegator_of(role)
        delegations = self._top if parent is None else self._delegations_of(parent)
        entry: Role | None = delegations.succinct_roles or (delegations.roles or {}).get(role)
        if entry is None:
            raise EdgeError("trust.metadata-invalid", f"nothing delegates to {role}")
        return RoleKeys(tuple(delegations.keys[keyid] for keyid in entry.keyids), entry.threshold)

    def target(self, path: str) -> TargetFile | None:
        """What the fetched metadata says of a path."""
        content = self.roles.get(self.holder_of(path))
        return None if content is None else content.targets.get(path)

    def entries(self) -> Iterator[tuple[str, TargetFile]]:
        """Every listed bundle that devices can reach in the fetched metadata, with the role that lists it."""
        for role, content in sorted(self.roles.items()):
            for path, target in sorted(content.targets.items()):
                if self.holder_of(path) == role:
                    yield role, target

    @property
    def _top(self) -> Delegations:
        return _require_delegations(self.targets, "targets")

    def _delegations_of(self, role: str) -> Delegations:
        return _require_delegations(self.roles[role], role)


def bins_of(content: Targets | None) -> SuccinctRoles | None:
    """The hash bins that a role delegates to, or none when it lists its bundles itself."""
    return None if content is None or content.delegations is None else content.delegations.succinct_roles


def _require_delegations(content: Targets, what: str) -> Delegations:
    delegations = content.delegations
    if delegations is None or (what == "targets" and CATALOGUE not in (delegations.roles or {})):
        raise EdgeError("trust.metadata-invalid", f"{what} do not delegate as a registry's do")
    return delegations


class RootReader:
    """Follows the roots of one repository. Used by one thread."""

    def __init__(self, client: RegistryClient, folder: Path | None, repository: str) -> None:
        """Read from a registry.

        Args:
            client: Any token that may read metadata.
            folder: The author's folder with the pinned root, or none to trust the first root that comes.
            repository: `image` or `director`.
        """
        self._client = client
        self._path = None if folder is None else folder / root_file(repository)
        self._repository = repository
        # The roots of the director are the same for all devices, so any name will do.
        self._prefix = "image" if repository == "image" else "director/packager"

    @property
    def is_pinned(self) -> bool:
        """Whether the first root came from the author and not from the registry."""
        return self._path is not None and self._path.is_file()

    def root(self, on_change: Callable[[Root, Root], None] | None = None) -> Root:
        """The newest root, verified step by step from the pinned one, which it replaces.

        Args:
            on_change: Told of each step, the old root first, before the new one is pinned.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`.
        """
        what = f"{self._repository} root"
        current = self._pinned()
        if current is None:
            current = _read(Root, self._fetch(1), f"the first {what}")
            _verify(current.signed, "root", current, f"the first {what}")
        for _ in range(ROOT_STEPS_MAX):
            version = current.signed.version + 1
            try:
                data = self._fetch(version)
            except EdgeError as error:
                if error.code in _MISSING:
                    break
                raise
            following = _read(Root, data, f"{what} {version}")
            for delegator in (current.signed, following.signed):
                _verify(delegator, "root", following, f"{what} {version}")
            if following.signed.version != version:
                raise EdgeError("trust.metadata-rollback", f"{what} {version} says it is {following.signed.version}")
            if on_change is not None:
                on_change(current.signed, following.signed)
            current = following
            if self._path is not None:
                write_durably(self._path, data)
        return current.signed

    def _fetch(self, version: int) -> bytes:
        return self._client.tuf_file(f"{self._prefix}/{version}.root.json", METADATA_BYTES_MAX)

    def _pinned(self) -> Metadata[Root] | None:
        if self._path is None or not self.is_pinned:
            return None
        with disk_errors(self._path):
            return _read(Root, self._path.read_bytes(), str(self._path))


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
        self._roots = RootReader(client, folder, "image")

    @property
    def is_pinned(self) -> bool:
        """Whether the first root came from the author and not from the registry."""
        return self._roots.is_pinned

    def root(self) -> Root:
        """The newest root, verified step by step from the pinned one, which it replaces.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`.
        """

        def changed(old: Root, new: Root) -> None:
            # Numbers under other online keys are no measure for these (TUF 5.3.11).
            if _online_keys(old) != _online_keys(new):
                self._forget_seen()

        return self._roots.root(changed)

    def _fetch(self, name: str) -> bytes:
        return self._client.tuf_file(name, METADATA_BYTES_MAX)

    # --- everything below the root ---

    def view(self, paths: Iterable[str] = (), *, is_whole: bool = False, allow_expired: bool = False) -> View:
        """Bring verified metadata.

        Args:
            paths: Target paths whose lists are wanted.
            is_whole: Fetch every role that devices can reach.
            allow_expired: Take targets of any level past their expiry, in order to sign them anew.

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
        paths = list(paths)

        def fetch(delegator: Targets, names: Iterable[str]) -> None:
            for name in sorted(set(names) - set(view.roles)):
                # A model's role is missing until somebody signs for it.
                if name in versions or model_of(name) is None:
                    view.roles[name] = self._targets(delegator, name, snapshot, now, allow_expired)

        delegations = _require_delegations(targets, "targets")
        fetch(targets, delegations.roles or {} if is_whole else {view.first_of(path) for path in paths})
        for first, content in list(view.roles.items()):
            bins = bins_of(content)
            if bins is not None:
                wanted = {bins.get_role_for_target(path) for path in paths if view.first_of(path) == first}
                fetch(content, bins.get_roles() if is_whole else wanted)
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
