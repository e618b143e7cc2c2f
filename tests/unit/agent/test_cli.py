"""The command line `edge-agent`, against a data directory, a made-up agent and a made-up module."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edge_agent import cli
from edge_agent.config import AgentConfig
from edge_agent.control import ask
from edge_agent.identity import FOLDER, DeviceIdentity, KeyPlace, Validity
from edge_agent.predict import as_request
from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.journal import FileJournal
from edge_agent.store.slots import FileSlotStore
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import Manifest
from tests.support.rawhttp import Asked, answer, raw_server
from tests.unit.shell.fakes import Cloud

DIGEST = "sha256:" + "ab" * 32
_BOUNDS = ("bounded: memory_bytes_max 1000, by cgroup", "not bounded: cpu_permille_max: no such controller")
STATUS: dict[str, Any] = {
    "device": "dev-1",
    "boot": "00" * 8,
    "director_version": 7,
    "online": True,
    "modules": {
        "digits": {
            "phase": "idle",
            "live": DIGEST,
            "model": "digits",
            "version": 2,
            "golden": None,
            "fallback": None,
            "serving": True,
            "deployment": {
                "deployment": "dep-3",
                "manifest": DIGEST,
                "outcome": "refused",
                "error": {"code": "model.golden-mismatch", "detail": "scores differ", "phase": "testing", "attempt": 1},
            },
            "unix": "/run/digits.sock",
            "tcp": "127.0.0.1:8501",
            "limits": {
                "process": 9,
                "applied": {"memory_bytes_max": {"value": 1000, "by": "cgroup"}},
                "refused": {"cpu_permille_max": "no such controller"},
            },
        }
    },
    "spool": {"records": 3, "bytes": 100, "dropped": 0},
    "error": None,
}


def run(*arguments: object, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli.main, [str(item) for item in arguments], input=text)


class Agent:
    """Replies to one request after the other on a control socket."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[dict[str, Any]] = []
        self.reply: Callable[[dict[str, Any]], bytes] = lambda _: json.dumps({"ok": True, "status": STATUS}).encode()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(folder / "agent.sock"))
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(BrokenPipeError):
                self.asked.append(json.loads(connection.recv(65_536)))
                connection.sendall(self.reply(self.asked[-1]))


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    yield made
    made.close()


# --- status, rollback, the control socket
# -------------------------------------------------------------------------------


def test_status_is_a_page_for_people_or_json(agent: Agent, tmp_path: Path) -> None:
    shown = run("status", "--run-dir", tmp_path)
    assert shown.exit_code == 0, shown.output
    words = ("dev-1", "online", "digits:2", "model.golden-mismatch", "dep-3", "127.0.0.1:8501", "3 records")
    for word in (*words, *_BOUNDS):
        assert word in shown.output
    data = ("--data", tmp_path / "data")
    assert json.loads(run("status", "--run-dir", tmp_path, *data, "--json").output) == {**STATUS, "key": None}
    assert agent.asked == [{"op": "status"}] * 2


def test_status_tells_of_holds_gaps_refusals_other_answers_and_the_key(agent: Agent, tmp_path: Path) -> None:
    refused = {**STATUS["modules"]["digits"]["deployment"], "deployment": "dep-9"}
    module = STATUS["modules"]["digits"] | {
        "held": True,
        "answering": "sha256:" + "cd" * 32,
        "gap_ms": 1250,
        "refused": {**refused, "error": {"code": "trust.release-rollback", "detail": "counter falls"}},
        "error": {"code": "device.disk-corrupt", "detail": "a file is damaged"},
    }
    status = {**STATUS, "held": True, "clock_trusted": False, "modules": {"digits": module}}
    agent.reply = lambda _: json.dumps({"ok": True, "status": status}).encode()
    folder = tmp_path / "data" / FOLDER
    folder.mkdir(parents=True)
    key = KeyPlace("file:device.key", "EdDSA", "ab" * 32, folder)
    until_ms = 1_800_000_000_000
    identity = DeviceIdentity("dev-1", "http://127.0.0.1", key, Validity(0, until_ms), "linux/amd64", "", None, folder)
    (folder / "enrolment.json").write_bytes(identity.to_bytes())
    shown = run("status", "--run-dir", tmp_path, "--data", tmp_path / "data")
    for words in (
        "updates are held",
        "clock is behind",
        "idle, held",
        "another bundle answers: cdcdcdcdcdcd",
        "1250 ms without an answer",
        "dep-9 refused: counter falls [trust.release-rollback]",
        "a file is damaged [device.disk-corrupt]",
        "file Ed25519 abababababab, certificate good until 2027-01-15 08:00 UTC",
    ):
        assert words in shown.output
    found = json.loads(run("status", "--run-dir", tmp_path, "--data", tmp_path / "data", "--json").output)
    assert found["key"] == {"kind": "file Ed25519", "keyid": "ab" * 32, "valid_until_ms": until_ms}


