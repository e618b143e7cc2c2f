"""The client of a module's endpoint: answers in both forms, and each way in which there is none."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.inference import InferenceClient, Tensor
from edge_agent.inference_pool import InferencePool
from edge_contract.errors import EdgeError
from tests.unit.worker.server import MANIFEST, Adder, running_worker

X = Tensor("x", "FP32", (1, 2), [1.0, 2.0])


def test_tensors_travel_as_json_or_as_bytes(tmp_path: Path) -> None:
    raw = Tensor("x", "FP32", (1, 2), struct.pack("<ff", 1, 2))
    with running_worker(tmp_path, Adder()) as worker:
        for address in (worker.path, ("127.0.0.1", worker.port)):
            with InferenceClient(address) as client:
                for tensor in (X, raw):
                    answer = client.infer("m", [tensor], outputs=["y"], request_id="ä7")
                    assert (answer.manifest, answer.model, answer.version, answer.id) == (MANIFEST, "m", 3, "ä7")
                    assert answer.outputs["y"] == Tensor("y", "FP32", (1, 2), [2.0, 3.0])
                    answer = client.infer("m", [tensor], is_binary=True)
                    assert answer.outputs["y"].data == struct.pack("<ff", 2, 3)
                assert client.metadata("m")["versions"] == ["3"]
                assert client.is_ready()


def test_a_refusal_keeps_its_code(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, InferenceClient(worker.path) as client:
        for model, tensor, code in (
            ("m", Tensor("z", "FP32", (1, 2), [1, 2]), "model.input-invalid"),
            ("other", X, "model.not-serving"),
        ):
            with pytest.raises(EdgeError) as caught:
                client.infer(model, [tensor])
            assert caught.value.code == code
        with InferenceClient(("127.0.0.1", worker.port)) as over_http, pytest.raises(EdgeError) as caught:
            over_http.infer("m", [Tensor("x", "FP32", (1, 2), [float("nan"), 1])])
        assert caught.value.code == "model.input-invalid"
        assert client.infer("m", [X]).outputs["y"].data == [2.0, 3.0]


def test_nobody_there_is_said_plainly(tmp_path: Path) -> None:
    client = InferenceClient(tmp_path / "none.sock")
    assert not client.is_ready()
    with pytest.raises(EdgeError) as caught:
        client.infer("m", [X])
    assert caught.value.code == "network.unreachable"
    assert "none.sock" in caught.value.detail


@contextlib.contextmanager
def _odd_server(folder: Path, answers: list[bytes | None]) -> Iterator[Path]:
    """Gives each connection one answer, whatever it asks; none means silence."""
    path = folder / "odd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        held: list[socket.socket] = []

        def serve() -> None:
            for answer in answers:
                sock, _address = listener.accept()
                request = b""
                while not request.endswith(b"}"):  # whole, since closing with unread bytes would be a reset
                    request += sock.recv(65_536)
                if answer is not None:
                    sock.sendall(answer)
                    sock.close()
                else:
                    held.append(sock)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path
        thread.join(10)
        assert not thread.is_alive(), "the client did not ask as often as expected"
        for sock in held:
            sock.close()


_GOOD = (
    f"HTTP/1.1 200 OK\r\nLighterman-Manifest: {MANIFEST}\r\nContent-Length: 52\r\n\r\n"
    '{"model_name":"m","model_version":"3","outputs":[] }'
).encode()


def test_a_cut_connection_is_tried_once_more_and_not_twice(tmp_path: Path) -> None:
    with _odd_server(tmp_path, [b"", _GOOD, b"", b""]) as path, InferenceClient(path) as client:
        assert client.infer_json("m", {}).version == 3
        client.close()
        with pytest.raises(EdgeError) as caught:
            client.infer_json("m", {})
        assert caught.value.code == "network.cut"


def test_silence_is_a_timeout(tmp_path: Path) -> None:
    with _odd_server(tmp_path, [None]) as path, InferenceClient(path, timeout_s=0.05) as client:
        with pytest.raises(EdgeError) as caught:
            client.infer_json("m", {})
        assert caught.value.code == "network.timeout"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "network.cut", id="empty object"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnope", "network.cut", id="no JSON"),
        pytest.param(b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\nnope", "model.inference-failed", id="odd error"),
        pytest.param(_GOOD.replace(b"sha256:", b"sha999:"), "artifact.digest-invalid", id="odd digest"),
    ],
)
def test_an_answer_of_something_else_is_not_believed(tmp_path: Path, answer: bytes, code: str) -> None:
    with _odd_server(tmp_path, [answer]) as path, InferenceClient(path) as client:
        with pytest.raises(EdgeError) as caught:
            client.infer_json("m", {})
        assert caught.value.code == code


_WITHOUT_NUMPY = """
import sys
sys.modules["numpy"] = None
from pathlib import Path
from edge_agent.inference import InferenceClient, Tensor
from edge_agent.inference_pool import InferencePool
with InferenceClient(Path(sys.argv[1])) as client:
    answer = client.infer("m", [Tensor("x", "FP32", (1, 2), [1.0, 2.0])])
    assert client._frames is not None and client._frames._sock is not None
    print(answer.outputs["y"].data)
"""


def test_lists_need_no_numpy_at_all(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker:
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT_NUMPY, str(worker.path)], capture_output=True, text=True, timeout=30
        )
    assert (done.stdout, done.stderr) == ("[2.0, 3.0]\n", "")


def test_a_pool_is_for_threads(tmp_path: Path) -> None:
    with running_worker(tmp_path, Adder()) as worker, InferencePool(worker.path, connections_max=3) as pool:
        seen: list[list[float]] = []

        def ask(number: int) -> None:
            answers = [pool.infer("m", [Tensor("x", "FP32", (1, 2), [number + k, 0])]) for k in range(20)]
            seen.append([float(answer.outputs["y"].data[0]) - number for answer in answers])

        threads = [threading.Thread(target=ask, args=(100 * number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert seen == [[float(k + 1) for k in range(20)]] * 8
        assert worker.call(lambda: worker.door.accepted) <= 3
