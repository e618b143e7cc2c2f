"""A container's first start and its health: what the environment says, how often enrolment is tried, who is ill."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from edge_agent import iotedge
from edge_agent.cli import main
from edge_agent.config import AgentConfig
from edge_agent.limits import ENROL_RETRY_MS_MAX
from edge_contract.errors import EdgeError

EDGE = {
    "IOTEDGE_WORKLOADURI": "unix:///var/run/iotedge/workload.sock",
    "IOTEDGE_DEVICEID": "gate-1",
    "IOTEDGE_MODULEID": "digits",
    "IOTEDGE_MODULEGENERATIONID": "1",
    "IOTEDGE_IOTHUBHOSTNAME": "hub.local",
    "IOTEDGE_GATEWAYHOSTNAME": "gateway",
    "IOTEDGE_APIVERSION": "2019-01-30",
}
FIRST = {"LIGHTERMAN_REGISTRY_URL": "https://registry.example", "LIGHTERMAN_ENROLMENT_TOKEN": "secret"}


class Registry:
    """Takes the place of `enroll`: fails as told, then enrols."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *codes: str) -> None:
        self.codes = list(codes)
        self.asked: list[dict[str, Any]] = []
        self.waits: list[float] = []
        monkeypatch.setattr(iotedge, "enroll", self._enrol)
        monkeypatch.setattr(iotedge, "_is_enrolled", lambda data, url: False)

    def _enrol(self, url: str, token: str, data: Path, *, ca: Path | None, **more: Any) -> Any:
        self.asked.append({"url": url, "token": token, "ca": ca and ca.read_text(), **more})
        if self.codes:
            raise EdgeError(self.codes.pop(0), "as told")
        return SimpleNamespace(device="gate-1")

    def enrol(self, folder: Path, environment: dict[str, str], **more: Any) -> None:
        config = AgentConfig(data=folder / "data", run=folder / "run")
        iotedge.ensure_enrolled(config, environment, self.waits.append, **more)


def test_the_first_start_tries_until_the_registry_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(monkeypatch, "network.unreachable", "cloud.unavailable", *["network.timeout"] * 8)
    environment = {**EDGE, **FIRST, "LIGHTERMAN_HARDWARE_ID": "jetson", "LIGHTERMAN_REGISTRY_CA": r"line\nline"}
    registry.enrol(tmp_path, environment)
    assert len(registry.asked) == 11
    wanted = {"token": "secret", "hardware_id": "jetson", "ca": "line\nline\n", "key_type": "p256"}
    assert wanted.items() <= registry.asked[0].items()
    assert len(registry.waits) == 10
    for place, pause in enumerate(registry.waits):
        full = min(ENROL_RETRY_MS_MAX, 1_000 << place) / 1000
        assert full / 2 <= pause <= full
    # No process that is started later finds the token, and health checks find nothing to wait for.
    assert "LIGHTERMAN_ENROLMENT_TOKEN" not in environment
    assert not (tmp_path / "run" / "enrolling").exists()


@pytest.mark.parametrize(
    ("codes", "tries"), [(["cloud.token-spent"], 1), (["network.unreachable"] * 9, 3), (["trust.metadata-invalid"], 1)]
)
def test_a_refusal_is_final_and_tries_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[str], tries: int
) -> None:
    registry = Registry(monkeypatch, *codes)
    with pytest.raises(EdgeError, match="as told"):
        registry.enrol(tmp_path, dict(FIRST), tries_max=3)
    assert len(registry.asked) == tries


def test_a_token_may_come_in_a_file_that_appears_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    registry = Registry(monkeypatch, "network.unreachable")
    environment = {"LIGHTERMAN_REGISTRY_URL": "https://r.example", "LIGHTERMAN_ENROLMENT_TOKEN_FILE": str(file)}
    with pytest.raises(EdgeError) as missing:
        registry.enrol(tmp_path, environment)
    assert missing.value.code == "config.file-missing"
    file.write_text("from a file")
    registry.enrol(tmp_path, environment)
    assert [asked["token"] for asked in registry.asked] == ["from a file"] * 2


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({}, "LIGHTERMAN_REGISTRY_URL"),
        ({"LIGHTERMAN_REGISTRY_URL": "https://r.example"}, "enrolment token"),
        ({**FIRST, "LIGHTERMAN_ENROLMENT_TOKEN_FILE": "/t"}, "both set"),
        ({**FIRST, "LIGHTERMAN_REGISTRY_CA": "x", "LIGHTERMAN_REGISTRY_CA_FILE": "/t"}, "both set"),
        ({**FIRST, "LIGHTERMAN_KEY_TYPE": "rsa"}, "LIGHTERMAN_KEY_TYPE"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], word: str
) -> None:
    registry = Registry(monkeypatch)
    with pytest.raises(EdgeError) as refused:
        registry.enrol(tmp_path, environment)
    assert refused.value.code == "config.invalid"
    assert word in refused.value.detail
    assert not registry.asked


