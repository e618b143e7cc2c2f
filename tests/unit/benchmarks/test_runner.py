"""The runner finds benchmarks by their shape, passes options, and prints figures with their circumstances."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import benchmarks
from benchmarks.__main__ import find, main

GOOD = """
SUMMARY = "counts"
OPTIONS = {"upto": "3"}

def run(options):
    return {"sum": sum(range(int(options["upto"]) + 1))}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of benchmarks with one benchmark and one helper."""
    (tmp_path / "counting_for_test.py").write_text(GOOD, encoding="utf-8")
    (tmp_path / "helper_for_test.py").write_text("LIMIT = 3\n", encoding="utf-8")
    monkeypatch.setattr(benchmarks, "__path__", [str(tmp_path)])
    return tmp_path


def test_the_list_holds_benchmarks_and_no_helpers(folder: Path) -> None:
    listed = json.loads(CliRunner().invoke(main, ["--json"], catch_exceptions=False).output)
    assert listed == [{"name": "counting_for_test", "summary": "counts", "options": {"upto": "3"}}]
    assert find("helper_for_test") is None


def test_a_run_gives_its_figures_and_what_they_were_measured_on(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "results" / "one.json"
    arguments = ["counting_for_test", "--json", "-o", "upto=4", "--output", str(output)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    measured = json.loads(result.output)
    assert result.exit_code == 0
    assert measured["result"] == {"sum": 10}
    assert measured["options"] == {"upto": "4"}
    assert measured["machine"]["cores"] >= 1
    assert json.loads(output.read_text(encoding="utf-8")) == measured


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing"], "there is no benchmark 'nothing'"),
        (["helper_for_test"], "there is no benchmark 'helper_for_test'"),
        (["counting_for_test", "-o", "speed=9"], "has no option 'speed'; it has: upto"),
        (["counting_for_test", "-o", "speed"], "is not NAME=VALUE"),
    ],
)
def test_a_wrong_call_says_what_was_wrong(folder: Path, arguments: list[str], expected: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert expected in result.output
