"""The golden self-test: does this model, on this device, give the outputs that its author saw?

Reads the bundle's safetensors file by `edge_contract.tensors`, runs every member on its inputs and compares
`|got - want| <= atol + rtol * |want|` element by element; whole numbers, BOOL and the places of NaN have to be equal.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_agent.worker.arrays import DTYPES, Array, from_bytes, split_rows, to_bytes
from edge_agent.worker.engines import Engine
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import GOLDEN_BYTES_MAX
from edge_contract.runtime import Golden, Runtime
from edge_contract.tensors import read_bytes_mark, read_safetensors_header


@dataclass(slots=True)
class Vectors:
    """Golden vectors of one member, stacked along the first dimension.

    Attributes:
        inputs: Arrays by input name.
        outputs: Expected arrays by output name.
    """

    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proof:
    """What the self-test found.

    Attributes:
        digest: Over the outputs' little-endian bytes in order of member and output name.
        error_max: Largest absolute difference from what was expected.
    """

    digest: Digest
    error_max: float


def read_golden(path: Path) -> bytes:
    """Read a golden file whole.

    Raises:
        EdgeError: `artifact.golden-invalid` when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(GOLDEN_BYTES_MAX + 1)
    except OSError as error:
        raise EdgeError("artifact.golden-invalid", f"the golden file cannot be read: {error.strerror}") from error


def read_golden_of(runtime: Runtime, files: Path) -> dict[str, Vectors]:
    """The golden vectors of a bundle by member; empty when it has none.

    Raises:
        EdgeError: `artifact.golden-invalid` and other `artifact.` codes.
    """
    return {} if runtime.golden is None else parse_vectors(read_golden(files / runtime.golden.path))


def parse_vectors(data: bytes) -> dict[str, Vectors]:
    """Take a golden file apart.

    Returns:
        Vectors by member name.

    Raises:
        EdgeError: `artifact.golden-invalid` and other `artifact.` codes.
    """
    entries, metadata = read_safetensors_header(data)
    members: dict[str, Vectors] = {}
    for name, entry in entries.items():
        member, _, rest = name.partition("/")
        role, _, tensor = rest.partition("/")
        if role not in ("input", "output") or not tensor:
            raise EdgeError(
                "artifact.golden-invalid", f"{name!r} is not <member>/input/<name> or <member>/output/<name>"
            )
        shape = read_bytes_mark(metadata.get(name), name)
        if shape is not None:
            array = _read_bytes(name, shape, memoryview(data)[entry.start : entry.end])
        else:
            raw = np.frombuffer(data, dtype=np.uint8, count=entry.end - entry.start, offset=entry.start)
            # A copy, because tensors in the file need not be aligned.
            array = raw.copy().view(DTYPES[entry.datatype]).reshape(entry.shape)
        vectors = members.setdefault(member, Vectors())
        (vectors.inputs if role == "input" else vectors.outputs)[tensor] = array
    return members


def _read_bytes(name: str, shape: tuple[int, ...], data: memoryview) -> Array:
    try:
        return from_bytes(name, "BYTES", shape, data)
    except EdgeError as error:
        raise EdgeError("artifact.golden-invalid", error.detail) from None


def run_vectors(member: str, engine: Engine, vectors: Vectors) -> dict[str, Array]:
    """Run a member on its golden inputs, in one go or, where the model's batch is fixed, piece by piece.

    Raises:
        EdgeError: `artifact.golden-invalid` when they do not fit the model, and what the engine raises.
    """
    wanted = sorted(vectors.outputs)
    specs = {spec.name: spec for spec in engine.inputs}
    if not wanted or (specs and set(specs) != set(vectors.inputs)):
        raise EdgeError(
            "artifact.golden-invalid", f"the golden vectors of {member!r} do not have its inputs and outputs"
        )
    known = {spec.name for spec in engine.outputs}
    if known and (unknown := [name for name in wanted if name not in known]):
        raise EdgeError(
            "artifact.golden-invalid", f"the golden vectors name the output {unknown[0]!r}, {member!r} has none"
        )
    pieces = pieces_of(member, engine, vectors)
    results = [engine.run(piece, wanted) for piece in pieces]
    if len(results) == 1:
        return results[0]
    return {name: np.concatenate([result[name] for result in results], axis=0) for name in wanted}


