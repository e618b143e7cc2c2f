"""Search parameters, cursors, instants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_registry.core.instants import from_text, to_text
from cloud_registry.core.search import Page, check_properties, like_pattern, read_page, read_search, write_cursor
from cloud_registry.limits import PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX
from edge_contract.errors import EdgeError


def test_filters_are_read() -> None:
    search = read_search("dig*", "mnist", "onnx", ["a=b", "c=d=e"], ["p="], "2026-03-01", "2026-03-02T00:00:00+01:00")
    assert search.tags == {"a": "b", "c": "d=e"}
    assert search.properties == {"p": ""}
    assert search.created_after_ms == 1_772_323_200_000
    assert search.created_before_ms == 1_772_406_000_000


@pytest.mark.parametrize(
    "arguments",
    [
        ("", "", "pickle", [], [], "", ""),
        ("", "", "", ["novalue"], [], "", ""),
        ("", "", "", ["=b"], [], "", ""),
        ("", "", "", ["a=b", "a=c"], [], "", ""),
        ("", "", "", [f"k{n}=v" for n in range(17)], [], "", ""),
        ("", "", "", [], [], "yesterday", ""),
        ("", "", "", [], [], "", "9" * 60),
        ("x" * 300, "", "", [], [], "", ""),
        ("", "a\0b", "", [], [], "", ""),
    ],
)
def test_odd_filters_are_refused(arguments: tuple[str, str, str, list[str], list[str], str, str]) -> None:
    with pytest.raises(EdgeError) as caught:
        read_search(*arguments)
    assert caught.value.code == "cloud.bad-request"


@given(st.text(max_size=80).filter(lambda text: "\0" not in text))
def test_a_cursor_goes_on_behind_its_item(key: str) -> None:
    if len(write_cursor("models", key)) <= 512:
        assert read_page(None, write_cursor("models", key), "models") == Page(PAGE_ITEMS_DEFAULT, key)


@pytest.mark.parametrize("cursor", ["x", "%%%", "bnVsbA", "W10", "é", "A" * 600, write_cursor("devices", "a")])
def test_a_cursor_of_another_list_is_refused(cursor: str) -> None:
    with pytest.raises(EdgeError) as caught:
        read_page(None, cursor, "models")
    assert caught.value.code == "cloud.bad-request"


@pytest.mark.parametrize("limit", [0, -1, PAGE_ITEMS_MAX + 1])
def test_the_limit_is_bounded(limit: int) -> None:
    with pytest.raises(EdgeError):
        read_page(limit, "", "models")


def test_a_pattern_takes_only_the_star_for_any_characters() -> None:
    assert like_pattern("a_b%*\\", is_wild=True) == "a\\_b\\%%\\\\"
    assert like_pattern("a*", is_wild=False) == "a*"


def test_properties_are_checked() -> None:
    assert check_properties({"learning rate": "0.1", "größe": "3"}) == {"learning rate": "0.1", "größe": "3"}
    for key, value in (("", "v"), ("a=b", "v"), ("a\nb", "v"), ("k", "v" * 5_000), ("k", "\0")):
        with pytest.raises(EdgeError):
            check_properties({key: value})


@given(st.integers(0, 253_402_300_799_999))
def test_instants_are_read_back(instant_ms: int) -> None:
    assert from_text(to_text(instant_ms)) == instant_ms
