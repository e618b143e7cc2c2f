"""What the commands print: tables for people, JSON for programs, errors with a code."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

from cloud_registry.errors import RegistryError
from edge_contract.errors import EdgeError

_CELL_CHARS_MAX: Final = 60


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns as wide as their widest cell; a line that says so when there is nothing."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        click.echo("(nothing)")
        return
    widths = [max(len(heading), *(len(row[place]) for row in cells)) for place, heading in enumerate(headings)]
    for row in ([*headings], *cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def print_fields(fields: Mapping[str, Any]) -> None:
    """One field a line; what is nested is shown as JSON."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        shown = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else _plain(value)
        click.echo(f"{name.ljust(width)}  {shown}")


def print_error(error: EdgeError, as_json: bool) -> None:
    """An error: what happened, what to do, and the code."""
    if as_json:
        extras = error.extras if isinstance(error, RegistryError) else {}
        print_json({"error": error.to_json() | extras})
        return
    click.echo(f"error: {error.detail} [{error.code}]", err=True)
    if isinstance(error, RegistryError):
        for item in error.extras.get("needed_by", []):
            click.echo(f"  needed by {item.get('kind')} {item.get('name')}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)


def progress_bar(label: str) -> "ProgressLine":
    """A line that shows how far something is, on a terminal only."""
    return ProgressLine(label, sys.stderr.isatty())


class ProgressLine:
    """Called with (bytes done, bytes in all)."""

    def __init__(self, label: str, is_shown: bool) -> None:
        """Start with nothing on the line."""
        self._label = label
        self._is_shown = is_shown
        self._percent = -1

    def __call__(self, done: int, total: int) -> None:
        """Show the percentage when it changed."""
        percent = 100 if total == 0 else done * 100 // total
        if self._is_shown and percent != self._percent:
            click.echo(f"\r{self._label} {percent:3d} %", nl=percent == 100, err=True)
        self._percent = percent


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        text = " ".join(f"{key}={_plain(item)}" for key, item in value.items()) or "-"
    elif isinstance(value, list | tuple):
        text = ", ".join(_plain(item) for item in value) or "-"
    else:
        text = _plain(value)
    text = text.replace("\n", " ")
    return text if len(text) <= _CELL_CHARS_MAX else text[: _CELL_CHARS_MAX - 1] + "…"
