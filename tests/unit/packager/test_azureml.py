"""What a version of MLflow becomes, and what is refused of it; without a server."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_contract.errors import EdgeError
from edge_contract.tensors import TensorSpec
from packager.azureml import (
    Artifact,
    Choice,
    Selector,
    Source,
    choose,
    choose_for_script,
    compare,
    description_file,
    lineage_of,
    name_for,
    parse_selector,
    properties_of,
    read_signature,
    tags_of,
)
from packager.limits import MLFLOW_PROPERTIES_MAX
from packager.mlflowread import MlflowReader, checked_location

SOURCE = Source("https://mlflow.example", "Digits (EU)", "7", "mlflow-artifacts:/1/a")
X = TensorSpec("x", "FP32", (-1, 4))


def artifacts(*paths: str) -> tuple[Artifact, ...]:
    return tuple(Artifact(path, 10) for path in paths)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("digits", Selector("digits", stage="latest")),
        ("digits/latest", Selector("digits", stage="latest")),
        ("digits/7", Selector("digits", version="7")),
        ("digits/Production", Selector("digits", stage="Production")),
        ("models:/Digits (EU)@champion", Selector("Digits (EU)", alias="champion")),
    ],
)
def test_a_version_is_named_as_in_mlflow(text: str, wanted: Selector) -> None:
    assert parse_selector(text) == wanted


@pytest.mark.parametrize("text", ["", "/7", "digits/", "digits@", "digits@a@b", "digits/7/8", "di'gits", "digits/beta"])
def test_what_names_no_version_is_refused(text: str) -> None:
    with pytest.raises(EdgeError) as caught:
        parse_selector(text)
    assert caught.value.code == "config.invalid"


@pytest.mark.parametrize(
    "location",
    [
        "/etc",
        "file:///etc",
        "./mlruns/1",
        "http://elsewhere.example/a",
        "mlflow-artifacts://elsewhere.example/1/a",
        "mlflow-artifacts:/1/../../a",
        "runs:/1/a",
        "abfss://fs@account.evil.example/a",
        "wasbs://box@account.evil.example/a",
        "azureml://evil.example/a",
    ],
)
def test_files_at_a_place_that_only_the_registry_vouches_for_are_not_read(location: str) -> None:
    with pytest.raises(EdgeError) as caught:
        checked_location(location, "https://mlflow.example")
    assert caught.value.code == "artifact.path-unsafe"


def test_files_in_the_registrys_own_store_or_a_cloud_store_are_read() -> None:
    for location in (
        "mlflow-artifacts:/1/a",
        "mlflow-artifacts://mlflow.example/1/a",
        "s3://bucket/a",
        "abfss://fs@account.dfs.core.windows.net/a",
        "azureml://westeurope.api.azureml.ms/x/a",
    ):
        assert checked_location(location, "https://mlflow.example") == location


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("sqlite:///mlflow.db", "config.invalid"),
        ("/srv/mlruns", "config.invalid"),
        ("https://me:secret@mlflow.example", "config.invalid"),
        ("azureml://westeurope.api.azureml.ms/mlflow/v1.0/x", "config.dependency-missing"),
    ],
)
def test_an_address_that_cannot_be_used_says_why_and_shows_no_secret(uri: str, code: str) -> None:
    with pytest.raises(EdgeError) as caught:
        MlflowReader(uri)
    assert caught.value.code == code
    assert "secret" not in f"{caught.value.detail}{caught.value.hint}"
    if code == "config.dependency-missing":
        assert "azureml-mlflow" in caught.value.hint


def test_the_onnx_flavor_names_the_model_and_what_lies_beside_it_comes_along() -> None:
    files = artifacts("MLmodel", "conda.yaml", "m/model.onnx", "m/model.onnx.data", "m/notes.txt", "other.bin")
    choice = choose(SOURCE, {"onnx": {"data": "m/model.onnx"}}, files)
    assert (choice.engine, choice.entry) == ("onnx", "m/model.onnx")
    assert [item.path for item in choice.files] == ["m/model.onnx", "m/model.onnx.data"]


def test_the_only_lite_model_is_taken_without_a_document() -> None:
    assert choose(SOURCE, {}, artifacts("a/light.tflite")).engine == "litert"


def test_several_models_need_a_word_from_the_user() -> None:
    files = artifacts("a.onnx", "b.tflite")
    with pytest.raises(EdgeError, match="several models"):
        choose(SOURCE, {}, files)
    assert choose(SOURCE, {}, files, "b.tflite").entry == "b.tflite"
    with pytest.raises(EdgeError, match="has no file"):
        choose(SOURCE, {}, files, "c.onnx")


def test_a_data_entry_that_is_no_text_names_no_file() -> None:
    assert choose(SOURCE, {"onnx": {"data": [["x"] * 9]}}, artifacts("model.onnx")).entry == "model.onnx"


def test_pickles_are_refused_with_the_ways_out_named() -> None:
    with pytest.raises(EdgeError) as caught:
        choose(SOURCE, {"sklearn": {}, "python_function": {}}, artifacts("MLmodel", "model.pkl"))
    assert caught.value.code == "artifact.not-a-model"
    assert "sklearn" in caught.value.detail
    assert "--script" in caught.value.hint
    with pytest.raises(EdgeError) as caught:
        choose_for_script(SOURCE, artifacts("model.pkl"), "score.py", False)
    assert caught.value.code == "model.pickle-refused"
    assert choose_for_script(SOURCE, artifacts("model.pkl"), "score.py", True).entry == "score.py"
    with pytest.raises(EdgeError, match="of its own"):
        choose_for_script(SOURCE, artifacts("score.py"), "score.py", False)


def test_tensors_are_read_and_columns_of_a_table_are_not_taken_for_tensors() -> None:
    tensor = '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 4]}, "name": "x"}]'
    column = '[{"type": "double", "name": "age", "required": true}]'
    signature = read_signature(SOURCE, {"signature": {"inputs": tensor, "outputs": column}})
    assert signature.inputs == (X,)
    assert signature.outputs is None
    for broken in (
        "{",
        '[{"type": "tensor"}]',
        '[{"type": "tensor", "tensor-spec": {"dtype": "?", "shape": []}}]',
        "[1]",
    ):
        with pytest.raises(EdgeError) as caught:
            read_signature(SOURCE, {"signature": {"inputs": broken}})
        assert caught.value.code == "artifact.document-invalid"


@pytest.mark.parametrize(
    "stated",
    [
        TensorSpec("x", "FP32", (-1, 5)),
        TensorSpec("x", "FP64", (-1, 4)),
        TensorSpec("x", "FP32", (-1, 4, 1)),
        TensorSpec("z", "FP32", (-1, 4)),
    ],
)
def test_a_signature_that_contradicts_the_model_is_refused(stated: TensorSpec) -> None:
    with pytest.raises(EdgeError, match="the registry states"):
        compare(SOURCE, "inputs", (stated,), (X,))


def test_a_signature_may_leave_a_dimension_or_the_only_name_out() -> None:
    compare(SOURCE, "inputs", (TensorSpec("x", "FP32", (1, 4)),), (X,))
    compare(SOURCE, "inputs", (TensorSpec("", "FP32", (-1, 4)),), (X,))
    compare(SOURCE, "inputs", None, (X,))


def test_names_and_tags_get_our_letters_and_mlflows_own_tags_stay_behind() -> None:
    source = replace(SOURCE, tags={"team": "a", "reviewed by/1st": "b", "mlflow.x": "c", "long": "d" * 999})
    assert tags_of(source) == {"team": "a", "reviewed_by._1st": "b", "long": "d" * 256}
    assert name_for(source, "") == "digits-eu"
    assert name_for(source, "mine") == "mine"


def test_what_does_not_fit_into_properties_is_counted() -> None:
    source = replace(SOURCE, params={f"p{number}": "1" for number in range(100)}, metrics={"accuracy": "0.9"})
    properties = properties_of(source, {"onnx": {}})
    assert len(properties) == MLFLOW_PROPERTIES_MAX
    assert properties["metric.accuracy"] == "0.9"
    kept = sum(key.startswith("param.") for key in properties)
    assert int(properties["mlflow.left_out"]) == 100 - kept


def test_lineage_has_run_commit_and_data() -> None:
    source = replace(SOURCE, run_id="r", run_tags={"mlflow.source.git.commit": "c"}, dataset="scans@1")
    assert lineage_of(source) == {"run_id": "r", "git_commit": "c", "dataset": "scans@1"}


def test_the_description_survives_odd_texts() -> None:
    odd = 'quote " back \\ line \n del \x7f emoji \U0001f6a2'
    about: dict[str, Any] = {"description": odd, "tags": {"k": odd}, "properties": {}, "lineage": {}, "inputs": (X,)}
    text = description_file("m", Choice("script", "score.py", ()), about, ["a b.npz"], True)
    read = tomllib.loads(text)
    assert read["model"]["description"] == odd
    assert read["model"]["tags"] == {"k": odd}
    assert read["members"]["m"]["inputs"] == [X.to_json()]
    assert read["serving"] == {"allow_pickle": True}


class _Lying:
    """An artifact store that lists and sends what it was told."""

    def __init__(self, listed: list[Any], sent: bytes) -> None:
        self.listed, self.sent = listed, sent

    def list_artifacts(self, path: str | None) -> list[Any]:
        return self.listed

    def download_artifacts(self, path: str, folder: str) -> str:
        target = Path(folder, path)
        target.write_bytes(self.sent)
        return str(target)


class _Listed:
    def __init__(self, path: str, size: int, is_dir: bool = False) -> None:
        self.path, self.file_size, self.is_dir = path, size, is_dir


def lying_reader(monkeypatch: pytest.MonkeyPatch, listed: list[Any], sent: bytes = b"") -> MlflowReader:
    reader = MlflowReader("http://127.0.0.1:9")
    store = _Lying(listed, sent)
    monkeypatch.setattr(reader, "_repository", lambda source: store)
    return reader


@pytest.mark.parametrize("path", ["../up", "/etc/passwd", "a/../../b", "deep/er", "a\\..\\b", ""])
def test_a_listed_path_that_leaves_its_folder_is_refused(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    reader = lying_reader(monkeypatch, [_Listed(path, 1)])
    with pytest.raises(EdgeError) as caught:
        reader.artifacts(SOURCE)
    assert caught.value.code == "artifact.path-unsafe"


def test_folders_without_end_or_files_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    class Branching:
        def list_artifacts(self, path: str | None = None) -> list[Any]:
            asked.append(path)
            if path and path.count("/") > 8:
                return []
            return [_Listed(f"{path}/{place}" if path else str(place), 0, is_dir=True) for place in range(10)]

    reader = lying_reader(monkeypatch, [])
    monkeypatch.setattr(reader, "_repository", lambda source: Branching())
    with pytest.raises(EdgeError, match="more than"):
        reader.artifacts(SOURCE)
    assert len(asked) < 100_000


def test_a_folder_that_lists_itself_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = lying_reader(monkeypatch, [])
    store = _Deep()
    monkeypatch.setattr(reader, "_repository", lambda source: store)
    with pytest.raises(EdgeError, match="is deeper than"):
        reader.artifacts(SOURCE)


class _Deep:
    def list_artifacts(self, path: str | None) -> list[Any]:
        return [_Listed(f"{path}/d" if path else "d", 0, is_dir=True)]


@pytest.mark.parametrize("announced", [3, 5])
def test_a_file_of_another_size_than_announced_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, announced: int
) -> None:
    reader = lying_reader(monkeypatch, [], b"four")
    with pytest.raises(EdgeError) as caught:
        reader.download(SOURCE, [Artifact("a", announced)], tmp_path, 100)
    assert caught.value.code == "artifact.size-mismatch"


def test_a_file_that_never_ends_is_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("packager.mlflowread.MLFLOW_OVERRUN_BYTES_MAX", 1000)
    reader = lying_reader(monkeypatch, [], b"x" * 100_000)
    with pytest.raises(EdgeError) as caught:
        reader.download(SOURCE, [Artifact("a", 10)], tmp_path, 100)
    assert caught.value.code == "artifact.size-mismatch"
    assert not list(tmp_path.iterdir())


class _AzureStore:
    """Lists and downloads as Azure ML's plugin does: paths from the top of the run, and no sizes."""

    class artifacts:  # noqa: N801  # the plugin's attribute
        """Holds the version's folder in the run."""

        path = "model"

    files = ("model/MLmodel", "model/data/model.onnx", "model2/other.onnx")

    def list_artifacts(self, path: str) -> list[Any]:
        below = [file for file in self.files if file.startswith(path)]
        depth = path.count("/") + 2
        rows = {"/".join(file.split("/")[:depth]): file.count("/") + 1 > depth for file in below}
        return [_Listed(name, -1, is_dir) for name, is_dir in rows.items()]

    def download_artifacts(self, path: str, folder: str) -> str:
        target = Path(folder, self.artifacts.path, path)
        target.parent.mkdir(parents=True)
        target.write_text(path)
        return str(target)


def test_azure_mls_lists_from_the_top_of_the_run_and_without_sizes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reader = lying_reader(monkeypatch, [])
    store = _AzureStore()
    monkeypatch.setattr(reader, "_repository", lambda source: store)
    found = reader.artifacts(SOURCE)
    assert found == (Artifact("MLmodel", None), Artifact("data/model.onnx", None))
    reader.download(SOURCE, found, tmp_path, 100)
    assert (tmp_path / "data/model.onnx").read_text() == "data/model.onnx"
    with pytest.raises(EdgeError, match="were allowed"):
        reader.download(SOURCE, found, tmp_path, 10)


def test_more_than_the_user_allows_is_not_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader = lying_reader(monkeypatch, [], b"four")
    with pytest.raises(EdgeError, match="more than 3 bytes"):
        reader.download(SOURCE, [Artifact("a", 4)], tmp_path, 3)
    assert not (tmp_path / "a").exists()
