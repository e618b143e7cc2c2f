"""What goes into a bundle, as one frozen value: read from `lighterman.toml`, from flags, or from both.

A flag wins over the file. Every error names the file and the key. Paths in a file are relative to its folder and stay
below it (or below `root`), because a description that came with somebody's model must not publish `~/.ssh`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge_contract.bindings import Binding
from edge_contract.limits import PROBATION_MS_DEFAULT
from edge_contract.pipeline import Batching, Step
from edge_contract.tensors import TensorSpec

SPEC_FILE: Final = "lighterman.toml"
PLATFORMS_DEFAULT: Final = ("linux/amd64", "linux/arm64")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file and where it goes.

    Attributes:
        source: Where it is on this machine.
        path: Where it goes in the bundle.
    """

    source: Path
    path: str


@dataclass(frozen=True, slots=True)
class MemberSpec:
    """One model of the bundle.

    Attributes:
        name: Name in inference requests.
        engine: One of `edge_contract.engines.ENTRIES`.
        entry: Its model file or entry script.
        files: Further files that belong to it; external data of an ONNX file need not be listed.
        inputs: Declared tensor signature; empty to read it from the model.
        outputs: Declared tensor signature; empty to read it from the model.
        options: Engine options.
        batching: How requests are computed together, or none.
    """

    name: str
    engine: str
    entry: SourceFile
    files: tuple[SourceFile, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    batching: Batching | None = None


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """Models of the bundle that run one after another, served under a name of their own.

    Attributes:
        name: Name in inference requests.
        steps: What runs, with every tensor named; or none, and `chain` says it.
        chain: Names of models, connected by the names of their tensors.
        inputs: Declared tensor signature; empty to read it off the steps.
        outputs: Declared tensor signature; empty to read it off the steps.
        options: Engine options.
        batching: How requests are computed together, or none.
    """

    name: str
    steps: tuple[Step, ...] = ()
    chain: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    batching: Batching | None = None


@dataclass(frozen=True, slots=True)
class GoldenSpec:
    """Where golden vectors come from.

    Attributes:
        source: An npz or safetensors file; one without outputs is run here to get them.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        is_trusted: Take the outputs as they are, for a model this machine cannot run.
    """

    source: Path
    rtol: float = 1e-3
    atol: float = 1e-4
    is_trusted: bool = False


@dataclass(frozen=True, slots=True)
class Dependencies:
    """Python packages that scripts import.

    Attributes:
        wheels: Wheel files.
        requirements: A pip requirements file, resolved into wheels only when `is_resolved`.
        is_resolved: Whether `pip download` may be run.
        python: Python version of the devices, for example `3.11`, for resolving.
    """

    wheels: tuple[Path, ...] = ()
    requirements: Path | None = None
    is_resolved: bool = False
    python: str = "3.11"


@dataclass(frozen=True, slots=True)
class Serving:
    """How devices run the bundle; see `edge_contract.runtime.Runtime`.

    Attributes:
        probation_ms: How long a fresh activation is watched.
        failure_ratio_max: Share of failed requests above which it is rolled back.
        nonfinite_ratio_max: Share of answers with NaN or infinity for finite inputs above which it is.
        latency_ratio_max: How many times slower than its predecessor it may be; 0 when that is not judged.
        drift_max: How many deviations its outputs may lie from the golden ones; 0 when that is not judged.
        sampling_ratio: Share of requests whose data are collected.
        load_peak_bytes: Memory that loading takes; 0 unknown.
        is_peak_measured: Whether to measure it here (such a bundle is reproducible only as far as the figure is).
        allow_pickle: Whether scripts may load pickles.
        config: Strings for scripts.
    """

    probation_ms: int = PROBATION_MS_DEFAULT
    failure_ratio_max: float = 0.05
    nonfinite_ratio_max: float = 0.01
    latency_ratio_max: float = 0.0
    drift_max: float = 0.0
    sampling_ratio: float = 1.0
    load_peak_bytes: int = 0
    is_peak_measured: bool = False
    allow_pickle: bool = False
    config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class About:
    """What people read about the model; goes into the catalogue and the ModelPack configuration."""

    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    lineage: dict[str, str] = field(default_factory=dict)
    authors: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    family: str = ""
    vendor: str = ""
    architecture: str = ""
    docs: tuple[SourceFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything a build needs.

    Attributes:
        name: Name of the model.
        version: Its version; 0 while the registry has not given one.
        members: The models, with the pipelines `1..MEMBERS_MAX`.
        platforms: Target platforms, sorted.
        hardware_ids: Hardware the bundle is for; empty means any of the platform.
        release_counter: Never falls on a device; 0 means the version.
        code: Folders of Python code, each a layer.
        golden: Golden vectors, or none.
        dependencies: Python packages.
        serving: Deployment configuration.
        about: For people.
        bindings: MQTT topics that feed the models.
        pipelines: Models that run one after another.
        origin: The file it was read from, for messages; empty when from flags alone.
    """

    name: str
    members: tuple[MemberSpec, ...]
    version: int = 0
    platforms: tuple[str, ...] = PLATFORMS_DEFAULT
    hardware_ids: tuple[str, ...] = ()
    release_counter: int = 0
    code: tuple[SourceFile, ...] = ()
    golden: GoldenSpec | None = None
    dependencies: Dependencies = Dependencies()
    serving: Serving = Serving()
    about: About = About()
    bindings: tuple[Binding, ...] = ()
    pipelines: tuple[PipelineSpec, ...] = ()
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line says; none or empty leaves the word to the file.

    `members` are `(name, path)`; a name may be empty for the only model. `bindings` are `(input topic, output topic)`
    of JSON messages for the only model. `options` and `batching` are `(member, text)`, the member empty for the only
    model. Other fields are as in `Spec` and its parts.
    """

    name: str = ""
    version: int = 0
    members: tuple[tuple[str, Path], ...] = ()
    extra_files: tuple[Path, ...] = ()
    engine: str = ""
    platforms: tuple[str, ...] = ()
    hardware_ids: tuple[str, ...] = ()
    release_counter: int = 0
    code: tuple[Path, ...] = ()
    wheels: tuple[Path, ...] = ()
    requirements: Path | None = None
    is_resolved: bool | None = None
    golden: Path | None = None
    rtol: float | None = None
    atol: float | None = None
    is_golden_trusted: bool | None = None
    probation_ms: int | None = None
    sampling_ratio: float | None = None
    is_peak_measured: bool | None = None
    config: dict[str, str] = field(default_factory=dict)
    bindings: tuple[tuple[str, str], ...] = ()
    pipelines: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    batching: tuple[tuple[str, str], ...] = ()
    docs: tuple[Path, ...] = ()
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    lineage: dict[str, str] = field(default_factory=dict)