def pieces_of(member: str, engine: Engine, vectors: Vectors) -> list[dict[str, Array]]:
    """The golden inputs of a member, whole or, where its batch is fixed, in pieces of that size.

    Raises:
        EdgeError: `artifact.golden-invalid` when they do not fit the model.
    """
    inputs = vectors.inputs
    specs = {spec.name: spec for spec in engine.inputs}
    if not specs or all(specs[name].fits(specs[name].datatype, array.shape) for name, array in inputs.items()):
        _require_datatypes(member, engine, inputs)
        return [inputs]
    rows = {specs[name].shape[0] for name, array in inputs.items() if specs[name].shape and array.ndim}
    count = split_rows(list(inputs.values()), rows.pop()) if len(rows) == 1 else None
    if count is None:
        raise EdgeError("artifact.golden-invalid", f"the golden inputs of {member!r} do not fit its signature")
    split = {name: np.split(array, count) for name, array in inputs.items()}
    pieces = [{name: arrays[index] for name, arrays in split.items()} for index in range(count)]
    for piece in pieces[:1]:
        if not all(specs[name].fits(specs[name].datatype, array.shape) for name, array in piece.items()):
            raise EdgeError("artifact.golden-invalid", f"the golden inputs of {member!r} do not fit its signature")
    _require_datatypes(member, engine, inputs)
    return pieces


def _require_datatypes(member: str, engine: Engine, inputs: Mapping[str, Array]) -> None:
    for spec in engine.inputs:
        if inputs[spec.name].dtype != DTYPES[spec.datatype]:
            raise EdgeError(
                "artifact.golden-invalid",
                f"the golden input {spec.name!r} of {member!r} is {inputs[spec.name].dtype}, "
                f"the model takes {spec.datatype}",
            )


def compare(member: str, name: str, got: Array, want: Array, golden: Golden) -> float:
    """Compare one output with its golden tensor.

    Returns:
        The largest absolute difference.

    Raises:
        EdgeError: `model.output-invalid` or `model.golden-mismatch`, naming the tensor and the largest error.
    """
    label = f"output {name!r} of {member!r}"
    if got.shape != want.shape:
        raise EdgeError(
            "model.golden-mismatch", f"{label} has the shape {list(got.shape)}, golden is {list(want.shape)}"
        )
    if "O" in (got.dtype.kind, want.dtype.kind):
        return _compare_bytes(label, got, want)
    if got.dtype.kind != "f" and want.dtype.kind != "f":
        is_wrong = np.not_equal(got, want)
        errors = np.abs(got.astype(np.float64) - want.astype(np.float64))
    else:
        got_wide, want_wide = got.astype(np.float64), want.astype(np.float64)
        is_odd = ~np.isfinite(want_wide)
        if not np.isfinite(got_wide[~is_odd]).all():
            raise EdgeError("model.output-invalid", f"{label} has NaN or infinity where golden has a number")
        errors = np.abs(np.subtract(got_wide, want_wide, out=np.zeros_like(got_wide), where=~is_odd))
        is_wrong = errors > golden.atol + golden.rtol * np.abs(np.where(is_odd, 0.0, want_wide))
        same = (got_wide == want_wide) | (np.isnan(got_wide) & np.isnan(want_wide))
        is_wrong = np.where(is_odd, ~same, is_wrong)
    error_max = float(errors.max()) if errors.size else 0.0
    if is_wrong.any():
        place = int(np.argmax(np.where(is_wrong, errors, -1.0)))
        raise EdgeError(
            "model.golden-mismatch",
            f"{label} differs from golden in {int(is_wrong.sum())} of {is_wrong.size} elements; the largest error is "
            f"{error_max:.6g} (element {place}: got {got.ravel()[place]:.6g}, golden {want.ravel()[place]:.6g}, "
            f"rtol {golden.rtol:g}, atol {golden.atol:g})",
            "The model, or the runtime on this device, does not compute what the author saw.",
        )
    return error_max


def _compare_bytes(label: str, got: Array, want: Array) -> float:
    wrong = [place for place, pair in enumerate(zip(got.ravel(), want.ravel(), strict=True)) if pair[0] != pair[1]]
    if wrong:
        place = wrong[0]
        raise EdgeError(
            "model.golden-mismatch",
            f"{label} differs from golden in {len(wrong)} of {want.size} elements (element {place}: got "
            f"{str(got.ravel()[place])[:60]}, golden {str(want.ravel()[place])[:60]})",
            "The model, or the runtime on this device, does not compute what the author saw.",
        )
    return 0.0


def prove_members(engines: Mapping[str, Engine], vectors: Mapping[str, Vectors], golden: Golden) -> Proof:
    """Run and compare all golden vectors.

    Raises:
        EdgeError: As `run_vectors` and `compare`; `artifact.golden-invalid` for vectors of no member.
    """
    if strangers := sorted(set(vectors) - set(engines)):
        raise EdgeError(
            "artifact.golden-invalid", f"the golden file has vectors for {strangers[0]!r}, which is no member"
        )
    if not vectors:
        raise EdgeError("artifact.golden-invalid", "the golden file has no vectors")
    total = hashlib.sha256()
    error_max = 0.0
    for member in sorted(vectors):
        results = run_vectors(member, engines[member], vectors[member])
        for name in sorted(results):
            error_max = max(error_max, compare(member, name, results[name], vectors[member].outputs[name], golden))
            total.update(to_bytes(results[name]))
    return Proof(Digest.from_hex(total.hexdigest()), error_max)
