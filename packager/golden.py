"""Golden vectors: inputs with the outputs a model has to give, as one safetensors file of a bundle.

Names are `<member>/input/<name>` and `<member>/output/<name>`; several vectors are stacked along the first dimension.
Authors may write shorter names, and npz instead of safetensors; what enters a bundle is always written here, so that
the same numbers give the same bytes (https://github.com/huggingface/safetensors, "Format").
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_contract.errors import EdgeError
from edge_contract.jsonio import dump
from edge_contract.limits import GOLDEN_BYTES_MAX
from edge_contract.runtime import Member
from edge_contract.tensors import (
    SAFETENSORS_TYPES,
    TensorSpec,
    bytes_mark,
    read_bytes_mark,
    read_safetensors_header,
)
from packager.limits import GOLDEN_ROWS_MAX

Array = NDArray[Any]
Tensors = dict[str, Array]

_CODE: Final = "artifact.golden-invalid"
NUMPY_BY_TYPE: Final[dict[str, str]] = {
    "BOOL": "|b1", "UINT8": "|u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "|i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
"""Little-endian numpy type by datatype; BYTES has none: it is an array of `bytes` objects."""
TYPE_BY_NUMPY: Final = {np.dtype(text): name for name, text in NUMPY_BY_TYPE.items()}
_SAFETENSORS_BY_TYPE: Final = {name: short for short, name in SAFETENSORS_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far outputs are from the golden ones, when all are within tolerance.

    Attributes:
        vectors: Number of vectors, by member.
        max_error: Largest absolute difference of any number.
    """

    vectors: dict[str, int]
    max_error: float


def load_tensors(path: Path) -> Tensors:
    """Read the tensors of an `.npz` or `.safetensors` file.

    Args:
        path: The file, at most `GOLDEN_BYTES_MAX` bytes of numbers.

    Returns:
        Arrays by name, little-endian and contiguous.

    Raises:
        EdgeError: `config.file-missing`, `artifact.golden-invalid`.
    """
    try:
        if path.stat().st_size > GOLDEN_BYTES_MAX:
            raise EdgeError(_CODE, f"{path} is larger than {GOLDEN_BYTES_MAX} bytes", "Use fewer vectors.")
        if path.suffix == ".npz":
            return _load_npz(path)
        return from_safetensors(path.read_bytes(), str(path))
    except OSError as error:
        raise EdgeError("config.file-missing", f"cannot read {path}: {error.strerror or error}") from None


def _load_npz(path: Path) -> Tensors:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > GOLDEN_BYTES_MAX:
            raise EdgeError(_CODE, f"{path} unpacks to more than {GOLDEN_BYTES_MAX} bytes", "Use fewer vectors.")
        if len({entry.filename for entry in entries}) != len(entries):
            raise EdgeError(_CODE, f"{path} holds two arrays of one name")
        # Object arrays are pickles: never from a file somebody handed over.
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _plain(name, arrays[name]) for name in arrays.files}
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise EdgeError(_CODE, f"{path} is not a usable npz file: {error}", "Save it with numpy.savez.") from None


def bytes_of(array: Array) -> Array:
    """Text or bytes of any numpy kind as `bytes` objects."""
    result = np.empty(array.size, dtype=object)
    result[:] = [item if isinstance(item, bytes) else str(item).encode("utf-8") for item in array.ravel().tolist()]
    return result.reshape(array.shape)


def texts_of(array: Array) -> Array:
    """`bytes` objects as text, for runtimes that take nothing else.

    Raises:
        EdgeError: `artifact.golden-invalid`.
    """
    result = np.empty(array.size, dtype=object)
    try:
        result[:] = [bytes(item).decode("utf-8") for item in array.ravel().tolist()]
    except (UnicodeDecodeError, TypeError):
        raise EdgeError(_CODE, "an input of the model is text, and golden has bytes that are no UTF-8") from None
    return result.reshape(array.shape)


