"""Makes and signs TUF metadata: roots of both repositories, and every level of the image repository's targets.

python-tuf does the work; here are the choices: consistent snapshots, the delegations of `edge_contract.delegation`,
signatures over canonical JSON, and every document as short JSON.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import DelegatedRole, Delegations, Key, Metadata, Role, Root, SuccinctRoles, TargetFile, Targets
from tuf.api.serialization.json import JSONSerializer

from edge_contract.delegation import CATALOGUE, bin_prefix, model_role, paths_of
from edge_contract.deployment import Artifact, target_path
from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject
from packager.keystore import KeyRing, public_key
from packager.limits import BIN_BITS

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
ONLINE_ROLES: Final = {"image": (SNAPSHOT, TIMESTAMP), "director": (TARGETS, SNAPSHOT, TIMESTAMP)}
_S = TypeVar("_S", Root, Targets)


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """The keys that may sign a role, and how many have to.

    Attributes:
        keys: Public halves.
        threshold: Signatures needed.
    """

    keys: tuple[Key, ...]
    threshold: int

    @property
    def keyids(self) -> list[str]:
        """Identifiers of the keys."""
        return [key.keyid for key in self.keys]


@dataclass(frozen=True, slots=True)
class NewTarget:
    """A bundle's manifest that is to be listed.

    Attributes:
        digest: Digest of the manifest.
        length: Its bytes.
        artifact: What is said of it.
    """

    digest: Digest
    length: int
    artifact: Artifact

    @property
    def path(self) -> str:
        """Its target path."""
        return target_path(self.artifact.model, self.artifact.version, self.digest)

    @classmethod
    def of(cls, file: TargetFile) -> "NewTarget":
        """The target that an entry stands for.

        Raises:
            EdgeError: `trust.metadata-invalid`.
        """
        try:
            digest, artifact = Digest.from_hex(file.hashes.get("sha256", "")), Artifact.from_json(file.custom)
        except ContractError as error:
            raise EdgeError("trust.metadata-invalid", f"{file.path}: {error.detail}") from None
        target = cls(digest, file.length, artifact)
        if target.path != file.path:
            raise EdgeError("trust.metadata-invalid", f"{file.path} is not named by its model, version and digest")
        return target

    def to_file(self) -> TargetFile:
        """The entry in a list."""
        custom = {"custom": self.artifact.to_json()}
        return TargetFile(self.length, {"sha256": self.digest.hex}, self.path, custom)


def expiry(days: int) -> datetime:
    """The instant so many days from now, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def new_root(
    repository: str,
    version: int,
    expires: datetime,
    author: Mapping[str, RoleKeys],
    online: JsonObject,
) -> Metadata[Root]:
    """Root metadata without signatures.

    Args:
        repository: `image` or `director`.
        version: Its version.
        expires: When it ends.
        author: Keys of the roles that the author signs: `root`, and `targets` of the image repository.
        online: The registry's public keys by role, as `GET /api/v1/trust` lists them for the repository.

    Raises:
        EdgeError: `trust.metadata-invalid` when the registry names no key of a role.
    """
    root = Root(
        version=version,
        expires=expires,
        roles={role: Role([], 1) for role in (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)},
        consistent_snapshot=True,
    )
    for role in ONLINE_ROLES[repository]:
        if not isinstance(online.get(role), dict):
            raise EdgeError(
                "trust.metadata-invalid", f"the registry names no {role} key of the {repository} repository"
            )
        root.add_key(public_key(online[role], f"the registry's {role} key"), role)
    for role, keys in author.items():
        for key in keys.keys:
            root.add_key(key, role)
        root.roles[role].threshold = keys.threshold
    return Metadata(root)


def following_root(
    former: Root, expires: datetime, author: Mapping[str, RoleKeys], online: Mapping[str, Key] | None = None
) -> Metadata[Root]:
    """The next root: the author's roles named here get these keys, and so do the registry's; the others stay.

    Args:
        former: The root that it follows.
        expires: When it ends.
        author: Keys of roles that the author signs.
        online: The registry's new key by role, one each.
    """
    given = dict(author) | {name: RoleKeys((key,), 1) for name, key in (online or {}).items()}
    root = Root(
        version=former.version + 1,
        expires=expires,
        roles={name: Role([], role.threshold) for name, role in former.roles.items()},
        consistent_snapshot=True,
    )
    for name in former.roles:
        keys = given.get(name) or keys_of(former, name)
        for key in keys.keys:
            root.add_key(key, name)
        root.roles[name].threshold = keys.threshold
    return Metadata(root)


