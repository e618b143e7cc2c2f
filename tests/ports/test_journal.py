"""`ports.Journal`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.ports import Journal
from edge_agent.store.journal import FileJournal
from tests.unit.shell.fakes import FakeJournal

IMPLEMENTATIONS: dict[str, Callable[[Path], Journal]] = {
    "file": lambda folder: FileJournal(folder / "journal.json"),
    "fake": lambda _: FakeJournal(),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return IMPLEMENTATIONS[request.param](tmp_path)


def test_a_new_device_has_no_record(journal: Journal) -> None:
    assert journal.load() is None


def test_the_newest_record_is_read_back(journal: Journal) -> None:
    for number in range(5):
        record = {"n": number, "ratio": 0.1 * number, "text": "Größe ✓", "nested": {"a": [1, None, True]}}
        journal.save(record)
        assert journal.load() == record


def test_reading_changes_nothing(journal: Journal) -> None:
    journal.save({"n": 1})
    assert journal.load() == journal.load() == {"n": 1}
