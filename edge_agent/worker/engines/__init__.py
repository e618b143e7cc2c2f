"""Engines: what runs a model. One Protocol, one adapter a runtime, each importing its runtime only when needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from edge_agent.worker.arrays import Array
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member, Runtime
from edge_contract.tensors import TensorSpec

ALLOW_NONFINITE: Final = "allow_nonfinite"
"""Option of every engine: `true` lets NaN and infinities in outputs through, in binary answers; `false` by default."""


class Engine(Protocol):
    """A loaded model.

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
            inputs: An array for each input, of its datatype and a shape that fits; not written to.
            wanted: Names of the outputs to give, in order; empty for all.

        Returns:
            Arrays by output name, in order.

        Raises:
            EdgeError: `model.inference-failed`, `model.output-invalid`, `model.input-invalid` for an output nobody has.
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bundle lies unpacked.

    Attributes:
        files: Folder of the bundle's files.
        site: Folder of its unpacked Python dependencies; need not exist.
    """

    files: Path
    site: Path

    def file(self, path: str) -> Path:
        """A file of the bundle.

        Raises:
            EdgeError: `model.load-failed` when it is not there.
        """
        found = self.files / path
        if not found.is_file():
            raise EdgeError("model.load-failed", f"the bundle has no file {path!r}, which its runtime descriptor names")
        return found


def load_engine(member: Member, place: Place, runtime: Runtime) -> Engine:
    """Load one member of a bundle with the engine it asks for.

    Raises:
        EdgeError: `model.load-failed`, `model.engine-unavailable`.
    """
    try:
        if member.engine == "onnx":
            from edge_agent.worker.engines.onnx import OnnxEngine

            return OnnxEngine(member, place)
        if member.engine == "litert":
            from edge_agent.worker.engines.litert import LiteRtEngine

            return LiteRtEngine(member, place)
        if member.engine == "script":
            from edge_agent.worker.engines.script import ScriptEngine

            return ScriptEngine(member, place, runtime)
    except ImportError as error:
        raise EdgeError(
            "model.engine-unavailable",
            f"this device does not have what the engine {member.engine!r} of {member.name!r} needs: {error}",
            "Install lighterman with the extra of that engine (onnx, litert), or deploy a bundle for another engine.",
        ) from error
    raise EdgeError("model.engine-unavailable", f"this version does not know the engine {member.engine!r}")


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


def positive_option(member: Member, name: str, default: int, high: int) -> int:
    """A whole number from a member's engine options.

    Raises:
        EdgeError: `model.load-failed` when it is not one from 1 to `high`.
    """
    text = member.options.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= high:
        raise EdgeError(
            "model.load-failed", f"{member.name!r}: the option {name!r} is a number from 1 to {high}, not {text!r}"
        )
    return int(text)


def choice_option(member: Member, name: str, choices: tuple[str, ...]) -> str:
    """One of a few words from a member's engine options; the first is the default.

    Raises:
        EdgeError: `model.load-failed` when it is another word.
    """
    text = member.options.get(name, choices[0])
    if text not in choices:
        raise EdgeError(
            "model.load-failed", f"{member.name!r}: the option {name!r} is one of {', '.join(choices)}, not {text!r}"
        )
    return text


def require_options(member: Member, known: frozenset[str]) -> None:
    """Refuse engine options that nobody reads.

    Raises:
        EdgeError: `model.load-failed`.
    """
    if unknown := sorted(set(member.options) - known):
        raise EdgeError(
            "model.load-failed",
            f"{member.name!r}: the engine {member.engine!r} has no option {unknown[0]!r}",
            f"Its options: {', '.join(sorted(known)) or 'none'}.",
        )
