"""Images of modules for Azure IoT Edge: a base, the agent where the base lacks it, and a bundle (ADR 0034).

Made without a container engine and without running anything of what goes in, so that an image for any platform comes
about on any machine, and the same inputs give the same bytes.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, dump
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE, MODEL, REF_NAME, VERSION, Descriptor
from packager.bundle import Bundle
from packager.files import chunks_of
from packager.iotedge.image_agent import DATA, HOME, PROGRAM, USER, write_agent_layer
from packager.iotedge.image_base import CONFIG_TYPE, TAG, BaseImage, Blob, ImageSource, read_base
from packager.iotedge.image_layer import File, Layer, folder, text_file, write_layer
from packager.iotedge.image_limits import (
    ENV_BYTES_MAX,
    ENV_MAX,
    HEALTH_INTERVAL_S,
    HEALTH_RETRIES,
    HEALTH_START_S,
    HEALTH_TIMEOUT_S,
    LAYERS_MAX,
    OWN_LAYER_BYTES_MIN,
    OWN_LAYERS_MAX,
)
from packager.iotedge.image_python import Interpreter, find_interpreter
from packager.iotedge.image_wheels import PRODUCT, ChosenWheel, Target, WheelHouse
from packager.layout import INDEX_FILE, LAYOUT_FILE, Layout, LayoutWriter, building
from packager.progress import Reporter

BUNDLE: Final = f"{HOME}/bundle"
"""Where an image has its bundle: an OCI layout with what one platform needs."""

AGENT_LABEL: Final = "io.lighterman.agent"
"""Label of an image that has the agent; its value is the agent's version."""

_INDEX_LABEL: Final = "io.lighterman.bundle.index"
_MANIFEST_LABEL: Final = "io.lighterman.bundle.manifest"
_NS: Final = 1_000_000_000
_ENTRY: Final = (PROGRAM, "module")
_HEALTH: Final = ("CMD", PROGRAM, "healthcheck")
_ENVIRONMENT: Final = {
    "LIGHTERMAN_AGENT_DATA": DATA,
    "LIGHTERMAN_AGENT_PRELOAD": BUNDLE,
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_PATH_DEFAULT: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENGINE_EXTRAS: Final = ("onnx", "litert")
_ARM32: Final = "linux/arm/v7"
# There are no wheels of ai-edge-litert for 32 bits; the older runtime has some, and the worker takes either.
_ARM32_LITERT: Final = "tflite-runtime"
_WORKER: Final = ("numpy", "httptools")
"""What every worker needs; extras of engines bring it along."""


@dataclass(frozen=True, slots=True)
class AgentParts:
    """What the agent is installed from.

    Attributes:
        wheels: All wheels there are.
        lock: Digests that they may have; none takes them as they are.
        extras: Extras of the product; none for those that the bundle's engines need, and `azure`.
        provided: Normalised names of distributions that the base has, for platforms without a wheel of them.
        interpreter: The base's; none to look for it.
    """

    wheels: WheelHouse
    lock: Mapping[str, frozenset[str]] | None = None
    extras: tuple[str, ...] | None = None
    provided: frozenset[str] = frozenset()
    interpreter: Interpreter | None = None


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What an image is made of.

    Attributes:
        bundle: The bundle.
        base: The base.
        agent: What to install the agent from; none where the base has it.
        platforms: Which platforms; empty for all of the bundle that the base has too.
        tag: Of the image; the version of the model when empty.
        env: More environment.
        labels: More labels.
        created_s: Time of creation to state, seconds since 1970.
        is_compressed: Whether new layers are compressed, those of large files of the bundle excepted.
    """

    bundle: Layout
    base: ImageSource
    agent: AgentParts | None = None
    platforms: tuple[str, ...] = ()
    tag: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    created_s: int = 0
    is_compressed: bool = True


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image that was written.

    Attributes:
        index: Digest of its index.
        tag: In the layout.
        manifests: Digest of the manifest, by platform.
        agents: Version of the agent, by platform.
        sizes: Bytes of all layers, by platform.
    """

    index: Digest
    tag: str
    manifests: Mapping[str, Digest]
    agents: Mapping[str, str]
    sizes: Mapping[str, int]

    def to_json(self) -> JsonObject:
        """For people and programs."""
        return {
            "index": str(self.index),
            "tag": self.tag,
            "platforms": {
                platform: {
                    "manifest": str(digest),
                    "agent": self.agents[platform],
                    "layer_bytes": self.sizes[platform],
                }
                for platform, digest in self.manifests.items()
            },
        }


def build_image(request: ImageRequest, out: Path, reporter: Reporter) -> BuiltImage:
    """Write an image as an OCI layout, which takes the place of what was there when it is whole.

    Args:
        request: What it is made of.
        out: The folder.
        reporter: Told of each platform.

    Returns:
        Its digests.

    Raises:
        EdgeError: `config.invalid`, `artifact.*`, `network.*`, `cloud.*`, `device.disk-full`, `device.disk-error`.
    """
    _check_names(request)
    bases = read_base(request.base)
    chosen = _platforms(request, bases)
    tag = request.tag or str(request.bundle.version)
    with building(out) as place:
        writer = LayoutWriter(place)
        entries, manifests, agents, sizes = [], {}, {}, {}
        for bundle in chosen:
            image = _Image(request, writer, bases[bundle.platform], bundle)
            described = image.write()
            entries.append(described.to_json())
            manifests[bundle.platform] = described.digest
            agents[bundle.platform], sizes[bundle.platform] = image.agent, image.layer_bytes
            reporter.say(f"{bundle.platform}: {described.digest}")
        document: JsonObject = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": entries,
            "annotations": _notes(request),
        }
        index = writer.finish(dump(document), tag, request.bundle.model)
    return BuiltImage(index, tag, manifests, agents, sizes)


