"""What every engine promises (`edge_agent.worker.engines.Engine`): ONNX Runtime, LiteRT, scripts, pipelines alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.worker.arrays import DTYPES, Array
from edge_agent.worker.engines import Engine, Place, load_engine
from edge_contract.errors import EdgeError
from edge_contract.pipeline import Step
from edge_contract.runtime import Member, Runtime
from edge_contract.tensors import TensorSpec
from tests.ports.engine_models import onnx_identity, onnx_two, script_identity, script_two, tflite_identity
from tests.support.scripts import python_as_before

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Subject:
    """An engine under test, and how to make models for it.

    Attributes:
        name: Of the engine.
        identity: Members (the last one is loaded and tested) and files of a model `y = x`.
        two: The same of `sum = a + b`, `difference = a - b` for `a`, `b` of FP32 [-1, 3].
    """

    name: str
    identity: Callable[[TensorSpec], tuple[Sequence[Member], Files]]
    two: Callable[[], tuple[Sequence[Member], Files]] | None = None


def _output(spec: TensorSpec) -> TensorSpec:
    return TensorSpec("y", spec.datatype, spec.shape)


A, B = TensorSpec("a", "FP32", (-1, 3)), TensorSpec("b", "FP32", (-1, 3))
SUM, DIFFERENCE = TensorSpec("sum", "FP32", (-1, 3)), TensorSpec("difference", "FP32", (-1, 3))


def _script(spec: TensorSpec) -> tuple[Sequence[Member], Files]:
    return [Member("m", "script", "score.py", (spec,), (_output(spec),))], {"score.py": script_identity()}


def _pipeline(spec: TensorSpec) -> tuple[Sequence[Member], Files]:
    first = Member("first", "onnx", "first.onnx")
    second = Member("second", "script", "second.py", (spec,), (_output(spec),))
    steps = (Step("second", {"x": "between"}, {"y": "y"}), Step("first", {"x": "x"}, {"y": "between"}))
    pipe = Member("m", "pipeline", inputs=(spec,), outputs=(_output(spec),), steps=steps)
    return [first, second, pipe], {"first.onnx": onnx_identity(spec), "second.py": script_identity()}


def _two_pipeline() -> tuple[Sequence[Member], Files]:
    first = Member("first", "onnx", "two.onnx")
    steps = (Step("first", {"a": "a", "b": "b"}, {"sum": "sum", "difference": "difference"}),)
    return [first, Member("m", "pipeline", inputs=(A, B), outputs=(SUM, DIFFERENCE), steps=steps)], {
        "two.onnx": onnx_two()
    }


SUBJECTS = (
    Subject(
        "onnx",
        lambda spec: ([Member("m", "onnx", "model.onnx")], {"model.onnx": onnx_identity(spec)}),
        lambda: ([Member("m", "onnx", "two.onnx")], {"two.onnx": onnx_two()}),
    ),
    Subject("litert", lambda spec: ([Member("m", "litert", "model.tflite")], {"model.tflite": tflite_identity(spec)})),
    Subject(
        "script",
        _script,
        lambda: ([Member("m", "script", "two.py", (A, B), (SUM, DIFFERENCE))], {"two.py": script_two()}),
    ),
    Subject("pipeline", _pipeline, _two_pipeline),
)


@pytest.fixture(autouse=True)
def _python_as_before() -> Iterator[None]:
    with python_as_before():
        yield


@pytest.fixture(params=SUBJECTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each engine in turn."""
    chosen: Subject = request.param
    return chosen


@pytest.fixture(params=[subject for subject in SUBJECTS if subject.two], ids=lambda subject: subject.name)
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """A model with two inputs and two outputs."""
    assert request.param.two is not None
    return _load(tmp_path, *request.param.two())


def _load(folder: Path, members: Sequence[Member], files: Files) -> Engine:
    for path, data in files.items():
        (folder / path).write_bytes(data)
    runtime = Runtime("m", 1, tuple(members))
    engines: dict[str, Engine] = {}
    for member in members:
        engines[member.name] = load_engine(member, Place(folder, folder / "site"), runtime, loaded=engines)
    return engines[members[-1].name]


def _identity(subject: Subject, folder: Path, spec: TensorSpec) -> Engine:
    return _load(folder, *subject.identity(spec))


def _some(datatype: str, shape: tuple[int, ...]) -> Array:
    """Values at the ends of the datatype, and between."""
    count = int(np.prod(shape, dtype=np.int64))
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        texts = [b"", "grün".encode(), b"x" * 300, b"plain"]
        array = np.empty(count, dtype=object)
        array[:] = [texts[number % len(texts)] for number in range(count)]
        return array.reshape(shape)
    if dtype.kind == "b":
        values: list[Any] = [True, False, True]
    elif dtype.kind == "f":
        info = np.finfo(dtype)
        values = [0.0, -1.5, info.max, info.tiny, info.min]
    else:
        bounds = np.iinfo(dtype)
        values = [bounds.min, bounds.max, 1, 0]
    return np.array([values[number % len(values)] for number in range(count)], dtype=dtype).reshape(shape)


