"""Trains the example's model and writes `model.onnx` and `golden.npz` beside this file."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Train, export, keep a few answers as golden vectors."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    model = LogisticRegression(max_iter=200).fit(images[:1200], labels[:1200])
    weights, bias = model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["image", "weights", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
        ],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    # IR 8 and operator set 17 load on every runtime of the last years.
    onnx = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (HERE / "model.onnx").write_bytes(onnx.SerializeToString(deterministic=True))
    unseen = images[1200:1216]
    np.savez(HERE / "golden.npz", image=unseen, scores=model.predict_proba(unseen).astype(np.float32))
    print(f"right on {model.score(images[1200:], labels[1200:]):.1%} of the digits it has not seen")


if __name__ == "__main__":
    main()
