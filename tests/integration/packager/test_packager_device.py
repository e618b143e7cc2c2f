"""What the packager builds, a device stages, loads and proves: the agent's own store and worker on a built layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.slots import FileSlotStore
from packager.build import build
from packager.layout import Layout
from packager.progress import QuietReporter
from packager.signature import read_facts
from packager.spec import Flags, Spec
from packager.specload import load_spec
from tests.support.require import REPOSITORY_ROOT
from tests.unit.packager.support import make_spec, write_external_model, write_golden, write_model
from tests.unit.packager.test_build import script_spec
from tests.unit.worker import tiny_models

PROVE = """
import json, sys
from pathlib import Path
from edge_contract.errors import EdgeError
from edge_agent.worker.bundle import load_bundle, prove_bundle
try:
    proof = prove_bundle(load_bundle(Path(sys.argv[1])))
    print(json.dumps({"error_max": None if proof is None else proof.error_max}))
except EdgeError as error:
    print(json.dumps(error.to_json()))
"""


def stage(spec: Spec, folder: Path) -> Path:
    """Build a bundle and stage it as the agent does; gives the slot."""
    build(spec, folder / "bundle", QuietReporter())
    layout = Layout(folder / "bundle")
    (folder / "device").mkdir()
    blobs = FileBlobStore(folder / "device")
    for blob in layout.blobs:
        blobs.put(blob.digest, layout.blob_path(blob.digest).read_bytes())
    item = layout.bundles[0]
    blobs.put(item.descriptor.digest, item.data)
    return FileSlotStore(folder / "device", blobs).stage(item.descriptor.digest, item.manifest)


def prove(slot: Path) -> Any:
    """Load and prove a slot in a process of its own, as a worker does."""
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", PROVE, str(slot)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=REPOSITORY_ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def spec_of(folder: Path, kind: str) -> Spec:
    if kind == "plain":
        return make_spec(folder / "model")
    if kind == "script":
        return script_spec(folder / "model")
    golden = write_golden(folder / "golden.npz")
    if kind == "external":
        return load_spec(
            None, Flags(name="m", version=1, members=(("", write_external_model(folder / "model")),), golden=golden)
        )
    if kind == "fixed batch":
        model = write_model(folder / "model", batch=1)
        return load_spec(None, Flags(name="m", version=1, members=(("", model),), golden=golden))
    model = write_model(folder / "model")
    return load_spec(None, Flags(name="pair", version=1, members=(("one", model), ("two", model))))


@pytest.mark.parametrize("kind", ["plain", "external", "fixed batch", "script"])
def test_a_device_proves_what_the_author_proved(tmp_path: Path, kind: str) -> None:
    assert prove(stage(spec_of(tmp_path, kind), tmp_path)) == {"error_max": pytest.approx(0, abs=1e-5)}


def test_a_device_loads_a_set_of_models(tmp_path: Path) -> None:
    assert prove(stage(spec_of(tmp_path, "set"), tmp_path)) == {"error_max": None}


def test_a_device_refuses_what_was_only_trusted(tmp_path: Path) -> None:
    wrong = write_golden(tmp_path / "wrong.npz", error=0.5)
    members = (("", write_model(tmp_path / "model")),)
    spec = load_spec(None, Flags(name="m", version=1, members=members, golden=wrong, is_golden_trusted=True))
    assert prove(stage(spec, tmp_path))["code"] == "model.golden-mismatch"


@pytest.mark.parametrize("has_signature", [True, False])
def test_a_device_proves_a_tensorflow_lite_model(tmp_path: Path, has_signature: bool) -> None:
    tiny_models.require_litert()
    model = tmp_path / "model.tflite"
    model.write_bytes(tiny_models.tflite_adder(has_signature=has_signature))
    facts = read_facts(model, "litert")
    vectors = {facts.inputs[0].name: np.ones((1, *facts.inputs[0].shape[1:]), np.float32)}
    with (tmp_path / "golden.npz").open("wb") as file:
        np.savez(file, **vectors)  # type: ignore[arg-type]  # numpy types the keywords after its own flag
    flags = Flags(name="adder", version=1, members=(("", model),), golden=tmp_path / "golden.npz")
    assert prove(stage(load_spec(None, flags), tmp_path)) == {"error_max": pytest.approx(0, abs=1e-5)}
