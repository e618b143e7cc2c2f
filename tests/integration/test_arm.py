"""The device side on emulated ARM systems. Takes minutes and downloads packages, so only where it is asked for."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.processes import child_process
from tests.support.require import REPOSITORY_ROOT, require_root

_VARIABLE = "LIGHTERMAN_TRY_ARM"
_TRIAL_S = 840.0
_STOP_S = 90.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.timeout(960),
    pytest.mark.skipif(
        os.environ.get(_VARIABLE, "") in ("", "0"),
        reason=f"emulates ARM systems for minutes and downloads their packages; {_VARIABLE}=1 asks for it",
    ),
]


@pytest.mark.parametrize(
    ("profile", "machine", "platform", "runtime"),
    [
        ("arm64", "aarch64", "linux/arm64", "onnxruntime"),
        ("arm64-litert", "aarch64", "linux/arm64", "ai-edge-litert"),
        ("armhf", "armv7l", "linux/arm/v7", "tflite-runtime"),
    ],
)
def test_a_device_of_another_architecture_takes_models_and_answers(
    profile: str, machine: str, platform: str, runtime: str, tmp_path: Path
) -> None:
    require_root("a root file system of another architecture")
    script = REPOSITORY_ROOT / "scripts" / "try-on-arm.sh"
    environment = {**os.environ, "VENV": sys.prefix, "TMPDIR": str(tmp_path)}
    log = tmp_path / "log"
    with child_process([script, profile], log_path=log, env=environment, stop_deadline_s=_STOP_S) as trial:
        code = trial.wait(_TRIAL_S)
        assert code == 0, trial.tail()
        # Progress and the result come out of one pipe here; the result is last and begins a line.
        outcome = json.loads("{" + trial.output().rpartition("\n{\n")[2])
    assert (outcome["machine"], outcome["platform"]) == (machine, platform)
    assert outcome["runtime"].startswith(f"{runtime} ")
    assert outcome["live"]["version"] == 2
    assert outcome["failures_during_swap"] == 0
    assert min(outcome["answers_during_swap"].values()) > 0
    # What it made is gone, root file system and all.
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
