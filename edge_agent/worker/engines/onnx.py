"""The ONNX engine: onnxruntime, on the CPU unless bundle and device agree on another execution provider.

Plain `session.run` with cached names beats IO binding there (measured). `Session` is everything that touches
onnxruntime; `OnnxEngine` is a session whose inputs and outputs requests can carry.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from edge_agent.worker.arrays import Array
from edge_agent.worker.compiled import CompiledModels, key_of
from edge_agent.worker.engines import (
    Allowance,
    Place,
    check_inputs,
    check_wanted,
    merge_signature,
    number_option,
    option,
)
from edge_agent.worker.limits import COMPILED_FILE_BYTES_MIN, CORES_USED_MAX
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec

_log = logging.getLogger(__name__)

_DATATYPES: Final = {
    "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64", "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32",
    "tensor(int64)": "INT64", "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}  # fmt: skip
_GRAPH_LEVELS: Final = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
CPU: Final = "CPUExecutionProvider"
_LOG_ERRORS_ONLY: Final = 3
_LOG_FATAL_ONLY: Final = 4
_GRAPH_FILE: Final = "model.onnx"
_WEIGHTS_FILE: Final = "weights.bin"


class Session:
    """A model in onnxruntime.

    Attributes:
        inputs: What onnxruntime says of the inputs, in order.
        outputs: The same of the outputs.
    """

    def __init__(self, member: Member, path: Path, providers: Sequence[str], *, is_compiled: bool = False) -> None:
        """Load a model.

        Args:
            member: Whose options to follow.
            path: The model file.
            providers: Execution providers, the preferred one first.
            is_compiled: Whether the file is what `save_compiled` made: nothing is left to optimise.

        Raises:
            EdgeError: `model.load-failed`, `model.engine-unavailable` when a provider does not start.
        """
        self._name = member.name
        options = _options(member)
        if is_compiled:
            options.graph_optimization_level = _GRAPH_LEVELS["off"]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # the runtime's exceptions have no common base but this
            raise EdgeError(
                "model.load-failed", f"{member.name!r}: onnxruntime {onnxruntime.__version__} cannot load it: {error}"
            ) from error
        if missing := [name for name in providers if name not in session.get_providers()]:
            raise EdgeError(
                "model.engine-unavailable",
                f"{member.name!r}: the execution provider {missing[0]} does not start on this device",
                "The worker's log says why; its libraries or its hardware may be missing.",
            )
        session.disable_fallback()
        self.inputs, self.outputs = session.get_inputs(), session.get_outputs()
        self._run = session.run
        self._text_inputs = [item.name for item in self.inputs if item.type == "tensor(string)"]
        self._text_outputs = frozenset(item.name for item in self.outputs if item.type == "tensor(string)")

    def run(self, names: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
        """Compute outputs by name, in order. Any thread.

        Raises:
            EdgeError: `model.inference-failed`; `model.input-invalid` for BYTES that are not text.
        """
        if self._text_inputs:
            feed = {**feed, **{name: _texts(name, feed[name]) for name in self._text_inputs if name in feed}}
        try:
            values: list[Any] = self._run(names, feed)
        except Exception as error:  # as above
            raise EdgeError("model.inference-failed", f"{self._name!r} failed on this input: {error}") from error
        if self._text_outputs:
            pairs = zip(names, values, strict=True)
            return [_bytes(value) if name in self._text_outputs else value for name, value in pairs]
        return values


class OnnxEngine:
    """An onnxruntime session. See `Engine`.

    Attributes:
        key: Name of its compiled form; empty where there can be none.
        is_compiled: Whether it was loaded from that.
        load_cpu_ms: CPU time that loading took.
    """

    platform = "onnxruntime_onnx"
    is_concurrent = True
    is_quick = True

    def __init__(self, member: Member, place: Place, allowance: Allowance) -> None:
        """Load the model, from its compiled form where there is one that works.

        Raises:
            EdgeError: `model.load-failed`, `model.engine-unavailable`.
        """
        self._name = member.name
        path = place.file(member.entry)
        providers = _providers(member, allowance)
        self.key = compiled_key(member, place) if providers == [CPU] else ""
        self.is_compiled = False
        start_ns = time.process_time_ns()
        session = self._load_compiled(member, allowance.compiled) if allowance.compiled and self.key else None
        session = session or Session(member, path, providers)
        self.load_cpu_ms = (time.process_time_ns() - start_ns) / 1e6
        self.inputs = merge_signature("input", member, member.inputs, _signature(member, "input", session.inputs))
        found = _signature(member, "output", session.outputs, skip_others=True)
        self.outputs = merge_signature("output", member, member.outputs, found)
        if not self.outputs:
            raise EdgeError("model.load-failed", f"{member.name!r} has no tensors to give")
        self._run = session.run
        self._all = [spec.name for spec in self.outputs]

    def _load_compiled(self, member: Member, folder: Path) -> Session | None:
        models = CompiledModels(folder)
        found = models.find(self.key)
        if found is None:
            return None
        try:
            session = Session(member, found / _GRAPH_FILE, [CPU], is_compiled=True)
        except EdgeError as error:
            _log.warning("%r is loaded plainly: %s", member.name, error)
            models.drop(self.key)
            return None
        self.is_compiled = True
        return session

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute; see `Engine`. Any thread."""
        names = list(wanted) or self._all
        try:
            arrays = self._run(names, inputs)
        except EdgeError:
            # The runtime checks as well, so only what it refused is looked at again: whose fault was it?
            check_wanted(self._name, self.outputs, wanted)
            check_inputs(self._name, self.inputs, inputs)
            raise
        return dict(zip(names, arrays, strict=True))


