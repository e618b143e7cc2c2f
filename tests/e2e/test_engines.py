"""The examples on a device: an image pipeline from the author to an answer, and pickles that need two signatures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_agent.inference import InferenceClient
from edge_agent.platforms import detect_platform
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from tests.e2e.stack import Ran, Stack
from tests.support.require import REPOSITORY_ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.system]


def _example(name: str, folder: Path) -> Path:
    """An example with its model made; gives its description."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    shutil.copytree(REPOSITORY_ROOT / "examples" / name, folder / name)
    subprocess.run([sys.executable, "make_model.py"], check=True, cwd=folder / name, capture_output=True)
    return folder / name / "lighterman.toml"


def _ship(stack: Stack, spec: Path, device: str, *more: str) -> Ran:
    where = ["--condition", f"deviceId = '{device}'", "--wait", "--timeout-s", "90", "--json"]
    return stack.run("packager", "ship", "--spec", str(spec), "--platform", detect_platform(), *where, *more)


def test_image_files_are_read_on_a_device(stack: Stack, tmp_path: Path) -> None:
    device = stack.device("lens-1", "read-digits")
    device.start()
    shipped = _ship(stack, _example("image-pipeline", tmp_path), device.name)
    assert shipped.exit_code == 0, shipped.stdout + shipped.stderr
    device.wait_confirmed(Digest(shipped.document["push"]["manifests"][detect_platform()]))
    image = (tmp_path / "image-pipeline" / "digit.png").read_bytes()
    with InferenceClient(("127.0.0.1", device.port)) as client:
        outputs = client.infer_arrays({"image": np.array([image, image], dtype=object)}, "read")
        assert outputs["digit"].tolist() == [b"seven", b"seven"]
        with pytest.raises(EdgeError) as caught:
            client.infer_arrays({"image": np.array([image[:40]], dtype=object)}, "read")
        assert caught.value.code == "model.input-invalid"


def test_a_pickle_is_loaded_where_author_and_operator_both_say_so(stack: Stack, tmp_path: Path) -> None:
    device = stack.device("petal-1", "iris")
    device.start()
    spec = _example("sklearn-script", tmp_path)
    refused = _ship(stack, spec, device.name)
    assert refused.exit_code == 1
    assert refused.document["wait"]["failed"][0]["error"]["code"] == "model.pickle-refused"
    permitted = _ship(stack, spec, device.name, "--allow-pickle")
    assert permitted.exit_code == 0, permitted.stdout + permitted.stderr
    with InferenceClient(("127.0.0.1", device.port)) as client:
        outputs = client.infer_arrays({"measures": np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)}, "iris")
    assert outputs["species"].tolist() == [0]
