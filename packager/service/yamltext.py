"""Writes YAML 1.2 in one plain form, so that the same documents always give the same bytes.

Block style; a text that could be read as anything else stands in double quotes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_PLAIN: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WIDE: Final = 0x1_0000
_WORDS: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def to_yaml(documents: Sequence[Mapping[str, Any]], comment: str = "") -> str:
    """One stream of documents.

    Args:
        documents: Mappings of texts, whole numbers, flags, nulls, lists and mappings; order is kept.
        comment: Lines for the top.
    """
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + "---\n".join("\n".join(_mapping(document, "")) + "\n" for document in documents)


def _mapping(value: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, item in value.items():
        name = f"{indent}{_scalar(key)}:"
        if isinstance(item, Mapping) and item:
            lines += [name, *_mapping(item, indent + "  ")]
        elif isinstance(item, list | tuple) and item:
            lines += [name, *_sequence(item, indent + "  ")]
        else:
            lines.append(f"{name} {_leaf(item)}")
    return lines


def _sequence(value: Sequence[Any], indent: str) -> list[str]:
    lines = []
    for item in value:
        if isinstance(item, Mapping) and item:
            first, *rest = _mapping(item, indent + "  ")
            lines += [f"{indent}- {first.strip()}", *rest]
        else:
            lines.append(f"{indent}- {_leaf(item)}")
    return lines


def _leaf(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        if value:
            raise TypeError("lists in lists have no place in these files")
        return "[]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} has no place in these files")
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return f'"{"".join(map(_quoted, value))}"'


def _quoted(char: str) -> str:
    """One character of a text in double quotes: printable ASCII as it is, the rest by number."""
    if " " <= char <= "~":
        return f"\\{char}" if char in '"\\' else char
    code = ord(char)
    return f"\\u{code:04x}" if code < _WIDE else f"\\U{code:08x}"
