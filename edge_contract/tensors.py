"""Tensor datatypes and signatures (Open Inference Protocol v2 names), and the header of a safetensors file.

The safetensors layout: eight bytes little-endian header length, a JSON header, then raw little-endian row-major tensors
without gaps (https://github.com/huggingface/safetensors, "Format"). It is read here because devices verify it before
anything with compiled code sees it, and because it is small.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Final

from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject, parse_object
from edge_contract.limits import GOLDEN_BYTES_MAX, GOLDEN_HEADER_BYTES_MAX, TENSOR_RANK_MAX

ITEM_BYTES: Final[dict[str, int]] = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
}  # fmt: skip
"""Bytes of one element by datatype; BYTES elements have no fixed width."""

SAFETENSORS_TYPES: Final[dict[str, str]] = {
    "BOOL": "BOOL", "U8": "UINT8", "U16": "UINT16", "U32": "UINT32", "U64": "UINT64", "I8": "INT8", "I16": "INT16",
    "I32": "INT32", "I64": "INT64", "F16": "FP16", "F32": "FP32", "F64": "FP64",
}  # fmt: skip
"""Datatype by the name that safetensors gives it."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of one input or output.

    Attributes:
        name: As the model names it.
        datatype: A key of `ITEM_BYTES`.
        shape: Row-major dimensions; -1 is free.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @classmethod
    def from_json(cls, value: Any, code: str = "artifact.runtime-invalid") -> "TensorSpec":
        """Read `{"name", "datatype", "shape"}`.

        Raises:
            ContractError: `code`, or `artifact.unknown-field`.
        """
        fields = Fields(value, "tensor", code)
        name = fields.text("name", chars_max=256)
        datatype = fields.text("datatype", chars_max=16)
        shape = fields.items("shape", TENSOR_RANK_MAX, required=True)
        fields.close()
        if datatype not in ITEM_BYTES:
            raise ContractError(code, f"tensor {name!r} has the unknown datatype {datatype!r}")
        if not all(isinstance(dim, int) and not isinstance(dim, bool) and -1 <= dim < 2**31 for dim in shape):
            raise ContractError(code, f"tensor {name!r} has a shape with something else than sizes and -1")
        return cls(name, datatype, tuple(shape))

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def fits(self, datatype: str, shape: tuple[int, ...]) -> bool:
        """Whether a concrete tensor fits this signature (free dimensions fit any size)."""
        return (
            datatype == self.datatype
            and len(shape) == len(self.shape)
            and all(want in (-1, have) for want, have in zip(self.shape, shape, strict=True))
        )


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in a safetensors file.

    Attributes:
        datatype: A key of `ITEM_BYTES`.
        shape: Row-major dimensions, none negative.
        start: Offset of the first byte, from the start of the file.
        end: Offset behind the last byte.
    """

    datatype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors_header(data: bytes | memoryview) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Read and check the header of a whole safetensors file.

    Args:
        data: The file; at most `GOLDEN_BYTES_MAX` bytes.

    Returns:
        The tensors by name, and the file's metadata strings.

    Raises:
        ContractError: `artifact.golden-invalid`, or a code of `parse_object`.
    """

    def bad(why: str) -> ContractError:
        return ContractError("artifact.golden-invalid", f"not a usable safetensors file: {why}")

    if not 8 <= len(data) <= GOLDEN_BYTES_MAX:
        raise bad(f"{len(data)} bytes, 8 to {GOLDEN_BYTES_MAX} are allowed")
    length = int.from_bytes(data[:8], "little")
    if length > min(GOLDEN_HEADER_BYTES_MAX, len(data) - 8):
        raise bad(f"its header claims {length} bytes")
    header = parse_object(bytes(data[8 : 8 + length]), "safetensors header", GOLDEN_HEADER_BYTES_MAX)
    metadata = Fields(header, "safetensors header", "artifact.golden-invalid").mapping("__metadata__", 64)
    header.pop("__metadata__", None)
    base = 8 + length
    entries: dict[str, TensorEntry] = {}
    for name, value in header.items():
        fields = Fields(value, f"tensor {name!r}", "artifact.golden-invalid")
        datatype = SAFETENSORS_TYPES.get(fields.text("dtype"))
        shape = fields.items("shape", TENSOR_RANK_MAX, required=True)
        offsets = fields.items("data_offsets", 2, required=True)
        fields.close()
        if datatype is None:
            raise bad(f"tensor {name!r} has a datatype that is not known here")
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**40 for n in [*shape, *offsets]):
            raise bad(f"tensor {name!r} has a size that is not one")
        if len(offsets) != 2 or offsets[1] - offsets[0] != prod(shape) * ITEM_BYTES[datatype]:
            raise bad(f"tensor {name!r} has a shape that does not fit its bytes")
        entries[name] = TensorEntry(datatype, tuple(shape), base + offsets[0], base + offsets[1])
    place = base
    for entry in sorted(entries.values(), key=lambda item: (item.start, item.end)):
        if entry.start != place:
            raise bad("its tensors overlap or leave gaps")
        place = entry.end
    if place != len(data):
        raise bad("bytes follow the last tensor or are missing")
    return entries, metadata


def bytes_mark(shape: tuple[int, ...]) -> str:
    """What the metadata of a safetensors file say of a tensor of BYTES, under the tensor's name.

    The format knows no text: the file holds the elements as UINT8 of one dimension, in their binary form of the Open
    Inference Protocol (each a four-byte little-endian length and its bytes), and the metadata the shape they have.
    """
    return "BYTES " + "x".join(map(str, shape))


def read_bytes_mark(text: str | None, name: str) -> tuple[int, ...] | None:
    """The shape that `bytes_mark` wrote; none when there is no mark.

    Raises:
        ContractError: `artifact.golden-invalid`.
    """
    if text is None or not text.startswith("BYTES "):
        return None
    sizes = [size for size in text.removeprefix("BYTES ").split("x") if size]
    if len(sizes) > TENSOR_RANK_MAX or not all(size.isascii() and size.isdecimal() and len(size) < 8 for size in sizes):
        raise ContractError("artifact.golden-invalid", f"tensor {name!r} is BYTES of a shape that is none")
    return tuple(map(int, sizes))
