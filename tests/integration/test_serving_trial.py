"""A candidate on trial beside the live worker, both real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_contract.deployment import Policy
from edge_contract.errors import EdgeError
from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec
from edge_contract.terms import PPM, Trial
from tests.integration.serving import MODULE, Serving, X, serving, start_hammers
from tests.support.net import wait_until
from tests.support.slots import adder_slot, write_slot

ROW, OUT = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TRIAL = Trial(60_000, cpu_permille_max=2_000)
SCRIPT = "def run(data):\n    {body}\n"


def _ask(state: Serving, times: int) -> None:
    with state.client() as client:
        for _ in range(times):
            client.infer("digits", [X])


def _asked_until_compared(state: Serving, count: int) -> None:
    """A trial passes over what it has no time for, on a busy machine most: ask until enough was compared."""

    def compared() -> bool:
        _ask(state, 10)
        found = state.supervisor.trial(MODULE)
        return found.compared + found.failed >= count

    wait_until(compared, 60, what=f"{count} predictions to be compared")


def _compared(state: Serving, count: int) -> None:
    wait_until(lambda: state.supervisor.trial(MODULE).compared >= count, 60, what=f"{count} predictions to be compared")


def test_a_candidate_that_computes_the_same_agrees(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        live, same = adder_slot(state.slots, 10.0), adder_slot(state.slots, 10.0, version=2)
        state.supervisor.ensure(MODULE, *live)
        state.supervisor.prove(MODULE, *same, Policy(trial=TRIAL))
        state.supervisor.begin_trial(MODULE, TRIAL)
        _asked_until_compared(state, 5)
        found = state.supervisor.trial(MODULE)
        assert (found.top1_ppm, found.distance_ppm, found.failed) == (PPM, 0, 0)
        assert found.latency_permille > 0
        state.supervisor.activate(MODULE, same[0])
        with state.client() as client:
            assert client.infer("digits", [X]).manifest == same[0]


def test_a_candidate_that_computes_otherwise_is_found_out_and_answers_nobody(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        live, other = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        state.supervisor.ensure(MODULE, *live)
        state.supervisor.prove(MODULE, *other)
        state.supervisor.begin_trial(MODULE, TRIAL)
        hammers, threads, is_stopped = start_hammers(state)
        try:
            _compared(state, 20)
        finally:
            is_stopped.set()
            for thread in threads:
                thread.join(60)
        found = state.supervisor.trial(MODULE)
        # Zeros go in, 10 and 20 come out: apart by as much as the live outputs are large.
        assert found.distance_ppm == PPM
        assert found.objections(Trial(1, distance_ppm_max=PPM // 2))
        state.supervisor.discard(MODULE)
        assert [hammer.error for hammer in hammers] == [""] * len(hammers)
        assert {manifest for hammer in hammers for manifest, _value in hammer.answers} == {str(live[0])}
        _ask(state, 3)  # the live worker has nobody to show its requests to, and goes on


def test_a_candidate_that_dies_on_live_inputs_takes_nothing_with_it(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        live = adder_slot(state.slots, 10.0)
        member = Member("digits", "script", "score.py", (ROW,), (OUT,))
        deadly = write_slot(
            state.slots, (member,), {"score.py": SCRIPT.format(body="import os; os._exit(9)").encode()}, version=2
        )
        state.supervisor.ensure(MODULE, *live)
        # It is warmed up with made-up inputs, which kill it at once: that is no candidate at all.
        with pytest.raises(EdgeError) as caught:
            state.supervisor.prove(MODULE, *deadly)
        assert caught.value.code == "model.worker-crashed"
        _ask(state, 3)


def test_a_candidate_that_fails_on_what_the_live_model_answers(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        live = adder_slot(state.slots, 10.0)
        member = Member("digits", "script", "score.py", (ROW,), (OUT,))
        body = "x = data['x']\n    assert x.max() < 2, 'too large'\n    return {'y': x + 10}"
        picky = write_slot(state.slots, (member,), {"score.py": SCRIPT.format(body=body).encode()}, version=2)
        state.supervisor.ensure(MODULE, *live)
        state.supervisor.prove(MODULE, *picky)
        state.supervisor.begin_trial(MODULE, TRIAL)
        _asked_until_compared(state, 3)
        assert state.supervisor.trial(MODULE).failed >= 3
        assert state.supervisor.trial(MODULE).objections(Trial(1)) != ()
        assert state.supervisor.health(MODULE).failures == 0


def test_processor_time_is_bounded(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        live = adder_slot(state.slots, 10.0)
        member = Member("digits", "script", "score.py", (ROW,), (OUT,))
        body = "x = data['x']\n    sum(range(2_000_000))\n    return {'y': x + 10}"
        greedy = write_slot(state.slots, (member,), {"score.py": SCRIPT.format(body=body).encode()}, version=2)
        state.supervisor.ensure(MODULE, *live)
        state.supervisor.prove(MODULE, *greedy)
        state.supervisor.begin_trial(MODULE, Trial(60_000, cpu_permille_max=1))
        wait_until(lambda: _skips(state), 60, what="predictions to be skipped")
        found = state.supervisor.trial(MODULE)
        assert found.compared < found.skipped + found.compared


def _skips(state: Serving) -> bool:
    _ask(state, 20)
    return state.supervisor.trial(MODULE).skipped > 0


def test_a_trial_needs_both(tmp_path: Path) -> None:
    with serving(tmp_path) as state:
        live, other = adder_slot(state.slots, 10.0), adder_slot(state.slots, 20.0, version=2)
        with pytest.raises(EdgeError, match="needs a live worker"):
            state.supervisor.begin_trial(MODULE, TRIAL)
        state.supervisor.ensure(MODULE, *live)
        with pytest.raises(EdgeError, match="needs a live worker"):
            state.supervisor.begin_trial(MODULE, TRIAL)
        state.supervisor.prove(MODULE, *other)
        assert state.supervisor.trial(MODULE).compared == 0  # it never began
