"""Engines: what runs a model. One Protocol, one adapter a runtime, each importing its runtime only when needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from edge_agent.worker.arrays import DTYPES, Array, invalid
from edge_contract.digest import Digest
from edge_contract.engines import check_options, option_of
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member, Runtime
from edge_contract.tensors import TensorSpec

PROVIDERS_DEFAULT: Final = ("CPUExecutionProvider",)


class Engine(Protocol):
    """A loaded model. Every engine passes `tests/ports/test_engine.py`.

    Attributes:
        platform: Name of the runtime and format, as the protocol's model metadata gives it.
        inputs: Signature of the inputs; empty for a script that takes any JSON.
        outputs: Signature of the outputs; empty when it is not known before.
        is_concurrent: Whether `run` may be called from several threads at once. Otherwise the engine itself makes
            callers wait for each other.
        is_quick: Whether a run is bounded by the model alone, so that a fast one may run on the event loop. That of a
            script is not.
    """

    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    is_concurrent: bool
    is_quick: bool

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute.

        Args:
            inputs: An array for each input, of its datatype and a shape that fits; not written to. Elements of BYTES
                are `bytes`.
            wanted: Names of the outputs to give, in order; empty for all.

        Returns:
            Arrays by output name, in order, each of the numpy type of its datatype (`arrays.DTYPES`) and not written
            to by later runs.

        Raises:
            EdgeError: `model.input-invalid` for inputs that are missing, unknown or do not fit, and for an output
                nobody has; `model.inference-failed`; `model.output-invalid`.
        """
        ...


@runtime_checkable
class JsonEngine(Protocol):
    """An engine that takes any JSON when it has no signature."""

    def run_json(self, data: Any) -> Any:
        """Compute from parsed JSON; the result is JSON, perhaps with numpy values in it.

        Raises:
            EdgeError: `model.inference-failed`.
        """
        ...


@runtime_checkable
class CompilableEngine(Protocol):
    """An engine that may keep a compiled form of its model on the device.

    Attributes:
        key: Name of that form; empty where there can be none.
        is_compiled: Whether it was loaded from it.
        load_cpu_ms: CPU time that loading took, milliseconds.
    """

    key: str
    is_compiled: bool
    load_cpu_ms: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bundle lies unpacked.

    Attributes:
        files: Folder of the bundle's files.
        site: Folder of its unpacked Python dependencies; need not exist.
        manifest: Digest of the bundle's manifest; none for files that are no bundle.
    """

    files: Path
    site: Path
    manifest: Digest | None = None

    def file(self, path: str) -> Path:
        """A file of the bundle.

        Raises:
            EdgeError: `model.load-failed` when it is not there.
        """
        found = self.files / path
        if not found.is_file():
            raise EdgeError("model.load-failed", f"the bundle has no file {path!r}, which its runtime descriptor names")
        return found


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the device and the signed policy allow a bundle, whatever it asks for.

    Attributes:
        allow_pickle: Whether a script whose bundle asks for it may load pickles.
        providers: Execution providers of onnxruntime that may be used; the CPU always may.
        compiled: Folder of compiled models, or none: models are loaded plainly.
    """

    allow_pickle: bool = False
    providers: tuple[str, ...] = PROVIDERS_DEFAULT
    compiled: Path | None = None


NOTHING_SPECIAL: Final = Allowance()


def load_engine(
    member: Member,
    place: Place,
    runtime: Runtime,
    allowance: Allowance = NOTHING_SPECIAL,
    loaded: Mapping[str, Engine] | None = None,
) -> Engine:
    """Load one member of a bundle with the engine it asks for.

    Args:
        member: What to load.
        place: Where its bundle is.
        runtime: The bundle's descriptor.
        allowance: What it may.
        loaded: Members that a pipeline may run, by name.

    Raises:
        EdgeError: `model.load-failed`, `model.engine-unavailable`, `model.pickle-refused`.
    """
    check_options(member.engine, member.options, "model.load-failed", repr(member.name))
    try:
        if member.engine == "onnx":
            from edge_agent.worker.engines.onnx import OnnxEngine

            return OnnxEngine(member, place, allowance)
        if member.engine == "litert":
            from edge_agent.worker.engines.litert import LiteRtEngine

            return LiteRtEngine(member, place)
        if member.engine == "script":
            from edge_agent.worker.engines.script import ScriptEngine

            return ScriptEngine(member, place, runtime, allowance)
    except ImportError as error:
        raise EdgeError(
            "model.engine-unavailable",
            f"this device does not have what the engine {member.engine!r} of {member.name!r} needs: {error}",
            "Install lighterman with the extra of that engine (onnx, litert), or deploy a bundle for another engine.",
        ) from error
    from edge_agent.worker.engines.pipeline import PipelineEngine

    return PipelineEngine(member, loaded or {})


def option(member: Member, name: str) -> str:
    """The value of a member's option, or the default of its engine."""
    return option_of(member.engine, member.options, name)


def number_option(member: Member, name: str, default: int) -> int:
    """The value of a member's option that is a number."""
    text = option(member, name)
    return int(text) if text else default


def check_inputs(name: str, specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Require an array for every input, of its datatype and a shape that fits, and no others.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            raise invalid(f"{name!r} lacks the input {spec.name!r}")
        if array.dtype != DTYPES[spec.datatype] or not spec.fits(spec.datatype, array.shape):
            raise invalid(
                f"the input {spec.name!r} of {name!r} is {array.dtype} {list(array.shape)}, "
                f"it takes {spec.datatype} {list(spec.shape)}"
            )
    if len(inputs) != len(specs):
        extra = sorted(set(inputs) - {spec.name for spec in specs})
        raise invalid(f"{name!r} has no input {extra[0]!r}")


def check_wanted(name: str, specs: Sequence[TensorSpec], wanted: Sequence[str]) -> None:
    """Require that every wanted output is one.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    known = {spec.name for spec in specs}
    if missing := [item for item in wanted if item not in known]:
        raise invalid(f"{name!r} has no output {missing[0]!r}")


def merge_signature(
    kind: str, member: Member, declared: Sequence[TensorSpec], found: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """The signature to serve: what the bundle declares where the model agrees, else what the model says.

    Args:
        kind: `input` or `output`, for messages.
        member: The member being loaded.
        declared: From the runtime descriptor, perhaps empty.
        found: From the model itself.

    Raises:
        EdgeError: `model.load-failed` when they contradict each other.
    """
    if not declared:
        return tuple(found)
    known = {spec.name: spec for spec in found}
    for spec in declared:
        model = known.get(spec.name)
        # A model is freer than its declaration or the same: fixed sizes have to agree, free ones may have been fixed.
        if model is None or model.datatype != spec.datatype or not _is_within(spec.shape, model.shape):
            has = "nothing of that name" if model is None else f"{model.datatype} {list(model.shape)}"
            raise EdgeError(
                "model.load-failed",
                f"{member.name!r}: the descriptor declares the {kind} {spec.name!r} as {spec.datatype} "
                f"{list(spec.shape)}, the model has {has}",
            )
    if kind == "input" and (missing := sorted(set(known) - {spec.name for spec in declared})):
        raise EdgeError(
            "model.load-failed", f"{member.name!r}: the descriptor does not declare the input {missing[0]!r}"
        )
    return tuple(declared)


def _is_within(declared: tuple[int, ...], model: tuple[int, ...]) -> bool:
    if len(declared) != len(model):
        return False
    return all(have in (-1, want) or want == -1 for want, have in zip(declared, model, strict=True))
