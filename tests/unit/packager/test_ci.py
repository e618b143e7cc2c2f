"""Pipeline files: readable, running the same commands, closed to what could break out of them."""

from __future__ import annotations

import base64
import os
import shlex
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from edge_contract.errors import EdgeError
from packager.ci import SYSTEMS, pipeline
from tests.unit.packager import plain_yaml

CONDITION = "tags.site = 'north' AND tags.ring IN ['a','b']"


def document(system: str, condition: str = CONDITION) -> Any:
    return plain_yaml.read(pipeline(system, "models/lighterman.toml", condition, "3.12", "lighterman[packager]"))


def script_of(system: str) -> str:
    content = document(system)
    if system == "github":
        return str(content["jobs"]["ship"]["steps"][-1]["run"])
    return str(content["jobs"][0]["steps"][-1]["bash"])


def test_github_runs_it_on_every_push_with_secrets_in_the_environment() -> None:
    content = document("github")
    assert content["on"]["push"] == {"branches": ["main"]}
    assert content["permissions"] == {"contents": "read"}
    step = content["jobs"]["ship"]["steps"][-1]
    assert step["env"]["LIGHTERMAN_TOKEN"] == "${{ secrets.LIGHTERMAN_TOKEN }}"
    assert "secrets." not in step["run"]


def test_azure_runs_it_on_every_push_with_secrets_in_the_environment() -> None:
    content = document("azure")
    assert content["trigger"] == {"branches": {"include": ["main"]}}
    step = content["jobs"][0]["steps"][-1]
    assert step["env"]["LIGHTERMAN_TOKEN"] == "$(LIGHTERMAN_TOKEN)"
    assert "$(LIGHTERMAN" not in step["bash"]


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_the_script_runs_the_command_that_people_run(tmp_path: Path, system: str) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "keys.json").write_text("{}")
    with tarfile.open(tmp_path / "keys.tar", "w") as archive:
        archive.add(keys, ".")
    encoded = base64.b64encode((tmp_path / "keys.tar").read_bytes()).decode()
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "packager"
    stand_in.write_text('#!/bin/sh\nfor word; do echo "$word"; done > "$SEEN"\ncp "$5/keys.json" "$SEEN.keys"\n')
    stand_in.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LIGHTERMAN_KEYS_ARCHIVE": encoded,
        "SEEN": str(tmp_path / "seen"),
        "TMPDIR": str(tmp_path),
    }
    subprocess.run(["sh", "-c", script_of(system)], check=True, env=environment, cwd=tmp_path)
    words = (tmp_path / "seen").read_text().splitlines()
    assert words[:3] == ["ship", "--spec", "models/lighterman.toml"]
    assert words[words.index("--condition") + 1] == CONDITION
    assert "--wait" in words
    assert (tmp_path / "seen.keys").read_text() == "{}"
    assert not Path(words[words.index("--keys") + 1]).exists()


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_the_command_is_one_that_exists(system: str) -> None:
    from packager.cli import cli

    line = next(line for line in script_of(system).splitlines() if line.startswith("packager"))
    words = shlex.split(line)[1:]
    known = {option for parameter in cli.commands[words[0]].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize(
    ("spec", "condition", "python", "requirement"),
    [
        ("a b.toml", "*", "3.12", "lighterman"),
        ("--evil", "*", "3.12", "lighterman"),
        ("x.toml", "$(rm -rf /)", "3.12", "lighterman"),
        ("x.toml", "`id`", "3.12", "lighterman"),
        ("x.toml", "a\nb", "3.12", "lighterman"),
        ("x.toml", 'a"b', "3.12", "lighterman"),
        ("x.toml", "", "3.12", "lighterman"),
        ("x.toml", "*", '3.12"', "lighterman"),
        ("x.toml", "*", "latest", "lighterman"),
        ("x.toml", "*", "3.12", "x' ; id"),
        ("x.toml", "*", "3.12", "--index-url"),
    ],
)
@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_what_could_break_out_is_refused(system: str, spec: str, condition: str, python: str, requirement: str) -> None:
    with pytest.raises(EdgeError) as caught:
        pipeline(system, spec, condition, python, requirement)
    assert caught.value.code == "config.invalid"
