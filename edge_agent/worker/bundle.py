"""Loads what a slot holds and proves it: engines, golden vectors, warm-up. Blocking; any one thread."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge_agent.worker.arrays import DTYPES, Array, is_finite
from edge_agent.worker.compiled import CompiledModels
from edge_agent.worker.drift import Drift
from edge_agent.worker.engines import (
    NOTHING_SPECIAL,
    PROVIDERS_DEFAULT,
    Allowance,
    CompilableEngine,
    Engine,
    Place,
    load_engine,
    option,
)
from edge_agent.worker.golden import Proof, Vectors, parse_vectors, prove_members, read_golden
from edge_agent.worker.limits import COMPILE_WORTH_MS, WARM_UP_RUNS
from edge_contract.digest import Digest
from edge_contract.engines import ALLOW_NONFINITE
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, parse_object
from edge_contract.limits import RUNTIME_BYTES_MAX
from edge_contract.pipeline import Batching
from edge_contract.runtime import RUNTIME_PATH, Member, Runtime

_log = logging.getLogger(__name__)

_LOAD_ORDER = ("onnx", "litert", "script", "pipeline")
"""The runtimes before scripts, which may leave them nothing to import; pipelines when all they run is there."""


@dataclass(slots=True)
class LoadedMember:
    """One loaded model.

    Attributes:
        name: Name in requests.
        engine: What runs it.
        allow_nonfinite: Whether NaN and infinities in its outputs are meant.
        run_us: Typical time of a run as measured in warm-up, microseconds; 0 when it was not run.
        input_bytes: Bytes of the inputs it was measured with.
        batching: How requests are computed together, or none.
        drift: Compares its live outputs with the golden ones.
    """

    name: str
    engine: Engine
    allow_nonfinite: bool = False
    run_us: float = 0.0
    input_bytes: int = 0
    batching: Batching | None = None
    drift: Drift = field(default_factory=Drift)


@dataclass(slots=True)
class LoadedBundle:
    """A bundle, ready to run.

    Attributes:
        manifest: Digest of the bundle's manifest.
        runtime: Its runtime descriptor.
        members: Loaded models by name.
        place: Where it lies.
        allowance: What it may.
        golden_file: Digest of the golden file it was proved with; none before and without one.
    """

    manifest: Digest
    runtime: Runtime
    members: dict[str, LoadedMember]
    place: Place
    allowance: Allowance = NOTHING_SPECIAL
    golden_file: Digest | None = None

    @property
    def files(self) -> Path:
        """Folder of the bundle's files."""
        return self.place.files

    def worth_compiling(self) -> dict[str, str]:
        """Members that took long enough to load for a compiled form to be made, with its key."""
        if self.allowance.compiled is None:
            return {}
        models = CompiledModels(self.allowance.compiled)
        return {
            name: engine.key
            for name, member in self.members.items()
            if isinstance(engine := member.engine, CompilableEngine)
            and not engine.is_compiled
            and engine.key
            and engine.load_cpu_ms >= COMPILE_WORTH_MS
            and models.is_wanted(engine.key)
        }


def read_allowance(message: JsonObject) -> Allowance:
    """What the agent says that a bundle may: `allow_pickle`, `providers`, `compiled`; all may be missing."""
    compiled = message.get("compiled")
    return Allowance(
        message.get("allow_pickle") is True,
        tuple(str(name) for name in message.get("providers") or PROVIDERS_DEFAULT),
        Path(str(compiled)) if compiled else None,
    )


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


def load_bundle(
    slot: Path, allowance: Allowance = NOTHING_SPECIAL, leave_out_device: Callable[[], None] | None = None
) -> LoadedBundle:
    """Load every member of a bundle.

    Args:
        slot: Its folder.
        allowance: What the device and the signed policy allow it.
        leave_out_device: Called before the first script is loaded, unless one of them asks for the device's packages:
            takes them off the import path.

    Raises:
        EdgeError: `artifact.*`, `model.load-failed`, `model.engine-unavailable`, `model.pickle-refused`,
            `device.memory-short`.
    """
    manifest, runtime = read_slot(slot)
    place = Place(slot / "files", slot / "site", manifest)
    scripts = [member for member in runtime.members if member.engine == "script"]
    if any(option(member, "imports") == "device" for member in scripts):
        leave_out_device = None
    engines: dict[str, Engine] = {}
    for member in sorted(runtime.members, key=lambda item: _LOAD_ORDER.index(item.engine)):
        if member.engine == "script" and leave_out_device is not None:
            leave_out_device()
            leave_out_device = None
        engines[member.name] = _load(member, place, runtime, allowance, engines)
    members = {member.name: _member(member, engines[member.name]) for member in runtime.members}
    return LoadedBundle(manifest, runtime, members, place, allowance)


