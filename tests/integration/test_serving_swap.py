"""Hot swap with real processes: no request is lost, and no connection ever goes back to the old model."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from pathlib import Path

import pytest

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec
from tests.integration.serving import CLIENTS, MODULE, PATIENT, X, serving, start_hammers
from tests.support.net import wait_until
from tests.support.slots import adder, adder_golden, adder_slot, write_slot

SWAPS = 12
# So that the swaps are certainly under way while requests are: each client has had some answers before the first swap.
ANSWERS_FIRST = 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_no_request_is_lost_in_a_dozen_swaps_under_load(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        bundles = [adder_slot(state.slots, 10.0 * number, version=number + 1) for number in range(SWAPS + 1)]
        number_of = {str(manifest): number for number, (manifest, _slot) in enumerate(bundles)}
        state.supervisor.ensure(MODULE, *bundles[0])
        hammers, threads, is_stopped = start_hammers(state)
        try:
            for manifest, slot in bundles[1:]:
                counts = [hammer.count for hammer in hammers]
                wait_until(
                    lambda counts=counts: all(  # type: ignore[misc]
                        hammer.error or hammer.count >= count + ANSWERS_FIRST
                        for hammer, count in zip(hammers, counts, strict=True)
                    ),
                    60,
                    what="every client to get answers between two swaps",
                )
                golden = state.supervisor.prove(MODULE, manifest, slot)
                state.supervisor.activate(MODULE, manifest)
                assert golden is not None
            last = [hammer.count for hammer in hammers]
            wait_until(
                lambda: all(h.error or h.count > count for h, count in zip(hammers, last, strict=True)),
                60,
                what="every client to get an answer of the last model",
            )
        finally:
            is_stopped.set()
            for thread in threads:
                thread.join(60)
        assert [hammer.error for hammer in hammers] == [""] * CLIENTS
        for hammer in hammers:
            order = [number_of[manifest] for manifest, _value in hammer.answers]
            assert order == sorted(order), "an answer of an old model came after one of a newer"
            assert order[0] == 0
            assert order[-1] == SWAPS
            assert all(value == 10.0 * number for number, (_, value) in zip(order, hammer.answers, strict=True))
        assert state.exits.empty()
        assert state.supervisor.health(MODULE).failures == 0


def test_a_half_sent_request_survives_the_swap(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        old, new = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *old)
        # Larger than a control message, so that the received part has to travel beside it.
        rows = 20_000
        values = ",".join(["1"] * (4 * rows))
        body = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{rows},4],"data":[{values}]}}]}}'.encode()
        head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: d\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(state.supervisor.addresses(MODULE)[0]))
            sock.sendall(head + body[: len(body) // 2])
            state.supervisor.ensure(MODULE, *new)
            sock.sendall(body[len(body) // 2 :])
            reply = http.client.HTTPResponse(sock)
            reply.begin()
            assert reply.status == 200
            assert reply.headers["Lighterman-Manifest"] == str(new[0])
            assert json.loads(reply.read())["outputs"][0]["data"] == [21.0] * (4 * rows)


SLOW_SCRIPT = b"""
import os, time
def run(data):
    if data["wait"]:
        open(os.environ["STARTED_OF_TEST"], "w").close()
        deadline = time.monotonic() + 60
        while os.path.exists(os.environ["HOLD_OF_TEST"]) and time.monotonic() < deadline:
            time.sleep(0.005)
    return "old"
