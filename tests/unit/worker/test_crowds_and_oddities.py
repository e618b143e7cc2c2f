"""Crowds of connections, and requests that are odd in ways of their own; others are answered all the while."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import resource
import select
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.worker.limits import WorkerLimits
from tests.support.net import wait_until
from tests.unit.worker.server import Adder, Reply, Worker, infer_bytes, read_reply, running_worker

CROWD = 10_000
_SPARE_DESCRIPTORS = 1_500


def _ask(worker: Worker, request: bytes) -> Reply:
    with worker.connect() as sock:
        sock.sendall(request)
        reply = read_reply(sock)
        assert reply is not None
        return reply


def _y(reply: Reply | None) -> float:
    assert reply is not None
    assert reply.status == 200, reply.body
    value: float = json.loads(reply.body)["outputs"][0]["data"][0]
    return value


def _refusal(reply: Reply) -> tuple[int, str]:
    document = json.loads(reply.body)
    assert set(document) == {"error", "code"}
    return reply.status, document["code"]


def _post(body: bytes, headers: str = "", path: str = "/v2/models/m/infer") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: d\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


# --- crowds


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """Room for a crowd in this process, which is client and server both."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CROWD + _SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this machine gives a process {hard} descriptors, the crowd needs {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("many_descriptors")
def test_ten_thousand_connections_leave_the_worker_answering_others(tmp_path: Path) -> None:
    with (
        running_worker(tmp_path, Adder(), WorkerLimits(crowded_new_ms=300, sweep_ms=50)) as worker,
        contextlib.ExitStack() as crowd,
        worker.connect() as known,
    ):
        known.sendall(infer_bytes(0))
        assert _y(read_reply(known)) == 1
        for number in range(CROWD):
            sock = crowd.enter_context(socket.socket(socket.AF_INET))
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                if sock.connect_ex(("127.0.0.1", worker.port)) in (0, errno.EINPROGRESS):
                    sock.send((b"", b"GET /v2 HT", b"POST / HTTP/1.1\r\n")[number % 3])
            if number % 500 == 0:
                known.sendall(infer_bytes(number))
                assert _y(read_reply(known)) == number + 1
        most = WorkerLimits().connections_max
        wait_until(lambda: worker.call(lambda: worker.door.accepted) > most, 30, what="the crowd to fill the worker")
        for value in range(20):
            known.sendall(infer_bytes(value))
            assert _y(read_reply(known)) == value + 1
        begun = time.monotonic()
        for value in range(5):
            assert _y(_ask(worker, infer_bytes(value))) == value + 1  # a new connection each
        assert time.monotonic() - begun < 60
        assert worker.call(lambda: worker.door.connections) <= most


def test_connections_that_never_ask_make_room_for_those_that_do(tmp_path: Path) -> None:
    limits = WorkerLimits(connections_max=8, crowded_new_ms=50, crowded_idle_ms=60_000, sweep_ms=10)
    with running_worker(tmp_path, Adder(), limits) as worker, contextlib.ExitStack() as held:
        regulars = [held.enter_context(worker.connect()) for _ in range(4)]
        for sock in regulars:
            sock.sendall(infer_bytes(1))
            assert _y(read_reply(sock)) == 2
        silent = [held.enter_context(worker.connect()) for _ in range(4)]
        late = held.enter_context(worker.connect())
        late.sendall(infer_bytes(5))
        assert _y(read_reply(late)) == 6
        for sock in silent:
            assert sock.recv(1) == b""  # ended, to make room
        for sock in regulars:  # they have asked before, so they stayed
            sock.sendall(infer_bytes(2))
            assert _y(read_reply(sock)) == 3


def test_regulars_give_way_after_a_longer_silence(tmp_path: Path) -> None:
    limits = WorkerLimits(connections_max=2, crowded_new_ms=10, crowded_idle_ms=100, sweep_ms=10)
    with running_worker(tmp_path, Adder(), limits) as worker, contextlib.ExitStack() as held:
        for value in range(6):
            sock = held.enter_context(worker.connect())
            sock.sendall(infer_bytes(value))
            assert _y(read_reply(sock)) == value + 1


