"""Every scenario row: the chain of commands, the reports, the end; and together they take every row of the table."""

from typing import Any

import pytest

from edge_agent.core import module
from edge_agent.core.record import Record
from edge_agent.core.update import TABLE, Row
from edge_contract.digest import Digest
from edge_contract.phases import Phase
from tests.core import script
from tests.core.bench import GAP_MS, Bench
from tests.core.scenarios import ROWS

ROWS_MIN = 150


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_scenario_goes_as_its_row_says(row: script.Row) -> None:
    bench = script.play(row)
    assert script.chain(bench.sent) == row.chain
    assert script.reports(bench) == row.reports
    found = bench.core.reported_modules()[script.MODULE]
    live = script.version_of(found.live)
    outcome = found.deployment.outcome if found.deployment else None
    assert f"{outcome or '-'} {live}|{script.version_of(found.fallback)}" == row.ends
    assert script.version_of(bench.answering) == live, "what is live answers"
    assert found.serving is (live != 0)
    record = Record.from_json(bench.core.snapshot()).modules[script.MODULE]
    assert sorted(map(script.version_of, record.quarantined)) == list(row.quarantined)
    sound = bench.core.reported_modules().get("sound")
    assert (script.told(sound) if sound else "") == row.sound


def test_scenarios_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= ROWS_MIN


def test_the_scenarios_take_every_row_of_the_table_and_end_in_every_phase_it_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: set[tuple[Phase, type]] = set()

    class Recorder(dict[tuple[Phase, type], Row]):
        def get(self, key: Any, default: Any = None) -> Any:
            if key in self:
                taken.add(key)
            return super().get(key, default)

    monkeypatch.setattr(module, "TABLE", Recorder(TABLE))
    for row in ROWS:
        script.play(row)
    missed = [f"{phase} {event.__name__}" for phase, event in TABLE if (phase, event) not in taken]
    assert not missed, f"no scenario takes {missed}"
    assert len(taken) == len(TABLE)


def test_the_gap_of_an_activation_is_reported_only_where_there_was_one() -> None:
    for name, gap_ms in (
        ("a second one leaves a fallback", 0),
        ("memory for one worker: the live one stops first, and the gap is told", GAP_MS),
    ):
        (row,) = [row for row in ROWS if row.name == name]
        assert script.play(row).module["gap_ms"] == gap_ms


def test_a_refused_module_says_why() -> None:
    (row,) = [row for row in ROWS if row.name == "a refused module keeps what it has, the other goes on"]
    assert script.play(row).module["refused"]["error"]["code"] == "trust.release-rollback"


def _answering(bench: Bench) -> list[Digest | None]:
    return [modules[script.MODULE].answering for modules in bench.reports]


def test_without_a_proof_nobody_claims_to_know_what_answers() -> None:
    (row,) = [row for row in ROWS if row.name == "a live bundle that cannot prove itself is not said to answer"]
    answering = _answering(script.play(row))
    assert None in answering
    assert answering[-1] is not None
