"""Facts of the registry as its stores give them out. Times are milliseconds since 1970."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cloud_registry.core.roles import Role
from edge_contract.delta import Delta
from edge_contract.deployment import Policy
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject
from edge_contract.tensors import TensorSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Slice(Generic[T]):
    """One page of a list.

    Attributes:
        items: The items in order.
        next_key: Key of the last item if more follow, else none.
    """

    items: tuple[T, ...]
    next_key: str | None


@dataclass(frozen=True, slots=True)
class File:
    """One file of a model version; its bytes are a blob in `models/<model>`."""

    path: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What an author registers; everything of a version but its number and time.

    Attributes:
        format: One of `search.FORMATS`.
        entry: Path of the file an engine is pointed at.
        files: All files, at least one.
        description: Free text.
        tags: Values by dotted key.
        properties: Values by key.
        lineage: `run_id`, `git_commit`, `dataset`; missing ones are left out.
        inputs: Tensor signature, empty when unknown.
        outputs: Tensor signature, empty when unknown.
    """

    format: str
    entry: str
    files: tuple[File, ...]
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Version:
    """A registered model version; immutable but for description, tags and properties."""

    model: str
    number: int
    content: NewVersion
    aliases: tuple[str, ...]
    created_ms: int
    created_by: str


@dataclass(frozen=True, slots=True)
class Model:
    """A named line of versions.

    Attributes:
        name: Unique.
        description: Free text.
        tags: Values by dotted key.
        properties: Values by key.
        latest: Highest number among its versions, or none.
        aliases: Version numbers by alias.
        created_ms: When it was created.
        created_by: Name of the token.
    """

    name: str
    description: str
    tags: Mapping[str, str]
    properties: Mapping[str, str]
    latest: int | None
    aliases: Mapping[str, int]
    created_ms: int
    created_by: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to change of a model or version; none leaves a part as it is."""

    description: str | None = None
    tags: Mapping[str, str] | None = None
    properties: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class AliasChange:
    """One line of an alias's history, or its present: where it points since when. A removed alias points nowhere."""

    alias: str
    version: int | None
    changed_ms: int
    changed_by: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """The bundle of a model version for one platform, as its manifest and the signed image metadata describe it."""

    platform: str
    manifest: Digest
    manifest_bytes: int
    release_counter: int
    hardware_ids: tuple[str, ...]
    repository: str
    index: Digest


@dataclass(frozen=True, slots=True)
class KnownDelta:
    """A delta to a file of a version.

    Attributes:
        delta: What it starts from and makes.
        manifest: Digest of the OCI artifact that carries it.
        index: Digest of the bundle's index, to which the artifact refers.
    """

    delta: Delta
    manifest: Digest
    index: Digest


