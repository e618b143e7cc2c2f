"""Snapped weights lie on a grid that the encoder finds, close to what was trained; a gate keeps bad ones back."""

import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloud_registry.client import RegistryClient
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from packager.delta.encode import encode
from packager.delta.evaluating import evaluate, failures
from packager.delta.formats import read_tensors
from packager.delta.snap import snap_file
from packager.delta.snapping import SnapWish, snap_release
from packager.progress import QuietReporter
from packager.spec import MemberSpec, SourceFile, Spec
from tests.support.net import wait_until
from tests.support.require import REPOSITORY_ROOT
from tests.unit.packager.weights import dense, trained, tuned


def _weights(path: Path) -> np.ndarray:
    (tensor,) = read_tensors(path)
    return np.frombuffer(path.read_bytes()[tensor.start : tensor.end], np.float32).reshape(tensor.shape)


@pytest.mark.parametrize("kappa", [0.25, 0.5, 1.0])
def test_snapped_weights_are_near_what_was_trained_and_take_few_bits(tmp_path: Path, kappa: float) -> None:
    base = dense(tmp_path, "base.onnx", trained())
    new = dense(tmp_path, "new.onnx", tuned(trained()))
    report = snap_file(base, new, tmp_path / "snapped.onnx", kappa)
    assert report.tensors == 1
    assert 0 < report.error_ratio < 0.45 * kappa
    distance = np.abs(_weights(tmp_path / "snapped.onnx") - _weights(new))
    assert distance.max() <= 0.75 * kappa * 1e-4
    made = encode(base, tmp_path / "snapped.onnx", tmp_path / "snapped.delta")
    whole = encode(base, new, tmp_path / "whole.delta")
    assert made.bytes < (0.15 if kappa < 0.4 else 0.11 if kappa < 0.8 else 0.085) * new.stat().st_size
    assert made.bytes < whole.bytes / 3


def test_everything_but_weights_stays_as_it_was_trained(tmp_path: Path) -> None:
    base = dense(tmp_path, "base.onnx", trained())
    new = dense(tmp_path, "new.onnx", tuned(trained()), note="another producer")
    snap_file(base, new, tmp_path / "snapped.onnx", 0.5)
    (tensor,) = read_tensors(new)
    one, other = new.read_bytes(), (tmp_path / "snapped.onnx").read_bytes()
    assert (one[: tensor.start], one[tensor.end :]) == (other[: tensor.start], other[tensor.end :])
    assert one != other


def test_a_tensor_with_numbers_that_no_grid_makes_is_left_alone(tmp_path: Path) -> None:
    odd = tuned(trained())
    odd[3, 3] = np.inf
    base, new = dense(tmp_path, "base.onnx", trained()), dense(tmp_path, "new.onnx", odd)
    with pytest.raises(EdgeError, match="no tensor"):
        snap_file(base, new, tmp_path / "snapped.onnx", 0.5)


@pytest.mark.parametrize("kappa", [0.0, -1.0, 5.0, float("nan")])
def test_a_kappa_without_sense_is_refused(tmp_path: Path, kappa: float) -> None:
    base = dense(tmp_path, "base.onnx", trained())
    with pytest.raises(EdgeError, match="kappa"):
        snap_file(base, base, tmp_path / "snapped.onnx", kappa)


# -- numbers in files beside the model


