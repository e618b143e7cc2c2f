"""Runs a user's evaluation of a model in a process of its own: `python -m packager.delta.evaluating SCRIPT MODEL`.

The script defines `evaluate(path)`, which gives a number or numbers by name; larger is better, but for names that begin
with `-`. A process of its own, because a script is anybody's code and a model may crash the runtime.
"""

import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edge_contract.errors import EdgeError
from packager.limits import EVALUATION_S_MAX

_MARK: Final = "lighterman-evaluation "
_NAMES_MAX: Final = 16
_SECRETS: Final = frozenset({"LIGHTERMAN_TOKEN", "LIGHTERMAN_KEY_PASSPHRASE", "LIGHTERMAN_KEY_PIN"})


def evaluate(script: Path, model: Path, seconds_max: float = EVALUATION_S_MAX) -> dict[str, float]:
    """What a script says of a model.

    Args:
        script: Defines `evaluate`.
        model: The model file.
        seconds_max: How long it may take.

    Returns:
        Finite numbers by name; `metric` for a script that gives one alone.

    Raises:
        EdgeError: `config.file-missing`, `model.evaluation-failed`.
    """
    if not script.is_file():
        raise EdgeError("config.file-missing", f"there is no evaluation script {script}")
    environment = {key: value for key, value in os.environ.items() if key not in _SECRETS}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "packager.delta.evaluating", str(script.absolute()), str(model.absolute())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            cwd=script.absolute().parent,
            timeout=seconds_max,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EdgeError(
            "model.evaluation-failed", f"{script} took longer than {seconds_max:g} s with {model}"
        ) from None
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
        raise EdgeError(
            "model.evaluation-failed",
            f"{script} could not evaluate {model.name}: {said}",
            "It has to define evaluate(path), which gives a number, or a dictionary of numbers.",
        )
    return _numbers(json.loads(lines[-1].removeprefix(_MARK)), script)


def _numbers(said: object, script: Path) -> dict[str, float]:
    found = said if isinstance(said, dict) else {"metric": said}
    numbers = {
        str(name): float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    if not numbers or len(numbers) != len(found) or len(numbers) > _NAMES_MAX:
        raise EdgeError(
            "model.evaluation-failed",
            f"{script} gives something else than 1 to {_NAMES_MAX} finite numbers: {str(said)[:200]}",
        )
    return numbers


def failures(before: Mapping[str, float], after: Mapping[str, float], drop_max: float) -> list[str]:
    """Which metrics fell by more than they may; larger is better, but for names that begin with `-`. Pure."""
    found = []
    for name, value in before.items():
        if name not in after:
            found.append(f"{name} is missing")
            continue
        drop = after[name] - value if name.startswith("-") else value - after[name]
        if drop > drop_max:
            found.append(f"{name} went from {value:g} to {after[name]:g}")
    return found


def main() -> None:
    """Run a script on a model and print what it gives."""
    script, model = sys.argv[1:3]
    sys.path.insert(0, str(Path(script).parent))
    result = runpy.run_path(script)["evaluate"](model)
    plain = {str(name): _plain(value) for name, value in result.items()} if isinstance(result, dict) else _plain(result)
    sys.stdout.write(f"\n{_MARK}{json.dumps(plain)}\n")


def _plain(value: object) -> object:
    """A number of numpy or another library as one of Python."""
    return value.item() if hasattr(value, "item") else value


if __name__ == "__main__":
    main()
