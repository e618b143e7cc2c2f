"""`edge-agent serve` with real processes: it answers what it has proved, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_contract.digest import Digest
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec
from tests.support.bundles import ELSEWHERE, HERE, Written, adder_bundle, write_bundle
from tests.support.net import LOOPBACK, wait_until
from tests.support.require import REPOSITORY_ROOT, require_program, require_root
from tests.support.slots import adder, adder_golden
from tests.support.webservice import (
    COMMAND,
    END_S,
    WebService,
    children_of,
    refused,
    request_bytes,
    sleeper_bundle,
    web_service,
)

pytestmark = pytest.mark.slow

CLIENTS = 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A model that adds ten."""
    return adder_bundle(tmp_path_factory.mktemp("adder") / "bundle", platforms=(HERE, ELSEWHERE))


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A script that sleeps as long as it is told to."""
    return sleeper_bundle(tmp_path_factory.mktemp("sleeper") / "bundle")


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In place of pytest's own: a folder with a short path that others may enter."""
    with tempfile.TemporaryDirectory(prefix="web-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def pinned(bundle: Written) -> tuple[str, ...]:
    return str(bundle.folder), "--digest", str(bundle.index)


# --- serving


def test_it_answers_as_a_device_does(bundle: Written, tmp_path: Path) -> None:
    with web_service(*pinned(bundle)) as service:
        digest, _ = bundle.manifests[HERE]
        assert service.facts["model"] == "digits"
        assert service.facts["manifest"] == str(digest)
        assert service.facts["vouched"] == "pinned-digest"
        assert str(service.facts["golden"]).startswith("sha256:")
        assert service.ask("/v2/health/ready") == (200, {"live": True, "ready": True})
        assert service.ask("/v2/health/live")[0] == 200
        assert service.ask("/v2/models/digits/ready")[0] == 200
        status, answer = service.infer(1, 2, 3, 4)
        assert status == 200
        assert answer["outputs"][0]["data"] == [11, 12, 13, 14]
        assert answer["model_version"] == "1"
        status, metrics = service.ask("/metrics")
        assert status == 200
        assert b"# TYPE" in metrics
        with contextlib.closing(service.connect()) as connection:
            connection.request("GET", "/v2")
            answered = connection.getresponse()
            answered.read()
            assert answered.headers["Lighterman-Manifest"] == str(digest)
        assert service.child.stop(deadline_s=END_S) == 0
        assert service.left_overs() == []
        assert "edge_agent.serve" in service.child.output()


def test_clients_have_to_present_the_token_that_was_asked_for(bundle: Written, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("open sesame\n", encoding="utf-8")
    with web_service(*pinned(bundle), "--access-token-file", file) as service:
        assert service.ask("/v2/health/ready")[0] == 200, "probes know no secrets"
        assert service.ask("/v2/models/digits")[0] == 401
        with contextlib.closing(service.connect()) as connection:
            connection.request("GET", "/v2/models/digits", headers={"Authorization": "Bearer open sesame"})
            assert connection.getresponse().status == 200
        assert "sesame" not in service.child.output()
    file.write_text("\n", encoding="utf-8")
    assert refused(*pinned(bundle), "--access-token-file", file) == (2, "config.invalid")
    assert refused(*pinned(bundle), environment={"LIGHTERMAN_ACCESS_TOKEN": ""}) == (2, "config.invalid")
    assert refused(*pinned(bundle), "--access-token-file", tmp_path / "none") == (2, "config.file-missing")


def test_it_answers_on_a_unix_socket_as_well(bundle: Written) -> None:
    with web_service(*pinned(bundle)) as first:
        path = first.work_dir.parent / "s.sock"
        with web_service(*pinned(bundle), "--unix", path) as service:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(10)
                client.connect(str(path))
                client.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200")
            assert refused(*pinned(bundle), "--unix", path) == (2, "config.invalid")
            service.child.kill()
            wait_until(lambda: not _answers(path), END_S, what="the worker of the killed service to end")
            # What a killed service has left is no obstacle.
            with web_service(*pinned(bundle), "--unix", path):
                assert _answers(path)
            assert not path.exists()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        try:
            client.connect(str(path))
            client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            return bool(client.recv(1))
        except OSError:
            return False


def test_the_plain_start_line_is_for_people(bundle: Written, tmp_path: Path) -> None:
    argv = [*COMMAND, *pinned(bundle), "--port", "0", "--work-dir", str(tmp_path), "--log-level", "warning"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(END_S) == 0
        assert process.stdout.read() == ""
    assert line.startswith(f"serving digits:1 {bundle.manifests[HERE][0]} on http://127.0.0.1:")


def test_nobody_is_told_that_it_is_ready_before_the_model_is_proved(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    bundle = sleeper_bundle(tmp_path / "bundle", config={"GATE": str(gate)})
    port = _free_port()
    early: list[bool] = []

    def open_the_gate_once_it_listens() -> None:
        wait_until(lambda: _connects(port), END_S, what="the service to listen")
        early.append(_is_ready(port, 0.5))
        gate.touch()

    opener = threading.Thread(target=open_the_gate_once_it_listens)
    opener.start()
    with web_service(*pinned(bundle), "--port", str(port)) as service:
        opener.join(END_S)
        assert early == [False]
        assert _is_ready(service.port, 30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _connects(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((LOOPBACK, port)) == 0


def _is_ready(port: int, timeout_s: float) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_s)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False


# --- what it refuses to serve


def _pickle_script(folder: Path) -> Written:
    signature = {name: (TensorSpec(name, "FP32", (-1, 4)),) for name in ("x", "y")}
    member = Member("digits", "script", "score.py", signature["x"], signature["y"])
    script = b"import pickle\npickle.loads(pickle.dumps(print))\ndef run(data):\n    return data['x'] + 10\n"
    return write_bundle(folder, [member], {"score.py": script}, golden=adder_golden(10.0), allow_pickle=True)


def test_pickles_need_the_permit_of_who_serves(tmp_path: Path) -> None:
    bundle = _pickle_script(tmp_path / "bundle")
    assert refused(*pinned(bundle)) == (5, "model.pickle-refused")
    with web_service(*pinned(bundle), "--allow-pickle") as service:
        assert service.infer(1)[0] == 200


def test_a_changed_byte_is_an_artifact_nobody_serves(tmp_path: Path) -> None:
    bundle = adder_bundle(tmp_path / "bundle")
    blob = bundle.blob(bundle.manifest().layers[1].digest)
    data = bytearray(blob.read_bytes())
    data[-5] ^= 0x80
    blob.write_bytes(data)
    assert refused(*pinned(bundle)) == (4, "artifact.digest-mismatch")
    assert refused(bundle.folder, "--insecure-unsigned") == (4, "artifact.digest-mismatch")


def test_another_digest_or_platform_is_refused(bundle: Written, tmp_path: Path) -> None:
    assert refused(bundle.folder, "--digest", str(Digest.of(b"x"))) == (4, "artifact.not-found")
    elsewhere = adder_bundle(tmp_path / "bundle", platforms=(ELSEWHERE,))
    assert refused(*pinned(elsewhere)) == (4, "artifact.platform-mismatch")


def test_what_nobody_vouches_for_needs_to_be_asked_for(bundle: Written) -> None:
    assert refused(bundle.folder) == (2, "config.invalid")
    with web_service(bundle.folder, "--insecure-unsigned") as service:
        assert service.facts["vouched"] == "nobody"
        assert "WARNING" in service.child.output()


def test_golden_vectors_that_are_missing_or_not_met_are_refused(tmp_path: Path) -> None:
    bare = adder_bundle(tmp_path / "bare", golden=False)
    assert refused(*pinned(bare)) == (4, "artifact.golden-invalid")
    with web_service(*pinned(bare), "--allow-unproved") as service:
        assert service.facts["golden"] is None
    member = Member("digits", "onnx", "model.onnx")
    wrong = write_bundle(tmp_path / "wrong", [member], {"model.onnx": adder(10.0)}, golden=adder_golden(10.5))
    assert refused(*pinned(wrong)) == (5, "model.golden-mismatch")


def test_a_model_that_does_not_load_is_refused(tmp_path: Path) -> None:
    member = Member("digits", "onnx", "model.onnx")
    broken = write_bundle(tmp_path / "b", [member], {"model.onnx": b"no model"}, golden=adder_golden(10.0))
    code, error = refused(*pinned(broken))
    assert (code, error) == (5, "model.load-failed")


def test_an_engine_that_is_not_installed_is_named(bundle: Written, tmp_path: Path) -> None:
    missing = tmp_path / "stub" / "onnxruntime"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ImportError('not on this machine')\n")
    found = refused(*pinned(bundle), environment={"PYTHONPATH": str(missing.parent)})
    assert found == (5, "model.engine-unavailable")


def test_a_port_that_is_taken_is_found_out_before_anything_else(bundle: Written) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        assert refused(*pinned(bundle), "--port", str(taken.getsockname()[1])) == (2, "config.invalid")
    assert refused(*pinned(bundle), "--host", "203.0.113.7") == (2, "config.invalid")


def test_a_place_that_is_not_there_is_named(bundle: Written) -> None:
    argv = [*COMMAND, *pinned(bundle), "--port", "0", "--work-dir", "/nowhere/at/all"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=END_S)
    assert done.returncode == 6
    assert "--work-dir" in done.stderr
    assert done.stdout == ""


def test_a_place_whose_path_is_too_long_is_named(bundle: Written, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    argv = [*COMMAND, *pinned(bundle), "--port", "0", "--work-dir", str(deep)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=END_S)
    assert done.returncode == 2
    assert "--work-dir" in done.stderr
    assert not list(deep.iterdir())


# --- ending


@dataclass
class Caller:
    """Asks over one kept-alive connection until it is told that the connection ends.

    Attributes:
        answers: Right answers so far.
        was_told: Whether the last answer said that the connection ends.
        lost: What happened to a request that was sent and not answered.
    """

    port: int
    seconds: float
    answers: int = 0
    was_told: bool = False
    lost: str = ""
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=END_S)
        with contextlib.closing(connection):
            try:
                while not self.was_told:
                    connection.request("POST", "/v2/models/digits/infer", request_bytes(self.seconds, 1))
                    answer = connection.getresponse()
                    body = json.loads(answer.read())
                    if answer.status != 200 or body["outputs"][0]["data"][1] != 11:
                        self.lost = f"{answer.status} {body}"
                        return
                    self.was_told = answer.headers.get("Connection") == "close"
                    self.answers += 1
            except (OSError, http.client.HTTPException) as error:
                self.lost = repr(error)


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_a_signal_under_load_loses_nothing_that_had_begun(bundle: Written, sleeper: Written, seconds: float) -> None:
    with web_service(*pinned(sleeper if seconds else bundle)) as service:
        callers = [Caller(service.port, seconds) for _ in range(CLIENTS)]
        wait_until(lambda: all(caller.answers > 5 for caller in callers), END_S, what="load")
        service.child.send(signal.SIGTERM)
        for caller in callers:
            caller.thread.join(END_S)
        assert [caller.lost for caller in callers] == [""] * CLIENTS
        assert all(caller.was_told for caller in callers)
        assert service.child.wait(END_S) == 0
        assert service.left_overs() == []


def test_who_connects_for_each_request_is_answered_or_refused_and_never_cut_off(bundle: Written) -> None:
    ends: list[str] = []

    def ask_until_refused(service: WebService) -> None:
        while True:
            with contextlib.closing(service.connect()) as connection:
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    ends.append("refused")
                    return
                try:
                    connection.request("POST", "/v2/models/digits/infer", request_bytes(1))
                    answer = connection.getresponse()
                    answer.read()
                except (OSError, http.client.HTTPException) as error:
                    ends.append(repr(error))
                    return
                if answer.status != 200:
                    ends.append(str(answer.status))
                    return

    for _ in range(3):
        with web_service(*pinned(bundle)) as service:
            threads = [threading.Thread(target=ask_until_refused, args=(service,), daemon=True) for _ in range(4)]
            for thread in threads:
                thread.start()
            assert service.infer(1)[0] == 200
            service.child.send(signal.SIGTERM)
            for thread in threads:
                thread.join(END_S)
            assert service.child.wait(END_S) == 0
    assert ends == ["refused"] * 12


def test_what_waits_in_the_queue_is_answered_and_whoever_comes_later_is_refused(sleeper: Written) -> None:
    with web_service(*pinned(sleeper)) as service:
        own = _sockets(service)
        slow = [Caller(service.port, 1.5) for _ in range(2)]
        wait_until(lambda: _sockets(service) >= own + 2, END_S, what="two requests in flight")
        service.child.send(signal.SIGTERM)
        wait_until(lambda: not _connects(service.port), END_S, what="the port to be closed")
        assert service.child.is_running, "it still has two answers to give"
        for caller in slow:
            caller.thread.join(END_S)
        assert [(caller.answers, caller.lost, caller.was_told) for caller in slow] == [(1, "", True)] * 2
        assert service.child.wait(END_S) == 0


def _sockets(service: WebService) -> int:
    """Sockets of the worker: some of its own, and the connections that it has taken."""
    count = 0
    for worker in service.workers:
        for fd in Path(f"/proc/{worker}/fd").glob("*"):
            with contextlib.suppress(OSError):
                count += os.readlink(fd).startswith("socket:")
    return count


def test_the_drain_is_bounded(sleeper: Written) -> None:
    with web_service(*pinned(sleeper), "--drain-seconds", "1") as service:
        own = _sockets(service)
        endless = Caller(service.port, 120.0)
        wait_until(lambda: _sockets(service) >= own + 1, END_S, what="the request in flight")
        begun = time.monotonic()
        service.child.send(signal.SIGTERM)
        assert service.child.wait(END_S) == 0
        assert time.monotonic() - begun < 20
        endless.thread.join(END_S)
        assert endless.lost.startswith("503")
        assert service.left_overs() == []


def test_it_goes_on_answering_while_load_balancers_take_it_out(bundle: Written) -> None:
    with web_service(*pinned(bundle), "--linger-seconds", "2") as service:
        begun = time.monotonic()
        service.child.send(signal.SIGTERM)
        while time.monotonic() - begun < 1.5:
            assert service.infer(1)[0] == 200
        assert service.child.wait(END_S) == 0
        assert time.monotonic() - begun >= 2
    with web_service(*pinned(bundle), "--linger-seconds", "600") as service:
        begun = time.monotonic()
        for _ in range(2):  # one wish that is told twice, as `timeout` does
            service.child.send(signal.SIGTERM)
        wait_until(lambda: "stopping" in service.child.output(), END_S, what="the first signal to be heard")
        assert service.infer(1)[0] == 200
        wait_until(lambda: time.monotonic() - begun > 1, END_S, what="a second wish to be one")
        service.child.send(signal.SIGTERM)
        assert service.child.wait(END_S) == 0, "a second signal is for who will not wait"
        assert service.left_overs() == []


def test_a_signal_while_it_loads_ends_it_at_once(tmp_path: Path) -> None:
    bundle = sleeper_bundle(tmp_path / "bundle", config={"GATE": str(tmp_path / "never")})
    place = tmp_path / "place"
    place.mkdir()
    argv = [*COMMAND, *pinned(bundle), "--port", "0", "--work-dir", str(place)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: bool(children_of(process.pid)), END_S, what="the worker to begin")
        (worker,) = children_of(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_S) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b""
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), END_S, what="the worker to end")
    assert not list(place.iterdir())


# --- crashing


def test_a_worker_that_crashes_is_restarted_and_nobody_is_refused(bundle: Written) -> None:
    with web_service(*pinned(bundle)) as service:
        for _ in range(2):
            (worker,) = service.workers
            os.kill(worker, signal.SIGKILL)
            # A new connection waits in the kernel until the next worker accepts it.
            assert service.infer(1)[1]["outputs"][0]["data"][0] == 11
            assert service.workers != [worker]
        assert service.child.stop(deadline_s=END_S) == 0
        assert service.left_overs() == []


def test_a_request_that_kills_its_worker_kills_nothing_else(sleeper: Written) -> None:
    with web_service(*pinned(sleeper)) as service:
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert service.infer(0, 666)[0] == 503
        assert service.infer(0, 1)[0] == 200


def test_a_model_that_wants_more_memory_than_it_may_have_harms_only_itself(sleeper: Written) -> None:
    def take(service: WebService, mebibytes: int) -> int:
        try:
            return service.infer(0, 1, mebibytes)[0]
        except (OSError, http.client.HTTPException):
            return 0  # its worker was ended with the request

    with web_service(*pinned(sleeper)) as service:
        assert take(service, 700) == 200
    with web_service(*pinned(sleeper), "--memory", "512Mi", "--cpus", "1") as service:
        assert take(service, 700) != 200
        assert service.infer(0, 1)[0] == 200
        assert take(service, 1) == 200


def test_a_service_that_is_killed_takes_its_worker_along(bundle: Written, tmp_path: Path) -> None:
    place = tmp_path / "place"
    with web_service(*pinned(bundle), work_dir=place) as service:
        (worker,) = service.workers
        service.child.kill()
        wait_until(lambda: not Path(f"/proc/{worker}/exe").exists(), END_S, what="the worker to end")
        assert len(service.left_overs()) == 1
    with web_service(*pinned(bundle), work_dir=place) as service:
        assert len(service.left_overs()) == 1, "the next service removes what the killed one has left"
        assert service.child.stop(deadline_s=END_S) == 0
    assert not list(place.iterdir())


# --- containers

_CONTAINER = """
set -e
work=$1 closed=$2 interpreter=$3
shift 3
mount --make-rprivate /
if [ -n "$closed" ]; then
    # The interpreter lies where nobody but root may go: seen from in here, its folder is open.
    mount --bind "$interpreter" "$work"
    mount -t tmpfs -o mode=755 tmpfs "$closed"
    mkdir -p "$interpreter"
    mount --move "$work" "$interpreter"
    mount -o remount,ro "$closed"
fi
mount -t tmpfs -o mode=1777 tmpfs "$work"
mount -o remount,bind,ro /
exec setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set=-all "$@"
"""


def _closed_to_others(path: Path) -> Path | None:
    """The first folder on the way to a path that others may not enter."""
    return next((folder for folder in (*reversed(path.parents), path) if not folder.stat().st_mode & 0o001), None)


@pytest.fixture
def container(tmp_path: Path) -> tuple[list[str], Path]:
    """A command that runs another as process 1, as nobody, with one folder to write to; and that folder."""
    require_root("namespaces and mounts")
    unshare, setpriv = require_program("unshare"), require_program("setpriv")
    assert setpriv
    work = tmp_path / "work"
    work.mkdir()
    spaces = [unshare, "--pid", "--fork", "--kill-child", "--mount-proc", "--mount"]
    if subprocess.run([*spaces, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives nobody namespaces")
    interpreter = Path(sys.base_prefix).resolve()
    closed = _closed_to_others(interpreter)
    return [*spaces, "sh", "-c", _CONTAINER, "sh", str(work), str(closed or ""), str(interpreter)], work


@pytest.mark.system
def test_it_is_process_1_of_a_container_as_nobody_with_a_read_only_root(
    tmp_path: Path, container: tuple[list[str], Path]
) -> None:
    prefix, work = container
    if (closed := _closed_to_others(REPOSITORY_ROOT)) is not None:
        pytest.skip(f"others may not enter {closed}")
    bundle = adder_bundle(tmp_path / "bundle")
    with web_service(*pinned(bundle), command=[*prefix, *COMMAND], work_dir=work) as service:
        assert service.facts["pid"] != 1, "process 1 watches over it"
        assert service.infer(1, 2, 3, 4)[1]["outputs"][0]["data"] == [11, 12, 13, 14]
        (first,) = children_of(service.child.pid)
        status = Path(f"/proc/{first}/status").read_text()
        assert "Uid:\t65532\t65532\t65532\t65532" in status
        assert "CapEff:\t0000000000000000" in status
        assert status.split("NSpid:")[1].splitlines()[0].split()[-1] == "1"
        os.kill(first, signal.SIGTERM)
        assert service.child.wait(END_S) == 0
    assert not list(work.iterdir())
