"""Reading, verifying and writing TUF metadata by python-tuf, with its exceptions turned into coded errors.

Verification is of the exact bytes that will be stored and served: they are read strictly, then by python-tuf.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError

from cloud_registry.adapters.tuf_keys import DIRECTOR, IMAGE, OnlineKeys
from cloud_registry.limits import ROOT_BYTES_MAX, TARGETS_BYTES_MAX
from cloud_registry.ports import ImageTarget
from edge_contract.deployment import Artifact, target_path
from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, parse_object

Part = TypeVar("Part", Root, Targets, Snapshot, Timestamp)
LOGGER = logging.getLogger(__name__)
_OFFLINE: Final = {IMAGE: ("root", "targets"), DIRECTOR: ("root",)}


def instant(wall_ms: int) -> datetime:
    """A time of TUF metadata, whole seconds, from milliseconds since 1970."""
    return datetime.fromtimestamp(wall_ms // 1000, UTC)


def later(wall_ms: int, life_ms: int) -> datetime:
    """The expiry of metadata made now."""
    return instant(wall_ms) + timedelta(milliseconds=life_ms)


def is_past_half(expires: datetime, wall_ms: int, life_ms: int) -> bool:
    """Whether less than half of the life is left, so that it is time for new metadata."""
    return expires - instant(wall_ms) < timedelta(milliseconds=life_ms / 2)


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    try:
        yield
    except UnsignedMetadataError as error:
        raise EdgeError(
            "trust.signature-invalid",
            f"{what}: {error}",
            "Sign it with enough of the keys that its delegator names.",
        ) from None
    except (DeserializationError, SerializationError) as error:
        cause = error.__cause__ or error
        raise EdgeError("trust.metadata-invalid", f"{what} is not TUF metadata: {cause}") from None
    except (RepositoryError, ValueError, KeyError, TypeError) as error:
        raise EdgeError("trust.metadata-invalid", f"{what}: {error}") from None


def read(kind: type[Part], data: bytes, what: str, bytes_max: int) -> Metadata[Part]:
    """Read metadata of one kind; nothing is verified yet.

    Raises:
        EdgeError: `trust.metadata-too-large`, `trust.metadata-invalid`.
    """
    if len(data) > bytes_max:
        raise EdgeError("trust.metadata-too-large", f"{what} has {len(data)} bytes, at most {bytes_max} are allowed")
    try:
        # python-tuf takes the last of two equal keys, another reader may take the first.
        parse_object(data, what, bytes_max)
    except ContractError as error:
        raise EdgeError("trust.metadata-invalid", error.detail) from None
    with _library_errors(what):
        metadata: Metadata[Part] = Metadata.from_bytes(data)
        if not isinstance(metadata.signed, kind):
            raise ValueError(f"its type is {metadata.signed.type!r}")
        return metadata


def verify(delegator: Root | Targets, role: str, metadata: Metadata[Part], what: str) -> None:
    """Require the signatures that a delegator asks for.

    Raises:
        EdgeError: `trust.signature-invalid`, `trust.metadata-invalid`.
    """
    with _library_errors(what):
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


def require_fresh(expires: datetime, wall_ms: int, what: str) -> None:
    """Refuse metadata that every device would refuse.

    Raises:
        EdgeError: `trust.metadata-expired`.
    """
    if expires <= instant(wall_ms):
        raise EdgeError("trust.metadata-expired", f"{what} expired on {expires.isoformat()}", "Sign it anew.")


# --- Roots ---


def next_root(repository: str, data: bytes, former: bytes | None, keys: OnlineKeys, wall_ms: int) -> Root:
    """Verify new root metadata by the TUF root rules, and that the server can work under it.

    Args:
        repository: `image` or `director`.
        data: The new root.
        former: The root it follows, or none for the first.
        keys: The server's own keys.
        wall_ms: The time.

    Raises:
        EdgeError: `trust.*`; `cloud.conflict` for a version that is not the next.
    """
    what = f"the {repository} root"
    metadata = read(Root, data, what, ROOT_BYTES_MAX)
    root = metadata.signed
    previous = None if former is None else read(Root, former, what, ROOT_BYTES_MAX).signed
    wanted = 1 if previous is None else previous.version + 1
    if root.version != wanted:
        raise EdgeError(
            "cloud.conflict", f"{what} has version {root.version}, the next one is {wanted}", "Start from the newest."
        )
    for signer in (previous, root) if previous is not None else (root,):
        verify(signer, Root.type, metadata, what)
    require_fresh(root.expires, wall_ms, what)
    _require_workable(repository, root, keys)
    return root


def _require_workable(repository: str, root: Root, keys: OnlineKeys) -> None:
    what = f"the {repository} root"
    hint = "Make it with the online keys that GET /api/v1/trust lists."
    if root.consistent_snapshot is not True:
        raise EdgeError("trust.metadata-invalid", f"{what} does not ask for consistent snapshots", hint)
    own = keys.own_keyids()
    for name, role in root.roles.items():
        if len(role.keyids) < role.threshold:
            raise EdgeError("trust.metadata-invalid", f"{what}: {name} needs more signatures than it has keys")
        if name in _OFFLINE[repository] and own.intersection(role.keyids):
            raise EdgeError("trust.metadata-invalid", f"{what} trusts a key of this server for {name}", hint)
        if name not in _OFFLINE[repository]:
            ours = keys.trusted(repository, name, role.keyids)
            if not ours or role.threshold != 1:
                raise EdgeError("trust.metadata-invalid", f"{what} does not let this server's key sign {name}", hint)
            if any(root.keys.get(key.public.keyid) != key.public for key in ours):
                raise EdgeError("trust.metadata-invalid", f"{what} has another key under {name}'s identifier", hint)


# --- Targets of the image repository ---


def read_targets(data: bytes, role: str) -> Metadata[Targets]:
    """Read targets of any level.

    Raises:
        EdgeError: `trust.metadata-too-large`, `trust.metadata-invalid`.
    """
    return read(Targets, data, role, TARGETS_BYTES_MAX)


def image_target(path: str, target: TargetFile) -> ImageTarget:
    """One target in our form.

    Raises:
        EdgeError: `trust.metadata-invalid`.
    """
    try:
        digest = Digest.from_hex(str(target.hashes.get("sha256")))
        artifact = Artifact.from_json(target.custom)
    except ContractError as error:
        raise EdgeError("trust.metadata-invalid", f"target {path!r}: {error.detail}") from None
    if path != target_path(artifact.model, artifact.version, digest):
        raise EdgeError("trust.metadata-invalid", f"target {path!r} is not named by its model, version and digest")
    return ImageTarget(path, target.length, digest, artifact)


# --- Online metadata ---


def trusted_signer(root: Root, repository: str, role: str, keys: OnlineKeys) -> Signer:
    """The server's newest key that a root trusts for an online role.

    Raises:
        EdgeError: `config.key-invalid` when it trusts none of those that are here.
    """
    ours = keys.trusted(repository, role, root.roles[role].keyids)
    if not ours:
        raise EdgeError(
            "config.key-invalid",
            f"the {repository} root trusts no {role} key of this server",
            "Restore the folder of online keys, or introduce new ones: packager keys rotate --role online.",
        )
    return ours[-1].signer


def signed(content: Part, signer: Signer, former: Signer | None = None) -> bytes:
    """Sign metadata with the server's key of its role; the bytes to store and serve.

    Args:
        content: What to sign.
        signer: The key that the newest root trusts.
        former: The key that the root before trusted, for devices that have not seen the newest one yet; left out if it
            does not sign any more.

    Raises:
        EdgeError: `config.key-invalid` when the key does not sign.
    """
    metadata = Metadata(content)
    try:
        metadata.sign(signer)
    except UnsignedMetadataError as error:
        what = f"the online {content.type} key does not sign: {error.__cause__ or error}"
        raise EdgeError("config.key-invalid", what, "Is its token or key service within reach?") from None
    if former is not None and former.public_key.keyid != signer.public_key.keyid:
        try:
            metadata.sign(former, append=True)
        except UnsignedMetadataError as error:
            LOGGER.warning("the former %s key does not sign any more: %s", content.type, error.__cause__ or error)
    with _library_errors(content.type):
        return metadata.to_bytes()


def listed(version: int, data: bytes) -> MetaFile:
    """How a snapshot lists a file: with length and digest, so that its version alone does not stand for it.

    Without them, whoever stole the keys of a role could tell his own file in the place of the newest one, with its
    version, to every device that has not seen that yet, and would need no online key.
    """
    return MetaFile.from_data(version, data, ["sha256"])


def new_snapshot(version: int, files: Mapping[str, MetaFile], wall_ms: int, life_ms: int) -> Snapshot:
    """A snapshot of targets roles by name."""
    meta = {f"{role}.json": file for role, file in files.items()}
    return Snapshot(version=version, expires=later(wall_ms, life_ms), meta=meta)


def new_timestamp(version: int, snapshot_version: int, snapshot: bytes, wall_ms: int, life_ms: int) -> Timestamp:
    """A timestamp that names a snapshot by version, length and digest, and says when it was signed.

    A device without a clock takes the newest instant that such a signature vouches for as the earliest it can be.
    """
    meta = listed(snapshot_version, snapshot)
    said: JsonObject = {"lighterman": {"signed_ms": wall_ms}}
    return Timestamp(version=version, expires=later(wall_ms, life_ms), snapshot_meta=meta, unrecognized_fields=said)