def test_silence_is_no_harm_while_nobody_waits(tmp_path: Path) -> None:
    limits = WorkerLimits(connections_max=2, crowded_new_ms=10, crowded_idle_ms=10, sweep_ms=10)
    with running_worker(tmp_path, Adder(), limits) as worker, worker.connect() as one, worker.connect() as two:
        assert select.select([one, two], [], [], 0.3)[0] == []
        for sock in (one, two):
            sock.sendall(infer_bytes(1))
            assert _y(read_reply(sock)) == 2


def test_five_hundred_requests_in_one_go_are_answered_in_order(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        sender = threading.Thread(target=sock.sendall, args=(b"".join(map(infer_bytes, range(500))),))
        sender.start()
        assert [_y(read_reply(sock)) for _ in range(500)] == list(range(1, 501))
        sender.join(10)


def test_half_requests_that_go_away_leave_nothing_behind(tmp_path: Path) -> None:
    whole = infer_bytes(1)
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as good:
        for end in range(1, len(whole)):
            with worker.connect() as sock:
                sock.sendall(whole[:end])
            if end % 20 == 0:  # an answer shows that those before it were accepted: the kernel's queue is short here
                good.sendall(whole)
                assert _y(read_reply(good)) == 2
        good.sendall(whole)
        assert _y(read_reply(good)) == 2
        wait_until(lambda: worker.call(lambda: worker.door.receiving_bytes) == 0, 10, what="all room to be given back")
        assert worker.call(lambda: worker.metrics.requests) == (len(whole) - 1) // 20 + 1


# --- odd requests


@pytest.mark.parametrize(
    "length", ["999999999999", "99999999999999999999", "-1", "+5", "0", "1e3", "٣", "0x10", "", " ", "5,5"]
)
def test_a_header_length_that_is_none_is_refused(tmp_path: Path, length: str) -> None:
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        body = infer_bytes(1).partition(b"\r\n\r\n")[2]
        head, _, _ = _post(body, f"Inference-Header-Content-Length: {length}\r\n").partition(b"\r\n\r\n")
        sock.sendall(head + b"\r\n\r\n" + body)
        reply = read_reply(sock)
        assert reply is not None
        assert _refusal(reply) == (400, "model.input-invalid")
        assert _y(_ask(worker, infer_bytes(1))) == 2


@pytest.mark.parametrize(
    "shape",
    [
        "[NaN, 2]", "[1e400, 2]", "[Infinity]", "[-1, 2]", "[1.0, 2]", '["1", 2]', "[true, 2]", "[null]", "null", "{}",
        "2", "[[1, 2]]", "[9223372036854775807, 9223372036854775807]", "[2147483648, 0]", "[1, 2, 3, 4, 5, 6, 7, 8, 9]",
        "[" * 40_000 + "]" * 40_000, "[0, 2]", "[]",
    ],
)  # fmt: skip
def test_a_shape_that_is_none_is_refused(tmp_path: Path, shape: str) -> None:
    body = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":{shape},"data":[1,2]}}]}}'.encode()
    with running_worker(tmp_path, Adder()) as worker:
        assert _refusal(_ask(worker, _post(body))) == (400, "model.input-invalid")
        assert worker.call(lambda: worker.metrics.failures) == 0


@pytest.mark.parametrize("size", [0, 7, 9, 16, 2**31, 2**63, -8, 8.0, "8", None, True, [8]])
def test_a_size_that_does_not_fit_is_refused(tmp_path: Path, size: Any) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": size}}
    document = json.dumps({"inputs": [tensor]}).encode()
    request = _post(document + bytes(8), f"Inference-Header-Content-Length: {len(document)}\r\n")
    with running_worker(tmp_path, Adder()) as worker:
        assert _refusal(_ask(worker, request)) == (400, "model.input-invalid")


_BODY = infer_bytes(1).partition(b"\r\n\r\n")[2]
_GZIPPED = gzip.compress(_BODY, mtime=0)  # the same bytes each time: they are part of the names of tests


@pytest.mark.parametrize(("coding", "body"), [("gzip", _GZIPPED), ("Deflate", zlib.compress(_BODY))])
def test_compressed_bodies_are_understood(tmp_path: Path, coding: str, body: bytes) -> None:
    with running_worker(tmp_path, Adder()) as worker:
        assert _y(_ask(worker, _post(body, f"Content-Encoding: {coding}\r\n"))) == 2


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", gzip.compress(bytes(50_000_000), mtime=0), 413),
        ("deflate", zlib.compress(bytes(200_000)), 413),
        ("gzip", _BODY, 400),
        ("gzip", _GZIPPED[:-3], 400),
        ("gzip", _GZIPPED + b"more", 400),
        ("gzip", b"", 400),
        ("br", _BODY, 415),
        ("gzip, gzip", gzip.compress(_GZIPPED, mtime=0), 415),
    ],
)
def test_compressed_bodies_are_bounded_and_whole(tmp_path: Path, coding: str, body: bytes, status: int) -> None:
    with running_worker(tmp_path, Adder(), WorkerLimits(body_bytes_max=100_000)) as worker:
        reply = _ask(worker, _post(body, f"Content-Encoding: {coding}\r\n"))
        assert _refusal(reply) == (status, "model.input-invalid")
        assert reply.headers.get("accept-encoding") == ("gzip, deflate" if status == 415 else None)
        assert worker.call(lambda: worker.metrics.failures) == 0


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 200), (b"{}", 200), (b'{"ready":true}', 200), (b'{"ready":1}', 400), (b"[", 400)]
)
def test_the_repository_index_can_be_asked_for_what_is_ready(tmp_path: Path, body: bytes, status: int) -> None:
    with running_worker(tmp_path, Adder()) as worker:
        reply = _ask(worker, _post(body, path="/v2/repository/index"))
        assert reply.status == status
        if status == 200:
            assert json.loads(reply.body) == [{"name": "m", "version": "3", "state": "READY", "reason": ""}]


