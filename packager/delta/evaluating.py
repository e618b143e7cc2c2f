"""Runs a user's evaluation of a model in a process of its own: `python -m packager.delta.evaluating SCRIPT MODEL`.

The script defines `evaluate(path)`, which gives a number or numbers by name; larger is better, but for names that begin
with `-`. A process of its own, because a script is anybody's code and a model may crash the runtime; a session of its
own, because a script may start others, which end with it.
"""

import contextlib
import json
import math
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final

from edge_contract.errors import EdgeError
from packager.delta.leash import follow_input
from packager.limits import EVALUATION_S_MAX

_MARK: Final = "lighterman-evaluation "
_NAMES_MAX: Final = 16
_SAID_BYTES_MAX: Final = 1024 * 1024
"""Read of the end of what a script prints: what it gives comes last."""
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
    # Files, because a process that the script left behind would hold a pipe open.
    with TemporaryFile() as said_file, TemporaryFile() as complained_file:
        try:
            with _running(script.absolute(), model.absolute(), said_file, complained_file) as process:
                code = process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            raise EdgeError(
                "model.evaluation-failed", f"{script} took longer than {seconds_max:g} s with {model}"
            ) from None
        answer, complaint = (_end_of(file) for file in (said_file, complained_file))
    lines = [line for line in answer.splitlines() if line.startswith(_MARK)]
    if code or not lines:
        said = (complaint.strip().splitlines() or [f"exit code {code}"])[-1][:300]
        raise EdgeError(
            "model.evaluation-failed",
            f"{script} could not evaluate {model.name}: {said}",
            "It has to define evaluate(path), which gives a number, or a dictionary of numbers.",
        )
    return _numbers(json.loads(lines[-1].removeprefix(_MARK)), script)


@contextlib.contextmanager
def _running(script: Path, model: Path, said: IO[bytes], complained: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process; when the block ends, so does it, and so does everything that it started."""
    process = subprocess.Popen(
        # Not the script's folder before all others, which may hold a file of any name.
        [sys.executable, "-P", "-m", "packager.delta.evaluating", str(script), str(model)],
        stdin=subprocess.PIPE,
        stdout=said,
        stderr=complained,
        env={key: value for key, value in os.environ.items() if key not in _SECRETS},
        cwd=script.parent,
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()


def _end_of(file: IO[bytes]) -> str:
    file.seek(max(0, os.fstat(file.fileno()).st_size - _SAID_BYTES_MAX))
    return file.read(_SAID_BYTES_MAX).decode(errors="replace")


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
    follow_input(ends_group=True)
    sys.path.insert(0, str(Path(script).parent))
    result = runpy.run_path(script)["evaluate"](model)
    plain = {str(name): _plain(value) for name, value in result.items()} if isinstance(result, dict) else _plain(result)
    sys.stdout.write(f"\n{_MARK}{json.dumps(plain)}\n")


def _plain(value: object) -> object:
    """A number of numpy or another library as one of Python."""
    return value.item() if hasattr(value, "item") else value


if __name__ == "__main__":
    main()
