"""Compiled models: found only whole, dropped when anything is wrong, never the reason that a model does not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.worker import compiled
from edge_agent.worker.bundle import load_bundle, prove_bundle
from edge_agent.worker.compiled import CompiledModels, key_of
from edge_agent.worker.compiling import Compiler, compile_member
from edge_agent.worker.engines import Allowance, Place
from edge_agent.worker.engines.onnx import OnnxEngine, save_compiled
from edge_contract.errors import EdgeError
from edge_contract.pipeline import Step
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec
from tests.support.require import REPOSITORY_ROOT
from tests.support.slots import adder, onnx_model, write_slot

MEMBER = Member("net", "onnx", "model.onnx")
ROWS = np.linspace(-1, 1, 3 * 4, dtype=np.float32).reshape(3, 4)


def _net(factor: float = 1.0) -> bytes:
    """A little network with weights large enough to lie outside the graph."""
    numbers = np.random.default_rng(7)
    weights = {
        "w1": (numbers.standard_normal((4, 256)) * factor).astype(np.float32),
        "w2": numbers.standard_normal((256, 8)).astype(np.float32),
    }

    def build(helper: Any) -> tuple[list[Any], list[Any], list[Any]]:
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["y"]),
        ]
        return (
            nodes,
            [helper.make_tensor_value_info("x", 1, ["rows", 4])],
            [helper.make_tensor_value_info("y", 1, ["rows", 8])],
        )

    return onnx_model(build, weights)


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    """A bundle with the network and golden vectors of it."""
    _manifest, bare = write_slot(tmp_path / "bare", [MEMBER], {"model.onnx": _net()})
    y = load_bundle(bare).members["net"].engine.run({"x": ROWS}, ())["y"]
    golden = {"net/input/x": ROWS, "net/output/y": y}
    return write_slot(tmp_path / "slots", [MEMBER], {"model.onnx": _net()}, golden=golden)[1]


@pytest.fixture
def folder(slot: Path, tmp_path: Path) -> Path:
    """The folder of compiled models, with that of the network in it."""
    assert compile_member(slot, "net", tmp_path / "compiled")
    return tmp_path / "compiled"


def _engine(slot: Path, folder: Path | None) -> OnnxEngine:
    engine = load_bundle(slot, Allowance(compiled=folder)).members["net"].engine
    assert isinstance(engine, OnnxEngine)
    return engine


def _entry(folder: Path) -> Path:
    (entry,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    return entry


def test_the_compiled_form_computes_the_same_bits_and_stays(slot: Path, folder: Path) -> None:
    plain = _engine(slot, None)
    for _ in range(2):
        bundle = load_bundle(slot, Allowance(compiled=folder))
        engine = bundle.members["net"].engine
        assert isinstance(engine, OnnxEngine)
        assert engine.is_compiled
        assert (engine.inputs, engine.outputs) == (plain.inputs, plain.outputs)
        assert engine.run({"x": ROWS}, ())["y"].tobytes() == plain.run({"x": ROWS}, ())["y"].tobytes()
        assert prove_bundle(bundle) is not None
    assert not list(folder.rglob("trying.*")), "a load that went well leaves no mark"
    assert not list(folder.glob(".making*"))


def test_what_it_holds_is_durable_and_the_owners_alone(folder: Path) -> None:
    entry = _entry(folder)
    note = json.loads((entry / "entry.json").read_bytes())
    assert set(note["files"]) == {"model.onnx", "weights.bin"}
    assert all(facts["digest"].startswith("sha256:") for facts in note["files"].values())
    assert (folder.stat().st_mode & 0o077, entry.stat().st_mode & 0o077) == (0, 0)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["weights.bin", "model.onnx", "entry.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_entry_is_dropped_and_the_plain_model_serves(
    slot: Path, folder: Path, name: str, damage: str
) -> None:
    path = _entry(folder) / name
    if damage == "flipped":
        _flip(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()
    bundle = load_bundle(slot, Allowance(compiled=folder))
    engine = bundle.members["net"].engine
    assert isinstance(engine, OnnxEngine)
    assert not engine.is_compiled
    assert prove_bundle(bundle) is not None
    if name != "entry.json":
        assert not list(folder.glob("[0-9a-f]*")), "dropped"


def test_a_file_touched_since_it_was_checked_is_checked_again(slot: Path, folder: Path) -> None:
    assert _engine(slot, folder).is_compiled
    weights = _entry(folder) / "weights.bin"
    times = weights.stat()
    _flip(weights)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # what an attacker or a careless copy would do
    assert not _engine(slot, folder).is_compiled


def test_after_a_boot_everything_is_read_again(slot: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = compiled._facts

    def watched(path: Path) -> dict[str, Any]:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(compiled, "_facts", watched)
    for boot, expected in (("one", 2), ("one", 0), ("two", 2), ("", 2), ("", 2)):
        monkeypatch.setattr(compiled, "_boot_id", lambda boot=boot: boot)
        read.clear()
        assert _engine(slot, folder).is_compiled
        assert len(read) == expected


def test_another_bundle_runtime_processor_or_option_is_another_entry(
    slot: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = _engine(slot, folder).key
    assert key == _entry(folder).name
    other = write_slot(tmp_path / "other", [MEMBER], {"model.onnx": _net(2.0)})[1]
    assert not _engine(other, folder).is_compiled
    knobs = Member("net", "onnx", "model.onnx", options={"graph_level": "basic"})
    assert not _engine(write_slot(tmp_path / "knobs", [knobs], {"model.onnx": _net()})[1], folder).is_compiled
    monkeypatch.setattr(compiled, "processor_features", lambda: "another processor")
    assert not _engine(slot, folder).is_compiled
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_the_processor_is_described() -> None:
    assert compiled.processor_features() == compiled.processor_features() != ""


def test_a_form_that_computes_something_else_is_dropped_and_the_plain_model_proves_itself(
    slot: Path, folder: Path, tmp_path: Path
) -> None:
    """As if the runtime had a bug: all digests are right, and the outputs are not."""
    entry, models = _entry(folder), CompiledModels(folder)
    wrong = write_slot(tmp_path / "wrong", [MEMBER], {"model.onnx": _net(3.0)})[1]
    with models.making() as making:
        save_compiled(MEMBER, Place(wrong / "files", wrong / "site"), making)
        models.keep(entry.name, making)
    bundle = load_bundle(slot, Allowance(compiled=folder))
    assert bundle.members["net"].engine.is_compiled  # type: ignore[attr-defined]
    assert prove_bundle(bundle) is not None
    assert not bundle.members["net"].engine.is_compiled  # type: ignore[attr-defined]
    assert not list(folder.glob("[0-9a-f]*"))


def test_a_process_that_dies_of_it_is_the_last_one_that_loads_it(slot: Path, folder: Path) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom edge_agent.worker.compiled import CompiledModels\n"
        "assert CompiledModels(Path(sys.argv[1])).find(sys.argv[2])\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    command = [sys.executable, "-c", program, str(folder), _entry(folder).name]
    ended = subprocess.run(command, cwd=REPOSITORY_ROOT, timeout=60, check=False, capture_output=True)
    assert ended.returncode == -11
    engine = _engine(slot, folder)
    assert not engine.is_compiled
    assert not (folder / engine.key).exists()


def test_one_that_is_being_loaded_elsewhere_is_no_victim(slot: Path, folder: Path) -> None:
    (_entry(folder) / f"trying.{os.getppid()}").touch()
    assert _engine(slot, folder).is_compiled


def test_what_cannot_be_compiled_is_not_tried_again(slot: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    engine = _engine(slot, folder)
    engine.load_cpu_ms = 1_000.0
    bundle = load_bundle(slot, Allowance(compiled=folder))
    bundle.members["net"].engine = engine
    assert bundle.worth_compiling() == {"net": engine.key}
    CompiledModels(folder).refuse(engine.key, "no reason")
    assert bundle.worth_compiling() == {}
    assert not _engine(slot, folder).is_compiled


def test_a_model_that_loads_at_once_is_not_worth_it(slot: Path, tmp_path: Path) -> None:
    bundle = load_bundle(slot, Allowance(compiled=tmp_path / "compiled"))
    engine = bundle.members["net"].engine
    assert isinstance(engine, OnnxEngine)
    engine.load_cpu_ms = 1.0
    assert bundle.worth_compiling() == {}
    assert load_bundle(slot).worth_compiling() == {}


def test_the_process_that_compiles_leaves_an_entry(slot: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    key = _engine(slot, folder).key
    Compiler(slot, folder, {"net": key}).run()
    assert _engine(slot, folder).is_compiled


def test_a_process_that_fails_to_compile_leaves_a_refusal(slot: Path, tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    key = _engine(slot, folder).key
    (slot / "files" / "model.onnx").write_bytes(b"not a model")
    Compiler(slot, folder, {"net": key}).run()
    assert not CompiledModels(folder).is_wanted(key)
    assert CompiledModels(folder).find(key) is None


# --- the folder


@pytest.fixture
def models(tmp_path: Path) -> CompiledModels:
    """A folder that holds 1000 bytes."""
    return CompiledModels(tmp_path / "compiled", bytes_max=1_000)


def _keep(models: CompiledModels, key: str, size: int) -> None:
    with models.making() as making:
        (making / "weights.bin").write_bytes(b"x" * size)
        models.keep(key, making)


def test_the_one_not_used_for_longest_makes_room(models: CompiledModels, tmp_path: Path) -> None:
    for place, key in enumerate(("a", "b", "c")):
        _keep(models, key, 300)
        os.utime(tmp_path / "compiled" / key / "entry.json", (1_000 + place, 1_000 + place))
    assert models.find("a") is not None  # used just now
    _keep(models, "d", 300)
    assert [key for key in ("a", "b", "c", "d") if models.find(key)] == ["a", "c", "d"]


def test_one_that_is_larger_than_all_may_be_is_not_kept(models: CompiledModels) -> None:
    _keep(models, "a", 400)
    with pytest.raises(EdgeError) as caught:
        _keep(models, "b", 1_001)
    assert caught.value.code == "device.disk-full"
    assert models.find("a") is not None


def test_bundles_come_first_on_a_full_disk(models: CompiledModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "COMPILED_FREE_BYTES_MIN", 2**62)
    with models.making(), pytest.raises(EdgeError) as caught:
        models.require_space(1)
    assert caught.value.code == "device.disk-full"


def test_what_an_interrupted_process_left_is_removed(models: CompiledModels, tmp_path: Path) -> None:
    left = tmp_path / "compiled" / ".making.4194303999.ab"
    left.mkdir(parents=True)
    (left / "weights.bin").write_bytes(b"half")
    with models.making() as making:
        assert not left.exists()
        (making / "weights.bin").write_bytes(b"half")
    assert list((tmp_path / "compiled").iterdir()) == [], "nor does one that was given up leave anything"


def test_refusals_are_bounded_too(models: CompiledModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "COMPILED_ENTRIES_MAX", 3)
    for place in range(5):
        models.refuse(f"key{place}", "no reason")
        os.utime(tmp_path / "compiled" / f"key{place}" / "entry.json", (1_000 + place, 1_000 + place))
    assert sorted(path.name for path in (tmp_path / "compiled").iterdir()) == ["key2", "key3", "key4"]


# --- models of other shapes


def test_a_model_with_its_weights_in_another_file_compiles_too(tmp_path: Path) -> None:
    import onnx

    onnx.save_model(
        onnx.load_model_from_string(_net()),
        str(tmp_path / "model.onnx"),
        save_as_external_data=True,
        location="weights.bin",  # the very name that ours has
        size_threshold=0,
    )
    files = {name: (tmp_path / name).read_bytes() for name in ("model.onnx", "weights.bin")}
    slot = write_slot(tmp_path / "slots", [MEMBER], files)[1]
    assert compile_member(slot, "net", tmp_path / "compiled")
    bundle = load_bundle(slot, Allowance(compiled=tmp_path / "compiled"))
    assert bundle.members["net"].engine.is_compiled  # type: ignore[attr-defined]
    plain = load_bundle(slot).members["net"].engine.run({"x": ROWS}, ())["y"]
    assert bundle.members["net"].engine.run({"x": ROWS}, ())["y"].tobytes() == plain.tobytes()


def test_a_model_without_weights_compiles_too(tmp_path: Path) -> None:
    slot = write_slot(tmp_path / "slots", [MEMBER], {"model.onnx": adder(10)})[1]
    assert compile_member(slot, "net", tmp_path / "compiled")
    assert _engine(slot, tmp_path / "compiled").is_compiled


def test_a_pipeline_runs_the_plain_model_when_the_compiled_one_fails(slot: Path, tmp_path: Path) -> None:
    """What is loaded again has to reach the pipelines that run it."""
    x, y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 8))
    pipe = Member("pipe", "pipeline", inputs=(x,), outputs=(y,), steps=(Step("net", {"x": "x"}, {"y": "y"}),))
    right = load_bundle(slot).members["net"].engine.run({"x": ROWS}, ())["y"]
    golden = {"pipe/input/x": ROWS, "pipe/output/y": right}
    both = write_slot(tmp_path / "both", [MEMBER, pipe], {"model.onnx": _net()}, golden=golden)[1]
    folder = tmp_path / "compiled"
    assert compile_member(both, "net", folder)
    models, key = CompiledModels(folder), _entry(folder).name
    wrong = write_slot(tmp_path / "wrong", [MEMBER], {"model.onnx": _net(3.0)})[1]
    with models.making() as making:
        save_compiled(MEMBER, Place(wrong / "files", wrong / "site"), making)
        models.keep(key, making)
    bundle = load_bundle(both, Allowance(compiled=folder))
    assert prove_bundle(bundle) is not None
    assert bundle.members["pipe"].engine.run({"x": ROWS}, ())["y"].tobytes() == right.tobytes()
