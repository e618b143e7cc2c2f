"""Target conditions: what they match, how they are read, and laws that hold for all of them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_registry.core.condition import (
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    Defined,
    Everything,
    Facts,
    Membership,
    Not,
    parse_condition,
)
from cloud_registry.limits import CONDITION_CHARS_MAX, CONDITION_DEPTH_MAX, CONDITION_TERMS_MAX
from edge_contract.errors import EdgeError

CAMERA = Facts(
    "cam-1", "linux/arm64", "board-7", {"site": "north", "floor": "3", "a.b": "v", "line-2": "x", "on": "True"}
)


@pytest.mark.parametrize(
    ("text", "is_match"),
    [
        ("*", True),
        ("deviceId = 'cam-1'", True),
        ("deviceid = 'cam-1'", True),
        ("deviceId = 'cam-2'", False),
        ("platform = 'linux/arm64'", True),
        ("hardwareId IN ['board-6', \"board-7\"]", True),
        ("tags.site = 'north'", True),
        ("tags.site = 'NORTH'", False),
        ("TAGS.site != 'south'", True),
        ("tags.site <> 'north'", False),
        ("tags.site IN ['south', 'north']", True),
        ("tags.site NIN ['south']", True),
        ("tags.site nin ['north']", False),
        ("tags.floor >= 3", True),
        ("tags.floor > 3", False),
        ("tags.floor < 10", True),
        ("tags.floor < '10'", False),
        ("tags.floor = 3.0", True),
        ("tags.floor = -3", False),
        ("tags.site > 3", False),
        ("tags.site <= 'north'", True),
        ("tags.on = true", True),
        ("tags.on = false", False),
        ("tags.a.b = 'v'", True),
        ("tags.line-2 = 'x'", True),
        ("IS_DEFINED(tags.a)", True),
        ("is_defined(tags.a.b)", True),
        ("IS_DEFINED(tags.a.b.c)", False),
        ("IS_DEFINED(hardwareId)", True),
        ("tags.missing = 'x'", False),
        ("tags.missing != 'x'", False),
        ("tags.missing NIN ['x']", False),
        ("NOT tags.missing = 'x'", True),
        ("NOT tags.site = 'north' OR tags.floor = 3", True),
        ("NOT (tags.site = 'north' OR tags.floor = 3)", False),
        ("tags.site = 'south' AND tags.floor = 3 OR deviceId = 'cam-1'", True),
        ("tags.site = 'south' AND (tags.floor = 3 OR deviceId = 'cam-1')", False),
        ("  (  ( *))  ", True),
    ],
)
def test_a_condition_matches_a_device(text: str, is_match: bool) -> None:
    assert parse_condition(text).matches(CAMERA) is is_match


def test_a_quote_in_a_text_is_doubled() -> None:
    facts = Facts("d", tags={"who": "O'Hara", "say": 'a "b"'})
    assert parse_condition("tags.who = 'O''Hara'").matches(facts)
    assert parse_condition('tags.say = "a ""b"""').matches(facts)


def test_an_empty_hardware_id_is_missing() -> None:
    assert not parse_condition("hardwareId != 'x'").matches(Facts("d"))
    assert not parse_condition("IS_DEFINED(hardwareId)").matches(Facts("d"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "tags = 'x'",
        "tags. = 'x'",
        "colour = 'red'",
        "deviceId",
        "deviceId =",
        "deviceId = cam",
        "deviceId = 'cam",
        "deviceId == 'cam'",
        "deviceId = 'a' deviceId = 'b'",
        "deviceId = 'a' AND",
        "AND deviceId = 'a'",
        "(deviceId = 'a'",
        "deviceId = 'a')",
        "deviceId IN []",
        "deviceId IN 'a'",
        "deviceId IN ['a',]",
        "IS_DEFINED(5)",
        "IS_DEFINED deviceId",
        "tags.floor = 1e5",
        "tags.floor = 1.2.3",
        "tags.x = 'a' ; DROP TABLE devices",
        "tags.é = 'a'",
        "deviceId.x = 'a'",
        "NOT",
        "* *",
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(EdgeError) as caught:
        parse_condition(text)
    assert caught.value.code == "cloud.condition-invalid"
    assert caught.value.detail.startswith("condition, near")


@pytest.mark.parametrize(
    "text",
    [
        "*" * (CONDITION_CHARS_MAX + 1),
        "(" * (CONDITION_DEPTH_MAX + 2) + "*" + ")" * (CONDITION_DEPTH_MAX + 2),
        "NOT " * (CONDITION_DEPTH_MAX + 2) + "*",
        " OR ".join("*" for _ in range(CONDITION_TERMS_MAX + 1)),
    ],
    ids=["length", "parentheses", "not", "terms"],
)
def test_a_condition_has_bounds(text: str) -> None:
    with pytest.raises(EdgeError) as caught:
        parse_condition(text)
    assert caught.value.code == "cloud.condition-invalid"


OPERANDS = st.sampled_from(["deviceId", "platform", "hardwareId", "tags.site", "tags.floor", "tags.a", "tags.a.b-c"])
LITERALS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.booleans(),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-10_000, max_value=10_000, places=2),
)
SIGNS = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
TERMS: st.SearchStrategy[Condition] = st.one_of(
    st.just(Everything()),
    st.builds(Defined, OPERANDS),
    st.builds(Comparison, OPERANDS, SIGNS, LITERALS),
    st.builds(Membership, OPERANDS, st.lists(LITERALS, min_size=1, max_size=3).map(tuple), st.booleans()),
)


def _grown(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, inner), st.builds(AllOf, several), st.builds(AnyOf, several))


CONDITIONS = st.recursive(TERMS, _grown, max_leaves=12)
DEVICES = st.builds(
    Facts,
    st.sampled_from(["cam-1", "cam-2"]),
    st.sampled_from(["", "linux/arm64"]),
    st.sampled_from(["", "board-7"]),
    st.dictionaries(
        st.sampled_from(["site", "floor", "a", "a.b-c", "a.b-c.d"]), st.sampled_from(["north", "3", "true", "", "'"])
    ),
)


@given(CONDITIONS)
def test_a_condition_that_is_written_is_read_back_as_itself(condition: Condition) -> None:
    assert parse_condition(str(condition)) == condition


@given(CONDITIONS, DEVICES)
def test_not_inverts_whatever_it_stands_before(condition: Condition, facts: Facts) -> None:
    assert parse_condition(f"NOT ({condition})").matches(facts) is not condition.matches(facts)


@given(CONDITIONS, CONDITIONS, DEVICES)
def test_not_distributes_over_and(left: Condition, right: Condition, facts: Facts) -> None:
    inverted = parse_condition(f"NOT (({left}) AND ({right}))")
    spread = parse_condition(f"NOT ({left}) OR NOT ({right})")
    assert inverted.matches(facts) is spread.matches(facts)


@given(OPERANDS, LITERALS, DEVICES)
def test_equal_and_different_never_hold_together(operand: str, literal: str | Decimal | bool, facts: Facts) -> None:
    equal = Comparison(operand, "=", literal).matches(facts)
    different = Comparison(operand, "!=", literal).matches(facts)
    assert not (equal and different)
    if not isinstance(literal, Decimal):
        assert (equal or different) is (facts.value(operand) is not None)


def outcome_of(text: str) -> str:
    try:
        parse_condition(text)
    except EdgeError as error:
        return error.code
    return "read"


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert outcome_of(text) in ("read", "cloud.condition-invalid")
