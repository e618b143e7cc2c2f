"""Which twins a query means, and what it selects of them. Pure.

Logic has three values: a comparison of what is not there, or of two types, is undefined, and undefined is not true.
Source: Azure IoT Hub documentation, "IoT Hub query language"; grammar in `device_sim.iothub.query_parse`.
"""

import math
from collections.abc import Iterable
from typing import Any, Final

from device_sim.iothub.query_parse import (
    UNDEFINED,
    Aggregate,
    Among,
    Binary,
    Call,
    Constant,
    Expression,
    Path,
    Query,
    Unary,
)
from edge_contract.jsonio import JsonObject

_PRIMITIVES: Final = (bool, int, float, str, type(None))


def matches(condition: Expression | None, twin: JsonObject) -> bool:
    """Whether a twin is one that a condition means; no condition means every twin."""
    return condition is None or _value(condition, twin) is True


def run(query: Query, twins: Iterable[JsonObject]) -> list[JsonObject]:
    """The results of a query over twins of its source, in their order."""
    chosen = [twin for twin in twins if matches(query.where, twin)]
    if query.has_aggregates:
        results = _grouped(query, chosen)
    elif query.columns:
        results = [_row(query, twin) for twin in chosen]
    else:
        results = chosen
    return results if query.top is None else results[: query.top]


def lookup(path: Path, twin: JsonObject) -> Any:
    """What is at a place, or `UNDEFINED`."""
    value: Any = twin
    for name in path.names:
        if not isinstance(value, dict) or name not in value:
            return UNDEFINED
        value = value[name]
    return value


def _row(query: Query, twin: JsonObject) -> JsonObject:
    row = {}
    for column in query.columns:
        if isinstance(column.value, Path) and (value := lookup(column.value, twin)) is not UNDEFINED:
            row[column.name] = value
    return row


def _grouped(query: Query, twins: list[JsonObject]) -> list[JsonObject]:
    groups: dict[tuple[str, ...], list[JsonObject]] = {}
    for twin in twins:
        # A type belongs to the key: true, 1 and '1' are three groups.
        key = tuple(f"{type(value).__name__}:{value!r}" for value in (lookup(path, twin) for path in query.groups))
        groups.setdefault(key, []).append(twin)
    if not groups and not query.groups:
        groups[()] = []
    results = []
    for members in groups.values():
        row: JsonObject = _row(query, members[0]) if members else {}
        for column in query.columns:
            if isinstance(column.value, Aggregate):
                value = _aggregate(column.value, members)
                if value is not UNDEFINED:
                    row[column.name] = value
        results.append(row)
    return results


def _aggregate(aggregate: Aggregate, twins: list[JsonObject]) -> Any:
    if aggregate.path is None:
        return len(twins)
    values = [value for twin in twins if _is_number(value := lookup(aggregate.path, twin))]
    if aggregate.function == "sum":
        return sum(values)
    if not values:
        return UNDEFINED
    if aggregate.function == "avg":
        return sum(values) / len(values)
    return min(values) if aggregate.function == "min" else max(values)


def _value(expression: Expression, twin: JsonObject) -> Any:
    if isinstance(expression, Constant):
        return expression.value
    if isinstance(expression, Path):
        return lookup(expression, twin)
    if isinstance(expression, Call):
        return lookup(expression.path, twin) is not UNDEFINED
    if isinstance(expression, Unary):
        return _unary(expression, twin)
    if isinstance(expression, Among):
        return _among(expression, twin)
    return _binary(expression, twin)


def _unary(expression: Unary, twin: JsonObject) -> Any:
    value = _value(expression.operand, twin)
    if expression.operator == "not":
        return not value if isinstance(value, bool) else UNDEFINED
    if not _is_number(value):
        return UNDEFINED
    return -value if expression.operator == "-" else value


def _among(expression: Among, twin: JsonObject) -> Any:
    value = _value(expression.operand, twin)
    if not isinstance(value, _PRIMITIVES):
        return UNDEFINED
    found = any(_equal(value, _value(choice, twin)) is True for choice in expression.choices)
    return found != expression.is_negated


def _binary(expression: Binary, twin: JsonObject) -> Any:
    operator = expression.operator
    if operator in ("and", "or"):
        decided = operator == "or"  # the value that decides alone
        left = _value(expression.left, twin)
        if left is decided:
            return decided
        right = _value(expression.right, twin)
        if right is decided:
            return decided
        return not decided if left is (not decided) and right is (not decided) else UNDEFINED
    left, right = _value(expression.left, twin), _value(expression.right, twin)
    if operator == "=":
        return _equal(left, right)
    if operator == "!=":
        equal = _equal(left, right)
        return equal if equal is UNDEFINED else not equal
    if operator in ("<", "<=", ">", ">="):
        return _ordered(operator, left, right)
    return _computed(operator, left, right)


def _equal(left: Any, right: Any) -> Any:
    if not (isinstance(left, _PRIMITIVES) and isinstance(right, _PRIMITIVES)) or _kind(left) != _kind(right):
        return UNDEFINED
    return left == right


def _ordered(operator: str, left: Any, right: Any) -> Any:
    if _kind(left) != _kind(right) or _kind(left) not in ("number", "str"):
        return UNDEFINED
    if operator in ("<", ">="):
        return (left < right) == (operator == "<")
    return (left > right) == (operator == ">")


def _computed(operator: str, left: Any, right: Any) -> Any:
    if operator == "+" and isinstance(left, str) and isinstance(right, str):
        return left + right
    if not _is_number(left) or not _is_number(right):
        return UNDEFINED
    try:
        if operator == "+":
            return left + right
        if operator == "-":
            return left - right
        if operator == "*":
            return left * right
        return left / right if operator == "/" else math.fmod(left, right)
    except (ZeroDivisionError, OverflowError, ValueError):
        return UNDEFINED


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return "number" if _is_number(value) else type(value).__name__
