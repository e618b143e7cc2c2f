"""The story the demonstration tells: train, trust, enrol, ship step by step, ship in one go, refuse what is damaged.

Everything is done by the product's own command lines in processes of their own. What is claimed at the end is measured:
accuracy on the answers that came back over HTTP, outcomes from the devices' own reports, predictions from the lake.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from device_sim import digits
from device_sim.demo.findings import DAMAGED, GOOD_FIRST, GOOD_SECOND, Findings, Shipment, fleet_rows
from device_sim.demo.load import Load, Tally
from device_sim.demo.plant import AGENT, CONDITION, Plant
from device_sim.demo.tools import shown
from device_sim.demo.view import View
from device_sim.processes import wait_until
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.phases import Outcome

MODEL: Final = "digits"
DEVICES_MAX: Final = 500
_ENROL_S_PER_DEVICE: Final = 3.0
_ENROL_S_MIN: Final = 120.0
_SHIP_S: Final = "180"
_LAKE_S: Final = 60.0
_STEADY_REQUESTS: Final = 400
_STEADY_S: Final = 120.0
_POLL_S: Final = 0.5
_SQL: Final = (
    "SELECT version, count(DISTINCT device) AS devices, count(*) AS predictions, "
    "round(avg(latency_us), 0) AS latency_us FROM predictions GROUP BY version ORDER BY version"
)
_SQL_REPEATS: Final = (
    "SELECT count(*) AS records, count(*) - count(DISTINCT (device, boot, seq)) AS repeated FROM telemetry"
)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to show.

    Attributes:
        devices: Simulated devices, `1..DEVICES_MAX`.
        seed: Draws the fleet's traffic.
        broker: `auto`, `mosquitto` or `embedded`.
        is_kept: Leave everything running when the story is told, until interrupted, and keep the folder.
        folder: Where everything is put; a temporary folder when none.
    """

    devices: int = 20
    seed: int = 1
    broker: str = "auto"
    is_kept: bool = False
    folder: Path | None = None


@dataclass(slots=True)
class _Model:
    """A trained model and its files."""

    network: digits.Network
    accuracy: float
    path: Path
    golden: Path


@dataclass(slots=True)
class _Watch:
    """What the moving line shows; written by one thread at a time, read by the screen's."""

    what: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    tally: Callable[[], Tally] | None = None

    def line(self) -> str:
        """One line of what happens now."""
        parts = [self.what]
        if self.counts:
            standings = [f"{count} {name.replace('_', ' ')}" for name, count in sorted(self.counts.items()) if count]
            parts.append(", ".join(standings))
        if self.tally is not None:
            tally = self.tally()
            parts.append(f"{tally.served:,} requests answered, {tally.failed} failed")
        return " · ".join(part for part in parts if part)


def run_demo(options: DemoOptions, view: View, wait_for_end: Callable[[JsonObject], None]) -> JsonObject:
    """Tell the story.

    Args:
        options: What to show.
        view: Who watches.
        wait_for_end: Called with the document when everything is to be left running; returns when it is to end.

    Returns:
        The document of `--json`; its `ok` tells whether every promise was kept.

    Raises:
        EdgeError: When the story cannot be told at all.
    """
    if not 1 <= options.devices <= DEVICES_MAX:
        raise EdgeError("config.invalid", f"{options.devices} devices: the demonstration takes 1 to {DEVICES_MAX}")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="lighterman-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    plant = Plant(folder, view)
    try:
        document = _Story(options, view, plant).tell()
        if options.is_kept:
            _show_how_to_go_on(view, plant)
            wait_for_end(document)
        return document
    finally:
        plant.stop()
        if not options.is_kept and options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


