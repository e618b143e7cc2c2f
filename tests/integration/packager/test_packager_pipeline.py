"""A bundle with a pipeline, from its description to what a device computes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.worker.bundle import LoadedBundle, load_bundle, prove_bundle
from edge_contract.errors import EdgeError
from edge_contract.pipeline import Batching, Step
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec
from packager.layout import Layout
from packager.pipelines import make_pipeline, pipeline_of_flag
from packager.spec import Flags, PipelineSpec
from packager.specload import load_spec
from tests.integration.packager.test_packager_device import stage
from tests.support.require import REPOSITORY_ROOT
from tests.support.scripts import python_as_before
from tests.unit.packager.support import write_model


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example of an image pipeline with its model made."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    folder = tmp_path_factory.mktemp("example") / "image-pipeline"
    shutil.copytree(REPOSITORY_ROOT / "examples" / "image-pipeline", folder)
    subprocess.run([sys.executable, "make_model.py"], check=True, cwd=folder, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def bundle(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedBundle]:
    """The example on a device, proved."""
    spec = load_spec(example / "lighterman.toml", Flags(version=1))
    with python_as_before():
        loaded = load_bundle(stage(spec, tmp_path_factory.mktemp("staged")))
        proof = prove_bundle(loaded)
        assert proof is not None
        assert proof.error_max == 0
        yield loaded


def test_image_files_go_in_and_names_come_out(bundle: LoadedBundle, example: Path) -> None:
    image = np.array([(example / "digit.png").read_bytes()] * 2, dtype=object)
    outputs = bundle.members["read"].engine.run({"image": image}, ())
    assert outputs["digit"].shape == (2,)
    assert outputs["digit"].tolist() == [b"seven"] * 2
    assert 0.5 < outputs["share"][0] <= 1


def test_a_broken_image_is_the_clients_fault(bundle: LoadedBundle) -> None:
    with pytest.raises(EdgeError) as caught:
        bundle.members["read"].engine.run({"image": np.array([b"no image"], dtype=object)}, ())
    assert caught.value.code == "model.input-invalid"
    assert "'decode'" in caught.value.detail


def test_its_steps_answer_under_their_own_names(bundle: LoadedBundle) -> None:
    assert list(bundle.members) == ["decode", "classify", "name", "read"]
    scores = bundle.members["classify"].engine.run({"pixels": np.zeros((1, 64), np.float32)}, ())["scores"]
    assert scores.sum() == pytest.approx(1)


def test_flags_say_a_pipeline_knobs_and_batching(tmp_path: Path) -> None:
    one, two = write_model(tmp_path / "one"), write_model(tmp_path / "two")
    flags = Flags(
        name="pair",
        version=1,
        members=(("one", one), ("two", two)),
        pipelines=("both=one",),
        options=(("one", "threads=1"), ("two", "graph_level=basic"), ("both", "allow_nonfinite=true")),
        batching=(("both", "8:2000"),),
    )
    stage(load_spec(None, flags), tmp_path)
    members = {member.name: member for member in Layout(tmp_path / "bundle").bundles[0].runtime.members}
    assert members["one"].options == {"threads": "1"}
    assert members["two"].options == {"graph_level": "basic"}
    assert members["both"].batching == Batching(8, 2_000)
    assert [step.member for step in members["both"].steps] == ["one"]


# --- connecting a chain

X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4))
EXTRA = TensorSpec("extra", "INT64", (-1,))


def _chain(*members: Member) -> Member:
    names = ",".join(member.name for member in members)
    known = {member.name: member for member in members}
    return make_pipeline(pipeline_of_flag(f"pipe={names}"), list(known.values()), "here")


def test_an_only_output_goes_to_an_only_input_whatever_their_names() -> None:
    second = Member("b", "onnx", "b", (TensorSpec("in", "FP32", (-1, 4)),), (Y,))
    made = _chain(Member("a", "onnx", "a", (X,), (Y,)), second)
    assert made.steps == (Step("a", {"x": "x"}, {"y": "y"}), Step("b", {"in": "y"}, {"y": "b.y"}))
    assert made.inputs == (X,)
    assert made.outputs == (TensorSpec("b.y", "FP32", (-1, 4)),)


def test_what_no_step_makes_is_what_clients_send_and_what_nobody_takes_on_the_way_is_left_out() -> None:
    first = Member("a", "onnx", "a", (X,), (Y, EXTRA))
    last = Member("b", "onnx", "b", (Y, TensorSpec("scale", "FP32", (1,))), (TensorSpec("z", "FP32", (-1, 4)),))
    made = _chain(first, last)
    assert [spec.name for spec in made.inputs] == ["x", "scale"]
    assert [spec.name for spec in made.outputs] == ["z"]
    assert made.steps[0].outputs == {"y": "y"}


def test_a_model_may_run_twice() -> None:
    same = Member("a", "onnx", "a", (X,), (Y,))
    made = _chain(same, same)
    assert made.steps == (Step("a", {"x": "x"}, {"y": "y"}), Step("a", {"x": "y"}, {"y": "a.y"}))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda: pipeline_of_flag("pipe"), "NAME=FIRST", id="no chain"),
        pytest.param(lambda: pipeline_of_flag("pipe=a,,b"), "NAME=FIRST", id="gap"),
        pytest.param(lambda: make_pipeline(PipelineSpec("p", chain=("a",)), (), "here"), "'a'", id="unknown"),
        pytest.param(
            lambda: make_pipeline(PipelineSpec("p", chain=("a",)), [Member("a", "script", "a.py")], "here"),
            "declares no tensors",
            id="script without tensors",
        ),
        pytest.param(
            lambda: _chain(Member("a", "onnx", "a", (X,), (EXTRA,)), Member("b", "onnx", "b", (X,), (Y,))),
            "INT64",
            id="does not fit",
        ),
    ],
)
def test_what_does_not_connect_is_refused_before_anything_is_built(make: Callable[[], object], says: str) -> None:
    with pytest.raises(EdgeError) as caught:
        make()
    assert caught.value.code == "config.invalid"
    assert says in caught.value.detail