def compiled_key(member: Member, place: Place) -> str:
    """The name of a member's compiled form; empty for a bundle without a manifest."""
    if place.manifest is None:
        return ""
    runtime = f"onnxruntime {onnxruntime.__version__}"
    facts = {"manifest": str(place.manifest), "entry": member.entry, "runtime": runtime, "options": member.options}
    return key_of(facts)


def save_compiled(member: Member, place: Place, folder: Path) -> Session:
    """Write the optimised graph and its prepacked weights into a folder, and load them.

    Raises:
        EdgeError: `model.load-failed`.
    """
    options = _options(member)
    options.log_severity_level = _LOG_FATAL_ONLY  # it warns that the result is for this processor: it is meant to be
    options.optimized_model_filepath = str(folder / _GRAPH_FILE)
    for name, value in (
        ("session.optimized_model_external_initializers_file_name", _WEIGHTS_FILE),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(COMPILED_FILE_BYTES_MIN)),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(name, value)
    try:
        onnxruntime.InferenceSession(str(place.file(member.entry)), options, providers=[CPU])
    except Exception as error:  # as above
        raise EdgeError("model.load-failed", f"{member.name!r} cannot be compiled: {error}") from error
    return Session(member, folder / _GRAPH_FILE, [CPU], is_compiled=True)


def _options(member: Member) -> Any:
    """Session options: what the bundle says, and for the rest what measured best on small devices (ADR 25)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = number_option(member, "threads", _threads_default())
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.graph_optimization_level = _GRAPH_LEVELS[option(member, "graph_level")]
    options.enable_cpu_mem_arena = option(member, "arena") == "on"
    options.enable_mem_pattern = option(member, "memory_pattern") == "on"
    # By default threads keep spinning for some 40 ms of CPU after every run.
    is_spinning = option(member, "spinning") == "on"
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if is_spinning else "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if spin_us := option(member, "spin_us"):
        options.add_session_config_entry("session.intra_op.spin_duration_us", spin_us)
    return options


def _threads_default() -> int:
    return min(CORES_USED_MAX, len(os.sched_getaffinity(0)))


def _providers(member: Member, allowance: Allowance) -> list[str]:
    """What the bundle asks for, the CPU last.

    Raises:
        EdgeError: `model.engine-unavailable`.
    """
    wanted = [*option(member, "providers").split(","), CPU]
    available = onnxruntime.get_available_providers()
    for name in wanted:
        if name not in allowance.providers and name != CPU:
            raise EdgeError(
                "model.engine-unavailable",
                f"{member.name!r} wants the execution provider {name}, which this device does not allow",
                f"Allowed: {', '.join(allowance.providers) or CPU}. The agent's configuration says which: "
                "[serving] providers.",
            )
        if name not in available:
            raise EdgeError(
                "model.engine-unavailable",
                f"{member.name!r} wants the execution provider {name}, which this device's onnxruntime does not have",
                f"It has: {', '.join(available)}.",
            )
    return list(dict.fromkeys(wanted))


def _signature(member: Member, kind: str, values: Sequence[Any], skip_others: bool = False) -> list[TensorSpec]:
    """Tensor signature of a session's inputs or outputs; outputs that are not tensors can be left out."""
    specs = []
    for value in values:
        datatype = _DATATYPES.get(value.type)
        if datatype is None:
            if skip_others:
                continue
            raise EdgeError("model.load-failed", f"{member.name!r}: the {kind} {value.name!r} is a {value.type}")
        shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in value.shape)
        specs.append(TensorSpec(value.name, datatype, shape))
    return specs


def _texts(name: str, array: Array) -> Array:
    """Text, which onnxruntime takes where the protocol has bytes."""
    texts = np.empty(array.size, dtype=object)
    try:
        texts[:] = [item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise EdgeError("model.input-invalid", f"the input {name!r} has BYTES that are not UTF-8 text") from None
    return texts.reshape(array.shape)


def _bytes(array: Array) -> Array:
    result = np.empty(array.size, dtype=object)
    result[:] = [str(item).encode("utf-8") for item in array.ravel().tolist()]
    return result.reshape(array.shape)