def _platforms(request: ImageRequest, bases: Mapping[str, BaseImage]) -> list[Bundle]:
    bundles = {item.platform: item for item in request.bundle.bundles}
    wanted = request.platforms or tuple(platform for platform in bundles if platform in bases)
    for platform in wanted:
        for what, there in (("the bundle", bundles), (f"the base {request.base.name}", bases)):
            if platform not in there:
                known = ", ".join(sorted(there))
                raise EdgeError("config.invalid", f"{what} is not for {platform}", f"It is for: {known}.")
    if not wanted:
        why = f"the base {request.base.name} is for {', '.join(sorted(bases))}, the bundle for {', '.join(bundles)}"
        raise EdgeError("config.invalid", f"no platform has both: {why}")
    return [bundles[platform] for platform in dict.fromkeys(wanted)]


def _check_names(request: ImageRequest) -> None:
    if request.tag and not TAG.fullmatch(request.tag):
        raise EdgeError("config.invalid", f"{request.tag!r} is not a tag that an image can have")
    pairs = [*request.env.items(), *request.labels.items()]
    if len(pairs) > ENV_MAX or sum(len(name) + len(value) for name, value in pairs) > ENV_BYTES_MAX:
        raise EdgeError("config.invalid", "there is too much environment, or too many labels")
    for name, value in pairs:
        if not name.isprintable() or not value.isprintable() or "=" in name:
            raise EdgeError("config.invalid", f"{name!r} is not a name and a value of one line")


def _notes(request: ImageRequest) -> dict[str, str]:
    return {
        MODEL: request.bundle.model,
        VERSION: str(request.bundle.version),
        _INDEX_LABEL: str(request.bundle.index_digest),
    }


