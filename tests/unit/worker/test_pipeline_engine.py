"""Pipelines on a device: what the contract could not compare is compared at load, and failures name their step."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from edge_agent.worker.arrays import Array, invalid
from edge_agent.worker.engines import Engine
from edge_agent.worker.engines.pipeline import PipelineEngine
from edge_contract.errors import EdgeError
from edge_contract.pipeline import Step
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec

X, Y = TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,))
ONE = np.ones(1, np.float32)


class Fake:
    """An engine that adds one, or does what it is told."""

    platform = "fake"

    def __init__(self, *, is_concurrent: bool = True, is_quick: bool = True, error: EdgeError | None = None) -> None:
        self.inputs: tuple[TensorSpec, ...] = (X,)
        self.outputs: tuple[TensorSpec, ...] = (Y,)
        self.is_concurrent, self.is_quick, self.error = is_concurrent, is_quick, error

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        if self.error is not None:
            raise self.error
        assert list(wanted) == ["y"]
        return {"y": inputs["x"] + np.float32(1)}


def _chain(*names: str) -> Member:
    tensors = ["x", *(f"t{place}" for place in range(1, len(names))), "y"]
    steps = tuple(Step(name, {"x": tensors[place]}, {"y": tensors[place + 1]}) for place, name in enumerate(names))
    return Member("pipe", "pipeline", inputs=(X,), outputs=(Y,), steps=steps)


def _refusal(member: Member, engines: Mapping[str, Engine]) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        PipelineEngine(member, engines)
    return caught.value


def test_steps_run_one_after_another_and_a_model_may_run_twice() -> None:
    pipe = PipelineEngine(_chain("a", "b", "a"), {"a": Fake(), "b": Fake()})
    assert pipe.run({"x": ONE}, ())["y"].tolist() == [4.0]


def test_it_is_as_concurrent_and_as_quick_as_the_least_of_its_steps() -> None:
    slow, single = Fake(is_quick=False), Fake(is_concurrent=False)
    both = PipelineEngine(_chain("a", "b"), {"a": Fake(), "b": Fake(), "unused": slow})
    assert (both.is_concurrent, both.is_quick) == (True, True)
    mixed = PipelineEngine(_chain("a", "b"), {"a": slow, "b": single})
    assert (mixed.is_concurrent, mixed.is_quick) == (False, False)


def test_what_a_model_says_of_itself_counts_at_load() -> None:
    """The descriptor declared nothing of it, so nobody could know before."""
    other = Fake()
    other.inputs = (replace(X, datatype="INT64"),)
    error = _refusal(_chain("a", "b"), {"a": Fake(), "b": other})
    assert error.code == "model.load-failed"
    assert "takes INT64" in error.detail
    other.inputs = (replace(X, shape=(-1, 3)),)
    assert "[-1, 3]" in _refusal(_chain("a", "b"), {"a": Fake(), "b": other}).detail
    other.inputs = (X, replace(X, name="more"))
    assert "'more'" in _refusal(_chain("a", "b"), {"a": Fake(), "b": other}).detail


def test_a_step_that_takes_json_only_is_no_step() -> None:
    silent = Fake()
    silent.inputs = ()
    error = _refusal(_chain("a", "b"), {"a": Fake(), "b": silent})
    assert error.code == "model.load-failed"
    assert "'b'" in error.detail


def test_a_pipeline_runs_no_pipeline() -> None:
    inner = PipelineEngine(_chain("a"), {"a": Fake()})
    assert "'b'" in _refusal(_chain("a", "b"), {"a": Fake(), "b": inner}).detail


def test_the_first_step_may_blame_the_client_and_the_second_may_not() -> None:
    angry = Fake(error=invalid("it does not fit"))
    for engines, code, step in (
        ({"a": angry, "b": Fake()}, "model.input-invalid", "'a'"),
        ({"a": Fake(), "b": angry}, "model.inference-failed", "'b'"),
    ):
        with pytest.raises(EdgeError) as caught:
            PipelineEngine(_chain("a", "b"), engines).run({"x": ONE}, ())
        assert caught.value.code == code
        assert f"step {step}: it does not fit" in caught.value.detail


def test_an_output_that_is_not_as_declared_is_the_models_fault() -> None:
    narrow = replace(_chain("a"), outputs=(replace(Y, shape=(2,)),))
    with pytest.raises(EdgeError) as caught:
        PipelineEngine(narrow, {"a": Fake()}).run({"x": ONE}, ())
    assert caught.value.code == "model.output-invalid"


def test_what_no_later_step_needs_is_let_go_of() -> None:
    made: list[weakref.ref[Array]] = []
    alive: list[int] = []

    class Watching(Fake):
        def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
            alive.append(sum(item() is not None for item in made))
            result = super().run(inputs, wanted)
            made.append(weakref.ref(result["y"]))
            return result

    PipelineEngine(_chain("a", "a", "a", "a"), {"a": Watching()}).run({"x": ONE}, ())
    assert alive == [0, 1, 1, 1], "each step sees its own input and nothing older"
