"""Trains the example's model and writes `model.onnx` and `golden.npz` beside this file."""

import struct
import zlib
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).resolve().parent


def png_of(pixels: np.ndarray) -> bytes:
    """An image file of 8-bit grey pixels, as a camera might send it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def main() -> None:
    """Train, export, keep a few image files as golden inputs; the build asks the pipeline for the answers."""
    images, labels = load_digits(return_X_y=True)
    grey = np.round(images * (255 / 16)).astype(np.uint8)
    model = LogisticRegression(max_iter=200).fit(grey[:1200] / 255, labels[:1200])
    weights, bias = model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["pixels", "weights", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
        ],
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    onnx = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (HERE / "model.onnx").write_bytes(onnx.SerializeToString(deterministic=True))
    files = [png_of(pixels.reshape(8, 8)) for pixels in grey[1200:1208]]
    np.savez(HERE / "golden.npz", image=np.array(files))
    (HERE / "digit.png").write_bytes(files[0])
    print(f"right on {model.score(grey[1200:] / 255, labels[1200:]):.1%} of the digits it has not seen")


if __name__ == "__main__":
    main()