class _Image:
    """One platform of an image while it is put together."""

    def __init__(self, request: ImageRequest, writer: LayoutWriter, base: BaseImage, bundle: Bundle) -> None:
        self._request = request
        self._writer = writer
        self._base = base
        self._bundle = bundle
        self._new: list[tuple[Layer, str]] = []
        self._instant = datetime.fromtimestamp(request.created_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.agent = ""
        self.layer_bytes = 0

    def write(self) -> Descriptor:
        """Write layers, configuration and manifest; gives the manifest's descriptor."""
        for blob in self._base.layers:
            self._copy(blob)
        self._add_agent()
        self._add_bundle()
        layers = [*self._base.layers, *(layer.blob for layer, _ in self._new)]
        if len(layers) > LAYERS_MAX:
            raise EdgeError("config.invalid", f"the image would have {len(layers)} layers, at most {LAYERS_MAX} work")
        self.layer_bytes = sum(layer.size for layer in layers)
        config = self._writer.add_bytes(dump(self._config()))
        document: JsonObject = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": Blob(CONFIG_TYPE, *config).to_json(),
            "layers": [layer.to_json() for layer in layers],
            "annotations": {
                **_notes(self._request),
                "org.opencontainers.image.base.digest": str(self._base.digest),
                "org.opencontainers.image.created": self._instant,
            },
        }
        return Descriptor(MANIFEST_TYPE, *self._writer.add_bytes(dump(document)), platform=self._bundle.platform)

    def _copy(self, blob: Blob) -> None:
        """Take a layer of the base as it is; another platform may have brought it already."""
        if not self._writer.has(blob.digest):
            source = self._request.base

            def fill(sink: Any) -> None:
                for chunk in source.chunks(blob):
                    sink.write(chunk)

            self._writer.add_written(fill)

    def _add_agent(self) -> None:
        there = self._base.labels.get(AGENT_LABEL)
        if model := self._base.labels.get(MODEL):
            hint = "Take the base that it was made from: files of two bundles would lie in one folder."
            raise EdgeError("config.invalid", f"{self._request.base.name} has a bundle of {model} already", hint)
        parts = self._request.agent
        if parts is None:
            if not there:
                hint = "Give --wheels FOLDER to add the agent, or label the base if it has one."
                raise EdgeError("config.invalid", f"{self._request.base.name} has no label {AGENT_LABEL}", hint)
            self.agent = str(there)
            return
        if there:
            hint = "Leave --wheels out, or take a base without it."
            raise EdgeError("config.invalid", f"{self._request.base.name} has the agent {there} already", hint)
        interpreter = parts.interpreter or find_interpreter(self._request.base, self._base)
        wheels = parts.wheels.choose(
            self._wanted(parts), Target(self._bundle.platform, interpreter.minor), parts.provided, parts.lock
        )
        self.agent = next(str(wheel.version) for wheel in wheels if wheel.name == PRODUCT)
        # Where wheels have everything, packages of the base are none of ours.
        is_open = bool(parts.provided - {wheel.name for wheel in wheels})
        layer = write_agent_layer(self._writer, wheels, interpreter, is_open, self._request.is_compressed)
        self._new.append((layer, f"{PRODUCT} {self.agent} with {_named(wheels)}"))

    def _wanted(self, parts: AgentParts) -> list[str]:
        """Requirements of an agent that can run the bundle."""
        engines = {member.engine for member in self._bundle.runtime.members}
        more: tuple[str, ...] = ()
        if parts.extras is not None:
            extras = list(parts.extras)
        else:
            extras = ["agent", "azure", *(engine for engine in _ENGINE_EXTRAS if engine in engines)]
            if self._bundle.platform == _ARM32 and "litert" in extras:
                extras.remove("litert")
                more = (_ARM32_LITERT,)
            if not set(_ENGINE_EXTRAS) & set(extras):
                more += _WORKER
        return [f"{PRODUCT}[{','.join(extras)}]" if extras else PRODUCT, *more]

    def _add_bundle(self) -> None:
        """A layer for each large file of the bundle, and one for all the rest, which changes with every version."""
        layout, bundle = self._request.bundle, self._bundle
        blobs = [Blob(item.media_type, item.digest, item.size) for item in bundle.manifest.blobs]
        for item in bundle.manifest.blobs:
            layout.verify_blob(item)
        large = sorted((blob for blob in blobs if blob.size >= OWN_LAYER_BYTES_MIN), key=lambda blob: -blob.size)
        alone = large[:OWN_LAYERS_MAX]
        for blob in alone:
            # Numbers of a model hardly shrink, and uncompressed they are the same bytes wherever they are written.
            layer = write_layer(self._writer, [self._blob_file(blob)], is_compressed=False)
            self._new.append((layer, f"{layout.model} {blob.digest.short}"))
        entry = {**bundle.descriptor.to_json(), "annotations": {MODEL: layout.model, REF_NAME: str(layout.version)}}
        place = BUNDLE.lstrip("/")
        files = [self._blob_file(blob) for blob in blobs if blob not in alone]
        files += [
            folder(DATA.lstrip("/"), 0o700, USER),
            text_file(f"{place}/{LAYOUT_FILE}", dump({"imageLayoutVersion": "1.0.0"})),
            text_file(
                f"{place}/{INDEX_FILE}", dump({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]})
            ),
            text_file(f"{place}/blobs/sha256/{bundle.descriptor.digest.hex}", bundle.data),
        ]
        layer = write_layer(self._writer, files, self._request.is_compressed)
        self._new.append((layer, f"{layout.model}:{layout.version} for {bundle.platform}"))

    def _blob_file(self, blob: Blob) -> File:
        source = self._request.bundle.blob_path(blob.digest)
        return File(f"{BUNDLE.lstrip('/')}/blobs/sha256/{blob.digest.hex}", lambda: chunks_of(source), blob.size)

    def _config(self) -> JsonObject:
        """The base's configuration with ours on top."""
        config = copy.deepcopy(self._base.config)
        settings = dict(self._base.settings)
        old = self._base.environment
        path = old.get("PATH") or _PATH_DEFAULT
        if f"{HOME}/bin" not in path.split(":"):
            path = f"{HOME}/bin:{path}"
        environment = {**old, "PATH": path, **_ENVIRONMENT, **self._request.env}
        volumes = settings.get("Volumes")
        settings |= {
            "User": f"{USER}:{USER}",
            "WorkingDir": "/",
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "Entrypoint": list(_ENTRY),
            "StopSignal": "SIGTERM",
            "Volumes": {**(volumes if isinstance(volumes, dict) else {}), DATA: {}},
            "Labels": {**self._base.labels, **self._labels(), **self._request.labels},
            "Healthcheck": {
                "Test": list(_HEALTH),
                "Interval": HEALTH_INTERVAL_S * _NS,
                "Timeout": HEALTH_TIMEOUT_S * _NS,
                "StartPeriod": HEALTH_START_S * _NS,
                "Retries": HEALTH_RETRIES,
            },
        }
        settings.pop("Cmd", None)
        history = config.get("history")
        config |= {
            "created": self._instant,
            "config": settings,
            "rootfs": {
                "type": "layers",
                "diff_ids": [*config["rootfs"]["diff_ids"], *(str(layer.content) for layer, _ in self._new)],
            },
            "history": [
                *(history if isinstance(history, list) else []),
                *({"created": self._instant, "created_by": "packager", "comment": text} for _, text in self._new),
            ],
        }
        return config

    def _labels(self) -> dict[str, str]:
        return {
            AGENT_LABEL: self.agent,
            **_notes(self._request),
            _MANIFEST_LABEL: str(self._bundle.descriptor.digest),
            "org.opencontainers.image.title": self._request.bundle.model,
        }


def _named(wheels: Sequence[ChosenWheel]) -> str:
    return ", ".join(f"{wheel.name} {wheel.version}" for wheel in wheels if wheel.name != PRODUCT)
