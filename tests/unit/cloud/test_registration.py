"""What a model version has to be before it gets a number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_registry.core.records import File
from cloud_registry.core.registration import check_files, check_format, choose_entry
from cloud_registry.limits import FILES_MAX, SNIFF_BYTES
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from tests.unit.cloud.making import tiny_onnx


def files(*paths: str) -> tuple[File, ...]:
    return tuple(File(path, Digest.of(path.encode()), 1) for path in paths)


def code_of(call: object, *arguments: object) -> str:
    assert callable(call)
    with pytest.raises(EdgeError) as caught:
        call(*arguments)
    return caught.value.code


def test_one_file_is_the_entry() -> None:
    assert choose_entry("onnx", "", files("weights.bin")) == "weights.bin"


def test_the_only_file_with_the_format_s_suffix_is_the_entry() -> None:
    assert choose_entry("onnx", "", files("a/model.onnx", "weights.bin")) == "a/model.onnx"


def test_several_possible_entries_need_a_word() -> None:
    assert code_of(choose_entry, "onnx", "", files("a.onnx", "b.onnx")) == "cloud.bad-request"
    assert choose_entry("onnx", "b.onnx", files("a.onnx", "b.onnx")) == "b.onnx"


def test_an_entry_has_to_be_there() -> None:
    assert code_of(choose_entry, "onnx", "c.onnx", files("a.onnx")) == "cloud.bad-request"


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a/../b", "", "a\nb", "a\\b"])
def test_unsafe_paths_are_refused(path: str) -> None:
    assert code_of(check_files, files(path)) == "artifact.path-unsafe"


def test_paths_that_differ_in_case_alone_are_refused() -> None:
    assert code_of(check_files, files("Model.onnx", "model.onnx")) == "cloud.bad-request"


def test_the_number_of_files_is_bounded() -> None:
    assert code_of(check_files, ()) == "cloud.bad-request"
    assert code_of(check_files, files(*(f"f{n}" for n in range(FILES_MAX + 1)))) == "cloud.bad-request"


def test_real_beginnings_pass() -> None:
    onnx = tiny_onnx()
    check_format("onnx", "m.onnx", onnx, len(onnx))
    check_format("tflite", "m.tflite", b"\x1c\x00\x00\x00TFL3" + b"\x00" * 8, 16)
    check_format("script", "score.py", b"def run(data):\n    return data\n", 31)


def test_a_large_onnx_file_is_recognised_by_its_first_bytes() -> None:
    graph = b"\x0a\xff\xff\x3f" + b"\x00" * SNIFF_BYTES
    head = b"\x08\x0a\x3a" + b"\x80\x80\x80\x01" + graph
    check_format("onnx", "m.onnx", head[:SNIFF_BYTES], 1 << 30)


@pytest.mark.parametrize(
    ("format", "head"),
    [
        ("onnx", b""),
        ("onnx", b"\x89PNG\r\n\x1a\n"),
        ("onnx", b"PK\x03\x04 a zip file"),
        ("onnx", b"plain text, not a model"),
        ("onnx", b'{"json": true}'),
        ("onnx", b"\x08\x00"),
        ("onnx", b"\x12\x04test"),
        ("tflite", b"\x08\x0a"),
        ("tflite", b"TFL3"),
        ("script", b""),
        ("script", b"  \n"),
        ("script", b"\x00\x01\x02"),
        ("script", b"\xff\xfe\x00d"),
        ("script", b"\x80\x04\x95 pickle"),
    ],
)
def test_other_bytes_are_not_a_model(format: str, head: bytes) -> None:
    assert code_of(check_format, format, "m", head, len(head)) == "artifact.not-a-model"


def test_a_truncated_onnx_file_is_not_a_model() -> None:
    onnx = tiny_onnx()
    cut = onnx[: len(onnx) // 2]
    assert code_of(check_format, "onnx", "m.onnx", cut, len(cut)) == "artifact.not-a-model"


def test_a_script_may_end_inside_a_character_of_the_sample() -> None:
    text = ("é" * SNIFF_BYTES).encode()
    check_format("script", "score.py", text[: SNIFF_BYTES - 1], len(text))


def outcome_of(format: str, head: bytes, size: int) -> str:
    try:
        check_format(format, "m", head, size)
    except EdgeError as error:
        return error.code
    return "accepted"


@given(st.sampled_from(["onnx", "tflite", "script"]), st.binary(max_size=64), st.integers(0, 100))
def test_any_bytes_are_accepted_or_refused(format: str, head: bytes, more: int) -> None:
    assert outcome_of(format, head, len(head) + more) in ("accepted", "artifact.not-a-model")
