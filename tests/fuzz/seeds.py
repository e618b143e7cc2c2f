"""Where fuzzing begins: plain requests of every kind."""

from __future__ import annotations

import gzip
import struct
import zlib
from typing import Final

from edge_agent.frames import DESCRIBE, INFER, PREFIX, REQUEST
from tests.fuzz.targets import FRAME_KEYS

_JSON: Final = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
_ALL: Final = (
    b'{"id":"a","inputs":[{"name":"x","datatype":"FP32","shape":[2,2],"data":[[1,2.5],[3,-4e2]]},'
    b'{"name":"n","datatype":"INT64","shape":[1],"data":[-9]},{"name":"b","datatype":"BYTES","shape":[2],'
    b'"data":["","\\u00e9"]}],"parameters":{"binary_data_output":true,"timeout":1000}}'
)
_BINARY: Final = (
    b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}],'
    b'"outputs":[{"name":"y","parameters":{"binary_data":true}}]}'
)
_BYTES: Final = (
    b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[0,0]},{"name":"n","datatype":"INT64","shape":[0],'
    b'"data":[]},{"name":"b","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":13}}]}'
)
_FLAGS: Final = (
    b'{"inputs":[{"name":"f","datatype":"BOOL","shape":[2,1],"data":[true,false]},'
    b'{"name":"h","datatype":"FP16","shape":[1],"data":[1.5]}]}'
)


def _post(body: bytes, more: bytes = b"") -> bytes:
    return b"POST /v2/models/m/infer HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), more, body)


def _oip(signature: int, header: int, body: bytes, size: int = 0) -> bytes:
    return bytes((signature + 4 * header,)) + struct.pack("<H", size) + body


def _frame(choice: int, payload: bytes, id_bytes: int = 0, wanted: int = 0) -> bytes:
    return bytes((choice,)) + REQUEST.pack(PREFIX, INFER, 0, id_bytes, len(payload), 0, 7, 0, wanted) + payload


def _sent(number: int, payload: bytes, kind: int = INFER, key: int = FRAME_KEYS[2], id_bytes: int = 0) -> bytes:
    return REQUEST.pack(PREFIX, kind, 0, id_bytes, len(payload), 0, number, key, 0) + payload


_ROWS: Final = struct.pack("<II", 2, 0) + struct.pack("<ffff", 1, 2, 3, 4)

SEEDS: Final[dict[str, list[bytes]]] = {
    "http": [
        b"\x80" + _post(_JSON),
        b"\x40" + _post(_JSON) + _post(_JSON, b"Connection: close\r\n"),
        b"\xa0POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nTrailer: x\r\n\r\n"
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x10POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
        b"\xc0HEAD http://a/b?c HTTP/1.1\r\nA: b\r\n\r\n",
        b"\x60POST / HTTP/1.1\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3_000,
        b"\xf0" + _post(b"y" * 1_900),
    ],
    "oip": [
        _oip(0, 0, _JSON),
        _oip(1, 0, _ALL),
        _oip(3, 0, _ALL),
        _oip(2, 0, _FLAGS),
        _oip(0, 1, _BINARY + struct.pack("<ff", 1, float("nan")), len(_BINARY)),
        _oip(1, 1, _BYTES + b"\x01\x00\x00\x00a\x05\x00\x00\x00bcdef"[:13], len(_BYTES)),
        _oip(0, 2, _BINARY + b"\x00\x00\x00\x00\x00\x00\x80\x3f"),
    ],
    "frames": [
        _frame(2, struct.pack("<II", 1, 0) + struct.pack("<ff", 1, 2)),
        _frame(2, struct.pack("<II", 0, 0) + b"id", 2, 1),
        _frame(0, struct.pack("<IIIIII", 1, 2, 1, 5, 0, 0)[:16] + struct.pack("<ff", 1, 2) + struct.pack("<qq", 3, 4)),
        _frame(1, struct.pack("<II", 1, 2) + b"\x01\x00" + bytes(6) + b"\x00\x3c\x00\x3c"),
        _frame(255, b""),
    ],
    "lane": [
        b"\x80" + _sent(1, b"", DESCRIBE, 0) + _sent(2, _ROWS) + _sent(3, _ROWS + b"id", id_bytes=2),
        b"\x20" + _sent(1, b"", key=5) + _sent(2, b"?", kind=0x66),
        b"\xc0" + _sent(1, _ROWS) + b"GET / HTTP/1.1\r\n\r\n",
        b"\x60" + _sent(1, bytes(1_900)) + _sent(2, bytes(2_100)),
    ],
    "compressed": [
        b"gzip\n" + gzip.compress(_JSON, mtime=0),
        b"deflate\n" + zlib.compress(_ALL),
        b"gzip\n" + gzip.compress(bytes(100_000), mtime=0),
        b"br\nabc",
        b"identity\nabc",
    ],
}
