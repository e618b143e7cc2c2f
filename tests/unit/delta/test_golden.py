"""Deltas made once make the same bytes by this version, and by numpy 1.26; scripts/try-on-arm.sh asks ARM."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.environments import require_environment
from tests.support.require import REPOSITORY_ROOT
from tests.unit.delta.golden_decode import check

GOLDEN = Path(__file__).with_name("golden")
LOCK = REPOSITORY_ROOT / "tests" / "support" / "numpy_one.lock"


def test_deltas_of_earlier_versions_are_decoded() -> None:
    assert len(check(GOLDEN)) == len(list(GOLDEN.glob("*.base"))) == 11


@pytest.mark.slow
@pytest.mark.system
def test_numpy_1_makes_the_same_bytes() -> None:
    python = require_environment(".venv-numpy-one", LOCK, "numpy 1.26")
    done = subprocess.run(
        [str(python), str(GOLDEN.with_name("golden_decode.py")), str(GOLDEN)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY_ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["numpy"].startswith("1.26.")
    assert facts["decoded"] == 11
