"""The least cloud that a real agent updates from: signed metadata, blobs and an enrolment, from memory over HTTP.

Every version of the one model adds its number to its input, and needs each of its layers for that, so that a mixture
of two versions answers with neither's numbers. One file of the newest can be made by a delta from the one before.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from edge_agent.platforms import detect_platform
from edge_contract.delta import Delta
from edge_contract.deployment import Artifact, Assignment, bundle_repository
from edge_contract.digest import Digest
from edge_contract.manifest import (
    CODE_RAW,
    CODE_TAR,
    CONFIG_TYPE,
    FILEPATH,
    ROLE,
    WEIGHT_CONFIG_RAW,
    WEIGHT_RAW,
    Descriptor,
    Manifest,
    Role,
)
from edge_contract.runtime import GOLDEN_PATH, RUNTIME_PATH, Golden, Member, Probation, Runtime
from edge_contract.tensors import TensorSpec
from packager.delta.encode import encode
from packager.delta.formats import Tensor
from tests.support.certs import Authority
from tests.support.net import LOOPBACK, free_port
from tests.support.rawhttp import Asked, RawServer, answer, blobs, raw_server
from tests.support.slots import safetensors
from tests.support.tufrepo import TwoRepositories, path_of

DEVICE = "crash-1"
MODEL = "adder"
WEIGHT_BYTES = 300_000  # more than one chunk of a download
TABLE_BYTES = 1_048_576  # four chunks of a tensor, with a checkpoint behind each: see names/sitecustomize.py
_WIDTH = 2

_SCRIPT = """
import pathlib
import zlib
import helper
import dependency
HERE = pathlib.Path(__file__).parent
def init():
    global offset
    weights = (HERE / "weights.bin").read_bytes()
    assert len(set(weights)) == 1
    assert zlib.crc32((HERE / "table.bin").read_bytes()) == TABLE
    offset = weights[0] + helper.OFFSET + dependency.OFFSET - 2 * NUMBER
    assert offset == NUMBER
def run(data):
    return {"y": data["x"] + offset}
