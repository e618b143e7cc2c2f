"""Routes of IoT Edge's hub: where a module's message goes. Pure.

Of the language, this is what decides about modules: a source, and `$upstream` or another module's input as the sink.
Conditions (`WHERE`) are not evaluated: a route that has one carries nothing, and says so when it is read.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

UPSTREAM: Final = "$upstream"
Sink = str | tuple[str, str]

_ROUTE: Final = re.compile(
    r"FROM\s+(?P<source>/\S*)(?P<where>\s+WHERE\s+\S.*?)?\s+INTO\s+"
    r"(?P<sink>\$upstream|BrokeredEndpoint\(\s*[\"']/modules/(?P<module>[^/\"']+)/inputs/(?P<input>[^\"'/\s]+)[\"']\s*\))",
    re.IGNORECASE,
)
_EVERYTHING: Final = ("/*", "/messages/*", "/messages/modules/*")


@dataclass(frozen=True, slots=True)
class Route:
    """One route: the module and output it takes from (empty for all), and where to."""

    module: str
    output: str
    sink: Sink


@dataclass(frozen=True, slots=True)
class Routes:
    """All routes of a device.

    Attributes:
        routes: Those that can be followed.
        problems: Why others cannot.
    """

    routes: tuple[Route, ...]
    problems: tuple[str, ...] = ()

    @classmethod
    def read(cls, value: Any) -> "Routes":
        """Read the routes in the desired properties of `$edgeHub`; without any, everything goes upstream."""
        if not isinstance(value, dict):
            return cls((Route("", "", UPSTREAM),))
        routes: list[Route] = []
        problems: list[str] = []
        for name, item in value.items():
            text = item.get("route") if isinstance(item, dict) else item
            found = _ROUTE.fullmatch(text.strip()) if isinstance(text, str) else None
            source = None if found is None else _source(found["source"])
            if found is None or source is None or found["where"]:
                problems.append(f"route {name!r} is none that this emulator follows: {str(text)[:200]}")
                continue
            sink: Sink = UPSTREAM if found["module"] is None else (found["module"], found["input"])
            routes.append(Route(*source, sink))
        return cls(tuple(routes), tuple(problems))

    def sinks(self, module: str, output: str) -> tuple[Sink, ...]:
        """Where a message of a module goes, each place once."""
        found = (route.sink for route in self.routes if route.module in ("", module) and route.output in ("", output))
        return tuple(dict.fromkeys(found))


def _source(text: str) -> tuple[str, str] | None:
    if text in _EVERYTHING:
        return "", ""
    parts = text.strip("/").split("/")
    if parts[:2] != ["messages", "modules"] or (len(parts) < 4 and parts[-1] != "*"):
        return None
    module = parts[2]
    rest = parts[3:]
    if rest in (["*"], [], ["outputs", "*"]):
        return module, ""
    return (module, rest[1]) if len(rest) == 2 and rest[0] == "outputs" else None