def test_models_are_loaded_by_nobody_but_the_agent(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker:
        for doing in ("load", "unload"):
            reply = _ask(worker, _post(b"", path=f"/v2/repository/models/m/{doing}"))
            assert _refusal(reply) == (403, "model.load-refused")
        assert _y(_ask(worker, infer_bytes(1))) == 2


def test_a_request_is_not_computed_when_its_timeout_has_passed(tmp_path: Path) -> None:
    gate = threading.Event()
    engine = Adder(gate=gate)
    engine.is_concurrent = False
    with running_worker(tmp_path, engine) as worker, worker.connect() as first, worker.connect() as second:
        first.sendall(infer_bytes(1))
        assert engine.started.acquire(timeout=10)
        second.sendall(_post(_BODY[:-1] + b',"parameters":{"timeout":1}}'))
        gate.set()
        assert _y(read_reply(first)) == 2
        reply = read_reply(second)
        assert reply is not None
        assert _refusal(reply) == (504, "model.timeout")
        assert not engine.started.acquire(blocking=False)
        assert worker.call(lambda: (worker.metrics.requests, worker.metrics.failures)) == (1, 0)


@pytest.mark.parametrize("timeout", ["-1", "1.5", '"1"', "true", "1e9", "99999999999999"])
def test_a_timeout_that_is_none_is_refused(tmp_path: Path, timeout: str) -> None:
    with running_worker(tmp_path, Adder()) as worker:
        body = _BODY[:-1] + f',"parameters":{{"timeout":{timeout}}}}}'.encode()
        assert _refusal(_ask(worker, _post(body))) == (400, "model.input-invalid")
