"""TUF repositories in memory, made with python-tuf, that can be told to lie: for tests of whoever verifies them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from edge_contract.delegation import CATALOGUE, model_role
from edge_contract.deployment import Artifact, Assignment, Policy, bundle_repository, director_custom, target_path
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

NOW_MS = 1_780_000_000_000
"""A time for tests, long after the release and far from every edge: 2026-05-28T20:26:40Z."""

TOP_ROLES = ("root", "targets", "snapshot", "timestamp")
BINS = "bins"
DAY_MS = 86_400_000


def moment(wall_ms: int) -> datetime:
    """A wall clock's milliseconds as metadata writes times."""
    return datetime.fromtimestamp(wall_ms // 1000, UTC)


@dataclass
class TufRepository:
    """One repository with one key a role, versions that rise with every `publish`, consistent snapshots.

    Attributes:
        wall_ms: Time that expiries count from.
        bits: Succinct hash bins of so many bits; none for a flat list.
        models: Models with a role of their own; none for bins right below the top, empty for a catalogue alone.
        signed_fields: Unrecognised top-level fields of the targets, for example `{"lighterman": {"device": "d"}}`.
        signed_ms: When timestamps say they were signed; `wall_ms` when none.
        files: What is served, by file name. Tests may put anything here.
        asked: File names that were asked for.
    """

    wall_ms: int = NOW_MS
    bits: int | None = None
    signed_fields: dict[str, Any] = field(default_factory=dict)
    signed_ms: Any = None
    models: Sequence[str] | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    days: dict[str, float] = field(
        default_factory=lambda: {"root": 365, "targets": 30, "snapshot": 7, "timestamp": 1, BINS: 30}
    )

    def __post_init__(self) -> None:
        self.signers = {role: [CryptoSigner.generate_ed25519()] for role in (*TOP_ROLES, BINS)}
        self.targets: dict[str, TargetFile] = {}
        self.versions = {"root": 0, "targets": 0, "snapshot": 0, "timestamp": 0}
        self.root = Root(consistent_snapshot=True)
        for role in TOP_ROLES:
            self.root.add_key(self.signers[role][0].public_key, role)
        self.publish_root()
        self.publish()

    # --- what a publisher does --------------------------------------------------------------------------------------

    def set_target(self, path: str, length: int, hashes: Mapping[str, str], custom: Mapping[str, Any]) -> None:
        """Add or replace a target; `publish` makes it visible."""
        self.targets[path] = TargetFile(length, dict(hashes), path, {"custom": dict(custom)})

    def publish(self, *roles: str) -> None:
        """Write new versions of these roles (all but root when none are named) and of what lists them."""
        wanted = set(roles) or {"targets", *self.delegated_roles}
        for role in sorted(wanted & {"targets", *self.delegated_roles}):
            self.put(role, self.make_targets(role))
        if wanted - {"timestamp"}:
            self.put("snapshot", self.make_snapshot())
        self.put("timestamp", self.make_timestamp())

    def publish_root(
        self, change: Callable[[Root], None] | None = None, signers: Sequence[CryptoSigner] | None = None
    ) -> None:
        """Write the next root, signed by the old and the new root keys unless told otherwise."""
        before = list(self.signers["root"])
        self.versions["root"] += 1
        self.root.version = self.versions["root"]
        self.root.expires = moment(self.wall_ms) + timedelta(days=self.days["root"])
        if change is not None:
            change(self.root)
        used = list(signers) if signers is not None else [*before, *self.signers["root"]]
        self.files[f"{self.root.version}.root.json"] = self.sign(self.root, used)

    def rotate(self, role: str) -> CryptoSigner:
        """Replace a role's key by a new one, in a new root; gives the old signer."""
        old = self.signers[role][0]
        new = CryptoSigner.generate_ed25519()
        before = list(self.signers["root"])

        def change(root: Root) -> None:
            root.revoke_key(old.public_key.keyid, role)
            root.add_key(new.public_key, role)

        self.signers[role] = [new]
        self.publish_root(change, [*before, *self.signers["root"]])
        return old

    # --- pieces, for those who lie ------------------------------------------------------------------------------------

    @property
    def bin_roles(self) -> list[str]:
        """Names of the bins, none for a flat repository."""
        return [] if self.bits is None else list(self._succinct().get_roles())

    @property
    def delegated_roles(self) -> list[str]:
        """Names of all roles below the top."""
        tree = [] if self.models is None else [CATALOGUE, *map(model_role, self.models)]
        return [*tree, *self.bin_roles]

    def key_of(self, role: str) -> CryptoSigner:
        """Who signs for a role: bins share a key."""
        if role in self.bin_roles:
            return self.signers[BINS][0]
        return self.signers.setdefault(role, [CryptoSigner.generate_ed25519()])[0]

    def make_targets(self, role: str = "targets") -> Targets:
        """The next version of the top-level targets or of a delegated role."""
        owned = {path: file for path, file in self.targets.items() if self.holder_of(path) == role}
        fields = dict(self.signed_fields) if role == "targets" else {}
        expires = self._expiry(role if role in TOP_ROLES else BINS)
        content = Targets(version=self._next(role), expires=expires, targets=owned, unrecognized_fields=fields)
        if self.models is not None and role == "targets":
            content.delegations = Delegations({}, roles={})
            for name, paths in [(model_role(model), f"{model}/*/*") for model in self.models] + [(CATALOGUE, "*/*/*")]:
                assert content.delegations.roles is not None
                content.delegations.roles[name] = DelegatedRole(name, [], 1, True, [paths])
                content.add_key(self.key_of(name).public_key, name)
        elif self.bits is not None and role == ("targets" if self.models is None else CATALOGUE):
            key = self.signers[BINS][0].public_key
            content.delegations = Delegations({key.keyid: key}, succinct_roles=self._succinct())
        return content

    def make_snapshot(self) -> Snapshot:
        """The next snapshot, of what is published."""
        meta = {f"{role}.json": self._meta(role) for role in ("targets", *self.delegated_roles)}
        return Snapshot(version=self._next("snapshot"), expires=self._expiry("snapshot"), meta=meta)

    def make_timestamp(self) -> Timestamp:
        """The next timestamp, of the snapshot that is published."""
        said = self.wall_ms if self.signed_ms is None else self.signed_ms
        return Timestamp(
            version=self._next("timestamp"),
            expires=self._expiry("timestamp"),
            snapshot_meta=self._meta("snapshot"),
            unrecognized_fields={"lighterman": {"signed_ms": said}},
        )

    def put(self, role: str, content: Signed, signers: Sequence[CryptoSigner] | None = None) -> None:
        """Sign and serve a role's metadata."""
        used = signers
        if used is None:
            used = self.signers[role] if role in TOP_ROLES else [self.key_of(role)]
        name = "timestamp.json" if role == "timestamp" else f"{content.version}.{role}.json"
        self.files[name] = self.sign(content, used)

    @staticmethod
    def sign(content: Signed, signers: Sequence[CryptoSigner]) -> bytes:
        """Metadata with the signatures of all signers."""
        metadata: Metadata[Any] = Metadata(content)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def bin_of(self, path: str) -> str:
        """Which bin holds a target."""
        return self._succinct().get_role_for_target(path)

    def holder_of(self, path: str) -> str:
        """Which role lists a target."""
        model = path.partition("/")[0]
        if model in (self.models or ()):
            return model_role(model)
        return "targets" if self.bits is None else self.bin_of(path)

    # --- what a device does -----------------------------------------------------------------------------------------

    def fetch(self, name: str, bytes_max: int) -> bytes | None:
        """An `edge_agent.trust.uptane.FetchMetadata`."""
        self.asked.append(name)
        data = self.files.get(name)
        if data is not None and len(data) > bytes_max:
            raise EdgeError("trust.metadata-too-large", f"{name} is longer than {bytes_max} bytes")
        return data

    def _succinct(self) -> SuccinctRoles:
        return SuccinctRoles([self.signers[BINS][0].public_key.keyid], 1, self.bits or 1, BINS)

    def _next(self, role: str) -> int:
        self.versions[role] = self.versions.get(role, 0) + 1
        return self.versions[role]

    def _expiry(self, role: str) -> datetime:
        return moment(self.wall_ms) + timedelta(days=self.days[role])

    def _meta(self, role: str) -> MetaFile:
        version = self.versions[role]
        return MetaFile.from_data(version, self.files[f"{version}.{role}.json"], ["sha256"])


def set_threshold(root: Root, role: str, signers: Sequence[CryptoSigner], threshold: int) -> None:
    """Give a role these keys and this threshold."""
    root.roles[role] = Role([], threshold)
    for signer in signers:
        root.add_key(signer.public_key, role)


class TwoRepositories:
    """A director of one device and an image repository that agree, unless a test changes one of them."""

    def __init__(
        self, device: str = "dev-1", wall_ms: int = NOW_MS, bits: int = 4, models: Sequence[str] | None = None
    ) -> None:
        self.device = device
        self.director = TufRepository(wall_ms, None, {"lighterman": {"device": device}})
        self.image = TufRepository(wall_ms, bits, models=models)

    def release(self, version: int = 1, model: str = "digits", **changes: Any) -> Assignment:
        """Make a bundle known to the image repository and give the assignment that fits it."""
        data = f"manifest of {model} {version}".encode()
        fields: dict[str, Any] = {
            "platform": "linux/amd64",
            "release_counter": version,
            "repository": bundle_repository(model),
        }
        artifact = Artifact(model, version, **(fields | changes))
        assignment = Assignment(model, f"dep-{version}", Digest.of(data), len(data), artifact)
        self.image.set_target(path_of(assignment), len(data), {"sha256": assignment.manifest.hex}, artifact.to_json())
        self.image.publish()
        return assignment

    def assign(self, *assignments: Assignment) -> int:
        """Let the director assign exactly these; gives its targets version."""
        self.director.targets.clear()
        for assignment in assignments:
            hashes = {"sha256": assignment.manifest.hex}
            self.director.set_target(
                path_of(assignment), assignment.manifest_bytes, hashes, director_custom([assignment])
            )
        self.director.publish()
        return self.director.versions["targets"]

    def deploy(self, version: int = 1, policy: Policy | None = None, **changes: Any) -> Assignment:
        """Release and assign."""
        made = self.release(version, **changes)
        if policy is not None:
            made = Assignment(made.module, made.deployment, made.manifest, made.manifest_bytes, made.artifact, policy)
        self.assign(made)
        return made

    def advance(self, days: float) -> int:
        """Let time pass and both repositories be refreshed; gives the time."""
        wall_ms = self.director.wall_ms + int(days * DAY_MS)
        self.director.wall_ms = self.image.wall_ms = wall_ms
        self.director.publish()
        self.image.publish()
        return wall_ms


def path_of(assignment: Assignment) -> str:
    """The target path of an assignment's bundle."""
    return target_path(assignment.artifact.model, assignment.artifact.version, assignment.manifest)
