"""Bodies of requests and answers, as the OpenAPI document publishes them. Requests refuse members they do not know."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cloud_registry.core.instants import to_text, to_text_or_none
from cloud_registry.core.records import (
    AliasChange,
    Bundle,
    Deployment,
    DeploymentChange,
    DeploymentDevice,
    Device,
    DeviceChange,
    Model,
    OperatorToken,
    Refusal,
    Version,
)
from cloud_registry.limits import (
    CONDITION_CHARS_MAX,
    DESCRIPTION_CHARS_MAX,
    ENROLMENT_TTL_S_MAX,
    FILES_MAX,
    LABEL_CHARS_MAX,
    PRIORITY_MAX,
    QUERY_CHARS_MAX,
)
from edge_contract.limits import BLOB_BYTES_MAX, PROBATION_MS_MAX, TENSORS_MAX

_TIME: Final = "2026-03-01T12:00:00.250Z"
_DIGEST: Final = "sha256:" + "5f" * 32


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("the character NUL is not allowed")
    text.encode("utf-8")  # lone surrogates cannot be stored
    return text


Text = Annotated[str, AfterValidator(_without_nul)]
Label = Annotated[Text, Field(max_length=LABEL_CHARS_MAX)]
Description = Annotated[Text, Field(max_length=DESCRIPTION_CHARS_MAX)]
Labels = dict[Text, Text]


class Ask(BaseModel):
    """A body that is sent to the registry."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Answer(BaseModel):
    """A body that the registry sends."""


class Problem(Answer):
    """A problem document (RFC 9457)."""

    type: str = Field(examples=["https://lighterman.dev/problems/cloud.not-found"])
    title: str = Field(examples=["There is no such thing in the registry."])
    status: int
    detail: str = Field(examples=["there is no model 'digits'"])
    instance: str = Field(examples=["/api/v1/models/digits"])
    code: str = Field(examples=["cloud.not-found"], description="stable error code")
    hint: str = Field(examples=["Create it first, or see the list of models."])


# --- models ---


class ModelAsk(Ask):
    """A new model."""

    name: Text = Field(examples=["digits"])
    description: Description = ""
    tags: Labels = Field(default_factory=dict, examples=[{"task": "classification"}])
    properties: Labels = Field(default_factory=dict)


class ChangeAsk(Ask):
    """What to change of a model or version; what is left out stays as it is."""

    description: Description | None = None
    tags: Labels | None = None
    properties: Labels | None = None


class FileShape(Ask):
    """One file of a version."""

    path: Text = Field(examples=["model.onnx"])
    digest: Text = Field(examples=[_DIGEST])
    size: int = Field(ge=0, le=BLOB_BYTES_MAX)


class LineageShape(Ask):
    """Where a version comes from."""

    run_id: Label | None = Field(None, examples=["run-2026-03-01"])
    git_commit: Label | None = Field(None, examples=["4b825dc642cb6eb9a060e54bf8d69288fbee4904"])
    dataset: Label | None = Field(None, examples=["digits-2026-02"])


class TensorShape(Ask):
    """Name, datatype and shape of an input or output; -1 is a free dimension."""

    name: Text = Field(examples=["pixels"])
    datatype: Text = Field(examples=["FP32"])
    shape: list[int] = Field(examples=[[-1, 64]])


class VersionAsk(Ask):
    """A new version; its files are blobs of `models/<name>` already."""

    format: Literal["onnx", "tflite", "script"]
    files: list[FileShape] = Field(min_length=1, max_length=FILES_MAX)
    entry: Text = Field("", description="the file an engine is pointed at; needed when several could be it")
    description: Description = ""
    tags: Labels = Field(default_factory=dict)
    properties: Labels = Field(default_factory=dict)
    lineage: LineageShape | None = None
    inputs: list[TensorShape] = Field(default_factory=list, max_length=TENSORS_MAX)
    outputs: list[TensorShape] = Field(default_factory=list, max_length=TENSORS_MAX)


class ModelAnswer(Answer):
    """A model."""

    name: str = Field(examples=["digits"])
    description: str
    tags: dict[str, str]
    properties: dict[str, str]
    latest_version: int | None = Field(examples=[2])
    aliases: dict[str, int] = Field(examples=[{"production": 1}])
    created_at: str = Field(examples=[_TIME])
    created_by: str

    @classmethod
    def of(cls, model: Model) -> "ModelAnswer":
        """The shape of a record."""
        return cls(
            name=model.name,
            description=model.description,
            tags=dict(model.tags),
            properties=dict(model.properties),
            latest_version=model.latest,
            aliases=dict(model.aliases),
            created_at=to_text(model.created_ms),
            created_by=model.created_by,
        )


