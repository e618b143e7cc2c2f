"""Bundles: the same bytes every time, valid by others' schemas, proved before they are written."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import PLATFORM, Manifest, Role
from edge_contract.runtime import GOLDEN_PATH, RUNTIME_PATH
from packager import golden
from packager.build import BuiltBundle, build
from packager.layout import Layout
from packager.modelpack import param_size
from packager.progress import QuietReporter
from packager.spec import Flags, Spec
from packager.specload import load_spec
from tests.support.oci_schemas import oci_validator
from tests.support.require import require_shared_schema
from tests.unit.packager.support import (
    make_spec,
    model_proto,
    write_external_model,
    write_golden,
    write_model,
    write_wheel,
)

SCRIPT = """
import os
import helper
from pure import FACTOR
ready = []
def init():
    ready.append(os.environ["MODE"])
def run(data):
    assert ready == ["fast"]
    return {"y": helper.double(data["x"]) * FACTOR}
"""


def make(spec: Spec, out: Path, created_s: int | None = None) -> BuiltBundle:
    return build(spec, out, QuietReporter(), created_s)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def script_spec(folder: Path, **changes: Any) -> Spec:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.py").write_text(SCRIPT)
    (folder / "helper.py").write_text("import tools.twice\ndef double(x): return tools.twice.of(x)\n")
    (folder / "tools").mkdir(exist_ok=True)
    (folder / "tools" / "__init__.py").write_text("")
    (folder / "tools" / "twice.py").write_text("def of(x): return x * 2\n")
    (folder / "tools" / "__pycache__").mkdir(exist_ok=True)
    (folder / "tools" / "__pycache__" / "twice.cpython-311.pyc").write_bytes(os.urandom(20))
    write_wheel(folder, "pure-1.0-py3-none-any.whl", {"pure.py": "FACTOR = 3\n", "pure-1.0.dist-info/METADATA": ""})
    write_golden(folder / "inputs.npz", outputs=False)
    file = folder / "lighterman.toml"
    file.write_text(
        """
[model]
name = "scripted"
version = 2
[members.scripted]
file = "score.py"
files = ["helper.py"]
inputs = [{ name = "x", datatype = "FP32", shape = [-1, 4] }]
outputs = [{ name = "y", datatype = "FP32", shape = [-1, 4] }]
[code]
folders = ["tools"]
[dependencies]
wheels = ["*.whl"]
[golden]
file = "inputs.npz"
[serving]
config = { MODE = "fast" }
"""
    )
    return load_spec(file, Flags(**changes))


def test_the_same_inputs_give_the_same_bytes_anywhere_at_any_time(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "another" / "place"
    script_spec(first)
    shutil.copytree(first, second)
    for path in second.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o755 if path.is_dir() else 0o600)
    make(load_spec(first / "lighterman.toml", Flags()), tmp_path / "a")
    make(load_spec(second / "lighterman.toml", Flags()), tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_model_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    one = make(make_spec(tmp_path / "one"), tmp_path / "a")
    two = make(make_spec(tmp_path / "two"), tmp_path / "b")
    assert one.index == two.index
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_time_of_creation_is_stated_only_when_given(tmp_path: Path) -> None:
    make(make_spec(tmp_path / "model"), tmp_path / "plain")
    make(make_spec(tmp_path / "model"), tmp_path / "dated", created_s=1_700_000_000)
    assert "createdAt" not in config_of(tmp_path / "plain")["descriptor"]
    assert config_of(tmp_path / "dated")["descriptor"]["createdAt"] == "2023-11-14T22:13:20Z"


def config_of(folder: Path) -> dict[str, Any]:
    layout = Layout(folder)
    config = layout.bundles[0].manifest.config
    content: dict[str, Any] = json.loads(layout.read(config.digest, config.size, 2**20))
    return content


def documents(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every document of a layout with the schema it has to meet."""
    layout = Layout(folder)
    yield "image-layout-schema.json", json.loads((folder / "oci-layout").read_bytes())
    yield "image-index-schema.json", json.loads((folder / "index.json").read_bytes())
    yield "image-index-schema.json", json.loads(layout.index_data)
    for item in layout.bundles:
        yield "image-manifest-schema.json", json.loads(item.data)


