"""`edge-agent infer` against a worker in this process: arrays, files, JSON, and what it says about latency."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edge_agent.cli import main
from edge_contract.tensors import TensorSpec
from tests.unit.worker.frame_peer import Mirror
from tests.unit.worker.server import MANIFEST, Adder, Worker, running_worker

X = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)


def _infer(worker: Worker, *inputs: object, more: Sequence[object] = (), text: str | None = None) -> Result:
    module = worker.path.stem
    given = [word for source in inputs for word in ("--input", str(source))]
    words = ["infer", "--run-dir", str(worker.path.parent), "--module", module, "--model", "m", *given]
    return CliRunner().invoke(main, [*words, *map(str, more)], input=text)


def _found(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.output)
    return value


def _refused(result: Result, code: str) -> str:
    assert result.exit_code != 0
    assert code in result.output, result.output
    return result.output


@pytest.mark.parametrize("more", [(), ("--http",)])
def test_an_array_goes_in_and_one_comes_out(tmp_path: Path, more: tuple[str, ...]) -> None:
    np.save(tmp_path / "x.npy", X)
    with running_worker(tmp_path, Adder()) as worker:
        found = _found(_infer(worker, tmp_path / "x.npy", more=["--json", "--output", tmp_path / "y.npz", *more]))
        assert found["outputs"]["y"] == {"datatype": "FP32", "shape": [2, 2], "data": [2.0, 3.0, 4.0, 5.0]}
        assert found["manifest"] == str(MANIFEST)
        with np.load(tmp_path / "y.npz") as written:
            assert written["y"].tolist() == (X + 1).tolist()
            assert written["y"].dtype == np.float32
        assert _infer(worker, tmp_path / "x.npy", more=["--output", tmp_path / "y.npy"]).exit_code == 0
        assert np.load(tmp_path / "y.npy").tolist() == (X + 1).tolist()


def test_several_inputs_by_name_from_files_of_every_kind(tmp_path: Path) -> None:
    engine = Mirror(
        TensorSpec("image", "BYTES", (1,)), TensorSpec("limit", "FP32", ()), TensorSpec("size", "INT64", (2,))
    )
    image = bytes(range(256))
    (tmp_path / "cat.jpg").write_bytes(image)
    (tmp_path / "limit.json").write_text("0.5")
    np.savez(tmp_path / "rest.npz", size=np.array([3, 4]))
    with running_worker(tmp_path, engine) as worker:
        found = _found(
            _infer(
                worker,
                f"image={tmp_path / 'cat.jpg'}",
                f"limit={tmp_path / 'limit.json'}",
                tmp_path / "rest.npz",
                more=["--json"],
            )
        )["outputs"]
        assert found["out_limit"]["data"] == [0.5]
        assert found["out_size"]["data"] == [3, 4]
        assert found["out_image"]["data"] == [image.decode("utf-8", "replace")]


def test_raw_numbers_fill_the_free_dimension(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(X.tobytes())
    (tmp_path / "odd.bin").write_bytes(b"123")
    with running_worker(tmp_path, Adder()) as worker:
        found = _found(_infer(worker, tmp_path / "x.bin", more=["--json"]))
        assert found["outputs"]["y"]["shape"] == [2, 2]
        assert "an array (.npy)" in _refused(_infer(worker, tmp_path / "odd.bin"), "model.input-invalid")


def test_repeating_sums_up_what_it_took(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with running_worker(tmp_path, Adder()) as worker:
        latency = _found(_infer(worker, tmp_path / "x.npy", more=["--json", "--repeat", 20]))["latency"]
        assert latency["count"] == 20
        assert 0 < latency["p50_us"] <= latency["p90_us"] <= latency["p99_us"] <= latency["max_us"]
        assert latency["per_s"] > 0
        shown = _infer(worker, "-", more=["--repeat", 3], text="[[1, 2]]")
        assert shown.exit_code == 0
        assert "y  FP32[1, 2]  [2.0, 3.0]" in shown.output
        assert "p99 µs" in shown.output
        assert worker.call(lambda: worker.metrics.requests) == 23


def test_a_long_output_is_cut_in_the_table_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((500, 2), dtype=np.float32))
    with running_worker(tmp_path, Adder()) as worker:
        assert "... 1000 in all]" in _infer(worker, tmp_path / "x.npy").output


@pytest.mark.parametrize(
    ("sources", "code"),
    [
        (["none.npy"], "config.invalid"),
        (["none.jpg"], "config.invalid"),
        (["broken.npy"], "config.invalid"),
        (["pickle.npy"], "config.invalid"),
        (["x.npy", "x.npy"], "config.invalid"),
        (["z=x.npy"], "model.input-invalid"),
        (["wide.npy"], "model.input-invalid"),
        (["broken.json"], "model.input-invalid"),
    ],
)
def test_what_is_wrong_with_an_input_is_told(tmp_path: Path, sources: list[str], code: str) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "wide.npy", np.zeros((1, 3), dtype=np.float32))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "broken.json").write_text("[1,")
    inputs = [source.replace("=", f"={tmp_path}/") if "=" in source else tmp_path / source for source in sources]
    with running_worker(tmp_path, Adder()) as worker:
        _refused(_infer(worker, *inputs), code)


def test_an_output_file_of_another_kind_is_refused_first(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker:
        shown = _infer(worker, "-", more=["--output", tmp_path / "y.csv"], text="[[1, 2]]")
        _refused(shown, "config.invalid")
        assert worker.call(lambda: worker.metrics.requests) == 0
