"""The command `cloud-registry` as people and scripts run it, in processes of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloud_registry.adapters.pki import LocalAuthority
from cloud_registry.assembly import SystemClock
from cloud_registry.cli import run
from cloud_registry.client import RegistryClient
from edge_contract.errors import EdgeError
from tests.integration.registry.running import Registry
from tests.support.net import wait_until
from tests.support.processes import Child, child_process
from tests.support.require import REPOSITORY_ROOT

_START_DEADLINE_S = 60.0
_URL = re.compile(r"listening on (https?://\S+)")
_TOKEN = re.compile(r"admin token: (lmo_\S+)")
MAIN = [sys.executable, "-c", "from cloud_registry.cli import main; main()"]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIGHTERMAN_")}
    return kept | {"PYTHONPATH": str(REPOSITORY_ROOT)} | more


@contextmanager
def serving(folder: Path, *options: str, **variables: str) -> Iterator[Child]:
    """`cloud-registry serve` on any port, listening; its data is in `folder`."""
    argv = [*MAIN, "serve", "--data-dir", str(folder / "data"), "--port", "0", *options]
    with child_process(argv, log_path=folder / "serve.log", env=environment(**variables), cwd=folder) as child:
        wait_until(
            lambda: _URL.search(child.output()) is not None or not child.is_running,
            _START_DEADLINE_S,
            what="the registry to listen",
        )
        assert child.is_running, child.tail()
        yield child


def found(pattern: re.Pattern[str], child: Child) -> str:
    match = pattern.search(child.output())
    assert match is not None, child.tail()
    return match.group(1)


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, *arguments], env=environment(**variables), capture_output=True, text=True, timeout=60, check=False
    )


def test_the_first_start_prints_the_admin_token_once_and_ends_gracefully(tmp_path: Path) -> None:
    with serving(tmp_path) as child:
        url, token = found(_URL, child), found(_TOKEN, child)
        with RegistryClient(url, token) as client:
            assert client.ready()["ready"] is True
            assert client.create_model("digits")["created_by"] == "admin"
        child.send(signal.SIGTERM)
        assert child.wait(30) == 0
        assert child.output().rstrip().endswith("stopped")
        assert child.output().count(token) == 1
    (tmp_path / "serve.log").unlink()
    with serving(tmp_path) as child:
        with RegistryClient(found(_URL, child), token) as client:
            assert client.model("digits")["name"] == "digits"
        assert "admin token" not in child.output()
        child.send(signal.SIGINT)
        assert child.wait(30) == 0


def test_small_answers_do_not_wait_for_delayed_acknowledgements(tmp_path: Path) -> None:
    with serving(tmp_path) as child, RegistryClient(found(_URL, child), found(_TOKEN, child)) as client:
        client.own_token()
        times = []
        for _ in range(20):
            began = time.monotonic()
            client.own_token()
            times.append(time.monotonic() - began)
    # A kernel holds an acknowledgement back for 40 ms at least; the fastest of many calls is far below, however busy
    # the machine.
    assert min(times) < 0.03


def test_a_registry_with_a_certificate_answers_over_https(tmp_path: Path) -> None:
    authority = LocalAuthority(tmp_path / "pki", SystemClock())
    key, certificate = authority.issue_server(["127.0.0.1"])
    for name, text in (("ca.crt", authority.ca_pem()), ("server.key", key), ("server.crt", certificate)):
        (tmp_path / name).write_text(text)
    options = ("--tls-cert", str(tmp_path / "server.crt"), "--tls-key", str(tmp_path / "server.key"))
    with serving(tmp_path, *options) as child:
        url, token = found(_URL, child), found(_TOKEN, child)
        assert url.startswith("https://")
        with RegistryClient(url, token, ca_file=tmp_path / "ca.crt") as client:
            assert client.own_token()["name"] == "admin"
        with RegistryClient(url, token) as stranger, pytest.raises(EdgeError) as caught:
            stranger.own_token()
        assert caught.value.code == "network.unreachable"


def test_the_admin_token_goes_to_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "admin.token"
    with serving(tmp_path, "--admin-token-file", str(file)) as child:
        token = file.read_text().strip()
        assert token not in child.output()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
        done = command("tokens", "list", "--json", "--url", found(_URL, child), "--token-file", str(file))
        assert [item["name"] for item in json.loads(done.stdout)] == ["admin"]


def test_a_killed_registry_comes_back_with_everything_it_acknowledged(tmp_path: Path) -> None:
    with serving(tmp_path) as child:
        url, token = found(_URL, child), found(_TOKEN, child)
        with RegistryClient(url, token) as client:
            client.create_model("digits")
            script = b"def run(data):\n    return data\n"
            digest = client.upload_bytes("models/digits", script)
            file = {"path": "score.py", "digest": str(digest), "size": len(script)}
            client.register_version("digits", {"format": "script", "files": [file]})
        child.kill()
    (tmp_path / "serve.log").unlink()
    with serving(tmp_path) as child, RegistryClient(found(_URL, child), token) as client:
        assert client.get_version("digits", 1)["files"][0]["digest"] == str(digest)
        target = tmp_path / "score.py"
        assert client.download("digits", 1, "score.py", target) == len(script)
        assert target.read_bytes() == script


def test_a_port_that_is_taken_is_an_error_with_a_code(tmp_path: Path) -> None:
    with serving(tmp_path) as child:
        port = found(_URL, child).rpartition(":")[2]
        second = tmp_path / "second"
        second.mkdir()
        done = command("serve", "--data-dir", str(second / "data"), "--port", port)
    assert done.returncode == 2
    assert "error: cannot listen on 127.0.0.1" in done.stderr
    assert "[config.invalid]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_lost_admin_token_is_replaced_on_the_registry_s_machine(tmp_path: Path) -> None:
    with serving(tmp_path) as child:
        data = str(tmp_path / "data")
        made = command("tokens", "recover", "second", "--data-dir", data)
        assert made.returncode == 0, made.stderr
        with RegistryClient(found(_URL, child), made.stdout.strip()) as client:
            assert client.own_token() == {"name": "second", "role": "admin"}
        again = command("tokens", "recover", "second", "--data-dir", data, "--json")
        assert again.returncode == 8
        assert json.loads(again.stdout)["error"]["code"] == "cloud.conflict"


def test_migrate_and_query_work_without_a_running_registry(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    absent = command("query", "SELECT 1", "--data-dir", data)
    assert (absent.returncode, "[config.file-missing]" in absent.stderr) == (2, True)
    migrated = command("migrate", "--data-dir", data)
    assert (migrated.returncode, migrated.stdout.startswith("the database has schema")) == (0, True)
    answered = command("query", "SELECT 40 + 2 AS answer", "--data-dir", data, "--json")
    assert json.loads(answered.stdout) == {"columns": ["answer"], "rows": [[42]], "truncated": False}
    wrong = command("query", "DELETE FROM telemetry", "--data-dir", data)
    assert (wrong.returncode, "[cloud.query-invalid]" in wrong.stderr) == (8, True)


# The commands below run in this process: they are what matters, not how Python starts.


@pytest.fixture
def fleet(local_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("LIGHTERMAN_URL", local_registry.url)
    monkeypatch.setenv("LIGHTERMAN_TOKEN", local_registry.admin_token)
    local_registry.register("digits", description="first")
    local_registry.bundle("digits", 1)
    local_registry.enrol("cam-1", site="north")
    return local_registry


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run(arguments) == code
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(printed(capsys, *arguments, "--json", code=code))


def test_models_are_searched_shown_and_deleted(
    fleet: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert printed(capsys, "models", "search", "dig").splitlines()[1].startswith("digits  1")
    assert as_json(capsys, "models", "search", "--tag", "a=b")["items"] == []
    assert "(nothing)" in printed(capsys, "models", "search", "absent")
    assert as_json(capsys, "models", "show", "digits")["versions"][0]["version"] == 1
    assert "model.onnx" in printed(capsys, "models", "show", "digits", "1")
    printed(capsys, "models", "alias", "set", "digits", "production", "1")
    assert as_json(capsys, "models", "alias", "list", "digits")[0]["version"] == 1
    target = tmp_path / "m.onnx"
    printed(capsys, "models", "download", "digits", "production", "model.onnx", "-o", str(target))
    assert target.stat().st_size > 0
    refused = as_json(capsys, "models", "delete", "digits", "1", "--yes", code=8)
    assert refused["error"]["needed_by"] == [{"kind": "alias", "name": "production", "version": 1}]
    assert run(["models", "delete", "digits", "1", "--yes"]) == 8
    assert "needed by alias production" in capsys.readouterr().err
    printed(capsys, "models", "alias", "remove", "digits", "production")
    assert as_json(capsys, "models", "show", "digits:1")["version"] == 1
    assert "deleted digits version 1" in printed(capsys, "models", "delete", "digits:1", "--yes")


def test_devices_and_deployments_are_managed(fleet: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    window = ["--window", "mon-fri 02:00-05:00", "--activation", "overlap"]
    made = as_json(capsys, "deployments", "create", "digits", "1", "--condition", "tags.site = 'north'", *window)
    assert made["devices"] == 1
    assert made["policy"]["windows"] == [{"days": [1, 2, 3, 4, 5], "start_minute": 120, "length_minutes": 180}]
    assert made["policy"]["activation"] == "overlap"
    assert "cam-1" in printed(capsys, "deployments", "devices", made["id"])
    assert made["id"] in printed(capsys, "deployments", "list")
    assert "created" in printed(capsys, "deployments", "show", made["id"])
    table = printed(capsys, "devices", "list", "--condition", "tags.site = 'north'")
    assert re.search(r"cam-1\s+linux/arm64\s+site=north\s+digits=digits:1", table)
    assert printed(capsys, "deployments", "preview", "--condition", "*") == "cam-1\n"
    tagged = as_json(capsys, "devices", "tag", "cam-1", "floor=2", "--remove", "site")
    assert (tagged["tags"], tagged["desired"]) == ({"floor": "2"}, {})
    assert "is cancelled" in printed(capsys, "deployments", "cancel", made["id"])
    token = printed(capsys, "devices", "enrol-token", "cam-2", "--tag", "site=south").strip()
    assert token.startswith("lme_")
    shown = printed(capsys, "devices", "show", "cam-1")
    assert "enrolled_at" in shown
    assert "never-reported: " in shown
    assert "revoked cam-1 (cam-1." in printed(capsys, "devices", "revoke", "cam-1", "--yes")
    assert as_json(capsys, "devices", "show", "cam-1")["attention"][0]["what"] == "revoked"
    assert [line["kind"] for line in as_json(capsys, "devices", "history", "cam-1")] == ["enrolled", "revoked"]
    assert "revoked" in printed(capsys, "devices", "history", "cam-1")
    assert "deleted cam-1" in printed(capsys, "devices", "delete", "cam-1", "--yes")
    assert as_json(capsys, "devices", "list") == []


def test_tokens_are_managed(fleet: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    token = printed(capsys, "tokens", "create", "ci", "--role", "publisher").strip()
    with RegistryClient(fleet.url, token) as client:
        assert client.own_token()["role"] == "publisher"
    assert re.search(r"ci\s+publisher", printed(capsys, "tokens", "list"))
    printed(capsys, "tokens", "revoke", "ci")
    assert as_json(capsys, "tokens", "revoke", "admin", code=8)["error"]["code"] == "cloud.in-use"


def test_a_query_is_sent_to_a_registry(fleet: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "query", "SELECT count(*) AS n FROM telemetry").split() == ["n", "0"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["models", "show", "digits", "--url", "http://127.0.0.1:9", "--token", "x"], 7, "[network.unreachable]"),
        (["models", "show", "digits", "--token-file", "/absent"], 2, "[config.file-missing]"),
        (["devices", "tag", "cam-1", "nonsense"], 2, "[config.invalid]"),
        (["models", "show", "digits", "--token", "lmo_guess"], 8, "[cloud.unauthorized]"),
        (["nonsense"], 2, "No such command"),
        (["serve", "--port", "99999"], 2, "--port"),
        (["tokens", "create", "x", "--role", "king"], 2, "king"),
        (["migrate", "--config", "/absent.toml"], 2, "[config.file-missing]"),
    ],
)
def test_mistakes_end_with_a_word_and_a_code(
    fleet: Registry, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    assert run(arguments) == code
    assert text in capsys.readouterr().err


def test_without_a_token_the_command_says_where_to_put_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LIGHTERMAN_TOKEN", raising=False)
    assert run(["models", "search"]) == 2
    assert "LIGHTERMAN_TOKEN" in capsys.readouterr().err


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    import click

    from cloud_registry.cli import cli

    def walk(command: click.Command, path: list[str]) -> Iterator[tuple[list[str], click.Command]]:
        yield path, command
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from walk(inner, [*path, name])

    for path, found_command in walk(cli, []):
        assert found_command.help, path
        for parameter in found_command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (path, parameter.name)
        assert run([*path, "--help"]) == 0
        assert "Usage" in capsys.readouterr().out
