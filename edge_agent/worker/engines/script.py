"""The script engine: the author's own Python, a module with `init()` and `run(data)` like a scoring script of Azure ML,
with the bundle's unpacked dependencies on `sys.path` (`edge_agent.worker.imports`).

`init()` is called once. `run(data)` gets numpy arrays by input name when the descriptor declares inputs, and whatever
JSON the client sent when it does not. It returns arrays, numbers, lists or a mapping of them by output name; without
declared inputs, anything that JSON can say, numpy values included. One call at a time, always in the same thread.

An exception of `run` is the script's failure, unless it has a true attribute `is_input_invalid`: then it is the
client's input that is wrong, and the client is told so.
"""

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from edge_agent.worker.arrays import DTYPES, Array, datatype_of
from edge_agent.worker.engines import Allowance, Place, check_inputs
from edge_agent.worker.imports import add_bundle
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member, Runtime
from edge_contract.tensors import TensorSpec

_KEPT_VARIABLES: Final = frozenset({"ORT_DISABLE_TELEMETRY"})


class PickleRefusedError(Exception):
    """A script unpickled something although its bundle does not allow it."""


_is_pickle_watched = False


def _refuse_pickles() -> None:
    """Make unpickling of classes and functions fail in this process from now on (PEP 578).

    Signed code could do the same without pickle; what this stops is a script that loads a pickle its author never meant
    to sign for.
    """
    global _is_pickle_watched
    if _is_pickle_watched:
        return
    _is_pickle_watched = True

    def watch(event: str, _arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            raise PickleRefusedError("its bundle does not say that it loads pickles (allow_pickle)")

    sys.addaudithook(watch)


class ScriptEngine:
    """A user's script. See `Engine` and `JsonEngine`."""

    platform = "python_script"
    is_concurrent = False
    is_quick = False

    def __init__(self, member: Member, place: Place, runtime: Runtime, allowance: Allowance) -> None:
        """Import the script and call its `init()`.

        Raises:
            EdgeError: `model.load-failed`; `model.pickle-refused` when the bundle says that it loads pickles and the
                signed policy does not permit it, and when the script loads one although its bundle does not say so.
        """
        if runtime.allow_pickle and not allowance.allow_pickle:
            raise EdgeError(
                "model.pickle-refused",
                f"the bundle of {member.name!r} wants to load pickles, and the deployment does not permit it",
                "Deploy it with the permit (allow_pickle in the policy), or save the model in another form.",
            )
        self._name = member.name
        self.inputs: tuple[TensorSpec, ...] = member.inputs
        self.outputs: tuple[TensorSpec, ...] = member.outputs
        # Scripts keep connections, files and thread-local state: they get one thread for life.
        self._thread = ThreadPoolExecutor(1, f"script-{member.name}")
        self._function = self._call("loading", self._import, member, place, runtime, code="model.load-failed")

    def _import(self, member: Member, place: Place, runtime: Runtime) -> Callable[[Any], Any]:
        path = place.file(member.entry)
        if not runtime.allow_pickle:
            _refuse_pickles()
        sys.dont_write_bytecode = True  # a slot stays what was verified
        add_bundle([path.parent, place.files, place.site])
        for name, value in runtime.config.items():
            if name not in _KEPT_VARIABLES:
                os.environ[name] = value
        os.environ.setdefault("AZUREML_MODEL_DIR", str(place.files))
        module_name = "lighterman_member_" + "".join(c if c.isalnum() else "_" for c in member.name)
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise EdgeError("model.load-failed", f"{member.name!r}: {member.entry!r} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
        run = getattr(module, "run", None)
        if not callable(run):
            raise EdgeError("model.load-failed", f"{member.name!r}: {member.entry!r} has no function run(data)")
        if inspect.iscoroutinefunction(run):
            raise EdgeError("model.load-failed", f"{member.name!r}: run(data) of {member.entry!r} must not be async")
        init = getattr(module, "init", None)
        if init is not None:
            init()
        function: Callable[[Any], Any] = run
        return function

    def _call(
        self, what: str, function: Callable[..., Any], *arguments: Any, code: str = "model.inference-failed"
    ) -> Any:
        try:
            return self._thread.submit(function, *arguments).result()
        except (EdgeError, MemoryError):
            raise
        except PickleRefusedError as error:
            hint = "Whoever signs the bundle has to say that it loads pickles, and whoever deploys it to permit it."
            raise EdgeError("model.pickle-refused", f"{self._name!r}: {error}", hint) from error
        except BaseException as error:  # a script may call sys.exit(); the worker goes on all the same
            if getattr(error, "is_input_invalid", False) is True:
                raise EdgeError("model.input-invalid", f"{self._name!r} cannot take this input: {error}") from error
            raise EdgeError(code, f"{self._name!r} failed while {what}: {type(error).__name__}: {error}") from error

    def run_json(self, data: Any) -> Any:
        """Compute from parsed JSON; see `JsonEngine`. Any thread; callers wait for each other."""
        return self._call("running", self._function, data)

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute from arrays; see `Engine`. Any thread; callers wait for each other."""
        check_inputs(self._name, self.inputs, inputs)
        result = self._call("running", self._function, dict(inputs))
        arrays = self._arrays(result)
        if missing := [name for name in wanted if name not in arrays]:
            raise EdgeError("model.input-invalid", f"{self._name!r} has no output {missing[0]!r}")
        return {name: arrays[name] for name in wanted} if wanted else arrays

    def _arrays(self, result: Any) -> dict[str, Array]:
        if not isinstance(result, Mapping):
            names = [spec.name for spec in self.outputs] or ["output"]
            if len(names) != 1:
                raise EdgeError(
                    "model.output-invalid", f"{self._name!r} has to return a mapping of its outputs by name"
                )
            result = {names[0]: result}
        if not self.outputs:
            return {str(name): self._array(str(name), value, None) for name, value in result.items()}
        arrays = {}
        for spec in self.outputs:
            if spec.name not in result:
                raise EdgeError("model.output-invalid", f"{self._name!r} did not return its output {spec.name!r}")
            array = self._array(spec.name, result[spec.name], spec.datatype)
            if not spec.fits(spec.datatype, array.shape):
                raise EdgeError(
                    "model.output-invalid",
                    f"{self._name!r} returned {spec.name!r} with the shape {list(array.shape)}, "
                    f"declared is {list(spec.shape)}",
                )
            arrays[spec.name] = array
        return arrays

    def _array(self, name: str, value: Any, datatype: str | None) -> Array:
        try:
            array: Array = np.asarray(value)
            if array.dtype.kind == "O" and not all(isinstance(item, bytes | str) for item in array.ravel()):
                raise TypeError("neither numbers nor text")
            found = datatype_of(array)
            if found == "BYTES" and datatype in (None, "BYTES"):
                return _bytes(array)
            return array if found == (datatype or found) else _cast(array, str(datatype))
        except (TypeError, ValueError, OverflowError) as error:
            raise EdgeError("model.output-invalid", f"{self._name!r} returned an unusable {name!r}: {error}") from error


def _cast(array: Array, datatype: str) -> Array:
    """Bring an output to its declared datatype, without losing anything but the precision of floats.

    Raises:
        TypeError: When something else would be lost.
    """
    dtype = DTYPES[datatype]
    if dtype.kind == "f" and array.dtype.kind in "fiub":
        return array.astype(dtype)
    if dtype.kind in "iu" and array.dtype.kind in "iub":
        cast = array.astype(dtype)
        if np.array_equal(cast, array):
            return cast
    raise TypeError(f"values of type {array.dtype} do not fit {datatype}")


def _bytes(array: Array) -> Array:
    """Text and bytes as the objects that the port promises."""
    result = np.empty(array.size, dtype=object)
    result[:] = [item if isinstance(item, bytes) else str(item).encode("utf-8") for item in array.ravel().tolist()]
    return result.reshape(array.shape)
