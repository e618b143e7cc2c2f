"""Loads what a slot holds and proves it: engines, golden vectors, warm-up. Blocking; any one thread."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.worker.arrays import DTYPES, Array, is_finite
from edge_agent.worker.engines import ALLOW_NONFINITE, Engine, Place, choice_option, load_engine
from edge_agent.worker.golden import Proof, Vectors, parse_vectors, prove_members, read_golden
from edge_agent.worker.limits import WARM_UP_RUNS
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import parse_object
from edge_contract.limits import RUNTIME_BYTES_MAX
from edge_contract.runtime import RUNTIME_PATH, Runtime


@dataclass(slots=True)
class LoadedMember:
    """One loaded model.

    Attributes:
        name: Name in requests.
        engine: What runs it.
        allow_nonfinite: Whether NaN and infinities in its outputs are meant.
        run_us: Typical time of a run as measured in warm-up, microseconds; 0 when it was not run.
        input_bytes: Bytes of the inputs it was measured with.
    """

    name: str
    engine: Engine
    allow_nonfinite: bool = False
    run_us: float = 0.0
    input_bytes: int = 0


@dataclass(slots=True)
class LoadedBundle:
    """A bundle, ready to run.

    Attributes:
        manifest: Digest of the bundle's manifest.
        runtime: Its runtime descriptor.
        members: Loaded models by name.
        files: Folder of the bundle's files.
        golden_file: Digest of the golden file it was proved with; none before and without one.
    """

    manifest: Digest
    runtime: Runtime
    members: dict[str, LoadedMember]
    files: Path
    golden_file: Digest | None = None


def read_slot(slot: Path) -> tuple[Digest, Runtime]:
    """Read which bundle lies in a slot and how it is run.

    Raises:
        EdgeError: `artifact.*`, `model.load-failed`.
    """
    try:
        label = parse_object((slot / "slot.json").read_bytes(), "slot.json", RUNTIME_BYTES_MAX)
        runtime = Runtime.parse((slot / "files" / RUNTIME_PATH).read_bytes())
    except OSError as error:
        raise EdgeError("model.load-failed", f"the slot cannot be read: {error.strerror}: {error.filename}") from error
    return Digest(str(label.get("manifest"))), runtime


def load_bundle(slot: Path) -> LoadedBundle:
    """Load every member of a bundle.

    Raises:
        EdgeError: `artifact.*`, `model.load-failed`, `model.engine-unavailable`, `device.memory-short`.
    """
    manifest, runtime = read_slot(slot)
    place = Place(slot / "files", slot / "site")
    members = {}
    for member in runtime.members:
        try:
            engine = load_engine(member, place, runtime)
        except MemoryError as error:
            raise EdgeError("device.memory-short", f"{member.name!r} does not fit in memory") from error
        allow_nonfinite = choice_option(member, ALLOW_NONFINITE, ("false", "true")) == "true"
        members[member.name] = LoadedMember(member.name, engine, allow_nonfinite)
    return LoadedBundle(manifest, runtime, members, place.files)


def prove_bundle(bundle: LoadedBundle) -> Proof | None:
    """Run the golden vectors, then warm up and measure every member.

    Returns:
        What the golden vectors showed, or none when the bundle has none.

    Raises:
        EdgeError: `model.*`, `artifact.golden-invalid`, `device.memory-short`.
    """
    golden = bundle.runtime.golden
    try:
        data = read_golden(bundle.files / golden.path) if golden else b""
        vectors = parse_vectors(data) if golden else {}
        engines = {name: member.engine for name, member in bundle.members.items()}
        proof = prove_members(engines, vectors, golden) if golden else None
        bundle.golden_file = Digest.of(data) if golden else None
        for member in bundle.members.values():
            _warm_up(member, vectors.get(member.name))
    except MemoryError as error:
        raise EdgeError("device.memory-short", "the self-test does not fit in memory") from error
    return proof


def _warm_up(member: LoadedMember, vectors: Vectors | None) -> None:
    """Run a member a few times, so that the first real request finds it warm, and measure it.

    Raises:
        EdgeError: `model.output-invalid` when made-up inputs give outputs that are not finite.
    """
    engine = member.engine
    if not engine.inputs:
        return  # a script that takes any JSON: nobody knows what
    is_made_up = vectors is None
    inputs = _first_rows(engine, vectors.inputs) if vectors else _made_up_inputs(engine)
    times_us = []
    for _ in range(1 + WARM_UP_RUNS):
        start = time.perf_counter_ns()
        try:
            outputs = engine.run(inputs, ())
        except EdgeError:
            if is_made_up:
                return  # the author never promised to accept these inputs
            raise
        times_us.append((time.perf_counter_ns() - start) / 1000)
        if is_made_up and not member.allow_nonfinite:
            _require_finite(member, outputs)
    member.run_us = statistics.median(times_us[1:])
    member.input_bytes = sum(array.nbytes for array in inputs.values())


def _require_finite(member: LoadedMember, outputs: Mapping[str, Array]) -> None:
    for name, array in outputs.items():
        if not is_finite(array):
            raise EdgeError(
                "model.output-invalid",
                f"output {name!r} of {member.name!r} is NaN or infinite for plain random inputs",
                f"Give golden vectors with real inputs, or set the member's option {ALLOW_NONFINITE} to true.",
            )


def _first_rows(engine: Engine, inputs: Mapping[str, Array]) -> dict[str, Array]:
    rows = {}
    for spec in engine.inputs:
        array = inputs[spec.name]
        size = spec.shape[0] if spec.shape and spec.shape[0] != -1 else 1
        rows[spec.name] = np.ascontiguousarray(array[:size]) if array.ndim else array
    return rows


def _made_up_inputs(engine: Engine) -> dict[str, Array]:
    """Numbers from [0, 1) for floats and zeros for the rest; free dimensions are 1."""
    numbers = np.random.default_rng(0)
    made: dict[str, Array] = {}
    for spec in engine.inputs:
        shape = tuple(1 if size == -1 else size for size in spec.shape)
        dtype = DTYPES[spec.datatype]
        if spec.datatype == "BYTES":
            made[spec.name] = np.full(shape, b"", dtype=object)
        elif dtype.kind == "f":
            made[spec.name] = numbers.random(shape).astype(dtype)
        else:
            made[spec.name] = np.zeros(shape, dtype=dtype)
    return made