# --- values


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_every_datatype_goes_in_and_comes_out_as_it_is(subject: Subject, tmp_path: Path, datatype: str) -> None:
    engine = _identity(subject, tmp_path, TensorSpec("x", datatype, (-1, 4)))
    assert [(spec.name, spec.datatype, spec.shape) for spec in engine.inputs] == [("x", datatype, (-1, 4))]
    assert [(spec.name, spec.datatype) for spec in engine.outputs] == [("y", datatype)]
    x = _some(datatype, (2, 4))
    y = engine.run({"x": x}, ())["y"]
    assert y.dtype == DTYPES[datatype]
    assert y.shape == (2, 4)
    assert y.tolist() == x.tolist()
    if datatype == "BYTES":
        assert {type(item) for item in y.ravel()} == {bytes}


def test_free_dimensions_take_any_size_in_any_order(subject: Subject, tmp_path: Path) -> None:
    engine = _identity(subject, tmp_path, TensorSpec("x", "FP32", (-1, 4)))
    for rows in (1, 7, 2, 64, 1):
        x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        assert np.array_equal(engine.run({"x": x}, ())["y"], x)


def test_nothing_goes_in_and_nothing_comes_out(subject: Subject, tmp_path: Path) -> None:
    engine = _identity(subject, tmp_path, TensorSpec("x", "FP32", (-1, 4)))
    y = engine.run({"x": np.zeros((0, 4), np.float32)}, ())["y"]
    assert y.shape == (0, 4)
    assert y.dtype == np.float32
    assert engine.run({"x": np.ones((1, 4), np.float32)}, ())["y"].tolist() == [[1.0] * 4]


def test_a_single_number_has_no_dimensions(subject: Subject, tmp_path: Path) -> None:
    engine = _identity(subject, tmp_path, TensorSpec("x", "FP32", ()))
    y = engine.run({"x": np.array(2.5, np.float32)}, ())["y"]
    assert y.shape == ()
    assert float(y) == 2.5


def test_nan_and_infinity_are_numbers_like_others(subject: Subject, tmp_path: Path) -> None:
    engine = _identity(subject, tmp_path, TensorSpec("x", "FP32", (-1, 4)))
    x = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    assert engine.run({"x": x}, ())["y"].tobytes() == x.tobytes()


def test_inputs_may_be_read_only_and_strided_and_stay_as_they_are(subject: Subject, tmp_path: Path) -> None:
    engine = _identity(subject, tmp_path, TensorSpec("x", "FP32", (-1, 4)))
    plain = np.arange(8, dtype=np.float32).reshape(2, 4)
    frozen = np.frombuffer(plain.tobytes(), np.float32).reshape(2, 4)
    for x in (frozen, np.asfortranarray(plain), np.repeat(plain, 2, axis=1)[:, ::2]):
        kept = x.copy()
        assert np.array_equal(engine.run({"x": x}, ())["y"], plain)
        assert np.array_equal(x, kept)


def test_outputs_outlive_later_runs(subject: Subject, tmp_path: Path) -> None:
    engine = _identity(subject, tmp_path, TensorSpec("x", "FP32", (-1, 4)))
    first = engine.run({"x": np.zeros((1, 4), np.float32)}, ())["y"]
    engine.run({"x": np.ones((1, 4), np.float32)}, ())
    assert first.tolist() == [[0.0] * 4]


# --- names


def test_wanted_outputs_come_in_the_order_they_are_wanted(two: Engine) -> None:
    inputs = {"a": np.full((1, 3), 3, np.float32), "b": np.ones((1, 3), np.float32)}
    assert list(two.run(inputs, ())) == [spec.name for spec in two.outputs]
    swapped = two.run(inputs, ["difference", "sum"])
    assert [(name, array.tolist()) for name, array in swapped.items()] == [
        ("difference", [[2.0] * 3]),
        ("sum", [[4.0] * 3]),
    ]
    assert list(two.run(inputs, ["sum"])) == ["sum"]


# --- wrong inputs