def test_all_documents_meet_the_schemas_of_the_image_specification(tmp_path: Path) -> None:
    make(script_spec(tmp_path / "model"), tmp_path / "out")
    checked = 0
    for schema, document in documents(tmp_path / "out"):
        oci_validator(schema).validate(document)
        checked += 1
    assert checked == 5


def test_the_configuration_meets_the_schema_of_modelpack(tmp_path: Path) -> None:
    schema = json.loads(require_shared_schema("schemas/modelpack/config-schema.json").read_text())
    validator = Draft202012Validator(schema, format_checker=FormatChecker())
    home = tmp_path / "model"
    spec = make_spec(home, description="d", lineage={"git_commit": "abc", "dataset": "data://x"}, tags={"team": "one"})
    make(spec, tmp_path / "full", created_s=1_700_000_000)
    make(script_spec(tmp_path / "script"), tmp_path / "bare")
    for folder in ("full", "bare"):
        validator.validate(config_of(tmp_path / folder))
    full = config_of(tmp_path / "full")
    assert full["descriptor"]["version"] == "1"
    assert full["config"] == {"format": "onnx", "precision": "float32"}
    with pytest.raises(Exception, match="is not of type 'string'"):
        validator.validate(full | {"descriptor": full["descriptor"] | {"version": 1}})


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (12, ""), (650, "0.7K"), (1_000, "1K"), (1_234_567, "1.2M"), (7 * 10**9, "7B"), (2 * 10**12, "2T")],
)
def test_sizes_of_models_as_modelpack_writes_them(count: int, text: str) -> None:
    assert param_size(count) == text


def test_each_platform_has_a_manifest_of_its_own(tmp_path: Path) -> None:
    built = make(
        make_spec(tmp_path / "model", platforms=("linux/arm64", "linux/amd64", "linux/arm/v7")), tmp_path / "out"
    )
    assert list(built.manifests) == ["linux/amd64", "linux/arm/v7", "linux/arm64"]
    assert len(set(built.manifests.values())) == 3
    layout = Layout(tmp_path / "out")
    assert [item.manifest.annotations[PLATFORM] for item in layout.bundles] == list(built.manifests)
    assert all(item.manifest.layers == layout.bundles[0].manifest.layers for item in layout.bundles)


def test_layers_have_the_roles_and_paths_that_devices_expect(tmp_path: Path) -> None:
    make(script_spec(tmp_path / "model"), tmp_path / "out")
    layout = Layout(tmp_path / "out")
    layers = {layer.path: layer for layer in layout.bundles[0].manifest.layers}
    assert {path: layer.role for path, layer in layers.items()} == {
        "score.py": Role.CODE,
        "helper.py": Role.CODE,
        "tools": Role.CODE,
        "wheels/pure-1.0-py3-none-any.whl": Role.WHEEL,
        GOLDEN_PATH: Role.GOLDEN,
        RUNTIME_PATH: Role.RUNTIME,
    }
    for layer in layers.values():
        layout.verify_blob(layer)
        assert layer.annotations["org.opencontainers.image.title"] == layer.path.rsplit("/", 1)[-1]
    with tarfile.open(layout.blob_path(layers["tools"].digest)) as archive:
        entries = archive.getmembers()
    assert [entry.name for entry in entries] == ["__init__.py", "twice.py"]
    assert {(entry.mtime, entry.uid, entry.gid, entry.mode, entry.uname) for entry in entries} == {(0, 0, 0, 0o644, "")}


def test_missing_outputs_are_made_by_running_the_script(tmp_path: Path) -> None:
    built = make(script_spec(tmp_path / "model"), tmp_path / "out")
    assert built.golden_vectors == {"scripted": 5}
    assert built.golden_error is None
    layout = Layout(tmp_path / "out")
    layer = layout.bundles[0].manifest.with_role(Role.GOLDEN)[0]
    tensors = golden.from_safetensors(layout.read(layer.digest, layer.size, 2**20))
    assert (tensors["scripted/output/y"] == tensors["scripted/input/x"] * 6).all()


