"""One prediction for `edge-agent infer`: reads what a person typed as the input of a model."""

import json
from pathlib import Path
from typing import Any

from edge_agent.inference import InferenceClient
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import TENSOR_RANK_MAX
from edge_contract.names import model_name


def predict(run: Path, module: str, model: str, text: bytes) -> JsonObject:
    """Ask a module's live model.

    Args:
        run: The agent's run directory; the module's socket lies in it.
        module: Name of the module.
        model: Name of the model in it.
        text: The input: JSON.

    Returns:
        `{"model", "version", "manifest", "outputs": {name: {"datatype", "shape", "data"}}, "result"}`.

    Raises:
        EdgeError: `model.*`, `network.*`, `config.invalid`.
    """
    try:
        model_name(module)
    except ContractError as error:
        raise EdgeError("config.invalid", error.detail, error.hint) from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EdgeError(
            "model.input-invalid", f"the input is not JSON: {error}", "Put strings in double quotes."
        ) from None
    with InferenceClient(run / f"{module}.sock") as client:
        signature = client.metadata(model).get("inputs") or []
        prediction = client.infer_json(model, as_request(value, signature))
    return {
        "model": prediction.model,
        "version": prediction.version,
        "manifest": str(prediction.manifest),
        "outputs": {
            name: {"datatype": tensor.datatype, "shape": list(tensor.shape), "data": tensor.data}
            for name, tensor in prediction.outputs.items()
        },
        "result": prediction.result,
    }


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