"""


def test_a_request_that_outlasts_the_drain_is_answered_by_the_new_model(tmp_path: Path) -> None:
    hold, started = tmp_path / "hold", tmp_path / "started"
    hold.touch()
    limits = type(PATIENT)(drain_ms=200, exit_ms=10_000, answer_ms=10_000)
    with serving(tmp_path, limits) as state:
        config = {"HOLD_OF_TEST": str(hold), "STARTED_OF_TEST": str(started)}
        member = Member("digits", "script", "score.py")
        old = write_slot(state.slots, [member], {"score.py": SLOW_SCRIPT}, config=config)
        new = write_slot(state.slots, [member], {"score.py": b"def run(data): return 'new'\n"}, version=2)
        state.supervisor.ensure(MODULE, *old)
        results: list[object] = []

        def ask() -> None:
            with state.client() as client:
                results.append(client.infer_json("digits", {"wait": True}).result)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            wait_until(started.exists, 30, what="the request to be computed")
            state.supervisor.ensure(MODULE, *new)
            thread.join(30)
        finally:
            hold.unlink()
        assert results == ["new"]


def test_swapping_back_and_forth_and_the_same_again(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        one, two = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        first = state.supervisor.ensure(MODULE, *one)
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == one[0]
            pid = state.supervisor.worker_pid(MODULE)
            assert state.supervisor.ensure(MODULE, *one) == first
            assert state.supervisor.worker_pid(MODULE) == pid, "what serves already is left alone"
            assert state.supervisor.ensure(MODULE, *two) != first
            assert client.infer("digits", [X]).manifest == two[0]
            assert pid is not None
            assert not Path(f"/proc/{pid}").exists(), "the old worker has given its memory back"
            assert state.supervisor.ensure(MODULE, *one) == first
            assert client.infer("digits", [X]).outputs["y"].data == [11.0, 12.0, 13.0, 14.0]


def test_modules_are_served_and_swapped_apart(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        one, two = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure("left", *one)
        state.supervisor.ensure("right", *two)
        with state.client(module="left") as left, state.client(module="right", tcp=True) as right:
            assert left.infer("left", [X]).manifest == one[0]
            assert right.infer("right", [X]).manifest == two[0]
            state.supervisor.ensure("left", *two)
            assert left.infer("digits", [X]).manifest == two[0]
            assert right.infer("digits", [X]).manifest == two[0]


def test_samples_of_both_models_reach_the_agent_with_their_own_digests(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        one, two = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *one)
        with state.client() as client:
            client.infer("digits", [X], request_id="first")
            state.supervisor.ensure(MODULE, *two)
            client.infer("digits", [X], request_id="second")
            wait_until(lambda: len(state.samples) == 2, 30, what="both samples")
            state.supervisor.set_sampling(MODULE, 0.0)
            state.supervisor.health(MODULE)  # commands are taken in order: the ratio is in force when this is answered
            client.infer("digits", [X], request_id="third")
        state.supervisor.ensure(MODULE, *one)  # the drain flushes what was collected
        seen = [(module, record["manifest"], record["body"]["request_id"]) for module, record in state.samples]
        assert seen == [(MODULE, str(one[0]), "first"), (MODULE, str(two[0]), "second")]


def test_the_golden_digest_is_of_what_this_device_computed(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        golden = state.supervisor.ensure(MODULE, *adder_slot(state.slots, 10.0))
        assert golden == Digest.of(adder_golden(10.0)["digits/output/y"].tobytes())
        assert state.supervisor.ensure("plain", *adder_slot(state.slots, 20.0, golden=False)) is None


def test_several_models_and_a_script_in_one_bundle(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        members = [
            Member("first", "onnx", "a.onnx"),
            Member("second", "onnx", "b.onnx"),
            Member("post", "script", "score.py", inputs=(TensorSpec("x", "FP32", (-1,)),)),
        ]
        files = {
            "a.onnx": adder(1),
            "b.onnx": adder(2),
            "score.py": b"def run(d): return {'best': d['x'].argmax(keepdims=True)}\n",
        }
        state.supervisor.ensure(MODULE, *write_slot(state.slots, members, files))
        with state.client() as client:
            assert client.infer("first", [X]).outputs["y"].data == [2.0, 3.0, 4.0, 5.0]
            assert client.infer("second", [X]).outputs["y"].data == [3.0, 4.0, 5.0, 6.0]
            vector = type(X)("x", "FP32", (3,), [1.0, 9.0, 2.0])
            best = client.infer("post", [vector]).outputs["best"]
            assert (best.datatype, best.data) == ("INT64", [1])
            with pytest.raises(EdgeError) as caught:
                client.infer(MODULE, [X])  # three models: the module's name does not say which
            assert caught.value.code == "model.not-serving"


def test_a_full_house_moves_over(tmp_path: Path) -> None:
    """As many idle connections as a worker takes, all handed over in one swap."""
    with serving(tmp_path) as state:
        one, two = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *one)
        clients = [state.client(tcp=number % 2 == 0) for number in range(200)]
        try:
            assert {client.infer("digits", [X]).manifest for client in clients} == {one[0]}
            before = len(os.listdir("/proc/self/fd"))
            state.supervisor.ensure(MODULE, *two)
            assert {client.infer("digits", [X]).manifest for client in clients} == {two[0]}
            assert len(os.listdir("/proc/self/fd")) <= before, "the agent keeps no copy of a connection"
        finally:
            for client in clients:
                client.close()
