"""The examples do what they say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from packager.cli import main
from tests.support.require import REPOSITORY_ROOT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx-digits", "sklearn-script", "image-pipeline"])
def test_an_example_is_made_built_and_verified(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    folder = tmp_path / name
    shutil.copytree(REPOSITORY_ROOT / "examples" / name, folder)
    subprocess.run([sys.executable, "make_model.py"], check=True, cwd=folder, capture_output=True)
    monkeypatch.chdir(folder)
    assert main(["build", "--version", "1", "--out", "bundle", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert built["warnings"] == []
    assert main(["verify", "bundle", "--json"]) == 0
    verdicts = {check["name"]: check["verdict"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert verdicts["golden run"] == "passed"
