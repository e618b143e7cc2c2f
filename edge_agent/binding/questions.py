"""Turns a message into an inference request for the module's socket. Pure functions."""

import json
from dataclasses import dataclass
from math import prod
from typing import Any

from edge_agent.binding.limits import CORRELATION_BYTES_MAX, HOPS_MAX, MESSAGE_BYTES_MAX
from edge_agent.binding.messages import Message
from edge_agent.predict import as_request
from edge_contract.bindings import Binding, Signature, pick, topic_matches, topic_problem
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, is_nested_deeper
from edge_contract.limits import SAMPLE_DEPTH_MAX
from edge_contract.tensors import ITEM_BYTES, TensorSpec

_DEPTH_MAX = SAMPLE_DEPTH_MAX


@dataclass(frozen=True, slots=True)
class Question:
    """The body of a request of the Open Inference Protocol.

    Attributes:
        body: JSON, and binary tensor data behind it.
        json_bytes: Length of the JSON, or none when there is nothing behind it.
    """

    body: bytes
    json_bytes: int | None = None


def check_message(binding: Binding, message: Message) -> None:
    """Refuse what no model should see.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    if len(message.content) > MESSAGE_BYTES_MAX:
        raise _invalid(f"the message has {len(message.content)} bytes, at most {MESSAGE_BYTES_MAX} are taken")
    if len(message.correlation or b"") > CORRELATION_BYTES_MAX:
        raise _invalid(f"the correlation data is longer than {CORRELATION_BYTES_MAX} bytes")
    if message.hops >= HOPS_MAX:
        raise _invalid(
            f"{message.hops} predictions in a row led to this message", "Something publishes predictions as inputs."
        )
    if message.response_topic and binding.response_topics and not response_topic(binding, message):
        raise _invalid(
            f"the response topic {message.response_topic[:80]!r} is not one of {binding.response_topics!r}",
            "The bundle's author decides where answers may go.",
        )


def response_topic(binding: Binding, message: Message) -> str:
    """Where the sender wants the answer, if the binding lets it choose; empty otherwise."""
    topic = message.response_topic
    if not topic or not binding.response_topics or topic_problem(topic, False):
        return ""
    return topic if topic_matches(binding.response_topics, topic) else ""


def make_question(binding: Binding, signature: Signature, content: bytes) -> Question:
    """Make the request.

    Args:
        binding: Whose message it is.
        signature: Of its model, as the live bundle has it, checked with `check_form`.
        content: The message.

    Raises:
        EdgeError: `model.input-invalid` when the message is not of the binding's form.
    """
    inputs, outputs = signature
    wanted = pick(outputs, binding.output) if binding.answer == "tensor" else None
    if binding.form == "json":
        return _json_question(content, inputs, wanted)
    spec = pick(inputs, binding.input)
    if spec is None:
        raise _invalid(f"the model has no single input {binding.input!r} that a message could be")
    if binding.form == "bytes":
        shape, data = [1] * len(spec.shape), len(content).to_bytes(4, "little") + content
    else:
        shape, data = tensor_shape(spec, len(content)), content
    document: JsonObject = {
        "inputs": [
            {
                "name": spec.name,
                "datatype": spec.datatype,
                "shape": shape,
                "parameters": {"binary_data_size": len(data)},
            }
        ]
    }
    head = _encode(_wanting(document, wanted))
    return Question(head + data, len(head))


def tensor_shape(spec: TensorSpec, size: int) -> list[int]:
    """The shape of a tensor that was sent as so many bytes; a free first dimension is what they are enough for.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    fixed = spec.shape[1:] if spec.shape[:1] == (-1,) else spec.shape
    item = ITEM_BYTES[spec.datatype]
    if not item or -1 in fixed:
        raise _invalid(f"bytes alone do not tell the shape of {spec.datatype} {list(spec.shape)}")
    row = item * prod(fixed)
    if fixed == spec.shape:
        if size != row:
            raise _invalid(f"the message has {size} bytes, {spec.datatype} {list(spec.shape)} has {row}")
        return list(spec.shape)
    if not size or not row or size % row:
        raise _invalid(f"the message has {size} bytes, not a multiple of {row}: {spec.datatype} {list(spec.shape)}")
    return [size // row, *fixed]


def _json_question(content: bytes, inputs: tuple[TensorSpec, ...], wanted: TensorSpec | None) -> Question:
    value = read_json(content)
    document = as_request(value, [spec.to_json() for spec in inputs])
    if wanted is not None:
        if not isinstance(document, dict):
            raise _invalid("the message is not a request for tensors")
        document = _wanting(document, wanted)
    return Question(content if document is value else _encode(document))


def read_json(content: bytes) -> Any:
    """Parse a message's JSON; bounded in depth, and without NaN and infinities.

    Raises:
        EdgeError: `model.input-invalid`.
    """
    if is_nested_deeper(content, _DEPTH_MAX):
        raise _invalid(f"the message is nested deeper than {_DEPTH_MAX} levels, or not closed")
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_no_constant)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _invalid(f"the message is not JSON: {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _wanting(document: JsonObject, wanted: TensorSpec | None) -> JsonObject:
    """The request, for this output alone and as bytes."""
    if wanted is None:
        return document
    return {**document, "outputs": [{"name": wanted.name, "parameters": {"binary_data": True}}]}


def _encode(document: Any) -> bytes:
    try:
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise _invalid(f"the message cannot be written as a request: {error}") from None


def _invalid(detail: str, hint: str = "") -> EdgeError:
    return EdgeError("model.input-invalid", detail, hint)