@dataclass(frozen=True, slots=True)
class EnteredDelta:
    """What entering a delta did.

    Attributes:
        known: The delta as it stands now.
        replaced: Those of the same pair that it took the place of.
    """

    known: KnownDelta
    replaced: tuple[KnownDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class BaseCount:
    """How many devices would start from one bundle.

    Attributes:
        model: Model of the base.
        version: Its version.
        platform: Of the devices.
        manifest: Digest of the bundle that they hold.
        new_manifest: Digest of the bundle that they are to get.
        live: Devices that run it.
        fallback: Devices that keep it as their fallback, and run something that is no base.
    """

    model: str
    version: int
    platform: str
    manifest: Digest
    new_manifest: Digest
    live: int
    fallback: int

    @property
    def devices(self) -> int:
        """All of them."""
        return self.live + self.fallback


@dataclass(frozen=True, slots=True)
class Bases:
    """What a fleet holds that a version could be made from.

    Attributes:
        bases: The most common first.
        current: Devices that run the version already.
        without: Devices that hold nothing known.
        unserved: Devices for whose platform the version has no bundle.
    """

    bases: tuple[BaseCount, ...]
    current: int
    without: int
    unserved: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What deleted versions leave behind in the blob storage.

    Attributes:
        files: Blobs of `models/<model>`; other versions may still use them.
        bundles: Bundles in `bundles/<model>`.
        deltas: Deltas in `bundles/<model>` that made files of these versions, or were made from them.
    """

    files: tuple[Digest, ...]
    bundles: tuple[Bundle, ...]
    deltas: tuple[KnownDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class DesiredModule:
    """What a module of a device should run, by which deployment."""

    deployment: str
    model: str
    version: int
    manifest: Digest


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """One line of the history of a device's identity.

    Attributes:
        kind: `enrolled`, `renewed`, `key-replaced`, `revoked` or `deleted`.
        detail: For example the key's identifier.
        changed_ms: When.
        changed_by: Name of an operator's token, or of the device itself.
    """

    kind: str
    detail: JsonObject
    changed_ms: int
    changed_by: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """The newest report in a device's name that was not believed, and how many there were.

    Attributes:
        code: For example `trust.report-unsigned`.
        detail: What was wrong.
        received_ms: When it came.
        count: Since the device enrolled.
    """

    code: str
    detail: str
    received_ms: int
    count: int


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled device.

    Attributes:
        name: Unique.
        tags: Values by dotted key.
        platform: `os/architecture[/variant]`, as enrolled.
        hardware_id: Free text, may be empty.
        enrolled_ms: First enrolment.
        identity: Name of the current enrolment.
        keyid: Key that signs for it; none for a device whose key is unknown.
        certificate_until_ms: End of its newest certificate.
        revoked_ms: When its identity was revoked, or none.
        refusal: The newest report that was not believed, or none.
        desired: By module.
        report: JSON of the newest report, or none.
        report_received_ms: When it came, or none.
    """

    name: str
    tags: Mapping[str, str]
    platform: str
    hardware_id: str
    enrolled_ms: int
    identity: str
    keyid: str | None
    certificate_until_ms: int
    revoked_ms: int | None
    refusal: Refusal | None
    desired: Mapping[str, DesiredModule]
    report: JsonObject | None
    report_received_ms: int | None


@dataclass(frozen=True, slots=True)
class EnrolmentToken:
    """A fresh one-time token; the text is shown once and kept as a hash."""

    token: str
    device: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class NewDeployment:
    """An operator's wish.

    Attributes:
        name: Free label, may be empty.
        model: Model name.
        version: Number.
        module: Module on the device.
        condition: Text of the target condition.
        policy: Device policy.
        priority: The higher one wins, then the newer one.
    """

    name: str
    model: str
    version: int
    module: str
    condition: str
    policy: Policy
    priority: int


@dataclass(frozen=True, slots=True)
class DeploymentChanges:
    """What is to change of a deployment; none leaves a part as it is."""

    version: int | None = None
    condition: str | None = None
    policy: Policy | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment as it stands.

    Attributes:
        id: Unique, sortable by age.
        content: What the operator wishes.
        state: `active`, `cancelled`, or `superseded` when newer deployments took every device of it.
        counts: Devices by standing.
        devices: Devices it concerns or concerned.
        created_ms: When it was created.
        created_by: Name of the token.
        updated_ms: Last change by an operator.
    """

    id: str
    content: NewDeployment
    state: str
    counts: Mapping[str, int]
    devices: int
    created_ms: int
    created_by: str
    updated_ms: int


@dataclass(frozen=True, slots=True)
class DeploymentDevice:
    """How a deployment stands on one device."""

    device: str
    standing: str
    phase: str | None
    outcome: str | None
    error_code: str | None
    error_detail: str
    manifest: Digest | None
    reported_ms: int | None


@dataclass(frozen=True, slots=True)
class DeploymentChange:
    """One line of a deployment's history: `created`, `updated` or `cancelled`, with what changed."""

    kind: str
    detail: JsonObject
    changed_ms: int
    changed_by: str


@dataclass(frozen=True, slots=True)
class OperatorToken:
    """An operator token without its secret."""

    name: str
    role: Role
    created_ms: int
    created_by: str


@dataclass(frozen=True, slots=True)
class Affected(Generic[T]):
    """The result of a change, and the devices whose assignments changed by it."""

    result: T
    devices: tuple[str, ...]


def needed_by(kind: str, name: str, **more: Any) -> JsonObject:
    """One entry of the list of what still needs a thing."""
    return {"kind": kind, "name": name, **more}
