"""The condition language by which deployments choose devices: a subset of Azure IoT Hub's target conditions.

    *                                        every device
    deviceId = 'cam-1'                       also platform, hardwareId
    tags.site.region = 'north'               = != <> < <= > >=
    tags.floor >= 3                          compared as numbers when the literal is one
    tags.site IN ['a', 'b']                  NIN for the opposite
    IS_DEFINED(tags.site)                    also true when only tags.site.… is set
    NOT a AND (b OR c)                       NOT binds closest, then AND, then OR

A comparison with a missing value, or of a number with text that is none, is false whatever the operator; NOT inverts
that like anything else. Words of the language are read in any case. Text stands in single or double quotes; the quote
itself is doubled.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Final

from cloud_registry.limits import CONDITION_CHARS_MAX, CONDITION_DEPTH_MAX, CONDITION_TERMS_MAX
from edge_contract.errors import EdgeError

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")"
    r"|(?P<number>-?[0-9]+(?:\.[0-9]+)?(?![\w.]))"
    r"|(?P<word>[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*)"
    r"|(?P<sign><=|>=|<>|!=|=|<|>|\(|\)|\[|\]|,|\*))",
    re.ASCII,
)
_COMPARISONS: Final = frozenset({"=", "!=", "<>", "<", "<=", ">", ">="})
_NUMBER_CHARS_MAX: Final = 64
_PLACE_CHARS: Final = 24
_FIXED: Final = {"deviceid": "deviceId", "platform": "platform", "hardwareid": "hardwareId"}

Literal = str | Decimal | bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What conditions can ask about one device.

    Attributes:
        name: Name of the device.
        platform: `os/architecture[/variant]`.
        hardware_id: Free text, empty when unknown (and then missing).
        tags: Values by dotted key.
    """

    name: str
    platform: str = ""
    hardware_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def value(self, operand: str) -> str | None:
        """The value an operand names, or none when it is missing."""
        if operand == "deviceId":
            return self.name
        if operand == "platform":
            return self.platform or None
        if operand == "hardwareId":
            return self.hardware_id or None
        return self.tags.get(operand.removeprefix("tags."))

    def is_defined(self, operand: str) -> bool:
        """Whether an operand has a value, or values below it."""
        if self.value(operand) is not None:
            return True
        prefix = operand.removeprefix("tags.") + "."
        return operand.startswith("tags.") and any(key.startswith(prefix) for key in self.tags)


@dataclass(frozen=True, slots=True)
class Everything:
    """`*`."""

    def matches(self, facts: Facts) -> bool:  # noqa: ARG002 - the one condition that does not look
        """Always."""
        return True

    def __str__(self) -> str:
        """The text of the condition."""
        return "*"


@dataclass(frozen=True, slots=True)
class Defined:
    """`IS_DEFINED(operand)`."""

    operand: str

    def matches(self, facts: Facts) -> bool:
        """Whether the operand has a value."""
        return facts.is_defined(self.operand)

    def __str__(self) -> str:
        """The text of the condition."""
        return f"IS_DEFINED({self.operand})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`operand sign literal`."""

    operand: str
    sign: str
    literal: Literal

    def matches(self, facts: Facts) -> bool:
        """Whether the operand has a value and the comparison holds."""
        have = facts.value(self.operand)
        return have is not None and _compare(have, self.sign, self.literal)

    def __str__(self) -> str:
        """The text of the condition."""
        return f"{self.operand} {self.sign} {_written(self.literal)}"


@dataclass(frozen=True, slots=True)
class Membership:
    """`operand IN [...]`, or NIN when inverted."""

    operand: str
    literals: tuple[Literal, ...]
    is_inverted: bool = False

    def matches(self, facts: Facts) -> bool:
        """Whether the operand has a value that is (not) in the list."""
        have = facts.value(self.operand)
        if have is None:
            return False
        return any(_compare(have, "=", literal) for literal in self.literals) is not self.is_inverted

    def __str__(self) -> str:
        """The text of the condition."""
        word = "NIN" if self.is_inverted else "IN"
        return f"{self.operand} {word} [{', '.join(_written(literal) for literal in self.literals)}]"


