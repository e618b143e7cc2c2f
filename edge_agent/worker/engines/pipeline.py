"""The pipeline engine: members of the same bundle one after another, arrays handed on in the process (ADR 25)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_agent.worker.arrays import Array
from edge_agent.worker.engines import Engine, check_inputs, check_wanted
from edge_contract.errors import ContractError, EdgeError
from edge_contract.pipeline import order_steps
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class _Step:
    """A step, made ready.

    Attributes:
        name: Of its member.
        engine: What runs it.
        inputs: (Member's input, tensor) pairs.
        wanted: Outputs of the member that become tensors.
        tensors: Their names in the pipeline, in the same order.
        is_first: Whether it takes nothing but what the client sent.
        idle: Tensors that nobody wants after it.
    """

    name: str
    engine: Engine
    inputs: tuple[tuple[str, str], ...]
    wanted: tuple[str, ...]
    tensors: tuple[str, ...]
    is_first: bool
    idle: tuple[str, ...]


class PipelineEngine:
    """Several engines as one. See `Engine`. It locks nothing itself: each of its members does what it needs."""

    platform = "lighterman_pipeline"

    def __init__(self, member: Member, engines: Mapping[str, Engine]) -> None:
        """Connect loaded members.

        Args:
            member: The pipeline.
            engines: Loaded members of the bundle by name; pipelines among them are none of its business.

        Raises:
            EdgeError: `model.load-failed` when its steps do not fit what the models say of themselves.
        """
        self._name = member.name
        models = {name: engine for name, engine in engines.items() if not isinstance(engine, PipelineEngine)}
        try:
            signatures = {name: (engine.inputs, engine.outputs) for name, engine in models.items()}
            steps = order_steps(member.name, member.inputs, member.outputs, member.steps, signatures)
        except ContractError as error:
            raise EdgeError("model.load-failed", error.detail, error.hint) from None
        used = [models[step.member] for step in steps]
        if silent := next((step.member for step in steps if not models[step.member].inputs), None):
            raise EdgeError(
                "model.load-failed",
                f"the pipeline {member.name!r} runs {silent!r}, which declares no inputs and takes JSON only",
                "Declare the inputs of that script.",
            )
        self.inputs: tuple[TensorSpec, ...] = member.inputs
        self.outputs: tuple[TensorSpec, ...] = member.outputs
        self.is_concurrent = all(engine.is_concurrent for engine in used)
        self.is_quick = all(engine.is_quick for engine in used)
        self._all = tuple(spec.name for spec in member.outputs)
        given = {spec.name for spec in member.inputs}
        last_use = {tensor: place for place, step in enumerate(steps) for tensor in step.inputs.values()}
        self._steps = tuple(
            _Step(
                step.member,
                models[step.member],
                tuple(step.inputs.items()),
                tuple(step.outputs),
                tuple(step.outputs.values()),
                given.issuperset(step.inputs.values()),
                tuple(name for name, use in last_use.items() if use == place and name not in self._all),
            )
            for place, step in enumerate(steps)
        )

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute; see `Engine`. Any thread. What no later step needs is let go of at once."""
        names = tuple(wanted) or self._all
        check_wanted(self._name, self.outputs, names)
        check_inputs(self._name, self.inputs, inputs)
        tensors = dict(inputs)
        for step in self._steps:
            feed = {name: tensors[tensor] for name, tensor in step.inputs}
            try:
                made = step.engine.run(feed, step.wanted)
            except EdgeError as error:
                raise self._failure(step, error) from error
            tensors.update(zip(step.tensors, (made[name] for name in step.wanted), strict=True))
            for tensor in step.idle:
                del tensors[tensor]
        for spec in self.outputs:
            array = tensors[spec.name]
            if not spec.fits(spec.datatype, array.shape):
                raise EdgeError(
                    "model.output-invalid",
                    f"the pipeline {self._name!r} made {spec.name!r} with the shape {list(array.shape)}, "
                    f"declared is {list(spec.shape)}",
                )
        return {name: tensors[name] for name in names}

    def _failure(self, step: _Step, error: EdgeError) -> EdgeError:
        """The same error, said of the pipeline. What one step made and the next cannot take is no client's fault."""
        code = error.code
        if code == "model.input-invalid" and not step.is_first:
            code = "model.inference-failed"
        return EdgeError(code, f"the pipeline {self._name!r}, step {step.name!r}: {error.detail}", error.hint)
