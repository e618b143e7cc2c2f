"""What is fuzzed, and what has to hold for every input. A target raises `AssertionError` or lets something escape."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.frames import ANSWER, ERROR, ID_BYTES_MAX, INFER, LAST, PREFIX, REQUEST, STALE, TENSORS
from edge_agent.worker import oip as oip_module
from edge_agent.worker.arrays import DTYPES, Array
from edge_agent.worker.budget import Budget
from edge_agent.worker.bundle import LoadedBundle, LoadedMember
from edge_agent.worker.connection import Connection, Respond, Stage
from edge_agent.worker.door import Door
from edge_agent.worker.engines import Place
from edge_agent.worker.frames import FrameModels
from edge_agent.worker.http import BadRequestError, Request, Response
from edge_agent.worker.inflating import coding_of, inflate
from edge_agent.worker.lane import FrameConnection, FrameLane
from edge_agent.worker.ledger import Ledger
from edge_agent.worker.limits import WorkerLimits
from edge_agent.worker.oip import InferRequest, read_request, write_answer
from edge_agent.worker.replies import refusal
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member, Runtime
from edge_contract.tensors import TensorSpec
from tests.unit.worker.frame_peer import Mirror

Target = Callable[[bytes], None]

INPUT_BYTES_MAX: Final = 4_096
_LIMITS: Final = WorkerLimits(body_bytes_max=2_000, receiving_bytes_max=8_000)
_REFUSALS: Final = {"model.input-invalid", "model.not-offered"}


def _require(holds: bool, error: Exception) -> None:
    if not holds:
        raise AssertionError(f"this is no refusal: {error!r}")


# --- HTTP: heads, bodies of known length and in chunks, pipelining, hand-over in the middle


class _Noting:
    """A door whose requests are answered at once and noted."""

    def __init__(self) -> None:
        self.door = Door(self._handle, self._refuse, _LIMITS, "Fuzzed: yes\r\n")
        self.requests: list[tuple[str, str, bytes]] = []
        self.refusals: list[int] = []

    def _handle(self, request: Request, respond: Respond) -> None:
        self.requests.append((request.head.method, request.head.path, bytes(request.body)))
        respond(Response(HTTPStatus.OK, "text/plain", [b"ok"]))

    def _refuse(self, status: HTTPStatus, detail: str) -> Response:
        self.refusals.append(status.value)
        return refusal(status, detail)


def _drive(parts: Sequence[bytes], is_handed_over: bool) -> tuple[list[tuple[str, str, bytes]], list[int], bytes]:
    """Send the parts one after the other; returns requests, statuses of refusals, and what the client got."""
    noting = _Noting()
    client, server = socket.socketpair()
    with client:
        server.setblocking(False)
        connection = Connection(noting.door, server, "tcp")
        connection.start()
        got = b""
        for part in parts:
            if connection.stage is Stage.CLOSED:
                break
            if is_handed_over and connection.stage is Stage.READING:
                fd, unread = connection.release()
                connection = Connection(noting.door, socket.socket(fileno=fd), "tcp", unread)
                connection.start()
            client.sendall(part)
            while connection.stage is not Stage.CLOSED and _has_unread(connection):
                connection._on_readable()
            got += _received(client)
        connection.close()
        got += _received(client)
    assert noting.door.receiving_bytes == 0, "room for a body was not given back, or twice"
    return noting.requests, noting.refusals, got


def _has_unread(connection: Connection) -> bool:
    try:
        return bool(connection._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _received(client: socket.socket) -> bytes:
    got = b""
    try:
        while data := client.recv(65_536, socket.MSG_DONTWAIT):
            got += data
    except OSError:
        pass
    return got


def http(data: bytes) -> None:
    """The same requests are found in the same bytes however they are cut, handed over at the cut or not; also when they
    come once more, and their heads are known.
    """
    place, data = (data[0] if data else 0), data[1:]
    cut = place * len(data) // 255
    whole = _drive([data], is_handed_over=False)
    requests, refusals, got = whole
    assert len(refusals) <= 1, "refused twice"
    answers = got.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    assert answers.count(b"Fuzzed: yes\r\n") == len(requests) + len(refusals), "an answer is missing, or one too many"
    assert not answers or answers.startswith(b"HTTP/1.1 ")
    for _method, _path, body in requests:
        assert len(body) <= _LIMITS.body_bytes_max
    for is_handed_over in (False, True):
        again = _drive([data[:cut], data[cut:]], is_handed_over)
        assert again[:2] == whole[:2], f"cut at {cut} (handed over: {is_handed_over}): {again[:2]} and not {whole[:2]}"
    twice = _drive([data + data], is_handed_over=False)[:2]
    for parts in ([data, data], [data, data[:cut], data[cut:]]):
        again = _drive(parts, is_handed_over=False)
        assert again[:2] == twice, f"twice, cut at {cut}: {again[:2]} and not {twice}"


# --- the Open Inference Protocol, JSON and binary

_KNOWN: Final = tuple(
    TensorSpec(name, datatype, shape)
    for name, datatype, shape in (("x", "FP32", (-1, 2)), ("n", "INT64", (-1,)), ("b", "BYTES", (-1,)))
)
_SIGNATURES: Final = (_KNOWN[:1], _KNOWN, (TensorSpec("f", "BOOL", (2, -1)), TensorSpec("h", "FP16", (-1,))), ())


def oip(data: bytes) -> None:
    """A request is refused for a reason, or fits the signature and comes back the same from what is written of it."""
    if len(data) < 3:
        return
    choice, size, body = data[0], struct.unpack_from("<H", data, 1)[0], bytearray(data[3:])
    inputs = _SIGNATURES[choice % len(_SIGNATURES)]
    json_bytes = (None, size, body.find(b"\0") if b"\0" in body else len(body))[choice // len(_SIGNATURES) % 3]
    if json_bytes == len(body) + 1:
        return
    found = [_read(body, json_bytes, inputs) for _ in range(2)]  # the second time it may be known
    oip_module._KNOWN.clear()
    found.append(_read(body, json_bytes, inputs))
    asked = found[0]
    if isinstance(asked, str):
        assert found == [asked] * 3, "refused for different reasons"
        return
    for other in found[1:]:
        assert isinstance(other, InferRequest)
        assert (other.id, other.outputs, other.binary) == (asked.id, asked.outputs, asked.binary)
        assert (other.is_binary, other.timeout_us) == (asked.is_binary, asked.timeout_us)
        assert other.inputs.keys() == asked.inputs.keys()
        for name, array in asked.inputs.items():
            np.testing.assert_array_equal(other.inputs[name], array)
    for spec in inputs:
        array = asked.inputs[spec.name]
        assert array.dtype == DTYPES[spec.datatype]
        assert spec.fits(spec.datatype, array.shape)
    _come_back(asked, inputs)


def _read(body: bytearray, json_bytes: int | None, inputs: tuple[TensorSpec, ...]) -> InferRequest | str:
    """A request as it is read, or why it is refused."""
    try:
        return read_request(body, json_bytes, inputs, ())
    except EdgeError as error:
        _require(error.code in _REFUSALS, error)
        return f"{error.code}: {error.detail}"


def _come_back(asked: InferRequest, inputs: tuple[TensorSpec, ...]) -> None:
    for is_binary in (True, False):
        try:
            answer = write_answer(InferRequest(asked.id, {}, is_binary=is_binary), "m", "1", asked.inputs)
        except EdgeError as error:
            _require(error.code == "model.output-invalid" and not is_binary, error)
            continue
        head = bytes(answer.parts[0])
        document = json.loads(head)
        assert document.get("id", "") == asked.id
        request = json.dumps({"inputs": document["outputs"]}).encode()
        body = request + b"".join(bytes(part) for part in answer.parts[1:])
        again = read_request(body, len(request) if is_binary else None, inputs, ())
        for name, array in asked.inputs.items():
            if is_binary or array.dtype.kind != "O":  # BYTES that are no text do not survive JSON
                np.testing.assert_array_equal(again.inputs[name], array)


# --- frames


def _compute(
    name: str,
    inputs: Mapping[str, Array],
    wanted: Sequence[str],
    received_ns: int,
    request_id: str = "",
    deadline_ns: int = 0,
    is_gone: Callable[[], bool] = lambda: False,
) -> dict[str, Array]:
    engine = _ENGINES[name]
    for spec in engine.inputs:
        assert inputs[spec.name].dtype == DTYPES[spec.datatype]
        assert spec.fits(spec.datatype, inputs[spec.name].shape)
    return engine.run(inputs, wanted)


_ENGINES: Final = {"known": Mirror(*_KNOWN), "flags": Mirror(*_SIGNATURES[2]), "one": Mirror(_KNOWN[0])}
_HERE: Final = Path()


def _frame_models() -> FrameModels:
    runtime = Runtime("digits", 3, tuple(Member(name, "onnx", "m.onnx") for name in _ENGINES))
    members = {name: LoadedMember(name, engine) for name, engine in _ENGINES.items()}
    bundle = LoadedBundle(Digest.of(b"bundle"), runtime, members, Place(_HERE, _HERE))
    return FrameModels("line", bundle, _compute, _LIMITS)


_MODELS: Final = _frame_models()
FRAME_KEYS: Final = tuple(_MODELS._models)


def frames(data: bytes) -> None:
    """Every frame gets one whole answer that repeats its number: tensors, an error of the client's, or `STALE`."""
    if len(data) < REQUEST.size + 1:
        return
    choice, payload = data[0], data[REQUEST.size + 1 :]
    fields = list(REQUEST.unpack_from(data, 1))
    fields[0:3] = PREFIX, INFER, 0
    fields[3] = min(fields[3], ID_BYTES_MAX, len(payload))
    fields[4] = len(payload)
    if choice < 250:
        fields[7] = FRAME_KEYS[choice % len(FRAME_KEYS)]
    parts = _MODELS.infer(fields, payload, 0, lambda: False)
    answer = b"".join(bytes(part) for part in parts)
    head = ANSWER.unpack_from(answer)
    assert head[0] == PREFIX
    assert head[4] == len(answer) - ANSWER.size
    assert head[6] == fields[6]
    assert head[1] in (TENSORS, ERROR, STALE)
    if head[1] == ERROR:
        assert json.loads(answer[ANSWER.size :])["code"] in _REFUSALS


