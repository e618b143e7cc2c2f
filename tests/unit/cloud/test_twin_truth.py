"""docs/twin-truth-table.md says what the code does, for every combination there is."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cloud_registry.core.attention import MEANINGS, attention_of
from cloud_registry.core.progress import Progress, Standing, progress_of
from cloud_registry.core.records import Device, Refusal
from edge_contract.codes import CODES
from edge_contract.digest import Digest
from edge_contract.phases import Outcome, Phase
from edge_contract.twin import Report, ReportedDeployment, ReportedError, ReportedModule

PAGE = Path(__file__).parents[3] / "docs" / "twin-truth-table.md"
WANTED, OTHER = Digest.of(b"wanted"), Digest.of(b"other")
GOLDEN, CHANGED = Digest.of(b"outputs"), Digest.of(b"other outputs")
REPORTED = ReportedError("device.disk-full", "why", Phase.FETCHING, 1)
ANYTHING = "·"

BEFORE = {
    "open": [Standing.PENDING, Standing.IN_PROGRESS, Standing.REFUSED, Standing.ROLLED_BACK],
    "held": [Standing.CONFIRMED, Standing.REVERTED],
}
MODULE = ("absent", "known")
PHASES = {
    "settled": [Phase.IDLE, Phase.FETCHING],
    "swapping": [Phase.ACTIVATING, Phase.PROBATION, Phase.COMMITTING, Phase.ROLLING_BACK],
}
REFUSED = ("yes", "no")
DEPLOYMENT = ("this", "same", "else")
OUTCOME = ("none", *(str(outcome) for outcome in Outcome))
BUNDLE: dict[str, Digest | None] = {"assigned": WANTED, "other": OTHER, "none": None}
CHANGE = ("same", "changed")

Combination = tuple[str, ...]


def table(heading: str) -> list[list[str]]:
    """The rows of the table whose first heading this is."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


TRUTH = table("Before")
COMBINATIONS = list(product(BEFORE, MODULE, PHASES, REFUSED, DEPLOYMENT, OUTCOME, BUNDLE, BUNDLE, CHANGE))


def row_for(combination: Combination) -> int:
    """The first row that fits."""
    for place, row in enumerate(TRUTH):
        if all(said in (ANYTHING, is_so) for said, is_so in zip(row[:9], combination, strict=True)):
            return place
    raise AssertionError(f"no row for {combination}")


def told(combination: Combination, before: Standing, phase: Phase) -> Progress | None:
    """What the code makes of it."""
    _, module, _, refused, deployment, outcome, live, answering, golden = combination
    ended = None if outcome == "none" else Outcome(outcome)
    latest = {
        "this": ReportedDeployment("d1", WANTED, ended, REPORTED),
        "same": ReportedDeployment("d0", WANTED, ended, REPORTED),
        "else": ReportedDeployment("d1", OTHER, ended, REPORTED),
    }[deployment]
    reported = ReportedModule(
        phase,
        live=BUNDLE[live],
        answering=BUNDLE[answering],
        golden=CHANGED if golden == "changed" else GOLDEN,
        deployment=latest,
        refused=ReportedDeployment("d1", WANTED, Outcome.REFUSED, REPORTED) if refused == "yes" else None,
    )
    modules = {"digits": reported} if module == "known" else {}
    report = Report("cam-1", "ab", 1, 0, "linux/arm64", "1", modules=modules)
    return progress_of(report, "digits", "d1", str(WANTED), before, str(GOLDEN))


def test_every_combination_stands_as_the_page_says() -> None:
    wrong = []
    for combination in COMBINATIONS:
        standing, code = TRUTH[row_for(combination)][9:11]
        for before, phase in product(BEFORE[combination[0]], PHASES[combination[2]]):
            got = told(combination, before, phase)
            found = "unchanged" if got is None else str(got.standing)
            expected = {"reported": REPORTED.code, "": None}.get(code, code)
            if found != standing or (got is not None and got.error_code != expected):
                wrong.append((combination, before, phase, got))
    assert not wrong, wrong[:3]


def test_every_row_counts_for_something() -> None:
    assert {row_for(combination) for combination in COMBINATIONS} == set(range(len(TRUTH)))


def test_a_report_about_no_deployment_is_as_one_about_something_else() -> None:
    report = Report("cam-1", "ab", 1, 0, "linux/arm64", "1", modules={"digits": ReportedModule(Phase.IDLE)})
    assert progress_of(report, "digits", "d1", str(WANTED)) is None


def test_rows_name_standings_and_codes_that_exist_and_somebody_who_acts() -> None:
    for row in TRUTH:
        assert row[9] == "unchanged" or Standing(row[9])
        assert row[10] in ("", "reported") or row[10] in CODES
        assert all(row[11:13])


# --- The device as a whole ---

NOW, ONLINE_MS = 1_790_000_000_000, 180_000


def report_json(**changes: Any) -> dict[str, Any]:
    module = {"held": False, "live": str(WANTED), "serving": True}
    module |= {key: changes.pop(key) for key in list(changes) if key in module}
    return {"director_version": 3, "clock_trusted": True, "modules": {"digits": module}} | changes


HEALTHY = Device(
    name="cam-1",
    tags={},
    platform="linux/arm64",
    hardware_id="",
    enrolled_ms=0,
    identity="cam-1.000000000000",
    keyid="00",
    certificate_until_ms=NOW + 1,
    revoked_ms=None,
    refusal=None,
    desired={},
    report=report_json(),
    report_received_ms=NOW - ONLINE_MS,
)
CASES: dict[str, Device] = {
    "revoked": replace(HEALTHY, revoked_ms=NOW - 5),
    "certificate-ended": replace(HEALTHY, certificate_until_ms=NOW),
    "never-reported": replace(HEALTHY, report=None, report_received_ms=None),
    "silent": replace(HEALTHY, report_received_ms=NOW - ONLINE_MS - 1),
    "report-refused": replace(HEALTHY, refusal=Refusal("trust.report-unsigned", "no key", NOW - ONLINE_MS, 2)),
    "clock-untrusted": replace(HEALTHY, report=report_json(clock_trusted=False)),
    "behind": replace(HEALTHY, report=report_json(director_version=2)),
    "held": replace(HEALTHY, report=report_json(held=True)),
    "not-serving": replace(HEALTHY, report=report_json(serving=False)),
}


def test_the_page_lists_what_the_code_can_say_of_a_device() -> None:
    rows = {row[0]: (row[3], row[2]) for row in table("Attention")}
    assert rows == {what: (str(who), meaning) for what, (who, meaning) in MEANINGS.items()}
    assert list(rows) == list(MEANINGS) == list(CASES)


@pytest.mark.parametrize("what", CASES)
def test_what_is_the_matter_with_a_device_is_said(what: str) -> None:
    (item,) = attention_of(CASES[what], NOW, ONLINE_MS, director_version=3)
    assert (item.what, item.who) == (what, MEANINGS[what][0])


def test_a_device_that_is_well_needs_nobody() -> None:
    assert attention_of(HEALTHY, NOW, ONLINE_MS, director_version=3) == ()
    stale = replace(HEALTHY, refusal=Refusal("trust.report-replayed", "again", NOW - ONLINE_MS - 1, 1))
    assert attention_of(stale, NOW, ONLINE_MS) == (), "a genuine report came since"
