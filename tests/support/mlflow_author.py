"""Logs and registers models as a data scientist would. Run by the MLflow server's own interpreter, never imported."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import mlflow  # noqa: E402
import mlflow.onnx  # noqa: E402
import mlflow.sklearn  # noqa: E402
import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnx.helper as oh  # noqa: E402
from mlflow.models import ModelSignature, infer_signature  # noqa: E402
from mlflow.types import Schema, TensorSpec  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402


def linear(rows: int = 4) -> onnx.ModelProto:
    """`y = x @ w`, with as many input columns as were asked for."""
    weights = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    graph = oh.make_graph(
        [oh.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", rows])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9)


def stated(columns: int) -> ModelSignature:
    """What MLmodel says of it."""
    return ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, columns), name="x")]),
        Schema([TensorSpec(np.dtype("float32"), (-1, 2), name="y")]),
    )


def main(url: str, tflite: str) -> None:
    """Register `Digits (EU)` 1 and 2, `lying`, `forest`, `light` and `twins`."""
    mlflow.set_tracking_uri(url)
    client = mlflow.MlflowClient()
    for columns in (4, 600):
        with mlflow.start_run(tags={"mlflow.source.git.commit": "4b825dc642cb6eb9a060e54bf8d69288fbee4904"}):
            mlflow.log_params({"depth": 3, "optimizer/name": "adam"})
            mlflow.log_metric("accuracy", columns / 1000)
            data = mlflow.data.from_numpy(np.ones((2, columns)), name="scans")
            mlflow.log_input(data)
            mlflow.onnx.log_model(
                linear(columns),
                name="model",
                signature=stated(columns),
                pip_requirements=["onnx"],
                save_as_external_data=columns == 600,
                registered_model_name="Digits (EU)",
            )
    client.set_registered_model_alias("Digits (EU)", "champion", "1")
    client.set_registered_model_tag("Digits (EU)", "team", "vision")
    client.set_model_version_tag("Digits (EU)", "1", "reviewed by/1st", "nobody in particular")
    client.update_model_version("Digits (EU)", "1", "reads digits")
    with warnings.catch_warnings():
        client.transition_model_version_stage("Digits (EU)", "1", "Production")
    with mlflow.start_run():
        mlflow.onnx.log_model(
            linear(4), name="m", signature=stated(5), pip_requirements=["onnx"], registered_model_name="lying"
        )
    with mlflow.start_run():
        x = np.array([[0.0], [1.0]])
        forest = LogisticRegression().fit(x, [0, 1])
        mlflow.sklearn.log_model(
            forest,
            name="m",
            signature=infer_signature(x, forest.predict(x)),
            pip_requirements=["scikit-learn"],
            serialization_format="cloudpickle",
            registered_model_name="forest",
        )
    with tempfile.TemporaryDirectory() as temporary, mlflow.start_run() as run:
        Path(temporary, "light.tflite").write_bytes(Path(tflite).read_bytes())
        mlflow.log_artifacts(temporary, "light")
        mlflow.log_artifact(tflite, "twins/a")
        mlflow.log_artifacts(temporary, "twins/b")
        for name in ("light", "twins"):
            client.create_registered_model(name)
            client.create_model_version(name, f"{run.info.artifact_uri}/{name}", run.info.run_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
