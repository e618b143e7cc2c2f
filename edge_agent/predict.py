"""Predictions for `edge-agent infer`: reads what a person gave as the inputs of a model, asks, and sums up."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edge_agent.inference import InferenceClient, Prediction, Tensor
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import MIB, TENSOR_RANK_MAX
from edge_contract.names import model_name
from edge_contract.tensors import ITEM_BYTES

INPUT_BYTES_MAX: Final = 64 * MIB
"""One input file: no worker takes a larger request."""
REPEAT_MAX: Final = 1_000_000
ARRAYS: Final = (".npy", ".npz")

_JSON_SUFFIXES: Final = ("", ".json")


@dataclass(frozen=True, slots=True)
class Given:
    """Inputs as they were given: one document of JSON, or values by input name.

    Attributes:
        text: The JSON, or none.
        values: numpy arrays, parsed JSON, or the bytes of a file, by the name of the input; "" for the only one.
    """

    text: bytes | None = None
    values: dict[str, Any] = field(default_factory=dict)


def read_inputs(sources: Sequence[str], standard_input: Callable[[], bytes]) -> Given:
    """Read `FILE`, `NAME=FILE` or `-`.

    `.npy` is an array, `.npz` are arrays by name, `.json` and no suffix are JSON, any other file (an image, a sound) is
    bytes.

    Raises:
        EdgeError: `config.invalid`, `model.input-invalid`.
    """
    if len(sources) == 1 and "=" not in sources[0] and Path(sources[0]).suffix in _JSON_SUFFIXES:
        return Given(standard_input() if sources[0] == "-" else _read(Path(sources[0])))
    values: dict[str, Any] = {}
    for source in sources:
        name, is_named, place = source.rpartition("=")
        path = Path(place)
        if place == "-":
            found = {name: _parse(standard_input())}
        elif path.suffix in ARRAYS:
            found = {name if not key or is_named else key: array for key, array in _arrays(path).items()}
        else:
            data = _read(path)
            found = {name: _parse(data) if path.suffix in _JSON_SUFFIXES else data}
        if again := sorted(set(found) & set(values)):
            raise EdgeError(
                "config.invalid",
                f"the input {again[0]!r} is given twice",
                "Name each: --input image=cat.jpg --input threshold=threshold.npy",
            )
        values.update(found)
    return Given(values=values)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(INPUT_BYTES_MAX + 1)
    except OSError as error:
        raise EdgeError("config.invalid", f"the input {path} cannot be read: {error.strerror}") from error
    if len(data) > INPUT_BYTES_MAX:
        raise EdgeError("config.invalid", f"the input {path} has more than {INPUT_BYTES_MAX} bytes")
    return data


def _arrays(path: Path) -> dict[str, Any]:
    try:
        from edge_agent.inference_arrays import load_arrays
    except ImportError as error:
        raise EdgeError(
            "config.invalid", f"reading {path} needs numpy, which is not installed", "Give the input as JSON."
        ) from error
    return load_arrays(path, INPUT_BYTES_MAX)


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EdgeError(
            "model.input-invalid", f"the input is not JSON: {error}", "Put strings in double quotes."
        ) from None


def predict(run: Path, module: str, model: str, given: Given, repeat: int = 1, uses_frames: bool = True) -> JsonObject:
    """Ask a module's live model.

    Args:
        run: The agent's run directory; the module's socket lies in it.
        module: Name of the module.
        model: Name of the model in it.
        given: The inputs.
        repeat: How often to ask, one after the other; the last answer is given.
        uses_frames: Whether arrays and files go as frames. JSON goes by HTTP as it is.

    Returns:
        `{"model", "version", "manifest", "outputs": {name: {"datatype", "shape", "data"}}, "result"}`, and with
        `repeat` above 1 `"latency"`, see `summary`.

    Raises:
        EdgeError: `model.*`, `network.*`, `config.invalid`.
    """
    try:
        model_name(module)
    except ContractError as error:
        raise EdgeError("config.invalid", error.detail, error.hint) from None
    document = None if given.text is None else _parse(given.text)
    with InferenceClient(run / f"{module}.sock", uses_frames=uses_frames) as client:
        signature = client.metadata(model).get("inputs") or []
        ask: Callable[[], Prediction]
        if given.text is not None:
            request = as_request(document, signature)

            def ask() -> Prediction:
                return client.infer_json(model, request)
        else:
            tensors = as_tensors(given.values, signature)

            def ask() -> Prediction:
                return client.infer(model, tensors, is_binary=False)

        prediction, times_ns = _repeat(ask, repeat)
    found = as_json(prediction)
    if repeat > 1:
        found["latency"] = summary(times_ns)
    return found


def _repeat(ask: Callable[[], Prediction], count: int) -> tuple[Prediction, list[int]]:
    """The last answer, and what each took in nanoseconds."""
    times_ns: list[int] = []
    while True:
        begun = time.perf_counter_ns()
        prediction = ask()
        times_ns.append(time.perf_counter_ns() - begun)
        if len(times_ns) >= count:
            return prediction, times_ns


def as_json(prediction: Prediction) -> JsonObject:
    """A prediction as it is printed; NaN and infinities, which JSON does not have, are null."""
    return {
        "model": prediction.model,
        "version": prediction.version,
        "manifest": str(prediction.manifest),
        "outputs": {
            name: {"datatype": tensor.datatype, "shape": list(tensor.shape), "data": _finite(tensor.data)}
            for name, tensor in prediction.outputs.items()
        },
        "result": prediction.result,
    }


def _finite(data: list[Any] | bytes) -> list[Any]:
    return [None if isinstance(item, float) and not math.isfinite(item) else item for item in data]


def summary(times_ns: Sequence[int]) -> JsonObject:
    """What repeated requests took, in microseconds, seen by this client.

    Returns:
        `{"count", "mean_us", "p50_us", "p90_us", "p99_us", "max_us", "per_s"}`.
    """
    ordered = sorted(times_ns)

    def share(part: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))] / 1000, 1)

    return {
        "count": len(ordered),
        "mean_us": round(math.fsum(ordered) / len(ordered) / 1000, 1),
        "p50_us": share(0.5),
        "p90_us": share(0.9),
        "p99_us": share(0.99),
        "max_us": round(ordered[-1] / 1000, 1),
        "per_s": round(1e9 * len(ordered) / max(1, sum(ordered)), 1),
    }


def as_tensors(values: dict[str, Any], signature: list[Any]) -> list[Tensor]:
    """Tensors out of arrays, parsed JSON and files.

    Args:
        values: By input name; "" for the only one.
        signature: The model's inputs as its metadata lists them.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    if not signature:
        raise EdgeError(
            "model.input-invalid", "the model declares no tensors", "Give what its script takes as one JSON document."
        )
    names = [str(item["name"]) for item in signature]
    if set(values) == {""} and len(names) == 1:
        values = {names[0]: values[""]}
    if set(values) != set(names):
        given = ", ".join(sorted(filter(None, values))) or "one without a name"
        raise EdgeError(
            "model.input-invalid",
            f"the inputs given are: {given}",
            f"The model's inputs are: {', '.join(names)}; --input NAME=FILE says which is which.",
        )
    return [_tensor(values[item["name"]], item) for item in signature]


