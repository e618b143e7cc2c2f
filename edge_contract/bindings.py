"""Bindings: which MQTT topics feed a model of a bundle, and where its predictions go (ADR 28).

A binding is part of the runtime descriptor, so its author signs it. Topics are templates: `{device}` and `{module}`
stand for the names of the device and of the module that serves the bundle. Topic names and filters follow MQTT 3.1.1
section 4.7 and MQTT 5 section 4.7, without empty levels and without names that begin with `$`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject
from edge_contract.limits import BINDINGS_MAX, TOPIC_CHARS_MAX, TOPIC_LEVELS_MAX, WAITING_DEFAULT, WAITING_MAX
from edge_contract.names import model_name
from edge_contract.tensors import ITEM_BYTES, TensorSpec

_CODE: Final = "artifact.runtime-invalid"

FORMS: Final = ("json", "tensor", "bytes")
"""What a message holds: a request, tensor or script's data as JSON; the bytes of one tensor; one element's bytes."""

ANSWERS: Final = ("json", "tensor", "result")
"""What a prediction goes out as: an inference response as JSON; the bytes of one tensor; what a script returned."""

OVERFLOWS: Final = ("oldest", "newest")
"""Which message goes when one comes and no more may wait."""

RESERVED_ROOT: Final = "lighterman"
"""First level of the topics between device and cloud, which no bundle may touch."""

_PLACES: Final = ("{device}", "{module}")

Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""Inputs and outputs of a member; empty where they are not known."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One model, the topics that feed it, and the topic of its predictions.

    Attributes:
        name: Of this binding, once in a bundle.
        member: The member that is asked.
        input_topic: Filter of the topics that are subscribed to; `+` and `#` may be used.
        output_topic: Where predictions go.
        error_topic: Where messages that got no prediction are answered.
        response_topics: Filter of the topics that a sender may name for its answer (MQTT 5); empty for none.
        form: One of `FORMS`.
        answer: One of `ANSWERS`.
        input: Tensor that a message of the form `tensor` or `bytes` is; empty for the only one.
        output: Tensor that an answer `tensor` is; empty for the only one.
        input_qos: Most that is asked for when subscribing, 0 or 1.
        output_qos: Of predictions and errors, 0 or 1.
        retain: Whether the broker keeps the last prediction for those who come later; errors are never kept.
        take_retained: Whether messages that the broker kept from before are predicted on, too.
        waiting_max: Messages that may wait for the model, `1..WAITING_MAX`.
        overflow: One of `OVERFLOWS`.
    """

    name: str
    member: str
    input_topic: str
    output_topic: str
    error_topic: str
    response_topics: str = ""
    form: str = "json"
    answer: str = "json"
    input: str = ""
    output: str = ""
    input_qos: int = 1
    output_qos: int = 1
    retain: bool = False
    take_retained: bool = False
    waiting_max: int = WAITING_DEFAULT
    overflow: str = "oldest"

    def to_json(self) -> JsonObject:
        """The JSON form that `read_binding` reads."""
        document: JsonObject = {
            "name": self.name,
            "member": self.member,
            "input_topic": self.input_topic,
            "output_topic": self.output_topic,
            "error_topic": self.error_topic,
            "form": self.form,
            "answer": self.answer,
            "input_qos": self.input_qos,
            "output_qos": self.output_qos,
            "retain": self.retain,
            "take_retained": self.take_retained,
            "waiting_max": self.waiting_max,
            "overflow": self.overflow,
        }
        for key, value in (
            ("response_topics", self.response_topics),
            ("input", self.input),
            ("output", self.output),
        ):
            if value:
                document[key] = value
        return document

    def expand(self, device: str, module: str) -> "Binding":
        """The binding with the names of a device and a module in its topics; such names hold no `/`, `+` or `#`."""

        def filled(template: str) -> str:
            return template.replace("{device}", device).replace("{module}", module)

        return replace(
            self,
            input_topic=filled(self.input_topic),
            output_topic=filled(self.output_topic),
            error_topic=filled(self.error_topic),
            response_topics=filled(self.response_topics),
        )

    def feeds(self, other: "Binding") -> bool:
        """Whether what this one publishes may be a message for the other."""
        if any(topic_matches(other.input_topic, topic) for topic in (self.output_topic, self.error_topic)):
            return True
        return bool(self.response_topics) and filters_overlap(other.input_topic, self.response_topics)