"""


@dataclass(frozen=True)
class Shipment:
    """One published version.

    Attributes:
        version: Its number, and what the model adds.
        assignment: What the director says of it.
        blobs: Every blob of it, the manifest too.
        space_bytes: Length of all blobs together.
    """

    version: int
    assignment: Assignment
    blobs: frozenset[Digest]
    space_bytes: int

    @property
    def manifest(self) -> Digest:
        """Digest of the bundle."""
        return self.assignment.manifest


class Cloud:
    """Metadata and blobs. Set up by one thread; then only read, by the server's threads."""

    def __init__(self, folder: Path) -> None:
        """Use a folder for the authority of device certificates."""
        self.contents: dict[Digest, bytes] = {}
        self._authority = Authority(folder)
        self._repositories = TwoRepositories(DEVICE, int(time.time() * 1000))

    def publish(self, version: int) -> Shipment:
        """Make a bundle known; nobody is assigned to it yet."""
        before = set(self.contents)
        space = TensorSpec("x", "FP32", (-1, _WIDTH))
        runtime = Runtime(
            MODEL,
            version,
            (Member(MODEL, "script", "score.py", (space,), (TensorSpec("y", "FP32", (-1, _WIDTH)),)),),
            golden=Golden(),
            probation=Probation(window_ms=0),
        )
        x = np.arange(3 * _WIDTH, dtype=np.float32).reshape(3, _WIDTH)
        golden = safetensors({f"{MODEL}/input/x": x, f"{MODEL}/output/y": x + np.float32(version)})
        module = f"OFFSET = {version}\n".encode()
        layers = (
            self._layer(WEIGHT_CONFIG_RAW, runtime.to_bytes(), Role.RUNTIME, RUNTIME_PATH),
            self._layer(WEIGHT_RAW, bytes([version]) * WEIGHT_BYTES, Role.MODEL, "weights.bin"),
            self._layer(WEIGHT_RAW, _table(version), Role.MODEL, "table.bin"),
            self._layer(CODE_RAW, _script(version).encode(), Role.CODE, "score.py"),
            self._layer(WEIGHT_CONFIG_RAW, golden, Role.GOLDEN, GOLDEN_PATH),
            self._layer(CODE_TAR, _tar({"__init__.py": module, "note.txt": b"same\n"}), Role.CODE, "helper"),
            self._layer(CODE_RAW, _wheel({"dependency/__init__.py": module}), Role.WHEEL, "wheels/dependency.whl"),
        )
        manifest = Manifest(self._layer(CONFIG_TYPE, b"{}", "", ""), layers)
        data = manifest.to_bytes()
        digest = self._put(data)
        artifact = Artifact(MODEL, version, detect_platform(), version, bundle_repository(MODEL))
        assignment = Assignment(MODEL, f"deployment-{version}", digest, len(data), artifact)
        image = self._repositories.image
        image.set_target(path_of(assignment), len(data), {"sha256": digest.hex}, artifact.to_json())
        image.publish()
        own = frozenset({digest, *(blob.digest for blob in manifest.blobs)})
        return Shipment(version, assignment, own, sum(len(self.contents[item]) for item in own - before))

    def with_delta(self, shipment: Shipment, base: int) -> Shipment:
        """The same version, for which metadata also list a delta of its table from another version's."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("base", "new", "delta")]
            for file, version in zip(files, (base, shipment.version), strict=False):
                file.write_bytes(_table(version))
            tensor = Tensor("table", "f32", (TABLE_BYTES // 4,), 0, TABLE_BYTES)
            made = encode(*files, base_tensors=(tensor,), new_tensors=(tensor,))
            data = files[2].read_bytes()
        old, new = (Digest.of(_table(version)) for version in (base, shipment.version))
        delta = Delta(old, TABLE_BYTES, new, TABLE_BYTES, self._put(data), len(data), made.peak_bytes)
        return replace(shipment, assignment=replace(shipment.assignment, deltas=(delta,)))

    def assign(self, shipment: Shipment) -> None:
        """Have the device run this version from now on."""
        self._repositories.assign(shipment.assignment)

    def __call__(self, asked: Asked) -> Iterable[bytes]:
        """Answer one request; whoever asks may."""
        folder, _, name = asked.path.rpartition("/")
        repository = {"image": self._repositories.image, DEVICE: self._repositories.director}
        if asked.path == "/api/v1/enrol":
            return [answer(201, self._enrol(asked))]
        if folder.startswith("/tuf/") and (files := repository.get(folder.rpartition("/")[2])) is not None:
            data = files.files.get(name)
            return [answer(404, b"{}") if data is None else answer(200, data)]
        data = self.contents.get(_digest(name))
        return [answer(404, b"{}")] if data is None else blobs(data)(asked)

    def _enrol(self, asked: Asked) -> bytes:
        request = json.loads(asked.body)["csr_pem"].encode()
        document = {
            "device": DEVICE,
            "certificate_pem": self._authority.sign_request(request, DEVICE),
            "ca_pem": self._authority.pem,
            "mqtt": {"host": LOOPBACK, "port": free_port(), "tls": False},  # nobody listens there
            "image_root": self._repositories.image.files["1.root.json"].decode(),
            "director_root": self._repositories.director.files["1.root.json"].decode(),
        }
        return json.dumps(document).encode()

    def _layer(self, media_type: str, data: bytes, role: str, path: str) -> Descriptor:
        annotations = {ROLE: role, FILEPATH: path} if role else {}
        return Descriptor(media_type, self._put(data), len(data), annotations)

    def _put(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        self.contents[digest] = data
        return digest


@contextmanager
def serving(cloud: Cloud) -> Iterator[RawServer]:
    """Serve it for the length of a block."""
    with raw_server(cloud, keep_alive=True) as server:
        yield server


def _script(version: int) -> str:
    return f"NUMBER = {version}\nTABLE = {zlib.crc32(_table(version))}\n{_SCRIPT}"


@cache
def _table(version: int) -> bytes:
    """A trained tensor, each version a small step from the same beginning: nothing repeats, each step is a delta."""
    count = TABLE_BYTES // 4
    start = np.random.default_rng(0).normal(0.0, 0.05, count)
    step = np.random.default_rng(version).normal(0.0, 1e-5, count)
    return (start + step).astype("<f4").tobytes()


def _digest(name: str) -> Digest:
    return Digest(name) if name.startswith("sha256:") and len(name) == 71 else Digest.of(b"nothing")


def _tar(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def _wheel(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return target.getvalue()
