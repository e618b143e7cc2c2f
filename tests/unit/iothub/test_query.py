"""The query language over twins: three-valued logic, types, selections, and bounds of hostile texts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.iothub.query import matches, run
from device_sim.iothub.query_parse import QueryError, parse_condition, parse_query

TWIN: dict[str, Any] = {
    "deviceId": "press-1",
    "tags": {"site": "north", "line": 3, "is_new": True, "old": None, "a-b": 1, "where": {"hall": "x"}},
    "properties": {"desired": {"rate": 1.5}, "reported": {"free": 40, "lighterman": {"boot": 7}}},
    "configurations": {"base-1.0": {"status": "Applied"}},
}


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "deviceId = 'press-1'",
        'tags.site = "north" AND tags.line >= 3',
        "tags.line <> 4 and not tags.line = 4",
        "tags.line IN [1, 2, 3]",
        "tags.site nin ['south', 'east']",
        "IS_DEFINED(tags.old) AND tags.old = null",
        "is_defined(properties.reported.lighterman.boot)",
        "NOT is_defined(tags.missing)",
        "configurations.[[base-1.0]].status = 'Applied'",
        "tags.[[a-b]] = 1",
        "tags.line * 2 + 1 = 7 AND tags.line - 1 = 2 AND 7 % 4 = tags.line AND -tags.line < 0",
        "(tags.missing = 1 OR tags.line = 3) AND tags.is_new",
        "properties.desired.rate = 1.5 AND tags.line = 0x3",
        "tags.site = 'n\\u006frth'",
        "tags.site + '-1' = 'north-1'",
        "tags.site < 'south'",
        "tags.line-1 = 2",
    ],
)
def test_a_condition_means_the_twin(text: str) -> None:
    assert matches(parse_condition(text), TWIN)


@pytest.mark.parametrize(
    "text",
    [
        "tags.missing = 1",
        "tags.missing != 1",
        "NOT tags.missing = 1",
        "tags.line = '3'",
        "tags.line != '3'",
        "tags.is_new = 1",
        "tags.site",
        "tags.old",
        "undefined",
        "null",
        "tags.where = tags.where",
        "tags.missing NIN [1]",
        "tags.site > 1",
        "tags.line / 0 = 0",
        "tags.missing = undefined",
        "tags.line AND tags.line = 3",
        "DeviceId = 'press-1'",
    ],
)
def test_what_is_not_there_or_of_another_type_is_not_true(text: str) -> None:
    assert not matches(parse_condition(text), TWIN)


def test_undefined_beside_what_decides_does_not_count() -> None:
    assert matches(parse_condition("tags.missing = 1 OR tags.line = 3"), TWIN)
    assert not matches(parse_condition("NOT (tags.missing = 1 AND tags.line = 3)"), TWIN)
    assert matches(parse_condition("NOT (tags.missing = 1 AND tags.line = 4)"), TWIN)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tags.site =",
        "tags.site = 'north",
        "tags.site == 'north'",
        "STARTS_WITH(deviceId, 'p')",
        "tags.[[a",
        "tags.site = 'x' tags.line = 1",
        "tags.line IN (1, 2)",
        "tags.site = 'bad \\q'",
        "((((" * 20 + "1" + "))))" * 20,
        " AND ".join(["tags.line = 3"] * 400),
        "- " * 50 + "1 = 1",
        "x" * 10_000,
    ],
)
def test_a_text_that_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(QueryError):
        parse_condition(text)


@given(st.text(alphabet="tagsdeviceId.=<>!()[]'\"\\ 0123456789-+*/%,ANDORNOTinnull$", max_size=60))
def test_no_text_makes_anything_but_a_condition_or_a_refusal(text: str) -> None:
    try:
        condition = parse_condition(text)
    except QueryError:
        return
    assert matches(condition, TWIN) in (True, False)


def _fleet() -> list[dict[str, Any]]:
    return [
        {"deviceId": f"d{number}", "tags": {"site": "north" if number % 2 else "south", "load": number}}
        for number in range(5)
    ]


def test_a_selection_has_the_names_that_were_asked_for() -> None:
    query = parse_query("SELECT deviceId, tags.load AS weight, tags.missing FROM devices WHERE tags.load > 2")
    assert run(query, _fleet()) == [{"deviceId": "d3", "weight": 3}, {"deviceId": "d4", "weight": 4}]


def test_top_takes_the_first() -> None:
    found = run(parse_query("select top 2 * from devices"), _fleet())
    assert [twin["deviceId"] for twin in found] == ["d0", "d1"]


def test_groups_are_counted_and_computed() -> None:
    text = (
        "SELECT tags.site AS site, COUNT() AS n, AVG(tags.load) AS mean, MAX(tags.load) FROM devices GROUP BY tags.site"
    )
    assert run(parse_query(text), _fleet()) == [
        {"site": "south", "n": 3, "mean": 2.0, "$4": 4},
        {"site": "north", "n": 2, "mean": 2.0, "$4": 3},
    ]


def test_nothing_is_counted_as_zero() -> None:
    text = "SELECT COUNT() AS n, SUM(tags.load) AS s, MIN(tags.load) AS m FROM devices WHERE deviceId = 'none'"
    assert run(parse_query(text), _fleet()) == [{"n": 0, "s": 0}]


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM twins",
        "SELECT deviceId FROM devices GROUP BY tags.site",
        "SELECT * FROM devices GROUP BY tags.site",
        "SELECT COUNT(deviceId) FROM devices",
        "SELECT AVG() FROM devices",
        "SELECT TOP 0 * FROM devices",
        "SELECT deviceId, deviceId FROM devices",
        "DELETE FROM devices",
        "SELECT * FROM devices WHERE",
    ],
)
def test_a_text_that_is_no_query_is_refused(text: str) -> None:
    with pytest.raises(QueryError):
        parse_query(text)