@pytest.mark.parametrize("op", ["hold", "resume"])
def test_hold_and_resume_ask_the_agent_for_one_module_or_all(agent: Agent, tmp_path: Path, op: str) -> None:
    agent.reply = lambda _: b'{"ok":true}\n'
    shown = run(op, "--run-dir", tmp_path)
    assert (shown.exit_code, "this device" in shown.output) == (0, True)
    shown = run(op, "digits", "--run-dir", tmp_path, "--json")
    assert json.loads(shown.output) == {"op": op, "module": "digits"}
    assert agent.asked == [{"op": op, "module": ""}, {"op": op, "module": "digits"}]


def test_a_device_without_an_identity_has_nothing_to_renew(tmp_path: Path) -> None:
    shown = run("renew", "--data", tmp_path / "data")
    assert (shown.exit_code, "[device.not-enrolled]" in shown.stderr) == (6, True)


def test_without_an_agent_status_says_so(tmp_path: Path) -> None:
    shown = run("status", "--run-dir", tmp_path)
    assert shown.exit_code == 7
    assert shown.stderr.startswith("error: ")
    assert "[network.unreachable]" in shown.stderr
    assert shown.stdout == ""
    shown = run("status", "--run-dir", tmp_path, "--json")
    assert shown.exit_code == 7
    assert json.loads(shown.stdout)["error"]["code"] == "network.unreachable"


def test_rollback_asks_the_agent(agent: Agent, tmp_path: Path) -> None:
    agent.reply = lambda _: json.dumps({"ok": True, "fallback": DIGEST}).encode() + b"\n"
    shown = run("rollback", "digits", "--run-dir", tmp_path)
    assert shown.exit_code == 0
    assert DIGEST in shown.output
    assert agent.asked == [{"op": "rollback", "module": "digits"}]


def test_what_the_agent_refuses_is_shown_with_its_code(agent: Agent, tmp_path: Path) -> None:
    error = {"code": "device.no-fallback", "detail": "nothing to roll back to", "hint": "Deploy something."}
    agent.reply = lambda _: json.dumps({"ok": False, "error": error}).encode()
    shown = run("rollback", "digits", "--run-dir", tmp_path)
    assert shown.exit_code == 6
    assert "nothing to roll back to [device.no-fallback] Deploy something." in shown.stderr


@pytest.mark.parametrize(
    "reply",
    [b"", b"\n", b"rubbish\n", b"[]\n", b'{"ok":"yes"}\n', b'{"ok":false,"error":{"code":"none"}}\n', b"x" * 2_000_000],
)
def test_an_odd_reply_is_an_error_and_no_crash(agent: Agent, tmp_path: Path, reply: bytes) -> None:
    agent.reply = lambda _: reply
    with pytest.raises(EdgeError):
        ask(tmp_path, {"op": "status"})


def test_a_silent_agent_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen(1)
        with pytest.raises(EdgeError) as caught:
            ask(tmp_path, {"op": "status"}, timeout_ms=100)
    assert caught.value.code == "network.timeout"


# --- verify
# -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with one staged bundle, one further blob and a journal."""
    cloud = Cloud()
    assignment = cloud.publish(1)
    blobs = FileBlobStore(tmp_path, 0)
    for digest, content in cloud.blobs.items():
        blobs.put(digest, content)
    manifest = Manifest.parse(cloud.blobs[assignment.manifest])
    FileSlotStore(tmp_path, blobs).stage(assignment.manifest, manifest)
    blobs.put(Digest.of(b"spare"), b"spare")
    FileJournal(tmp_path / "journal.json").save({"n": 1})
    return tmp_path


