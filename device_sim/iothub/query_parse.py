"""The text of a query as a tree. Pure.

Grammar: Azure IoT Hub documentation, "IoT Hub query language for device and module twins" and "Expressions and
conditions". What a tree means is in `device_sim.iothub.query`.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from device_sim.iothub.service_limits import QUERY_CHARS_MAX, QUERY_DEPTH_MAX, QUERY_ITEMS_MAX, QUERY_OPERATORS_MAX

SOURCES: Final = ("devices", "devices.modules", "devices.jobs")
AGGREGATES: Final = frozenset({"count", "avg", "sum", "min", "max"})

_TOKEN: Final = re.compile(
    r"""\s*(?:
    (?P<name>[A-Za-z_$][A-Za-z0-9_$]*)
  | \[\[(?P<quoted>[^\[\]]+)\]\]
  | (?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
  | (?P<sign>!=|<>|<=|>=|[=<>+\-*/%(),.\[\]])
  )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_PLAIN_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_COMPARISONS: Final = frozenset({"=", "!=", "<>", "<", "<=", ">", ">="})
_OPERATORS: Final = _COMPARISONS | {"and", "or", "not", "+", "-", "*", "/", "%"}


class QueryError(Exception):
    """A text is no query; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that stands in the text; `UNDEFINED` for the word."""

    value: Any


@dataclass(frozen=True, slots=True)
class Path:
    """A place in a twin, as names from its top."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unary:
    """`not`, `-` or `+` before an expression."""

    operator: str
    operand: "Expression"


@dataclass(frozen=True, slots=True)
class Binary:
    """Two expressions and what is between them; words in lower case."""

    operator: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class Among:
    """`IN` a list, or `NIN`."""

    operand: "Expression"
    choices: tuple["Expression", ...]
    is_negated: bool


@dataclass(frozen=True, slots=True)
class Call:
    """`IS_DEFINED` of a place."""

    path: Path


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One number over many twins; `path` is none for `COUNT()`."""

    function: str
    path: Path | None


Expression = Constant | Path | Unary | Binary | Among | Call


@dataclass(frozen=True, slots=True)
class Column:
    """What one result holds, and under which name."""

    value: Path | Aggregate
    name: str


@dataclass(frozen=True, slots=True)
class Query:
    """A whole statement.

    Attributes:
        columns: What to select; empty for `*`.
        source: One of `SOURCES`.
        where: Which twins, or none for all.
        groups: Places to group by.
        top: At most so many results, or none.
    """

    columns: tuple[Column, ...]
    source: str
    where: Expression | None = None
    groups: tuple[Path, ...] = ()
    top: int | None = None

    @property
    def has_aggregates(self) -> bool:
        """Whether results are of many twins together."""
        return bool(self.groups) or any(isinstance(column.value, Aggregate) for column in self.columns)


class _Undefined:
    """Neither null nor any other value: nothing is there."""

    def __repr__(self) -> str:
        return "undefined"


UNDEFINED: Final = _Undefined()


def parse_query(text: str) -> Query:
    """Read a statement that begins with SELECT.

    Raises:
        QueryError: it is none.
    """
    parser = _Parser(text)
    result = parser.query()
    parser.require_end()
    return result


def parse_condition(text: str) -> Expression | None:
    """Read a target condition: what would follow WHERE; none for `*`, which is every twin.

    Raises:
        QueryError: it is none.
    """
    if text.strip() == "*":
        return None
    parser = _Parser(text)
    result = parser.expression()
    parser.require_end()
    return result


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    place: int

    @property
    def word(self) -> str:
        return self.text.lower() if self.kind in ("name", "sign") else ""


def _tokens(text: str) -> list[_Token]:
    if len(text) > QUERY_CHARS_MAX:
        raise QueryError(f"a query of {len(text)} characters; at most {QUERY_CHARS_MAX} are allowed")
    result, place, end = [], 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            raise QueryError(f"at character {place}: {text[place : place + 20]!r} is not understood")
        kind = match.lastgroup or ""
        result.append(_Token(kind, match[kind], match.start(kind)))
        place = match.end()
    return [*result, _Token("end", "", end)]


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0
        if sum(token.word in _OPERATORS for token in self._tokens) > QUERY_OPERATORS_MAX:
            raise QueryError(f"more than {QUERY_OPERATORS_MAX} operators")

    # Words

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        if token.kind != "end":
            self._at += 1
        return token

    def _takes(self, *words: str) -> str:
        word = self._next.word
        if word and word in words:
            self._at += 1
            return word
        return ""

    def _require(self, word: str) -> None:
        if not self._takes(word):
            self._refuse(word.upper())

    def _refuse(self, wanted: str) -> NoReturn:
        token = self._next
        found = repr(token.text[:40]) if token.kind != "end" else "the end"
        raise QueryError(f"at character {token.place}: expected {wanted}, found {found}")

    def require_end(self) -> None:
        if self._next.kind != "end":
            self._refuse("the end")

    # Statements

    def query(self) -> Query:
        self._require("select")
        top = self._top() if self._takes("top") else None
        columns: tuple[Column, ...] = () if self._takes("*") else self._columns()
        self._require("from")
        source = ".".join(self.path().names).lower()
        if source not in SOURCES:
            raise QueryError(f"FROM {source}: expected one of {', '.join(SOURCES)}")
        where = self.expression() if self._takes("where") else None
        groups: list[Path] = []
        if self._takes("group"):
            self._require("by")
            groups.append(self.path())
            while self._takes(","):
                groups.append(self.path())
        self._require_groups(columns, groups)
        return Query(columns, source, where, tuple(groups), top)

    def _require_groups(self, columns: tuple[Column, ...], groups: list[Path]) -> None:
        if not groups and not any(isinstance(column.value, Aggregate) for column in columns):
            return
        for column in columns:
            if isinstance(column.value, Path) and column.value not in groups:
                raise QueryError(f"{column.name} stands beside an aggregate and is not in GROUP BY")
        if not columns:
            raise QueryError("GROUP BY needs a selection, not *")

    def _top(self) -> int:
        token = self._take()
        if token.kind != "number" or not token.text.isdecimal() or not int(token.text):
            raise QueryError(f"at character {token.place}: TOP takes a whole number above 0")
        return int(token.text)

    def _columns(self) -> tuple[Column, ...]:
        result = [self._column(1)]
        while self._takes(","):
            result.append(self._column(len(result) + 1))
            if len(result) > QUERY_ITEMS_MAX:
                raise QueryError(f"more than {QUERY_ITEMS_MAX} columns")
        if len({column.name for column in result}) != len(result):
            raise QueryError("two columns of one name")
        return tuple(result)

    def _column(self, place: int) -> Column:
        token = self._next
        if token.word in AGGREGATES and self._tokens[self._at + 1].text == "(":
            self._at += 2
            path = None if self._next.text == ")" else self.path()
            if (path is None) != (token.word == "count"):
                raise QueryError(f"{token.text} takes {'nothing' if path else 'a property'} in its parentheses")
            self._require(")")
            value: Path | Aggregate = Aggregate(token.word, path)
            name = f"${place}"
        else:
            value = self.path()
            name = value.names[-1]
        if self._takes("as"):
            name = self._name()
        return Column(value, name)

    def _name(self) -> str:
        if self._next.kind not in ("name", "quoted"):
            self._refuse("a name")
        return self._take().text

    def path(self) -> Path:
        names = [self._name()]
        while self._takes("."):
            names.append(self._name())
        return Path(tuple(names))

    # Expressions, from what binds least

    def expression(self) -> Expression:
        self._depth += 1
        if self._depth > QUERY_DEPTH_MAX:
            raise QueryError(f"expressions nested deeper than {QUERY_DEPTH_MAX}")
        left = self._conjunction()
        while self._takes("or"):
            left = Binary("or", left, self._conjunction())
        self._depth -= 1
        return left

    def _conjunction(self) -> Expression:
        left = self._negation()
        while self._takes("and"):
            left = Binary("and", left, self._negation())
        return left

    def _negation(self) -> Expression:
        count = 0
        while self._takes("not"):
            count += 1
        result = self._comparison()
        for _ in range(min(count, 2 - count % 2)):  # so that a thousand NOTs are no deep tree
            result = Unary("not", result)
        return result

    def _comparison(self) -> Expression:
        left = self._sum()
        if operator := self._takes(*_COMPARISONS):
            return Binary("!=" if operator == "<>" else operator, left, self._sum())
        if word := self._takes("in", "nin"):
            return Among(left, self._list(), word == "nin")
        return left

    def _list(self) -> tuple[Expression, ...]:
        self._require("[")
        result: list[Expression] = []
        while not self._takes("]"):
            if result:
                self._require(",")
            result.append(self._sum())
            if len(result) > QUERY_ITEMS_MAX:
                raise QueryError(f"a list of more than {QUERY_ITEMS_MAX}")
        return tuple(result)

    def _sum(self) -> Expression:
        left = self._product()
        while operator := self._takes("+", "-"):
            left = Binary(operator, left, self._product())
        return left

    def _product(self) -> Expression:
        left = self._factor()
        while operator := self._takes("*", "/", "%"):
            left = Binary(operator, left, self._factor())
        return left

    def _factor(self) -> Expression:
        if operator := self._takes("-", "+"):
            if self._next.text in ("-", "+"):
                self._refuse("a value")
            return Unary(operator, self._factor())
        if self._takes("("):
            inner = self.expression()
            self._require(")")
            return inner
        return self._value()

    def _value(self) -> Expression:
        token = self._next
        if token.kind == "number":
            self._at += 1
            return Constant(_number(token.text))
        if token.kind == "text":
            self._at += 1
            return Constant(_unescaped(token))
        if token.word in ("true", "false", "null", "undefined"):
            self._at += 1
            return Constant({"true": True, "false": False, "null": None, "undefined": UNDEFINED}[token.word])
        path = self.path()
        if not self._takes("("):
            return path
        if path.names[0].lower() != "is_defined" or len(path.names) != 1:
            raise QueryError(f"at character {token.place}: over twins the one function is IS_DEFINED, not {token.text}")
        inner = self.path()
        self._require(")")
        return Call(inner)


def _number(text: str) -> int | float:
    if text[:2].lower() == "0x":
        return int(text, 16)
    return int(text) if text.isdecimal() else float(text)


def _unescaped(token: _Token) -> str:
    def character(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) == 5:
            return chr(int(code[1:], 16))
        if code in _PLAIN_ESCAPES or code in "'\"\\/":
            return _PLAIN_ESCAPES.get(code, code)
        raise QueryError(f"at character {token.place}: the escape {match[0]!r} in a text")

    return _ESCAPE.sub(character, token.text[1:-1])
