"""Reads the console blocks of a page and types them in."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"```console\n(?P<text>.*?)```", re.DOTALL)
_CHANGING = (
    (re.compile(r"\b[0-9a-f]{8,64}\b"), "#"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00"), "TIME"),
    (re.compile(r"\bbins-[0-9a-f]+\b"), "bins-#"),
)


@dataclass(frozen=True)
class Step:
    """One command with what it is said to print.

    Attributes:
        command: As typed.
        output: Lines up to the next command.
        line: Where it stands in the page.
    """

    command: str
    output: tuple[str, ...]
    line: int


def steps(page: Path) -> Iterator[Step]:
    """The commands of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 2
        command, at = "", line
        output: list[str] = []
        for number, row in enumerate(block["text"].splitlines(), line):
            if row.startswith("$ "):
                if command:
                    yield Step(command, tuple(output), at)
                command, output, at = row[2:], [], number
            elif command.endswith("\\"):
                command = command[:-1] + row.strip()
            else:
                output.append(row)
        if command:
            yield Step(command, tuple(output), at)


def run(step: Step, home: Path, packager: Callable[[list[str]], str], registry: Callable[[str], str]) -> str:
    """Type a command; what it prints.

    Args:
        step: The command.
        home: The working directory, which is also this process's.
        packager: Runs the packager's command line in this process; standard output and error.
        registry: Runs a `cloud-registry` command, as on the registry's own machine. Everything else goes to a shell.
    """
    words = shlex.split(step.command)
    if words[0] == "packager":
        return packager(words[1:])
    if words[0] == "cloud-registry":
        return registry(step.command)
    done = subprocess.run(
        ["sh", "-c", step.command], cwd=home, capture_output=True, text=True, timeout=60, check=False, env=os.environ
    )
    return done.stdout + done.stderr


def plain(text: str) -> list[str]:
    """Lines with what differs from run to run replaced."""
    for pattern, stand_in in _CHANGING:
        text = pattern.sub(stand_in, text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]
