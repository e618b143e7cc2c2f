"""A worker's door and service in this process, on an event loop in its own thread, with engines made for the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_agent.worker.access import TcpAccess
from edge_agent.worker.bundle import LoadedBundle, LoadedMember
from edge_agent.worker.door import Door
from edge_agent.worker.engines import Engine, Place
from edge_agent.worker.frames import FrameModels
from edge_agent.worker.limits import WorkerLimits
from edge_agent.worker.metrics import Metrics
from edge_agent.worker.sampler import Sampler
from edge_agent.worker.service import Service
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject
from edge_contract.pipeline import Batching
from edge_contract.runtime import Member, Runtime
from edge_contract.tensors import TensorSpec

T = TypeVar("T")
Array = NDArray[Any]
MANIFEST = Digest.of(b"bundle")
_DEADLINE_S = 20.0


class Adder:
    """An engine that adds a constant to `x`, and waits at a gate when it has one."""

    platform = "test"
    is_concurrent = True

    def __init__(self, constant: float = 1.0, gate: threading.Event | None = None) -> None:
        """Open, unless there is a gate."""
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "FP32", (-1, 2)),)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (-1, 2)),)
        self.constant = constant
        self.gate = gate
        self.is_quick = gate is None
        self.started = threading.Semaphore(0)

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute."""
        self.started.release()
        if self.gate is not None and not self.gate.wait(_DEADLINE_S):
            raise AssertionError("nobody opened the gate")
        return {"y": inputs["x"] + np.float32(self.constant)}


@dataclass
class Worker:
    """A running door and service.

    Attributes:
        path: Its unix socket.
        port: Its TCP port.
        samples: Records it collected.
    """

    loop: asyncio.AbstractEventLoop
    path: Path
    port: int
    samples: list[JsonObject] = field(default_factory=list)
    door: Door = field(init=False)
    sampler: Sampler = field(init=False)
    metrics: Metrics = field(init=False)
    service: Service = field(init=False)

    def call(self, function: Callable[[], T]) -> T:
        """Call something on the worker's event loop."""

        async def wrapped() -> T:
            return function()

        return self.wait(wrapped())

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the worker's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(_DEADLINE_S)

    def connect(self) -> socket.socket:
        """A client's connection to the unix socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(_DEADLINE_S)
        sock.connect(str(self.path))
        return sock

    def connect_tcp(self) -> socket.socket:
        """A client's connection to the TCP port."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=_DEADLINE_S)


@contextlib.contextmanager
def running_worker(
    folder: Path,
    engines: Mapping[str, Engine] | Engine,
    limits: WorkerLimits | None = None,
    name: str = "w",
    *,
    allow_nonfinite: bool = False,
    batching: Batching | None = None,
    tcp_token: str = "",
) -> Iterator[Worker]:
    """A worker in this process.

    Args:
        folder: Where its unix socket goes.
        engines: By member name; one alone is called `m`.
        limits: Bounds.
        name: Of the socket's file.
        allow_nonfinite: Whether outputs may be NaN.
        batching: How requests are computed together.
        tcp_token: What clients over TCP have to know; empty for nothing.
    """
    members = engines if isinstance(engines, Mapping) else {"m": engines}
    runtime = Runtime("digits", 3, tuple(Member(member, "onnx", "model.onnx") for member in members))
    loaded = {
        member: LoadedMember(member, engine, allow_nonfinite, run_us=1.0, input_bytes=8, batching=batching)
        for member, engine in members.items()
    }
    bundle = LoadedBundle(MANIFEST, runtime, loaded, Place(folder, folder))
    limits = limits or WorkerLimits()
    path = folder / f"{name}.sock"
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_INET) as tcp:
        unix.bind(str(path))
        tcp.bind(("127.0.0.1", 0))
        for sock in (unix, tcp):
            sock.listen(64)
            sock.setblocking(False)
        worker = Worker(loop, path, tcp.getsockname()[1])

        def start() -> None:
            worker.metrics = Metrics(members)
            worker.sampler = Sampler("line", "digits", 3, MANIFEST, worker.samples.extend)
            service = worker.service = Service("line", bundle, worker.metrics, worker.sampler, limits)
            frames = FrameModels("line", bundle, service.compute, limits)
            worker.door = Door(
                service.handle, service.refuse, limits, service.common_headers, frames, access=TcpAccess(tcp_token)
            )
            worker.door.listen("unix", unix)
            worker.door.listen("tcp", tcp)
            worker.door.open()

        worker.call(start)
        try:
            yield worker
        finally:
            worker.call(worker.door.close)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_DEADLINE_S)
            loop.close()


@dataclass(frozen=True)
class Reply:
    """An HTTP answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


def read_reply(sock: socket.socket, *, has_body: bool = True) -> Reply | None:
    """Read one answer byte by byte, so that nothing of the next one is taken; none at the end of the stream."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        try:
            byte = sock.recv(1)
        except ConnectionResetError:
            byte = b""
        if not byte:
            assert not head, f"the connection ended within {head!r}"
            return None
        head += byte
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1])
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
    if status == 100:
        return read_reply(sock, has_body=has_body)
    length = int(headers["content-length"]) if has_body else 0
    body = b""
    while len(body) < length:
        data = sock.recv(length - len(body))
        assert data, "the connection ended within a body"
        body += data
    return Reply(status, headers, body)


def infer_bytes(value: float = 1.0, *, headers: str = "", model: str = "m", rows: int = 1) -> bytes:
    """An inference request with `x` all of one value."""
    data = ",".join([f"{value}"] * (2 * rows))
    body = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{rows},2],"data":[{data}]}}]}}'
    return (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: device\r\nContent-Length: {len(body)}\r\n{headers}\r\n{body}"
    ).encode()
