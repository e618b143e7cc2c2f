"""The relay between the agent and the binding process: what waits, what goes again, what is dropped."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.binding.carrier import Subscription, is_relayed, output_name
from edge_agent.binding.descriptor import read_bindings
from edge_agent.binding.inputs import Inputs, Kept
from edge_agent.binding.limits import MESSAGE_BYTES_MAX
from edge_agent.binding.messages import Message, Outgoing
from edge_agent.binding.relay import DrainedLink, InputRelay
from edge_agent.binding.relay_wire import frame, read_frame
from edge_agent.binding.relayed import Relay
from edge_agent.ports import LinkInput
from edge_contract.bindings import read_binding
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from tests.support.edge_messages import EdgeMessages
from tests.support.net import wait_until
from tests.support.slots import adder_slot, write_slot

_WAIT_S = 20.0


def kept(number: int, name: str = "a", content: bytes = b"1", came_ms: int = 0) -> Kept:
    return Kept(number, name, "0", None, content, came_ms)


def taken(inputs: Inputs) -> list[int]:
    return [one.number for one in iter(inputs.take, None)]


# --- which inputs wait


def test_inputs_wait_for_a_model_and_go_in_order() -> None:
    inputs = Inputs()
    for number, name in enumerate("abab", 1):
        assert inputs.offer(kept(number, name)) == 0
    assert taken(inputs) == []
    inputs.bind(["inputs/b"])
    assert taken(inputs) == [2, 4]
    inputs.bind(["inputs/+"])
    assert taken(inputs) == [1, 3]
    assert inputs.parked == 0


def test_what_a_process_left_goes_to_the_next_and_says_so() -> None:
    inputs = Inputs()
    inputs.bind(["inputs/a"])
    for number in range(1, 4):
        inputs.offer(kept(number))
    assert taken(inputs) == [1, 2, 3]
    inputs.done(2)
    inputs.let_go()
    assert taken(inputs) == []
    inputs.bind(["inputs/a"])
    inputs.offer(kept(4))
    assert [(one.number, one.is_again) for one in iter(inputs.take, None)] == [(1, True), (3, True), (4, False)]


def test_what_is_given_back_goes_again_once_something_is_bound() -> None:
    inputs = Inputs()
    inputs.bind(["inputs/a"])
    inputs.offer(kept(1))
    assert taken(inputs) == [1]
    inputs.bind([])
    inputs.give_back(1)
    assert taken(inputs) == []
    assert inputs.parked == 1
    inputs.bind(["inputs/#"])
    assert taken(inputs) == [1]


def test_what_no_model_is_bound_to_is_dropped_first() -> None:
    inputs = Inputs(count_max=3)
    inputs.bind(["inputs/a"])
    inputs.offer(kept(1, "a"))
    inputs.offer(kept(2, "stray"))
    assert taken(inputs) == [1]
    inputs.offer(kept(3, "a"))
    assert inputs.offer(kept(4, "a")) == 1
    assert inputs.dropped == {"stray": 1}
    assert inputs.offer(kept(5, "a")) == 1
    assert taken(inputs) == [4, 5]
    # Everything is with the process now: what comes next goes itself.
    assert inputs.offer(kept(6, "a")) == 1
    assert inputs.dropped == {"stray": 1, "a": 2}


def test_a_message_for_nobody_is_dropped_after_a_time() -> None:
    inputs = Inputs(parked_ms_max=1_000)
    inputs.bind(["inputs/a"])
    inputs.offer(kept(1, "stray", came_ms=0))
    inputs.offer(kept(2, "a", came_ms=0))
    assert inputs.offer(kept(3, "a", came_ms=1_001)) == 1
    assert inputs.dropped == {"stray": 1}
    assert taken(inputs) == [2, 3]


def test_a_model_that_comes_late_does_not_answer_what_waited_too_long() -> None:
    inputs = Inputs(parked_ms_max=1_000)
    inputs.offer(kept(1, "a", came_ms=0))
    inputs.offer(kept(2, "a", came_ms=900))
    assert inputs.bind(["inputs/a"], 1_500) == 1
    assert taken(inputs) == [2]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("offer"), st.sampled_from("abc"), st.integers(0, 40)),
            st.tuples(st.sampled_from(("take", "let_go")), st.just(""), st.just(0)),
            st.tuples(st.just("bind"), st.sampled_from(("inputs/a", "inputs/+", "inputs/z")), st.just(0)),
            st.tuples(st.sampled_from(("done", "give_back")), st.just(""), st.integers(1, 30)),
        ),
        max_size=60,
    )
)
def test_bounds_hold_and_nothing_vanishes_unseen(steps: list[tuple[str, str, int]]) -> None:
    inputs = Inputs(count_max=4, bytes_max=100)
    offered = done = dropped = 0
    alive: set[int] = set()
    for what, name, size in steps:
        if what == "offer":
            offered += 1
            dropped += inputs.offer(kept(offered, name, bytes(size)))
            alive.add(offered)
        elif what == "take":
            inputs.take()
        elif what == "bind":
            inputs.bind([name])
        elif what == "let_go":
            inputs.let_go()
        elif what == "give_back":
            inputs.give_back(size)
        else:
            before = len(inputs)
            inputs.done(size)
            done += before - len(inputs)
        assert len(inputs) <= 4
        assert len(inputs) == offered - done - dropped
        assert dropped == sum(inputs.dropped.values())


# --- the agent's side


@contextmanager
def relayed() -> Iterator[tuple[EdgeMessages, InputRelay]]:
    messages = EdgeMessages()
    relay = InputRelay(messages)
    try:
        yield messages, relay
    finally:
        relay.close()


def heard(theirs: socket.socket) -> tuple[str, int, bytes, bool]:
    got = read_frame(theirs)
    assert got is not None
    fields, content = got
    kind = fields.text("kind")
    return kind, fields.integer("number"), content, fields.flag("again", False) or fields.flag("refused", False)


def bind(theirs: socket.socket, *filters: str) -> None:
    theirs.sendall(frame({"kind": "bound", "filters": list(filters)}))


def answer(theirs: socket.socket, number: int, qos: int = 1) -> None:
    head = {"kind": "output", "number": number, "name": "o", "properties": {"k": "v"}, "content_type": "t", "qos": qos}
    theirs.sendall(frame(head, b"answer"))


def test_an_input_is_kept_until_the_process_is_done_with_it() -> None:
    with relayed() as (messages, relay):
        messages.put("a", b"one")
        theirs = relay.attach()
        theirs.settimeout(_WAIT_S)
        bind(theirs, "inputs/a")
        assert heard(theirs) == ("input", 1, b"one", False)
        theirs.close()
        theirs = relay.attach()  # the process ended: the next one gets it
        theirs.settimeout(_WAIT_S)
        bind(theirs, "inputs/a")
        assert heard(theirs) == ("input", 1, b"one", True)
        answer(theirs, 7)
        assert heard(theirs) == ("confirmed", 7, b"", False)
        theirs.sendall(frame({"kind": "done", "number": 1}))
        relay.drain()
        assert relay.report()["unanswered"] == 0
        (output,) = messages.wait("o")
        assert (output.content, output.properties, output.content_type) == (b"answer", {"k": "v"}, "t")
        theirs.close()


def test_answers_wait_for_the_link_and_those_of_qos_0_do_not() -> None:
    with relayed() as (messages, relay):
        messages.is_online = False
        with relay.attach() as theirs:
            theirs.settimeout(_WAIT_S)
            answer(theirs, 1, qos=0)
            assert heard(theirs) == ("confirmed", 1, b"", True)
            answer(theirs, 2)
            wait_until(lambda: relay.report()["outputs_dropped"] == 1, _WAIT_S, what="the first to be given up")
            messages.is_online = True
            assert heard(theirs) == ("confirmed", 2, b"", False)
        assert relay.report()["outputs"] == 1


class Link:
    """A link that tells when it is stopped."""

    def __init__(self, relay: InputRelay) -> None:
        self.relay = relay
        self.unanswered = -1

    def start(self, *_: object) -> None:
        raise AssertionError("nobody starts it here")

    def send_report(self, report: bytes) -> bool:
        return report == b"r"

    def send_batch(self, batch: bytes) -> bool:
        return batch == b"b"

    def stop(self) -> None:
        self.unanswered = self.relay.report()["unanswered"]


def test_the_link_ends_when_what_came_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    with relayed() as (messages, relay), relay.attach() as theirs:
        theirs.settimeout(_WAIT_S)
        bind(theirs, "inputs/a")
        messages.put("a", b"one")
        link = Link(relay)
        drained = DrainedLink(link, relay)
        assert drained.send_report(b"r")
        assert drained.send_batch(b"b")
        ending = threading.Thread(target=drained.stop)
        ending.start()
        assert heard(theirs) == ("input", 1, b"one", False)
        answer(theirs, 1)
        assert heard(theirs) == ("confirmed", 1, b"", False)
        theirs.sendall(frame({"kind": "done", "number": 1}))
        ending.join(_WAIT_S)
        assert link.unanswered == 0
        assert not caplog.records
        # What nobody answers holds the end up for a bounded time, and is said.
        messages.put("a", b"two")
        assert heard(theirs)[:2] == ("input", 2)
        relay.drain(10)
        assert "1 messages" in caplog.text


def test_a_process_that_sends_rubbish_is_cut_off() -> None:
    with relayed() as (_, relay), relay.attach() as theirs:
        theirs.settimeout(_WAIT_S)
        theirs.sendall(frame({"kind": "surprise"}))
        assert theirs.recv(1) == b""


def test_inputs_that_no_topic_can_name_are_counted_and_passed_over() -> None:
    with relayed() as (messages, relay):
        messages.put("a/+", b"")
        messages.put("", b"")
        messages.put("a", bytes(MESSAGE_BYTES_MAX + 1))
        assert relay.report()["invalid"] == 3
        assert relay.report()["unanswered"] == 0


def test_properties_of_anybody_cannot_break_the_relay() -> None:
    messages = EdgeMessages()
    relay = InputRelay(messages)
    assert messages._on_input is not None
    messages._on_input(LinkInput("a", b"x", {"correlation-id": "\ud800" * 9_000, "lighterman-hops": "\ud800" * 99}))
    with relay.attach() as theirs:
        theirs.settimeout(_WAIT_S)
        bind(theirs, "inputs/a")
        got = read_frame(theirs)
        assert got is not None
        assert len(got[0].text("hops")) <= 8
    relay.close()


def test_frames_have_bounds() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"\xff\xff\xff\xff\0\0\0\0")
        with pytest.raises(EdgeError, match="claims"):
            read_frame(ours)
        theirs.sendall(b"\0\0\0\x02\0\0\0\0[]")
        with pytest.raises(EdgeError, match="JSON object"):
            read_frame(ours)


# --- the process's side


class Ear:
    """A module that hears messages and is done with them when the test says so."""

    def __init__(self, shares: int = 1) -> None:
        self.shares = shares
        self.messages: list[Message] = []
        self.confirmations: list[tuple[Outgoing, bool]] = []

    def arrived(self, message: Message) -> int:
        self.messages.append(message)
        return self.shares

    def confirmed(self, outgoing: Outgoing, is_refused: bool) -> None:
        self.confirmations.append((outgoing, is_refused))

    def connected(self, connection: int, is_session_kept: bool) -> None:
        raise AssertionError("a relay never reconnects")


def give(ours: socket.socket, number: int, name: str) -> None:
    head = {"kind": "input", "number": number, "name": name, "hops": "2", "correlation": "c", "again": True}
    ours.sendall(frame(head, b"content"))


def test_a_message_for_two_modules_is_done_when_both_are() -> None:
    ours, theirs = socket.socketpair()
    ended = threading.Event()
    relay = Relay(theirs, ended.set)
    with ours:
        ours.settimeout(_WAIT_S)
        ears = [Ear(), Ear()]
        carriers = [relay.carrier(f"m{place}", ear, 1) for place, ear in enumerate(ears)]
        for carrier in carriers:
            carrier.subscribe({"inputs/a": Subscription(1, False)})
            assert read_frame(ours) is not None
        give(ours, 5, "a")
        wait_until(lambda: all(ear.messages for ear in ears), _WAIT_S, what="the message to arrive")
        (message,) = ears[0].messages
        assert (message.topic, message.content, message.hops) == ("inputs/a", b"content", 2)
        assert (message.correlation, message.is_duplicate, message.qos) == (b"c", True, 1)
        carriers[0].finish(5)
        reply = Outgoing("outputs/a/error", b"{}", 1, correlation=b"c", facts=(("k", "v"),), answers=5)
        carriers[1].send(reply)
        got = read_frame(ours)
        assert got is not None
        assert got[0].text("name") == "a_error"
        assert got[0].mapping("properties", 9) == {"k": "v", "correlation-id": "c"}
        ours.sendall(frame({"kind": "confirmed", "number": got[0].integer("number"), "refused": False}))
        assert heard(ours) == ("done", 5, b"", False)
        assert ears[1].confirmations == [(reply, False)]
        give(ours, 6, "b")
        assert heard(ours) == ("unbound", 6, b"", False)
        ears[0].shares = ears[1].shares = 0
        give(ours, 7, "a")
        assert heard(ours) == ("done", 7, b"", False)
    assert ended.wait(_WAIT_S)
    assert not relay.is_online


# --- which bindings there are


def test_a_correlation_that_is_too_long_ends_no_process() -> None:
    messages = EdgeMessages()
    relay = InputRelay(messages)
    assert messages._on_input is not None
    messages._on_input(LinkInput("a", b"x", {"correlation-id": "c" * 5_000}))
    ended = threading.Event()
    process = Relay(relay.attach(), ended.set)
    ear = Ear()
    carrier = process.carrier("a", ear, 1)
    carrier.subscribe({"inputs/a": Subscription(1, False)})
    wait_until(lambda: ear.messages, _WAIT_S)
    message = ear.messages[0]
    outgoing = Outgoing(
        "outputs/a/error", b"{}", 1, correlation=message.correlation, facts=(("lighterman-x", "f" * 9_000),)
    )
    carrier.send(outgoing)
    assert messages.wait("a_error")
    assert not ended.is_set()
    relay.close()


def test_topics_of_inputs_and_outputs() -> None:
    plain = {"name": "b", "member": "m"}
    assert is_relayed(read_binding({**plain, "input_topic": "inputs/a", "output_topic": "outputs/b"}))
    assert not is_relayed(read_binding({**plain, "input_topic": "in/a", "output_topic": "outputs/b"}))
    assert not is_relayed(read_binding({**plain, "input_topic": "inputs/a", "output_topic": "out/b"}))
    away = {"error_topic": "elsewhere"}
    assert not is_relayed(read_binding({**plain, **away, "input_topic": "inputs/a", "output_topic": "outputs/b"}))
    assert output_name("outputs/b") == "b"
    assert output_name("outputs/b/error") == "b_error"


def test_a_bundle_without_bindings_gets_the_input_of_its_module(tmp_path: Path) -> None:
    manifest, _ = adder_slot(tmp_path, 1.0)
    assert read_bindings(tmp_path, manifest) == ()
    (binding,) = read_bindings(tmp_path, manifest, "line", is_edge=True)
    expanded = binding.expand("cam-7", "line")
    assert (expanded.member, expanded.input_topic, expanded.output_topic) == ("digits", "inputs/line", "outputs/line")
    assert is_relayed(expanded)


def test_an_authors_binding_of_an_input_is_the_only_one(tmp_path: Path) -> None:
    topics = {"name": "mine", "member": "digits"}
    own = read_binding({**topics, "input_topic": "inputs/frames", "output_topic": "outputs/digits"})
    manifest, _ = adder_slot(tmp_path, 1.0, bindings=(own,))
    assert read_bindings(tmp_path, manifest, "line", is_edge=True) == (own,)
    mqtt = read_binding({**topics, "name": "iot-edge", "input_topic": "in/frames", "output_topic": "out/digits"})
    manifest, _ = adder_slot(tmp_path, 2.0, bindings=(mqtt,))
    given = read_bindings(tmp_path, manifest, "line", is_edge=True)
    assert [item.name for item in given] == ["iot-edge", "iot-edge-x"]


@pytest.mark.parametrize(("module", "count"), [("second", 1), ("line", 0)])
def test_of_several_members_the_one_of_the_modules_name_is_asked(tmp_path: Path, module: str, count: int) -> None:
    members = [Member(name, "script", "score.py", options={"imports": "device"}) for name in ("first", "second")]
    manifest, _ = write_slot(tmp_path, members, {"score.py": b"def run(data): return data"})
    found = read_bindings(tmp_path, manifest, module, is_edge=True)
    assert [item.member for item in found] == ["second"] * count
