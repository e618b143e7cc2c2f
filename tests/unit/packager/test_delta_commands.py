"""`packager delta make`, `apply` and `show` between files, and options that do not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_contract.digest import Digest
from packager.cli import main
from tests.unit.packager.weights import dense, trained, tuned


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two releases of a model, in the working directory; no registry is configured."""
    monkeypatch.chdir(tmp_path)
    for name in ("LIGHTERMAN_URL", "LIGHTERMAN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    dense(tmp_path, "old.onnx", trained())
    dense(tmp_path, "new.onnx", tuned(trained()))
    return tmp_path


@pytest.fixture
def made(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """And the delta between them."""
    assert main(["delta", "make", "old.onnx", "new.onnx", "-o", "d"]) == 0
    capsys.readouterr()
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Exit code and the JSON that was printed."""
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_delta_makes_the_very_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, facts = run(capsys, "delta", "make", "old.onnx", "new.onnx", "-o", "d")
    assert code == 0
    assert facts["bytes"] == (folder / "d").stat().st_size < 0.6 * facts["new_bytes"]
    assert facts["peak_bytes"] <= 16 * 1024 * 1024
    code, applied = run(capsys, "delta", "apply", "old.onnx", "d", "-o", "made.onnx")
    content = (folder / "new.onnx").read_bytes()
    assert (code, applied) == (0, {"bytes": len(content), "digest": str(Digest.of(content))})
    assert (folder / "made.onnx").read_bytes() == content
    assert not list(folder.glob("*.partial"))


def test_a_delta_is_shown_with_what_it_starts_from_and_makes(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, facts = run(capsys, "delta", "show", "d")
    assert code == 0
    for name, file in (("base", "old.onnx"), ("new", "new.onnx")):
        content = (made / file).read_bytes()
        assert facts[f"{name}_bytes"] == len(content)
        assert Digest.of(content).hex.startswith(facts[f"{name}_sha256_prefix"])
    assert sum(facts["operations"].values()) == facts["new_bytes"]
    assert main(["delta", "show", "d"]) == 0
    assert f"make {facts['new_bytes']} from {facts['base_bytes']}" in capsys.readouterr().out


def test_a_delta_is_applied_to_the_file_that_it_was_made_of_and_no_other(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense(made, "other.onnx", trained(seed=9))
    code, refused = run(capsys, "delta", "apply", "other.onnx", "d", "-o", "made.onnx")
    assert (code, refused["error"]["code"]) == (4, "artifact.digest-mismatch")
    assert "other.onnx" in refused["error"]["detail"]
    assert not (made / "made.onnx").exists()


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_damaged_delta_makes_no_file(made: Path, capsys: pytest.CaptureFixture[str], place: int) -> None:
    data = bytearray((made / "d").read_bytes())
    data[place] ^= 0xFF
    (made / "d").write_bytes(data)
    (made / "made.onnx").write_bytes(b"what was there")
    code, refused = run(capsys, "delta", "apply", "old.onnx", "d", "-o", "made.onnx")
    assert code == 4, refused
    assert refused["error"]["code"] in ("artifact.delta-invalid", "artifact.digest-mismatch")
    assert (made / "made.onnx").read_bytes() == b"what was there"
    assert not list(made.glob("*.partial"))


def test_a_delta_between_strangers_is_made_with_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(5)
    for name in ("a.bin", "b.bin"):
        (folder / name).write_bytes(noise.bytes(20_000))
    assert main(["delta", "make", "a.bin", "b.bin", "-o", "d"]) == 0
    assert "warning: the delta is no smaller than the file" in capsys.readouterr().out
    assert main(["delta", "apply", "a.bin", "d", "-o", "c.bin"]) == 0
    assert (folder / "c.bin").read_bytes() == (folder / "b.bin").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("make", "nowhere.onnx", "new.onnx", "-o", "d"), "config.file-missing"),
        (("make", "empty", "new.onnx", "-o", "d"), "config.invalid"),
        (("show", "nowhere"), "config.file-missing"),
        (("show", "empty"), "artifact.delta-invalid"),
        (("apply", "old.onnx", "nowhere", "-o", "d"), "config.file-missing"),
        (("apply", "old.onnx", "d", "-o", "no/folder/made"), "config.file-missing"),
        (("build", "digits:2"), "config.invalid"),
        (("build", "digits"), "config.invalid"),
        (("build", "digits:2", "--from", "1", "--condition", "*"), "config.invalid"),
        (("build", "digits:2", "--from", "1", "--module", "other"), "config.invalid"),
        (("build", "digits:2", "--budget-s", "nan"), "config.invalid"),
        (("make", "old.onnx", "new.onnx", "-o", "new.onnx"), "config.invalid"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_code(
    made: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: str
) -> None:
    (made / "empty").touch()
    exit_code, refused = run(capsys, "delta", *arguments)
    assert refused["error"]["code"] == code, refused
    assert exit_code == (4 if code.startswith("artifact.") else 2)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--dry-run", "--wait"), "--wait"),
        (("--link-kbps", "64"), "--dry-run"),
        (("--dry-run", "--link-kbps", "inf"), "finite"),
        (("--dry-run", "--link-kbps", "nan"), "finite"),
        (("--dry-run", "--jobs", "2"), "--jobs"),
        (("--dry-run", "--no-deltas"), "--no-deltas"),
        (("--no-deltas", "--budget-s", "60"), "--budget-s"),
        (("--no-deltas", "--budget-bytes", "1000"), "--budget-bytes"),
    ],
)
def test_options_of_a_deployment_that_would_mean_nothing_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], word: str
) -> None:
    del folder
    code, refused = run(
        capsys, "deploy", "digits:2", "--condition", "*", "--url", "http://127.0.0.1:9", "--token", "t", *options
    )
    assert (code, refused["error"]["code"]) == (2, "config.invalid")
    assert word in refused["error"]["detail"]


@pytest.mark.parametrize(
    ("options", "word"),
    [(("--budget-s", "60"), "--condition"), (("--condition", "*", "--no-deltas", "--jobs", "2"), "--no-deltas")],
)
def test_options_of_a_shipment_that_would_mean_nothing_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], word: str
) -> None:
    del folder
    code, refused = run(capsys, "ship", "new.onnx", "--url", "http://127.0.0.1:9", "--token", "t", *options)
    assert (code, refused["error"]["code"]) == (2, "config.invalid")
    assert word in refused["error"]["detail"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--gate", "0.1"), "--snap"),
        (("--snap", "0.5", "--against", "1", "--evaluate", "score.py", "--gate", "nan"), "finite"),
    ],
)
def test_a_gate_that_keeps_nothing_back_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], word: str
) -> None:
    (folder / "score.py").write_text("def evaluate(path):\n    return 1\n")
    code, refused = run(capsys, "build", "--model", "digits", "--file", "new.onnx", "--out", "bundle", *options)
    assert (code, refused["error"]["code"]) == (2, "config.invalid")
    assert word in refused["error"]["detail"]


@pytest.mark.parametrize("target", ["127.0.0.1:9/mirror:tag", f"127.0.0.1:9/mirror@sha256:{'0' * 64}"])
def test_deltas_are_pushed_to_a_repository_and_to_no_tag_of_it(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    del folder
    code, refused = run(
        capsys, "delta", "push", "digits:2", "--to", target, "--url", "http://127.0.0.1:9", "--token", "t"
    )
    assert (code, refused["error"]["code"]) == (2, "config.invalid")
    assert "127.0.0.1:9/mirror." in refused["error"]["hint"]