def test_a_token_is_in_no_text_of_what_holds_it() -> None:
    assert "secret" not in repr(iotedge.read_invitation(FIRST))


def test_the_environment_overrides_the_configuration(tmp_path: Path) -> None:
    plain = AgentConfig()
    same = iotedge.configure(plain, EDGE)
    assert same.serve == plain.serve
    assert (same.poll_ms, same.log_level) == (plain.poll_ms, plain.log_level)
    config = iotedge.configure(
        plain,
        {
            "LIGHTERMAN_POLL_MS": "5000",
            "LIGHTERMAN_REPORT_MS": "6000",
            "LIGHTERMAN_LOG_LEVEL": "debug",
            "LIGHTERMAN_AGENT_PRELOAD": str(tmp_path),
            "LIGHTERMAN_SERVE_HOST": "0.0.0.0",
            "LIGHTERMAN_SERVE_PORTS": "digits=8080, other=8081",
            "LIGHTERMAN_SERVE_TOKEN_FILE": "/run/token",
        },
    )
    assert (config.poll_ms, config.report_ms, config.log_level, config.preload) == (5000, 6000, "debug", tmp_path)
    assert (config.serve.ports, config.serve.token_file) == ({"digits": 8080, "other": 8081}, Path("/run/token"))


@pytest.mark.parametrize(
    "environment",
    [
        {"LIGHTERMAN_POLL_MS": "soon"},
        {"LIGHTERMAN_POLL_MS": "0"},
        {"LIGHTERMAN_LOG_LEVEL": "loud"},
        {"LIGHTERMAN_SERVE_PORTS": "digits"},
        {"LIGHTERMAN_SERVE_PORTS": "digits=99999"},
        {"LIGHTERMAN_SERVE_PORTS": "Not A Name=8080"},
        {"LIGHTERMAN_SERVE_PORTS": "a=8080,b=8080"},
    ],
)
def test_a_variable_that_cannot_be_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(EdgeError) as refused:
        iotedge.configure(AgentConfig(), environment)
    assert refused.value.code == "config.invalid"
    assert next(iter(environment)) in refused.value.detail


def test_outside_of_iot_edge_the_command_says_so(tmp_path: Path) -> None:
    for name in EDGE:
        missing = {key: value for key, value in EDGE.items() if key != name}
        with pytest.raises(EdgeError, match=name):
            iotedge.require_edge(missing)
    iotedge.require_edge(EDGE)
    iotedge.require_edge({"EdgeHubConnectionString": "…", "EdgeModuleCACertificateFile": "/ca.pem"})
    environment = dict.fromkeys(EDGE)
    done = CliRunner(env=environment).invoke(main, ["module", "--data", str(tmp_path)])
    assert done.exit_code == 2
    assert "edge-agent run" in done.stderr


# --- health


@contextmanager
def agent(run: Path, modules: dict[str, Any]) -> Iterator[None]:
    """A control socket that says how modules are."""
    run.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run / "agent.sock"))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                assert json.loads(connection.recv(4096)) == {"op": "status"}
                connection.sendall(json.dumps({"ok": True, "status": {"modules": modules}}).encode() + b"\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
        thread.join(10)
    (run / "agent.sock").unlink()


@pytest.mark.parametrize(
    ("modules", "exit_code"),
    [
        ({}, 0),
        ({"digits": {"live": "sha256:1", "serving": True}, "new": {"live": None, "serving": False}}, 0),
        ({"digits": {"live": "sha256:1", "serving": False}}, 1),
    ],
)
def test_a_live_model_that_is_not_served_is_ill(tmp_path: Path, modules: dict[str, Any], exit_code: int) -> None:
    with agent(tmp_path / "run", modules):
        done = CliRunner().invoke(main, ["healthcheck", "--data", str(tmp_path)])
    assert done.exit_code == exit_code, done.output
    assert ("digits" in done.output) == bool(exit_code)


def test_waiting_for_the_registry_is_no_illness_and_silence_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    options = ["healthcheck", "--data", str(tmp_path), "--json"]
    silent = CliRunner().invoke(main, options)
    assert silent.exit_code == 1
    assert not json.loads(silent.stdout)["healthy"]
    (run / "enrolling").touch()
    waiting = CliRunner().invoke(main, options)
    assert waiting.exit_code == 0
    assert json.loads(waiting.stdout)["healthy"]
