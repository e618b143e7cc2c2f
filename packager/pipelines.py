"""Pipelines of a description: tables of steps, or a chain of models whose tensors are connected by their names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edge_contract.engines import check_options
from edge_contract.errors import ContractError, EdgeError
from edge_contract.names import model_name
from edge_contract.pipeline import Step, order_steps, read_batching
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec
from packager.spec import PipelineSpec

_CODE = "config.invalid"


def pipeline_of_flag(text: str) -> PipelineSpec:
    """A chain from `--pipeline NAME=FIRST,SECOND,...`.

    Raises:
        EdgeError: `config.invalid`.
    """
    name, mark, rest = text.partition("=")
    chain = tuple(item.strip() for item in rest.split(",")) if mark else ()
    if not chain or not all(chain):
        raise EdgeError(_CODE, f"--pipeline {text!r} is not of the form NAME=FIRST,SECOND,...")
    return PipelineSpec(model_name(name), chain=tuple(model_name(item) for item in chain))


def make_pipeline(spec: PipelineSpec, members: Sequence[Member], where: str) -> Member:
    """A pipeline as the runtime descriptor holds it: connected, its signature read off its steps, checked.

    Args:
        spec: As described.
        members: The bundle's models with their tensor signatures.
        where: The place of the description, for messages.

    Raises:
        EdgeError: `config.invalid`, with what the contract has against it.
    """
    known = {member.name: member for member in members}
    names = spec.chain or [step.member for step in spec.steps]
    if strangers := [name for name in names if name not in known]:
        raise EdgeError(
            _CODE, f"{where}: the pipeline {spec.name!r} runs {strangers[0]!r}, which is no model of the bundle",
            f"Models: {', '.join(known)}.",
        )  # fmt: skip
    for name in names:
        if not known[name].inputs or not known[name].outputs:
            raise EdgeError(
                _CODE, f"{where}: {name!r} is a step of {spec.name!r} and declares no tensors",
                "Declare its inputs and outputs.",
            )  # fmt: skip
    steps = _connect(spec, known) if spec.chain else spec.steps
    try:
        check_options("pipeline", spec.options, _CODE, f"{where}: the pipeline {spec.name!r}")
        inputs = spec.inputs or _open_inputs(steps, known)
        outputs = spec.outputs or _open_outputs(steps, known)
        signatures = {name: (member.inputs, member.outputs) for name, member in known.items()}
        ordered = order_steps(spec.name, inputs, outputs, steps, signatures)
        batching = read_batching(None if spec.batching is None else spec.batching.to_json(), _CODE)
    except ContractError as error:
        raise EdgeError(_CODE, f"{where}: {error.detail}", error.hint) from None
    return Member(spec.name, "pipeline", "", inputs, outputs, dict(spec.options), ordered, batching)


def _connect(spec: PipelineSpec, known: Mapping[str, Member]) -> tuple[Step, ...]:
    """Give every input the tensor of its name, else the only output of the step before to an only input."""
    made: dict[str, str] = {}  # newest tensor by the name of the output
    steps: list[Step] = []
    taken: set[str] = set()
    for name in spec.chain:
        member = known[name]
        feeds = {}
        for item in member.inputs:
            last = list(steps[-1].outputs.values()) if steps else []
            if item.name in made:
                feeds[item.name] = made[item.name]
            elif len(member.inputs) == 1 and len(last) == 1:
                feeds[item.name] = last[0]
            else:
                feeds[item.name] = item.name  # what the client sends
        taken.update(feeds.values())
        outputs = {item.name: _free(item.name, name, taken) for item in member.outputs}
        taken.update(outputs.values())
        made.update(outputs)
        steps.append(Step(name, feeds, outputs))
    used = {tensor for step in steps for tensor in step.inputs.values()}
    last_step = len(steps) - 1
    wanted = {item.name for item in spec.outputs}
    return tuple(
        step
        if place == last_step
        else replace(
            step,
            outputs={key: tensor for key, tensor in step.outputs.items() if tensor in used or tensor in wanted},
        )
        for place, step in enumerate(steps)
    )


def _free(name: str, member: str, taken: set[str]) -> str:
    """A name for a tensor that no other has; a model may stand in a chain twice."""
    choices = [name, f"{member}.{name}", *(f"{member}.{name}.{number}" for number in range(2, len(taken) + 3))]
    return next(choice for choice in choices if choice not in taken)


def _open_inputs(steps: Sequence[Step], known: Mapping[str, Member]) -> tuple[TensorSpec, ...]:
    """Tensors that steps take and none makes, as their first taker describes them."""
    made = {tensor for step in steps for tensor in step.outputs.values()}
    found: dict[str, TensorSpec] = {}
    for step in steps:
        specs = {item.name: item for item in known[step.member].inputs}
        for name, tensor in step.inputs.items():
            if tensor not in made and name in specs:
                found.setdefault(tensor, replace(specs[name], name=tensor))
    return tuple(found.values())


def _open_outputs(steps: Sequence[Step], known: Mapping[str, Member]) -> tuple[TensorSpec, ...]:
    """Tensors that steps make and none takes."""
    used = {tensor for step in steps for tensor in step.inputs.values()}
    found: list[Any] = []
    for step in steps:
        specs = {item.name: item for item in known[step.member].outputs}
        found += [
            replace(specs[name], name=tensor)
            for name, tensor in step.outputs.items()
            if tensor not in used and name in specs
        ]
    return tuple(found)
