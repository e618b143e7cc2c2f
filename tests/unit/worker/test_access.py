"""Who may ask over TCP."""

import http.client
from pathlib import Path

import pytest

from edge_agent.inference import InferenceClient
from edge_agent.worker.access import TcpAccess
from edge_agent.worker.http import Head
from tests.unit.worker.server import Adder, running_worker


def _head(path: str = "/v2", authorization: str | None = None) -> Head:
    line = "" if authorization is None else f"Authorization: {authorization}\r\n"
    return Head(f"GET {path} HTTP/1.1\r\nHost: d\r\n{line}\r\n".encode())


@pytest.mark.parametrize(
    ("authorization", "is_permitted"),
    [
        (None, False),
        ("", False),
        ("Bearer", False),
        ("Bearer secre", False),
        ("Bearer secret!", False),
        ("Basic secret", False),
        ("secret", False),
        ("Bearer secret", True),
        ("bearer  secret", True),
    ],
)
def test_over_tcp_only_the_token_lets_in(authorization: str | None, is_permitted: bool) -> None:
    assert TcpAccess("secret").permits("tcp", _head(authorization=authorization)) is is_permitted
    assert TcpAccess("secret").permits("unix", _head(authorization=authorization)), "its file has permissions"
    assert TcpAccess("").permits("tcp", _head(authorization=authorization)), "nobody asked for a token"


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_probes_need_no_token(path: str) -> None:
    assert TcpAccess("secret").permits("tcp", _head(path))
    assert not TcpAccess("secret").permits("tcp", _head(path + "/x"))


def test_a_worker_with_a_token_answers_those_who_know_it(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder(), tcp_token="secret") as worker:
        connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30)
        connection.request("GET", "/v2")
        refused = connection.getresponse()
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert b"cloud.unauthorized" in refused.read()
        connection.close()
        connection.request("GET", "/v2", headers={"Authorization": "Bearer secret"})
        assert connection.getresponse().read()
        connection.close()
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 200
        connection.close()
        with InferenceClient(worker.path) as client:
            assert client.is_ready()
            client.metadata("m")
