"""Signatures of tensors, and headers of safetensors files, which come from strangers."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_contract.errors import ContractError
from edge_contract.tensors import TensorSpec, read_safetensors_header


def file_of(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(shape: list[Any], start: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_a_good_header_says_where_each_tensor_lies() -> None:
    header = {
        "__metadata__": {"made": "here"},
        "b": entry([2], 4, 12),
        "a": entry([1], 0, 4),
        "none": entry([0], 12, 12),
    }
    data = file_of(header, bytes(12))
    entries, metadata = read_safetensors_header(data)
    base = len(data) - 12
    assert metadata == {"made": "here"}
    assert {name: (item.start - base, item.end - base) for name, item in entries.items()} == {
        "a": (0, 4), "b": (4, 12), "none": (12, 12),
    }  # fmt: skip
    assert entries["none"].shape == (0,)
    assert read_safetensors_header(memoryview(data))[0] == entries


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        bytes(8),
        (2**63).to_bytes(8, "little") + b"{}",
        file_of({"a": entry([1], 0, 4)}),
        file_of({"a": entry([1], 0, 4)}, bytes(5)),
        file_of({"a": entry([1], 1, 5)}, bytes(5)),
        file_of({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)),
        file_of({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, bytes(6)),
        file_of({"a": entry([2], 0, 4)}, bytes(4)),
        file_of({"a": entry([2**39, 2**39, 2**39], 0, 4)}, bytes(4)),
        file_of({"a": entry([2**40], 0, 4)}, bytes(4)),
        file_of({"a": entry([-1, -1], 0, 4)}, bytes(4)),
        file_of({"a": entry([True], 0, 4)}, bytes(4)),
        file_of({"a": entry([1.0], 0, 4)}, bytes(4)),
        file_of({"a": entry(["1"], 0, 4)}, bytes(4)),
        file_of({"a": entry([1] * 17, 0, 4)}, bytes(4)),
        file_of({"a": entry([1], 4, 0)}, bytes(4)),
        file_of({"a": entry([1], 0, 4, "BF17")}, bytes(4)),
        file_of({"a": entry([1], 0, 4, ["F32"])}, bytes(4)),
        file_of({"a": entry([1], 0, 4) | {"more": 1}}, bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}, bytes(4)),
        file_of({"a": []}),
        file_of({"__metadata__": {"a": 1}}),
        file_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', bytes(4)),
        file_of(b"[]"),
        file_of(b"\xff\xfe"),
    ],
)
def test_a_header_that_does_not_describe_its_bytes_is_refused(data: bytes) -> None:
    with pytest.raises(ContractError):
        read_safetensors_header(data)


@given(st.binary(max_size=64), st.integers(0, 80))
def test_random_bytes_raise_nothing_but_contract_errors(data: bytes, claimed: int) -> None:
    for candidate in (data, claimed.to_bytes(8, "little") + data):
        try:
            entries, _ = read_safetensors_header(candidate)
        except ContractError:
            continue
        assert all(0 <= item.start <= item.end <= len(candidate) for item in entries.values())


_values: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})
)


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "BOOL"]) | _values,
                "shape": st.lists(st.integers(-1, 3) | _values, max_size=3) | _values,
                "data_offsets": st.lists(st.integers(0, 9) | _values, max_size=3) | _values,
            }
        )
        | _values,
        max_size=3,
    ),
    st.binary(max_size=9),
)
def test_almost_right_headers_raise_nothing_but_contract_errors(header: dict[str, Any], data: bytes) -> None:
    raw = file_of(json.dumps(header).encode("utf-8", "surrogatepass"), data)
    try:
        entries, _ = read_safetensors_header(raw)
    except ContractError:
        return
    assert sum(item.end - item.start for item in entries.values()) == len(data)


@pytest.mark.parametrize("dim", [True, -2, 2**31, 1.0, "1", None])
def test_a_shape_is_sizes_and_free_dimensions(dim: object) -> None:
    with pytest.raises(ContractError):
        TensorSpec.from_json({"name": "x", "datatype": "FP32", "shape": [dim]})


def test_free_dimensions_fit_any_size_and_nothing_else_does() -> None:
    spec = TensorSpec("x", "FP32", (-1, 3))
    assert spec.fits("FP32", (0, 3))
    assert spec.fits("FP32", (7, 3))
    assert not spec.fits("FP32", (7, 4))
    assert not spec.fits("FP32", (3,))
    assert not spec.fits("FP64", (7, 3))
