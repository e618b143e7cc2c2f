"""A fleet on five versions of a model that gets the sixth over slow links: with deltas, and beside it without.

The fleet is simulated devices with the agent's own core, fetcher, store and decoder; registry, director, broker and
packager are the real ones. Every connection of a device to the registry has the speed of a slow link of its own,
through a proxy. docs/benchmarks.md says how to read the figures.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks._shaped import ShapedLink
from benchmarks._verdicts import Figure
from device_sim.demo.plant import Plant
from device_sim.demo.tools import program
from device_sim.demo.view import SilentView
from device_sim.digits import Network, to_onnx
from device_sim.processes import Child, spawn, wait_until

SUMMARY: Final = "a simulated fleet on five versions gets the sixth over slow links, with deltas and without"
OPTIONS: Final = {"devices": "200", "bases": "5", "kbps": "1000", "hidden": "512", "update": "0.005"}
QUICK: Final = {"devices": "10", "kbps": "4000", "hidden": "256"}
_MODEL: Final = "fleet-model"
_WAIT_S: Final = 1_800.0
_UP_S: Final = 300.0


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Measure.

    Args:
        options: `devices` in all, the same number on each of `bases` versions; `kbps` of each device's link; `hidden`
            units of the two hidden layers of the model; `update`, size of a release's change beside the weights.

    Returns:
        `figures`, and for each way the bytes over the links and the seconds until every device confirmed.
    """
    bases, devices = int(options["bases"]), int(options["devices"])
    with tempfile.TemporaryDirectory(prefix="lighterman-fleet-") as name:
        folder = Path(name)
        plant = Plant(folder / "plant", SilentView())
        plant.folder.mkdir()
        try:
            plant.start_broker("auto")
            plant.start_registry()
            plant.tool_quietly("packager", "keys", "init", str(plant.keys))
            sizes = _publish(plant, folder, bases + 1, int(options["hidden"]), float(options["update"]))
            built = plant.tool_quietly(
                "packager", "delta", "build", f"{_MODEL}:{bases + 1}",
                *(word for number in range(1, bases + 1) for word in ("--from", str(number))),
            )  # fmt: skip
            port = int(plant.url.rpartition(":")[2])
            found = {
                way: _one_way(plant, folder / way, way, port, bases, devices // bases, float(options["kbps"]))
                for way in ("deltas", "whole files")
            }
        finally:
            plant.stop()
    ratio = found["deltas"]["link_bytes"] / found["whole files"]["link_bytes"]
    return {
        "figures": [
            Figure(
                "bytes over the links, with deltas beside without", ratio, 0.75, 0.65,
                note="the fleet's own update; metadata, manifests and reports of both are in it",
            ).to_json()
        ],
        "devices": devices // bases * bases,
        "bases": bases,
        "link_kbps": float(options["kbps"]),
        "model_bytes": sizes[-1],
        "delta_bytes": [item["bytes"] for item in built["deltas"]],
        "ways": found,
    }  # fmt: skip


def _publish(plant: Plant, folder: Path, count: int, hidden: int, update: float) -> list[int]:
    """Register, build and push versions, each a little further from the one before; their lengths."""
    random = np.random.default_rng(7)
    shapes = [(64, hidden), (hidden, hidden), (hidden, 10)]
    weights = [random.standard_normal(shape) * (2 / shape[0]) ** 0.5 for shape in shapes]
    biases = [np.zeros(shape[1]) for shape in shapes]
    sizes = []
    for _ in range(count):
        network = Network(
            tuple(item.astype(np.float32) for item in weights), tuple(item.astype(np.float32) for item in biases)
        )
        path = folder / "model.onnx"
        path.write_bytes(to_onnx(network, _MODEL))
        sizes.append(path.stat().st_size)
        plant.tool_quietly("packager", "ship", str(path), "--name", _MODEL, "--probation-ms", "0")
        weights = [item + random.standard_normal(item.shape) * item.std() * update for item in weights]
    return sizes


def _one_way(plant: Plant, folder: Path, way: str, port: int, bases: int, each: int, kbps: float) -> dict[str, Any]:
    """Bring a fleet of its own to its versions, then to the last one; what that took."""
    tag = way.replace(" ", "-")
    fleets: list[Child] = []
    with ShapedLink(port, kbps) as link:
        try:
            for number in range(1, bases + 1):
                fleets.append(_start(plant, folder, f"http://127.0.0.1:{link.port}", tag, number, each))
            _wait_devices(plant, tag, bases * each)
            for number in range(1, bases + 1):
                condition = f"tags.way = '{tag}' AND tags.base = '{number}'"
                _deploy(plant, number, condition, 1)
            before, started = link.passed, time.monotonic()
            forecast = plant.tool_quietly(
                "packager", "deploy", f"{_MODEL}:{bases + 1}", "--condition", f"tags.way = '{tag}'", "--dry-run",
                "--link-kbps", f"{kbps:g}",
            )  # fmt: skip
            _deploy(plant, bases + 1, f"tags.way = '{tag}'", 2)
            seconds, passed = time.monotonic() - started, link.passed - before
        finally:
            for fleet in fleets:
                fleet.stop()
    return {
        "link_bytes": passed,
        "seconds_to_the_last_device": round(seconds, 1),
        "forecast_bytes": forecast["bytes"],
        "forecast_bytes_without_deltas": forecast["bytes_full"],
    }


def _start(plant: Plant, folder: Path, url: str, tag: str, base: int, each: int) -> Child:
    data = folder / str(base)
    data.mkdir(parents=True)
    argv = [program("device-sim"), "run", "--devices", str(each), "--seed", str(base), "--prefix", f"{tag}-{base}"]
    argv += ["--tags", f"way={tag}", "--tags", f"base={base}", "--rate", "0", "--data", str(data)]
    argv += [] if tag == "deltas" else ["--no-deltas"]
    environment = plant.environment | {"LIGHTERMAN_URL": url}
    return spawn(f"the fleet on version {base}", argv, folder / f"{base}.log", environment)


def _wait_devices(plant: Plant, tag: str, count: int) -> None:
    with plant.client() as client:
        wait_until(
            lambda: sum(1 for item in client.all_devices(f"tags.way = '{tag}'") if item.get("report")) >= count,
            _UP_S,
            "the fleet",
        )


def _deploy(plant: Plant, version: int, condition: str, priority: int) -> None:
    arguments: Sequence[str] = (
        "deploy", f"{_MODEL}:{version}", "--condition", condition, "--priority", str(priority), "--no-deltas",
        "--probation-ms", "0", "--wait", "--timeout-s", str(_WAIT_S),
    )  # fmt: skip
    plant.tool_quietly("packager", *arguments)
