"""Small models, descriptions, and a registry's trust in memory, for tests of the packager."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cloud_registry.adapters.image_repo import TufImageRepository
from cloud_registry.adapters.tuf_keys import OnlineKeys
from cloud_registry.client import RegistryClient
from cloud_registry.ports import OnlineKeyWish
from edge_contract.errors import EdgeError
from packager.spec import Flags, Spec
from packager.specload import load_spec
from tests.unit.cloud_data.support import MemoryTable

WEIGHT = (np.arange(12).reshape(4, 3) / 7).astype(np.float32)


def model_proto(*, batch: str | int = "n", weight: NDArray[np.float32] = WEIGHT) -> onnx.ModelProto:
    """`y = x @ weight`, x FP32 [batch, 4], y FP32 [batch, 3]."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, weight.shape[1]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_model(folder: Path, name: str = "model.onnx", **options: Any) -> Path:
    """A small ONNX file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(model_proto(**options).SerializeToString(deterministic=True))
    return path


def write_external_model(folder: Path) -> Path:
    """The same model with its weights in `weights/part.bin` beside it."""
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    proto = model_proto()
    tensor = proto.graph.initializer[0]
    (folder / "weights" / "part.bin").write_bytes(b"\0" * 16 + tensor.raw_data)
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights/part.bin"), ("offset", "16"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


def write_golden(path: Path, *, rows: int = 5, error: float = 0.0, outputs: bool = True) -> Path:
    """Golden vectors for `model_proto`, with a wrong first number when `error` is not 0."""
    x = np.linspace(-1, 1, rows * 4, dtype=np.float32).reshape(rows, 4)
    tensors = {"x": x}
    if outputs:
        tensors["y"] = x @ WEIGHT
        tensors["y"][0, 0] += np.float32(error)
    with path.open("wb") as file:
        np.savez(file, **tensors)  # type: ignore[arg-type]  # numpy types the keywords after its own flag
    return path


def make_spec(folder: Path, *, golden: bool = True, **changes: Any) -> Spec:
    """The description of a small model, named `linear`, version 1."""
    model = write_model(folder)
    flags: dict[str, Any] = {"name": "linear", "version": 1, "members": (("", model),)}
    if golden:
        flags["golden"] = write_golden(folder / "golden.npz")
    return load_spec(None, Flags(**(flags | changes)))


def write_wheel(folder: Path, name: str, files: Mapping[str, str]) -> Path:
    """A wheel with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, text in files.items():
            archive.writestr(zipfile.ZipInfo(entry), text, zipfile.ZIP_DEFLATED)
    return path


class WallClock:
    """The system's time, for the registry's side; may be ahead by so many days."""

    days_ahead = 0

    def wall_ms(self) -> int:
        return int(time.time() * 1000) + self.days_ahead * 86_400_000


class TrustOfRegistry:
    """The trust routes of a registry, with the registry's own rules, without HTTP.

    Attributes:
        before_submit: Called before metadata is taken; may change what is published, or raise.
        after_submit: Called after metadata was taken; may raise, like an answer that is lost.
    """

    def __init__(self, folder: Path) -> None:
        self.clock = WallClock()
        self.repository = TufImageRepository(MemoryTable(), OnlineKeys(folder / "online"), self.clock)
        self.before_submit: Callable[[], None] = lambda: None
        self.after_submit: Callable[[], None] = lambda: None
        self.submissions = 0

    def trust(self) -> dict[str, Any]:
        return self.repository.trust_summary()

    def submit_roots(self, image: str | None = None, director: str | None = None) -> None:
        self.repository.submit_roots(_bytes(image), _bytes(director))

    def submit_metadata(self, files: Mapping[str, str]) -> None:
        self.before_submit()
        self.repository.submit_metadata({name: text.encode() for name, text in files.items()})
        self.submissions += 1
        self.after_submit()

    def tuf_file(self, path: str, bytes_max: int = 2**26) -> bytes:
        repository, _, name = path.partition("/")
        data = self.repository.read(name) if repository == "image" else self._director_root(name)
        if len(data) > bytes_max:
            raise EdgeError("artifact.document-too-large", path)
        return data

    def _director_root(self, name: str) -> bytes:
        row = self.repository._table.get("director", name.partition("/")[2].removesuffix(".json"))
        if row is None:
            raise EdgeError("cloud.not-found", name)
        return row[1]

    def prepare_online_keys(self, keys: Sequence[Mapping[str, str]] = (), afresh: bool = False) -> dict[str, Any]:
        return self.repository.prepare_online_keys([OnlineKeyWish(**key) for key in keys], afresh)

    def as_client(self) -> RegistryClient:
        """The same object, typed as what the packager asks for."""
        return cast(RegistryClient, self)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()