def _apart(folder: Path, matrix: np.ndarray) -> Path:
    """A model that keeps its weights in one file and its bias in another."""
    folder.mkdir()
    model = onnx.load(dense(folder, "model.onnx", matrix))
    model.graph.initializer.append(numpy_helper.from_array(np.arange(matrix.shape[1], dtype=np.float32), "b"))
    model.graph.node[0].output[0] = "xw"
    model.graph.node.append(helper.make_node("Add", ["xw", "b"], ["y"]))
    for tensor in model.graph.initializer:
        (folder / f"{tensor.name}.bin").write_bytes(tensor.raw_data)
        length = str(len(tensor.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", f"{tensor.name}.bin"), ("length", length)):
            item = tensor.external_data.add()
            item.key, item.value = key, value
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


class Versions:
    """A registry that has one version, and takes another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uploaded: dict[str, bytes] = {}
        self.registered: dict[str, Any] = {}

    def get_version(self, model: str, version: int) -> dict[str, Any]:
        del model, version
        names = ("model.onnx", "w.bin", "b.bin")
        files = [{"path": name, "digest": str(Digest.of((self.folder / name).read_bytes()))} for name in names]
        return {"entry": "model.onnx", "files": files}

    def download(self, model: str, version: int, path: str, target: Path) -> None:
        del model, version
        shutil.copyfile(self.folder / path, target)

    def create_model(self, name: str, description: str) -> None:
        del name, description

    def upload_blob(self, repository: str, path: Path, digest: Digest, progress: Any) -> int:
        del repository, progress
        self.uploaded[str(digest)] = path.read_bytes()
        return 0

    def register_version(self, model: str, version: dict[str, Any]) -> dict[str, Any]:
        del model
        self.registered = {file["path"]: self.uploaded[file["digest"]] for file in version["files"]}
        return {"version": 2}


@pytest.mark.parametrize("is_listed", [False, True])
def test_weights_beside_a_model_are_snapped_and_registered_snapped(tmp_path: Path, is_listed: bool) -> None:
    """Also where the author listed those files, and where one of them holds nothing to snap."""
    base, new = _apart(tmp_path / "base", trained()), _apart(tmp_path / "new", tuned(trained()))
    script = _script(tmp_path, "def evaluate(path):\n    return 1.0")
    listed = tuple(SourceFile(new.with_name(name), name) for name in ("w.bin", "b.bin")) if is_listed else ()
    member = MemberSpec("m", "onnx", SourceFile(new, "model.onnx"), listed)
    registry = Versions(base.parent)
    made, found = snap_release(
        cast(RegistryClient, registry),
        Spec("m", (member,)),
        SnapWish(0.5, 1, script, 0.0),
        tmp_path / "work",
        QuietReporter(),
    )
    weights = registry.registered["w.bin"]
    assert weights != new.with_name("w.bin").read_bytes()
    assert registry.registered["b.bin"] == new.with_name("b.bin").read_bytes()
    assert found["tensors"] == 1
    assert {file.path: file.source.read_bytes() for file in made.members[0].files}["w.bin"] == weights


def test_numbers_outside_the_folder_of_a_model_are_not_touched(tmp_path: Path) -> None:
    new = _apart(tmp_path / "new", tuned(trained()))
    model = onnx.load(new, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../w.bin"
    new.write_bytes(model.SerializeToString())
    shutil.copyfile(new.with_name("w.bin"), tmp_path / "w.bin")
    registry = Versions(_apart(tmp_path / "base", trained()).parent)
    member = MemberSpec("m", "onnx", SourceFile(new, "model.onnx"))
    wish = SnapWish(0.5, 1, tmp_path / "score.py", 0.0)
    with pytest.raises(EdgeError) as caught:
        snap_release(cast(RegistryClient, registry), Spec("m", (member,)), wish, tmp_path / "work", QuietReporter())
    assert caught.value.code == "artifact.path-unsafe"
    assert not (tmp_path / "work").exists()


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _script(folder: Path, text: str) -> Path:
    path = folder / "score.py"
    path.write_text(text)
    return path


def test_a_script_gives_a_number_or_numbers_by_name(tmp_path: Path) -> None:
    model = dense(tmp_path, "model.onnx", trained())
    assert evaluate(_script(tmp_path, "def evaluate(path):\n    print('noise')\n    return 0.5"), model) == {
        "metric": 0.5
    }
    script = _script(
        tmp_path, "import numpy\ndef evaluate(path):\n    return {'accuracy': numpy.float32(0.75), '-loss': 2}"
    )
    assert evaluate(script, model) == {"accuracy": 0.75, "-loss": 2.0}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise RuntimeError('no data here')", "no data here"),
        ("def evaluate(path):\n    return 'good'", "something else"),
        ("def evaluate(path):\n    return float('nan')", "something else"),
        ("def evaluate(path):\n    return {}", "something else"),
        ("import os\nos._exit(3)", "exit code 3"),
        ("def other(path):\n    return 1", "evaluate"),
    ],
)
def test_a_script_that_cannot_say_fails_the_evaluation(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(EdgeError, match=why) as caught:
        evaluate(_script(tmp_path, text), dense(tmp_path, "model.onnx", trained()))
    assert caught.value.code == "model.evaluation-failed"


def test_a_script_that_hangs_is_ended(tmp_path: Path) -> None:
    script = _script(tmp_path, "import threading\ndef evaluate(path):\n    threading.Event().wait()")
    with pytest.raises(EdgeError, match="longer than"):
        evaluate(script, dense(tmp_path, "model.onnx", trained()), seconds_max=1.0)


def test_what_a_script_starts_ends_with_it_and_is_not_waited_for(tmp_path: Path) -> None:
    text = """
        import subprocess, sys
        def evaluate(path):
            helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
            open('helper', 'w').write(str(helper.pid))
            return 0.5
    """
    script = _script(tmp_path, dedent(text))
    assert evaluate(script, dense(tmp_path, "model.onnx", trained()), seconds_max=60.0) == {"metric": 0.5}
    pid = int((tmp_path / "helper").read_text())
    wait_until(lambda: not _is_running(pid), 10, what="the end of the script's helper")


def test_a_script_ends_with_the_packager_however_that_ends(tmp_path: Path) -> None:
    text = "import os, time\ndef evaluate(path):\n    open('pid', 'w').write(str(os.getpid()))\n    time.sleep(600)"
    script = _script(tmp_path, text)
    program = f"""
from pathlib import Path
from packager.delta.evaluating import evaluate
evaluate(Path({str(script)!r}), Path({str(script)!r}))
"""
    packager = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY_ROOT)
    try:
        wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text(), 30)
    finally:
        packager.kill()
        packager.wait()
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not _is_running(pid), 10, what="the end of the script")


def test_files_beside_a_script_take_the_place_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "packager").mkdir()
    (tmp_path / "packager" / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    (tmp_path / "helping.py").write_text("SCORE = 0.25")
    script = _script(tmp_path, "import helping\ndef evaluate(path):\n    return helping.SCORE")
    assert evaluate(script, dense(tmp_path, "model.onnx", trained())) == {"metric": 0.25}


def test_secrets_do_not_reach_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTERMAN_TOKEN", "secret")
    script = _script(tmp_path, "import os\ndef evaluate(path):\n    return int('LIGHTERMAN_TOKEN' in os.environ)")
    assert evaluate(script, dense(tmp_path, "model.onnx", trained())) == {"metric": 0.0}


@pytest.mark.parametrize(
    ("before", "after", "failed"),
    [
        ({"accuracy": 0.90}, {"accuracy": 0.896}, 0),
        ({"accuracy": 0.90}, {"accuracy": 0.89}, 1),
        ({"accuracy": 0.90}, {"accuracy": 0.99}, 0),
        ({"-loss": 1.0}, {"-loss": 1.1}, 1),
        ({"-loss": 1.0}, {"-loss": 0.5}, 0),
        ({"accuracy": 0.9, "recall": 0.8}, {"accuracy": 0.9}, 1),
    ],
)
def test_the_gate_looks_at_every_metric(before: dict[str, float], after: dict[str, float], failed: int) -> None:
    assert len(failures(before, after, 0.005)) == failed
