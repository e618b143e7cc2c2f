"""Pipelines in a runtime descriptor: every tensor has one source and a use, and steps fit together, or are refused."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from edge_contract.errors import ContractError
from edge_contract.pipeline import Batching, Step
from edge_contract.runtime import Member, Runtime
from edge_contract.tensors import TensorSpec

IMAGE, PIXELS = TensorSpec("image", "BYTES", (-1,)), TensorSpec("pixels", "FP32", (-1, 3, 32, 32))
SCORES, LABEL = TensorSpec("scores", "FP32", (-1, 10)), TensorSpec("label", "BYTES", (-1,))
DECODE = Member("decode", "script", "decode.py", (IMAGE,), (PIXELS,))
CLASSIFY = Member("classify", "onnx", "model.onnx", (replace(PIXELS, name="x"),), (replace(SCORES, name="y"),))
NAME = Member("name", "script", "name.py", (SCORES,), (LABEL,))
STEPS = (
    Step("decode", {"image": "image"}, {"pixels": "pixels"}),
    Step("classify", {"x": "pixels"}, {"y": "scores"}),
    Step("name", {"scores": "scores"}, {"label": "label"}),
)


def _runtime(steps: tuple[Step, ...] = STEPS, **changes: Any) -> Runtime:
    pipe = replace(Member("pipe", "pipeline", inputs=(IMAGE,), outputs=(LABEL,), steps=steps), **changes)
    return Runtime("photos", 1, (DECODE, CLASSIFY, NAME, pipe))


def _refusal(runtime: Runtime) -> str:
    with pytest.raises(ContractError) as caught:
        Runtime.parse(runtime.to_bytes())
    assert caught.value.code == "artifact.runtime-invalid"
    return caught.value.detail


def test_steps_are_put_into_the_order_in_which_they_can_run() -> None:
    for order in (STEPS, STEPS[::-1], (STEPS[1], STEPS[2], STEPS[0])):
        assert Runtime.parse(_runtime(order).to_bytes()) == _runtime()


def test_an_output_may_leave_the_pipeline_and_go_on_inside_it() -> None:
    both = _runtime(outputs=(LABEL, SCORES))
    assert Runtime.parse(both.to_bytes()) == both


def _with(place: int, inputs: Mapping[str, str] | None = None, outputs: Mapping[str, str] | None = None) -> Runtime:
    step = STEPS[place]
    changed = replace(
        step,
        inputs=step.inputs if inputs is None else dict(inputs),
        outputs=step.outputs if outputs is None else dict(outputs),
    )
    return _runtime((*STEPS[:place], changed, *STEPS[place + 1 :]))


@pytest.mark.parametrize(
    ("runtime", "says"),
    [
        pytest.param(_runtime((*STEPS, Step("resize", {"a": "image"}, {"b": "c"}))), "'resize'", id="unknown member"),
        pytest.param(_runtime((*STEPS[:2], replace(STEPS[2], member="pipe"))), "'pipe'", id="pipeline in a pipeline"),
        pytest.param(_with(1, {"x": "pixel"}), "'pixel'", id="tensor nobody makes"),
        pytest.param(_with(1, {"z": "pixels"}), "input 'x'", id="input left open"),
        pytest.param(_with(1, {"x": "pixels", "z": "pixels"}), "input 'z'", id="input it does not have"),
        pytest.param(_with(1, outputs={"z": "scores"}), "output 'z'", id="output it does not have"),
        pytest.param(_with(2, outputs={"label": "pixels"}), "two sources", id="two sources"),
        pytest.param(_with(0, outputs={"pixels": "image"}), "two sources", id="overwrites an input"),
        pytest.param(_with(1, {"x": "image"}), "takes FP32", id="other datatype"),
        pytest.param(_with(2, {"scores": "pixels"}), "takes FP32 [-1, 10]", id="other shape"),
        pytest.param(_runtime(outputs=(IMAGE,)), "no step makes it", id="its own input"),
        pytest.param(_runtime(outputs=(replace(LABEL, name="l"),)), "'l'", id="output nobody makes"),
        pytest.param(_runtime(outputs=(replace(LABEL, shape=(-1, 2)),)), "output 'label'", id="output of other rank"),
        pytest.param(_runtime(inputs=(IMAGE, SCORES)), "two sources", id="input that a step makes"),
        pytest.param(_runtime(inputs=(IMAGE, replace(IMAGE, name="idle"))), "'idle'", id="input nobody uses"),
        pytest.param(_runtime(()), "1 to 16 steps", id="no steps"),
        pytest.param(_runtime(STEPS * 6), "at most 16", id="too many steps"),
        pytest.param(_runtime(inputs=()), "declared inputs", id="no declared inputs"),
    ],
)  # fmt: skip
def test_a_pipeline_that_does_not_hang_together_is_refused(runtime: Runtime, says: str) -> None:
    assert says in _refusal(runtime)


def test_a_circle_is_named() -> None:
    models = (
        Member("a", "script", "a.py", (IMAGE, replace(IMAGE, name="back")), (LABEL,)),
        Member("b", "script", "b.py", (LABEL,), (replace(IMAGE, name="out"),)),
    )
    steps = (
        Step("a", {"image": "image", "back": "out"}, {"label": "label"}),
        Step("b", {"label": "label"}, {"out": "out"}),
    )
    pipe = Member("pipe", "pipeline", inputs=(IMAGE,), outputs=(LABEL,), steps=steps)
    assert "circle: a, b" in _refusal(Runtime("m", 1, (*models, pipe)))


def test_what_is_not_declared_is_left_to_the_device() -> None:
    silent = replace(CLASSIFY, inputs=(), outputs=())
    runtime = Runtime("photos", 1, (DECODE, silent, NAME, _runtime().members[-1]))
    assert Runtime.parse(runtime.to_bytes()) == runtime


def test_free_sizes_agree_with_any() -> None:
    free = replace(CLASSIFY, inputs=(TensorSpec("x", "FP32", (1, 3, -1, -1)),))
    runtime = Runtime("photos", 1, (DECODE, free, NAME, _runtime().members[-1]))
    assert Runtime.parse(runtime.to_bytes()) == runtime


def test_only_a_pipeline_has_steps_and_it_has_no_file() -> None:
    document = json.loads(_runtime().to_bytes())
    pipe, model = document["members"][3], document["members"][1]
    assert "entry" not in pipe
    assert "steps" not in model
    for member, key, value in ((pipe, "entry", "x.onnx"), (model, "steps", pipe["steps"])):
        changed = json.loads(_runtime().to_bytes())
        changed["members"][document["members"].index(member)][key] = value
        with pytest.raises(ContractError) as caught:
            Runtime.parse(json.dumps(changed).encode())
        assert caught.value.code == "artifact.unknown-field"


def test_batching_is_bounded_and_needs_a_free_first_size() -> None:
    batched = replace(CLASSIFY, batching=Batching(8, 2_000))
    runtime = Runtime("photos", 1, (batched,))
    assert Runtime.parse(runtime.to_bytes()) == runtime
    for wrong in (Batching(1, 0), Batching(1_025, 0), Batching(8, 1_000_001)):
        _refusal(Runtime("photos", 1, (replace(batched, batching=wrong),)))
    fixed = replace(batched, inputs=(TensorSpec("x", "FP32", (1, 3, 32, 32)),))
    assert "first size" in _refusal(Runtime("photos", 1, (fixed,)))
