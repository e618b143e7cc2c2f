"""What every engine promises, tried on each of them, and what is special to one."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.worker.engines import Allowance, Engine, JsonEngine
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member, Runtime
from edge_contract.tensors import TensorSpec
from tests.support.require import REPOSITORY_ROOT
from tests.support.scripts import python_as_before
from tests.support.slots import onnx_model
from tests.unit.worker.tiny_models import KINDS, SCRIPT, Kind, X, Y, load, tflite_adder


@pytest.fixture(params=KINDS, ids=lambda kind: kind.engine)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each engine in turn."""
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def engine(kind: Kind, tmp_path: Path) -> Engine:
    """The tiny model, loaded."""
    return load(tmp_path, kind.member(), {kind.entry: kind.make()})


@pytest.fixture(autouse=True)
def _python_as_before() -> Iterator[None]:
    with python_as_before():
        yield


# --- every engine


def test_it_says_its_signature(engine: Engine) -> None:
    assert engine.inputs == (X,)
    assert engine.outputs == (Y,)
    assert engine.platform


def test_it_computes_batches_of_any_size_in_any_order(engine: Engine) -> None:
    for rows in (1, 3, 2, 3, 1):
        x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        kept = x.copy()
        outputs = engine.run({"x": x}, ())
        assert list(outputs) == ["y"]
        assert outputs["y"].dtype == np.float32
        assert np.array_equal(outputs["y"], kept + 10)
        assert np.array_equal(x, kept)


def test_it_takes_arrays_that_are_read_only_and_gives_only_what_is_wanted(engine: Engine) -> None:
    x = np.frombuffer(np.ones(4, dtype=np.float32).tobytes(), dtype=np.float32).reshape(1, 4)
    assert engine.run({"x": x}, ["y"])["y"].tolist() == [[11.0] * 4]


def test_outputs_of_one_run_survive_the_next(engine: Engine) -> None:
    first = engine.run({"x": np.zeros((1, 4), np.float32)}, ())["y"]
    engine.run({"x": np.ones((1, 4), np.float32)}, ())
    assert first.tolist() == [[10.0] * 4]


def test_calls_from_several_threads_do_not_mix(engine: Engine) -> None:
    def run(number: int) -> bool:
        x = np.full((1 + number % 3, 4), number, dtype=np.float32)
        return bool((engine.run({"x": x}, ())["y"] == number + 10).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(200)))


def test_a_declared_signature_may_be_narrower(kind: Kind, tmp_path: Path) -> None:
    narrow = TensorSpec("x", "FP32", (2, 4)), TensorSpec("y", "FP32", (2, 4))
    member = kind.member(inputs=narrow[:1], outputs=narrow[1:])
    engine = load(tmp_path, member, {kind.entry: kind.make()})
    assert (engine.inputs, engine.outputs) == (narrow[:1], narrow[1:])
    assert engine.run({"x": np.zeros((2, 4), np.float32)}, ())["y"].shape == (2, 4)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"entry": "other.bin"}, id="file that is not there"),
        pytest.param({"options": {"turbo": "on"}}, id="unknown option"),
    ],
)
def test_a_descriptor_that_asks_for_what_is_not_there_is_refused(
    kind: Kind, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(EdgeError) as caught:
        load(tmp_path, kind.member(**changes), {kind.entry: kind.make()})
    assert caught.value.code == "model.load-failed"


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "zeros"])
def test_a_file_that_is_no_model_is_refused(kind: Kind, tmp_path: Path, damage: str) -> None:
    whole = kind.make()
    damaged = {"empty": b"", "cut": whole[: len(whole) // 2], "noise": b"\xb7" * 500, "zeros": bytes(500)}[damage]
    with pytest.raises(EdgeError) as caught:
        load(tmp_path, kind.member(), {kind.entry: damaged})
    assert caught.value.code == "model.load-failed"
    assert "'m'" in caught.value.detail


def test_an_input_the_model_cannot_take_fails_that_run_only(engine: Engine) -> None:
    with pytest.raises(EdgeError) as caught:
        engine.run({"x": np.zeros((1, 4), np.float64)}, ())
    assert caught.value.code == "model.input-invalid"
    assert engine.run({"x": np.zeros((1, 4), np.float32)}, ())["y"].tolist() == [[10.0] * 4]


# --- engines whose models know their signature


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param((TensorSpec("x", "FP64", (-1, 4)),), id="other datatype"),
        pytest.param((TensorSpec("x", "FP32", (-1, 5)),), id="other size"),
        pytest.param((TensorSpec("x", "FP32", (4,)),), id="other rank"),
        pytest.param((TensorSpec("z", "FP32", (-1, 4)),), id="other name"),
    ],
)
@pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.engine)
def test_a_declaration_that_contradicts_the_model_is_refused(
    kind: Kind, tmp_path: Path, inputs: tuple[TensorSpec, ...]
) -> None:
    with pytest.raises(EdgeError) as caught:
        load(tmp_path, kind.member(inputs=inputs), {kind.entry: kind.make()})
    assert caught.value.code == "model.load-failed"


