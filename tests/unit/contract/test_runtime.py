"""The runtime descriptor: one meaning, or refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from edge_contract.errors import ContractError
from edge_contract.runtime import Golden, Member, Runtime
from edge_contract.tensors import TensorSpec

GOOD = Runtime(
    "digits",
    1,
    (
        Member(
            "digits", "onnx", "model.onnx", (TensorSpec("x", "FP32", (-1, 64)),), (TensorSpec("y", "FP32", (-1, 10)),)
        ),
    ),
    Golden(),
)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d.update(schema="lighterman.runtime/2"), "artifact.runtime-invalid"),
        (lambda d: d.update(members=[]), "artifact.runtime-invalid"),
        (lambda d: d.update(members=d["members"] * 2), "artifact.runtime-invalid"),
        (lambda d: d["members"][0].update(engine="lua"), "artifact.runtime-invalid"),
        (lambda d: d["members"][0].update(entry="/etc/passwd"), "artifact.path-unsafe"),
        (lambda d: d["members"][0].update(inputs=d["members"][0]["inputs"] * 2), "artifact.runtime-invalid"),
        (lambda d: d["members"][0].update(outputs=d["members"][0]["outputs"] * 2), "artifact.runtime-invalid"),
        (lambda d: d["members"][0].update(options={"a": 1}), "artifact.runtime-invalid"),
        (lambda d: d["members"][0].update(extra=1), "artifact.unknown-field"),
        (lambda d: d.update(version=0), "artifact.runtime-invalid"),
        (lambda d: d.update(version=1.0), "artifact.runtime-invalid"),
        (lambda d: d.update(sampling_ratio=1.1), "artifact.runtime-invalid"),
        (lambda d: d.update(sampling_ratio=True), "artifact.runtime-invalid"),
        (lambda d: d.update(allow_pickle=1), "artifact.runtime-invalid"),
        (lambda d: d["golden"].update(rtol=-1), "artifact.runtime-invalid"),
        (lambda d: d["golden"].update(path="../golden"), "artifact.path-unsafe"),
        (lambda d: d["probation"].update(window_ms=10**12), "artifact.runtime-invalid"),
        (lambda d: d["probation"].pop("failure_ratio_max"), "artifact.runtime-invalid"),
        (lambda d: d.update(extra=1), "artifact.unknown-field"),
    ],
)
def test_a_descriptor_with_a_second_meaning_is_refused(change: Callable[[dict[str, Any]], object], code: str) -> None:
    document = json.loads(GOOD.to_bytes())
    assert Runtime.parse(json.dumps(document).encode()) == GOOD
    change(document)
    with pytest.raises(ContractError) as caught:
        Runtime.parse(json.dumps(document).encode())
    assert caught.value.code == code
