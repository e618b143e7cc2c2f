"""From a model file to a deployment, command by command, against a registry process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from edge_contract.digest import Digest
from edge_contract.manifest import Role
from packager.layout import Layout
from tests.integration.packager.conftest import Author
from tests.unit.packager.support import write_external_model, write_golden, write_model

GOLDEN = ("--golden", "golden.npz")


@pytest.fixture
def model(author: Author) -> Path:
    write_golden(author.home / "golden.npz")
    return write_model(author.home)


def step_by_step(author: Author, capsys: pytest.CaptureFixture[str]) -> Any:
    code, version = author.run(capsys, "register", "model.onnx", "--name", author.model, "--property", "error=0.1")
    assert (code, version["version"]) == (0, 1)
    code, built = author.run(
        capsys, "build", "--model", author.model, "--version", "1", "--from-registry", *GOLDEN, "--out", "bundle"
    )
    assert code == 0
    code, pushed = author.run(capsys, "push", "bundle")
    assert (code, pushed["index"]) == (0, built["index"])
    return pushed


def test_the_steps_one_by_one(author: Author, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pushed = step_by_step(author, capsys)
    with author.client() as client:
        version = client.get_version(author.model, 1)
        assert version["format"] == "onnx"
        assert version["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert version["properties"]["error"] == "0.1"
        assert {item["platform"]: item["digest"] for item in client.bundles(author.model, 1)} == pushed["manifests"]
    author.enrol(f"cam-{author.model}")
    code, deployed = author.run(capsys, "deploy", f"{author.model}:1", "--condition", author.condition)
    assert (code, deployed["deployment"]["devices"]) == (0, 1)
    with author.client() as client:
        assert (
            client.device(f"cam-{author.model}")["desired"][author.model]["manifest"]
            == pushed["manifests"]["linux/amd64"]
        )


def test_a_pushed_bundle_is_verified_and_inspected_from_afar(
    author: Author, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed = step_by_step(author, capsys)
    for what in ("bundle", f"{author.model}:1"):
        code, verdict = author.run(capsys, "verify", what, "--keys", author.keys)
        assert code == 0, verdict
        verdicts = {check["name"]: check for check in verdict["checks"]}
        assert verdicts["signatures"]["verdict"] == "passed"
        assert "pinned root" in verdicts["signatures"]["detail"]
        code, facts = author.run(capsys, "inspect", what)
        assert (code, facts["index"]) == (0, pushed["index"])
    code, verdict = author.run(capsys, "verify", f"{author.model}:1")
    assert code == 0
    assert "nobody vouched" in {check["name"]: check for check in verdict["checks"]}["signatures"]["detail"]


def test_an_unsigned_bundle_is_found_out(author: Author, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    author.run(capsys, "register", "model.onnx", "--name", author.model)
    author.run(capsys, "build", "--model", author.model, "--version", "1", "--file", "model.onnx", "--out", "bundle")
    code, verdict = author.run(capsys, "verify", "bundle", "--keys", author.keys)
    assert code == 3
    failed = [check for check in verdict["checks"] if check["verdict"] == "failed"]
    assert [check["code"] for check in failed] == ["trust.target-unknown"]


def test_pushing_again_sends_nothing(author: Author, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = step_by_step(author, capsys)
    layout = Layout(author.home / "bundle")
    others = [blob.size for blob in layout.blobs if blob.role != Role.MODEL]
    # The model itself came with the registration and is not sent a second time.
    assert first["bytes_sent"] == sum(others)
    code, second = author.run(capsys, "push", "bundle")
    assert (code, second["bytes_sent"], second["bins_signed"]) == (0, 0, 0)


def test_a_version_keeps_its_bundle(author: Author, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step_by_step(author, capsys)
    author.run(capsys, "build", "--model", author.model, "--version", "1", "--file", "model.onnx", "--out", "other")
    code, document = author.run(capsys, "push", "other")
    assert (code, document["error"]["code"]) == (8, "cloud.conflict")


def test_ship_does_it_all(author: Author, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        code, shipped = author.run(
            capsys, "ship", "model.onnx", "--name", author.model, *GOLDEN, "--condition", author.condition
        )
        assert (code, shipped["version"]) == (0, number)
        assert shipped["deployment"]["version"] == number
    with author.client() as client:
        assert len(client.bundles(author.model, 2)) == 2


def test_a_model_that_fails_its_golden_vectors_gets_no_version(
    author: Author, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_golden(author.home / "golden.npz", error=1.0)
    code, document = author.run(capsys, "ship", "model.onnx", "--name", author.model, *GOLDEN)
    assert (code, document["error"]["code"]) == (5, "model.golden-mismatch")
    with author.client() as client:
        assert client.search(name=author.model)["items"] == []


def test_a_shipment_that_was_cut_goes_on_with_its_version(
    author: Author, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, version = author.run(capsys, "register", "model.onnx", "--name", author.model)
    code, shipped = author.run(capsys, "ship", "model.onnx", "--name", author.model, "--version", "1", *GOLDEN)
    assert (code, shipped["version"]) == (0, version["version"])
    with author.client() as client:
        assert [item["version"] for item in client.versions(author.model)["items"]] == [1]


def test_waiting_tells_who_refused(author: Author, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    author.enrol(f"old-{author.model}", platform="linux/arm/v6")
    code, shipped = author.run(
        capsys, "ship", "model.onnx", "--name", author.model, *GOLDEN, "--condition", author.condition, "--wait"
    )
    assert code == 1
    assert shipped["wait"]["failed"][0]["device"] == f"old-{author.model}"
    assert shipped["wait"]["failed"][0]["error"]["code"] == "artifact.platform-mismatch"


def test_waiting_ends_in_time(author: Author, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    author.enrol(f"silent-{author.model}")
    ship = ("ship", "model.onnx", "--name", author.model, *GOLDEN, "--wait", "--timeout-s", "0.3")
    code, shipped = author.run(capsys, *ship, "--condition", author.condition)
    assert (code, shipped["wait"]["is_confirmed"]) == (1, False)
    assert shipped["wait"]["failed"][0]["device"] == f"silent-{author.model}"
    code, shipped = author.run(capsys, *ship, "--condition", "tags.site = 'nowhere'")
    assert (code, shipped["wait"]["devices"]) == (1, 0)


def test_a_file_that_is_no_model_is_not_registered(author: Author, capsys: pytest.CaptureFixture[str]) -> None:
    (author.home / "model.onnx").write_bytes(b"PK\x03\x04 certainly not a model")
    code, document = author.run(capsys, "register", "model.onnx", "--name", author.model)
    assert (code, document["error"]["code"]) == (4, "artifact.not-a-model")


def test_external_weights_and_scripts_survive_the_registry(author: Author, capsys: pytest.CaptureFixture[str]) -> None:
    write_external_model(author.home)
    write_golden(author.home / "golden.npz")
    assert author.run(capsys, "register", "model.onnx", "--name", author.model)[0] == 0
    build = ("build", "--model", author.model, "--version", "1", *GOLDEN)
    here = author.run(capsys, *build, "--file", "model.onnx", "--out", "here")
    there = author.run(capsys, *build, "--from-registry", "--out", "there")
    assert here[0] == there[0] == 0
    assert here[1]["index"] == there[1]["index"]
    (author.home / "score.py").write_text("import extra\ndef run(data): return extra.VALUE\n")
    (author.home / "extra.py").write_text("VALUE = 1\n")
    name = f"{author.model}-script"
    code, version = author.run(capsys, "register", "score.py", "extra.py", "--name", name)
    assert (code, version["entry"]) == (0, "score.py")
    code, _ = author.run(capsys, "build", "--model", name, "--version", "1", "--from-registry", "--out", "scripted")
    assert code == 0
    layers = Layout(author.home / "scripted").bundles[0].manifest.layers
    assert {layer.path for layer in layers} >= {"score.py", "extra.py"}


@pytest.mark.slow
def test_new_keys_sign_for_the_same_registry(author: Author, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step_by_step(author, capsys)
    before = author.run(capsys, "keys", "list", author.keys)[1]["folders"][0]["roots"]
    code, rotated = author.run(capsys, "keys", "rotate")
    assert code == 0
    assert rotated["roots"]["image"]["version"] == before["image"]["version"] + 2
    assert rotated["roots"]["director"]["version"] == before["director"]["version"] + 1
    assert author.run(capsys, "ship", "model.onnx", "--name", author.model, *GOLDEN)[0] == 0
    for version in (f"{author.model}:1", f"{author.model}:2"):
        assert author.run(capsys, "verify", version, "--keys", author.keys)[0] == 0


def test_somebody_elses_keys_are_not_taken(
    author: Author, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, document = author.run(capsys, "keys", "init", author.home / "mine")
    assert (code, document["error"]["code"]) == (8, "cloud.conflict")


def test_a_viewer_may_look_and_not_publish(
    author: Author, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_by_step(author, capsys)
    with author.client() as client:
        token = client.create_token(f"reader-{author.model}", "viewer")["token"]
    monkeypatch.setenv("LIGHTERMAN_TOKEN", token)
    assert author.run(capsys, "verify", f"{author.model}:1", "--keys", author.keys)[0] == 0
    code, document = author.run(capsys, "register", "model.onnx", "--name", author.model)
    assert (code, document["error"]["code"]) == (8, "cloud.forbidden")
    monkeypatch.setenv("LIGHTERMAN_TOKEN", "nonsense")
    code, document = author.run(capsys, "inspect", f"{author.model}:1")
    assert (code, document["error"]["code"]) == (8, "cloud.unauthorized")


def test_keys_without_trust_push_nothing(author: Author, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    author.run(capsys, "register", "model.onnx", "--name", author.model)
    author.run(capsys, "build", "--model", author.model, "--version", "1", "--file", "model.onnx", "--out", "bundle")
    shutil.copytree(author.keys, "copied")
    for pinned in Path("copied").glob("*.root.json"):
        pinned.unlink()
    code, document = author.run(capsys, "push", "bundle", "--keys", "copied")
    assert (code, document["error"]["code"]) == (3, "trust.root-unknown")
    with author.client() as client:
        assert client.bundles(author.model, 1) == []


def test_the_registry_serves_the_very_bytes(author: Author, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step_by_step(author, capsys)
    layout = Layout(author.home / "bundle")
    with author.client() as client:
        assert client.get_manifest(f"bundles/{author.model}", "1") == layout.index_data
        for item in layout.bundles:
            assert client.get_manifest(f"bundles/{author.model}", str(item.descriptor.digest)) == item.data
        for blob in layout.blobs:
            assert Digest.of(client.read_blob(f"bundles/{author.model}", blob.digest, 2**24)) == blob.digest
