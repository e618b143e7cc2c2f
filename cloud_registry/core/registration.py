"""What a model version has to be before it gets a number: files that exist, an entry, bytes of the format it claims."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from cloud_registry.core.records import File
from cloud_registry.limits import FILES_MAX
from edge_contract.errors import EdgeError
from edge_contract.names import relative_path

_SUFFIX: Final = {"onnx": ".onnx", "tflite": ".tflite", "script": ".py"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Fields of onnx.ModelProto (onnx.proto3): number -> wire type.
_ONNX_FIELDS: Final = {1: _VARINT, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _VARINT, 6: _BYTES, 7: _BYTES, 8: _BYTES}
_ONNX_LATER_FIELDS: Final = range(9, 64)
_ONNX_IR_VERSION_MAX: Final = 255
_VARINT_BYTES_MAX: Final = 10


def check_files(files: Sequence[File]) -> None:
    """Require 1 to `FILES_MAX` files with safe paths that no file system confuses.

    Raises:
        EdgeError: `cloud.bad-request` or `artifact.path-unsafe`.
    """
    if not 1 <= len(files) <= FILES_MAX:
        raise EdgeError("cloud.bad-request", f"a version has 1 to {FILES_MAX} files, {len(files)} are given")
    paths = {relative_path(file.path).casefold() for file in files}
    if len(paths) != len(files):
        raise EdgeError("cloud.bad-request", "two files of the version have the same path")


def choose_entry(format: str, entry: str, files: Sequence[File]) -> str:
    """The path of the file an engine is pointed at: the given one, or the only one it can be.

    Raises:
        EdgeError: `cloud.bad-request`.
    """
    paths = [file.path for file in files]
    if entry:
        if entry not in paths:
            raise EdgeError("cloud.bad-request", f"entry {entry!r} is not among the files: {', '.join(paths)[:200]}")
        return entry
    fitting = [path for path in paths if PurePosixPath(path).suffix.lower() == _SUFFIX[format]]
    if len(paths) == 1:
        return paths[0]
    if len(fitting) == 1:
        return fitting[0]
    hint = f"Name one of the files as `entry`; without it exactly one file ends in {_SUFFIX[format]}."
    raise EdgeError("cloud.bad-request", f"{len(fitting)} of the files could be the entry of a {format} model", hint)


def check_format(format: str, path: str, head: bytes, size: int) -> None:
    """Require that a file begins like a model of its format.

    Args:
        format: `onnx`, `tflite` or `script`.
        path: For messages.
        head: The first bytes of the file, `SNIFF_BYTES` of them if there are so many.
        size: Length of the whole file in bytes.

    Raises:
        EdgeError: `artifact.not-a-model`.
    """
    if format == "onnx":
        reason = _why_not_onnx(head, size)
    elif format == "tflite":
        reason = "" if head[4:8] == b"TFL3" else "it does not have the identifier TFL3 of TensorFlow Lite"
    else:
        reason = _why_not_script(head, size)
    if reason:
        hint = "Register the file that the training exported, with the format it has: onnx, tflite or script."
        raise EdgeError("artifact.not-a-model", f"{path} is not a {format} model: {reason}", hint)


def _why_not_script(head: bytes, size: int) -> str:
    text = head
    if size > len(head):
        # The sample may end inside a character of up to four bytes.
        for cut in range(4):
            try:
                head[: len(head) - cut].decode("utf-8")
            except UnicodeDecodeError:
                continue
            text = head[: len(head) - cut]
            break
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        return "it is not UTF-8 text"
    if "\0" in decoded:
        return "it is binary"
    return "" if decoded.strip() else "it is empty"


def _why_not_onnx(head: bytes, size: int) -> str:
    """Walk the top-level protobuf fields within `head`; an ONNX file names its IR version or its graph there."""
    place = 0
    is_recognised = False
    while place < len(head):
        tag, place = _varint(head, place)
        if tag is None:
            break
        number, wire = tag >> 3, tag & 7
        expected = _ONNX_FIELDS.get(number, _BYTES if number in _ONNX_LATER_FIELDS else None)
        if wire != expected:
            return "its bytes are not those of an ONNX model"
        value, place = _varint(head, place)
        if value is None:
            break
        if wire == _BYTES:
            place += value
            if place > size:
                return "it is cut off, or its bytes are not those of an ONNX model"
        if number == 1 and not 1 <= value <= _ONNX_IR_VERSION_MAX:
            return "it names an IR version that does not exist"
        is_recognised = is_recognised or number in (1, 7)
    return "" if is_recognised else "it names neither an IR version nor a graph"


def _varint(data: bytes, place: int) -> tuple[int | None, int]:
    """(value, next place); (none, …) when the sample ends inside the number or the number is too long."""
    value = 0
    for count in range(_VARINT_BYTES_MAX):
        if place + count >= len(data):
            return None, place
        byte = data[place + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, place + count + 1
    return None, place
