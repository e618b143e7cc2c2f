"""The demonstration counts what it sees: load forgives nothing, and a promise is kept only when it was seen to be."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from device_sim.demo.findings import Findings, Shipment, fleet_rows
from device_sim.demo.load import Answers, Load, Tally
from device_sim.demo.tools import run_tool
from device_sim.digits import Digits
from edge_contract.errors import EdgeError
from tests.support.net import wait_until


class _Worker(http.server.BaseHTTPRequestHandler):
    """Answers that every digit is a 3; fails every tenth request when told to."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        plan = self.server.plan  # type: ignore[attr-defined]
        plan["requests"] += 1
        if plan["is_failing"] and plan["requests"] % 10 == 0:
            self.send_error(503)
            return
        scores = [0.0] * 10
        scores[3] = 1.0
        body = json.dumps({"model_version": str(plan["version"]), "outputs": [{"name": "scores", "data": scores}]})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Lighterman-Manifest", "sha256:" + "0" * 64)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        """A unix socket has no address."""
        return "client"


class _TcpServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    plan: dict[str, int]


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    plan: dict[str, int]


@contextmanager
def _worker(tmp_path: Path, plan: dict[str, int]) -> Iterator[tuple[tuple[str, int], Path]]:
    tcp = _TcpServer(("127.0.0.1", 0), _Worker)
    unix = _UnixServer(str(tmp_path / "unix.sock"), _Worker)
    threads = []
    for server in (tcp, unix):
        server.plan = plan
        threads.append(threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}))
        threads[-1].start()
    try:
        yield ("127.0.0.1", tcp.server_address[1]), tmp_path / "unix.sock"
    finally:
        for server in (tcp, unix):
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


@pytest.fixture
def threes() -> Digits:
    images = np.zeros((4, 64), np.float32)
    return Digits(images, np.zeros(4, np.int64), images, np.array([3, 3, 3, 5], np.int64))


def test_load_counts_answers_by_version_and_how_many_were_right(tmp_path: Path, threes: Digits) -> None:
    plan = {"version": 1, "requests": 0, "is_failing": 0}
    with _worker(tmp_path, plan) as (tcp, unix):
        load = Load("digits", tcp, unix, threes)
        load.start()
        wait_until(lambda: load.tally.served >= 20, 20, what="answers")
        plan["version"] = 2
        wait_until(lambda: 2 in load.tally.by_version, 20, what="answers of version 2")
        load.stop()
    tally = load.tally
    assert tally.failed == 0
    assert set(tally.by_version) == {1, 2}
    assert sum(answers.requests for answers in tally.by_version.values()) == tally.served
    assert tally.by_version[1].accuracy == pytest.approx(0.75, abs=0.1)


def test_load_forgives_nothing(tmp_path: Path, threes: Digits) -> None:
    with _worker(tmp_path, {"version": 1, "requests": 0, "is_failing": 1}) as (tcp, unix):
        load = Load("digits", tcp, unix, threes)
        load.start()
        wait_until(lambda: load.tally.failed >= 2, 20, what="failures")
        load.stop()
    assert "503" in next(iter(load.tally.failures))
    refused = Load("digits", ("127.0.0.1", 9), tmp_path / "nobody.sock", threes)
    refused.start()
    wait_until(lambda: refused.tally.failed >= 4, 20, what="refusals")
    refused.stop()
    assert refused.tally.served == 0


def _good() -> Findings:
    rows = [
        {"device": f"dev-{number}", "version": 2, "is_serving": True, "code": "model.golden-mismatch"}
        for number in range(3)
    ]
    return Findings(
        devices=3,
        shipments={
            1: Shipment(1, 2.0, {"confirmed": 3}, {}, 0.95),
            2: Shipment(2, 3.0, {"confirmed": 3}, {}, 0.98),
            3: Shipment(3, 1.0, {"refused": 3}, {"model.golden-mismatch": 3}, 0.0),
        },
        tally=Tally(served=200, by_version={1: Answers(100, 95), 2: Answers(100, 98)}),
        fleet=rows,
        predictions=[{"version": 1, "devices": 3, "predictions": 9}, {"version": 2, "devices": 3, "predictions": 9}],
        records=18,
    )


def test_everything_good_is_ok() -> None:
    document = _good().to_json()
    assert document["ok"]
    assert document["versions"][0]["answered_accuracy"] == 0.95
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found.shipments[1].outcomes.update(confirmed=2, pending=1),
        lambda found: found.shipments.pop(2),
        lambda found: setattr(found.tally, "failed", 1),
        lambda found: found.tally.by_version.pop(2),
        lambda found: setattr(found.tally.by_version[2], "right", 90),
        lambda found: found.shipments[3].codes.clear(),
        lambda found: found.shipments[3].outcomes.update(confirmed=1, refused=2),
        lambda found: found.tally.by_version.update({3: Answers(1, 0)}),
        lambda found: found.fleet[0].update(version=1),
        lambda found: found.fleet[0].update(is_serving=False),
        lambda found: found.predictions[1].update(devices=2),
        lambda found: setattr(found, "repeated_records", 1),
        lambda found: found.ended_early.append("the agent"),
    ],
)
def test_any_broken_promise_is_told(spoil: object) -> None:
    found = _good()
    assert callable(spoil)
    spoil(found)
    document = found.to_json()
    assert not document["ok"]
    assert [item["promise"] for item in document["promises"] if not item["kept"]]


def test_a_device_without_a_report_is_a_row_too() -> None:
    (row,) = fleet_rows([{"name": "dev-1", "report": None, "report_received_at": None}], "digits")
    assert row["device"] == "dev-1"
    assert row["live"] is None
    assert not row["is_serving"]


def test_a_tool_that_fails_is_quoted_with_its_own_code() -> None:
    with pytest.raises(EdgeError, match=r"device-sim world.*config\.invalid"):
        run_tool("device-sim", ["world", "--devices", "0"], {})