def test_a_model_that_misses_its_golden_vectors_is_not_built(tmp_path: Path) -> None:
    write_golden(tmp_path / "wrong.npz", error=0.5)
    with pytest.raises(EdgeError) as caught:
        make(wrong_spec(tmp_path), tmp_path / "out")
    assert caught.value.code == "model.golden-mismatch"
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def wrong_spec(folder: Path, **changes: Any) -> Spec:
    members = (("", write_model(folder / "model")),)
    return load_spec(None, Flags(name="linear", version=1, members=members, golden=folder / "wrong.npz", **changes))


def test_golden_vectors_may_be_trusted(tmp_path: Path) -> None:
    write_golden(tmp_path / "wrong.npz", error=0.5)
    built = make(wrong_spec(tmp_path, is_golden_trusted=True), tmp_path / "out")
    assert built.load_peak_bytes == 0
    assert any("trusted" in text for text in built.warnings)


def test_a_wider_tolerance_takes_them(tmp_path: Path) -> None:
    write_golden(tmp_path / "wrong.npz", error=0.5)
    built = make(wrong_spec(tmp_path, atol=0.6), tmp_path / "out")
    assert built.golden_error == pytest.approx(0.5, abs=1e-3)
    golden_part = Layout(tmp_path / "out").bundles[0].runtime.golden
    assert golden_part is not None
    assert golden_part.atol == 0.6


def test_a_bundle_without_golden_vectors_says_so(tmp_path: Path) -> None:
    built = make(make_spec(tmp_path / "model", golden=False), tmp_path / "out")
    assert any("no golden vectors" in text for text in built.warnings)


def test_a_model_of_fixed_batch_is_run_row_by_row(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", batch=1)
    write_golden(tmp_path / "golden.npz")
    flags = Flags(name="linear", version=1, members=(("", model),), golden=tmp_path / "golden.npz")
    assert make(load_spec(None, flags), tmp_path / "out").golden_vectors == {"linear": 5}


def test_external_weights_travel_beside_the_model(tmp_path: Path) -> None:
    model = write_external_model(tmp_path / "model")
    write_golden(tmp_path / "golden.npz")
    flags = Flags(name="linear", version=1, members=(("", model),), golden=tmp_path / "golden.npz")
    make(load_spec(None, flags), tmp_path / "out")
    paths = [layer.path for layer in Layout(tmp_path / "out").bundles[0].manifest.with_role(Role.MODEL)]
    assert paths == ["model.onnx", "weights/part.bin"]


def test_a_measured_load_peak_is_stated_only_when_asked(tmp_path: Path) -> None:
    plain = make(make_spec(tmp_path / "model"), tmp_path / "plain")
    assert plain.load_peak_bytes > 2**20
    assert Layout(tmp_path / "plain").bundles[0].runtime.load_peak_bytes == 0
    make(make_spec(tmp_path / "model", is_peak_measured=True), tmp_path / "measured")
    peak = Layout(tmp_path / "measured").bundles[0].runtime.load_peak_bytes
    assert peak > 2**20
    assert peak % (16 * 2**20) == 0


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("import nothing_of_that_name\ndef run(data): return 1", "model.load-failed", "nothing_of_that_name"),
        ("def init(): raise ValueError('no weights')\ndef run(data): return 1", "model.load-failed", "no weights"),
        ("import sys\ndef init(): sys.exit(3)\ndef run(data): return 1", "model.load-failed", "SystemExit"),
        ("def run(data): return data['z']", "model.inference-failed", "KeyError"),
        ("def run(data): return {'w': data['x']}", "model.output-invalid", "'y'"),
        ("def run(data): return ['a'] * 5", "model.output-invalid", "datatype"),
        ("import os\ndef run(data): os._exit(3)", "model.worker-crashed", "ended with 3"),
        ("import os\ndef run(data): os.abort()", "model.worker-crashed", "ended with -6"),
        (
            "import pickle\ndef init(): pickle.loads(pickle.dumps(print))\ndef run(data): return data['x']",
            "model.load-failed",
            "allow_pickle",
        ),
    ],
)
def test_a_script_that_fails_says_why(tmp_path: Path, text: str, code: str, said: str) -> None:
    spec = script_spec(tmp_path / "model")
    (tmp_path / "model" / "score.py").write_text(text)
    with pytest.raises(EdgeError) as caught:
        make(spec, tmp_path / "out")
    assert caught.value.code == code
    assert said in caught.value.detail


