"""Custom fields of TUF targets.

What the image repository says of an artifact, and what the director assigns to a device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from edge_contract.delta import Delta, read_deltas, write_deltas
from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject
from edge_contract.limits import MANIFEST_BYTES_MAX, MODULES_MAX, PROBATION_MS_MAX, WINDOWS_MAX
from edge_contract.names import model_name, platform_name, repository_name
from edge_contract.terms import PPM, Resources, Trial

_CODE = "trust.metadata-invalid"
_LATENCY_PERMILLE_MAX = 1_000_000
DAY_MINUTES = 24 * 60


def target_path(model: str, version: int, digest: Digest) -> str:
    """The TUF target path of one bundle manifest: `<model>/<version>/<manifest hex>.json`."""
    return f"{model_name(model)}/{version}/{digest.hex}.json"


def bundle_repository(model: str) -> str:
    """The OCI repository that holds a model's bundles: `bundles/<model>`."""
    return f"bundles/{model_name(model)}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """Custom fields that image repository and director must agree on (Uptane 2.1, "full verification").

    Attributes:
        model: Model name.
        version: Model version, from 1.
        platform: `os/architecture[/variant]`.
        hardware_ids: Hardware the artifact is for; empty means any hardware of the platform.
        release_counter: Never falls on a device without a permit.
        repository: OCI repository that holds the manifest, for example `bundles/digits`.
    """

    model: str
    version: int
    platform: str
    release_counter: int
    repository: str
    hardware_ids: tuple[str, ...] = ()

    def to_json(self) -> JsonObject:
        """The custom object of a TUF target."""
        return {
            "model": self.model,
            "version": self.version,
            "platform": self.platform,
            "hardware_ids": list(self.hardware_ids),
            "release_counter": self.release_counter,
            "repository": self.repository,
        }

    @classmethod
    def _from_fields(cls, fields: Fields) -> "Artifact":
        return cls(
            model=model_name(fields.text("model")),
            version=fields.integer("version", low=1),
            platform=platform_name(fields.text("platform")),
            hardware_ids=fields.texts("hardware_ids", 64, 128),
            release_counter=fields.integer("release_counter"),
            repository=repository_name(fields.text("repository")),
        )

    @classmethod
    def from_json(cls, value: Any) -> "Artifact":
        """Read the custom object of an image repository target; unknown fields are left to later versions.

        Raises:
            ContractError: `trust.metadata-invalid`.
        """
        try:
            return cls._from_fields(Fields(value, "target custom", _CODE))
        except ContractError as error:
            raise ContractError(_CODE, error.detail) from None


class ActivationMode(StrEnum):
    """How a module changes from one bundle to the next."""

    AUTO = "auto"  # overlap where memory allows it, else stop first
    OVERLAP = "overlap"  # the candidate is proved while the live worker answers; no request is lost
    STOP_FIRST = "stop_first"  # the live worker ends before the candidate loads; the gap is measured and reported


@dataclass(frozen=True, slots=True)
class Window:
    """A weekly maintenance window in UTC, in which a candidate may be loaded and activated.

    Attributes:
        days: On which days it opens, 1 (Monday) to 7; empty means every day.
        start_minute: When it opens, minutes after midnight, `0..1439`.
        length_minutes: How long it stays open, `1..1440`; it may reach into the next day.
    """

    start_minute: int
    length_minutes: int
    days: tuple[int, ...] = ()

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {
            "days": list(self.days),
            "start_minute": self.start_minute,
            "length_minutes": self.length_minutes,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Window":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `trust.metadata-invalid`.
        """
        fields = Fields(value, "window", _CODE)
        days = fields.take("days", [])
        if not isinstance(days, list) or not all(type(day) is int and 1 <= day <= 7 for day in days):
            raise ContractError(_CODE, "the days of a window are numbers from 1 (Monday) to 7")
        return cls(
            start_minute=fields.integer("start_minute", high=DAY_MINUTES - 1),
            length_minutes=fields.integer("length_minutes", low=1, high=DAY_MINUTES),
            days=tuple(sorted(set(days))),
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """Device policy of one assignment, signed by the director.

    Attributes:
        sampling_ratio: Overrides the bundle's when not none, `0..1`.
        probation_ms: Overrides the bundle's when not none.
        allow_release_rollback: Permit to install a lower release counter.
        windows: When a candidate may be loaded and activated; empty means at any time. Downloads do not wait.
        activation: How the module changes from the live bundle to this one.
        allow_pickle: The operator's permit to load pickles; needed beside the author's in the runtime descriptor.
        resources: What the worker may use of the device.
        trial: What the candidate has to show beside the live model before it is activated, or none.
        latency_permille_max: Overrides the bundle's `latency_ratio_max` of probation when not none, in thousandths.
    """

    sampling_ratio: float | None = None
    probation_ms: int | None = None
    allow_release_rollback: bool = False
    windows: tuple[Window, ...] = ()
    activation: ActivationMode = ActivationMode.AUTO
    allow_pickle: bool = False
    resources: Resources = field(default_factory=Resources)
    trial: Trial | None = None
    latency_permille_max: int | None = None

    def to_json(self) -> JsonObject:
        """The JSON form; fields that override nothing are left out."""
        result: JsonObject = {"allow_release_rollback": self.allow_release_rollback}
        if self.sampling_ratio is not None:
            result["sampling_ratio"] = self.sampling_ratio
        if self.probation_ms is not None:
            result["probation_ms"] = self.probation_ms
        if self.windows:
            result["windows"] = [window.to_json() for window in self.windows]
        if self.activation is not ActivationMode.AUTO:
            result["activation"] = str(self.activation)
        if self.allow_pickle:
            result["allow_pickle"] = True
        if resources := self.resources.to_json():
            result["resources"] = resources
        if self.trial is not None:
            result["trial"] = self.trial.to_json()
        if self.latency_permille_max is not None:
            result["latency_permille_max"] = self.latency_permille_max
        return result

    def to_custom(self) -> JsonObject:
        """The form inside a signed target: the ratio in parts per million, because canonical JSON has no fractions."""
        result = self.to_json()
        ratio = result.pop("sampling_ratio", None)
        if ratio is not None:
            result["sampling_ppm"] = round(ratio * PPM)
        return result

    @classmethod
    def from_json(cls, value: Any) -> "Policy":
        """Read what `to_json` or `to_custom` wrote; unknown fields are left to later versions.

        Raises:
            ContractError: `trust.metadata-invalid`.
        """
        fields = Fields(value, "policy", _CODE)
        sampling: float | None = None
        if fields.take("sampling_ppm") is not None:
            sampling = fields.integer("sampling_ppm", high=PPM) / PPM
        elif fields.take("sampling_ratio") is not None:
            sampling = fields.number("sampling_ratio", high=1.0)
        probation, trial = fields.take("probation_ms"), fields.take("trial")
        latency = fields.take("latency_permille_max")
        return cls(
            sampling_ratio=sampling,
            probation_ms=None if probation is None else fields.integer("probation_ms", high=PROBATION_MS_MAX),
            allow_release_rollback=fields.flag("allow_release_rollback", False),
            windows=tuple(Window.from_json(item) for item in fields.items("windows", WINDOWS_MAX)),
            activation=_activation(fields.text("activation", ActivationMode.AUTO)),
            allow_pickle=fields.flag("allow_pickle", False),
            resources=Resources.from_json(fields.take("resources", {})),
            trial=None if trial is None else Trial.from_json(trial),
            latency_permille_max=(
                None if latency is None else fields.integer("latency_permille_max", high=_LATENCY_PERMILLE_MAX)
            ),
        )


def _activation(value: str) -> ActivationMode:
    try:
        return ActivationMode(value)
    except ValueError:
        raise ContractError(_CODE, f"no way to activate: {value[:32]!r}; known: {', '.join(ActivationMode)}") from None


@dataclass(frozen=True, slots=True)
class Assignment:
    """One device x one deployment: which bundle a module should run. Made only from verified metadata.

    Attributes:
        module: The slot's owner on the device; one worker process each.
        deployment: Identifier of the deployment, for reports.
        manifest: Digest of the bundle's manifest.
        manifest_bytes: Its length.
        artifact: What both repositories say of it.
        policy: Signed device policy.
        deltas: Ways to make blobs of the bundle out of others. Two assignments that differ in nothing else are equal:
            a delta that was made meanwhile interrupts no update.
    """

    module: str
    deployment: str
    manifest: Digest
    manifest_bytes: int
    artifact: Artifact
    policy: Policy = field(default_factory=Policy)
    deltas: tuple[Delta, ...] = field(default=(), compare=False)

    def to_json(self) -> JsonObject:
        """The JSON form for the device's record."""
        return (
            self.artifact.to_json()
            | self._entry()
            | {"manifest": str(self.manifest), "manifest_bytes": self.manifest_bytes}
            | write_deltas(self.deltas)
        )

    def _entry(self) -> JsonObject:
        return {"module": self.module, "deployment": self.deployment, "policy": self.policy.to_custom()}

    @classmethod
    def from_json(cls, value: Any) -> "Assignment":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `trust.metadata-invalid` or `artifact.digest-invalid`.
        """
        fields = Fields(value, "assignment", _CODE)
        return cls._read(
            fields,
            Artifact.from_json(value),
            Digest(fields.text("manifest")),
            fields.integer("manifest_bytes"),
            read_deltas(fields),
        )

    @classmethod
    def _read(
        cls, fields: Fields, artifact: Artifact, manifest: Digest, manifest_bytes: int, deltas: tuple[Delta, ...]
    ) -> "Assignment":
        if not 0 < manifest_bytes <= MANIFEST_BYTES_MAX:
            raise ContractError(_CODE, f"a manifest has 1 to {MANIFEST_BYTES_MAX} bytes, not {manifest_bytes}")
        try:
            return cls(
                module=model_name(fields.text("module")),
                deployment=fields.text("deployment", chars_max=128),
                manifest=manifest,
                manifest_bytes=manifest_bytes,
                artifact=artifact,
                policy=Policy.from_json(fields.take("policy", {})),
                deltas=deltas,
            )
        except ContractError as error:
            raise ContractError(_CODE, error.detail) from None


def director_custom(assignments: Sequence[Assignment]) -> JsonObject:
    """The custom object of one director target: the artifact, and every module that is to run it.

    A target is a file and stands once in metadata, but two modules of a device may run the same bundle. Deltas stand
    beside them: the director signs on demand, so it can tell of those made after the author signed the bundle.

    Args:
        assignments: At least one, all of the same artifact, manifest and deltas.
    """
    entries = [assignment._entry() for assignment in sorted(assignments, key=lambda item: item.module)]
    return assignments[0].artifact.to_json() | {"assignments": entries} | write_deltas(assignments[0].deltas)


def read_director_custom(value: Any, manifest: Digest, manifest_bytes: int) -> tuple[Assignment, ...]:
    """Read the custom object of a director target; `1..MODULES_MAX` assignments, a module each.

    Raises:
        ContractError: `trust.metadata-invalid`.
    """
    fields = Fields(value, "director target", _CODE)
    artifact = Artifact.from_json(value)
    try:
        entries = fields.items("assignments", MODULES_MAX, required=True)
    except ContractError as error:
        raise ContractError(_CODE, error.detail) from None
    deltas = read_deltas(fields)
    result = tuple(
        Assignment._read(Fields(entry, "assignment", _CODE), artifact, manifest, manifest_bytes, deltas)
        for entry in entries
    )
    if not result or len({assignment.module for assignment in result}) != len(result):
        raise ContractError(_CODE, "a director target is for one or more modules, each named once")
    return result
