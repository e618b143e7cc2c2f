"""The operator tests of the ONNX standard, through the engine: exactly those pass that bare onnxruntime passes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.worker.engines import NOTHING_SPECIAL, Place, load_engine
from edge_agent.worker.engines.onnx import CPU, OnnxEngine, Session
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member, Runtime

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_MEMBER = Member("case", "onnx", "model.onnx", options={"threads": "1"})
_PASSED_MIN = 1_400
"""So many pass with the oldest onnxruntime that we take: fewer would mean that the judge does not look."""


@contextmanager
def _quiet() -> Iterator[None]:
    """The suite computes with infinities on purpose when it is made."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _cases() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with _quiet():
        return list(load_model_tests(kind="node"))


def _values(values: Any) -> list[Any]:
    """Scalars of numpy as the arrays without dimensions that they stand for; lists are sequences and stay."""
    return [np.asarray(value) if isinstance(value, np.generic) else value for value in values]


def _bare(path: Path, names_in: list[str], case: Any) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=[CPU])
    for inputs, outputs in case.data_sets:
        _compare(case, outputs, session.run(None, dict(zip(names_in, _values(inputs), strict=False))))


def _through_engine(path: Path, names_in: list[str], names_out: list[str], case: Any) -> None:
    place = Place(path.parent, path.parent)
    for inputs, outputs in case.data_sets:
        feed = dict(zip(names_in, _values(inputs), strict=False))
        if any(isinstance(value, list) or value is None for value in (*feed.values(), *outputs)):
            # No request can carry a sequence or an optional value: of these, what is below the port is tried.
            results = Session(_MEMBER, path, [CPU]).run(names_out, feed)
        else:
            engine = load_engine(_MEMBER, place, Runtime("case", 1, (_MEMBER,)))
            feed = {name: _as_bytes(value) for name, value in feed.items()}
            results = [_as_text(value) for value in engine.run(feed, names_out).values()]
        _compare(case, outputs, results)


def _as_bytes(value: Any) -> Any:
    """The suite's text as clients send it."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "OUS":
        return value
    result = np.empty(value.size, dtype=object)
    result[:] = [item if isinstance(item, bytes) else str(item).encode() for item in value.ravel().tolist()]
    return result.reshape(value.shape)


def _as_text(value: Any) -> Any:
    if value.dtype.kind != "O":
        return value
    result = np.empty(value.size, dtype=object)
    result[:] = [item.decode() for item in value.ravel().tolist()]
    return result.reshape(value.shape)


def _compare(case: Any, wanted: Any, got: Any) -> None:
    from onnx.backend.test.runner import Runner

    with _quiet():
        Runner.assert_similar_outputs(wanted, got, case.rtol, case.atol)


def _passes(run: Any, *arguments: Any) -> bool:
    try:
        run(*arguments)
    except Exception:  # noqa: BLE001 - whatever it raises, the case does not pass
        return False
    return True


def test_the_engine_passes_what_bare_onnxruntime_passes(tmp_path: Path) -> None:
    bare, ours = set(), set()
    path = tmp_path / "model.onnx"
    for case in _cases():
        path.write_bytes(case.model.SerializeToString())
        names_in = [item.name for item in case.model.graph.input]
        names_out = [item.name for item in case.model.graph.output]
        if _passes(_bare, path, names_in, case):
            bare.add(case.name)
        if _passes(_through_engine, path, names_in, names_out, case):
            ours.add(case.name)
    assert len(bare) >= _PASSED_MIN
    assert sorted(bare - ours) == []
    assert sorted(ours - bare) == []


def test_a_model_whose_inputs_no_request_can_carry_is_refused(tmp_path: Path) -> None:
    case = next(item for item in _cases() if item.name == "test_identity_sequence")
    (tmp_path / "model.onnx").write_bytes(case.model.SerializeToString())
    with pytest.raises(EdgeError) as caught:
        OnnxEngine(_MEMBER, Place(tmp_path, tmp_path), NOTHING_SPECIAL)
    assert caught.value.code == "model.load-failed"
    assert "seq(" in caught.value.detail