class VersionAnswer(Answer):
    """A model version."""

    name: str = Field(examples=["digits"], description="name of the model")
    version: int = Field(examples=[2])
    format: str = Field(examples=["onnx"])
    files: list[FileShape]
    entry: str = Field(examples=["model.onnx"])
    description: str
    tags: dict[str, str]
    properties: dict[str, str]
    lineage: dict[str, str]
    inputs: list[TensorShape]
    outputs: list[TensorShape]
    aliases: list[str]
    created_at: str = Field(examples=[_TIME])
    created_by: str

    @classmethod
    def of(cls, version: Version) -> "VersionAnswer":
        """The shape of a record."""
        content = version.content
        return cls(
            name=version.model,
            version=version.number,
            format=content.format,
            files=[FileShape(path=file.path, digest=str(file.digest), size=file.size) for file in content.files],
            entry=content.entry,
            description=content.description,
            tags=dict(content.tags),
            properties=dict(content.properties),
            lineage=dict(content.lineage),
            inputs=[TensorShape(**item.to_json()) for item in content.inputs],
            outputs=[TensorShape(**item.to_json()) for item in content.outputs],
            aliases=list(version.aliases),
            created_at=to_text(version.created_ms),
            created_by=version.created_by,
        )


class ModelPage(Answer):
    """Models by name; `next` is the cursor of the next page."""

    items: list[ModelAnswer]
    next: str | None


class VersionPage(Answer):
    """Versions, newest first."""

    items: list[VersionAnswer]
    next: str | None


class AliasAsk(Ask):
    """Where an alias points."""

    version: int = Field(ge=1, examples=[2])


class AliasAnswer(Answer):
    """Where an alias points since when; in a history, `version` is null where it was removed."""

    alias: str = Field(examples=["production"])
    version: int | None
    changed_at: str = Field(examples=[_TIME])
    changed_by: str

    @classmethod
    def of(cls, change: AliasChange) -> "AliasAnswer":
        """The shape of a record."""
        return cls(
            alias=change.alias,
            version=change.version,
            changed_at=to_text(change.changed_ms),
            changed_by=change.changed_by,
        )


class AliasList(Answer):
    """Aliases, or the history of one."""

    items: list[AliasAnswer]


class BundleAsk(Ask):
    """A bundle that was pushed to `bundles/<name>` and signed."""

    index: Text = Field(examples=[_DIGEST], description="digest of the OCI index")


class BundleManifest(Answer):
    """The bundle for one platform."""

    platform: str = Field(examples=["linux/arm64"])
    digest: str = Field(examples=[_DIGEST])
    size: int
    release_counter: int
    hardware_ids: list[str]
    index: str = Field(examples=[_DIGEST])

    @classmethod
    def of(cls, bundle: Bundle) -> "BundleManifest":
        """The shape of a record."""
        return cls(
            platform=bundle.platform,
            digest=str(bundle.manifest),
            size=bundle.manifest_bytes,
            release_counter=bundle.release_counter,
            hardware_ids=list(bundle.hardware_ids),
            index=str(bundle.index),
        )


class BundleAnswer(Answer):
    """What was entered."""

    index: str
    manifests: list[BundleManifest]


class BundleList(Answer):
    """The bundles of a version by platform."""

    items: list[BundleManifest]


# --- devices ---


class EnrolmentAsk(Ask):
    """A one-time token for a device."""

    device: Text = Field(examples=["cam-1"])
    tags: Labels = Field(default_factory=dict, examples=[{"site": "north"}])
    ttl_s: int | None = Field(None, ge=1, le=ENROLMENT_TTL_S_MAX, description="seconds until the token expires")


class EnrolmentAnswer(Answer):
    """A one-time token; it is shown this once."""

    token: str = Field(examples=["lme_…"])
    device: str
    expires_at: str = Field(examples=[_TIME])


class DesiredShape(Answer):
    """What a module should run."""

    deployment: str
    model: str
    version: int
    manifest: str


class ReportRefusedShape(Answer):
    """The newest report in a device's name that was not believed; it changed nothing."""

    code: str = Field(examples=["trust.report-unsigned"])
    detail: str
    received_at: str = Field(examples=[_TIME])
    count: int = Field(description="how many since the device enrolled")

    @classmethod
    def of(cls, refusal: Refusal) -> "ReportRefusedShape":
        """The shape of a record."""
        return cls(
            code=refusal.code, detail=refusal.detail, received_at=to_text(refusal.received_ms), count=refusal.count
        )


