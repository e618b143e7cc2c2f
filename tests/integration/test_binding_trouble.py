"""Bindings when things go wrong: swaps under load, dead workers, brokers and processes, floods, hostile messages."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.binding.keeper import BindingKeeper
from edge_agent.binding.limits import CRASHES_MAX
from edge_contract.runtime import Member
from tests.integration.binding_ground import DEVICE, Ground, Heard, bind, ground, row, sensor
from tests.integration.serving import MODULE, PATIENT, serving
from tests.support.certs import Authority
from tests.support.mosquitto import MosquittoBroker, mosquitto
from tests.support.net import LOOPBACK, wait_until
from tests.support.slots import adder_slot, write_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SWAPS = 6
MESSAGES = 600


def numbered(number: int) -> bytes:
    """A question that tells its number: a whole request with an id."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [number, 0, 0, 0]}
    return json.dumps({"id": str(number), "inputs": [tensor]}).encode()


def answered(heard: list[Heard]) -> set[int]:
    """Numbers of the questions that got predictions."""
    return {int(item.document["id"]) for item in heard if item.topic == f"out/{DEVICE}"}


def test_a_swap_under_load_loses_no_message(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        bundles = [
            adder_slot(device.serving.slots, 10.0 * number, version=number + 1, bindings=(bind(),))
            for number in range(SWAPS + 1)
        ]
        device.live(bundles[0])
        device.wait_bound("b")

        def publish() -> None:
            for number in range(MESSAGES):
                peer.publish(f"in/{DEVICE}", numbered(number))

        publisher = threading.Thread(target=publish, daemon=True)
        publisher.start()
        for bundle in bundles[1:]:
            count = peer.count(f"out/{DEVICE}")
            wait_until(
                lambda count=count: peer.count(f"out/{DEVICE}") > count or not publisher.is_alive(),  # type: ignore[misc]
                30,
                what="predictions between two swaps",
            )
            device.live(bundle)
        publisher.join(60)
        wait_until(lambda: answered(peer.heard) == set(range(MESSAGES)), 60, what="an answer to each message")
        # Each prediction is that of the bundle it names.
        constant = {str(bundle[0]): 10.0 * number for number, bundle in enumerate(bundles)}
        for heard in peer.heard:
            document = heard.document
            assert document["outputs"][0]["data"][0] == int(document["id"]) + constant[document["manifest"]]
        assert device.counts()["failed"] == 0
        assert peer.count(f"errors/{MODULE}") == 0


def test_a_swap_brings_other_topics_and_a_rollback_brings_them_back(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        old = adder_slot(device.serving.slots, 10.0, bindings=(bind(),))
        new = adder_slot(device.serving.slots, 20.0, version=2, bindings=(bind(name="c", input_topic="fresh"),))
        device.live(old)
        device.wait_bound("b")
        device.live(new)
        device.wait_bound("c")
        peer.publish("fresh", b"[[0, 0, 0, 0]]")
        assert peer.on(f"out/{DEVICE}")[0].document["outputs"][0]["data"] == [20.0] * 4
        device.live(old)
        device.wait_bound("b")
        peer.publish("fresh", b"[[0, 0, 0, 0]]")
        peer.publish(f"in/{DEVICE}", b"[[0, 0, 0, 0]]")
        assert peer.on(f"out/{DEVICE}", 2)[1].document["outputs"][0]["data"] == [10.0] * 4


def test_a_model_with_other_tensors_is_asked_as_it_wants(tmp_path: Path, broker: MosquittoBroker) -> None:
    from tests.support.slots import adder, adder_golden

    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        binding = bind(form="tensor")
        device.live(adder_slot(device.serving.slots, 10.0, bindings=(binding,)))
        wide = write_slot(
            device.serving.slots,
            [Member("digits", "onnx", "model.onnx")],
            {"model.onnx": adder(10.0, width=6)},
            version=2,
            golden=adder_golden(10.0, width=6),
            bindings=(binding,),
        )
        device.wait_bound("b")
        peer.publish(f"in/{DEVICE}", row(0, 0, 0, 0))
        peer.on(f"out/{DEVICE}")
        device.live(wide)
        peer.publish(f"in/{DEVICE}", row(0, 0, 0, 0, 0, 0))
        assert peer.on(f"out/{DEVICE}", 2)[1].document["outputs"][0]["shape"] == [1, 6]
        assert peer.count(f"errors/{MODULE}") == 0


def test_a_killed_worker_costs_no_message(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        bundle = adder_slot(device.serving.slots, 10.0, bindings=(bind(),))
        device.live(bundle)
        device.wait_bound("b")
        sent = [peer.begin(f"in/{DEVICE}", numbered(number)) for number in range(100)]
        peer.on(f"out/{DEVICE}")
        pid = device.serving.supervisor.worker_pid(MODULE)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        device.serving.exits.get(timeout=30)
        device.live(bundle)
        for one in sent:
            one.wait_for_publish(30)
        wait_until(lambda: answered(peer.heard) == set(range(100)), 60, what="an answer to each message")
        assert device.counts()["failed"] == 0


POISON_SCRIPT = b"""
import os
def run(data):
    if data == "die":
        os.kill(os.getpid(), 9)
    return data
"""


def test_a_message_that_kills_its_worker_is_given_up(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        bundle = write_slot(
            device.serving.slots,
            [Member("digits", "script", "score.py")],
            {"score.py": POISON_SCRIPT},
            bindings=(bind(answer="result"),),
        )
        device.live(bundle)
        device.wait_bound("b")
        peer.publish(f"in/{DEVICE}", b'"die"')
        peer.publish(f"in/{DEVICE}", b'"live"')
        for _ in range(CRASHES_MAX):
            device.serving.exits.get(timeout=30)
            device.live(bundle)
        assert peer.on(f"errors/{MODULE}")[0].document["code"] in ("model.worker-crashed", "network.cut")
        assert peer.on(f"out/{DEVICE}")[0].document == "live"
        assert device.serving.exits.empty()


def test_a_broker_that_is_killed_and_comes_back_loses_nothing_it_kept(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    with (
        mosquitto(folder, is_persistent=True) as broker,
        ground(tmp_path, broker.port) as device,
        sensor(broker.port) as peer,
    ):
        device.live(adder_slot(device.serving.slots, 10.0, bindings=(bind(),)))
        device.wait_bound("b")
        peer.publish(f"in/{DEVICE}", numbered(0))
        peer.on(f"out/{DEVICE}")
        broker.stop()
        wait_until(lambda: not device.report()["modules"][MODULE]["online"], 30, what="the loss to be seen")
        broker.start()
        peer.wait_ready()
        for number in range(1, 50):
            peer.publish(f"in/{DEVICE}", numbered(number))
        wait_until(lambda: answered(peer.heard) == set(range(50)), 60, what="an answer to each message")
        assert device.report()["modules"][MODULE]["protocol"] == "5"


def test_messages_wait_at_the_broker_while_the_process_is_gone(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        device.live(adder_slot(device.serving.slots, 10.0, bindings=(bind(),)))
        device.wait_bound("b")
        process = device.keeper._process  # the only way to the process that nobody else may end
        assert process is not None
        process.kill()
        for number in range(100):
            peer.publish(f"in/{DEVICE}", numbered(number))
        wait_until(lambda: answered(peer.heard) == set(range(100)), 60, what="an answer to each message")
        report = device.keeper.report()
        assert report is not None
        assert report["restarts"] == 1


SLOW_SCRIPT = b"""
import os, time
def run(data):
    deadline = time.monotonic() + 60
    while os.path.exists(os.environ["HOLD_OF_TEST"]) and time.monotonic() < deadline:
        time.sleep(0.005)
    return data
"""


def slow(device: Ground, hold: Path, **changes: object) -> None:
    """A model that answers nobody while a file exists."""
    hold.touch()
    device.live(
        write_slot(
            device.serving.slots,
            [Member("digits", "script", "score.py")],
            {"score.py": SLOW_SCRIPT},
            config={"HOLD_OF_TEST": str(hold)},
            bindings=(bind(answer="result", **changes),),
        )
    )
    device.wait_bound("b")


@pytest.mark.parametrize("overflow", ["oldest", "newest"])
def test_a_flood_without_confirmation_is_dropped_by_policy(
    tmp_path: Path, broker: MosquittoBroker, overflow: str
) -> None:
    hold = tmp_path / "hold"
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        slow(device, hold, input_qos=0, waiting_max=5, overflow=overflow)
        try:
            peer.publish(f"in/{DEVICE}", b"0")
            wait_until(
                lambda: device.report()["modules"][MODULE]["bindings"]["b"]["waiting"] == 0, 30, what="the first"
            )
            for number in range(1, 101):
                peer.publish(f"in/{DEVICE}", str(number).encode())
            device.wait_count("dropped", 94)
        finally:
            hold.unlink()
        # The one that is computed, and those that wait: the last five, or the first.
        peer.on(f"out/{DEVICE}", 6)
        counts = device.counts()
        assert counts["answered"] + counts["dropped"] == 101
        predicted = [heard.document for heard in peer.on(f"out/{DEVICE}")]
        assert predicted[-5:] == ([96, 97, 98, 99, 100] if overflow == "oldest" else predicted[-5:])
        assert (predicted[-1] < 10) == (overflow == "newest")
        told = peer.wait(lambda heard: heard.topic == f"errors/{MODULE}", "the loss to be told")
        assert {heard.document["code"] for heard in told} == {"model.overloaded"}
        wait_until(
            lambda: sum(heard.document["dropped"] for heard in peer.on(f"errors/{MODULE}")) == counts["dropped"],
            30,
            what="every loss to be told",
        )


def test_a_flood_with_confirmation_waits_at_the_broker(tmp_path: Path, broker: MosquittoBroker) -> None:
    hold = tmp_path / "hold"
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        slow(device, hold, waiting_max=5)
        try:
            for number in range(100):
                peer.publish(f"in/{DEVICE}", str(number).encode())
        finally:
            hold.unlink()
        answers = peer.on(f"out/{DEVICE}", 100)
        assert [heard.document for heard in answers] == list(range(100)), "in order, and none is lost"
        assert device.counts()["dropped"] == 0


def test_hostile_messages_get_errors_and_the_next_one_gets_its_answer(tmp_path: Path, broker: MosquittoBroker) -> None:
    hostile = [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[[1, 2, 3]]",
        b"[[1, 2, 3, NaN]]",
        b"[[[[1]]]]",
        b"[" * 100_000,
        b'{"inputs": []}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [999999999, 999999999], "data": []}]}',
        json.dumps({"parameters": {"binary_data_output": True}, **json.loads(numbered(1))}).encode(),
        b'{"x": "text"}',
        bytes(200_000),
    ]
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        device.live(
            adder_slot(
                device.serving.slots,
                10.0,
                bindings=(bind(), bind(name="raw", input_topic="raw", form="tensor", output_topic="out/raw")),
            )
        )
        device.wait_bound("b", "raw")
        for content in hostile:
            peer.publish(f"in/{DEVICE}", content)
        for content in (b"", b"123", row(1, 2, 3)):
            peer.publish("raw", content)
        errors = peer.on(f"errors/{MODULE}", len(hostile) + 3)
        assert {heard.document["code"] for heard in errors} == {"model.input-invalid"}
        assert len(errors) == len(hostile) + 3
        peer.publish(f"in/{DEVICE}", numbered(7))
        assert answered(peer.on(f"out/{DEVICE}")) == {7}
        pid = device.serving.supervisor.worker_pid(MODULE)
        assert pid is not None
        assert device.serving.exits.empty()


def test_predictions_that_go_round_through_others_are_stopped(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port) as peer:
        device.live(adder_slot(device.serving.slots, 10.0, bindings=(bind(),)))
        device.wait_bound("b")
        for hops in ("8", "99", "-1", "many", "9" * 50):
            peer.publish(f"in/{DEVICE}", numbered(1), hops=hops)
        assert len(peer.on(f"errors/{MODULE}", 5)) == 5
        peer.publish(f"in/{DEVICE}", numbered(2), hops="3")
        assert peer.on(f"out/{DEVICE}")[0].facts["lighterman-hops"] == "4"


def test_two_bundles_that_would_feed_each_other_do_not_both_run(tmp_path: Path, broker: MosquittoBroker) -> None:
    with ground(tmp_path, broker.port) as device, sensor(broker.port, "ping", "pong") as peer:
        device.live(
            adder_slot(device.serving.slots, 1.0, bindings=(bind(name="a", input_topic="ping", output_topic="pong"),)),
            "alpha",
        )
        device.wait_bound("a", module="alpha")
        device.live(
            adder_slot(
                device.serving.slots,
                2.0,
                version=2,
                bindings=(
                    bind(name="z", input_topic="pong", output_topic="ping"),
                    bind(name="y", input_topic="pong2", output_topic="ping2"),
                ),
            ),
            "beta",
        )
        device.wait_bound("y", module="beta")
        refused = device.report()["refused"]
        assert [(item["module"], item["binding"]) for item in refused] == [("beta", "z")]
        assert "come back" in refused[0]["why"]
        peer.publish("ping", b"[[0, 0, 0, 0]]")
        peer.on("pong")
        assert peer.count("ping") == 1


def test_a_broker_that_refuses_the_password_is_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    (folder / "users").write_text("")
    (folder / "users").chmod(0o600)
    with (
        mosquitto(folder, listener_lines=("allow_anonymous false", f"password_file {folder}/users")) as broker,
        ground(tmp_path, broker.port, username="who") as device,
    ):
        bundle = adder_slot(device.serving.slots, 10.0, bindings=(bind(),))
        device.live(bundle)
        wait_until(
            lambda: "Not authorized" in device.report().get("modules", {}).get(MODULE, {}).get("error", ""),
            30,
            what="the refusal to be told",
        )
        # The module answers its other clients all the same.
        with device.serving.client() as client:
            assert client.is_ready()


def test_a_broker_with_certificates_on_both_sides(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    authority = Authority(tmp_path)
    server, ours = authority.issue("broker", LOOPBACK), authority.issue("device")
    for file in (authority.file, server.certificate, server.key):
        file.chmod(0o644)
    lines = (
        f"cafile {authority.file}",
        f"certfile {server.certificate}",
        f"keyfile {server.key}",
        "require_certificate true",
        "use_identity_as_username true",
    )
    with (
        mosquitto(folder, listener_lines=lines) as broker,
        ground(
            tmp_path, broker.port, tls=True, ca=authority.file, certificate=ours.certificate, key=ours.key
        ) as device,
    ):
        device.live(adder_slot(device.serving.slots, 10.0, bindings=(bind(),)))
        device.wait_bound("b")
        broker.stop()
        wait_until(lambda: not device.report()["modules"][MODULE]["online"], 30, what="the loss to be seen")
        broker.start()
        device.wait_bound("b")


def test_an_answer_that_the_broker_does_not_take_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    (folder / "acl").write_text("topic readwrite in/#\ntopic readwrite errors/#\n")
    (folder / "acl").chmod(0o600)
    with (
        mosquitto(folder, listener_lines=("allow_anonymous true", f"acl_file {folder}/acl")) as broker,
        ground(tmp_path, broker.port) as device,
        sensor(broker.port) as peer,
    ):
        device.live(adder_slot(device.serving.slots, 10.0, bindings=(bind(),)))
        device.wait_bound("b")
        peer.publish(f"in/{DEVICE}", numbered(1))
        device.wait_count("unpublished", 1)
        # Later messages are taken all the same.
        peer.publish(f"in/{DEVICE}", b"{")
        assert peer.on(f"errors/{MODULE}")[0].document["code"] == "model.input-invalid"


def test_a_topic_that_the_broker_does_not_allow_is_told_of(tmp_path: Path, broker: MosquittoBroker) -> None:
    """A front that turns every confirmed subscription into a refused one."""

    def refuse(data: bytes) -> bytes:
        return data[:-1] + b"\x87" if data[:1] == b"\x90" else data

    with socket.create_server((LOOPBACK, 0)) as front:
        threading.Thread(target=_front, args=(front, broker.port, None, refuse), daemon=True).start()
        with ground(tmp_path, front.getsockname()[1]) as device:
            device.live(adder_slot(device.serving.slots, 10.0, bindings=(bind(),)))
            wait_until(
                lambda: device.report().get("modules", {}).get(MODULE, {}).get("denied") == [f"in/{DEVICE}"],
                30,
                what="the refusal to be told",
            )


def test_a_swap_that_changes_the_form_answers_what_waits_in_the_new_one(
    tmp_path: Path, broker: MosquittoBroker
) -> None:
    hold = tmp_path / "hold"
    limits = replace(PATIENT, drain_ms=200)
    with ground(tmp_path, broker.port, limits=limits) as device, sensor(broker.port) as peer:
        slow(device, hold)
        try:
            for number in range(20):
                peer.publish(f"in/{DEVICE}", numbered(number))
            wait_until(
                lambda: device.report()["modules"][MODULE]["bindings"]["b"]["waiting"] == 19, 30, what="all to wait"
            )
            new = adder_slot(device.serving.slots, 10.0, version=2, bindings=(bind(answer="tensor"),))
            # What is being computed is computed again by the new worker when the drain's time is up.
            device.live(new)
        finally:
            hold.unlink()
        wait_until(lambda: peer.count(f"out/{DEVICE}") >= 20, 60, what="an answer to each message")
        assert peer.count(f"errors/{MODULE}") == 0
        assert device.counts()["dropped"] == 0
        assert len(peer.on(f"out/{DEVICE}")[-1].content) == 16


@pytest.mark.parametrize("refusal", [bytes([0x20, 2, 0, 1]), b""], ids=["it says so", "it says nothing"])
def test_a_broker_that_speaks_an_older_protocol_is_spoken_to_in_it(
    tmp_path: Path, broker: MosquittoBroker, refusal: bytes
) -> None:
    """A front that refuses MQTT 5, as 3.1.1 prescribes or without a word, and passes everything else on."""
    with socket.create_server((LOOPBACK, 0)) as front:
        threading.Thread(target=_front, args=(front, broker.port, refusal), daemon=True).start()
        port = front.getsockname()[1]
        with ground(tmp_path, port) as device, sensor(broker.port, is_v5=False) as peer:
            device.live(adder_slot(device.serving.slots, 10.0, bindings=(bind(),)))
            device.wait_bound("b")
            assert device.report()["modules"][MODULE]["protocol"] == "3.1.1"
            peer.publish(f"in/{DEVICE}", numbered(1))
            assert answered(peer.on(f"out/{DEVICE}")) == {1}


def _front(
    front: socket.socket, port: int, refusal: bytes | None, change: Callable[[bytes], bytes] = lambda data: data
) -> None:
    """Pass connections on to a broker, what it says changed; those of MQTT 5 get a refusal if there is one."""
    while True:
        try:
            connection, _ = front.accept()
        except OSError:
            return
        first = connection.recv(4096)
        if refusal is not None and first[8] == 5:  # the protocol level, behind the type, the length and "MQTT"
            connection.sendall(refusal)
            connection.close()
            continue
        behind = socket.create_connection((LOOPBACK, port))
        behind.sendall(first)
        threading.Thread(target=_pump, args=(connection, behind, lambda data: data), daemon=True).start()
        threading.Thread(target=_pump, args=(behind, connection, change), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
    try:
        while data := source.recv(65_536):
            target.sendall(change(data))
    except OSError:
        pass
    finally:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_without_a_broker_in_the_configuration_the_device_says_so(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        keeper = BindingKeeper(None, DEVICE, state.run_dir, state.slots, state.supervisor.live_manifests)
        keeper.start()
        try:
            state.supervisor.ensure(MODULE, *adder_slot(state.slots, 10.0, bindings=(bind(),)))
            report = wait_until(keeper.report, 30, what="the bindings to be noticed")
            assert report is not None
            assert report["phase"] == "off"
            assert "[binding]" in report["error"]
            assert not (state.run_dir / "binding.sock").exists()
        finally:
            keeper.stop()
