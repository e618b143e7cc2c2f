"""Servers that others would use instead, each from PyPI in an environment of its own, in its documented minimum.

Every one runs ONNX Runtime with one thread and no spinning, like ours, behind the format that its documentation leads
to. Versions are pinned, so that figures of two runs compare.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks._bundles import Subject, post
from benchmarks._process import free_port

_START_S: Final = 90.0
_ORT: Final = "onnxruntime==1.32.0"
_SESSION: Final = """
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np, onnxruntime
_options = onnxruntime.SessionOptions()
_options.intra_op_num_threads = _options.inter_op_num_threads = 1
_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(os.environ["MODEL_FILE"], _options, providers=["CPUExecutionProvider"])
INPUT, OUTPUT = session.get_inputs()[0].name, session.get_outputs()[0].name
"""

_FASTAPI: Final = (
    _SESSION
    + """
from fastapi import FastAPI
from pydantic import BaseModel
import uvicorn

app = FastAPI()

class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]

class InferRequest(BaseModel):
    inputs: list[Tensor]

class InferResponse(BaseModel):
    outputs: list[Tensor]

@app.get("/ready")
def ready():
    return {}

# Not async: "if your function blocks, use a normal def", says the documentation.
@app.post("/infer")
def infer(request: InferRequest) -> InferResponse:
    given = request.inputs[0]
    array = np.asarray(given.data, dtype=np.float32).reshape(given.shape)
    found = session.run([OUTPUT], {INPUT: array})[0]
    output = Tensor(name=OUTPUT, shape=list(found.shape), datatype="FP32", data=found.ravel().tolist())
    return InferResponse(outputs=[output])

uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="error")
"""
)

_FASTAPI_TUNED: Final = (
    _SESSION
    + """
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
import uvicorn

app = FastAPI()

class Body(BaseModel):
    shape: list[int]
    data: list[float]

@app.get("/ready")
async def ready():
    return {}

@app.post("/predict")
async def predict(body: Body):
    array = np.asarray(body.data, dtype=np.float32).reshape(body.shape)
    return {"outputs": session.run([OUTPUT], {INPUT: array})[0].tolist()}

@app.post("/raw")
async def raw(request: Request):
    shape = [int(size) for size in request.headers["x-shape"].split(",")]
    array = np.frombuffer(await request.body(), np.float32).reshape(shape)
    return Response(session.run([OUTPUT], {INPUT: array})[0].tobytes(), media_type="application/octet-stream")

uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="error", loop="uvloop", http="httptools")
"""
)

_MLSERVER: Final = (
    _SESSION
    + """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Onnx(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        array = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        found = session.run([OUTPUT], {INPUT: array})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(OUTPUT, found)])
"""
)

_KSERVE: Final = (
    _SESSION
    + """
from kserve import InferOutput, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid

class Onnx(Model):
    def load(self):
        self.ready = True
        return True

    async def predict(self, payload, headers=None, response_headers=None):
        array = payload.inputs[0].as_numpy().astype(np.float32)
        found = session.run([OUTPUT], {INPUT: array})[0]
        output = InferOutput(name=OUTPUT, shape=list(found.shape), datatype="FP32", data=found.ravel().tolist())
        return InferResponse(model_name=self.name, infer_outputs=[output], response_id=generate_uuid())

model = Onnx("model")
model.load()
ModelServer(http_port=int(os.environ["PORT"]), workers=1, enable_grpc=False).start([model])
"""
)


@dataclass(frozen=True, slots=True)
class Peer:
    """One server to compare with.

    Attributes:
        name: Of the folder of its environment.
        packages: What is installed there.
        ready: Path that answers 200 once it serves.
        requests: Whole requests by format, for a subject.
        script: What it serves.
    """

    name: str
    packages: tuple[str, ...]
    ready: str
    requests: dict[str, Callable[[Subject], bytes]]
    script: str


def _oip_json(path: str) -> Callable[[Subject], bytes]:
    def make(subject: Subject) -> bytes:
        data = [round(float(value), 4) for value in subject.array.ravel()]
        tensor = {"name": subject.input.name, "shape": list(subject.array.shape), "datatype": "FP32", "data": data}
        return post(path, json.dumps({"inputs": [tensor]}).encode(), "application/json")

    return make


def _fastapi_json(path: str) -> Callable[[Subject], bytes]:
    def make(subject: Subject) -> bytes:
        data = [round(float(value), 4) for value in subject.array.ravel()]
        body = {"shape": list(subject.array.shape), "data": data}
        return post(path, json.dumps(body).encode(), "application/json")

    return make


def _fastapi_raw(subject: Subject) -> bytes:
    shape = ",".join(str(size) for size in subject.array.shape)
    return post("/raw", subject.array.tobytes(), "application/octet-stream", f"X-Shape: {shape}\r\n")


PEERS: Final = {
    "fastapi": Peer(
        "fastapi", ("fastapi==0.165.0", "uvicorn==0.54.0", _ORT), "/ready", {"json": _oip_json("/infer")}, _FASTAPI
    ),
    "fastapi-tuned": Peer(
        "fastapi-tuned",
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", _ORT),
        "/ready",
        {"json": _fastapi_json("/predict"), "raw": _fastapi_raw},
        _FASTAPI_TUNED,
    ),
    "mlserver": Peer(
        # A fresh 1.7.1 does not start its workers with a newer uvloop.
        "mlserver",
        ("mlserver==1.7.1", "uvloop<0.22", _ORT),
        "/v2/models/model/ready",
        {"json": _oip_json("/v2/models/model/infer")},
        _MLSERVER,
    ),
    "kserve": Peer(
        "kserve",
        ("kserve==0.21.0", _ORT),
        "/v2/models/model/ready",
        {"json": _oip_json("/v2/models/model/infer")},
        _KSERVE,
    ),
}


def install(peer: Peer, folder: Path) -> Path:
    """Make the peer's environment, unless it is there; gives its Python.

    Raises:
        subprocess.CalledProcessError: When it cannot be installed; the message is on standard error.
    """
    environment = folder / peer.name
    python, done = environment / "bin" / "python", environment / "done"
    if done.exists():
        return python
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    # Output goes to standard error: standard output is the benchmark's figures.
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)],
        [uv, "pip", "install", "--quiet", "--python", str(python), *peer.packages],
    ):
        subprocess.run(command, check=True, stdout=sys.stderr)
    done.touch()
    return python


@contextlib.contextmanager
def running(peer: Peer, python: Path, model: Path, folder: Path) -> Iterator[tuple[int, str]]:
    """The peer serving a model while the block runs; gives its process id and its address."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = os.environ | {"MODEL_FILE": str(model), "PORT": str(port), "OPENBLAS_NUM_THREADS": "1"}
    command = _command(peer, python, folder, port)
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(f"http://127.0.0.1:{port}{peer.ready}", process, folder / "log")
            yield process.pid, f"tcp:127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _command(peer: Peer, python: Path, folder: Path, port: int) -> list[str]:
    if peer.name == "mlserver":
        (folder / "served.py").write_text(peer.script, encoding="utf-8")
        model = {"name": "model", "implementation": "served.Onnx"}
        (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
        settings = {
            "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "host": "127.0.0.1",
            "parallel_workers": 0, "debug": False,
        }  # fmt: skip
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        return [str(python.parent / "mlserver"), "start", str(folder)]
    (folder / "served.py").write_text(peer.script, encoding="utf-8")
    return [str(python), "served.py"]


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # our own loopback address
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RuntimeError(f"the peer did not serve within {_START_S:.0f} s; its log ends with: {tail}")
