"""Deltas make the same bytes everywhere: made by an earlier version, by numpy 1.26, in other modes of the processor.

scripts/try-on-arm.sh asks ARM.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_delta.elements import BY_NAME, rounded
from tests.support.environments import require_environment
from tests.support.require import REPOSITORY_ROOT, require_program
from tests.unit.delta.golden_decode import check
from tests.unit.delta.pairs import KINDS, FilePair, encoded, one_tensor

GOLDEN = Path(__file__).with_name("golden")
LOCK = REPOSITORY_ROOT / "tests" / "support" / "numpy_one.lock"


def test_deltas_of_earlier_versions_are_decoded() -> None:
    assert len(check(GOLDEN)) == len(list(GOLDEN.glob("*.base"))) == 17


def program(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Decode what lies in a folder, by a process."""
    done = subprocess.run(
        [*command, str(GOLDEN.with_name("golden_decode.py")), str(folder)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY_ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.system
def test_numpy_1_makes_the_same_bytes() -> None:
    python = require_environment(".venv-numpy-one", LOCK, "numpy 1.26")
    done = program([str(python)], GOLDEN)
    facts = json.loads(done.stdout)
    assert facts["numpy"].startswith("1.26.")
    assert facts["decoded"] == 17


FLUSH = """
#include <xmmintrin.h>
__attribute__((constructor)) static void flush(void) { _mm_setcsr(_mm_getcsr() | 0x8040); }
"""
"""What some libraries do to every program that loads them: denormal numbers count as zero, and come out as zero."""
FLUSHED = """
import ctypes, runpy, sys
ctypes.CDLL(sys.argv.pop(1))
import numpy
assert (numpy.full(64, 1e-40, numpy.float32) * numpy.float32(1) == 0).all(), "denormals are not flushed"
from edge_delta.elements import BY_NAME, rounded
edge = 2.0**-126 * (1 + numpy.arange(-64, 65) * 2.0**-30)
sys.stderr.write(" ".join(rounded(BY_NAME[name], edge).tobytes().hex() for name in ("f32", "bf16", "f16")))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def smallest_numbers() -> FilePair:
    """Predictions on both sides of the smallest normal number."""
    random = np.random.default_rng(11)
    base = (2.0**-126 * (1 + 2 * random.random((64, 4096)))).astype(np.float32)
    # A row's scale brings some of its numbers to just below the smallest normal one.
    new = (base.astype(np.float64) / (1 + np.arange(64).reshape(-1, 1) / 32)).astype(np.float32)
    return one_tensor("f32", base, new)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets a mode of x86 processors")
def test_flushing_denormals_changes_nothing(tmp_path: Path) -> None:
    library = tmp_path / "flush.so"
    source = tmp_path / "flush.c"
    source.write_text(FLUSH, encoding="ascii")
    subprocess.run([require_program("cc"), "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    digests = {}
    makers = {**KINDS, "smallest": smallest_numbers}
    for name, make in makers.items():
        pair = make()
        delta, _ = encoded(pair, tmp_path)
        (tmp_path / f"{name}.base").write_bytes(pair.base)
        (tmp_path / f"{name}.lmd1").write_bytes(delta)
        digests[name] = {"bytes": len(pair.new), "sha256": hashlib.sha256(pair.new).hexdigest()}
    (tmp_path / "digests.json").write_text(json.dumps(digests), encoding="ascii")
    done = program([sys.executable, "-c", FLUSHED, str(library)], tmp_path)
    assert json.loads(done.stdout)["decoded"] == len(digests)
    edge = 2.0**-126 * (1 + np.arange(-64, 65) * 2.0**-30)  # which side of it a number comes to lie on
    assert done.stderr == " ".join(rounded(BY_NAME[name], edge).tobytes().hex() for name in ("f32", "bf16", "f16"))