_ROW = np.zeros((1, 4), np.float32)


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        pytest.param({}, (), id="missing"),
        pytest.param({"z": _ROW}, (), id="other name"),
        pytest.param({"x": _ROW, "z": _ROW}, (), id="one too many"),
        pytest.param({"x": _ROW.astype(np.float64)}, (), id="other datatype"),
        pytest.param({"x": _ROW.astype(object)}, (), id="objects"),
        pytest.param({"x": np.zeros((1, 5), np.float32)}, (), id="other size"),
        pytest.param({"x": np.zeros(4, np.float32)}, (), id="other rank"),
        pytest.param({"x": _ROW}, ("z",), id="output it does not have"),
        pytest.param({"x": _ROW}, ("y", "z"), id="one output it does not have"),
    ],
)
def test_a_wrong_input_is_the_callers_fault_and_fails_that_run_only(
    subject: Subject, tmp_path: Path, inputs: dict[str, Array], wanted: tuple[str, ...]
) -> None:
    engine = _identity(subject, tmp_path, TensorSpec("x", "FP32", (-1, 4)))
    for _ in range(2):
        with pytest.raises(EdgeError) as caught:
            engine.run(inputs, wanted)
        assert caught.value.code == "model.input-invalid"
        assert "'m'" in caught.value.detail
    assert engine.run({"x": _ROW + 1}, ())["y"].tolist() == [[1.0] * 4]


# --- threads


def test_calls_from_several_threads_do_not_mix(subject: Subject, tmp_path: Path) -> None:
    engine = _identity(subject, tmp_path, TensorSpec("x", "FP32", (-1, 4)))

    def run(number: int) -> bool:
        x = np.full((1 + number % 5, 4), number, dtype=np.float32)
        return bool(np.array_equal(engine.run({"x": x}, ())["y"], x))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(300)))


def test_an_engine_says_whether_it_runs_calls_at_the_same_time(tmp_path: Path) -> None:
    said = {
        subject.name: _identity(subject, _new(tmp_path / subject.name), TensorSpec("x", "FP32", (-1, 4))).is_concurrent
        for subject in SUBJECTS
    }
    assert said == {"onnx": True, "litert": False, "script": False, "pipeline": False}


def test_a_script_that_meets_itself_would_show_it(tmp_path: Path) -> None:
    """Declared not to be concurrent, so it never is, whoever calls, a pipeline included."""
    x = TensorSpec("x", "FP32", (-1,))
    source = b"""
import threading, time
inside = threading.Semaphore(1)
def run(data):
    if not inside.acquire(blocking=False):
        raise RuntimeError("two at once")
    time.sleep(0.001)
    inside.release()
    return {"y": data["x"]}
"""
    (tmp_path / "score.py").write_bytes(source)
    script = Member("s", "script", "score.py", (x,), (_output(x),))
    pipe = Member("p", "pipeline", inputs=(x,), outputs=(_output(x),), steps=(Step("s", {"x": "x"}, {"y": "y"}),))
    runtime, place = Runtime("m", 1, (script, pipe)), Place(tmp_path, tmp_path / "site")
    engine = load_engine(script, place, runtime)
    both = [engine, load_engine(pipe, place, runtime, loaded={"s": engine})]
    start = threading.Barrier(4)

    def run(number: int) -> None:
        start.wait(10)
        for _ in range(20):
            both[number % 2].run({"x": np.zeros(1, np.float32)}, ())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(4)))


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


# --- loading


@pytest.mark.parametrize("subject", SUBJECTS[:3], ids=lambda subject: subject.name)  # a pipeline is its declaration
def test_a_declaration_may_be_narrower_than_the_model(subject: Subject, tmp_path: Path) -> None:
    members, files = subject.identity(TensorSpec("x", "FP32", (-1, 4)))
    narrow = TensorSpec("x", "FP32", (2, 4))
    member = Member("m", members[-1].engine, members[-1].entry, (narrow,), (_output(narrow),))
    engine = _load(tmp_path, [member], files)
    assert (engine.inputs, engine.outputs) == ((narrow,), (_output(narrow),))
    assert engine.run({"x": np.ones((2, 4), np.float32)}, ())["y"].shape == (2, 4)


def test_an_option_that_nobody_knows_is_refused(subject: Subject, tmp_path: Path) -> None:
    members, files = subject.identity(TensorSpec("x", "FP32", (-1, 4)))
    for options in ({"turbo": "on"}, {"allow_nonfinite": "perhaps"}):
        last = members[-1]
        wrong = Member("m", last.engine, last.entry, last.inputs, last.outputs, options, last.steps)
        with pytest.raises(EdgeError) as caught:
            _load(tmp_path, [*members[:-1], wrong], files)
        assert caught.value.code == "model.load-failed"


def test_a_file_that_is_not_there_is_named(subject: Subject, tmp_path: Path) -> None:
    members, files = subject.identity(TensorSpec("x", "FP32", (-1, 4)))
    assert files
    with pytest.raises(EdgeError) as caught:
        _load(tmp_path, members, {})
    assert caught.value.code == "model.load-failed"
    assert any(repr(path) in caught.value.detail for path in files)
