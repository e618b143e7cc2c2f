"""The benchmarks of serving run from end to end, in their smallest form, and lose nothing on the way."""

from __future__ import annotations

import pytest

from benchmarks import serving, swap
from tests.support.require import require_program

pytestmark = pytest.mark.slow


def test_a_swap_and_both_kinds_of_crash_lose_no_request() -> None:
    require_program("cc")
    found = swap.run({**swap.OPTIONS, **swap.QUICK})
    values = {figure["figure"]: figure["value"] for figure in found["figures"]}
    counts = [value for name, value in values.items() if "lost" in name or "refused" in name or "old answer" in name]
    assert len(counts) >= 6
    assert set(counts) == {0}
    assert all(figure["verdict"] != "not measured" for figure in found["figures"])
    assert all(one["adopted"] == one["kills"] for one in found["agent_killed"].values())


def test_serving_is_measured_beside_the_limit_and_the_echo() -> None:
    require_program("cc")
    found = serving.run({**serving.OPTIONS, **serving.QUICK})
    measured = [figure for figure in found["figures"] if figure["verdict"] != "not measured"]
    assert all(figure["value"] >= 0 for figure in measured)
    missing = [figure["figure"] for figure in found["figures"] if figure["verdict"] == "not measured"]
    assert missing, "a smoke test starts no peers"
    assert all("faster than" in name or "over FastAPI" in name for name in missing)
    assert found["p50_us"]["ours frames tiny"]["median"] > found["p50_us"]["limit tiny"]["median"] > 0
