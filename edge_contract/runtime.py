"""The runtime descriptor: how a device runs a bundle.

A layer of the bundle at `RUNTIME_PATH`, so the bundle's signature covers it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from edge_contract.bindings import Binding, check_bindings, read_binding
from edge_contract.engines import ENGINES, ENTRIES
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object
from edge_contract.limits import (
    BINDINGS_MAX,
    MEMBERS_MAX,
    PROBATION_MS_DEFAULT,
    PROBATION_MS_MAX,
    RATIO_MAX,
    RUNTIME_BYTES_MAX,
    STEPS_MAX,
    TENSORS_MAX,
)
from edge_contract.names import model_name, relative_path
from edge_contract.pipeline import Batching, Step, order_steps, read_batching, read_step
from edge_contract.tensors import TensorSpec

SCHEMA: Final = "lighterman.runtime/1"
RUNTIME_PATH: Final = "lighterman/runtime.json"
GOLDEN_PATH: Final = "lighterman/golden.safetensors"
WHEELS_FOLDER: Final = "wheels"
_CODE: Final = "artifact.runtime-invalid"


@dataclass(frozen=True, slots=True)
class Golden:
    """Golden vectors of a bundle: tensors `<member>/input/<name>` and `<member>/output/<name>` in one safetensors file.

    Attributes:
        path: Path of the file in the bundle.
        rtol: Relative tolerance, as in `|got - want| <= atol + rtol * |want|`.
        atol: Absolute tolerance.
    """

    path: str = GOLDEN_PATH
    rtol: float = 1e-3
    atol: float = 1e-4


@dataclass(frozen=True, slots=True)
class Member:
    """One model inside a bundle, served under its name.

    Attributes:
        name: Name in inference requests.
        engine: One of `edge_contract.engines.ENGINES`.
        entry: Path in the bundle of the model file, or of the script with `init()` and `run(data)`; empty for a
            pipeline.
        inputs: Tensor signature of the inputs; empty for a script that takes any JSON.
        outputs: Tensor signature of the outputs.
        options: Engine options by name (`edge_contract.engines.OPTIONS`); values are strings.
        steps: What a pipeline runs, in an order in which it can; empty for every other engine.
        batching: How requests are computed together, or none: each alone.
    """

    name: str
    engine: str
    entry: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    batching: Batching | None = None

    def to_json(self) -> JsonObject:
        """The JSON form that a descriptor holds."""
        document: JsonObject = {
            "name": self.name,
            "engine": self.engine,
            "inputs": [item.to_json() for item in self.inputs],
            "outputs": [item.to_json() for item in self.outputs],
            "options": self.options,
        }
        if self.entry:
            document["entry"] = self.entry
        if self.steps:
            document["steps"] = [step.to_json() for step in self.steps]
        if self.batching is not None:
            document["batching"] = self.batching.to_json()
        return document


@dataclass(frozen=True, slots=True)
class Probation:
    """When a freshly activated model is good enough to commit.

    Attributes:
        window_ms: How long it is watched, `0..PROBATION_MS_MAX`.
        failure_ratio_max: Failed over all requests in the window above which it is rolled back, `0..1`.
        nonfinite_ratio_max: Answers with NaN or infinity for finite inputs over all answers, above which it is too.
        latency_ratio_max: How much slower than its predecessor it may be, at the median and at the 99th percentile;
            0 when that is not judged.
        drift_max: How far, in standard deviations, the mean of its live outputs may lie from that of its golden
            outputs; 0 when that is not judged.
    """

    window_ms: int = PROBATION_MS_DEFAULT
    failure_ratio_max: float = 0.05
    nonfinite_ratio_max: float = 0.01
    latency_ratio_max: float = 0.0
    drift_max: float = 0.0


@dataclass(frozen=True, slots=True)
class Runtime:
    """The whole descriptor.

    Attributes:
        model: Name of the model this bundle holds a version of.
        version: Its version number, from 1.
        members: `1..MEMBERS_MAX` models served by one worker.
        golden: Where the golden vectors are, or none.
        probation: Probation policy.
        load_peak_bytes: Memory the worker needs while loading, as measured by the author; 0 when unknown.
        sampling_ratio: Share of requests whose inputs and predictions are collected, `0..1`.
        allow_pickle: Whether scripts may load pickles; off unless the author signs for it.
        config: Free deployment configuration for scripts (environment of `init()`), strings.
        bindings: MQTT topics that feed the members, at most `BINDINGS_MAX`.
    """

    model: str
    version: int
    members: tuple[Member, ...]
    golden: Golden | None = None
    probation: Probation = Probation()
    load_peak_bytes: int = 0
    sampling_ratio: float = 1.0
    allow_pickle: bool = False
    config: dict[str, str] = field(default_factory=dict)
    bindings: tuple[Binding, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> "Runtime":
        """Read a descriptor from verified bytes.

        Raises:
            ContractError: `artifact.runtime-invalid` or another `artifact.` code.
        """
        fields = Fields(parse_object(data, "runtime descriptor", RUNTIME_BYTES_MAX), "runtime descriptor", _CODE)
        fields.schema(SCHEMA)
        members = tuple(_member(item) for item in fields.items("members", MEMBERS_MAX, required=True))
        if not members or len({member.name for member in members}) != len(members):
            raise ContractError(_CODE, "a runtime descriptor lists members with different names")
        members = order_pipelines(members)
        result = cls(
            model=model_name(fields.text("model")),
            version=fields.integer("version", low=1),
            members=members,
            golden=_golden(fields.take("golden")),
            probation=_probation(fields.take("probation")),
            load_peak_bytes=fields.integer("load_peak_bytes", 0),
            sampling_ratio=fields.number("sampling_ratio", 1.0, high=1.0),
            allow_pickle=fields.flag("allow_pickle", False),
            config=fields.mapping("config", 256),
            bindings=tuple(read_binding(item) for item in fields.items("bindings", BINDINGS_MAX)),
        )
        fields.close()
        check_bindings(
            result.bindings,
            {member.name: (member.inputs, member.outputs) for member in members},
            takes_json=[member.name for member in members if member.engine == "script" and not member.inputs],
        )
        return result

    def to_bytes(self) -> bytes:
        """The reproducible bytes of the descriptor."""
        document: JsonObject = {
            "schema": SCHEMA,
            "model": self.model,
            "version": self.version,
            "members": [member.to_json() for member in self.members],
            "probation": {
                "window_ms": self.probation.window_ms,
                "failure_ratio_max": self.probation.failure_ratio_max,
                "nonfinite_ratio_max": self.probation.nonfinite_ratio_max,
                "latency_ratio_max": self.probation.latency_ratio_max,
                "drift_max": self.probation.drift_max,
            },
            "load_peak_bytes": self.load_peak_bytes,
            "sampling_ratio": self.sampling_ratio,
            "allow_pickle": self.allow_pickle,
            "config": self.config,
        }
        if self.bindings:
            document["bindings"] = [binding.to_json() for binding in self.bindings]
        if self.golden:
            document["golden"] = {"path": self.golden.path, "rtol": self.golden.rtol, "atol": self.golden.atol}
        return dump(document)


def order_pipelines(members: Sequence[Member]) -> tuple[Member, ...]:
    """The members with the steps of their pipelines checked and in an order in which they can run.

    Raises:
        ContractError: `artifact.runtime-invalid`, see `order_steps`.
    """
    models = {member.name: (member.inputs, member.outputs) for member in members if member.engine in ENTRIES}
    return tuple(
        member
        if member.engine in ENTRIES
        else replace(member, steps=order_steps(member.name, member.inputs, member.outputs, member.steps, models))
        for member in members
    )


def _member(value: Any) -> Member:
    fields = Fields(value, "member", _CODE)
    engine = fields.text("engine")
    if engine not in ENGINES:
        raise ContractError(_CODE, f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    member = Member(
        name=model_name(fields.text("name")),
        engine=engine,
        entry=relative_path(fields.text("entry")) if engine in ENTRIES else "",
        inputs=tuple(TensorSpec.from_json(item) for item in fields.items("inputs", TENSORS_MAX)),
        outputs=tuple(TensorSpec.from_json(item) for item in fields.items("outputs", TENSORS_MAX)),
        options=fields.mapping("options", 64),
        steps=() if engine in ENTRIES else tuple(read_step(item) for item in fields.items("steps", STEPS_MAX)),
        batching=read_batching(fields.take("batching")),
    )
    fields.close()
    if member.batching is not None and not all(
        spec.shape and spec.shape[0] == -1 for spec in (*member.inputs, *member.outputs)
    ):
        raise ContractError(
            _CODE, f"member {member.name!r} is batched, so the first size of its tensors has to be free"
        )
    for signature in (member.inputs, member.outputs):
        if len({tensor.name for tensor in signature}) != len(signature):
            raise ContractError(_CODE, f"member {member.name!r} names the same tensor twice")
    return member


def _golden(value: Any) -> Golden | None:
    if value is None:
        return None
    fields = Fields(value, "golden", _CODE)
    golden = Golden(relative_path(fields.text("path")), fields.number("rtol"), fields.number("atol"))
    fields.close()
    return golden


def _probation(value: Any) -> Probation:
    if value is None:
        return Probation()
    fields = Fields(value, "probation", _CODE)
    probation = Probation(
        window_ms=fields.integer("window_ms", high=PROBATION_MS_MAX),
        failure_ratio_max=fields.number("failure_ratio_max", high=1.0),
        nonfinite_ratio_max=fields.number("nonfinite_ratio_max", 0.01, high=1.0),
        latency_ratio_max=fields.number("latency_ratio_max", 0.0, high=RATIO_MAX),
        drift_max=fields.number("drift_max", 0.0, high=RATIO_MAX),
    )
    fields.close()
    return probation
