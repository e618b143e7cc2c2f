"""The client's end of a connection that speaks frames (docs/frames.md). Standard library only; used by one thread.

It knows the models' signatures, which it asks for once and again when a worker says that they are no longer right.
"""

import json
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_agent.frames import (
    ANSWER,
    ANSWER_BYTES_MAX,
    DESCRIBE,
    DESCRIPTION,
    ERROR,
    INFER,
    LAST,
    NAMED,
    NAMED_BYTES_MAX,
    PREFIX,
    REQUEST,
    STALE,
    TENSORS,
    WANTED_MAX,
    Layout,
    Place,
    padded,
)
from edge_contract.codes import CODES
from edge_contract.errors import EdgeError
from edge_contract.tensors import TensorSpec

_BUFFER_BYTES: Final = 64 * 1024
_HEAD_BYTES: Final = ANSWER.size
_STALE_MAX: Final = 4
"""Signatures that may turn out to be old in one request: swaps that come faster than a client can ask."""
_SEND_PARTS_MAX: Final = 64


class NoFramesError(Exception):
    """The other side does not speak frames, or not with one client more; HTTP will do."""


class CutError(Exception):
    """The connection ended before the answer. Inference is pure, so it may be asked again."""


class Signature:
    """One model as the worker described it.

    Attributes:
        name: Of the model.
        inputs: Layout of its inputs.
        outputs: Layout of its outputs.
        key: What a request names it by.
        kept: For what a caller wants to remember beside it.
    """

    __slots__ = ("_by_wanted", "inputs", "kept", "key", "name", "outputs")

    def __init__(self, value: Any) -> None:
        """Read a model of a description.

        Raises:
            EdgeError: `network.cut`.
        """
        self.name = str(value["name"])
        self.key = int(value["key"], 16)
        self.inputs = Layout([TensorSpec.from_json(item, "network.cut") for item in value["inputs"]])
        self.outputs = Layout([TensorSpec.from_json(item, "network.cut") for item in value["outputs"]])
        self.kept: Any = None
        self._by_wanted: dict[tuple[str, ...], tuple[int, Layout]] = {(): (0, self.outputs)}

    def wanted(self, names: tuple[str, ...]) -> tuple[int, Layout]:
        """The mask of these outputs (all when empty), and how they will lie in the answer.

        Raises:
            EdgeError: `model.input-invalid`.
        """
        found = self._by_wanted.get(names)
        if found is None:
            known = self.outputs.names
            if unknown := [name for name in names if name not in known[:WANTED_MAX]]:
                raise EdgeError(
                    "model.input-invalid",
                    f"the model has no output {unknown[0]!r} that can be asked for alone",
                    f"Its outputs: {', '.join(known)}.",
                )
            mask = sum(1 << known.index(name) for name in set(names))
            found = mask, Layout([spec for place, spec in enumerate(self.outputs.specs) if mask >> place & 1])
            self._by_wanted[names] = found
        return found


@dataclass(slots=True)
class Answer:
    """What a worker computed.

    Attributes:
        manifest: SHA-256 of the manifest of the bundle that did.
        version: Version of its model.
        model: Name of the model.
        places: The outputs and where each lies.
        payload: Their bytes; the caller's own.
    """

    manifest: bytes
    version: int
    model: str
    places: Sequence[Place]
    payload: bytearray


Encoded = tuple[list[bytes | memoryview], int]
"""The pieces of a request's payload without its id, and their bytes."""