def test_verify_reads_everything_and_is_content(data: Path) -> None:
    shown = run("verify", "--data", data)
    assert shown.exit_code == 0, shown.output
    assert "digits:1" in shown.output
    assert "1 read, 0 damaged" in shown.output
    assert "3 read, 0 damaged" in run("verify", "--all", "--data", data).output


def test_verify_of_nothing_is_content(tmp_path: Path) -> None:
    assert run("verify", "--all", "--data", tmp_path / "new", "--json").exit_code == 0


@pytest.mark.parametrize(
    ("spoil", "needs_all"),
    [
        ("slots/*/files/model.onnx", False),
        ("slots/*/slot.json", False),
        (f"blobs/sha256/{Digest.of(b'{}').hex}", False),
        (f"blobs/sha256/{Digest.of(b'spare').hex}", True),
        ("journal.json", True),
    ],
)
def test_verify_finds_damage_and_changes_nothing(data: Path, spoil: str, needs_all: bool) -> None:
    (path,) = data.glob(spoil)
    path.chmod(0o600)
    path.write_bytes(b"?")
    shown = run("verify", "--data", data, *(["--all"] if needs_all else []), "--json")
    assert json.loads(shown.output)["damaged"] == 1
    assert shown.exit_code in (6, 70)
    assert path.read_bytes() == b"?"
    if needs_all:
        assert run("verify", "--data", data).exit_code == 0


# --- infer
# --------------------------------------------------------------------------------------------------------------

SIGNATURE = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([[1, 2], [3, 4]], {"shape": [2, 2], "data": [1, 2, 3, 4]}),
        ({"x": [[1.5, 2]]}, {"shape": [1, 2], "data": [1.5, 2]}),
        ([], {"shape": [0], "data": []}),
        (7, {"shape": [], "data": [7]}),
    ],
)
def test_a_bare_tensor_becomes_a_request(value: object, expected: dict[str, Any]) -> None:
    assert as_request(value, SIGNATURE) == {"inputs": [{"name": "x", "datatype": "FP32", **expected}]}


def test_a_whole_request_and_a_scripts_input_are_passed_on() -> None:
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
    assert as_request(request, SIGNATURE) is request
    assert as_request({"any": "thing"}, []) == {"any": "thing"}


@pytest.mark.parametrize("value", [[[1, 2], [3]], [[1], 2], {"y": [1]}, {"x": [1], "y": [2]}, [None], [{}]])
def test_an_input_that_does_not_fit_is_refused(value: object) -> None:
    with pytest.raises(EdgeError) as caught:
        as_request(value, SIGNATURE)
    assert caught.value.code == "model.input-invalid"


def test_a_model_with_two_inputs_wants_names() -> None:
    with pytest.raises(EdgeError, match="a, b") as caught:
        as_request([1], [{"name": "a", "datatype": "FP32"}, {"name": "b", "datatype": "FP32"}])
    assert caught.value.code == "model.input-invalid"


def test_infer_asks_the_module(tmp_path: Path) -> None:
    asked: list[Asked] = []

    def module(request: Asked) -> list[bytes]:
        asked.append(request)
        if request.method == "GET":
            return [answer(200, json.dumps({"name": "digits", "inputs": SIGNATURE}).encode())]
        document = {
            "model_name": "digits",
            "model_version": "2",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [0.5]}],
        }
        return [answer(200, json.dumps(document).encode(), Lighterman_Manifest=DIGEST)]

    with raw_server(module, keep_alive=True, unix=tmp_path / "digits.sock"):
        shown = run("infer", "--module", "digits", "--input", "-", "--run-dir", tmp_path, text="[[1, 2]]")
        assert shown.exit_code == 0, shown.output
        assert f"digits:2  {DIGEST}" in shown.output
        assert "y  FP32[1]  [0.5]" in shown.output
        (tmp_path / "in.json").write_text("[[1, 2]]")
        shown = run("infer", "--module", "digits", "--input", tmp_path / "in.json", "--run-dir", tmp_path, "--json")
        assert json.loads(shown.output)["outputs"] == {"y": {"datatype": "FP32", "shape": [1], "data": [0.5]}}
    assert json.loads(asked[1].body)["inputs"][0]["data"] == [1, 2]