class DeviceAnswer(Answer):
    """An enrolled device: what it should run, and what it last said of itself."""

    name: str = Field(examples=["cam-1"])
    tags: dict[str, str]
    platform: str = Field(examples=["linux/arm64"])
    hardware_id: str
    enrolled_at: str = Field(examples=[_TIME])
    desired: dict[str, DesiredShape]
    director_version: int | None = Field(
        None, description="version of the director metadata the device reported, or null"
    )
    identity: str = Field(description="name of its enrolment: the common name of its certificates")
    keyid: str | None = Field(description="SHA-256 of the public key that signs for it")
    certificate_until: str = Field(examples=[_TIME], description="it has to enrol again unless it renews before")
    revoked_at: str | None = Field(description="when an operator ended its identity")
    report_refused: ReportRefusedShape | None = Field(description="the newest report that was not believed")
    report: dict[str, Any] | None
    report_received_at: str | None
    is_online: bool = Field(description="whether it reported within the last three minutes")

    @classmethod
    def of(cls, device: Device, now_ms: int, online_ms: int) -> "DeviceAnswer":
        """The shape of a record."""
        received = device.report_received_ms
        return cls(
            name=device.name,
            tags=dict(device.tags),
            platform=device.platform,
            hardware_id=device.hardware_id,
            enrolled_at=to_text(device.enrolled_ms),
            desired={
                name: DesiredShape(
                    deployment=item.deployment, model=item.model, version=item.version, manifest=str(item.manifest)
                )
                for name, item in device.desired.items()
            },
            director_version=None if device.report is None else device.report.get("director_version"),
            identity=device.identity,
            keyid=device.keyid,
            certificate_until=to_text(device.certificate_until_ms),
            revoked_at=to_text_or_none(device.revoked_ms),
            report_refused=None if device.refusal is None else ReportRefusedShape.of(device.refusal),
            report=device.report,
            report_received_at=to_text_or_none(received),
            is_online=received is not None and now_ms - received <= online_ms,
        )


class DeviceChangeAnswer(Answer):
    """One line of the history of a device's identity."""

    kind: str = Field(examples=["enrolled"])
    detail: dict[str, Any]
    changed_at: str = Field(examples=[_TIME])
    changed_by: str

    @classmethod
    def of(cls, change: DeviceChange) -> "DeviceChangeAnswer":
        """The shape of a record."""
        return cls(
            kind=change.kind,
            detail=change.detail,
            changed_at=to_text(change.changed_ms),
            changed_by=change.changed_by,
        )


class DeviceHistory(Answer):
    """The history of a device's identity, oldest first."""

    items: list[DeviceChangeAnswer]


class DevicePage(Answer):
    """Devices by name."""

    items: list[DeviceAnswer]
    next: str | None


# --- deployments ---


class PolicyShape(Ask):
    """Device policy of a deployment; what is left out is as the bundle says."""

    sampling_ratio: float | None = Field(None, ge=0, le=1)
    probation_ms: int | None = Field(None, ge=0, le=PROBATION_MS_MAX)
    allow_release_rollback: bool = False


class DeploymentAsk(Ask):
    """A new deployment."""

    model: Text = Field(examples=["digits"])
    version: int | Text = Field(examples=[2], description="number or alias")
    condition: Text = Field(max_length=CONDITION_CHARS_MAX, examples=["tags.site = 'north'"])
    module: Text | None = Field(None, description="module on the device; the model's name unless given")
    policy: PolicyShape | None = None
    name: Label = ""
    priority: int = Field(0, ge=0, le=PRIORITY_MAX, description="the higher one wins, then the newer one")


class DeploymentChangeAsk(Ask):
    """What to change of a deployment; what is left out stays as it is."""

    version: int | Text | None = None
    condition: Text | None = Field(None, max_length=CONDITION_CHARS_MAX)
    policy: PolicyShape | None = None


class PreviewAsk(Ask):
    """A condition to try."""

    condition: Text = Field(max_length=CONDITION_CHARS_MAX, examples=["platform IN ['linux/arm64']"])


class PreviewAnswer(Answer):
    """The devices a condition matches now."""

    devices: list[str] = Field(examples=[["cam-1", "cam-2"]])
    count: int


class DeploymentAnswer(Answer):
    """A deployment as it stands."""

    id: str = Field(examples=["d7-3fa9c1"])
    name: str
    model: str
    version: int
    module: str
    condition: str
    policy: PolicyShape
    priority: int
    state: Literal["active", "cancelled", "superseded"]
    counts: dict[str, int] = Field(examples=[{"pending": 3, "confirmed": 17}])
    devices: int
    created_at: str = Field(examples=[_TIME])
    created_by: str
    updated_at: str = Field(examples=[_TIME])

    @classmethod
    def of(cls, deployment: Deployment) -> "DeploymentAnswer":
        """The shape of a record."""
        content = deployment.content
        return cls(
            id=deployment.id,
            name=content.name,
            model=content.model,
            version=content.version,
            module=content.module,
            condition=content.condition,
            policy=PolicyShape(
                sampling_ratio=content.policy.sampling_ratio,
                probation_ms=content.policy.probation_ms,
                allow_release_rollback=content.policy.allow_release_rollback,
            ),
            priority=content.priority,
            state=deployment.state,  # type: ignore[arg-type]  # checked by the shape
            counts=dict(deployment.counts),
            devices=deployment.devices,
            created_at=to_text(deployment.created_ms),
            created_by=deployment.created_by,
            updated_at=to_text(deployment.updated_ms),
        )


