"""Deltas and snapped releases by the packager's commands, against a registry process and another project's registry."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_contract.delta import Delta
from edge_contract.deployment import bundle_repository
from edge_contract.digest import Digest
from packager.cli import main
from tests.integration.module_ground import docker_registry
from tests.integration.packager.conftest import Author
from tests.unit.packager.weights import dense, trained, tuned

SCORE = """
import os
def evaluate(path):
    return {"size": os.path.getsize(path), "accuracy": SCORES[os.path.dirname(path).endswith("snapped")]}
"""


@pytest.fixture
def line(author: Author, capsys: pytest.CaptureFixture[str]) -> Author:
    """Two versions of a model, each a little more trained, shipped without a deployment."""
    weights = trained()
    for _ in (1, 2):
        dense(author.home, "model.onnx", weights)
        code, shipped = author.run(capsys, "ship", "model.onnx", "--name", author.model)
        assert code == 0, shipped
        weights = tuned(weights)
    return author


def test_a_delta_is_built_published_and_told(line: Author, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, built = line.run(capsys, "delta", "build", f"{line.model}:2", "--from", "1")
    assert code == 0
    (made,) = built["deltas"]
    assert made["base_version"] == 1
    assert made["bytes"] < 0.6 * made["new_bytes"]
    with line.client() as client:
        (told,) = client.deltas(line.model, 2)
        delta = Delta.from_json({key: value for key, value in told.items() if key != "manifest"})
        content = client.read_blob(bundle_repository(line.model), delta.digest, delta.bytes)
        client.download(line.model, 1, "model.onnx", tmp_path / "base.onnx")
        index = Digest.of(client.get_manifest(bundle_repository(line.model), "2"))
        request = urllib.request.Request(
            f"{line.server.url}/v2/{bundle_repository(line.model)}/referrers/{index}",
            headers={"Authorization": f"Bearer {line.server.token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            referrers = json.load(answer)["manifests"]
    assert [item["digest"] for item in referrers] == [told["manifest"]]
    (tmp_path / "delta").write_bytes(content)
    code, applied = line.run(
        capsys, "delta", "apply", tmp_path / "base.onnx", tmp_path / "delta", "-o", tmp_path / "new.onnx"
    )
    assert (code, applied["digest"]) == (0, str(delta.new))
    code, again = line.run(capsys, "delta", "build", f"{line.model}:2", "--from", "1")
    assert (code, again["deltas"]) == (0, [])
    assert [item["reason"] for item in again["skipped"]] == ["there is one already"]


@pytest.mark.parametrize("budget", [("--budget-s", "0"), ("--budget-bytes", "10")])
def test_a_spent_budget_makes_no_delta_and_is_no_error(
    line: Author, capsys: pytest.CaptureFixture[str], budget: tuple[str, str]
) -> None:
    code, built = line.run(capsys, "delta", "build", f"{line.model}:2", "--from", "1", *budget)
    assert (code, built["deltas"]) == (0, [])
    assert "budget" in built["skipped"][0]["reason"]


def test_a_dry_run_says_what_would_come_and_changes_nothing(line: Author, capsys: pytest.CaptureFixture[str]) -> None:
    line.enrol(f"cam-{line.model}")
    arguments = ("deploy", f"{line.model}:2", "--condition", line.condition)
    code, found = line.run(capsys, *arguments, "--dry-run", "--link-kbps", "128")
    assert (code, found["devices"], found["link_kbps"]) == (0, 1, 128)
    assert found["bytes"] == found["bytes_full"] > 160 * 120 * 4
    assert found["rows"][0]["seconds"] == pytest.approx(found["bytes"] * 8 / 128_000, abs=0.1)
    with line.client() as client:
        assert not [item for item in client.deployments()["items"] if item["model"] == line.model]
    assert main([*arguments, "--dry-run"]) == 0
    assert "1 devices" in capsys.readouterr().out
    line.enrol(f"cam-{line.model}-old", "linux/arm/v7")  # there is no bundle for it, so nothing comes to it
    code, both = line.run(capsys, *arguments, "--dry-run")
    assert (both["devices"], both["bytes"]) == (2, found["bytes"])
    assert [(row["base"], row["by"], row["devices"]) for row in both["rows"]] == [
        ("nothing known", "full", 1),
        ("no bundle", "nothing", 1),
    ]
    code, deployed = line.run(capsys, *arguments)
    assert (code, deployed["deltas"]["deltas"]) == (0, [])
    # Nobody reported holding anything, so there was nothing to make a delta from.
    assert deployed["deltas"] == {"deltas": [], "skipped": [], "bytes": 0}


def test_deltas_are_copied_to_a_registry_that_lists_no_referrers(
    line: Author, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line.run(capsys, "delta", "build", f"{line.model}:2", "--from", "1")
    with docker_registry(tmp_path / "docker") as host:
        code, copied = line.run(capsys, "delta", "push", f"{line.model}:2", "--to", f"{host}/mirror/deltas")
        assert code == 0, copied
        assert copied["fallback_tag"].startswith("sha256-")
        code, again = line.run(capsys, "delta", "push", f"{line.model}:2", "--to", f"{host}/mirror/deltas")
        assert (code, again["bytes_sent"]) == (0, 0)
        index = _read(f"http://{host}/v2/mirror/deltas/manifests/{copied['fallback_tag']}")
        (entry,) = index["manifests"]
        manifest = _read(f"http://{host}/v2/mirror/deltas/manifests/{entry['digest']}")
        assert manifest["layers"][0]["digest"] == copied["deltas"][0]
        assert f"sha256-{manifest['subject']['digest'].partition(':')[2]}" == copied["fallback_tag"]


def _read(url: str) -> Any:
    accepted = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accepted}), timeout=30) as answer:
        return json.load(answer)


def _snap(author: Author, capsys: pytest.CaptureFixture[str], scores: str, *options: str) -> tuple[int, Any]:
    (author.home / "score.py").write_text(f"SCORES = {scores}\n{SCORE}")
    dense(author.home, "model.onnx", tuned(trained(), seed=9))
    return author.run(
        capsys, "build", "--model", author.model, "--file", "model.onnx", "--snap", "0.5", "--against", "1",
        "--evaluate", "score.py", "--out", "bundle", *options,
    )  # fmt: skip


def test_a_snapped_release_is_a_version_of_its_own_that_says_so(
    line: Author, capsys: pytest.CaptureFixture[str]
) -> None:
    code, built = _snap(line, capsys, "{True: 0.91, False: 0.912}")
    assert (code, built["snapped"]["version"], built["version"]) == (0, 3, 3)
    with line.client() as client:
        record = client.get_version(line.model, 3)
    parent = Digest.of((line.home / "model.onnx").read_bytes())
    assert record["properties"]["snap.parent"] == str(parent)
    assert record["properties"]["snap.kappa"] == "0.5"
    assert record["properties"]["snap.against"] == "1"
    assert record["properties"]["snap.metric.accuracy"] == "trained 0.912, snapped 0.91"
    assert record["files"][0]["digest"] != str(parent)
    code, pushed = line.run(capsys, "push", "bundle")
    assert (code, pushed["version"]) == (0, 3)
    code, deltas = line.run(capsys, "delta", "build", f"{line.model}:3", "--from", "1")
    assert deltas["deltas"][0]["ratio"] < 0.12


def test_a_snapped_model_that_fails_its_gate_is_not_registered(
    line: Author, capsys: pytest.CaptureFixture[str]
) -> None:
    code, refused = _snap(line, capsys, "{True: 0.90, False: 0.912}")
    assert (code, refused["error"]["code"]) == (5, "model.gate-failed")
    assert "accuracy went from 0.912 to 0.9" in refused["error"]["detail"]
    assert not (line.home / "bundle").exists()
    with line.client() as client:
        assert client.versions(line.model)["items"][0]["version"] == 2


def test_a_snapped_model_that_does_not_meet_its_golden_vectors_is_not_registered(
    line: Author, capsys: pytest.CaptureFixture[str]
) -> None:
    with (line.home / "golden.npz").open("wb") as file:
        np.savez(file, x=np.ones((2, 160), np.float32), y=np.full((2, 120), 7, np.float32))
    code, refused = _snap(line, capsys, "{True: 0.912, False: 0.912}", "--golden", "golden.npz")
    assert (code, refused["error"]["code"]) == (5, "model.golden-mismatch")
    with line.client() as client:
        assert client.versions(line.model)["items"][0]["version"] == 2


@pytest.mark.parametrize(
    "options",
    [
        ("--snap", "0.5"),
        ("--against", "1"),
        ("--snap", "0.5", "--against", "1", "--evaluate", "score.py", "--version", "2"),
        ("--snap", "0.5", "--against", "1", "--evaluate", "nowhere.py"),
        ("--snap", "9", "--against", "1", "--evaluate", "score.py"),
    ],
)
def test_snapping_without_what_it_needs_is_refused(
    author: Author, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    dense(author.home, "model.onnx", trained())
    (author.home / "score.py").write_text("def evaluate(path):\n    return 1\n")
    author.run(capsys, "register", "model.onnx", "--name", author.model)
    dense(author.home, "model.onnx", tuned(trained()))
    code, refused = author.run(
        capsys, "build", "--model", author.model, "--file", "model.onnx", "--out", "bundle", *options
    )
    assert code == 2, refused
    assert refused["error"]["code"].startswith("config.")


def test_a_file_that_is_no_delta_is_told_so(author: Author, capsys: pytest.CaptureFixture[str]) -> None:
    (author.home / "base").write_bytes(b"base")
    (author.home / "junk").write_bytes(b"LMD1" + bytes(100))
    for command in (("show", "junk"), ("apply", "base", "junk", "-o", "out")):
        code, refused = author.run(capsys, "delta", *command)
        assert (code, refused["error"]["code"]) == (4, "artifact.delta-invalid")
    code, refused = author.run(capsys, "delta", "make", "base", "nowhere", "-o", "out")
    assert (code, refused["error"]["code"]) == (2, "config.file-missing")