@pytest.mark.parametrize(
    ("module", "text", "code"),
    [("digits", "[[1,", 5), ("digits", "[[1, 2]]", 7), ("../x", "[1]", 2)],
)
def test_infer_tells_what_is_wrong(tmp_path: Path, module: str, text: str, code: int) -> None:
    shown = run("infer", "--module", module, "--input", "-", "--run-dir", tmp_path, text=text)
    assert shown.exit_code == code, shown.output


# --- run, config, enroll
# ------------------------------------------------------------------------------------------------


def test_run_hands_the_configuration_to_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[AgentConfig] = []

    def note(config: AgentConfig) -> int:
        seen.append(config)
        return 3

    shell = types.ModuleType("edge_agent.shell.main")
    shell.run = note  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edge_agent.shell.main", shell)
    (tmp_path / "agent.toml").write_text("poll_ms = 1234\n")
    shown = run("run", "--config", tmp_path / "agent.toml", "--data", tmp_path / "d", "--run-dir", tmp_path / "r")
    assert shown.exit_code == 3
    assert (seen[0].data, seen[0].run, seen[0].poll_ms) == (tmp_path / "d", tmp_path / "r", 1234)


def test_an_operating_error_of_the_agent_ends_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: AgentConfig) -> int:
        raise EdgeError("device.not-enrolled", "no identity", "Enrol it.")

    shell = types.ModuleType("edge_agent.shell.main")
    shell.run = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edge_agent.shell.main", shell)
    shown = run("run", "--data", tmp_path)
    assert shown.exit_code == 6
    assert "error: no identity [device.not-enrolled] Enrol it." in shown.stderr


def test_config_check_shows_values_or_the_mistake(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("poll_ms = 2000\n")
    shown = run("config", "check", file)
    assert shown.exit_code == 0
    assert "poll_ms = 2000" in shown.output
    assert json.loads(run("config", "check", file, "--json").output)["poll_ms"] == 2000
    file.write_text("poll_ms = 1\n")
    shown = run("config", "check", file)
    assert shown.exit_code == 2
    assert str(file) in shown.stderr
    assert json.loads(run("config", "check", file, "--json").output)["error"]["code"] == "config.invalid"


def test_enroll_needs_a_token_and_reads_it_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[str] = []

    def registry(asked: Asked) -> list[bytes]:
        tokens.append(json.loads(asked.body)["token"])
        return [answer(409, b'{"code":"cloud.token-spent","detail":"used before"}')]

    with raw_server(registry) as server:
        common = ("enroll", "--url", server.url, "--data", tmp_path / "data")
        assert run(*common).exit_code == 2
        assert run(*common, "--token-file", tmp_path / "absent").exit_code == 2
        (tmp_path / "token").write_text("from-file\n")
        shown = run(*common, "--token-file", tmp_path / "token")
        assert (shown.exit_code, "[cloud.token-spent]" in shown.stderr) == (8, True)
        assert run(*common, "--token-file", "-", text="from-stdin").exit_code == 8
        monkeypatch.setenv("LIGHTERMAN_ENROL_TOKEN", "from-environment")
        assert run(*common).exit_code == 8
        assert run(*common, "--token", "-", text="also-from-stdin").exit_code == 8
        assert run(*common, "--key", "file:../x").exit_code == 2
        assert run(*common, "--key-type", "rsa").exit_code == 2
    assert tokens == ["from-file", "from-stdin", "from-environment", "also-from-stdin"]


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["enroll"],
        ["run"],
        ["status"],
        ["infer"],
        ["verify"],
        ["rollback"],
        ["hold"],
        ["resume"],
        ["renew"],
        ["config", "check"],
    ],
)
def test_every_command_explains_itself(command: list[str]) -> None:
    shown = run(*command, "--help")
    assert shown.exit_code == 0
    assert len(shown.output.splitlines()) > 6


def test_the_first_help_teaches_how_to_begin() -> None:
    text = run("--help").output
    for word in ("edge-agent enroll --url", "edge-agent run", "bash_source", "Exit codes"):
        assert word in text


def test_a_wrong_flag_is_a_configuration_error() -> None:
    assert run("status", "--no-such-flag").exit_code == 2
