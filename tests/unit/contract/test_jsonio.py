"""Strict JSON: what two readers could understand differently is refused, in work that its length bounds."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, dump, is_nested_deeper, parse_object
from edge_contract.limits import JSON_DEPTH_MAX, MIB


def _code(data: bytes, bytes_max: int = 8 * MIB) -> str:
    with pytest.raises(ContractError) as caught:
        parse_object(data, "document", bytes_max)
    return caught.value.code


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"7", b'"x"', b"null", b"{", b"{}{}", b"{'a':1}", b'{"a":1,}', b"\xef\xbb\xbf{}", b'{"a":NaN}',
        b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1e999}', b'{"a":-1e999}', b'{"a":"\xff"}', b'{"a":"\\ud800"}',
        b'{"\\udc00":1}', b'{"a":01}', b'{"a":+1}', b'{"a":"\x01"}', b'{"a":' + b"9" * 5000 + b"}", b'{"a":"x',
    ],
)  # fmt: skip
def test_what_is_no_strict_json_object_is_refused(data: bytes) -> None:
    assert _code(data) == "artifact.document-invalid"


def test_the_same_key_twice_is_refused_at_any_depth_and_however_it_is_written() -> None:
    assert _code(b'{"a":1,"a":1}') == "artifact.duplicate-key"
    assert _code(b'{"x":[{"a":1,"\\u0061":2}]}') == "artifact.duplicate-key"


def test_a_document_over_its_bound_is_refused_before_it_is_read() -> None:
    assert _code(b"\xff" * 11, bytes_max=10) == "artifact.document-too-large"
    assert parse_object(b'{"a":1234}', "document", 10) == {"a": 1234}


@pytest.mark.parametrize("kind", ["list", "object"])
def test_nesting_is_bounded_exactly(kind: str) -> None:
    def nested(levels: int) -> bytes:
        if kind == "list":
            return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"
        return b'{"a":' * levels + b"1" + b"}" * levels

    assert parse_object(nested(JSON_DEPTH_MAX), "document", MIB)
    assert _code(nested(JSON_DEPTH_MAX + 1)) == "artifact.document-invalid"


def test_brackets_inside_strings_are_no_nesting() -> None:
    text = '[{"' * 100 + "\\"
    assert parse_object(dump({"a": text, "b": [text] * 40}), "document", MIB)["a"] == text


@given(st.text(alphabet='[]{}"\\a,', max_size=40), st.integers(1, 4))
def test_the_depth_found_without_parsing_is_the_depth_of_the_value(text: str, levels: int) -> None:
    def depth(value: object) -> int:
        if isinstance(value, dict):
            return 1 + max((depth(item) for item in value.values()), default=0)
        if isinstance(value, list):
            return 1 + max((depth(item) for item in value), default=0)
        return 0

    for value in ({"a": text}, {text: [{"b": [text, {}]}]}, {"a": [[], [[text]]], "b": {}}):
        assert is_nested_deeper(dump(value), levels) == (depth(value) > levels)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * MIB,
        b"[]," * (MIB // 3),
        b'{"a":"' + b'\\"' * (MIB // 2),
        b'"' * MIB,
        b'"\\' * (MIB // 2),
        b'{"a":[' + b"[]," * (MIB // 4) + b"[]]",
        b"[" * (MIB // 2) + b"]" * (MIB // 2),
    ],
)
def test_hostile_nesting_costs_work_in_proportion_to_its_length(data: bytes) -> None:
    begin = time.process_time()
    assert _code(data) == "artifact.document-invalid"
    assert time.process_time() - begin < 2


@given(st.binary(max_size=200))
def test_random_bytes_give_an_object_or_a_contract_error(data: bytes) -> None:
    try:
        value = parse_object(data, "document", 100)
    except ContractError:
        return
    assert isinstance(value, dict)


HUGE = 10**4000


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [], {}, -1, 2**53, HUGE])
def test_a_whole_number_is_nothing_else(value: object) -> None:
    with pytest.raises(ContractError):
        Fields({"n": value}, "document").integer("n")


@pytest.mark.parametrize("value", [True, "1", None, [], -0.1, 1.1, HUGE, float("nan"), float("inf")])
def test_a_number_is_finite_and_within_its_bounds(value: object) -> None:
    with pytest.raises(ContractError):
        Fields({"n": value}, "document").number("n", high=1.0)


@pytest.mark.parametrize("value", [0, 1, "true", None, []])
def test_a_flag_is_a_boolean(value: object) -> None:
    with pytest.raises(ContractError):
        Fields({"n": value}, "document").flag("n")


@pytest.mark.parametrize("value", [None, 7, ["x"], "x" * 11, "\ud800", b"x"])
def test_a_text_is_a_string_of_bounded_length_that_can_be_written_again(value: object) -> None:
    """Values may come from other readers than ours, such as that of signed metadata."""
    with pytest.raises(ContractError):
        Fields({"n": value}, "document").text("n", chars_max=10)
    with pytest.raises(ContractError):
        Fields({"n": [value]}, "document").texts("n", 3, chars_max=10)
    with pytest.raises(ContractError):
        Fields({"n": {"k": value}}, "document").mapping("n", 3, chars_max=10)


def test_keys_of_a_mapping_can_be_written_again() -> None:
    with pytest.raises(ContractError):
        Fields({"n": {"\udfff": "x"}}, "document").mapping("n", 3)


def test_fields_that_nobody_took_are_refused() -> None:
    fields = Fields({"a": 1, "b": 2}, "document")
    fields.integer("a")
    with pytest.raises(ContractError) as caught:
        fields.close()
    assert caught.value.code == "artifact.unknown-field"
    fields.close(ignore=["b"])


def test_an_error_can_always_be_written() -> None:
    error = EdgeError("internal.bug", "file \udcff" + "x" * 1000, "hint \ud800")
    assert dump(error.to_json())
    assert len(error.detail) == 500