class FrameClient:
    """A connection. Closed by `close`, and by itself after any error that leaves it in the middle of something."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Connect with the first request, and again after `close`.

        Args:
            path: The unix socket.
            timeout_s: Longest silence of the other side, seconds.
        """
        self._path = path
        self._timeout_s = timeout_s
        self._sock: socket.socket | None = None
        self._signatures: dict[str, Signature] = {}
        self._number = 0
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)

    def close(self) -> None:
        """End the connection."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def find(self, model: str) -> Signature | None:
        """The signature of a model, asked for when it is not known.

        Returns:
            None when frames know no model of that name; HTTP may.

        Raises:
            NoFramesError: See there.
            CutError: See there.
            OSError: The connection cannot be had.
        """
        found = self._signatures.get(model)
        if found is None:
            head, payload = self._ask(DESCRIBE, 0, 0, 0, [], 0, b"")
            if head[1] != DESCRIPTION:
                raise self._odd()
            self._learn(payload)
            found = self._signatures.get(model)
        return found

    def _is_old(self, signature: Signature, model: str) -> bool:
        """Whether the model has another signature by now."""
        self._signatures = {}
        found = self.find(model)
        return found is None or found.key != signature.key

    def _learn(self, payload: bytearray) -> None:
        try:
            signatures: dict[str, Signature] = {}
            for item in json.loads(payload)["models"]:
                signature = Signature(item)
                old = self._signatures.get(signature.name)
                if old is not None and old.key == signature.key:
                    signature = old
                for name in (signature.name, *map(str, item["aliases"])):
                    signatures[name] = signature
        except (KeyError, TypeError, ValueError, EdgeError):
            raise self._odd() from None
        self._signatures = signatures

    def known(self, model: str) -> Signature | None:
        """The signature of a model that was asked for before."""
        return self._signatures.get(model)

    def infer(
        self,
        model: str,
        encode: Callable[[Signature], Encoded],
        outputs: tuple[str, ...] = (),
        request_id: str = "",
        deadline_ms: int = 0,
    ) -> Answer | None:
        """Have a model compute.

        Args:
            model: Its name.
            encode: Makes the payload for a signature; called again when the signature turns out to be an old one.
            outputs: Names of those that are wanted; all when empty.
            request_id: For the records of telemetry.
            deadline_ms: After which the answer is of no use; 0 for none.

        Returns:
            The answer; none when frames know no such model.

        Raises:
            EdgeError: What the worker answered, or `encode` raised.
            NoFramesError: See there.
            CutError: See there.
            OSError: The connection cannot be had, or timed out.
        """
        identity = request_id.encode() if request_id else b""
        for _ in range(_STALE_MAX):
            signature = self._signatures.get(model) or self.find(model)
            if signature is None:
                return None
            try:
                mask, layout = signature.wanted(outputs)
                parts, size = encode(signature)
            except EdgeError:
                # It may fit a model that has taken this one's place.
                if not self._is_old(signature, model):
                    raise
                continue
            head, payload = self._ask(INFER, signature.key, mask, deadline_ms, parts, size, identity)
            if head[1] == TENSORS:
                return Answer(head[8], head[7], signature.name, self.places(head, layout, payload), payload)
            if head[1] != STALE:
                raise self._odd()
            self._learn(payload)
        raise EdgeError("model.not-serving", f"the signature of {model!r} changed {_STALE_MAX} times in one request")

    # --- the wire

    def places(self, head: Sequence[Any], layout: Layout, payload: bytearray) -> Sequence[Place]:
        """Where the tensors of an answer lie.

        Raises:
            EdgeError: `network.cut` when they do not fit in it.
        """
        try:
            places = _named(payload) if head[2] & NAMED else layout.find(payload).places
        except (EdgeError, KeyError, TypeError, ValueError, struct.error):
            raise self._odd() from None
        if places and places[-1].end != len(payload):
            raise self._odd()
        return places

    def exchange(self, request: bytes, number: int) -> tuple[tuple[Any, ...], bytearray]:
        """Send a whole small request and receive its answer: the fields of its head, and its payload.

        Raises:
            EdgeError: What the worker answered.
            NoFramesError: See there.
            CutError: See there.
            OSError: The connection cannot be had, or timed out.
        """
        sock = self._sock or self._connect()
        try:
            sock.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a refusal may have come before the end of the request was taken
        except OSError:
            self.close()
            raise
        return self._receive(sock, number)

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(self._timeout_s)
            sock.connect(os.fspath(self._path))
        except OSError:
            sock.close()
            raise
        self._sock = sock
        return sock

    def _ask(
        self,
        kind: int,
        key: int,
        wanted: int,
        deadline_ms: int,
        parts: list[bytes | memoryview],
        size: int,
        identity: bytes,
    ) -> tuple[tuple[Any, ...], bytearray]:
        """Send one request and receive its answer: the fields of its head, and its payload."""
        self._number = number = self._number + 1 & 0xFFFF_FFFF_FFFF_FFFF
        id_bytes = len(identity)
        request = REQUEST.pack(PREFIX, kind, 0, id_bytes, size + id_bytes, deadline_ms, number, key, wanted)
        pieces = [request, *parts, identity] if id_bytes else [request, *parts]
        if size <= _BUFFER_BYTES:
            return self.exchange(b"".join(pieces), number)
        sock = self._sock or self._connect()
        try:
            _send_all(sock, [memoryview(piece) for piece in pieces if len(piece)])
        except (BrokenPipeError, ConnectionResetError):
            pass  # as above
        except OSError:
            self.close()
            raise
        return self._receive(sock, number)

    def _receive(self, sock: socket.socket, number: int) -> tuple[tuple[Any, ...], bytearray]:
        try:
            return self._receive_answer(sock, number)
        except (OSError, CutError, NoFramesError):
            self.close()
            raise

    def _receive_answer(self, sock: socket.socket, number: int) -> tuple[tuple[Any, ...], bytearray]:
        buffer = self._buffer
        have = _receive_some(sock, buffer)
        while 0 < have < _HEAD_BYTES:
            if not (count := _receive_some(sock, self._view[have:])):
                raise NoFramesError
            have += count
        if not have:
            raise CutError
        head = ANSWER.unpack_from(buffer)
        if head[0] != PREFIX:
            raise NoFramesError
        size = head[4]
        if size > ANSWER_BYTES_MAX:
            raise self._odd()
        end = _HEAD_BYTES + size
        if have >= end:
            payload = buffer[_HEAD_BYTES:end]
        else:
            payload = bytearray(size)
            rest = memoryview(payload)
            rest[: have - _HEAD_BYTES] = self._view[_HEAD_BYTES:have]
            filled = have - _HEAD_BYTES
            while filled < size:
                count = sock.recv_into(rest[filled:])
                if not count:
                    raise CutError
                filled += count
        if head[2] & LAST:
            self.close()
        if head[1] == ERROR:
            raise self._told(payload, head[6], number)
        if head[6] != number or have > end:
            raise self._odd()
        return head, payload

    @staticmethod
    def _told(payload: bytearray, answered: int, number: int) -> Exception:
        try:
            document = json.loads(payload)
            code, detail, hint = (str(document[name]) for name in ("code", "detail", "hint"))
        except (KeyError, TypeError, ValueError):
            return CutError()
        if not answered and answered != number and code == "model.overloaded":
            return NoFramesError()  # one connection too many: not an answer to what was asked
        return EdgeError(code if code in CODES else "model.inference-failed", detail, hint)

    def _odd(self) -> EdgeError:
        self.close()
        return EdgeError("network.cut", f"what came from {self._path} is not an answer of frames")


def _receive_some(sock: socket.socket, place: bytearray | memoryview) -> int:
    """Receive into a place; 0 at the end of the stream, however it ended."""
    try:
        return sock.recv_into(place)
    except (ConnectionResetError, BrokenPipeError):
        return 0


def _send_all(sock: socket.socket, parts: list[memoryview]) -> None:
    while parts:
        sent = sock.sendmsg(parts[:_SEND_PARTS_MAX])
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if sent:
            parts[0] = parts[0][sent:]


def _named(payload: bytearray) -> list[Place]:
    """The outputs of an answer that lists them."""
    (size,) = struct.unpack_from("<I", payload)
    if size > min(NAMED_BYTES_MAX, len(payload) - 8):
        raise ValueError("a list that does not fit")
    places: list[Place] = []
    end = 8 + size
    for item in json.loads(bytes(payload[8 : 8 + size]))["outputs"]:
        spec = TensorSpec.from_json({name: item[name] for name in ("name", "datatype", "shape")}, "network.cut")
        if item["datatype"] == "BYTES":
            layout = Layout([TensorSpec(spec.name, "BYTES", spec.shape)])
            place = layout.make((spec.shape,), [item["bytes"]]).places[0]
        else:
            place = Layout([spec]).make((spec.shape,)).places[0]
        start = padded(end)
        end = start + int(item["bytes"])
        if item["datatype"] != "BYTES" and place.end - place.start != item["bytes"]:
            raise ValueError("a tensor of another length")
        places.append(Place(spec.name, spec.datatype, spec.shape, place.count, start, end))
    return places
