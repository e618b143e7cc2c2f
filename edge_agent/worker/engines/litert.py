"""The LiteRT engine: TensorFlow Lite models through ai_edge_litert, or through tflite_runtime where that is what exists
(32-bit ARM). Both have the same interpreter; one interpreter serves one call at a time."""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from threading import Lock
from typing import Any, Final

import numpy as np

from edge_agent.worker.arrays import DTYPES, Array
from edge_agent.worker.engines import (
    Place,
    check_inputs,
    check_wanted,
    merge_signature,
    number_option,
    option,
)
from edge_agent.worker.limits import CORES_USED_MAX
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec

_DATATYPES: Final = {dtype: name for name, dtype in DTYPES.items() if name != "BYTES"}


def _runtime() -> Any:
    """The interpreter's module."""
    try:
        return import_module("ai_edge_litert.interpreter")
    except ImportError:
        try:
            return import_module("tflite_runtime.interpreter")
        except ImportError:
            raise ImportError("neither ai_edge_litert nor tflite_runtime is installed") from None


class LiteRtEngine:
    """A TensorFlow Lite interpreter. See `Engine`.

    Tensors may be called by the names of the model's first signature or by the tensors' own names; when the descriptor
    declares nothing, by the signature's where there is one.
    """

    platform = "tensorflow_tflite"
    is_concurrent = False
    is_quick = True

    def __init__(self, member: Member, place: Place) -> None:
        """Load the model.

        Raises:
            EdgeError: `model.load-failed`.
            ImportError: When there is no runtime.
        """
        self._name = member.name
        self._lock = Lock()
        path = place.file(member.entry)
        threads = number_option(member, "threads", min(CORES_USED_MAX, len(os.sched_getaffinity(0))))
        runtime = _runtime()
        # The only delegate that comes by default is XNNPACK.
        kind = "AUTO" if option(member, "xnnpack") == "on" else "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
        try:
            self._interpreter = runtime.Interpreter(
                model_path=str(path),
                num_threads=threads,
                experimental_op_resolver_type=getattr(runtime.OpResolverType, kind),
            )
            self._interpreter.allocate_tensors()
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
            names_in, names_out = self._names(member, inputs, outputs)
        except EdgeError:
            raise
        except Exception as error:  # ValueError and RuntimeError as a rule; a broken model is the author's either way
            raise EdgeError("model.load-failed", f"{member.name!r}: the interpreter cannot load it: {error}") from error
        self._inputs = {name: int(detail["index"]) for name, detail in zip(names_in, inputs, strict=True)}
        self._outputs = {name: int(detail["index"]) for name, detail in zip(names_out, outputs, strict=True)}
        found_in = [_spec(member, name, detail) for name, detail in zip(names_in, inputs, strict=True)]
        found_out = [_spec(member, name, detail) for name, detail in zip(names_out, outputs, strict=True)]
        self.inputs = merge_signature("input", member, member.inputs, found_in)
        self.outputs = merge_signature("output", member, member.outputs, found_out)
        self._shapes: dict[str, tuple[int, ...] | None]
        self._shapes = {name: tuple(int(n) for n in d["shape"]) for name, d in zip(names_in, inputs, strict=True)}
        self._texts = frozenset(spec.name for spec in found_out if spec.datatype == "BYTES")

    def _names(
        self, member: Member, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> tuple[list[str], list[str]]:
        """Which names inputs and outputs go by."""
        own_in, own_out = [str(item["name"]) for item in inputs], [str(item["name"]) for item in outputs]
        signatures = self._interpreter.get_signature_list()
        if not signatures:
            return own_in, own_out
        key = next(iter(signatures))
        runner = self._interpreter.get_signature_runner(key)
        by_index_in = {int(item["index"]): name for name, item in runner.get_input_details().items()}
        by_index_out = {int(item["index"]): name for name, item in runner.get_output_details().items()}
        key_in = [by_index_in.get(int(item["index"]), str(item["name"])) for item in inputs]
        key_out = [by_index_out.get(int(item["index"]), str(item["name"])) for item in outputs]
        declared_in, declared_out = {spec.name for spec in member.inputs}, {spec.name for spec in member.outputs}
        return (
            own_in if declared_in and declared_in <= set(own_in) else key_in,
            own_out if declared_out and declared_out <= set(own_out) else key_out,
        )

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute; see `Engine`. Any thread; callers wait for each other."""
        names = list(wanted) or [spec.name for spec in self.outputs]
        check_wanted(self._name, self.outputs, names)
        # Checked here, because the interpreter would bend the model to a wrong shape.
        check_inputs(self._name, self.inputs, inputs)
        with self._lock:
            try:
                return self._compute(inputs, names)
            except (RuntimeError, ValueError, TypeError) as error:
                self._shapes = dict.fromkeys(self._shapes, None)
                raise EdgeError("model.inference-failed", f"{self._name!r} failed on this input: {error}") from error

    def _compute(self, inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        interpreter = self._interpreter
        if any(self._shapes[name] != array.shape for name, array in inputs.items()):
            for name, array in inputs.items():
                interpreter.resize_tensor_input(self._inputs[name], list(array.shape))
                self._shapes[name] = None  # unknown until all of them are allocated
            interpreter.allocate_tensors()
            self._shapes = {name: array.shape for name, array in inputs.items()}
        for name, array in inputs.items():
            # A scalar would become an array of one number.
            interpreter.set_tensor(self._inputs[name], np.ascontiguousarray(array).reshape(array.shape))
        interpreter.invoke()
        outputs = {name: interpreter.get_tensor(self._outputs[name]) for name in names}
        return {name: _bytes(array) if name in self._texts else array for name, array in outputs.items()}


def _bytes(array: Array) -> Array:
    """Text as the runtime gives it, as the objects that the port promises."""
    result = np.empty(array.size, dtype=object)
    result[:] = [item if isinstance(item, bytes) else str(item).encode("utf-8") for item in array.ravel().tolist()]
    return result.reshape(array.shape)


def _spec(member: Member, name: str, detail: Mapping[str, Any]) -> TensorSpec:
    dtype = np.dtype(detail["dtype"])
    datatype = "BYTES" if dtype.kind in "SO" else _DATATYPES.get(dtype)
    if datatype is None:
        raise EdgeError("model.load-failed", f"{member.name!r}: the tensor {name!r} has a type that cannot be served")
    shape = detail.get("shape_signature")
    if shape is None or len(shape) != len(detail["shape"]):
        shape = detail["shape"]
    return TensorSpec(name, datatype, tuple(int(size) for size in shape))