def _load(member: Member, place: Place, runtime: Runtime, allowance: Allowance, loaded: Mapping[str, Engine]) -> Engine:
    try:
        return load_engine(member, place, runtime, allowance, loaded)
    except MemoryError as error:
        raise EdgeError("device.memory-short", f"{member.name!r} does not fit in memory") from error


def _member(member: Member, engine: Engine) -> LoadedMember:
    specs = (*engine.inputs, *engine.outputs)
    if member.batching and not (engine.inputs and all(spec.shape and spec.shape[0] == -1 for spec in specs)):
        raise EdgeError(
            "model.load-failed",
            f"{member.name!r} is to be batched, and the first size of its tensors is not free",
            "Export the model with a free batch size, or leave the batching out.",
        )
    allow_nonfinite = option(member, ALLOW_NONFINITE) == "true"
    return LoadedMember(member.name, engine, allow_nonfinite, batching=member.batching)


def prove_bundle(bundle: LoadedBundle) -> Proof | None:
    """Run the golden vectors, then warm up and measure every member. What was compiled and fails is loaded plainly.

    Returns:
        What the golden vectors showed, or none when the bundle has none.

    Raises:
        EdgeError: `model.*`, `artifact.golden-invalid`, `device.memory-short`.
    """
    compiled = _compiled(bundle)
    try:
        proof = _prove(bundle)
    except EdgeError as error:
        if not compiled:
            raise
        _log.warning("a compiled model fails, so it is dropped and loaded plainly: %s", error)
        _load_plainly(bundle, compiled)
        return _prove(bundle)
    for name, (engine, models) in compiled.items():
        models.confirm(engine.key)
        _log.info("%r is served from its compiled form, loaded with %.0f ms of CPU", name, engine.load_cpu_ms)
    return proof


def _compiled(bundle: LoadedBundle) -> dict[str, tuple[CompilableEngine, CompiledModels]]:
    """Members that were loaded from their compiled form."""
    folder = bundle.allowance.compiled
    if folder is None:
        return {}
    return {
        name: (engine, CompiledModels(folder))
        for name, member in bundle.members.items()
        if isinstance(engine := member.engine, CompilableEngine) and engine.is_compiled
    }


def _load_plainly(bundle: LoadedBundle, compiled: Mapping[str, tuple[CompilableEngine, CompiledModels]]) -> None:
    """Load some members again, and the pipelines, which may run them."""
    for engine, models in compiled.values():
        models.drop(engine.key)
    plain = replace(bundle.allowance, compiled=None)
    engines = {name: member.engine for name, member in bundle.members.items()}
    for member in sorted(bundle.runtime.members, key=lambda item: _LOAD_ORDER.index(item.engine)):
        if member.name in compiled or member.engine == "pipeline":
            engines[member.name] = _load(member, bundle.place, bundle.runtime, plain, engines)
            bundle.members[member.name].engine = engines[member.name]


def _prove(bundle: LoadedBundle) -> Proof | None:
    golden = bundle.runtime.golden
    try:
        data = read_golden(bundle.files / golden.path) if golden else b""
        vectors = parse_vectors(data) if golden else {}
        engines = {name: member.engine for name, member in bundle.members.items()}
        proof = prove_members(engines, vectors, golden) if golden else None
        bundle.golden_file = Digest.of(data) if golden else None
        for member in bundle.members.values():
            of_member = vectors.get(member.name)
            member.drift = Drift(of_member.outputs if of_member else None)
            _warm_up(member, of_member)
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
    inputs = _first_rows(engine, vectors.inputs) if vectors else made_up_inputs(engine)
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


def made_up_inputs(engine: Engine) -> dict[str, Array]:
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