# --- onnx


@pytest.mark.parametrize("options", [{"threads": "0"}, {"threads": "x"}, {"threads": "1000"}, {"spinning": "perhaps"}])
def test_onnx_refuses_options_it_does_not_understand(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(EdgeError) as caught:
        load(tmp_path, KINDS[0].member(options=options), {"model.onnx": KINDS[0].make()})
    assert caught.value.code == "model.load-failed"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        pytest.param(
            {},
            {"arena": True, "pattern": True, "level": "ORT_ENABLE_ALL", "spinning": "0", "inter": 1},
            id="what suits a device",
        ),
        pytest.param({"threads": "3"}, {"threads": 3}, id="threads"),
        pytest.param({"spinning": "on", "spin_us": "50"}, {"spinning": "1", "spin_us": "50"}, id="spinning"),
        pytest.param({"arena": "off"}, {"arena": False}, id="arena"),
        pytest.param({"memory_pattern": "off"}, {"pattern": False}, id="memory pattern"),
        pytest.param({"graph_level": "basic"}, {"level": "ORT_ENABLE_BASIC"}, id="graph level"),
        pytest.param({"graph_level": "extended"}, {"level": "ORT_ENABLE_EXTENDED"}, id="graph level extended"),
        pytest.param({"graph_level": "off"}, {"level": "ORT_DISABLE_ALL"}, id="no optimisation"),
    ],
)
def test_onnx_options_reach_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], wanted: dict[str, Any]
) -> None:
    import onnxruntime

    seen: dict[str, Any] = {}
    real = onnxruntime.InferenceSession

    def watched(path: str, settings: Any, providers: list[str]) -> Any:
        seen.update(
            threads=settings.intra_op_num_threads,
            inter=settings.inter_op_num_threads,
            arena=settings.enable_cpu_mem_arena,
            pattern=settings.enable_mem_pattern,
            level=settings.graph_optimization_level.name,
            spinning=settings.get_session_config_entry("session.intra_op.allow_spinning"),
        )
        if "spin_us" in options:
            seen["spin_us"] = settings.get_session_config_entry("session.intra_op.spin_duration_us")
        return real(path, settings, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    engine = load(tmp_path, KINDS[0].member(options=options), {"model.onnx": KINDS[0].make()})
    assert {key: seen[key] for key in wanted} == wanted
    assert 1 <= seen["threads"] <= 3
    assert engine.run({"x": np.zeros((1, 4), np.float32)}, ())["y"].tolist() == [[10.0] * 4]


def test_onnx_says_so_when_a_provider_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a graphics card whose libraries are missing: the runtime warns and computes on the CPU."""
    import onnxruntime

    other = "CUDAExecutionProvider"
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [other, "CPUExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, settings, providers: real(path, settings, providers=["CPUExecutionProvider"]),
    )
    member = KINDS[0].member(options={"providers": other})
    with pytest.raises(EdgeError) as caught:
        load(tmp_path, member, {"model.onnx": KINDS[0].make()}, allowance=Allowance(providers=(other,)))
    assert caught.value.code == "model.engine-unavailable"
    assert "does not start" in caught.value.detail


def test_onnx_text_goes_in_and_out_as_bytes(tmp_path: Path) -> None:
    def build(helper: Any) -> tuple[list[Any], list[Any], list[Any]]:
        node = helper.make_node("Identity", ["text"], ["same"])
        return (
            [node],
            [helper.make_tensor_value_info("text", 8, ["n"])],
            [helper.make_tensor_value_info("same", 8, ["n"])],
        )

    engine = load(tmp_path, KINDS[0].member(), {"model.onnx": onnx_model(build)})
    assert engine.inputs == (TensorSpec("text", "BYTES", (-1,)),)
    text = np.array(["grün".encode(), b""], dtype=object)
    assert engine.run({"text": text}, ())["same"].tolist() == ["grün".encode(), b""]
    with pytest.raises(EdgeError) as caught:
        engine.run({"text": np.array([b"\xff"], dtype=object)}, ())
    assert caught.value.code == "model.input-invalid"


# --- litert


def test_litert_tensors_go_by_their_own_names_without_a_signature(tmp_path: Path) -> None:
    engine = load(tmp_path, KINDS[1].member(), {"model.tflite": tflite_adder(has_signature=False)})
    assert [engine.inputs[0].name, engine.outputs[0].name] == ["x_tensor", "y_tensor"]
    assert engine.run({"x_tensor": np.zeros((1, 4), np.float32)}, ())["y_tensor"].tolist() == [[10.0] * 4]


def test_litert_tensors_may_be_declared_by_their_own_names(tmp_path: Path) -> None:
    inputs, outputs = (TensorSpec("x_tensor", "FP32", (-1, 4)),), (TensorSpec("y_tensor", "FP32", (-1, 4)),)
    member = KINDS[1].member(inputs=inputs, outputs=outputs)
    engine = load(tmp_path, member, {"model.tflite": tflite_adder()})
    assert engine.run({"x_tensor": np.zeros((1, 4), np.float32)}, ())["y_tensor"].tolist() == [[10.0] * 4]


@pytest.mark.parametrize("choice", ["on", "off"])
def test_litert_uses_xnnpack_unless_told_otherwise(tmp_path: Path, choice: str) -> None:
    member = KINDS[1].member(options={"xnnpack": choice, "threads": "1"})
    engine = load(tmp_path, member, {"model.tflite": tflite_adder()})
    assert engine.run({"x": np.zeros((1, 4), np.float32)}, ())["y"].tolist() == [[10.0] * 4]
    operators = {item["op_name"] for item in engine._interpreter._get_ops_details()}  # type: ignore[attr-defined]
    assert ("DELEGATE" in operators) == (choice == "on")


# --- script


def _script(tmp_path: Path, source: str, member: Member | None = None, **more: Any) -> Engine:
    member = member or Member("m", "script", "code/score.py")
    return load(tmp_path, member, {member.entry: textwrap.dedent(source).encode()}, **more)


def test_a_script_finds_its_neighbours_its_dependencies_and_its_configuration(tmp_path: Path) -> None:
    source = """
        import os
        import dep_math
        import helper_near
        def init():
            global factor
            factor = int(os.environ["FACTOR_OF_TEST"])
        def run(data):
            return dep_math.times(data["x"], factor) + helper_near.ONE
    """
    member = Member("m", "script", "code/score.py", inputs=(X,), outputs=(Y,))
    files = {"code/score.py": textwrap.dedent(source).encode(), "code/helper_near.py": b"ONE = 1\n"}
    site = {"dep_math.py": b"def times(a, b):\n    return a * b\n"}
    engine = load(tmp_path, member, files, site=site, config={"FACTOR_OF_TEST": "3"})
    assert engine.run({"x": np.ones((1, 4), np.float32)}, ())["y"].tolist() == [[4.0] * 4]
    assert not list(tmp_path.rglob("__pycache__")), "a slot stays what was verified"


def test_a_script_without_signature_takes_and_gives_any_json(tmp_path: Path) -> None:
    engine = _script(
        tmp_path,
        """
        import numpy as np
        def run(data):
            return {"sum": np.float32(sum(data["values"])), "echo": data, "array": np.arange(3)}
        """,
    )
    assert isinstance(engine, JsonEngine)
    result = engine.run_json({"values": [1, 2, 3]})
    assert result["sum"] == 6


@pytest.mark.parametrize(
    ("source", "says"),
    [
        pytest.param("def init(): pass", "no function run", id="no run"),
        pytest.param("import nothing_of_that_name", "ModuleNotFoundError", id="missing dependency"),
        pytest.param("def run(data): return", "SyntaxError", id="syntax"),
        pytest.param("1/0", "ZeroDivisionError", id="error on import"),
        pytest.param("def init(): raise OSError('no weights')\ndef run(d): pass", "no weights", id="error in init"),
        pytest.param("async def run(data): return data", "async", id="async"),
        pytest.param("import sys; sys.exit(3)", "SystemExit", id="exit"),
    ],
)
def test_a_script_that_cannot_start_is_refused_with_its_reason(tmp_path: Path, source: str, says: str) -> None:
    if says == "SyntaxError":
        source = "def run(data) return"
    with pytest.raises(EdgeError) as caught:
        _script(tmp_path, source)
    assert caught.value.code == "model.load-failed"
    assert says in caught.value.detail


@pytest.mark.parametrize(
    ("returned", "code"),
    [
        pytest.param("{'z': data['x']}", "model.output-invalid", id="other name"),
        pytest.param("data['x'][0]", "model.output-invalid", id="other rank"),
        pytest.param("{'y': 'text'}", "model.output-invalid", id="text"),
        pytest.param("{'y': [[1], [1, 2]]}", "model.output-invalid", id="ragged"),
        pytest.param("{'y': object()}", "model.output-invalid", id="object"),
        pytest.param("None", "model.output-invalid", id="nothing"),
        pytest.param("data['nothing']", "model.inference-failed", id="error"),
        pytest.param("exit(1)", "model.inference-failed", id="exit"),
    ],
)
def test_a_script_that_breaks_its_promise_fails_that_run_only(tmp_path: Path, returned: str, code: str) -> None:
    member = Member("m", "script", "score.py", inputs=(X,), outputs=(Y,))
    engine = _script(tmp_path, f"def run(data):\n    return {returned}\n", member)
    with pytest.raises(EdgeError) as caught:
        engine.run({"x": np.zeros((1, 4), np.float32)}, ())
    assert caught.value.code == code


def test_a_scripts_lists_become_arrays_of_the_declared_datatype(tmp_path: Path) -> None:
    outputs = (
        TensorSpec("label", "UINT8", (-1,)),
        TensorSpec("score", "FP32", (-1,)),
        TensorSpec("name", "BYTES", (-1,)),
    )
    member = Member("m", "script", "score.py", inputs=(X,), outputs=outputs)
    engine = _script(tmp_path, "def run(d): return {'label': [7], 'score': [0.5], 'name': ['seven']}", member)
    result = engine.run({"x": np.zeros((1, 4), np.float32)}, ())
    assert [result[spec.name].dtype.kind for spec in outputs] == ["u", "f", "O"]
    too_large = _script(tmp_path / "b", "def run(d): return {'label': [256], 'score': [1], 'name': ['']}", member)
    with pytest.raises(EdgeError) as caught:
        too_large.run({"x": np.zeros((1, 4), np.float32)}, ())
    assert caught.value.code == "model.output-invalid"


_PICKLE_PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from edge_agent.worker.engines import Allowance, Place, load_engine
from edge_contract.errors import EdgeError
from edge_contract.runtime import Runtime
folder = Path({folder!r})
runtime = Runtime.parse((folder / "runtime.json").read_bytes())
try:
    engine = load_engine(runtime.members[0], Place(folder / "files", folder / "site"), runtime, Allowance({permit!r}))
    print(json.dumps(engine.run_json(None)))
except EdgeError as error:
    print(error.code, error.detail)
"""


@pytest.mark.parametrize(("is_asked", "is_permitted"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_script_unpickles_only_what_author_and_director_both_allow(
    tmp_path: Path, is_asked: bool, is_permitted: bool
) -> None:
    """In a process of its own: what is refused there is refused for good."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.pkl").write_bytes(pickle.dumps(Path("weights")))
    source = """
        import pickle
        from pathlib import Path
        def init():
            global loaded
            with open(Path(__file__).parent / "model.pkl", "rb") as file:
                loaded = pickle.load(file)
        def run(data):
            return str(loaded)
    """
    (tmp_path / "files" / "score.py").write_text(textwrap.dedent(source), encoding="utf-8")
    runtime = Runtime("digits", 1, (Member("m", "script", "score.py"),), allow_pickle=is_asked)
    (tmp_path / "runtime.json").write_bytes(runtime.to_bytes())
    program = _PICKLE_PROGRAM.format(root=str(REPOSITORY_ROOT), folder=str(tmp_path), permit=is_permitted)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    output = ended.stdout.strip()
    if is_asked and is_permitted:
        assert json.loads(output) == "weights", ended.stderr
    else:
        assert output.startswith("model.pickle-refused"), ended.stderr


def test_an_engine_nobody_has_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter", "tflite_runtime", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EdgeError) as caught:
        load(tmp_path, KINDS[1].member(), {"model.tflite": SCRIPT})
    assert caught.value.code == "model.engine-unavailable"
    assert "litert" in caught.value.detail