def read_binding(value: Any, code: str = _CODE) -> Binding:
    """Read one binding.

    Args:
        value: A JSON object; only `name`, `member`, `input_topic` and `output_topic` are required.
        code: Of the error.

    Raises:
        ContractError: `code` or another `artifact.` code.
    """
    fields = Fields(value, "binding", code)
    output = fields.text("output_topic", chars_max=TOPIC_CHARS_MAX)
    binding = Binding(
        name=model_name(fields.text("name")),
        member=model_name(fields.text("member")),
        input_topic=fields.text("input_topic", chars_max=TOPIC_CHARS_MAX),
        output_topic=output,
        error_topic=fields.text("error_topic", f"{output}/error", TOPIC_CHARS_MAX),
        response_topics=fields.text("response_topics", "", TOPIC_CHARS_MAX),
        form=fields.text("form", "json"),
        answer=fields.text("answer", "json"),
        input=fields.text("input", "", 256),
        output=fields.text("output", "", 256),
        input_qos=fields.integer("input_qos", 1, high=1),
        output_qos=fields.integer("output_qos", 1, high=1),
        retain=fields.flag("retain", False),
        take_retained=fields.flag("take_retained", False),
        waiting_max=fields.integer("waiting_max", WAITING_DEFAULT, low=1, high=WAITING_MAX),
        overflow=fields.text("overflow", "oldest"),
    )
    fields.close()
    for what, word, known in (
        ("form", binding.form, FORMS),
        ("answer", binding.answer, ANSWERS),
        ("overflow", binding.overflow, OVERFLOWS),
    ):
        if word not in known:
            raise _bad(binding, f"has the {what} {word!r}", code, f"Known: {', '.join(known)}.")
    _check_topic(binding, "input_topic", binding.input_topic, True, code)
    _check_topic(binding, "output_topic", binding.output_topic, False, code)
    _check_topic(binding, "error_topic", binding.error_topic, False, code)
    if binding.response_topics:
        _check_topic(binding, "response_topics", binding.response_topics, True, code)
    return binding


def check_bindings(
    bindings: Sequence[Binding],
    members: Mapping[str, Signature],
    code: str = _CODE,
    *,
    takes_json: Collection[str] = (),
) -> None:
    """Check all bindings of a bundle together.

    Args:
        bindings: As `read_binding` gave them.
        members: Signatures of the bundle's members by name; an empty side is not compared.
        code: Of the error.
        takes_json: Those members that take any JSON and no tensors.

    Raises:
        ContractError: `code`: a name twice, an unknown member, a form that does not fit the signature, an output that
            would come back as an input, two different filters that one topic matches.
    """
    if len(bindings) > BINDINGS_MAX:
        raise ContractError(code, f"{len(bindings)} bindings, at most {BINDINGS_MAX} are allowed")
    names: set[str] = set()
    for binding in bindings:
        if binding.name in names:
            raise _bad(binding, "stands twice", code)
        names.add(binding.name)
        if binding.member not in members:
            known = ", ".join(sorted(members))
            raise _bad(binding, f"asks {binding.member!r}, which is no member", code, f"Members: {known}.")
        inputs, outputs = members[binding.member]
        check_form(binding, inputs, outputs, code)
        if binding.member in takes_json and (binding.form != "json" or binding.answer == "tensor"):
            raise _bad(binding, f"asks {binding.member!r} with tensors, and it declares none", code)
        for other in bindings:
            # Unexpanded templates are compared: a place is a literal that equals nothing but itself.
            if binding.feeds(other):
                raise _bad(
                    binding,
                    f"publishes what {other.name!r} subscribes to with {other.input_topic!r}: messages would go round",
                    code,
                    "Models that feed each other are a pipeline.",
                )
            if binding.input_topic != other.input_topic and filters_overlap(binding.input_topic, other.input_topic):
                raise _bad(
                    binding,
                    f"has the input topic {binding.input_topic!r}, which overlaps {other.input_topic!r}",
                    code,
                    "Brokers differ in what such subscriptions get: make them equal, or disjoint.",
                )


