"""Custom fields of TUF targets.

What the image repository says of an artifact, and what the director assigns to a device.
"""

from dataclasses import dataclass, field
from typing import Any

from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject
from edge_contract.limits import MANIFEST_BYTES_MAX, PROBATION_MS_MAX
from edge_contract.names import model_name, platform_name, repository_name

_CODE = "trust.metadata-invalid"
_PPM = 1_000_000


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


@dataclass(frozen=True, slots=True)
class Policy:
    """Device policy of one assignment, signed by the director.

    Attributes:
        sampling_ratio: Overrides the bundle's when not none, `0..1`.
        probation_ms: Overrides the bundle's when not none.
        allow_release_rollback: Permit to install a lower release counter.
    """

    sampling_ratio: float | None = None
    probation_ms: int | None = None
    allow_release_rollback: bool = False

    def to_json(self) -> JsonObject:
        """The JSON form; fields that override nothing are left out."""
        result: JsonObject = {"allow_release_rollback": self.allow_release_rollback}
        if self.sampling_ratio is not None:
            result["sampling_ratio"] = self.sampling_ratio
        if self.probation_ms is not None:
            result["probation_ms"] = self.probation_ms
        return result

    def to_custom(self) -> JsonObject:
        """The form inside a signed target: the ratio in parts per million, because canonical JSON has no fractions."""
        result = self.to_json()
        ratio = result.pop("sampling_ratio", None)
        if ratio is not None:
            result["sampling_ppm"] = round(ratio * _PPM)
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
            sampling = fields.integer("sampling_ppm", high=_PPM) / _PPM
        elif fields.take("sampling_ratio") is not None:
            sampling = fields.number("sampling_ratio", high=1.0)
        probation = fields.take("probation_ms")
        return cls(
            sampling_ratio=sampling,
            probation_ms=None if probation is None else fields.integer("probation_ms", high=PROBATION_MS_MAX),
            allow_release_rollback=fields.flag("allow_release_rollback", False),
        )


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
    """

    module: str
    deployment: str
    manifest: Digest
    manifest_bytes: int
    artifact: Artifact
    policy: Policy = field(default_factory=Policy)

    def custom(self) -> JsonObject:
        """The director target's custom object."""
        return self.artifact.to_json() | {
            "module": self.module,
            "deployment": self.deployment,
            "policy": self.policy.to_custom(),
        }

    def to_json(self) -> JsonObject:
        """The JSON form for the device's record."""
        return self.custom() | {"manifest": str(self.manifest), "manifest_bytes": self.manifest_bytes}

    @classmethod
    def from_custom(cls, value: Any, manifest: Digest, manifest_bytes: int) -> "Assignment":
        """Read the custom object of a director target.

        Raises:
            ContractError: `trust.metadata-invalid`.
        """
        fields = Fields(value, "assignment", _CODE)
        if not 0 < manifest_bytes <= MANIFEST_BYTES_MAX:
            raise ContractError(_CODE, f"a manifest has 1 to {MANIFEST_BYTES_MAX} bytes, not {manifest_bytes}")
        try:
            return cls(
                module=model_name(fields.text("module")),
                deployment=fields.text("deployment", chars_max=128),
                manifest=manifest,
                manifest_bytes=manifest_bytes,
                artifact=Artifact._from_fields(fields),
                policy=Policy.from_json(fields.take("policy", {})),
            )
        except ContractError as error:
            raise ContractError(_CODE, error.detail) from None

    @classmethod
    def from_json(cls, value: Any) -> "Assignment":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `trust.metadata-invalid` or `artifact.digest-invalid`.
        """
        fields = Fields(value, "assignment", _CODE)
        return cls.from_custom(value, Digest(fields.text("manifest")), fields.integer("manifest_bytes"))
