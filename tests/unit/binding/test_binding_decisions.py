"""What a binding decides, without a broker, a module or a clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.binding.answers import Reply, make_answer, make_error, make_overload
from edge_agent.binding.counters import Counters, prometheus_text
from edge_agent.binding.limits import ASK_MS, CORRELATION_BYTES_MAX, CRASHES_MAX, HOPS_MAX, RETRY_MS_MAX
from edge_agent.binding.loops import admit
from edge_agent.binding.messages import Message
from edge_agent.binding.patience import is_crash, wait_ms
from edge_agent.binding.questions import check_message, make_question, tensor_shape
from edge_agent.binding.waiting import Acknowledgements, Waiting
from edge_agent.binding.work import BrokerAddress, Work, modules_line, read_modules, read_work
from edge_contract.bindings import Binding, read_binding
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.tensors import TensorSpec

X, Y = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "FP32", (-1, 2))
IMAGE = TensorSpec("image", "BYTES", (-1, 1))
MANIFEST = Digest.of(b"bundle")


def bind(**changes: Any) -> Binding:
    return read_binding({"name": "b", "member": "m", "input_topic": "in", "output_topic": "out", **changes})


def message(number: int = 1, content: bytes = b"12", **changes: Any) -> Message:
    return Message(number=number, connection=1, topic="in", content=content, **changes)


# --- waiting


def numbers(messages: Sequence[Message]) -> list[int]:
    return [one.number for one in messages]


def test_the_oldest_or_the_newest_goes() -> None:
    for overflow, left in (("oldest", [3, 4]), ("newest", [1, 2])):
        waiting = Waiting(2, overflow)
        dropped = [one for number in range(1, 5) for one in waiting.offer(message(number))]
        assert numbers(dropped) == sorted({1, 2, 3, 4} - set(left))
        assert [one.number for one in iter(waiting.take, None)] == left


def test_bytes_are_bounded_too() -> None:
    waiting = Waiting(10, "oldest", bytes_max=10)
    assert not waiting.offer(message(1, bytes(4)))
    assert not waiting.offer(message(2, bytes(4)))
    assert numbers(waiting.offer(message(3, bytes(8)))) == [1, 2]
    assert numbers(waiting.offer(message(4, bytes(11)))) in ([3, 4], [4])
    assert len(waiting) <= 1


def test_no_confirmed_message_goes_for_an_unconfirmed_one() -> None:
    waiting = Waiting(2, "oldest", confirmed_max=3)
    for number in (1, 2):
        assert not waiting.offer(message(number, qos=1))
    assert numbers(waiting.offer(message(3))) == [3]
    assert not waiting.offer(message(4, qos=1))
    assert numbers(waiting.offer(message(5, qos=1))) == [1]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1))),
    st.integers(1, 4),
    st.sampled_from(["oldest", "newest"]),
)
def test_every_message_waits_or_is_dropped_once(sizes: list[tuple[int, int]], count_max: int, overflow: str) -> None:
    waiting = Waiting(count_max, overflow, bytes_max=12, confirmed_max=4)
    gone: list[int] = []
    for number, (size, qos) in enumerate(sizes):
        gone += numbers(waiting.offer(message(number, bytes(size), qos=qos)))
        assert len(waiting) <= max(count_max, 4)
    left = numbers(waiting.remove(lambda one: one.number % 2 == 0)) + numbers(list(iter(waiting.take, None)))
    assert sorted(gone + left) == list(range(len(sizes)))
    assert len(waiting) == 0


@given(st.lists(st.integers(0, 2), max_size=12), st.randoms(use_true_random=False))
def test_messages_are_acknowledged_in_the_order_they_came(shares: list[int], draw: Any) -> None:
    acknowledgements = Acknowledgements()
    told: list[int] = []
    for number, share in enumerate(shares):
        told += acknowledgements.arrived(number, packet=100 + number, shares=share)
    open_ends = [number for number, share in enumerate(shares) for _ in range(share)]
    draw.shuffle(open_ends)
    for number in open_ends:
        told += acknowledgements.done(number)
    assert told == [100 + number for number in range(len(shares))]
    assert acknowledgements.done(99) == [], "of a connection that is over"


# --- patience


def test_what_may_pass_is_tried_again_and_what_may_not_is_not() -> None:
    for code in ("model.overloaded", "model.not-serving", "network.unreachable", "network.timeout"):
        waits = [wait_ms(code, failures, 0, 0) for failures in range(1, 40)]
        assert waits == sorted(wait for wait in waits if wait is not None)
        assert waits[-1] == RETRY_MS_MAX
        assert wait_ms(code, 1, 0, ASK_MS) is None
    for code in ("model.input-invalid", "model.output-invalid", "model.inference-failed", "model.timeout"):
        assert wait_ms(code, 1, 0, 0) is None
        assert not is_crash(code)


def test_a_message_meets_few_crashes() -> None:
    for code in ("model.worker-crashed", "network.cut"):
        assert is_crash(code)
        assert wait_ms(code, 1, CRASHES_MAX - 1, 0) is not None
        assert wait_ms(code, 1, CRASHES_MAX, 0) is None


# --- loops


def ends(name: str, source: str, target: str, **changes: Any) -> Binding:
    return bind(name=name, input_topic=source, output_topic=target, **changes)


def test_what_comes_back_over_others_is_refused_and_a_chain_is_not() -> None:
    chain = {"a": [ends("1", "t/1", "t/2")], "b": [ends("2", "t/2", "t/3")]}
    admitted, refused = admit(chain)
    assert not refused
    assert {module: tuple(bindings) for module, bindings in chain.items()} == admitted
    admitted, refused = admit({**chain, "c": [ends("3", "t/3", "t/1"), ends("4", "u", "v")]})
    assert list(refused) == [("c", "3")]
    assert "3 -> 1 -> 2 -> 3" in refused["c", "3"]
    assert [binding.name for binding in admitted["c"]] == ["4"]


@pytest.mark.parametrize(
    "binding",
    [
        ends("x", "t/+", "t/x"),
        ends("x", "a", "b", error_topic="a"),
        ends("x", "r/1", "b", response_topics="r/#"),
        ends("x", "{device}/a", "b").expand("lighterman", "m"),
        ends("x", "a", "{device}/b").expand("lighterman", "m"),
    ],
)
def test_a_binding_that_feeds_itself_or_strays_does_not_run(binding: Binding) -> None:
    admitted, refused = admit({"m": [binding]})
    assert list(refused) == [("m", "x")]
    assert admitted == {"m": ()}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_what_is_admitted_has_no_way_round(edges: list[tuple[int, int]]) -> None:
    bindings = [ends(str(number), f"t/{a}", f"t/{b}") for number, (a, b) in enumerate(edges)]
    admitted, refused = admit({"m": bindings})
    assert len(admitted["m"]) + len(refused) == len(edges)
    level = {f"t/{number}" for number in range(5)}
    left = list(admitted["m"])
    # Taking away what nothing feeds, again and again, leaves nothing: there is no circle.
    while left:
        fed = {binding.output_topic for binding in left} & level
        free = [binding for binding in left if binding.input_topic not in fed]
        assert free, [binding.name for binding in left]
        left = [binding for binding in left if binding not in free]


# --- questions


def head(body: bytes, json_bytes: int | None) -> Any:
    return json.loads(body[:json_bytes])


def test_bytes_of_a_tensor_tell_its_first_dimension() -> None:
    assert tensor_shape(X, 24) == [3, 2]
    assert tensor_shape(TensorSpec("x", "INT8", (2, 3)), 6) == [2, 3]
    assert tensor_shape(TensorSpec("x", "FP64", (-1,)), 8) == [1]
    assert tensor_shape(TensorSpec("x", "FP64", ()), 8) == []
    for spec, size in (
        (X, 0),
        (X, 7),
        (TensorSpec("x", "INT8", (2, 3)), 5),
        (TensorSpec("x", "FP32", (-1, -1)), 8),
        (TensorSpec("x", "FP32", (-1, 0)), 8),
        (IMAGE, 8),
    ):
        with pytest.raises(EdgeError) as caught:
            tensor_shape(spec, size)
        assert caught.value.code == "model.input-invalid"


def test_a_tensor_and_a_picture_become_binary_requests() -> None:
    question = make_question(bind(form="tensor", answer="tensor"), ((X,), (Y,)), bytes(16))
    document = head(question.body, question.json_bytes)
    assert document["inputs"][0] == {
        "name": "x", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16},
    }  # fmt: skip
    assert document["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]
    assert question.body[question.json_bytes :] == bytes(16)
    picture = make_question(bind(form="bytes"), ((IMAGE,), (Y,)), b"\xff\xd8")
    assert head(picture.body, picture.json_bytes)["inputs"][0]["shape"] == [1, 1]
    assert picture.body[picture.json_bytes :] == b"\x02\0\0\0\xff\xd8"


def test_json_is_passed_on_as_it_came_where_it_can_be() -> None:
    whole = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'
    assert make_question(bind(), ((X,), (Y,)), whole).body == whole
    assert make_question(bind(), ((), ()), b'{"any": 1}').body == b'{"any": 1}'
    bare = make_question(bind(answer="tensor"), ((X,), (Y,)), b"[[1, 2]]")
    assert json.loads(bare.body)["inputs"][0]["data"] == [1, 2]
    assert json.loads(bare.body)["outputs"][0]["name"] == "y"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[NaN]", b"[" * 1000, b'"' * 3, b"1e999x"])
def test_what_is_not_json_is_refused(content: bytes) -> None:
    with pytest.raises(EdgeError) as caught:
        make_question(bind(), ((), ()), content)
    assert caught.value.code == "model.input-invalid"


@given(st.binary(max_size=64), st.sampled_from(["json", "tensor", "bytes"]))
def test_no_message_makes_anything_but_a_request_or_a_refusal(content: bytes, form: str) -> None:
    signature = ((IMAGE if form == "bytes" else X,), (Y,))
    try:
        question = make_question(bind(form=form), signature, content)
    except EdgeError as error:
        assert error.code == "model.input-invalid"  # noqa: PT017 - either end is right
    else:
        assert isinstance(json.loads(question.body[: question.json_bytes]), dict)


@pytest.mark.parametrize(
    "changes",
    [
        {"hops": HOPS_MAX},
        {"correlation": bytes(CORRELATION_BYTES_MAX + 1)},
        {"response_topic": "elsewhere"},
        {"response_topic": "replies/#"},
        {"response_topic": "replies//x"},
    ],
)
def test_a_message_that_no_model_should_see(changes: dict[str, Any]) -> None:
    check_message(bind(response_topics="replies/#"), message(response_topic="replies/me", correlation=b"x"))
    with pytest.raises(EdgeError) as caught:
        check_message(bind(response_topics="replies/#"), message(**changes))
    assert caught.value.code == "model.input-invalid"


def test_a_response_topic_that_nobody_asked_for_is_no_news() -> None:
    asked = message(response_topic="elsewhere", correlation=b"c")
    check_message(bind(), asked)
    outgoing = make_answer(bind(), "m", asked, Reply(MANIFEST, "1", b'{"outputs": []}'), 5)
    assert outgoing.topic == "out"
    assert outgoing.correlation == b"c"


# --- answers


def test_answers_name_who_computed_them() -> None:
    reply = Reply(MANIFEST, "3", b'{"model_name": "m", "outputs": []}')
    outgoing = make_answer(bind(retain=True), "mod", message(7, hops=2), reply, 1500)
    assert json.loads(outgoing.content) == {
        "model_name": "m", "outputs": [], "manifest": str(MANIFEST), "latency_us": 1500, "topic": "in",
    }  # fmt: skip
    assert outgoing.is_retained
    assert outgoing.answers == 7
    facts = dict(outgoing.facts)
    assert facts["lighterman-hops"] == "3"
    assert facts["lighterman-version"] == "3"
    assert facts["lighterman-module"] == "mod"


def test_a_tensor_goes_out_as_its_bytes() -> None:
    about = json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2]}]}).encode()
    outgoing = make_answer(bind(answer="tensor"), "m", message(), Reply(MANIFEST, "1", about + bytes(8), len(about)), 5)
    assert outgoing.content == bytes(8)
    assert dict(outgoing.facts)["lighterman-shape"] == "1,2"
    assert outgoing.content_type == "application/octet-stream"


@pytest.mark.parametrize(
    ("answer", "reply", "code"),
    [
        ("json", Reply(MANIFEST, "1", b"{}", 2), "model.input-invalid"),
        ("json", Reply(MANIFEST, "1", b"[]"), "model.output-invalid"),
        ("tensor", Reply(MANIFEST, "1", b"{}"), "model.output-invalid"),
        ("tensor", Reply(MANIFEST, "1", b'{"outputs":[]}', 14), "model.output-invalid"),
        ("result", Reply(MANIFEST, "1", b'{"outputs":[]}'), "model.output-invalid"),
    ],
)
def test_an_answer_of_another_kind_is_an_error(answer: str, reply: Reply, code: str) -> None:
    with pytest.raises(EdgeError) as caught:
        make_answer(bind(answer=answer), "m", message(), reply, 5)
    assert caught.value.code == code


def test_errors_go_where_the_answer_would_and_are_never_kept() -> None:
    error = EdgeError("model.input-invalid", "no", "Do better.")
    outgoing = make_error(bind(retain=True), "m", message(3, correlation=b"c"), error)
    assert outgoing.topic == "out/error"
    assert not outgoing.is_retained
    assert outgoing.correlation == b"c"
    assert outgoing.answers == 3
    assert json.loads(outgoing.content) == {"error": "no Do better.", "code": "model.input-invalid", "topic": "in"}
    asked = message(response_topic="replies/me")
    assert make_error(bind(response_topics="replies/#"), "m", asked, error).topic == "replies/me"
    told = make_overload(bind(), "m", 12)
    assert json.loads(told.content)["dropped"] == 12
    assert told.answers == 0


# --- counters, and what the agent tells


def test_counters_of_a_binding() -> None:
    counters = Counters()
    counters.count("answered", 2_000)
    counters.count("answered", 4_000)
    counters.count("dropped")
    found = counters.to_json()
    assert (found["answered"], found["dropped"], found["latency_us_mean"]) == (2, 1, 3_000)
    module = {"online": True, "reconnects": 2, "bindings": {'odd"name': {"waiting": 3, "counts": found}}}
    text = prometheus_text({"m": module}).decode()
    assert 'lighterman_binding_waiting{module="m",binding="odd\\"name"} 3' in text
    assert "lighterman_binding_latency_seconds_sum" in text
    assert text.endswith("\n")


def test_what_the_agent_tells_is_understood(tmp_path: Any) -> None:
    address = BrokerAddress("h", 8883, True, tmp_path / "ca", tmp_path / "c", tmp_path / "k", "who", "secret", "5")
    work = Work("cam-7", tmp_path / "run", tmp_path / "slots", address)
    assert read_work(json.dumps(work.to_json()).encode()) == work
    assert read_modules(modules_line({"m": MANIFEST})) == {"m": MANIFEST}
    with pytest.raises(EdgeError):
        read_modules(b'{"modules": {"M": "sha256:0"}}')