class _Story:
    """One telling. Used by one thread, beside those of the load and the watch."""

    def __init__(self, options: DemoOptions, view: View, plant: Plant) -> None:
        self._options = options
        self._view = view
        self._plant = plant
        self._found = Findings(devices=options.devices + 1)
        self._watch = _Watch()
        self._load: Load | None = None

    def tell(self) -> JsonObject:
        """Do everything, judge it, and give the document."""
        began = time.monotonic()
        with self._view.moving(self._watch.line):
            try:
                data, models = self._train()
                self._start(data)
                self._ship_step_by_step(models[GOOD_FIRST], data)
                self._ship_at_once(models[GOOD_SECOND])
                self._ship_damaged(models[DAMAGED])
                self._look_at_the_lake()
            finally:
                if self._load is not None:
                    self._load.stop()
                    self._found.tally = self._load.tally
        self._found.ended_early = self._plant.ended_early()
        self._found.seconds = time.monotonic() - began
        self._conclude()
        return self._found.to_json()

    # -- chapters --------------------------------------------------------------------------------------------------

    def _train(self) -> tuple[digits.Digits, dict[int, _Model]]:
        self._view.chapter("Train two models on real handwritten digits, and damage a third")
        self._watch.what = "training"
        data = digits.load()
        linear, mlp = digits.train_linear(data), digits.train_mlp(data)
        # The damaged model comes with the golden vectors of the good one, as a bad export would.
        models = {
            GOOD_FIRST: self._write(GOOD_FIRST, linear, linear, data),
            GOOD_SECOND: self._write(GOOD_SECOND, mlp, mlp, data),
            DAMAGED: self._write(DAMAGED, digits.damaged(mlp), mlp, data),
        }
        names = {
            GOOD_FIRST: "softmax regression",
            GOOD_SECOND: "two hidden layers",
            DAMAGED: "the same, weights damaged",
        }
        for number, model in models.items():
            size = model.path.stat().st_size
            right = f"{model.accuracy:.1%} of {len(data.test_labels)} held-out images right"
            self._view.tell(f"{model.path.name}: {names[number]}, {size:,} bytes of ONNX, {right}")
        return data, models

    def _write(self, number: int, network: digits.Network, judge: digits.Network, data: digits.Digits) -> _Model:
        path = self._plant.folder / f"digits-{number}.onnx"
        golden = self._plant.folder / f"golden-{number}.npz"
        path.write_bytes(digits.to_onnx(network, MODEL))
        digits.write_golden(golden, judge, data, MODEL)
        return _Model(network, network.accuracy(data.test_images, data.test_labels), path, golden)

    def _start(self, data: digits.Digits) -> None:
        del data
        plant, found, view = self._plant, self._found, self._view
        view.chapter(f"Start a broker, a registry, one real device and {self._options.devices} simulated ones")
        self._watch.what = "starting the broker"
        plant.start_broker(self._options.broker)
        how = "TLS, client certificates, rights by device" if plant.is_tls else "on 127.0.0.1, without TLS"
        found.broker, found.is_tls = plant.broker_kind, plant.is_tls
        view.tell(f"MQTT broker: {plant.broker_kind}, {how}")
        self._watch.what = "starting the registry"
        plant.start_registry()
        found.url = plant.url
        view.tell(f"registry: {plant.url}; from here on LIGHTERMAN_URL, _TOKEN and _KEYS are set in the environment")
        self._watch.what = "making keys and setting up trust"
        plant.tool("packager", "keys", "init", str(plant.keys))
        self._watch.what = "enrolling the device"
        plant.start_agent()
        self._watch.what = f"enrolling {self._options.devices} simulated devices"
        plant.start_fleet(self._options.devices, self._options.seed)
        deadline_s = max(_ENROL_S_MIN, self._options.devices * _ENROL_S_PER_DEVICE)
        with plant.client() as client:

            def all_report() -> bool:
                known = list(client.all_devices(CONDITION))
                reporting = sum(device["report"] is not None for device in known)
                self._watch.counts = {"enrolled": len(known), "reporting": reporting}
                return reporting == found.devices

            wait_until(all_report, deadline_s, "reports of all devices", poll_s=_POLL_S)
        self._watch.counts = {}
        view.tell(f"{found.devices} devices enrolled and reporting")

    def _ship_step_by_step(self, model: _Model, data: digits.Digits) -> None:
        plant = self._plant
        self._view.chapter("Ship version 1, each step by itself")
        self._watch.what = "shipping version 1"
        accuracy = f"accuracy={model.accuracy:.4f}"
        plant.tool("packager", "register", str(model.path), "--name", MODEL, "--property", accuracy)
        bundle = str(plant.folder / "bundle-1")
        build = ["--model", MODEL, "--version", "1", "--file", str(model.path), "--golden", str(model.golden)]
        plant.tool("packager", "build", *build, "--out", bundle)
        pushed = plant.tool("packager", "push", bundle).document
        for platform, digest in pushed["manifests"].items():
            self._view.tell(f"signed {platform}: {digest}")
        began = time.monotonic()
        ship = ["deploy", f"{MODEL}:1", "--condition", CONDITION, "--wait", "--timeout-s", _SHIP_S]
        outcome = self._watched(GOOD_FIRST, lambda: plant.tool("packager", *ship, may_deny=True).document["wait"])
        self._shipped(GOOD_FIRST, model, began, outcome)
        self._start_load(data)

    def _start_load(self, data: digits.Digits) -> None:
        status = self._plant.agent_status()
        module = (status or {}).get("modules", {}).get(MODEL, {})
        if not module.get("tcp") or not module.get("unix"):
            raise EdgeError("model.not-serving", f"{AGENT} does not say where it answers", f"See {self._plant.folder}.")
        host, _, port = module["tcp"].rpartition(":")
        self._load = load = Load(MODEL, (host, int(port)), Path(module["unix"]), data)
        self._watch.tally = lambda: load.tally
        self._view.tell(f"{AGENT} answers on {module['tcp']} and on its unix socket; two clients ask it from now on")
        self._ask_once(data)
        load.start()
        self._steady(GOOD_FIRST)

    def _ask_once(self, data: digits.Digits) -> None:
        """One prediction as a user on the device would get it."""
        pixels = json.dumps([data.test_images[0].tolist()])
        answer = self._plant.infer(MODEL, pixels)
        scores = answer["outputs"][digits.OUTPUT.name]["data"]
        scores = scores[0] if isinstance(scores[0], list) else scores
        best = scores.index(max(scores))
        self._view.tell(f"an image of a {data.test_labels[0]}: {answer['model']}:{answer['version']} sees a {best}")

    def _ship_at_once(self, model: _Model) -> None:
        self._view.chapter("Ship version 2 with one command, while the clients go on asking")
        self._ship(GOOD_SECOND, model, [])
        self._steady(GOOD_SECOND)
        tally = self._load.tally if self._load else Tally()
        before, after = tally.by_version.get(GOOD_FIRST), tally.by_version.get(GOOD_SECOND)
        if before and after:
            self._view.tell(
                f"answers of {AGENT}: {before.accuracy:.1%} right by version 1 ({before.requests:,}), "
                f"{after.accuracy:.1%} by version 2 ({after.requests:,}); {tally.failed} failed; "
                f"never more than {tally.silence_ms:.0f} ms between two answers"
            )

    def _ship_damaged(self, model: _Model) -> None:
        self._view.chapter("Ship a damaged version 3: the devices have to find out by themselves")
        # Its author does not run it before shipping; the packager would refuse it otherwise.
        self._ship(DAMAGED, model, ["--trust-golden"])
        with self._plant.client() as client:
            detail = next((row["detail"] for row in fleet_rows([client.device(AGENT)], MODEL) if row["detail"]), "")
        self._view.tell(f"{AGENT} says: {detail}")

    def _ship(self, number: int, model: _Model, more: Sequence[str]) -> None:
        self._watch.what = f"shipping version {number}"
        arguments = ["ship", str(model.path), "--name", MODEL, "--golden", str(model.golden), *more]
        arguments += ["--condition", CONDITION, "--wait", "--timeout-s", _SHIP_S]
        began = time.monotonic()
        tool = self._plant.tool
        outcome = self._watched(number, lambda: tool("packager", *arguments, may_deny=True).document["wait"])
        self._shipped(number, model, began, outcome)

    def _shipped(self, number: int, model: _Model, began: float, outcome: JsonObject) -> None:
        seconds = time.monotonic() - began
        failed = outcome["failed"]
        # A device without an outcome counts under its phase, so that nobody is missing from the sum.
        others = Counter(str(item["outcome"] or "without an outcome") for item in failed)
        confirmed = int(outcome["counts"].get(str(Outcome.CONFIRMED), 0))
        outcomes = {**({str(Outcome.CONFIRMED): confirmed} if confirmed else {}), **others}
        codes = Counter(str(item["error"]["code"]) for item in failed if item["error"])
        self._found.shipments[number] = Shipment(number, seconds, outcomes, dict(codes), model.accuracy)
        counts = ", ".join(f"{count} {name}" for name, count in outcomes.items())
        why = "".join(f", {count} of them with {code}" for code, count in codes.items())
        self._view.tell(f"version {number}: {counts}{why}; {seconds:.1f} s to the last device")

    def _look_at_the_lake(self) -> None:
        self._view.chapter("Look at the fleet, and at the predictions that came back")
        self._watch.what = "waiting for the last predictions"
        if self._load is not None:
            self._load.stop()
        found, plant = self._found, self._plant
        self._view.command(shown("cloud-registry", ["query", _SQL]))
        end = time.monotonic() + _LAKE_S
        while True:
            answer = plant.tool_quietly("cloud-registry", "query", _SQL)
            found.predictions = [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]
            collected = {row["version"]: row["devices"] for row in found.predictions}
            if collected.get(GOOD_SECOND) == found.devices or time.monotonic() > end:
                break
            time.sleep(_POLL_S)
        (found.records, found.repeated_records), *_ = plant.tool_quietly("cloud-registry", "query", _SQL_REPEATS)[
            "rows"
        ]
        with plant.client() as client:
            found.fleet = fleet_rows(client.all_devices(CONDITION), MODEL)
        found.bytes_pulled = sum(int(row["bytes_fetched"]) for row in found.fleet)

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _watched(self, number: int, work: Callable[[], JsonObject]) -> JsonObject:
        """Do something while another thread looks how the devices get on with a version."""
        is_done = threading.Event()
        watcher = threading.Thread(target=self._look, args=(number, is_done), name="watch", daemon=True)
        watcher.start()
        try:
            return work()
        finally:
            is_done.set()
            watcher.join()
            self._watch.counts = {}

    def _look(self, number: int, is_done: threading.Event) -> None:
        with self._plant.client() as client:
            while not is_done.wait(_POLL_S):
                # Only for the moving line: a look that fails is followed by the next.
                with suppress(EdgeError):
                    newest = client.deployments(limit=1)["items"]
                    if newest and newest[0]["version"] == number:
                        self._watch.counts = newest[0]["counts"]

    def _steady(self, version: int) -> None:
        """Wait until the clients have seen enough of a version for its accuracy to mean something."""
        load = self._load
        if load is None:
            return
        self._watch.what = f"measuring version {version} under load"

        def has_enough() -> bool:
            answers = load.tally.by_version.get(version)
            return answers is not None and answers.requests >= _STEADY_REQUESTS

        wait_until(has_enough, _STEADY_S, f"answers of version {version}")

    def _conclude(self) -> None:
        found, view = self._found, self._view
        rows = [
            (
                str(row["device"]),
                f"{row['model']}:{row['version']}" if row["live"] else "-",
                str(row["live"] or "-")[7:19],
                str(row["phase"] or "-"),
                f"{row['outcome']} {row['code']}" if row["code"] else str(row["outcome"] or "-"),
                str(row["reported_at"] or "-")[11:19],
            )
            for row in found.fleet
        ]
        view.table("The fleet", ("device", "live", "digest", "phase", "last deployment", "last report"), rows)
        lake = [
            (str(row["version"]), str(row["devices"]), f"{row['predictions']:,}", f"{row['latency_us'] or 0:.0f} µs")
            for row in found.predictions
        ]
        view.table("Predictions in the telemetry lake", ("version", "devices", "predictions", "mean latency"), lake)
        tally = found.tally
        view.chapter("What was promised, and what was seen")
        for promise in found.promises():
            view.promise(promise.text, promise.is_kept, promise.seen)
        for why, count in tally.failures.items():
            view.tell(f"failed {count} times: {why}")
        view.tell(
            f"{tally.served:,} requests served, {tally.failed} failed; {found.bytes_pulled:,} bytes pulled by "
            f"{found.devices} devices; {found.seconds:.0f} s in all"
        )


def _show_how_to_go_on(view: View, plant: Plant) -> None:
    view.chapter("Everything is left running")
    view.tell(f"registry: {plant.url}  (its interface: {plant.url}/openapi.json)")
    view.tell(f"files: {plant.folder}")
    view.command(f"export LIGHTERMAN_URL={plant.url} LIGHTERMAN_TOKEN=$(cat {plant.token_file})")
    view.command("cloud-registry devices list")
    view.command(f"edge-agent status --data {plant.agent_data}")
    view.tell("Ctrl-C ends it; the files stay")
