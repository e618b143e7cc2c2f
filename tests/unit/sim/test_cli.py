"""`device-sim` on the command line: errors with codes, in words or as JSON, and exits that tell the truth."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from device_sim.cli import cli
from tests.support.net import free_port

_TOKEN = ["--token", "secret-token"]


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def _nowhere() -> list[str]:
    return ["--url", f"http://127.0.0.1:{free_port()}"]


def test_a_world_that_went_well_says_so() -> None:
    result = _run("world", "--devices", "3", "--steps", "200", "--seed", "5", "--worlds", "2")
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.output.splitlines()] == ["seed 5", "seed 6"]
    document = json.loads(_run("world", "--devices", "3", "--steps", "200", "--json").output)
    assert document["worlds"][0]["devices"] == 3


def test_a_registry_that_is_not_there_is_named() -> None:
    result = _run("run", "--devices", "2", *_nowhere(), *_TOKEN)
    assert result.exit_code == 7
    assert "network.unreachable" in result.output
    assert "secret-token" not in result.output
    result = CliRunner().invoke(cli, ["run", "--devices", "2", *_nowhere(), *_TOKEN, "--json"])
    assert json.loads(result.stdout)["error"]["code"] == "network.unreachable"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no token was given"),
        ([*_TOKEN, "--devices", "0"], "0 devices"),
        ([*_TOKEN, "--tags", "fleet"], "'fleet' is not a tag"),
        ([*_TOKEN, "--rate", "1000"], "1000.0 requests a second"),
        (["--token-file", "/nowhere/token"], "/nowhere/token cannot be read"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments: list[str], says: str) -> None:
    result = _run("run", *_nowhere(), *arguments)
    assert result.exit_code == 2
    assert says in result.output


def test_a_token_may_come_from_a_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-token\n")
    result = _run("run", "--devices", "1", *_nowhere(), "--token-file", str(token))
    assert "network.unreachable" in result.output


def test_a_fleet_beyond_the_limit_of_open_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1_024))
    result = _run("run", "--devices", "1000", *_nowhere(), *_TOKEN)
    assert result.exit_code == 2
    assert "this process may have 1024" in result.output


def test_the_limit_of_open_files_is_raised_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 20_000))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: raised.append(limits))
    assert "network.unreachable" in _run("run", "--devices", "100", *_nowhere(), *_TOKEN).output
    assert raised
    assert 256 < raised[0][0] < 20_000
