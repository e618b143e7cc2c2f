"""Bodies of requests and answers, as the OpenAPI document publishes them. Requests refuse members they do not know."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cloud_registry.core.instants import to_text
from cloud_registry.core.records import (
    AliasChange,
    Bundle,
    Model,
    OperatorToken,
    Version,
)
from cloud_registry.limits import (
    DESCRIPTION_CHARS_MAX,
    FILES_MAX,
    LABEL_CHARS_MAX,
    QUERY_CHARS_MAX,
)
from edge_contract.limits import BLOB_BYTES_MAX, TENSORS_MAX

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
