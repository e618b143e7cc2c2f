"""What each step of the loop costs beside the least it could: one sha256 pass and one synced write of the same bytes.

Every step is a whole process, started as a user starts it, so the interpreter's start is in the figures; it is what
small models pay. `register` uploads the model; `push` then mounts those bytes and uploads and signs the rest. Ratios
compare within one round, minutes apart at most, because the machines this runs on are shared.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from device_sim.demo.tools import program
from device_sim.processes import Child, free_port, spawn, wait_until
from edge_contract.digest import Digest

SUMMARY: Final = "MB/s and memory of register, build, push, pull+verify, beside one sha256 pass and one synced write"
OPTIONS: Final = {"sizes_mb": "1,100,1000", "rounds": "5,3,1", "folder": ""}
_MB: Final = 1_000_000
_START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """One process that ended.

    Attributes:
        seconds: Wall time of the whole process.
        peak_mb: Highest resident memory, MB of 1,000,000 bytes.
        document: What it printed.
    """

    seconds: float
    peak_mb: float
    document: dict[str, Any]


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Measure every size.

    Args:
        options: `sizes_mb` and `rounds`, comma-separated and of the same length; `folder` to work below, on the disk to
            measure (the system's temporary folder when empty).

    Returns:
        For each size: medians of seconds, MB/s, ratios to the yardstick, peak memory of each process.
    """
    sizes = [int(text) for text in options["sizes_mb"].split(",")]
    rounds = [int(text) for text in options["rounds"].split(",")]
    with tempfile.TemporaryDirectory(dir=options["folder"] or None, prefix="loop-") as text:
        return {
            "sizes": [_measure(Path(text) / f"{size}", size, count) for size, count in zip(sizes, rounds, strict=True)]
        }


class _Stage:
    """A registry process, keys and one model name, below one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        token_file = folder / "token"
        self.registry = self._start(token_file)
        self.token = token_file.read_text().strip()
        self.environment = {**os.environ, "LIGHTERMAN_URL": self.url, "LIGHTERMAN_TOKEN": self.token}
        self.packager("keys", "init", str(folder / "keys"), "--insecure-no-passphrase")

    def _start(self, token_file: Path) -> Child:
        arguments = ["serve", "--data-dir", str(self.folder / "cloud"), "--port", str(self.port), "--no-collector"]
        argv = [program("cloud-registry"), *arguments, "--admin-token-file", str(token_file)]
        child = spawn("cloud-registry", argv, self.folder / "registry.log")
        wait_until(lambda: "listening on" in child.log.read_text(), _START_S, "the registry", child)
        return child

    def packager(self, *arguments: str) -> Step:
        """Run one packager command."""
        return _process([program("packager"), *arguments, "--json"], self.environment)

    def registry_peak_mb(self) -> float:
        """Highest resident memory of the registry since `forget_peak`."""
        status = Path(f"/proc/{self.registry.popen.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / _MB

    def forget_peak(self) -> None:
        """Begin a new peak (clear_refs 5, proc(5))."""
        Path(f"/proc/{self.registry.popen.pid}/clear_refs").write_text("5")


def _measure(folder: Path, size_mb: int, count: int) -> dict[str, Any]:
    stage = _Stage(folder)
    try:
        results = [_round(stage, size_mb, number) for number in range(1, count + 1)]
    finally:
        stage.registry.stop()
    summary: dict[str, Any] = {"model_mb": size_mb, "rounds": count}
    for key in results[0]:
        summary[key] = round(statistics.median(result[key] for result in results), 3)
    return summary


def _round(stage: _Stage, size_mb: int, number: int) -> dict[str, float]:
    """One version through every step, then the yardstick on the same file; leaves nothing but the registry's copy."""
    model, layout, device = (stage.folder / name for name in (f"model-{number}.onnx", "layout", "device"))
    module = [sys.executable, "-m"]
    _process([*module, "benchmarks._model", str(model), str(size_mb * _MB), str(number)], os.environ, is_json=False)
    yard = _process([*module, "benchmarks._disk", str(model), str(stage.folder / "copy")], os.environ).document
    least = yard["sha256_s"] + yard["write_s"]
    register = stage.packager("register", str(model), "--name", "ballast")
    arguments = ("--model", "ballast", "--version", str(number), "--file", str(model), "--out", str(layout))
    build = stage.packager("build", *arguments)
    stage.forget_peak()
    push = stage.packager("push", str(layout), "--keys", str(stage.folder / "keys"))
    push_registry_mb = stage.registry_peak_mb()
    digest = next(iter(push.document["manifests"].values()))  # platforms share every blob but the manifest
    manifest_bytes = (layout / "blobs" / "sha256" / Digest(digest).hex).stat().st_size
    stage.forget_peak()
    wanted = [stage.url, "bundles/ballast", digest, str(manifest_bytes), str(device)]
    pull = _process([*module, "benchmarks._device", *wanted], os.environ, stage.token + "\n")
    pull_registry_mb = stage.registry_peak_mb()
    pull_verify = pull.document["pull_s"] + pull.document["verify_s"]
    _remove(model, layout, device)
    return {
        "yardstick_s": least,
        "register_s": register.seconds,
        "build_s": build.seconds,
        "push_s": push.seconds,
        "pull_verify_s": pull_verify,
        "register_mb_s": size_mb / register.seconds,
        "build_mb_s": size_mb / build.seconds,
        "push_mb_s": size_mb / push.seconds,
        "pull_verify_mb_s": size_mb / pull_verify,
        "register_ratio": register.seconds / least,
        "build_ratio": build.seconds / least,
        "push_ratio": push.seconds / least,
        "pull_verify_ratio": pull_verify / least,
        "register_peak_mb": register.peak_mb,
        "build_peak_mb": build.peak_mb,
        "push_peak_mb": push.peak_mb,
        "push_registry_peak_mb": push_registry_mb,
        "pull_peak_mb": pull.peak_mb,
        "pull_registry_peak_mb": pull_registry_mb,
    }


def _process(argv: Sequence[str], environment: Mapping[str, str], given: str = "", is_json: bool = True) -> Step:
    """Run a process to its end; its wall time and peak memory as the kernel counted them."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as source:
        source.write(given.encode())
        source.seek(0)
        started = time.perf_counter()
        process = subprocess.Popen(argv, stdin=source, stdout=output, stderr=errors, env=dict(environment))
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        text = output.read().decode()
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(argv[:4])} ended with {process.returncode}: {text} {errors.read().decode()}")
    return Step(seconds, usage.ru_maxrss * 1024 / _MB, json.loads(text) if is_json else {})


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