def _tensor(value: Any, spec: JsonObject) -> Tensor:
    name, datatype, wanted = str(spec["name"]), str(spec["datatype"]), [int(size) for size in spec["shape"]]
    if isinstance(value, bytes):
        return _of_file(name, datatype, wanted, value)
    if not isinstance(value, str | bool | int | float | list | None):
        from edge_agent.inference_arrays import as_tensors as of_arrays

        return of_arrays({name: value}, [spec])[0]
    return Tensor(name, datatype, tuple(_shape(value)), _flat(value))


def _of_file(name: str, datatype: str, wanted: list[int], data: bytes) -> Tensor:
    """A file: one element of BYTES, or the raw numbers of a tensor whose shape they fill."""
    if datatype == "BYTES":
        shape = tuple(1 if size == -1 else size for size in wanted)
        if math.prod(shape) != 1:
            raise EdgeError("model.input-invalid", f"a file is one element, {name!r} is {datatype}{wanted}")
        return Tensor(name, datatype, shape, len(data).to_bytes(4, "little") + data)
    known = math.prod(size for size in wanted if size != -1) * ITEM_BYTES.get(datatype, 1)
    free = wanted.count(-1)
    rows, rest = divmod(len(data), known) if known else (0, 1)
    if rest or free > 1 or (not free and rows != 1):
        raise EdgeError(
            "model.input-invalid",
            f"a file of {len(data)} bytes is no tensor {datatype}{wanted}",
            "A model that takes images as files has an input of BYTES; else give an array (.npy).",
        )
    return Tensor(name, datatype, tuple(rows if size == -1 else size for size in wanted), data)


def as_request(value: Any, signature: list[Any]) -> Any:
    """Make a request of the Open Inference Protocol out of a bare tensor, or of tensors by name.

    Args:
        value: What was typed.
        signature: The model's inputs as its metadata lists them; empty for a script that takes any JSON.

    Returns:
        A request; `value` itself when it is one already, or the model takes any JSON.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    if not signature or (isinstance(value, dict) and isinstance(value.get("inputs"), list)):
        return value
    names = [str(item["name"]) for item in signature]
    if not isinstance(value, dict):
        if len(names) != 1:
            raise EdgeError(
                "model.input-invalid",
                f"the model has {len(names)} inputs",
                f"Give an object with the keys {', '.join(names)}.",
            )
        value = {names[0]: value}
    if set(value) != set(names):
        raise EdgeError(
            "model.input-invalid", f"the input names {sorted(value)}", f"The model's inputs are: {', '.join(names)}."
        )
    return {
        "inputs": [
            {
                "name": item["name"],
                "datatype": item["datatype"],
                "shape": _shape(value[item["name"]]),
                "data": _flat(value[item["name"]]),
            }
            for item in signature
        ]
    }


def _shape(value: Any) -> list[int]:
    shape: list[int] = []
    while isinstance(value, list) and len(shape) <= TENSOR_RANK_MAX:
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _flat(value: Any) -> list[Any]:
    """The elements in row-major order; ragged nesting is refused, because its shape would be a guess."""
    shape = _shape(value)
    items = [value]
    for size in shape:
        if not all(isinstance(item, list) and len(item) == size for item in items):
            raise EdgeError("model.input-invalid", "the nested arrays of the input have different lengths")
        items = [inner for item in items for inner in item]
    if not all(isinstance(item, str | bool | int | float) for item in items):
        raise EdgeError("model.input-invalid", "the arrays of the input hold something else than numbers and strings")
    return items
