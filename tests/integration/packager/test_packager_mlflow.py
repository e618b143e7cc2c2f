"""`packager azureml import` from a real MLflow server, with models that MLflow's own flavors logged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from packager.cli import main
from tests.integration.packager.conftest import Author
from tests.support.mlflow_server import MlflowServer, mlflow_server
from tests.support.require import REPOSITORY_ROOT
from tests.unit.worker.tiny_models import tflite_adder

# The environment of the server may have to be made first.
pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "light.tflite").write_bytes(tflite_adder())
    with mlflow_server(folder) as server:
        server.run(REPOSITORY_ROOT / "tests/support/mlflow_author.py", str(folder / "light.tflite"))
        yield server


@pytest.fixture(autouse=True)
def address(mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.url)


def test_a_version_by_alias_becomes_a_folder_that_builds(
    author: Author, mlflow: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    code, done = author.run(capsys, "azureml", "import", "Digits (EU)@champion", "--out", "digits")
    assert code == 0, done
    notes = done["imported"]
    assert (notes["version"], notes["name"], notes["engine"]) == ("1", "digits-eu", "onnx")
    assert notes["params"] == {"depth": "3", "optimizer/name": "adam"}
    before = {path.name: path.read_bytes() for path in Path("digits").iterdir()}
    code, built = author.run(capsys, "build", "--spec", "digits/lighterman.toml", "--version", "1", "--out", "bundle")
    assert code == 0, built
    code, _ = author.run(capsys, "azureml", "import", "models:/Digits (EU)/Production", "--out", "digits")
    assert code == 0
    assert {path.name: path.read_bytes() for path in Path("digits").iterdir()} == before


def test_a_version_is_registered_with_its_tags_and_lineage_and_only_once(
    author: Author, mlflow: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["azureml", "import", "Digits (EU)/1", "--registry", "--name", author.model]
    code, done = author.run(capsys, *ask)
    assert code == 0, done
    version = done["version"]
    assert version["is_new"]
    assert version["description"] == "reads digits"
    assert version["tags"] == {"team": "vision", "reviewed_by._1st": "nobody in particular"}
    assert version["lineage"]["git_commit"] == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
    assert version["lineage"]["dataset"].startswith("scans@")
    properties = version["properties"]
    assert properties["mlflow.registry"] == mlflow.url
    assert properties["mlflow.aliases"] == "champion"
    assert properties["mlflow.stage"] == "Production"
    assert properties["metric.accuracy"] == "0.004"
    assert properties["param.optimizer.name"] == "adam"
    assert properties["mlflow.run_id"] == version["lineage"]["run_id"]
    assert version["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]

    code, again = author.run(capsys, *ask)
    assert code == 0, again
    assert not again["version"]["is_new"]
    assert again["version"]["version"] == version["version"]
    code, newer = author.run(capsys, "azureml", "import", "Digits (EU)", "--registry", "--name", author.model)
    assert code == 0, newer
    assert newer["version"]["version"] == version["version"] + 1


def test_external_data_come_along(author: Author, capsys: pytest.CaptureFixture[str]) -> None:
    code, done = author.run(capsys, "azureml", "import", "Digits (EU)/latest", "--out", "big")
    assert code == 0, done
    assert len(done["imported"]["files"]) == 2
    assert main(["build", "--spec", "big/lighterman.toml", "--version", "2", "--out", "bundle"]) == 0


def test_a_lite_model_without_a_document_and_one_of_two(author: Author, capsys: pytest.CaptureFixture[str]) -> None:
    code, done = author.run(capsys, "azureml", "import", "light", "--out", "light")
    assert code == 0, done
    assert done["imported"]["engine"] == "litert"
    code, done = author.run(capsys, "azureml", "import", "twins", "--out", "twins")
    assert code == 2
    assert "--file" in done["error"]["hint"]
    code, done = author.run(capsys, "azureml", "import", "twins", "--out", "twins", "--file", "b/light.tflite")
    assert code == 0, done


def test_a_signature_that_lies_is_refused(author: Author, capsys: pytest.CaptureFixture[str]) -> None:
    code, done = author.run(capsys, "azureml", "import", "lying", "--out", "lying")
    assert code == 2
    assert "[-1, 5]" in done["error"]["detail"]
    assert not Path("lying").exists()
    assert author.run(capsys, "azureml", "import", "lying", "--out", "lying", "--ignore-signature")[0] == 0


def test_a_pickled_model_goes_with_a_script_alone_and_is_never_opened(
    author: Author, capsys: pytest.CaptureFixture[str]
) -> None:
    code, done = author.run(capsys, "azureml", "import", "forest", "--out", "forest")
    assert (code, done["error"]["code"]) == (4, "artifact.not-a-model")
    Path("score.py").write_text("def run(data):\n    return data\n")
    ask = ["azureml", "import", "forest", "--out", "forest", "--script", "score.py"]
    code, done = author.run(capsys, *ask)
    assert done["error"]["code"] == "model.pickle-refused"
    code, done = author.run(capsys, *ask, "--allow-pickle")
    assert code == 0, done
    assert "model.pkl" in {item["path"] for item in done["imported"]["files"]}
    assert "allow_pickle = true" in Path("forest/lighterman.toml").read_text()


def test_what_is_not_there_and_a_folder_of_others_are_refused(
    author: Author, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for selector in ("nothing", "nothing/1", "Digits (EU)/99", "Digits (EU)@gone", "Digits (EU)/Staging"):
        code, done = author.run(capsys, "azureml", "import", selector, "--out", "x")
        assert (code, done["error"]["code"]) == (8, "cloud.not-found"), selector
    shutil.rmtree("x", ignore_errors=True)
    Path("x").mkdir()
    Path("x/diary.txt").write_text("mine")
    code, done = author.run(capsys, "azureml", "import", "light", "--out", "x")
    assert code == 2
    assert Path("x/diary.txt").read_text() == "mine"
