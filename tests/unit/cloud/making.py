"""Small things that several tests need."""

from __future__ import annotations


def tiny_onnx() -> bytes:
    """A whole ONNX model that adds its input to itself, made by hand so that no library is needed."""

    def field(number: int, content: bytes) -> bytes:
        assert len(content) < 128
        return bytes([number << 3 | 2, len(content)]) + content

    def value(name: bytes) -> bytes:
        shape = field(2, field(1, b"\x08\x04"))
        return field(1, name) + field(2, field(1, b"\x08\x01" + shape))

    node = field(1, b"x") + field(1, b"x") + field(2, b"y") + field(4, b"Add")
    graph = field(1, node) + field(2, b"twice") + field(11, value(b"x")) + field(12, value(b"y"))
    opset = b"\x10\x11"
    return b"\x08\x08" + field(2, b"test") + field(7, graph) + field(8, opset)
