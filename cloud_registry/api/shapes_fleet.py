"""Bodies of requests and answers about devices and deployments; the others are in `shapes`."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from cloud_registry.api.shapes import Answer, Ask, Label, Labels, Text
from cloud_registry.core.attention import MEANINGS, Attention, attention_of
from cloud_registry.core.instants import to_text, to_text_or_none
from cloud_registry.core.records import (
    Deployment,
    DeploymentChange,
    DeploymentDevice,
    Device,
    DeviceChange,
    Refusal,
)
from cloud_registry.limits import (
    CONDITION_CHARS_MAX,
    ENROLMENT_TTL_S_MAX,
    PRIORITY_MAX,
)
from edge_contract.deployment import DAY_MINUTES, ActivationMode, Policy, Window
from edge_contract.limits import (
    CPUS_MAX,
    NICE_MAX,
    PREDICTIONS_MAX,
    PROBATION_MS_MAX,
    TRIAL_MS_MAX,
    WINDOWS_MAX,
    WORKER_BYTES_MAX,
)
from edge_contract.terms import PERMILLE, PPM, Resources, Trial

_TIME: Final = "2026-03-01T12:00:00.250Z"
_DIGEST: Final = "sha256:" + "5f" * 32

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


class AttentionShape(Answer):
    """Something about a device that somebody should know (docs/twin-truth-table.md)."""

    what: str = Field(examples=["silent"])
    who: str = Field(examples=["device owner"], description="who has to act")
    meaning: str
    detail: str

    @classmethod
    def of(cls, item: Attention) -> "AttentionShape":
        """The shape of a record."""
        return cls(what=item.what, who=str(item.who), meaning=MEANINGS[item.what][1], detail=item.detail)


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
    attention: list[AttentionShape]

    @classmethod
    def of(cls, device: Device, now_ms: int, online_ms: int, director_version: int | None = None) -> "DeviceAnswer":
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
            attention=[AttentionShape.of(item) for item in attention_of(device, now_ms, online_ms, director_version)],
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


class WindowShape(Ask):
    """A weekly maintenance window in UTC."""

    days: list[Annotated[int, Field(ge=1, le=7)]] = Field(
        default=[], max_length=7, description="on which days it opens, 1 (Monday) to 7; none for every day"
    )
    start_minute: int = Field(ge=0, le=DAY_MINUTES - 1, examples=[120], description="minutes after midnight")
    length_minutes: int = Field(ge=1, le=DAY_MINUTES, examples=[180], description="it may reach into the next day")

    @classmethod
    def of(cls, window: Window) -> "WindowShape":
        """The shape of a window."""
        return cls(days=list(window.days), start_minute=window.start_minute, length_minutes=window.length_minutes)

    def window(self) -> Window:
        """What it describes."""
        return Window(self.start_minute, self.length_minutes, tuple(sorted(set(self.days))))


class ResourcesShape(Ask):
    """What a worker may use of a device; 0 and empty mean no bound."""

    memory_bytes_max: int = Field(0, ge=0, le=WORKER_BYTES_MAX)
    cpu_permille_max: int = Field(0, ge=0, le=CPUS_MAX * PERMILLE, description="thousandths of one core")
    cpus: list[int] = Field(default=[], max_length=CPUS_MAX, description="numbers of logical processors")
    nice: int = Field(0, ge=0, le=NICE_MAX)


class TrialShape(Ask):
    """What a candidate has to show beside the live model before it is activated."""

    window_ms: int = Field(ge=1, le=TRIAL_MS_MAX)
    sampling_ppm: int = Field(PPM, ge=1, le=PPM)
    predictions_min: int = Field(20, ge=1, le=PREDICTIONS_MAX)
    predictions_max: int = Field(1_000, ge=1, le=PREDICTIONS_MAX)
    cpu_permille_max: int = Field(250, ge=1, le=CPUS_MAX * PERMILLE)
    memory_bytes_max: int = Field(0, ge=0, le=WORKER_BYTES_MAX)
    top1_ppm_min: int = Field(0, ge=0, le=PPM)
    distance_ppm_max: int = Field(0, ge=0, le=PPM * PERMILLE)
    latency_permille_max: int = Field(0, ge=0, le=PERMILLE * PERMILLE)
    gate: bool = Field(False, description="whether the trial decides, or is only reported")

    def trial(self) -> Trial:
        """What it describes; so many as are needed are never more than are enough."""
        told = self.model_dump()
        return Trial.from_json(told | {"predictions_max": max(self.predictions_min, self.predictions_max)})


class PolicyShape(Ask):
    """Device policy of a deployment; what is left out is as the bundle says."""

    sampling_ratio: float | None = Field(None, ge=0, le=1)
    probation_ms: int | None = Field(None, ge=0, le=PROBATION_MS_MAX)
    allow_release_rollback: bool = False
    windows: list[WindowShape] = Field(
        default=[], max_length=WINDOWS_MAX, description="when a candidate may be loaded and activated; none for always"
    )
    activation: Literal["auto", "overlap", "stop_first"] = Field(
        "auto", description="whether the live worker answers until the candidate is proved, or ends before it loads"
    )

    allow_pickle: bool = Field(False, description="permit to load pickles; the bundle has to ask for it, too")
    resources: ResourcesShape | None = None
    trial: TrialShape | None = Field(None, description="compute beside the live model before activation")
    latency_permille_max: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="roll back when so much slower than the model before, in thousandths",
    )

    @classmethod
    def of(cls, policy: Policy) -> "PolicyShape":
        """The shape of a policy."""
        resources, trial = policy.resources.to_json(), policy.trial
        return cls(
            sampling_ratio=policy.sampling_ratio,
            probation_ms=policy.probation_ms,
            allow_release_rollback=policy.allow_release_rollback,
            windows=[WindowShape.of(window) for window in policy.windows],
            activation=policy.activation.value,
            allow_pickle=policy.allow_pickle,
            resources=ResourcesShape(**resources) if resources else None,
            trial=None if trial is None else TrialShape(**trial.to_json()),
            latency_permille_max=policy.latency_permille_max,
        )

    def policy(self) -> Policy:
        """What it describes."""
        return Policy(
            self.sampling_ratio,
            self.probation_ms,
            self.allow_release_rollback,
            tuple(item.window() for item in self.windows),
            ActivationMode(self.activation),
            self.allow_pickle,
            Resources() if self.resources is None else Resources.from_json(self.resources.model_dump()),
            None if self.trial is None else self.trial.trial(),
            self.latency_permille_max,
        )


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
            policy=PolicyShape.of(content.policy),
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
