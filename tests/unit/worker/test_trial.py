"""What a trial compares, and the way of a shown request from one worker to the other."""

import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.worker.bundle import LoadedBundle, LoadedMember
from edge_agent.worker.engines import Place
from edge_agent.worker.limits import TRIAL_HEAD_BYTES_MAX
from edge_agent.worker.trial import ShowingEngine, TrialRun, TrialSource, compare
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.runtime import Runtime
from edge_contract.tensors import TensorSpec
from edge_contract.terms import PPM, Agreement
from tests.support.net import wait_until


class Doubler:
    """Computes `y = factor * x`; takes any JSON as well."""

    platform = "test"
    is_concurrent = True
    is_quick = True
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "FP32", (-1, 3)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (-1, 3)),)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def run(self, inputs: Any, wanted: Sequence[str]) -> dict[str, Any]:
        if inputs["x"].size == 0:
            raise EdgeError("model.inference-failed", "nothing to double")
        return {"y": inputs["x"] * np.float32(self.factor)}

    def run_json(self, data: Any) -> Any:
        return {"answer": data * self.factor}


def _bundle(engine: Any) -> LoadedBundle:
    return LoadedBundle(Digest.of(b"x"), Runtime("m", 1, ()), {"m": LoadedMember("m", engine)}, Place(Path(), Path()))


class Pair:
    """A live engine that shows everything, and a candidate that compares."""

    def __init__(self, live: float, own: float, cpu_permille_max: int = 10_000) -> None:
        ours, theirs = socket.socketpair()
        self.source = TrialSource(ours, PPM)
        self.engine = ShowingEngine(Doubler(live), "m", self.source)
        self.run = TrialRun(_bundle(Doubler(own)), theirs, cpu_permille_max)

    def found(self, count: int) -> Agreement:
        """What was found once so many were looked at."""
        wait_until(lambda: self._seen() >= count, 30, what=f"{count} shown requests")
        return self.run.agreement

    def _seen(self) -> int:
        agreement = self.run.agreement
        return agreement.compared + agreement.failed + agreement.skipped

    def close(self) -> None:
        self.source.close()
        self.run.close()


X = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)


def test_shown_requests_arrive_whole_and_are_compared() -> None:
    pair = Pair(2.0, 2.0)
    for count in (1, 2, 3):
        assert pair.engine.run({"x": X}, ())["y"].tolist() == [[2.0, 4.0, 6.0]]
        pair.found(count)
    found = pair.run.agreement
    assert (found.compared, found.top1_ppm, found.distance_ppm, found.failed) == (3, PPM, 0, 0)
    pair.close()


def test_another_answer_is_a_distance() -> None:
    pair = Pair(2.0, -3.0)
    pair.engine.run({"x": X}, ())
    found = pair.found(1)
    assert found.top1_ppm == 0
    assert found.distance_ppm == round(PPM * 30 / 12)
    pair.close()


def test_what_the_candidate_cannot_compute_is_a_failure() -> None:
    pair = Pair(2.0, 2.0)
    pair.source.offer(_shown({"x": X[:0]}, {"y": X[:0]}))
    assert pair.found(1).failed == 1
    pair.close()


def _shown(inputs: Any, outputs: Any) -> Any:
    from edge_agent.worker.trial import Shown

    return Shown("m", inputs, outputs, 100)


def test_any_json_is_compared_whole() -> None:
    pair = Pair(2, 2)
    assert pair.engine.run_json(21) == {"answer": 42}
    assert pair.found(1).top1_ppm == PPM
    pair.close()


def test_a_live_worker_whose_candidate_is_gone_goes_on() -> None:
    pair = Pair(2.0, 2.0)
    pair.run.close()
    for _ in range(50):
        assert pair.engine.run({"x": X}, ())["y"].size == 3
    wait_until(lambda: pair.engine.run({"x": X}, ()) is not None and pair.source.is_over, 30, what="the end of it")
    assert not pair.source.wants()
    pair.close()


def test_a_peer_that_claims_too_much_ends_the_trial_and_nothing_else() -> None:
    ours, theirs = socket.socketpair()
    run = TrialRun(_bundle(Doubler(1.0)), theirs, 1_000)
    ours.sendall(struct.pack("<II", TRIAL_HEAD_BYTES_MAX + 1, 0))
    ours.settimeout(30)
    assert ours.recv(1) == b""
    assert run.agreement == Agreement()
    ours.close()


NAN = float("nan")


@pytest.mark.parametrize(
    ("live", "own", "found"),
    [
        ([1.0, 2.0], [1.0, 2.0], (True, 0.0, 3.0)),
        ([1.0, 2.0], [2.0, 1.0], (False, 2.0, 3.0)),
        ([1.0, NAN], [1.0, NAN], (True, 0.0, 2.0)),
        ([5.0, 1.0], [5.0, NAN], (False, 1.0, 6.0)),  # numpy's arg-max is where the NaN is
        ([0.0, 0.0], [0.0, 0.0], (True, 0.0, 0.0)),
        (3.0, 4.0, (True, 1.0, 3.0)),
    ],
)
def test_numbers_are_compared(live: Any, own: Any, found: tuple[bool, float, float]) -> None:
    assert compare({"y": np.array(live)}, {"y": np.array(own)}) == found


def test_text_is_the_same_or_not() -> None:
    live, own = (np.array([text, b"b"], dtype=object) for text in (b"a", b"c"))
    assert compare({"y": live}, {"y": own}) == (False, 1.0, 2.0)
    assert compare({"y": live}, {"y": live}) == (True, 0.0, 2.0)


@pytest.mark.parametrize("own", [{}, {"y": np.zeros((2, 2))}])
def test_outputs_that_do_not_fit_are_no_agreement(own: Any) -> None:
    with pytest.raises(EdgeError, match="missing or shaped otherwise"):
        compare({"y": np.zeros(2)}, own)
