"""Turns what a module answered, or why it did not, into a message. Pure functions."""

import json
from dataclasses import dataclass
from typing import Any, Final

from edge_agent.binding.limits import HOPS_MAX
from edge_agent.binding.messages import Message, Outgoing
from edge_agent.binding.questions import response_topic
from edge_contract.bindings import Binding
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

JSON_TYPE: Final = "application/json"
BYTES_TYPE: Final = "application/octet-stream"
HOPS_FACT: Final = "lighterman-hops"


def read_hops(text: str) -> int:
    """Predictions that led to a message, as it says; what is no small number was not written by a binding."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else HOPS_MAX


@dataclass(frozen=True, slots=True)
class Reply:
    """The body of a response of the Open Inference Protocol, and who computed it.

    Attributes:
        manifest: Digest of the bundle.
        version: Its model version.
        body: JSON, and binary tensor data behind it.
        json_bytes: Length of the JSON, or none when there is nothing behind it.
    """

    manifest: Digest
    version: str
    body: bytes
    json_bytes: int | None = None


def make_answer(binding: Binding, module: str, message: Message, reply: Reply, latency_us: int) -> Outgoing:
    """Make the message that carries a prediction.

    Args:
        binding: Whose answer it is, with names filled in.
        module: Name of the module.
        message: What was asked.
        reply: What the module answered.
        latency_us: From the message's arrival to the answer.

    Raises:
        EdgeError: `model.output-invalid` when the answer is not what the binding sends, `model.input-invalid` when the
            sender wanted binary data in a JSON answer.
    """
    facts = {
        "lighterman-module": module,
        "lighterman-model": binding.member,
        "lighterman-version": reply.version,
        "lighterman-manifest": str(reply.manifest),
        "lighterman-latency-us": str(latency_us),
        "lighterman-topic": message.topic,
        HOPS_FACT: str(message.hops + 1),
    }
    content_type = JSON_TYPE
    if binding.answer == "tensor":
        tensor, content = _tensor(reply)
        content_type = BYTES_TYPE
        facts["lighterman-output"] = str(tensor.get("name"))
        facts["lighterman-datatype"] = str(tensor.get("datatype"))
        facts["lighterman-shape"] = ",".join(str(size) for size in tensor.get("shape") or [])
    else:
        if reply.json_bytes is not None:
            raise EdgeError("model.input-invalid", "the request wants binary data, and answers go out as JSON here")
        document = _object(reply.body)
        if binding.answer == "result":
            if "result" not in document:
                raise EdgeError("model.output-invalid", "the model gave tensors, not a script's result")
            content = _encode(document["result"])
        else:
            about = {"manifest": str(reply.manifest), "latency_us": latency_us, "topic": message.topic}
            content = _encode({**document, **about})
    target = response_topic(binding, message)
    return Outgoing(
        topic=target or binding.output_topic,
        content=content,
        qos=binding.output_qos,
        is_retained=binding.retain and not target,
        content_type=content_type,
        correlation=message.correlation,
        facts=tuple(facts.items()),
        answers=message.number,
    )


def make_error(binding: Binding, module: str, message: Message, error: EdgeError) -> Outgoing:
    """Make the message that says why there is no prediction. Never retained."""
    text = f"{error.detail} {error.hint}".strip()
    return Outgoing(
        topic=response_topic(binding, message) or binding.error_topic,
        content=_encode({"error": text, "code": error.code, "topic": message.topic}),
        qos=binding.output_qos,
        correlation=message.correlation,
        facts=(
            ("lighterman-module", module),
            ("lighterman-code", error.code),
            ("lighterman-topic", message.topic),
            (HOPS_FACT, str(message.hops + 1)),
        ),
        answers=message.number,
    )


def make_overload(binding: Binding, module: str, dropped: int) -> Outgoing:
    """Make the message that says how many were dropped since the last such message."""
    document = {
        "error": f"{dropped} messages came faster than {binding.member!r} answers, and were dropped",
        "code": "model.overloaded",
        "dropped": dropped,
        "overflow": binding.overflow,
    }
    facts = (("lighterman-module", module), ("lighterman-code", "model.overloaded"))
    return Outgoing(binding.error_topic, _encode(document), 0, facts=facts)


def _tensor(reply: Reply) -> tuple[JsonObject, bytes]:
    """The only tensor of a binary answer: what its JSON says, and its bytes."""
    if reply.json_bytes is None:
        raise EdgeError("model.output-invalid", "the model gave no tensor as bytes")
    tensors = _object(reply.body[: reply.json_bytes]).get("outputs")
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise EdgeError("model.output-invalid", "the model gave other tensors than the one that was asked for")
    return tensors[0], reply.body[reply.json_bytes :]


def _object(content: bytes) -> JsonObject:
    try:
        value: Any = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EdgeError("model.output-invalid", "the module's answer is not a JSON object")
    return value


def _encode(document: Any) -> bytes:
    try:
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, UnicodeEncodeError) as error:
        raise EdgeError("model.output-invalid", f"the answer cannot be written as JSON: {error}") from None
