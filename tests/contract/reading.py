"""Reads the vectors of `tests/contract/vectors`; the format is in the README there."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

VALID: Final = "valid"
FOLDER: Final = Path(__file__).parent / "vectors"
_SCHEMA: Final = "lighterman.vectors/1"
_CONTENT: Final = ("value", "document", "change", "text", "base64")


@dataclass(frozen=True)
class Vector:
    """One vector.

    Attributes:
        name: What is special about it.
        expect: `valid`, or the code of the refusal.
        value: The value or document; none for exact bytes.
        data: The bytes of the document.
        is_rewritten: Whether a writer would write a valid one differently.
    """

    name: str
    expect: str
    value: Any
    data: bytes
    is_rewritten: bool

    @property
    def is_valid(self) -> bool:
        """Whether it is to be taken."""
        return self.expect == VALID


def kinds() -> list[str]:
    """All kinds that there are vectors of."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read(kind: str) -> list[Vector]:
    """The vectors of one kind."""
    document = json.loads((FOLDER / f"{kind}.json").read_text(encoding="utf-8"))
    assert (document["schema"], document["kind"]) == (_SCHEMA, kind)
    return [_vector(item, document.get("base")) for item in document["vectors"]]


def every(*wanted: str) -> list[tuple[str, Vector]]:
    """The vectors of some kinds, with their kind."""
    return [(kind, vector) for kind in wanted for vector in read(kind)]


def _vector(item: dict[str, Any], base: Any) -> Vector:
    content = [key for key in _CONTENT if key in item]
    assert len(content) == 1, item["name"]
    value: Any = None
    if content == ["text"]:
        data = item["text"].encode("utf-8")
    elif content == ["base64"]:
        data = base64.b64decode(item["base64"])
    else:
        value = _changed(base, item["change"]) if content == ["change"] else item[content[0]]
        data = json.dumps(value).encode("utf-8")
    data += b" " * item.get("padding", 0)
    return Vector(item["name"], item["expect"], value, data, item.get("rewritten", False))


def _changed(base: Any, changes: list[dict[str, Any]]) -> Any:
    document = copy.deepcopy(base)
    for change in changes:
        node = document
        if "append" in change:
            for key in change["at"]:
                node = node[key]
            node.extend(_counted(change["append"], number) for number in range(change.get("times", 1)))
            continue
        *front, last = change["at"]
        for key in front:
            node = node[key]
        if change.get("remove"):
            del node[last]
        else:
            node[last] = "a" * change["fill"] if "fill" in change else change["value"]
    return document


def _counted(value: Any, number: int) -> Any:
    return json.loads(json.dumps(value).replace("%d", str(number)))