def test_a_script_does_not_see_the_authors_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = script_spec(tmp_path / "model")
    for name in ("LIGHTERMAN_TOKEN", "LIGHTERMAN_KEY_PASSPHRASE"):
        monkeypatch.setenv(name, "secret")
    (tmp_path / "model" / "score.py").write_text(
        "import os\ndef run(data):\n"
        "    assert not any('secret' == value for value in os.environ.values())\n    return data['x']\n"
    )
    assert make(spec, tmp_path / "out").golden_vectors == {"scripted": 5}


def test_a_corrupt_model_is_refused_by_the_runtime(tmp_path: Path) -> None:
    proto = model_proto()
    proto.graph.node[0].op_type = "NoSuchOperator"
    model = write_model(tmp_path / "model")
    model.write_bytes(proto.SerializeToString())
    write_golden(tmp_path / "golden.npz")
    flags = Flags(name="linear", version=1, members=(("", model),), golden=tmp_path / "golden.npz")
    with pytest.raises(EdgeError) as caught:
        make(load_spec(None, flags), tmp_path / "out")
    assert caught.value.code == "model.load-failed"


def test_a_build_needs_a_version(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="no version"):
        make(make_spec(tmp_path / "model", version=0), tmp_path / "out")


def test_a_layout_is_replaced_but_nothing_else_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = make(make_spec(tmp_path / "model"), out)
    second = make(make_spec(tmp_path / "model", version=2), out)
    assert first.index != second.index
    assert Layout(out).index_digest == second.index
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(EdgeError, match="not an OCI layout"):
        make(make_spec(tmp_path / "model"), tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_release_facts_travel_with_the_index(tmp_path: Path) -> None:
    make(make_spec(tmp_path / "model", hardware_ids=("b", "a"), release_counter=9), tmp_path / "out")
    layout = Layout(tmp_path / "out")
    assert (layout.hardware_ids, layout.release_counter) == (("a", "b"), 9)
    make(make_spec(tmp_path / "model"), tmp_path / "plain")
    assert (Layout(tmp_path / "plain").hardware_ids, Layout(tmp_path / "plain").release_counter) == ((), 1)


def test_a_damaged_blob_is_found(tmp_path: Path) -> None:
    make(make_spec(tmp_path / "model"), tmp_path / "out")
    layout = Layout(tmp_path / "out")
    layer = layout.bundles[0].manifest.with_role(Role.MODEL)[0]
    path = layout.blob_path(layer.digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(EdgeError, match=r"model\.onnx.*digest-mismatch"):
        layout.verify_blob(layer)
    path.write_bytes(data + b"more")
    with pytest.raises(EdgeError, match=r"size-mismatch"):
        layout.verify_blob(layer)
    path.unlink()
    with pytest.raises(EdgeError, match=r"not-found"):
        layout.verify_blob(layer)


def test_a_manifest_of_another_version_is_not_taken(tmp_path: Path) -> None:
    make(make_spec(tmp_path / "model"), tmp_path / "out")
    layout = Layout(tmp_path / "out")
    data = layout.index_data.replace(
        b'"org.opencontainers.image.version":"1"', b'"org.opencontainers.image.version":"2"'
    )
    digest = Digest.of(data)
    layout.blob_path(digest).write_bytes(data)
    index = json.loads((tmp_path / "out" / "index.json").read_bytes())
    index["manifests"][0] |= {"digest": str(digest), "size": len(data)}
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    with pytest.raises(EdgeError, match="its index says '2'"):
        Layout(tmp_path / "out")


def test_what_is_built_is_what_a_device_parses(tmp_path: Path) -> None:
    make(script_spec(tmp_path / "model"), tmp_path / "out")
    for item in Layout(tmp_path / "out").bundles:
        manifest = Manifest.parse(item.data)
        assert manifest.to_bytes() == item.data
        assert Digest.of(item.data) == item.descriptor.digest
        assert item.runtime.members[0].entry in {layer.path for layer in manifest.layers}
