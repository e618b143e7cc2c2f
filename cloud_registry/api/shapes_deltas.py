"""Bodies of requests and answers about deltas."""

from pydantic import Field

from cloud_registry.api.shapes import Answer, Ask, Text
from cloud_registry.core.records import BaseCount, Bases, KnownDelta

_DIGEST = "sha256:" + "5f" * 32


class DeltaAsk(Ask):
    """A delta that was pushed to `bundles/<name>` as an OCI artifact."""

    manifest: Text = Field(examples=[_DIGEST], description="digest of the artifact's manifest")


class DeltaAnswer(Answer):
    """What a delta starts from and makes."""

    manifest: str = Field(examples=[_DIGEST])
    base: str = Field(examples=[_DIGEST])
    base_bytes: int
    new: str = Field(examples=[_DIGEST])
    new_bytes: int
    digest: str = Field(examples=[_DIGEST], description="of the delta itself")
    bytes: int
    peak_bytes: int = Field(description="memory that decoding takes beside Python, numpy and zstandard")
    format: str = Field(examples=["lmd1"])

    @classmethod
    def of(cls, known: KnownDelta) -> "DeltaAnswer":
        """The shape of a record."""
        return cls(manifest=str(known.manifest), **known.delta.to_json())


class DeltaList(Answer):
    """The deltas of a version."""

    items: list[DeltaAnswer]


class BaseAnswer(Answer):
    """How many devices would start from one bundle."""

    model: str
    version: int
    platform: str = Field(examples=["linux/arm64"])
    manifest: str = Field(examples=[_DIGEST])
    new_manifest: str = Field(examples=[_DIGEST])
    devices: int
    live: int = Field(description="devices that run it")
    fallback: int = Field(description="devices that keep it as their fallback and run something unknown")

    @classmethod
    def of(cls, base: BaseCount) -> "BaseAnswer":
        """The shape of a record."""
        return cls(
            model=base.model,
            version=base.version,
            platform=base.platform,
            manifest=str(base.manifest),
            new_manifest=str(base.new_manifest),
            devices=base.devices,
            live=base.live,
            fallback=base.fallback,
        )


class BasesAnswer(Answer):
    """What devices hold that a version could be made from, the most common first."""

    devices: int = Field(description="devices that the condition matches")
    current: int = Field(description="devices that run the version already")
    without: int = Field(description="devices that hold nothing known")
    unserved: int = Field(description="devices for whose platform the version has no bundle")
    bases: list[BaseAnswer]

    @classmethod
    def of(cls, found: Bases, devices: int) -> "BasesAnswer":
        """The shape of a record."""
        return cls(
            devices=devices,
            current=found.current,
            without=found.without,
            unserved=found.unserved,
            bases=[BaseAnswer.of(base) for base in found.bases],
        )
