"""The LiteRT engine: TensorFlow Lite models through ai_edge_litert, or through tflite_runtime where that is what exists
(32-bit ARM). Both have the same interpreter; one interpreter serves one call at a time."""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from threading import Lock
from typing import Any, Final

import numpy as np

from edge_agent.worker.arrays import DTYPES, Array
from edge_agent.worker.engines import ALLOW_NONFINITE, Place, merge_signature, positive_option, require_options
from edge_agent.worker.limits import CORES_USED_MAX
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec

OPTIONS: Final = frozenset({ALLOW_NONFINITE, "threads"})
_THREADS_MAX: Final = 64
_DATATYPES: Final = {dtype: name for name, dtype in DTYPES.items() if name != "BYTES"}


def _interpreter_class() -> Any:
    try:
        return import_module("ai_edge_litert.interpreter").Interpreter
    except ImportError:
        try:
            return import_module("tflite_runtime.interpreter").Interpreter
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
        require_options(member, OPTIONS)
        self._name = member.name
        self._lock = Lock()
        path = place.file(member.entry)
        threads = positive_option(member, "threads", min(CORES_USED_MAX, len(os.sched_getaffinity(0))), _THREADS_MAX)
        interpreter_class = _interpreter_class()
        try:
            self._interpreter = interpreter_class(model_path=str(path), num_threads=threads)
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
        self._shapes = {name: tuple(int(n) for n in d["shape"]) for name, d in zip(names_in, inputs, strict=True)}

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
        interpreter = self._interpreter
        with self._lock:
            try:
                if any(self._shapes[name] != array.shape for name, array in inputs.items()):
                    for name, array in inputs.items():
                        interpreter.resize_tensor_input(self._inputs[name], list(array.shape))
                        self._shapes[name] = ()  # unknown until all of them are allocated
                    interpreter.allocate_tensors()
                    self._shapes = {name: array.shape for name, array in inputs.items()}
                for name, array in inputs.items():
                    interpreter.set_tensor(self._inputs[name], np.ascontiguousarray(array))
                interpreter.invoke()
                return {name: interpreter.get_tensor(self._outputs[name]) for name in names}
            except (RuntimeError, ValueError) as error:
                self._shapes = dict.fromkeys(self._shapes, ())
                raise EdgeError("model.inference-failed", f"{self._name!r} failed on this input: {error}") from error


def _spec(member: Member, name: str, detail: Mapping[str, Any]) -> TensorSpec:
    datatype = _DATATYPES.get(np.dtype(detail["dtype"]))
    if datatype is None:
        raise EdgeError("model.load-failed", f"{member.name!r}: the tensor {name!r} has a type that cannot be served")
    shape = detail.get("shape_signature")
    if shape is None or len(shape) != len(detail["shape"]):
        shape = detail["shape"]
    return TensorSpec(name, datatype, tuple(int(size) for size in shape))
