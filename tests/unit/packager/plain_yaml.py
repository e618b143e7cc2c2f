"""A reader for the plain part of YAML that pipeline files are written in; anything else is an error.

Block mappings and sequences, block scalars (`|`), flow sequences of plain words, double-quoted strings and comments. It
knows no tabs, anchors, tags or documents, and refuses a key that stands twice.
"""

from __future__ import annotations

import re
from typing import Any

_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*):(?: (.*))?")
_PLAIN = re.compile(r"[A-Za-z0-9_./@$({][^:#]*(?:: ?[^ ][^:#]*)*")


def read(text: str) -> Any:
    """The document as dictionaries, lists and strings."""
    lines = text.splitlines()
    value, rest = _block(lines, 0, 0)
    assert rest == len(lines), f"line {rest + 1} belongs to nothing: {lines[rest]!r}"
    return value


def _is_skipped(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _indent(line: str) -> int:
    assert "\t" not in line, "tabs"
    return len(line) - len(line.lstrip(" "))


def _block(lines: list[str], at: int, indent: int) -> tuple[Any, int]:
    while at < len(lines) and _is_skipped(lines[at]):
        at += 1
    if at < len(lines) and lines[at].lstrip().startswith("- "):
        return _sequence(lines, at, indent)
    return _mapping(lines, at, indent)


def _sequence(lines: list[str], at: int, indent: int) -> tuple[list[Any], int]:
    result: list[Any] = []
    while at < len(lines):
        if _is_skipped(lines[at]):
            at += 1
            continue
        if _indent(lines[at]) != indent or not lines[at].lstrip().startswith("- "):
            break
        inner = [*lines]
        inner[at] = " " * (indent + 2) + lines[at][indent + 2 :]
        value, at = _block(inner, at, indent + 2)
        result.append(value)
    return result, at


def _mapping(lines: list[str], at: int, indent: int) -> tuple[dict[str, Any], int]:
    result: dict[str, Any] = {}
    while at < len(lines):
        if _is_skipped(lines[at]):
            at += 1
            continue
        if _indent(lines[at]) != indent:
            assert _indent(lines[at]) < indent, f"line {at + 1} is indented oddly: {lines[at]!r}"
            break
        match = _KEY.fullmatch(lines[at].strip())
        if match is None:
            break
        key, value = match[1], match[2]
        assert key not in result, f"{key} stands twice"
        at += 1
        if value == "|":
            result[key], at = _scalar(lines, at, indent)
        elif value:
            result[key] = _plain(value)
        elif at < len(lines) and not _is_skipped(lines[at]) and _indent(lines[at]) > indent:
            result[key], at = _block(lines, at, _indent(lines[at]))
        else:
            result[key] = None
    return result, at


def _scalar(lines: list[str], at: int, indent: int) -> tuple[str, int]:
    inside = _indent(lines[at])
    assert inside > indent
    taken = []
    while at < len(lines) and (not lines[at].strip() or _indent(lines[at]) >= inside):
        taken.append(lines[at][inside:])
        at += 1
    return "\n".join(taken).rstrip("\n") + "\n", at


def _plain(value: str) -> Any:
    if value.startswith("["):
        assert value.endswith("]")
        return [_plain(item.strip()) for item in value[1:-1].split(",")]
    if value.startswith('"'):
        assert re.fullmatch(r'"[^"\\]*"', value), value
        return value[1:-1]
    assert _PLAIN.fullmatch(value), f"not a plain scalar: {value!r}"
    return value
