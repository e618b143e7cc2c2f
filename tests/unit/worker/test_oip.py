"""Requests and answers of the Open Inference Protocol, valid and hostile, JSON and binary."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from edge_agent.worker.arrays import DTYPES, from_bytes, from_json_data, to_bytes, to_json_data
from edge_agent.worker.oip import InferRequest, read_json, read_request, write_answer
from edge_contract.errors import EdgeError
from edge_contract.tensors import TensorSpec

X = TensorSpec("x", "FP32", (-1, 2))
N = TensorSpec("n", "INT64", (1,))
Y = TensorSpec("y", "FP32", (-1, 2))


def _read(document: Any, binary: bytes = b"", *, specs: tuple[TensorSpec, ...] = (X,)) -> InferRequest:
    head = json.dumps(document).encode()
    return read_request(head + binary, len(head) if binary else None, specs, (Y,))


def _x(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, 3, 4]}
    return {"inputs": [{key: value for key, value in {**tensor, **changes}.items() if value is not None}]}


@pytest.mark.parametrize("data", [[1, 2.5, 3, 4], [[1, 2.5], [3, 4]]], ids=["flat", "nested"])
def test_json_data_may_be_flat_or_nested(data: list[Any]) -> None:
    array = _read(_x(data=data)).inputs["x"]
    assert array.dtype == np.float32
    assert array.tolist() == [[1, 2.5], [3, 4]]


def test_json_and_binary_inputs_can_be_mixed() -> None:
    document = {
        "id": "7",
        "parameters": {"binary_data_output": True},
        "inputs": [
            {"name": "n", "datatype": "INT64", "shape": [1], "data": [-5]},
            {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
    }
    request = _read(document, struct.pack("<ff", 1.5, -2), specs=(X, N))
    assert request.inputs["x"].tolist() == [[1.5, -2]]
    assert request.inputs["n"].tolist() == [-5]
    assert (request.id, request.outputs, request.binary, request.is_binary) == ("7", ("y",), {"y": False}, True)


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "BYTES"])
def test_every_datatype_survives_both_forms(datatype: str) -> None:
    values: Any = np.array([[0, 1, 1], [1, 0, 1]]).astype(DTYPES[datatype])
    again = from_bytes("t", datatype, (2, 3), memoryview(bytes(to_bytes(values))))
    assert again.dtype == DTYPES[datatype]
    assert np.array_equal(again, values)
    data = json.loads(json.dumps(to_json_data(values)))
    assert np.array_equal(from_json_data("t", datatype, (2, 3), data), values)


def test_bytes_elements_carry_their_lengths() -> None:
    raw = b"\x02\0\0\0hi\0\0\0\0\x03\0\0\0\xff\xfe\xfd"
    array = from_bytes("t", "BYTES", (3,), memoryview(raw))
    assert array.tolist() == [b"hi", b"", b"\xff\xfe\xfd"]
    assert to_bytes(array) == raw
    assert from_json_data("t", "BYTES", (1, 2), ["ä", ""]).tolist() == [["ä".encode(), b""]]


def test_binary_data_that_starts_at_an_odd_place_is_usable() -> None:
    document = {
        "inputs": [
            {"name": "a", "datatype": "UINT8", "shape": [1], "parameters": {"binary_data_size": 1}},
            {"name": "b", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}},
        ]
    }
    specs = (TensorSpec("a", "UINT8", (1,)), TensorSpec("b", "FP64", (1,)))
    request = _read(document, b"\x07" + struct.pack("<d", 0.25), specs=specs)
    assert request.inputs["b"].tolist() == [0.25]
    assert request.inputs["b"].flags.aligned


def test_an_answer_is_all_json_or_ends_in_binary_data() -> None:
    outputs = {"y": np.array([[1, 2]], dtype=np.float32), "s": np.array([b"ok"], dtype=object)}
    answer = write_answer(InferRequest("7", {}), "m", "3", outputs)
    assert answer.json_bytes is None
    document = json.loads(b"".join(answer.parts))
    assert document["outputs"][0] == {"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}
    assert document["outputs"][1]["data"] == ["ok"]
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "3", "7")

    mixed = write_answer(InferRequest("", {}, binary={"s": False}, is_binary=True), "m", "3", outputs)
    body = b"".join(mixed.parts)
    assert mixed.json_bytes is not None
    document = json.loads(body[: mixed.json_bytes])
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert "data" in document["outputs"][1]
    assert body[mixed.json_bytes :] == struct.pack("<ff", 1, 2)


_DEEP = b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b'{"inputs":[],"inputs":[]}', id="duplicate key"),
        pytest.param(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[NaN,1]}]}', id="NaN"),
        pytest.param(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1e999,1]}]}', id="infinity"),
        pytest.param(b'{"id":"\\ud800","inputs":[]}', id="half a surrogate pair"),
        pytest.param(_DEEP, id="deep"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(EdgeError) as caught:
        read_request(body, None, (X,), (Y,))
    assert caught.value.code == "model.input-invalid"


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({}, id="no inputs"),
        pytest.param({"inputs": []}, id="empty inputs"),
        pytest.param({"inputs": ["x"]}, id="input that is text"),
        pytest.param({"inputs": _x()["inputs"] * 2}, id="input twice"),
        pytest.param(_x(name="z"), id="unknown input"),
        pytest.param(_x(name=3), id="name that is a number"),
        pytest.param(_x(datatype="FP31"), id="unknown datatype"),
        pytest.param(_x(datatype=["FP32"]), id="datatype that is an array"),
        pytest.param(_x(datatype="INT64"), id="other datatype"),
        pytest.param(_x(shape=[4]), id="wrong rank"),
        pytest.param(_x(shape=[1, 4]), id="wrong shape"),
        pytest.param(_x(shape=[3, 2]), id="too few values"),
        pytest.param(_x(shape=[-2, -2]), id="negative shape"),
        pytest.param(_x(shape=[2.0, 2]), id="fractional shape"),
        pytest.param(_x(shape=[True, 2]), id="boolean shape"),
        pytest.param(_x(shape=[2**31 - 1, 2]), id="huge shape"),
        pytest.param(_x(shape=[2] * 17), id="too many dimensions"),
        pytest.param(_x(shape="22"), id="shape that is text"),
        pytest.param(_x(data=None), id="no data"),
        pytest.param(_x(data="1234"), id="data that is text"),
        pytest.param(_x(data=[1, 2, 3, "4"]), id="text among numbers"),
        pytest.param(_x(data=[1, 2, 3, None]), id="null among numbers"),
        pytest.param(_x(data=[1, 2, 3, True]), id="boolean among numbers"),
        pytest.param(_x(data=[[1, 2, 3], [4]]), id="ragged"),
        pytest.param(_x(data=[[1, 2], 3, 4]), id="half nested"),
        pytest.param(_x(data=[[[1, 2], [3, 4]]]), id="nested too deep"),
        pytest.param(_x(data=[1, 2, 3, 1e300]), id="outside FP32"),
        pytest.param(_x(parameters={"binary_data_size": 16}), id="data twice"),
        pytest.param({**_x(), "id": 5}, id="id that is a number"),
        pytest.param({**_x(), "id": "i" * 1000}, id="long id"),
        pytest.param({**_x(), "parameters": {"binary_data_output": 1}}, id="flag that is a number"),
        pytest.param({**_x(), "outputs": [{"name": "z"}]}, id="unknown output"),
        pytest.param({**_x(), "outputs": [{"name": "y"}, {"name": "y"}]}, id="output twice"),
        pytest.param({**_x(), "outputs": {"name": "y"}}, id="outputs that are no array"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(document: Any) -> None:
    with pytest.raises(EdgeError) as caught:
        _read(document)
    assert caught.value.code == "model.input-invalid"


def _binary(size: Any, shape: list[int] | None = None) -> dict[str, Any]:
    return _x(data=None, shape=shape or [1, 2], parameters={"binary_data_size": size})


@pytest.mark.parametrize(
    ("document", "binary"),
    [
        pytest.param(_binary(8), b"1234567", id="too few bytes"),
        pytest.param(_binary(8), b"123456789", id="bytes left over"),
        pytest.param(_binary(4), b"1234", id="not the shape's bytes"),
        pytest.param(_binary(-8), b"12345678", id="negative size"),
        pytest.param(_binary(True), b"1", id="boolean size"),
        pytest.param(_binary("8"), b"12345678", id="size that is text"),
        pytest.param(_binary(2**60), b"12345678", id="huge size"),
        pytest.param(_x(), b"12345678", id="binary data nobody asked for"),
    ],
)
def test_binary_data_that_does_not_fit_is_refused(document: Any, binary: bytes) -> None:
    with pytest.raises(EdgeError) as caught:
        _read(document, binary)
    assert caught.value.code == "model.input-invalid"


@pytest.mark.parametrize("length", [0, 10_000])
def test_a_json_length_outside_the_body_is_refused(length: int) -> None:
    with pytest.raises(EdgeError) as caught:
        read_request(json.dumps(_x()).encode(), length, (X,), ())
    assert caught.value.code == "model.input-invalid"


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        pytest.param("BOOL", (2,), b"\x01\x02", id="BOOL that is 2"),
        pytest.param("BYTES", (1,), b"\x05\0\0\0hi", id="element longer than the data"),
        pytest.param("BYTES", (1,), b"\xff\xff\xff\xff", id="element of 4 GiB"),
        pytest.param("BYTES", (1,), b"\x01\0\0\0ab", id="bytes left over"),
        pytest.param("BYTES", (2,), b"\x01\0\0\0a", id="element missing"),
        pytest.param("BYTES", (2**30,), b"\0\0\0\0", id="a billion elements"),
    ],
)
def test_hostile_binary_elements_are_refused(datatype: str, shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(EdgeError) as caught:
        from_bytes("t", datatype, shape, memoryview(data))
    assert caught.value.code == "model.input-invalid"


@pytest.mark.parametrize(
    ("datatype", "data"),
    [("UINT8", [256]), ("UINT8", [-1]), ("INT64", [2**63]), ("INT32", [1.0]), ("BOOL", [1]), ("BYTES", [1])],
)
def test_a_number_outside_its_datatype_is_refused(datatype: str, data: list[Any]) -> None:
    with pytest.raises(EdgeError) as caught:
        from_json_data("t", datatype, (1,), data)
    assert caught.value.code == "model.input-invalid"


def test_the_largest_numbers_of_a_datatype_are_taken() -> None:
    assert from_json_data("t", "UINT64", (2,), [2**64 - 1, 0]).tolist() == [2**64 - 1, 0]
    assert from_json_data("t", "INT64", (2,), [-(2**63), 2**63 - 1]).tolist() == [-(2**63), 2**63 - 1]


def test_an_empty_tensor_is_a_tensor() -> None:
    assert from_json_data("t", "FP32", (0, 4), []).shape == (0, 4)
    assert from_bytes("t", "FP32", (0, 4), memoryview(b"")).shape == (0, 4)
    assert bytes(to_bytes(np.zeros((0, 4), dtype=np.float32))) == b""


def test_a_large_nested_image_is_read_in_good_time() -> None:
    image = [[[[0.5] * 224] * 224] * 3]
    array = from_json_data("t", "FP32", (1, 3, 224, 224), read_json(json.dumps(image).encode()))
    assert array.shape == (1, 3, 224, 224)


def test_nan_never_goes_into_json() -> None:
    with pytest.raises(EdgeError) as caught:
        write_answer(InferRequest("", {}), "m", "1", {"y": np.array([np.nan], dtype=np.float32)})
    assert caught.value.code == "model.output-invalid"


def _all_binary(rows: int = 1, **changes: Any) -> tuple[bytes, int]:
    item = {"name": "x", "datatype": "FP32", "shape": [rows, 2], "parameters": {"binary_data_size": 8 * rows}}
    document = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}, **changes}).encode()
    return document, len(document)


def test_json_that_came_before_is_read_as_the_first_time() -> None:
    inputs, outputs = (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),)
    document, size = _all_binary()
    for number in range(3):
        data = np.array([[number, 7]], dtype=np.float32)
        request = read_request(document + data.tobytes(), size, inputs, outputs)
        assert request.inputs["x"].tolist() == data.tolist()
        assert (request.id, request.outputs, request.is_binary, request.timeout_us) == ("", (), True, 0)
    with pytest.raises(EdgeError, match="belong to no input"):
        read_request(document + bytes(9), size, inputs, outputs)
    with pytest.raises(EdgeError, match="longer than the body"):
        read_request(document + bytes(7), size, inputs, outputs)


def test_json_that_came_before_is_read_anew_for_another_model() -> None:
    document, size = _all_binary()
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)
    read_request(document + bytes(8), size, (TensorSpec("x", "FP32", (-1, 2)),), outputs)
    with pytest.raises(EdgeError, match="came as FP32"):
        read_request(document + bytes(8), size, (TensorSpec("x", "FP32", (-1, 3)),), outputs)


def test_what_differs_from_request_to_request_is_not_remembered() -> None:
    inputs, outputs = (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),)
    document, size = _all_binary(id="seven")
    for _ in range(2):
        assert read_request(document + bytes(8), size, inputs, outputs).id == "seven"
    texts = (TensorSpec("x", "BYTES", (2,)),)
    item = {"name": "x", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 10}}
    document = json.dumps({"inputs": [item]}).encode()
    for data in (b"\x01\0\0\0a\x01\0\0\0b", b"\x02\0\0\0ab\0\0\0\0"):
        found = read_request(document + data, len(document), texts, ()).inputs["x"].tolist()
        assert b"".join(found) == b"ab"


def test_answers_in_binary_name_their_tensors_each_time() -> None:
    request = InferRequest("", {}, is_binary=True)
    for rows in (1, 2, 1):
        array = np.full((rows, 2), rows, dtype=np.float32)
        answer = write_answer(request, "m", "3", {"y": array})
        head = json.loads(bytes(answer.parts[0]))
        assert head["outputs"] == [
            {"name": "y", "shape": [rows, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8 * rows}}
        ]
        assert b"".join(answer.parts[1:]) == array.tobytes()
