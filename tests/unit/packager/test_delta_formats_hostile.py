"""Where tensors lie in files that are damaged, cut off, hostile, or of no format at all."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packager.delta import formats
from packager.delta.formats import Tensor, apart, is_sound, kind_of, read_external, read_tensors
from tests.unit.packager.format_files import LITE_TYPES, ONNX_TYPES, look, sample, samples


@pytest.mark.parametrize("kind", ["onnx", "external", "safetensors", "tflite"])
def test_files_that_are_cut_off_anywhere_have_no_tensors_but_their_own(kind: str, tmp_path: Path) -> None:
    data = sample(kind)
    whole = set(look(tmp_path / "model", data))
    assert len(whole) == {"external": 0, "tflite": len(LITE_TYPES)}.get(kind, len(ONNX_TYPES))
    for length in {*range(64), *range(0, len(data), max(1, len(data) // 300)), len(data) - 1}:
        assert whole.issuperset(look(tmp_path / "model", data[:length]))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_with_damaged_bytes(data: st.DataObject, tmp_path: Path) -> None:
    held = samples()
    content = bytearray(held[data.draw(st.sampled_from(sorted(held)))])
    value = st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 8]), st.integers(0, 255))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(value)
    look(tmp_path / "model", bytes(content))


@pytest.mark.parametrize("kind", ["onnx", "external", "safetensors", "tflite"])
def test_files_with_flipped_bits_and_bytes_put_in_or_left_out(kind: str, tmp_path: Path) -> None:
    random, data = np.random.default_rng(17), sample(kind)
    for way in [0, 1, 2] * 170:
        content = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 9)).tolist():
            content[place] ^= 1 << int(random.integers(8))
        place, size = int(random.integers(len(data))), int(random.integers(1, 20))
        if way:
            content[place : place + (size if way == 1 else 0)] = b"" if way == 1 else random.bytes(size)
        look(tmp_path / "model", bytes(content))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from([b"\x08\x0a\x12\x00", b"\x1c\x00\x00\x00TFL3", b"\x20\0\0\0\0\0\0\0{", b""]), rest=st.binary()
)
def test_any_bytes_at_all(start: bytes, rest: bytes, tmp_path: Path) -> None:
    look(tmp_path / "model", start + rest)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"PK\x03\x04" + bytes(40), b"\x80\x04\x95" + bytes(40), b"print('hi')\n" * 9]
)
def test_what_is_no_model_has_no_tensors(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    assert kind_of(path) == "opaque"
    assert read_tensors(path) == ()


@pytest.mark.parametrize(
    "data",
    [
        b"TFL3" + bytes(60),  # the mark in another place
        b"\x1c\0\0\0TFL4" + bytes(60),
        struct.pack("<Q", 80) + b"{" + bytes(71),  # a header as long as the file
        struct.pack("<Q", 20) + b"[" + bytes(71),
        struct.pack("<Q", 0),
        b"\x08",
        b"\x08\x0a",
        b"\x08\x0a\x3b" + bytes(60),
        b"\x0a\x08\x12\x00" + bytes(60),
        bytes(64),
    ],
)
def test_what_only_resembles_a_model_is_opaque(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    assert kind_of(path) == "opaque"
    assert read_tensors(path) == ()
    assert read_external(path) == {}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("tflite", b"\x1c\0\0\0TFL3"),
        ("tflite", b"\x1c\0\0\0TFL3" + bytes(90)),
        ("safetensors", b"\x09\0\0\0\0\0\0\0{" + b" " * 9),
        ("onnx", b"\x08\x0a\x12"),
        ("onnx", b"\x08\x0a\x3a\x00"),
    ],
)
def test_a_beginning_alone_has_no_tensors(kind: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(data)
    assert kind_of(path) == kind
    assert read_tensors(path) == ()
    assert read_external(path) == {}


@pytest.mark.parametrize("ask", [kind_of, read_tensors, read_external])
def test_a_file_that_cannot_be_read_is_told(ask: Callable[[Path], object], tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError, match=re.escape(str(path))):
            ask(path)


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "tflite"])
def test_so_many_tensors_are_found_and_no_more(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = sample(kind)
    monkeypatch.setattr(formats, "TENSORS_MAX", 3)
    assert len(look(tmp_path / "model", data)) == 3


def test_so_many_tensors_of_other_files_are_found_and_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(sample("external"))
    assert len(read_external(path)["w.bin"]) == 5
    monkeypatch.setattr(formats, "TENSORS_MAX", 3)
    assert len(read_external(path)["w.bin"]) == 3


@given(
    places=st.lists(st.tuples(st.integers(-4, 40), st.integers(-2, 12), st.integers(0, 2)), max_size=12),
    file_bytes=st.integers(0, 40),
)
def test_tensors_that_are_left_lie_apart_and_none_is_left_out_without_need(
    places: list[tuple[int, int, int]], file_bytes: int
) -> None:
    tensors = [Tensor("", "u8", (size + (more == 2),), start, start + size) for start, size, more in places]
    found = apart(tensors, file_bytes)
    assert all(one.end <= other.start for one, other in pairwise(found))
    for tensor in tensors:
        sound = 0 <= tensor.start < tensor.end <= file_bytes and tensor.shape == (tensor.end - tensor.start,)
        assert is_sound(tensor, file_bytes) == sound
        over = any(tensor.start < other.end and other.start < tensor.end for other in found)
        assert over if sound else tensor not in found, tensor  # over itself, where it was left


def test_tensors_over_each_other_are_told_once() -> None:
    over = [Tensor("a", "u8", (8,), 0, 8), Tensor("b", "u8", (8,), 4, 12), Tensor("c", "u8", (4,), 8, 12)]
    assert [tensor.name for tensor in apart(reversed(over), 12)] == ["a", "c"]
    assert [tensor.name for tensor in apart(over, 11)] == ["a"]
    same = [Tensor("long", "u8", (8,), 0, 8), Tensor("short", "u8", (4,), 0, 4)]
    assert [tensor.name for tensor in apart(same, 8)] == ["short"]
