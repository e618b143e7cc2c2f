"""The ONNX engine: onnxruntime on the CPU (measured: plain `session.run` with cached names beats IO binding there)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime

from edge_agent.worker.arrays import Array
from edge_agent.worker.engines import (
    ALLOW_NONFINITE,
    Place,
    choice_option,
    merge_signature,
    positive_option,
    require_options,
)
from edge_agent.worker.limits import CORES_USED_MAX
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec

OPTIONS: Final = frozenset({ALLOW_NONFINITE, "spinning", "threads"})
"""`threads`: intra-op threads (default the cores, at most two). `spinning`: `on` trades half of the CPU for latency."""

_DATATYPES: Final = {
    "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64", "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32",
    "tensor(int64)": "INT64", "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}  # fmt: skip

_THREADS_MAX: Final = 64
_LOG_ERRORS_ONLY: Final = 3


class OnnxEngine:
    """An onnxruntime session. See `Engine`."""

    platform = "onnxruntime_onnx"
    is_concurrent = True
    is_quick = True

    def __init__(self, member: Member, place: Place) -> None:
        """Load the model.

        Raises:
            EdgeError: `model.load-failed`.
        """
        require_options(member, OPTIONS)
        self._name = member.name
        path = place.file(member.entry)
        try:
            self._run = self._load(member, str(path))
        except EdgeError:
            raise
        except Exception as error:  # the runtime's exceptions have no common base but this
            raise EdgeError(
                "model.load-failed", f"{member.name!r}: onnxruntime {onnxruntime.__version__} cannot load it: {error}"
            ) from error
        self._strings = {spec.name for spec in self.inputs if spec.datatype == "BYTES"}
        self._all = [spec.name for spec in self.outputs]

    def _load(self, member: Member, path: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = positive_option(member, "threads", _threads_default(), _THREADS_MAX)
        options.inter_op_num_threads = 1
        options.log_severity_level = _LOG_ERRORS_ONLY
        # By default threads keep spinning for some 40 ms of CPU after every run.
        spinning = "1" if choice_option(member, "spinning", ("off", "on")) == "on" else "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = merge_signature("input", member, member.inputs, _signature(member, "input", session.get_inputs()))
        found = _signature(member, "output", session.get_outputs(), skip_others=True)
        self.outputs = merge_signature("output", member, member.outputs, found)
        if not self.inputs or not self.outputs:
            raise EdgeError("model.load-failed", f"{member.name!r} has no tensors to give or take")
        return session.run

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute; see `Engine`. Any thread."""
        names = list(wanted) or self._all
        feed = dict(inputs)
        for name in self._strings:
            feed[name] = _texts(name, inputs[name])
        try:
            arrays = self._run(names, feed)
        except Exception as error:  # as above
            raise EdgeError("model.inference-failed", f"{self._name!r} failed on this input: {error}") from error
        return dict(zip(names, arrays, strict=True))


def _threads_default() -> int:
    return min(CORES_USED_MAX, len(os.sched_getaffinity(0)))


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
        texts[:] = [item.decode("utf-8") for item in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise EdgeError("model.input-invalid", f"the input {name!r} has BYTES that are not UTF-8 text") from None
    return texts.reshape(array.shape)