@dataclass(frozen=True, slots=True)
class Not:
    """`NOT condition`."""

    inner: "Condition"

    def matches(self, facts: Facts) -> bool:
        """Whether the inner condition does not match."""
        return not self.inner.matches(facts)

    def __str__(self) -> str:
        """The text of the condition."""
        return f"NOT {_grouped(self.inner)}"


@dataclass(frozen=True, slots=True)
class AllOf:
    """Conditions joined by AND, at least two."""

    parts: tuple["Condition", ...]

    def matches(self, facts: Facts) -> bool:
        """Whether every part matches."""
        return all(part.matches(facts) for part in self.parts)

    def __str__(self) -> str:
        """The text of the condition."""
        return " AND ".join(_grouped(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Conditions joined by OR, at least two."""

    parts: tuple["Condition", ...]

    def matches(self, facts: Facts) -> bool:
        """Whether one part matches."""
        return any(part.matches(facts) for part in self.parts)

    def __str__(self) -> str:
        """The text of the condition."""
        return " OR ".join(_grouped(part) for part in self.parts)


Condition = Everything | Defined | Comparison | Membership | Not | AllOf | AnyOf


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Args:
        text: At most `CONDITION_CHARS_MAX` characters, `CONDITION_TERMS_MAX` terms, `CONDITION_DEPTH_MAX` levels.

    Raises:
        EdgeError: `cloud.condition-invalid`, naming the place.
    """
    if len(text) > CONDITION_CHARS_MAX:
        raise EdgeError("cloud.condition-invalid", f"a condition has at most {CONDITION_CHARS_MAX} characters")
    return _Parser(text).whole()


def _compare(have: str, sign: str, literal: Literal) -> bool:
    if isinstance(literal, bool):
        return _ordered(have.lower(), sign, "true" if literal else "false")
    if isinstance(literal, Decimal):
        number = _number(have)
        return number is not None and _ordered(number, sign, literal)
    return _ordered(have, sign, literal)


def _ordered(left: str | Decimal, sign: str, right: str | Decimal) -> bool:
    # Both sides have the same type here; the two-branch test keeps the type checker informed.
    if sign == "=":
        return left == right
    if sign == "!=":
        return left != right
    if isinstance(left, Decimal) and isinstance(right, Decimal):
        return _inequality(left < right, left == right, sign)
    return _inequality(str(left) < str(right), left == right, sign)


def _inequality(is_less: bool, is_equal: bool, sign: str) -> bool:
    return {"<": is_less, "<=": is_less or is_equal, ">": not is_less and not is_equal, ">=": not is_less}[sign]


def _number(text: str) -> Decimal | None:
    if len(text) > _NUMBER_CHARS_MAX:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _written(literal: Literal) -> str:
    if isinstance(literal, bool):
        return "true" if literal else "false"
    if isinstance(literal, Decimal):
        return f"{literal:f}"
    return "'" + literal.replace("'", "''") + "'"


def _grouped(condition: Condition) -> str:
    return f"({condition})" if isinstance(condition, AllOf | AnyOf) else str(condition)


class _Parser:
    """Recursive descent over the tokens; every loop ends with the text, every recursion with a bound."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._terms = 0
        self._kind = ""
        self._token = ""
        self._next()

    def whole(self) -> Condition:
        condition = self._any_of(0)
        if self._kind:
            self._fail(f"{self._token!r} is not expected here")
        return condition

    def _fail(self, why: str) -> "EdgeError":
        start = max(0, self._place - _PLACE_CHARS)
        near = self._text[start : self._place] or self._text[:_PLACE_CHARS]
        hint = "For example: tags.site = 'north' AND platform IN ['linux/arm64']; * matches every device."
        raise EdgeError("cloud.condition-invalid", f"condition, near {near!r}: {why}", hint)

    def _next(self) -> None:
        if not self._text[self._place :].strip():
            self._place = len(self._text)
            self._kind = self._token = ""
            return
        match = _TOKEN.match(self._text, self._place)
        if match is None or match.lastgroup is None:
            raise self._fail("this character, or an unfinished text, cannot be read")
        self._place = match.end()
        self._kind = match.lastgroup
        self._token = match.group(match.lastgroup)

    def _is_word(self, word: str) -> bool:
        return self._kind == "word" and self._token.upper() == word

    def _sign(self, sign: str) -> None:
        if self._kind != "sign" or self._token != sign:
            raise self._fail(f"{sign!r} is missing")
        self._next()

    def _any_of(self, depth: int) -> Condition:
        return self._joined("OR", self._all_of, AnyOf, depth)

    def _all_of(self, depth: int) -> Condition:
        return self._joined("AND", self._inverted, AllOf, depth)

    def _joined(
        self,
        word: str,
        part: Callable[[int], Condition],
        kind: Callable[[tuple[Condition, ...]], AllOf | AnyOf],
        depth: int,
    ) -> Condition:
        if depth > CONDITION_DEPTH_MAX:
            raise self._fail(f"deeper than {CONDITION_DEPTH_MAX} levels")
        parts = [part(depth)]
        while self._is_word(word):
            self._next()
            parts.append(part(depth))
        return parts[0] if len(parts) == 1 else kind(tuple(parts))

    def _inverted(self, depth: int) -> Condition:
        if not self._is_word("NOT"):
            return self._term(depth)
        if depth > CONDITION_DEPTH_MAX:
            raise self._fail(f"deeper than {CONDITION_DEPTH_MAX} levels")
        self._next()
        return Not(self._inverted(depth + 1))

    def _term(self, depth: int) -> Condition:
        self._terms += 1
        if self._terms > CONDITION_TERMS_MAX:
            raise self._fail(f"more than {CONDITION_TERMS_MAX} terms")
        if self._kind == "sign" and self._token == "(":
            self._next()
            inner = self._any_of(depth + 1)
            self._sign(")")
            return inner
        if self._kind == "sign" and self._token == "*":
            self._next()
            return Everything()
        if self._is_word("IS_DEFINED"):
            self._next()
            self._sign("(")
            operand = self._operand()
            self._sign(")")
            return Defined(operand)
        return self._comparison(self._operand())

    def _comparison(self, operand: str) -> Condition:
        if self._is_word("IN") or self._is_word("NIN"):
            is_inverted = self._is_word("NIN")
            self._next()
            self._sign("[")
            literals = [self._literal()]
            while self._kind == "sign" and self._token == ",":
                self._next()
                literals.append(self._literal())
            self._sign("]")
            return Membership(operand, tuple(literals), is_inverted)
        if self._kind != "sign" or self._token not in _COMPARISONS:
            raise self._fail("a comparison (=, !=, <, <=, >, >=, IN, NIN) is missing")
        sign = "!=" if self._token == "<>" else self._token
        self._next()
        return Comparison(operand, sign, self._literal())

    def _operand(self) -> str:
        if self._kind != "word":
            raise self._fail("deviceId, platform, hardwareId or tags.… is missing")
        word = self._token
        head, _, rest = word.partition(".")
        if head.lower() == "tags" and rest:
            operand = f"tags.{rest}"
        elif not rest and word.lower() in _FIXED:
            operand = _FIXED[word.lower()]
        else:
            raise self._fail(f"{word!r} is not deviceId, platform, hardwareId or tags.…")
        self._next()
        return operand

    def _literal(self) -> Literal:
        literal: Literal
        if self._kind == "text":
            quote = self._token[0]
            literal = self._token[1:-1].replace(quote * 2, quote)
        elif self._kind == "number" and len(self._token) <= _NUMBER_CHARS_MAX:
            literal = Decimal(self._token)
        elif self._is_word("TRUE") or self._is_word("FALSE"):
            literal = self._is_word("TRUE")
        else:
            raise self._fail("a text in quotes, a number, true or false is missing")
        self._next()
        return literal
