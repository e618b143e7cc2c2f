"""Bindings: topics as MQTT means them, one meaning or refused, and nothing that goes round."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_contract.bindings import (
    Binding,
    check_bindings,
    filters_overlap,
    pick,
    read_binding,
    topic_matches,
    topic_problem,
)
from edge_contract.errors import ContractError
from edge_contract.limits import BINDINGS_MAX
from edge_contract.runtime import Member, Runtime
from edge_contract.tensors import TensorSpec

PLAIN = {"name": "b", "member": "m", "input_topic": "in/{device}/+", "output_topic": "out/{device}/{module}"}
X, IMAGE = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("image", "BYTES", (-1,))
Y = TensorSpec("y", "FP32", (-1, 2))

_levels = st.sampled_from(["a", "b", "c"])
_topics = st.lists(_levels, min_size=1, max_size=4).map("/".join)
_filters = st.builds(
    lambda levels, tail: "/".join([*levels, *tail]),
    st.lists(st.sampled_from(["a", "b", "+"]), min_size=1, max_size=3),
    st.sampled_from([[], ["#"]]),
)


@pytest.mark.parametrize(
    ("pattern", "topic", "is_match"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/+/c", "a/b/c", True),
        ("#", "$SYS/load", False),
        ("+/load", "$SYS/load", False),
        ("$SYS/#", "$SYS/load", True),
    ],
)
def test_filters_match_as_the_specification_says(pattern: str, topic: str, is_match: bool) -> None:
    assert topic_matches(pattern, topic) is is_match


@given(_filters, _filters, _topics)
def test_filters_that_match_one_topic_overlap(one: str, two: str, topic: str) -> None:
    if topic_matches(one, topic) and topic_matches(two, topic):
        assert filters_overlap(one, two)
        assert filters_overlap(two, one)


@given(_filters, _filters)
def test_filters_that_overlap_match_one_topic(one: str, two: str) -> None:
    if filters_overlap(one, two):
        first, second = one.split("/"), two.split("/")
        depth = max(len(first), len(second))

        def level(side: list[str], place: int) -> str:
            return side[place] if place < len(side) else ""

        chosen = []
        for place in range(depth):
            named = [word for word in (level(first, place), level(second, place)) if word not in ("", "+", "#")]
            chosen.append(named[0] if named else "x")
        topics = ["/".join(chosen[:length]) for length in range(1, depth + 1)]
        assert any(topic_matches(one, topic) and topic_matches(two, topic) for topic in topics)


def test_a_binding_keeps_its_meaning_through_json() -> None:
    full = {
        **PLAIN, "error_topic": "errors/{module}", "response_topics": "replies/#", "form": "tensor", "answer": "tensor",
        "input": "x", "output": "y", "input_qos": 0, "output_qos": 0, "retain": True, "take_retained": True,
        "waiting_max": 3, "overflow": "newest",
    }  # fmt: skip
    binding = read_binding(full)
    assert read_binding(binding.to_json()) == binding
    assert binding.to_json() == full
    assert read_binding(PLAIN).error_topic == "out/{device}/{module}/error"


def test_the_names_of_device_and_module_are_filled_in() -> None:
    binding = read_binding({**PLAIN, "response_topics": "replies/{device}/#"}).expand("cam-7", "faces")
    assert binding.input_topic == "in/cam-7/+"
    assert binding.output_topic == "out/cam-7/faces"
    assert binding.error_topic == "out/cam-7/faces/error"
    assert binding.response_topics == "replies/cam-7/#"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "UP"},
        {"member": ""},
        {"form": "xml"},
        {"answer": "bytes"},
        {"overflow": "all"},
        {"input_qos": 2},
        {"output_qos": -1},
        {"retain": 1},
        {"waiting_max": 0},
        {"waiting_max": 10**6},
        {"surprise": 1},
        {"input_topic": ""},
        {"input_topic": "a//b"},
        {"input_topic": "/a"},
        {"input_topic": "#"},
        {"input_topic": "+/a"},
        {"input_topic": "$SYS/load"},
        {"input_topic": "lighterman/1/+/report"},
        {"input_topic": "a/b#"},
        {"input_topic": "a/#/b"},
        {"input_topic": "a/b+"},
        {"input_topic": "a/{user}"},
        {"input_topic": "a/{device"},
        {"input_topic": "a/\0"},
        {"input_topic": "a\nb"},
        {"input_topic": "a/" * 16 + "b"},
        {"input_topic": "a" * 300},
        {"output_topic": "a/+"},
        {"output_topic": "a/#"},
        {"output_topic": "lighterman/1/d/nudge"},
        {"error_topic": "$share/x"},
        {"response_topics": "#"},
    ],
)
def test_a_binding_with_a_second_meaning_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ContractError) as caught:
        read_binding({**PLAIN, **change})
    assert caught.value.code in ("artifact.runtime-invalid", "artifact.unknown-field", "cloud.name-invalid")


def test_a_device_that_has_a_reserved_name_does_not_open_reserved_topics() -> None:
    binding = read_binding({**PLAIN, "input_topic": "{device}/in"}).expand("lighterman", "m")
    assert topic_problem(binding.input_topic, True)


def binding(**changes: Any) -> Binding:
    return read_binding({**PLAIN, **changes})


@pytest.mark.parametrize(
    "bindings",
    [
        [binding(), binding()],
        [binding(member="stranger")],
        [binding(input_topic="t/#", output_topic="t/out")],
        [binding(input_topic="out/{device}/+/error")],
        [binding(input_topic="a/b"), binding(name="c", input_topic="c/d", output_topic="a/b")],
        [binding(response_topics="in/#")],
        [binding(input_topic="a/+"), binding(name="c", input_topic="a/b")],
        [binding(form="bytes")],
        [binding(form="tensor", input="z")],
        [binding(form="tensor", member="pictures")],
        [binding(form="tensor", member="two")],
        [binding(form="tensor", member="free")],
        [binding(answer="tensor", output="z")],
        [binding(answer="result")],
        [binding(member="script", form="bytes")],
        [binding(member="script", answer="tensor")],
        [binding(name=f"b{number}") for number in range(BINDINGS_MAX + 1)],
    ],
)
def test_bindings_that_cannot_work_together_are_refused(bindings: list[Binding]) -> None:
    members = {
        "m": ((X,), (Y,)),
        "pictures": ((IMAGE,), (Y,)),
        "two": ((X, IMAGE), (Y,)),
        "free": ((TensorSpec("x", "FP32", (-1, -1)),), ()),
        "script": ((), ()),
    }
    with pytest.raises(ContractError) as caught:
        check_bindings(bindings, members, takes_json=["script"])
    assert caught.value.code == "artifact.runtime-invalid"


def test_bindings_that_work_together_are_taken() -> None:
    check_bindings(
        [
            binding(),
            binding(name="same-sensor", answer="tensor", form="tensor"),
            binding(name="image", member="pictures", form="bytes", input_topic="cameras/+"),
            binding(name="any", member="script", answer="result", input_topic="events"),
        ],
        {"m": ((X,), (Y,)), "pictures": ((IMAGE,), ()), "script": ((), ())},
        takes_json=["script"],
    )


def test_the_tensor_that_is_meant() -> None:
    assert pick([X], "") == X
    assert pick([X, IMAGE], "image") == IMAGE
    assert pick([X, IMAGE], "") is None
    assert pick([X], "z") is None


def damage_topic(document: dict[str, Any]) -> None:
    document["bindings"][0]["output_topic"] = document["bindings"][0]["input_topic"] = "same"


@pytest.mark.parametrize(
    "change",
    [
        damage_topic,
        lambda d: d["bindings"][0].update(member="other"),
        lambda d: d.update(bindings=d["bindings"] * 20),
        lambda d: d.update(bindings={}),
    ],
)
def test_a_descriptor_holds_its_bindings_to_the_rules(change: Callable[[dict[str, Any]], object]) -> None:
    runtime = Runtime("m", 1, (Member("m", "onnx", "m.onnx", (X,), (Y,)),), bindings=(binding(),))
    assert Runtime.parse(runtime.to_bytes()) == runtime
    document = json.loads(runtime.to_bytes())
    change(document)
    with pytest.raises(ContractError) as caught:
        Runtime.parse(json.dumps(document).encode())
    assert caught.value.code == "artifact.runtime-invalid"