def new_targets(
    version: int, expires: datetime, keys: RoleKeys, models: Mapping[str, RoleKeys] | None = None
) -> Metadata[Targets]:
    """Top-level targets, which list nothing themselves.

    Args:
        version: Their version.
        expires: When they end.
        keys: Of the catalogue.
        models: Keys by model that has its own.
    """
    roles = {model_role(model): (own, True) for model, own in sorted((models or {}).items())}
    roles[CATALOGUE] = (keys, False)
    delegations = Delegations(
        {key.keyid: key for own, _ in roles.values() for key in own.keys},
        roles={
            name: DelegatedRole(name, own.keyids, own.threshold, is_terminating, paths=list(paths_of(name)))
            for name, (own, is_terminating) in roles.items()
        },
    )
    return Metadata(Targets(version=version, expires=expires, delegations=delegations))


def new_bins(role: str, version: int, expires: datetime, keys: RoleKeys, bits: int = BIN_BITS) -> Metadata[Targets]:
    """The catalogue, or the role of a model with many bundles: it delegates to hash bins under the same keys."""
    bins = SuccinctRoles(keys.keyids, keys.threshold, bits, bin_prefix(role))
    delegations = Delegations({key.keyid: key for key in keys.keys}, succinct_roles=bins)
    return Metadata(Targets(version=version, expires=expires, delegations=delegations))


def new_list(version: int, expires: datetime, targets: Mapping[str, TargetFile] | None = None) -> Metadata[Targets]:
    """A list of bundles: a bin, or the role of a model."""
    return Metadata(Targets(version=version, expires=expires, targets=dict(targets or {})))


def following_list(
    former: Targets | None,
    version: int,
    expires: datetime,
    added: Iterable[NewTarget] = (),
    dropped: Collection[str] = (),
) -> Metadata[Targets] | None:
    """The next version of a list of bundles; none when it says all of that already.

    Args:
        former: The list as it is, or none for the first.
        version: Of the next one.
        expires: When it ends.
        added: Targets to list.
        dropped: Paths to list no longer.

    Raises:
        EdgeError: `cloud.conflict` when a path is listed and something else is said of it.
    """
    targets = {} if former is None else deepcopy(former.targets)
    before = dict(targets)
    for target in added:
        file = target.to_file()
        listed = targets.get(target.path)
        if listed is not None and listed != file:
            raise EdgeError(
                "cloud.conflict",
                f"{target.path} is signed already with other hardware ids, release counter or length",
                "Signed entries never change: register a new version.",
            )
        targets[target.path] = file
    for path in dropped:
        targets.pop(path, None)
    return None if former is not None and targets == before else new_list(version, expires, targets)


def signed(metadata: Metadata[_S], needs: Sequence[tuple[Iterable[str], int]], ring: KeyRing, what: str) -> str:
    """Sign metadata; the JSON text.

    Args:
        metadata: What to sign; existing signatures are dropped.
        needs: Key identifiers with the threshold that they have to reach; for a root, its own and its former's.
        ring: Where the private halves are.
        what: Name for messages.

    Raises:
        EdgeError: `trust.signature-invalid` when keys are missing, `config.key-invalid`.
    """
    metadata.signatures.clear()
    done: set[str] = set()
    for keyids, threshold in needs:
        for signer in ring.signers(list(keyids), threshold, what):
            if signer.public_key.keyid in done:
                continue
            try:
                metadata.sign(signer, append=True)
            except UnsignedMetadataError as error:
                raise EdgeError(
                    "config.key-invalid", f"{what}: a key does not sign: {error.__cause__ or error}"
                ) from None
            done.add(signer.public_key.keyid)
    return metadata.to_bytes(JSONSerializer(compact=True)).decode("utf-8")


def keys_of(root: Root, role: str) -> RoleKeys:
    """The keys that a root trusts for a role."""
    return RoleKeys(tuple(root.keys[keyid] for keyid in root.roles[role].keyids), root.roles[role].threshold)


def same_keys(role: Role, keys: RoleKeys) -> bool:
    """Whether a role trusts exactly these keys with this threshold."""
    return set(role.keyids) == set(keys.keyids) and role.threshold == keys.threshold