class DeploymentPage(Answer):
    """Deployments, newest first."""

    items: list[DeploymentAnswer]
    next: str | None


class ErrorShape(Answer):
    """An error as a device reported it."""

    code: str = Field(examples=["model.golden-mismatch"])
    detail: str


class DeploymentDeviceAnswer(Answer):
    """How a deployment stands on one device."""

    device: str
    standing: str = Field(examples=["confirmed"])
    phase: str | None = Field(examples=["idle"])
    outcome: str | None = Field(examples=["confirmed"])
    error: ErrorShape | None
    manifest: str | None
    reported_at: str | None

    @classmethod
    def of(cls, item: DeploymentDevice) -> "DeploymentDeviceAnswer":
        """The shape of a record."""
        error = None if item.error_code is None else ErrorShape(code=item.error_code, detail=item.error_detail)
        # A device for which there is no bundle never hears of the deployment: it is refused here.
        outcome = "refused" if item.outcome is None and item.standing == "refused" else item.outcome
        return cls(
            device=item.device,
            standing=item.standing,
            phase=item.phase,
            outcome=outcome,
            error=error,
            manifest=None if item.manifest is None else str(item.manifest),
            reported_at=to_text_or_none(item.reported_ms),
        )


class DeploymentDevicePage(Answer):
    """Devices of a deployment by name."""

    items: list[DeploymentDeviceAnswer]
    next: str | None


class DeploymentChangeAnswer(Answer):
    """One line of a deployment's history."""

    kind: Literal["created", "updated", "cancelled"]
    detail: dict[str, Any]
    changed_at: str = Field(examples=[_TIME])
    changed_by: str

    @classmethod
    def of(cls, change: DeploymentChange) -> "DeploymentChangeAnswer":
        """The shape of a record."""
        return cls(
            kind=change.kind,  # type: ignore[arg-type]  # checked by the shape
            detail=change.detail,
            changed_at=to_text(change.changed_ms),
            changed_by=change.changed_by,
        )


class DeploymentHistory(Answer):
    """A deployment's history, oldest first."""

    items: list[DeploymentChangeAnswer]


# --- tokens, trust, telemetry, health ---


class TokenAsk(Ask):
    """A new operator token."""

    name: Text = Field(examples=["ci"])
    role: Text = Field(examples=["publisher"])


class TokenAnswer(Answer):
    """An operator token without its secret."""

    name: str
    role: str
    created_at: str = Field(examples=[_TIME])
    created_by: str

    @classmethod
    def of(cls, token: OperatorToken) -> "TokenAnswer":
        """The shape of a record."""
        return cls(
            name=token.name, role=str(token.role), created_at=to_text(token.created_ms), created_by=token.created_by
        )


class NewTokenAnswer(Answer):
    """A fresh operator token; it is shown this once."""

    name: str
    role: str
    token: str = Field(examples=["lmo_…"])


class OwnTokenAnswer(Answer):
    """Whose token came with the request; a device has no role."""

    name: str
    role: str | None = Field(examples=["operator"])


class TokenList(Answer):
    """Operator tokens by name."""

    items: list[TokenAnswer]


class RootsAsk(Ask):
    """New root metadata, each the JSON text of a signed TUF root."""

    image: str | None = None
    director: str | None = None


class OnlineKeyAsk(Ask):
    """What the next key of one online role is to be."""

    repository: str = Field(max_length=16, examples=["image"])
    role: str = Field(max_length=16, examples=["timestamp"])
    uri: str = Field(default="", max_length=512, examples=["hsm:2?label=registry"])


class OnlineKeysAsk(Ask):
    """Which online roles get a next key; all of them when none is named."""

    keys: list[OnlineKeyAsk] = Field(default_factory=list, max_length=16)
    afresh: bool = Field(default=False, description="Make new ones even if unused ones wait: they may be stolen too.")


class MetadataAsk(Ask):
    """Signed targets by role name, each the JSON text of a signed TUF document."""

    files: dict[str, str] = Field(examples=[{"targets": "{…}", "bins-0a": "{…}"}])


class QueryAsk(Ask):
    """A query on the telemetry lake."""

    sql: Text = Field(max_length=QUERY_CHARS_MAX, examples=["SELECT device, count(*) FROM predictions GROUP BY device"])


class QueryAnswer(Answer):
    """The first rows of the result; `truncated` when there are more."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool


class HealthAnswer(Answer):
    """Whether the registry can work."""

    ready: bool
    checks: dict[str, str] = Field(examples=[{"database": "ok"}])