def _packed(array: Array) -> Array:
    """The elements of BYTES as safetensors can hold them; see `edge_contract.tensors.bytes_mark`."""
    parts = [len(item).to_bytes(4, "little") + item for item in array.ravel().tolist()]
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


def _unpacked(name: str, data: bytes, shape: tuple[int, ...]) -> Array:
    place, items = 0, []
    while place + 4 <= len(data):
        size = int.from_bytes(data[place : place + 4], "little")
        items.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    if place != len(data) or len(items) != prod(shape):
        raise EdgeError(_CODE, f"the BYTES of {name!r} are not {prod(shape)} elements")
    result = np.empty(len(items), dtype=object)
    result[:] = items
    return result.reshape(shape)


def _plain(name: str, array: Array) -> Array:
    if array.dtype.kind in "SU" or (array.dtype.kind == "O" and all(isinstance(item, bytes) for item in array.ravel())):
        return bytes_of(array)
    little = array.dtype.newbyteorder("<")
    if little not in TYPE_BY_NUMPY:
        raise EdgeError(_CODE, f"tensor {name!r} has the datatype {array.dtype}, which golden vectors cannot have")
    return np.ascontiguousarray(array, dtype=little)


def from_safetensors(data: bytes, what: str = "golden vectors") -> Tensors:
    """The tensors of a safetensors file; the arrays are views of `data`.

    Raises:
        EdgeError: `artifact.golden-invalid`.
    """
    try:
        entries, metadata = read_safetensors_header(data)
        shapes = {name: read_bytes_mark(metadata.get(name), name) for name in entries}
    except EdgeError as error:
        raise EdgeError(_CODE, f"{what}: {error.detail}", error.hint) from None
    tensors: Tensors = {}
    for name, entry in entries.items():
        part, shape = data[entry.start : entry.end], shapes[name]
        if shape is not None:
            tensors[name] = _unpacked(name, part, shape)
        else:
            tensors[name] = np.frombuffer(part, NUMPY_BY_TYPE[entry.datatype]).reshape(entry.shape)
    return tensors


