"""Slots as the agent's store makes them, with tiny models inside, for tests of serving."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_contract.digest import Digest
from edge_contract.runtime import GOLDEN_PATH, RUNTIME_PATH, Golden, Member, Runtime

Array = NDArray[Any]


def write_slot(
    folder: Path,
    members: Sequence[Member],
    files: Mapping[str, bytes],
    *,
    version: int = 1,
    golden: Mapping[str, Array] | None = None,
    site: Mapping[str, bytes] | None = None,
    **runtime: Any,
) -> tuple[Digest, Path]:
    """Write a complete slot.

    Args:
        folder: Where slots are.
        members: Models of the bundle.
        files: Contents by path in the bundle.
        version: Model version; also what tells the made-up manifest digests apart.
        golden: Tensors by name (`<member>/input/<name>`, `<member>/output/<name>`), or none.
        site: Unpacked dependencies by path.
        runtime: More fields of the runtime descriptor.

    Returns:
        The manifest's digest and the slot's folder.
    """
    descriptor = Runtime(
        "digits", version, tuple(members), golden=None if golden is None else Golden(), **runtime
    ).to_bytes()
    manifest = Digest.of(descriptor + b"".join(files[path] for path in sorted(files)))
    slot = folder / manifest.hex
    contents = {f"files/{path}": data for path, data in files.items()}
    contents |= {f"site/{path}": data for path, data in (site or {}).items()}
    contents[f"files/{RUNTIME_PATH}"] = descriptor
    if golden is not None:
        contents[f"files/{GOLDEN_PATH}"] = safetensors(golden)
    for path, data in contents.items():
        (slot / path).parent.mkdir(parents=True, exist_ok=True)
        (slot / path).write_bytes(data)
    label = {"manifest": str(manifest), "model": "digits", "version": version}
    (slot / "slot.json").write_text(json.dumps(label), encoding="utf-8")
    return manifest, slot


def safetensors(tensors: Mapping[str, Array]) -> bytes:
    """A safetensors file, written from its description, so that the reader is not tested against its like."""
    names = {"float32": "F32", "float64": "F64", "int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}
    header: dict[str, Any] = {}
    body = b""
    for name, array in tensors.items():
        data = array.tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        body += data
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + body


def onnx_model(
    build: Callable[[Any], tuple[list[Any], list[Any], list[Any]]], initializers: Mapping[str, Array] | None = None
) -> bytes:
    """An ONNX model (IR 8, opset 17).

    Args:
        build: Gets `onnx.helper` and gives nodes, inputs and outputs.
        initializers: Constants by name.
    """
    from onnx import helper, numpy_helper

    nodes, inputs, outputs = build(helper)
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in (initializers or {}).items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializer=constants)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    data: bytes = model.SerializeToString()
    return data


def adder(constant: float, width: int = 4, batch: int | str = "batch") -> bytes:
    """An ONNX model `y = x + constant` for `x` of FP32 [batch, width]."""

    def build(helper: Any) -> tuple[list[Any], list[Any], list[Any]]:
        shape = [batch, width]
        node = helper.make_node("Add", ["x", "c"], ["y"])
        return (
            [node],
            [helper.make_tensor_value_info("x", 1, shape)],
            [helper.make_tensor_value_info("y", 1, shape)],
        )

    return onnx_model(build, {"c": np.array(constant, dtype=np.float32)})


def adder_golden(constant: float, width: int = 4, rows: int = 3, member: str = "digits") -> dict[str, Array]:
    """Golden vectors for `adder`."""
    x = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    return {f"{member}/input/x": x, f"{member}/output/y": x + np.float32(constant)}


def adder_slot(
    folder: Path, constant: float, *, version: int = 1, golden: bool = True, **runtime: Any
) -> tuple[Digest, Path]:
    """A slot with one `adder` called `digits`."""
    return write_slot(
        folder,
        [Member("digits", "onnx", "model.onnx")],
        {"model.onnx": adder(constant)},
        version=version,
        golden=adder_golden(constant) if golden else None,
        **runtime,
    )
