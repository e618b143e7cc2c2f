"""Pipelines: members of a bundle that run one after another, arrays handed on in the process (ADR 25).

A pipeline is a member with steps instead of a model. Each step runs another member: it takes tensors by name from the
pipeline's inputs and from the outputs of other steps, and names what it makes. Every tensor is made once and used at
least once; the order of the steps follows from who uses what, whatever order they are written in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject
from edge_contract.limits import BATCH_ROWS_MAX, BATCH_WAIT_US_MAX, STEPS_MAX, TENSORS_MAX
from edge_contract.names import model_name
from edge_contract.tensors import TensorSpec

_CODE: Final = "artifact.runtime-invalid"

Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""Inputs and outputs of a member; empty where they are not known."""


@dataclass(frozen=True, slots=True)
class Step:
    """One member's turn in a pipeline.

    Attributes:
        member: Name of a member of the same bundle that is not a pipeline.
        inputs: Name of a tensor by the member's input that takes it.
        outputs: Name of a tensor by the member's output that makes it; outputs that nobody needs may be left out.
    """

    member: str
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """The JSON form that `read_step` reads."""
        return {"member": self.member, "inputs": self.inputs, "outputs": self.outputs}


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests for one member may be computed together.

    Attributes:
        rows_max: Most rows (first dimension) of one run, `2..BATCH_ROWS_MAX`.
        wait_us: Longest that a request waits for others, microseconds, `0..BATCH_WAIT_US_MAX`.
    """

    rows_max: int
    wait_us: int

    def to_json(self) -> JsonObject:
        """The JSON form that `read_batching` reads."""
        return {"rows_max": self.rows_max, "wait_us": self.wait_us}


def read_step(value: Any, code: str = _CODE) -> Step:
    """Read a step.

    Raises:
        ContractError: `code` or another `artifact.` code.
    """
    fields = Fields(value, "step", code)
    step = Step(
        member=model_name(fields.text("member")),
        inputs=fields.mapping("inputs", TENSORS_MAX),
        outputs=fields.mapping("outputs", TENSORS_MAX),
    )
    fields.close()
    if not step.inputs or not step.outputs:
        raise ContractError(code, f"the step of {step.member!r} has to name the tensors it takes and makes")
    return step


def read_batching(value: Any, code: str = _CODE) -> Batching | None:
    """Read how a member is batched; none stands for not at all.

    Raises:
        ContractError: `code` or another `artifact.` code.
    """
    if value is None:
        return None
    fields = Fields(value, "batching", code)
    batching = Batching(
        fields.integer("rows_max", low=2, high=BATCH_ROWS_MAX), fields.integer("wait_us", high=BATCH_WAIT_US_MAX)
    )
    fields.close()
    return batching


def order_steps(
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    steps: Sequence[Step],
    members: Mapping[str, Signature],
) -> tuple[Step, ...]:
    """Check the whole of a pipeline, and put its steps into an order in which they can run.

    Args:
        name: Of the pipeline, for messages.
        inputs: What it takes.
        outputs: What it gives.
        steps: In any order.
        members: Signatures of the members that steps may run, by name; an empty side is not compared.

    Returns:
        The steps; those that could run at the same time stay in the order they came in.

    Raises:
        ContractError: `artifact.runtime-invalid`: unknown members, tensors that nobody makes, uses, or that two make,
            a cycle, datatypes or shapes that do not agree.
    """
    flow = _Flow(name, members)
    if not 1 <= len(steps) <= STEPS_MAX or not inputs or not outputs:
        raise flow.bad(f"needs declared inputs and outputs, and 1 to {STEPS_MAX} steps")
    for spec in inputs:
        flow.make(spec.name, spec)
    for step in steps:
        flow.require_member(step)
        for output, tensor in step.outputs.items():
            flow.make(tensor, flow.side(step, output, 1))
    order = flow.order([spec.name for spec in inputs], steps)
    for step in order:
        for name_in, tensor in step.inputs.items():
            flow.use(tensor, flow.side(step, name_in, 0), f"the input {name_in!r} of {step.member!r}")
    given = {spec.name for spec in inputs}
    for spec in outputs:
        if spec.name in given:
            raise flow.bad(f"its output {spec.name!r} is its own input; no step makes it")
        flow.use(spec.name, spec, f"its output {spec.name!r}")
    flow.require_all_used()
    return order


class _Flow:
    """Which tensors of one pipeline are made, as what, and which of them are used."""

    def __init__(self, name: str, members: Mapping[str, Signature]) -> None:
        self._name = name
        self._members = members
        self._made: dict[str, TensorSpec | None] = {}
        self._used: set[str] = set()

    def bad(self, why: str) -> ContractError:
        return ContractError(_CODE, f"the pipeline {self._name!r} {why}")

    def require_member(self, step: Step) -> None:
        if step.member not in self._members:
            known = ", ".join(sorted(self._members)) or "none"
            raise self.bad(f"runs {step.member!r}, which is no model of the bundle; models here: {known}")
        known_inputs = {spec.name for spec in self._members[step.member][0]}
        if known_inputs and (missing := sorted(known_inputs - set(step.inputs))):
            raise self.bad(f"gives nothing to the input {missing[0]!r} of {step.member!r}")

    def side(self, step: Step, name: str, side: int) -> TensorSpec | None:
        """The signature of one input (side 0) or output (side 1) of a step's member; none where it is not known."""
        specs = self._members[step.member][side]
        found = next((spec for spec in specs if spec.name == name), None)
        if specs and found is None:
            raise self.bad(f"names the {('input', 'output')[side]} {name!r}, which {step.member!r} does not have")
        return found

    def make(self, tensor: str, spec: TensorSpec | None) -> None:
        if tensor in self._made:
            raise self.bad(f"has two sources of the tensor {tensor!r}")
        self._made[tensor] = spec

    def use(self, tensor: str, wanted: TensorSpec | None, who: str) -> None:
        if tensor not in self._made:
            raise self.bad(f"wants the tensor {tensor!r} for {who}, and nobody makes it")
        self._used.add(tensor)
        made = self._made[tensor]
        if made is not None and wanted is not None and not agree(made, wanted):
            raise self.bad(
                f"hands the tensor {tensor!r} of {made.datatype} {list(made.shape)} to {who}, "
                f"which takes {wanted.datatype} {list(wanted.shape)}"
            )

    def order(self, known: Sequence[str], steps: Sequence[Step]) -> tuple[Step, ...]:
        have, left, order = set(known), list(steps), []
        while left:
            step = next((item for item in left if have.issuperset(item.inputs.values())), None)
            if step is None:
                self._explain(left)
            assert step is not None
            left.remove(step)
            order.append(step)
            have.update(step.outputs.values())
        return tuple(order)

    def _explain(self, stuck: Sequence[Step]) -> None:
        for step in stuck:
            for name, tensor in step.inputs.items():
                if tensor not in self._made:
                    raise self.bad(
                        f"wants the tensor {tensor!r} for the input {name!r} of {step.member!r}, and nobody makes it"
                    )
        raise self.bad(f"goes in a circle: {', '.join(step.member for step in stuck)} wait for each other")

    def require_all_used(self) -> None:
        if idle := sorted(set(self._made) - self._used):
            raise self.bad(f"has the tensor {idle[0]!r}, which nobody uses")


def agree(made: TensorSpec, wanted: TensorSpec) -> bool:
    """Whether a tensor of one signature may be one of the other: same datatype and rank, sizes equal or free."""
    return (
        made.datatype == wanted.datatype
        and len(made.shape) == len(wanted.shape)
        and all(have == want or -1 in (have, want) for have, want in zip(made.shape, wanted.shape, strict=True))
    )
