"""The worker's HTTP server against clients that are slow, wrong or hostile. Good clients are served all the while."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge_agent.worker.limits import HEAD_BYTES_MAX, WorkerLimits
from tests.support.net import wait_until
from tests.unit.worker.server import MANIFEST, Adder, Array, Reply, Worker, infer_bytes, read_reply, running_worker

QUICK = WorkerLimits(
    body_bytes_max=10_000,
    receiving_bytes_max=15_000,
    connections_max=4,
    requests_waiting_max=2,
    request_read_ms=150,
    request_run_ms=150,
    response_write_ms=150,
    idle_ms=10_000,
    linger_ms=150,
    sweep_ms=20,
)


def _ask(worker: Worker, request: bytes, *, has_body: bool = True) -> Reply:
    with worker.connect() as sock:
        sock.sendall(request)
        reply = read_reply(sock, has_body=has_body)
        assert reply is not None
        return reply


def _y(reply: Reply | None) -> float:
    assert reply is not None
    assert reply.status == 200, reply.body
    value: float = json.loads(reply.body)["outputs"][0]["data"][0]
    return value


def _code(reply: Reply | None) -> str:
    assert reply is not None
    code: str = json.loads(reply.body)["code"]
    return code


def test_both_sockets_answer_and_every_answer_names_the_bundle(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker:
        for connect in (worker.connect, worker.connect_tcp):
            with connect() as sock:
                for value in (1, 2, 3):
                    sock.sendall(infer_bytes(value))
                    reply = read_reply(sock)
                    assert _y(reply) == value + 1
                    assert reply is not None
                    assert reply.headers["lighterman-manifest"] == str(MANIFEST)
                    assert json.loads(reply.body)["model_version"] == "3"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("GET", "/v2/", 200),
        ("GET", "/v2/health/live", 200),
        ("HEAD", "/v2/health/ready", 200),
        ("GET", "/v2/models/m", 200),
        ("GET", "/v2/models/line", 200),
        ("GET", "/v2/models/m/versions/3/ready", 200),
        ("POST", "/v2/repository/index", 200),
        ("GET", "/v2/models/m/versions/2", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/", 404),
        ("GET", "/v2/models/../../etc/passwd", 404),
        ("GET", "/v2/models/m/infer", 405),
        ("DELETE", "/v2/models/m", 405),
        ("CONNECT", "device:1", 404),
    ],
)
def test_every_path_is_known_or_refused(tmp_path: Path, method: str, path: str, status: int) -> None:
    with running_worker(tmp_path, Adder()) as worker:
        reply = _ask(worker, f"{method} {path} HTTP/1.1\r\nHost: d\r\n\r\n".encode(), has_body=method != "HEAD")
        assert reply.status == status
        assert reply.headers["lighterman-manifest"] == str(MANIFEST)


def test_a_request_is_understood_whatever_its_pieces(tmp_path: Path) -> None:
    request = infer_bytes(5)
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        for byte in range(len(request)):
            sock.send(request[byte : byte + 1])
        assert _y(read_reply(sock)) == 6


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        sock.sendall(b"".join(infer_bytes(value) for value in range(50)))
        assert [_y(read_reply(sock)) for _ in range(50)] == [value + 1 for value in range(50)]


def test_pipelined_requests_to_a_slow_model_are_answered_in_order(tmp_path: Path) -> None:
    gate = threading.Event()
    with running_worker(tmp_path, Adder(gate=gate)) as worker, worker.connect() as sock:
        sock.sendall(b"".join(infer_bytes(value) for value in range(5)))
        gate.set()
        assert [_y(read_reply(sock)) for _ in range(5)] == [1, 2, 3, 4, 5]


def test_a_chunked_request_is_understood(tmp_path: Path) -> None:
    head, _, body = infer_bytes(5).partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:7], body[7:])) + b"0\r\n\r\n"
    request = b"\r\n".join([*lines, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n" + chunks
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        sock.sendall(request + infer_bytes(6))
        assert _y(read_reply(sock)) == 6
        assert _y(read_reply(sock)) == 7


def test_a_client_that_waits_is_told_to_go_on(tmp_path: Path) -> None:
    head, _, body = infer_bytes(1, headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert _y(read_reply(sock)) == 2


def test_the_connection_ends_when_the_client_says_so(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, worker.connect() as sock:
        sock.sendall(infer_bytes(1, headers="Connection: close\r\n"))
        reply = read_reply(sock)
        assert _y(reply) == 2
        assert reply is not None
        assert reply.headers["connection"] == "close"
        assert read_reply(sock) is None


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"\x16\x03\x01\x02\0\x01\r\n\r\n", 400, id="TLS"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, id="many headers"),
        pytest.param(b"GET / HTTP/1.1\r\nA: " + b"x" * (HEAD_BYTES_MAX + 1), 431, id="huge header"),
        pytest.param(b"GET /" + b"x" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n\r\n", 431, id="huge target"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 10001\r\n\r\n", 413, id="huge body"),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2711\r\n", 413, id="huge chunk"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, id="two lengths"),
    ],
)
def test_what_cannot_be_read_is_refused_and_the_connection_ends(
    tmp_path: Path, request_bytes: bytes, status: int
) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker, worker.connect() as sock:
        sock.sendall(request_bytes)
        reply = read_reply(sock)
        assert reply is not None
        assert reply.status == status
        assert _code(reply) == "model.input-invalid"
        assert read_reply(sock) is None
        assert _y(_ask(worker, infer_bytes(1))) == 2


def test_a_refusal_arrives_although_the_client_is_still_sending(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker, worker.connect_tcp() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 500000\r\n\r\n" + b"x" * 500_000)
        reply = read_reply(sock)
        assert reply is not None
        assert reply.status == 413


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"GE", id="request line"),
        pytest.param(b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Le", id="head"),
        pytest.param(infer_bytes(1)[:-3], id="body"),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab", id="chunk"),
    ],
)
def test_a_client_that_stops_in_the_middle_is_cut_off(tmp_path: Path, start: bytes) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker, worker.connect() as sock:
        sock.sendall(start)
        reply = read_reply(sock)
        assert reply is not None
        assert reply.status == 408
        assert read_reply(sock) is None


def test_a_client_that_drips_bytes_gains_no_time(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker, worker.connect() as sock:
        sock.settimeout(0.01)
        received = b""
        for byte in infer_bytes(1) * 100:
            try:
                sock.send(bytes([byte]))
                received += sock.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                break
            if received:
                break
        assert received.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    limits = WorkerLimits(response_write_ms=100, sweep_ms=20)
    with running_worker(tmp_path, Adder(), limits) as worker, worker.connect() as sock:
        sock.sendall(infer_bytes(1, rows=200_000))  # more than fits in the sockets between us
        wait_until(lambda: worker.call(lambda: worker.door.connections) == 0, 10, what="the client to be cut off")


def test_idle_connections_end_after_their_time(tmp_path: Path) -> None:
    limits = WorkerLimits(idle_ms=50, sweep_ms=10)
    with running_worker(tmp_path, Adder(), limits) as worker, worker.connect() as sock:
        assert read_reply(sock) is None


def test_large_requests_together_stay_within_their_bound(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker, worker.connect() as one, worker.connect() as two:
        head = b"POST / HTTP/1.1\r\nContent-Length: 9000\r\n\r\n"
        one.sendall(head + b"x")
        wait_until(lambda: worker.call(lambda: worker.door.receiving_bytes) == 9000, 5, what="the first to be received")
        two.sendall(head + b"x")
        reply = read_reply(two)
        assert reply is not None
        assert reply.status == 503
        assert reply.headers["retry-after"] == "1"
        one.close()
        wait_until(lambda: worker.call(lambda: worker.door.receiving_bytes) == 0, 5, what="its room to be free again")


def test_connections_beyond_the_bound_wait_and_are_not_refused(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(), QUICK) as worker:
        held = [worker.connect() for _ in range(QUICK.connections_max)]
        wait_until(lambda: worker.call(lambda: worker.door.connections) == len(held), 5, what="them to be accepted")
        with worker.connect() as late:
            late.sendall(infer_bytes(1))
            late.settimeout(0.1)
            with pytest.raises(TimeoutError):
                late.recv(1)
            held.pop().close()
            late.settimeout(10)
            assert _y(read_reply(late)) == 2
        for sock in held:
            sock.close()


def test_requests_beyond_the_bound_are_refused_with_a_time_to_return(tmp_path: Path) -> None:
    gate = threading.Event()
    limits = WorkerLimits(requests_waiting_max=2)
    with running_worker(tmp_path, Adder(gate=gate), limits) as worker:
        waiting = [worker.connect() for _ in range(2)]
        for sock in waiting:
            sock.sendall(infer_bytes(1))
        wait_until(lambda: _gauge(worker, "lighterman_inference_requests_waiting") == 2, 5, what="two to wait")
        reply = _ask(worker, infer_bytes(1))
        assert (reply.status, _code(reply), reply.headers["retry-after"]) == (503, "model.overloaded", "1")
        assert _ask(worker, b"GET /v2/health/live HTTP/1.1\r\n\r\n").status == 200
        gate.set()
        for sock in waiting:
            assert _y(read_reply(sock)) == 2
            sock.close()


def test_a_model_that_takes_too_long_is_given_up_and_counted(tmp_path: Path) -> None:
    gate = threading.Event()
    with running_worker(tmp_path, Adder(gate=gate), QUICK) as worker, worker.connect() as sock:
        sock.sendall(infer_bytes(1))
        reply = read_reply(sock)
        assert reply is not None
        assert (reply.status, _code(reply)) == (504, "model.timeout")
        # The late answer to the first request is not taken for one to the second.
        sock.sendall(infer_bytes(7))
        gate.set()
        assert _y(read_reply(sock)) == 8
        assert worker.call(lambda: (worker.metrics.requests, worker.metrics.failures)) == (2, 1)


def test_mistakes_of_clients_are_not_counted_as_failures(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker:
        assert _ask(worker, infer_bytes(1).replace(b'"x"', b'"z"')).status == 400
        assert _ask(worker, infer_bytes(1)).status == 200
        assert worker.call(lambda: (worker.metrics.requests, worker.metrics.failures)) == (1, 0)


class _Broken(Adder):
    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        raise ZeroDivisionError


def test_a_bug_fails_one_request_and_not_the_worker(tmp_path: Path) -> None:
    with running_worker(tmp_path, {"m": Adder(), "bad": _Broken()}) as worker, worker.connect() as sock:
        sock.sendall(infer_bytes(1, model="bad"))
        reply = read_reply(sock)
        assert reply is not None
        assert (reply.status, _code(reply)) == (500, "internal.bug")
        sock.sendall(infer_bytes(1))
        assert _y(read_reply(sock)) == 2
        assert worker.call(lambda: worker.metrics.failures) == 1


class _NotFinite(Adder):
    def __init__(self) -> None:
        super().__init__(float("inf"))


def test_an_answer_that_is_not_finite_is_a_failure_of_the_model(tmp_path: Path) -> None:
    with running_worker(tmp_path, _NotFinite()) as worker:
        reply = _ask(worker, infer_bytes(1))
        assert (reply.status, _code(reply)) == (500, "model.output-invalid")
        assert worker.call(lambda: worker.metrics.failures) == 1


_METRICS = b"GET /metrics HTTP/1.1\r\nHost: d\r\n\r\n"


def _gauge(worker: Worker, name: str) -> float:
    text = _ask(worker, _METRICS).body.decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                return sample.value
    raise AssertionError(f"no series {name}")


def test_metrics_are_valid_prometheus_text(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker:
        for value in range(3):
            _ask(worker, infer_bytes(value))
        reply = _ask(worker, _METRICS)
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {family.name: family for family in text_string_to_metric_families(reply.body.decode())}
        ok = [
            sample
            for sample in families["lighterman_inference_requests"].samples
            if sample.labels["outcome"] == "ok" and sample.labels["member"] == "m"
        ]
        assert ok[0].value == 3
        assert ok[0].labels["manifest"] == str(MANIFEST)
        duration = families["lighterman_inference_duration_seconds"]
        counts = [sample.value for sample in duration.samples if sample.name.endswith("_bucket")]
        assert counts == sorted(counts)
        assert counts[-1] == 3


def test_a_hundred_hostile_connections_leave_a_good_one_alone(tmp_path: Path) -> None:
    limits = WorkerLimits(request_read_ms=100, sweep_ms=20)
    with running_worker(tmp_path, Adder(), limits) as worker, worker.connect() as good:
        hostile: list[socket.socket] = []
        for number in range(100):
            sock = worker.connect()
            sock.sendall((b"\x00" * 50, b"GET / HTTP/1.1\r\nA: ", infer_bytes(1)[:-1])[number % 3])
            hostile.append(sock)
            good.sendall(infer_bytes(number))
            assert _y(read_reply(good)) == number + 1
        for sock in hostile:
            sock.close()
        wait_until(lambda: worker.call(lambda: worker.door.connections) == 1, 10, what="the hostile ones to be gone")
