"""An author of trust metadata for tests: offline keys, roots, targets and bins, as the packager makes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Role, Root, SuccinctRoles, TargetFile, Targets

from edge_contract.delegation import CATALOGUE, CATALOGUE_PATHS
from edge_contract.deployment import Artifact, bundle_repository, target_path
from edge_contract.digest import Digest

BITS = 8
PREFIX = "bins"


def in_days(days: float) -> datetime:
    """An expiry that many days from now, in whole seconds."""
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


@dataclass
class Author:
    """Holds the offline keys and the newest metadata. Used by one thread.

    Attributes:
        online: `online_keys` of the registry's trust summary.
    """

    online: dict[str, dict[str, Any]]
    root_signers: list[CryptoSigner] = field(
        default_factory=lambda: [CryptoSigner.generate_ed25519() for _ in range(2)]
    )
    targets_signer: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    contents: dict[str, Targets] = field(default_factory=dict)
    bins: SuccinctRoles = field(init=False)
    catalogue: DelegatedRole = field(init=False)

    def __post_init__(self) -> None:
        keyids = [self.targets_signer.public_key.keyid]
        self.bins = SuccinctRoles(keyids, 1, BITS, PREFIX)
        self.catalogue = DelegatedRole(CATALOGUE, keyids, 1, False, paths=list(CATALOGUE_PATHS))

    def root(self, repository: str, version: int = 1, **changes: Any) -> Root:
        """Root metadata of `image` or `director`, unsigned, both root keys needed."""
        root = Root(version=version, expires=changes.pop("expires", in_days(365)), consistent_snapshot=True)
        for signer in self.root_signers:
            root.add_key(signer.public_key, "root")
        root.roles["root"] = Role([signer.public_key.keyid for signer in self.root_signers], len(self.root_signers))
        for role, description in self.online[repository].items():
            data = dict(description)
            root.add_key(Key.from_dict(data.pop("keyid"), data), role)
        if repository == "image":
            root.add_key(self.targets_signer.public_key, "targets")
        for name, value in changes.items():
            setattr(root, name, value)
        return root

    def signed_root(
        self, repository: str, version: int = 1, signers: Sequence[CryptoSigner] | None = None, **changes: Any
    ) -> bytes:
        """Signed root metadata."""
        return sign(self.root(repository, version, **changes), self.root_signers if signers is None else signers)

    @property
    def keys(self) -> dict[str, Key]:
        """The key that signs targets of every level, by its identifier."""
        return {self.targets_signer.public_key.keyid: self.targets_signer.public_key}

    def targets(self, version: int = 1, signers: Sequence[CryptoSigner] | None = None, **changes: Any) -> bytes:
        """Top-level targets that delegate to the catalogue."""
        used = [self.targets_signer] if signers is None else signers
        content = Targets(
            version=version,
            expires=changes.pop("expires", in_days(90)),
            delegations=Delegations(self.keys, roles={CATALOGUE: self.catalogue}),
        )
        for name, value in changes.items():
            setattr(content, name, value)
        self.contents["targets"] = content
        return sign(content, used)

    def catalogue_of_bins(self, version: int = 1, signers: Sequence[CryptoSigner] | None = None) -> bytes:
        """The catalogue, which delegates to the bins."""
        content = Targets(
            version=version, expires=in_days(90), delegations=Delegations(self.keys, succinct_roles=self.bins)
        )
        self.contents[CATALOGUE] = content
        return sign(content, [self.targets_signer] if signers is None else signers)

    def first_publish(self) -> dict[str, bytes]:
        """Targets, catalogue and every bin, empty, all of version 1."""
        files = {"targets": self.targets(), CATALOGUE: self.catalogue_of_bins()}
        for role in self.bins.get_roles():
            self.contents[role] = Targets(version=1, expires=in_days(90))
            files[role] = sign(self.contents[role], [self.targets_signer])
        return files

    def delegate_to(self, signer: CryptoSigner) -> dict[str, bytes]:
        """Let another key sign from here on, at every level; the next version of all."""
        self.targets_signer = signer
        self.bins.keyids = self.catalogue.keyids = [signer.public_key.keyid]
        for role in ("targets", CATALOGUE):
            delegations = self.contents[role].delegations
            if delegations is not None:
                delegations.keys = self.keys
        return {role: self.bump(role) for role in ("targets", CATALOGUE, *self.bins.get_roles())}

    def publish(self, artifacts: Iterable[tuple[Digest, int, Artifact]]) -> dict[str, bytes]:
        """The next version of each bin that gets a new target."""
        changed: set[str] = set()
        for digest, length, artifact in artifacts:
            path = target_path(artifact.model, artifact.version, digest)
            role = self.bins.get_role_for_target(path)
            self.contents[role].targets[path] = TargetFile(
                length, {"sha256": digest.hex}, path, {"custom": artifact.to_json()}
            )
            changed.add(role)
        return {role: self.bump(role) for role in changed}

    def bump(self, role: str, by: int = 1, signers: Sequence[CryptoSigner] | None = None, days: float = 90) -> bytes:
        """A role's metadata with a higher version, signed."""
        content = self.contents[role]
        content.version += by
        content.expires = in_days(days)
        return sign(content, [self.targets_signer] if signers is None else signers)


def sign(content: Root | Targets, signers: Iterable[CryptoSigner]) -> bytes:
    """Serialised metadata with the signatures of all signers."""
    metadata: Metadata[Any] = Metadata(content)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def bundle(model: str = "digits", version: int = 1, text: str = "bundle") -> tuple[Digest, int, Artifact]:
    """A made-up bundle: digest, length and what the image repository says of it."""
    data = f"{text} of {model} {version}".encode()
    return Digest.of(data), len(data), Artifact(model, version, "linux/amd64", version, bundle_repository(model))
