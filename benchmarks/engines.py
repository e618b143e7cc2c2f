"""What each engine setting costs: CPU of loading, time and CPU of a run, memory; and loading what the device compiled.

Every figure comes from a fresh process, because a runtime gives back neither memory nor what it learned. Settings take
turns within a round, so that a busy neighbour meets all of them alike; figures are medians over the rounds.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edge_contract.digest import Digest
from edge_contract.runtime import RUNTIME_PATH, Member, Runtime

SUMMARY: Final = "engine settings of onnxruntime: load CPU, run time, memory; and reloading from the compiled form"
OPTIONS: Final = {"model": "", "rounds": "5", "runs": "30", "neighbours": "0"}
MEMBER: Final = "model"
_FILE: Final = "model.onnx"

SETTINGS: Final[dict[str, dict[str, str]]] = {
    "default": {},
    "threads 1": {"threads": "1"},
    "threads 2": {"threads": "2"},
    "spinning": {"spinning": "on"},
    "spinning 100 us": {"spinning": "on", "spin_us": "100"},
    "arena off": {"arena": "off"},
    "memory pattern off": {"memory_pattern": "off"},
    "graph extended": {"graph_level": "extended"},
    "graph basic": {"graph_level": "basic"},
    "graph off": {"graph_level": "off"},
}
"""Bundle options by the name of the setting."""


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Measure every setting, and the compiled form.

    Args:
        options: `model`, an ONNX file, or empty for one of MobileNetV2's shape; `rounds`; `runs` of each process;
            `neighbours`, processes that compute without a pause beside it, as on a device with more to do.

    Returns:
        Medians by setting, and what reloading costs over the first load.
    """
    rounds = int(options["rounds"])
    with tempfile.TemporaryDirectory(prefix="lighterman-engines-") as name:
        folder = Path(name)
        model = Path(options["model"]).resolve() if options["model"] else _make_model(folder)
        slots = {setting: _write_slot(folder, model, chosen) for setting, chosen in SETTINGS.items()}
        found: dict[str, list[dict[str, Any]]] = {setting: [] for setting in slots}
        with _neighbours(int(options["neighbours"])):
            for _ in range(rounds):
                for setting, slot in slots.items():
                    found[setting].append(_child([str(slot), options["runs"], ""]))
        return {
            "settings": {setting: _medians(rows) for setting, rows in found.items()},
            "compiled": compiled(slots["default"], folder / "compiled", rounds, options["runs"]),
        }


@contextlib.contextmanager
def _neighbours(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _make_model(folder: Path) -> Path:
    path = folder / _FILE
    subprocess.run([sys.executable, "-m", "benchmarks._mobilenet", str(path)], check=True)
    return path


def _write_slot(folder: Path, model: Path, options: Mapping[str, str]) -> Path:
    runtime = Runtime(MEMBER, 1, (Member(MEMBER, "onnx", _FILE, options=dict(options)),)).to_bytes()
    digest = Digest.of(runtime)
    files = folder / digest.hex / "files"
    (files / RUNTIME_PATH).parent.mkdir(parents=True)
    (files / RUNTIME_PATH).write_bytes(runtime)
    (files / _FILE).symlink_to(model)
    (files.parent / "slot.json").write_text(json.dumps({"manifest": str(digest)}), encoding="utf-8")
    return files.parent


def _child(arguments: Sequence[str]) -> dict[str, Any]:
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks._engine_load", *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0] if key != "outputs"}


def compiled(slot: Path, folder: Path, rounds: int, runs: str) -> dict[str, Any]:
    """First load against reload, in pairs of fresh processes; with and without every file being read again."""
    command = [sys.executable, "-m", "edge_agent.worker.compiling"]
    command += ["--slot", str(slot), "--member", MEMBER, "--into", str(folder)]
    _run_compiler(command)
    first, reload, after_boot = [], [], []
    for _ in range(rounds):
        first.append(_child([str(slot), runs, ""]))
        for seen in folder.glob("*/seen.json"):
            seen.unlink()  # as after a boot: every file is compared with its digest
        after_boot.append(_child([str(slot), runs, str(folder)]))
        reload.append(_child([str(slot), runs, str(folder)]))
    ratios = {
        name: round(statistics.median(b["load_cpu_ms"] / a["load_cpu_ms"] for a, b in zip(first, rows, strict=True)), 3)
        for name, rows in (("reload_over_first", reload), ("reload_after_boot_over_first", after_boot))
    }
    same = {row["outputs"] for row in (*first, *reload, *after_boot)}
    return {
        **ratios,
        "is_same_output": len(same) == 1,
        "bytes": sum(path.stat().st_size for path in folder.glob("*/*")),
        "first": _medians(first),
        "reload": _medians(reload),
        "reload_after_boot": _medians(after_boot),
    }


def _run_compiler(command: Sequence[str]) -> None:
    """Compile; the process ends early when its standard input does."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if process.wait() != 0:
            raise RuntimeError(f"compiling ended with {process.returncode}")