def check_form(
    binding: Binding, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], code: str = _CODE
) -> None:
    """Refuse a binding whose messages or answers cannot be what its model takes and gives.

    Args:
        binding: To check.
        inputs: The model's inputs; an empty side is not compared.
        outputs: Its outputs.
        code: Of the error.

    Raises:
        ContractError: `code`.
    """
    if inputs and binding.form != "json":
        spec = _only(binding, "input", binding.input, inputs, code)
        if len(inputs) > 1:
            raise _bad(binding, f"has the form {binding.form!r}, and its model takes {len(inputs)} inputs", code)
        if binding.form == "bytes" and (spec.datatype != "BYTES" or any(size not in (-1, 1) for size in spec.shape)):
            raise _bad(binding, f"gives one BYTES element to {spec.datatype} {list(spec.shape)}", code)
        if binding.form == "tensor" and (not ITEM_BYTES[spec.datatype] or -1 in spec.shape[1:]):
            raise _bad(
                binding,
                f"gives raw bytes to {spec.datatype} {list(spec.shape)}, whose shape they do not tell",
                code,
                "Only the first size may be free, and elements have to have a fixed width.",
            )
    if outputs and binding.answer == "tensor":
        spec = _only(binding, "output", binding.output, outputs, code)
        if not ITEM_BYTES[spec.datatype]:
            raise _bad(binding, f"answers with the raw bytes of {spec.name!r}, whose elements have no width", code)
    if binding.answer == "result" and outputs:
        raise _bad(binding, "answers with a script's result, and its model has tensors", code)


def _only(binding: Binding, side: str, name: str, specs: Sequence[TensorSpec], code: str) -> TensorSpec:
    found = [spec for spec in specs if spec.name == name] if name else list(specs)
    if len(found) == 1:
        return found[0]
    names = ", ".join(spec.name for spec in specs)
    raise _bad(binding, f"has to name the {side} it means; {name or 'nothing'} is not one", code, f"They are: {names}.")


def pick(specs: Sequence[TensorSpec], name: str) -> TensorSpec | None:
    """The tensor of that name, or the only one when the name is empty; none when there is no such."""
    found = [spec for spec in specs if spec.name == name] if name else list(specs)
    return found[0] if len(found) == 1 else None


# --- topics -----------------------------------------------------------------------------------------------------------


def topic_matches(pattern: str, topic: str) -> bool:
    """Whether a topic filter matches a topic name (MQTT 5 section 4.7.1); a leading wildcard matches no `$` topic."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if levels[0].startswith("$") and wanted[0] in ("+", "#"):
        return False
    for place, level in enumerate(wanted):
        if level == "#":
            return True  # also the parent: `a/#` matches `a`
        if place >= len(levels) or level not in ("+", levels[place]):
            return False
    return len(wanted) == len(levels)


def filters_overlap(one: str, two: str) -> bool:
    """Whether some topic name matches both filters."""
    first, second = one.split("/"), two.split("/")
    for left, right in zip(first, second, strict=False):
        if "#" in (left, right):
            return True
        if left != right and "+" not in (left, right):
            return False
    shorter, longer = sorted((first, second), key=len)
    return len(shorter) == len(longer) or longer[len(shorter) :] == ["#"]


def topic_problem(topic: str, is_filter: bool) -> str:
    """Why a bundle may not subscribe to a filter, or publish to a topic; empty when it may.

    Args:
        topic: With its names filled in.
        is_filter: Whether it is subscribed to, so that wildcards may be used below the first level.
    """
    if not 0 < len(topic) <= TOPIC_CHARS_MAX:
        return f"has to have 1 to {TOPIC_CHARS_MAX} characters"
    levels = topic.split("/")
    if len(levels) > TOPIC_LEVELS_MAX:
        return f"has more than {TOPIC_LEVELS_MAX} levels"
    if "" in levels:
        return "has an empty level"
    if not topic.isprintable():
        return "has a character that cannot be printed"
    if levels[0].startswith("$") or levels[0] == RESERVED_ROOT:
        return f"begins with {levels[0]!r}, which is not for bundles"
    if is_filter and levels[0] in ("+", "#"):
        return "begins with a wildcard, which takes in topics of everybody"
    for place, level in enumerate(levels):
        if not any(mark in level for mark in "+#"):
            continue
        if not is_filter:
            return "has a wildcard"
        if level not in ("+", "#") or (level == "#" and place != len(levels) - 1):
            return "has a wildcard that is not a whole level, or '#' before the last"
    return ""


def _check_topic(binding: Binding, key: str, template: str, is_filter: bool, code: str) -> None:
    plain = template
    for place in _PLACES:
        plain = plain.replace(place, "x")
    problem = topic_problem(plain, is_filter) or topic_problem(template, is_filter)
    if "{" in plain or "}" in plain:
        problem = problem or f"has a brace that is no place; the places are {' and '.join(_PLACES)}"
    if problem:
        raise _bad(binding, f"has the {key} {template[:80]!r}, which {problem}", code)


def _bad(binding: Binding, why: str, code: str, hint: str = "") -> ContractError:
    return ContractError(code, f"the binding {binding.name!r} {why}", hint)
