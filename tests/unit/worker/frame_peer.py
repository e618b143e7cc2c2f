"""A bare client of frames, byte by byte, and an engine that gives back what it gets."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_agent.frames import ANSWER, DESCRIBE, INFER, PREFIX, REQUEST
from edge_contract.tensors import TensorSpec
from tests.unit.worker.server import Array


class Mirror:
    """An engine whose outputs `out_<name>` are its inputs."""

    platform = "test"
    is_concurrent = True
    is_quick = True

    def __init__(self, *inputs: TensorSpec, declares_outputs: bool = True) -> None:
        """Take inputs of these kinds."""
        self.inputs = inputs
        mirrored = tuple(TensorSpec(f"out_{spec.name}", spec.datatype, spec.shape) for spec in inputs)
        self.outputs = mirrored if declares_outputs else ()

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute."""
        outputs = {f"out_{name}": np.array(array) for name, array in inputs.items()}
        return {name: outputs[name] for name in wanted or outputs}


@dataclass(frozen=True)
class FrameReply:
    """An answer as it came."""

    kind: int
    flags: int
    number: int
    version: int
    manifest: bytes
    payload: bytes

    @property
    def document(self) -> dict[str, Any]:
        """Its JSON."""
        value: dict[str, Any] = json.loads(self.payload)
        return value

    @property
    def code(self) -> str:
        """The code of an error."""
        return str(self.document["code"])


def frame(
    payload: bytes = b"",
    *,
    kind: int = INFER,
    prefix: int = PREFIX,
    flags: int = 0,
    id_bytes: int = 0,
    size: int | None = None,
    deadline_ms: int = 0,
    number: int = 1,
    key: int = 0,
    wanted: int = 0,
) -> bytes:
    """One request."""
    length = len(payload) if size is None else size
    return REQUEST.pack(prefix, kind, flags, id_bytes, length, deadline_ms, number, key, wanted) + payload


def receive(sock: socket.socket, count: int) -> bytes:
    """So many bytes, fewer at the end of the stream."""
    data = b""
    while len(data) < count:
        try:
            more = sock.recv(count - len(data))
        except ConnectionResetError:
            more = b""
        if not more:
            break
        data += more
    return data


def read_frame(sock: socket.socket) -> FrameReply | None:
    """The next answer, none at the end of the stream."""
    head = receive(sock, ANSWER.size)
    if not head:
        return None
    prefix, kind, flags, zero, size, spare, number, version, manifest = ANSWER.unpack(head)
    assert (prefix, zero, spare) == (PREFIX, 0, 0)
    payload = receive(sock, size)
    assert len(payload) == size
    return FrameReply(kind, flags, number, version, manifest, payload)


def key_of(sock: socket.socket, model: str = "m") -> int:
    """The key of a model, as the worker describes it."""
    sock.sendall(frame(kind=DESCRIBE))
    reply = read_frame(sock)
    assert reply is not None
    (key,) = (item["key"] for item in reply.document["models"] if item["name"] == model)
    return int(key, 16)


def rows_of(*rows: tuple[float, float]) -> bytes:
    """The payload for the engine `Adder`, whose first dimension is free: the table of sizes, and the rows."""
    return len(rows).to_bytes(8, "little") + np.array(rows, dtype="<f4").tobytes()


def value_of(reply: FrameReply | None) -> float:
    """The first number that `Adder` answered."""
    assert reply is not None
    assert reply.kind == 0x82, reply.payload
    return float(np.frombuffer(reply.payload[8:], "<f4")[0])