@cache
def _lane() -> FrameLane:
    return FrameLane(_MODELS, _LIMITS, Budget(8_000), Ledger(), _ignore, _ignore, _ignore)


def _ignore(*_arguments: object) -> None:
    """What a lane tells its door."""


def _converse(pending: bytes, rest: bytes) -> bytes:
    """What a client gets that sends this and nothing more; `pending` had come to another worker before."""
    client, server = socket.socketpair()
    with client:
        client.sendall(rest)
        client.shutdown(socket.SHUT_WR)
        FrameConnection(_lane(), server, pending).run()
        return _received(client)


def lane(data: bytes) -> None:
    """A stream of frames gets the same answers however it is cut; the last of them says so if the stream is spoilt."""
    place, data = (data[0] if data else 0), data[1:]
    cut = place * len(data) // 255
    whole = _converse(b"", data)
    end, is_last = 0, False
    while end < len(whole):
        assert not is_last, "an answer after the last one"
        head = ANSWER.unpack_from(whole, end)
        assert head[0] == PREFIX
        is_last = bool(head[2] & LAST)
        end += ANSWER.size + head[4]
    assert end == len(whole), "the answers do not fill what came"
    assert _converse(data[:cut], data[cut:]) == whole, f"cut at {cut}"
    assert _lane().budget.used == 0, "room for a payload was not given back"


# --- compressed bodies


def compressed(data: bytes) -> None:
    """What is inflated stays within its bound, and everything else is refused."""
    name, _, body = data.partition(b"\n")
    try:
        coding = coding_of({b"content-encoding": name})
        if coding:
            assert len(inflate(body, coding, 2_000)) <= 2_000
    except BadRequestError as error:
        _require(error.status in (400, 413, 415), error)


TARGETS: Final[dict[str, Target]] = {"http": http, "oip": oip, "frames": frames, "lane": lane, "compressed": compressed}


def run_on_loop(work: Callable[[], None]) -> None:
    """Call something where connections find a running event loop."""

    async def main() -> None:
        work()

    asyncio.run(main())
