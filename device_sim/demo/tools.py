"""Runs Lighterman's own command lines as a user would: the console scripts, in processes of their own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_contract.codes import CODES
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

TOOL_S_MAX: Final = 300.0
_TAIL_CHARS: Final = 300
_NEGATIVE: Final = 1


def program(name: str) -> str:
    """The path of one of our console scripts: beside this interpreter, or on the PATH.

    Raises:
        EdgeError: `config.dependency-missing`.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise EdgeError(
            "config.dependency-missing", f"the command {name} is not installed", "pip install lighterman[sim]"
        )
    return found


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended with 0, or with 1 where that is an answer.

    Attributes:
        is_positive: Whether it ended with 0.
        document: What it printed with `--json`.
    """

    is_positive: bool
    document: JsonObject


def shown(name: str, arguments: Sequence[str]) -> str:
    """A command line as a user would type it."""
    return " ".join([name, *(_quoted(argument) for argument in arguments)])


def _quoted(argument: str) -> str:
    # A condition holds single quotes; between double ones it stays readable.
    if "'" in argument and not any(mark in argument for mark in '"$`\\!'):
        return f'"{argument}"'
    return shlex.quote(argument)


def run_tool(
    name: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    stdin: str = "",
    may_deny: bool = False,
) -> Ran:
    """Run a command with `--json` to its end.

    Args:
        name: Console script.
        arguments: Without `--json`.
        environment: Variables beside this process's own.
        stdin: What it reads from standard input; secrets go this way, not on the command line.
        may_deny: Whether exit code 1, "no", is an answer.

    Raises:
        EdgeError: With the command's own code when it printed one; `internal.bug` otherwise.
    """
    argv = [program(name), *arguments, "--json"]
    try:
        finished = subprocess.run(
            argv,
            input=stdin.encode(),
            capture_output=True,
            check=False,
            env={**os.environ, **environment},
            timeout=TOOL_S_MAX,
        )
    except subprocess.TimeoutExpired:
        raise EdgeError("network.timeout", f"`{shown(name, arguments)}` took longer than {TOOL_S_MAX:g} s") from None
    document = _document(finished.stdout)
    if finished.returncode == 0 or (finished.returncode == _NEGATIVE and may_deny and document is not None):
        return Ran(finished.returncode == 0, document or {})
    raise _failure(shown(name, arguments), finished, document)


def _document(output: bytes) -> JsonObject | None:
    try:
        value = json.loads(output)
    except ValueError:
        return None
    return value if isinstance(value, dict) else {"items": value}


def _failure(line: str, finished: subprocess.CompletedProcess[bytes], document: JsonObject | None) -> EdgeError:
    error = (document or {}).get("error")
    if isinstance(error, dict) and error.get("code") in CODES:
        return EdgeError(error["code"], f"`{line}` failed: {error.get('detail', '')}", str(error.get("hint", "")))
    tail = finished.stderr.decode("utf-8", "replace").strip()[-_TAIL_CHARS:]
    return EdgeError("internal.bug", f"`{line}` ended with {finished.returncode}: {tail}")