def to_safetensors(tensors: Mapping[str, Array]) -> bytes:
    """Write tensors reproducibly: wide types first so that all are aligned, then by name. BYTES are marked as such.

    Raises:
        EdgeError: `artifact.golden-invalid` for a datatype that has no place in the format, or too many bytes.
    """
    plain = {name: _plain(name, array) for name, array in tensors.items()}
    marks = {name: bytes_mark(array.shape) for name, array in plain.items() if array.dtype.kind == "O"}
    plain |= {name: _packed(plain[name]) for name in marks}
    order = sorted(plain, key=lambda name: (-plain[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": marks} if marks else {}
    place = 0
    for name in order:
        array = plain[name]
        header[name] = {
            "dtype": _SAFETENSORS_BY_TYPE[TYPE_BY_NUMPY[array.dtype]],
            "shape": list(array.shape),
            "data_offsets": [place, place + array.nbytes],
        }
        place += array.nbytes
    head = dump(header)
    head += b" " * (-len(head) % 8)
    result = b"".join([len(head).to_bytes(8, "little"), head, *(plain[name].tobytes() for name in order)])
    if len(result) > GOLDEN_BYTES_MAX:
        raise EdgeError(
            _CODE, f"golden vectors take {len(result)} bytes, at most {GOLDEN_BYTES_MAX}", "Use fewer vectors."
        )
    return result


def fit(tensors: Mapping[str, Array], members: Sequence[Member]) -> Tensors:
    """Give tensors their full names and the datatypes of the signatures; refuse what does not fit.

    A name may be whole, or, where the bundle has one member, `input/<name>`, `output/<name>`, or the bare name of an
    input or output. Numbers are converted within their kind (a float64 array for an FP32 input).

    Args:
        tensors: Arrays as the author named them.
        members: Members with their tensor signatures.

    Returns:
        Arrays by whole name. Every member that has any has all its inputs; outputs may be missing altogether.

    Raises:
        EdgeError: `artifact.golden-invalid`.
    """
    known = {
        f"{member.name}/{side}/{spec.name}": spec
        for member in members
        for side, specs in (("input", member.inputs), ("output", member.outputs))
        for spec in specs
    }
    result: Tensors = {}
    for name, array in tensors.items():
        whole = _whole_name(name, members, known)
        if whole in result:
            raise EdgeError(_CODE, f"two tensors stand for {whole!r}")
        result[whole] = _converted(whole, array, known[whole])
    for member in members:
        _check_member(member, result)
    return {name: result[name] for name in sorted(result)}


def _main_member(members: Sequence[Member]) -> str:
    """The member that bare names mean: the only one, or the only pipeline; empty when there is no such."""
    pipelines = [member.name for member in members if member.engine == "pipeline"]
    names = pipelines or [member.name for member in members]
    return names[0] if len(names) == 1 else ""


def _whole_name(name: str, members: Sequence[Member], known: Mapping[str, TensorSpec]) -> str:
    if name in known:
        return name
    main = _main_member(members)
    candidates = [f"{main}/{name}"] if main else []
    candidates += [whole for whole in known if main and whole.startswith(f"{main}/") and whole.split("/", 2)[2] == name]
    found = sorted({candidate for candidate in candidates if candidate in known})
    if len(found) == 1:
        return found[0]
    why = "is an input and an output" if found else "is no input or output of the model"
    some = ", ".join(sorted(known)[:8]) or "none: declare inputs and outputs"
    raise EdgeError(_CODE, f"the golden tensor {name!r} {why}", f"Known names: {some}.")


def _converted(name: str, array: Array, spec: TensorSpec) -> Array:
    if (spec.datatype == "BYTES") != (array.dtype.kind == "O"):
        raise EdgeError(_CODE, f"{name!r} has the datatype {array.dtype}, the model wants {spec.datatype}")
    if spec.datatype == "BYTES":
        if not _fits_shape(array.shape, spec.shape):
            raise EdgeError(_CODE, f"{name!r} has the shape {list(array.shape)}, the model wants {list(spec.shape)}")
        return array
    wanted = np.dtype(NUMPY_BY_TYPE[spec.datatype])
    have = array.dtype.newbyteorder("<")
    if have != wanted:
        if not np.can_cast(have, wanted, "same_kind"):
            raise EdgeError(_CODE, f"{name!r} has the datatype {array.dtype}, the model wants {spec.datatype}")
        converted = array.astype(wanted)
        if wanted.kind in "iu" and not np.array_equal(converted, array):
            raise EdgeError(_CODE, f"{name!r} has numbers that do not fit into {spec.datatype}")
        array = converted
    if not _fits_shape(array.shape, spec.shape):
        raise EdgeError(_CODE, f"{name!r} has the shape {list(array.shape)}, the model wants {list(spec.shape)}")
    return np.ascontiguousarray(array)


def _fits_shape(have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    if len(have) != len(want):
        return False
    if not want:
        return True
    first = want[0] in (-1, have[0]) or (want[0] > 0 and have[0] > 0 and have[0] % want[0] == 0)
    return first and all(w in (-1, h) for h, w in zip(have[1:], want[1:], strict=True))


def _check_member(member: Member, tensors: Mapping[str, Array]) -> None:
    mine = {name for name in tensors if name.startswith(f"{member.name}/")}
    if not mine:
        return
    missing = [spec.name for spec in member.inputs if f"{member.name}/input/{spec.name}" not in tensors]
    if missing or not member.inputs:
        lacking = ", ".join(missing) or "(none declared)"
        raise EdgeError(_CODE, f"golden vectors of {member.name!r} lack the inputs {lacking}")
    is_finite_wanted = member.options.get("allow_nonfinite", "false") != "true"
    for name in mine:
        array = tensors[name]
        if array.size == 0 or (array.ndim and array.shape[0] > GOLDEN_ROWS_MAX):
            raise EdgeError(_CODE, f"{name!r} has the shape {list(array.shape)}")
        if is_finite_wanted and array.dtype.kind == "f" and not np.isfinite(array).all():
            hint = 'If that is meant, set the option allow_nonfinite = "true" of the member.'
            raise EdgeError(_CODE, f"{name!r} holds numbers that are not finite", hint)


def inputs_of(tensors: Mapping[str, Array]) -> Tensors:
    """The inputs among whole-named tensors."""
    return {name: array for name, array in tensors.items() if name.split("/", 2)[1] == "input"}


def outputs_of(tensors: Mapping[str, Array]) -> Tensors:
    """The outputs among whole-named tensors."""
    return {name: array for name, array in tensors.items() if name.split("/", 2)[1] == "output"}


def compare(want: Mapping[str, Array], got: Mapping[str, Array], rtol: float, atol: float) -> Comparison:
    """Require `|got - want| <= atol + rtol * |want|` of every number; what is not finite has to be equal.

    Args:
        want: Golden outputs by whole name.
        got: What the model gave.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Raises:
        EdgeError: `model.golden-mismatch`, `model.output-invalid`.
    """
    worst = 0.0
    for name, expected in want.items():
        actual = got.get(name)
        if actual is None:
            raise EdgeError("model.golden-mismatch", f"the model gives no output {name!r}")
        if actual.shape != expected.shape:
            raise EdgeError(
                "model.golden-mismatch",
                f"the output {name!r} has the shape {list(actual.shape)}, the golden one {list(expected.shape)}",
            )
        if expected.dtype.kind == "O":
            _compare_bytes(name, actual, expected)
            continue
        worst = max(worst, _compare_one(name, actual.astype(np.float64), expected.astype(np.float64), rtol, atol))
    vectors = {name.split("/", 1)[0]: (array.shape[0] if array.ndim else 1) for name, array in want.items()}
    return Comparison(vectors, worst)


def _compare_bytes(name: str, got: Array, want: Array) -> None:
    wrong = [place for place, pair in enumerate(zip(got.ravel(), want.ravel(), strict=True)) if pair[0] != pair[1]]
    if wrong:
        first = wrong[0]
        raise EdgeError(
            "model.golden-mismatch",
            f"{len(wrong)} of {want.size} elements of {name!r} differ from the golden vectors; element {first} is "
            f"{str(got.ravel()[first])[:60]}, wanted {str(want.ravel()[first])[:60]}",
        )


def _compare_one(name: str, got: Array, want: Array, rtol: float, atol: float) -> float:
    is_plain = np.isfinite(want)
    if not np.isfinite(got[is_plain]).all():
        raise EdgeError("model.output-invalid", f"the output {name!r} has NaN or infinity where golden has a number")
    error = np.zeros_like(want)
    np.abs(np.subtract(got, want, out=error, where=is_plain), out=error)
    is_equal = (got == want) | (np.isnan(got) & np.isnan(want))
    is_bad = np.where(is_plain, error > atol + rtol * np.abs(np.where(is_plain, want, 0.0)), ~is_equal)
    if is_bad.any():
        place = np.unravel_index(int(np.argmax(np.where(is_bad, error, -1.0))), error.shape)
        raise EdgeError(
            "model.golden-mismatch",
            f"{int(is_bad.sum())} of {error.size} numbers of {name!r} differ from the golden vectors; at "
            f"{[int(n) for n in place]} the model gives {got[place]:.7g}, wanted {want[place]:.7g} "
            f"(rtol {rtol:g}, atol {atol:g})",
            "Check that the vectors belong to this model; for another runtime or precision widen the tolerance.",
        )
    return float(error.max(initial=0.0))
