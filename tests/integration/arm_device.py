"""Tries the device side inside a foreign root file system, against a registry and a broker of this machine.

`scripts/try-on-arm.sh` makes the root file system and runs this as `python -m tests.integration.arm_device`; one JSON
object comes out. The system inside shares this machine's loopback, nothing else of its network.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from device_sim.demo.plant import Plant
from device_sim.demo.tools import Ran
from device_sim.demo.view import SilentView
from edge_agent.inference import InferenceClient, Tensor
from edge_contract.errors import EdgeError
from tests.support.net import wait_until
from tests.support.processes import Child, child_process
from tests.support.slots import adder
from tests.unit.worker.tiny_models import tflite_adder

_DEVICE = "bench-01"
_MODULE = "adder"
_CONDITION = "tags.site = 'bench'"
_CONSTANTS = {1: 10.0, 2: 20.0}
_INPUT = [1.0, 2.0, 3.0, 4.0]
# An emulated processor takes seconds for what a real one does in a tenth.
_TOOL_S = 120.0
_START_S = 120.0
_TELEMETRY_S = 60.0
_STOP_S = 60.0
_LOAD_PAUSE_S = 0.02
_LOG_TAIL_CHARS = 4_000

_FACTS = """
import importlib.metadata, json, platform, sys
from edge_agent.platforms import detect_platform
versions = {}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({
    "machine": platform.machine(), "platform": detect_platform(), "python": platform.python_version(),
    "system": platform.freedesktop_os_release()["PRETTY_NAME"], "versions": versions,
}))
"""
_DISTRIBUTIONS = (
    "onnxruntime", "ai-edge-litert", "tflite-runtime",
    "numpy", "httptools", "cryptography", "cffi", "paho-mqtt", "tuf", "lighterman",
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """What differs between the systems that are tried.

    Attributes:
        runtime: Distribution that runs the model.
        suffix: Of the model file.
        make: The model `y = x + constant` for `x` of FP32 [batch, 4].
        environment: What programs inside need.
    """

    runtime: str
    suffix: str
    make: Callable[[float], bytes]
    environment: dict[str, str]


_LIBRARIES = "/usr/lib/arm-linux-gnueabihf"
PROFILES = {
    # Without a processor named, qemu emulates vector extensions that make it ten times slower.
    "arm64": Profile("onnxruntime", ".onnx", adder, {"QEMU_CPU": "cortex-a72"}),
    "arm64-litert": Profile("ai-edge-litert", ".tflite", tflite_adder, {"QEMU_CPU": "cortex-a72"}),
    # Debian chooses among libraries of linear algebra by links that are made when packages are configured.
    "armhf": Profile(
        "tflite-runtime",
        ".tflite",
        tflite_adder,
        {"LD_LIBRARY_PATH": f"{_LIBRARIES}/blas:{_LIBRARIES}/lapack"},
    ),
}


class _Commands(SilentView):
    """Shows the commands of the cloud's side on standard error."""

    def command(self, line: str) -> None:
        """Show it."""
        _tell(f"$ {line}")


@dataclass
class Device:
    """The system inside the root file system. Used by one thread."""

    root: Path
    profile: Profile

    @property
    def environment(self) -> dict[str, str]:
        """All that programs inside see of an environment."""
        usual = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        return {**usual, **self.profile.environment}

    def argv(self, *command: str) -> list[str]:
        """The command line that runs a command inside."""
        chroot = shutil.which("chroot", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
        assert chroot is not None, "there is no chroot program"
        return [chroot, str(self.root), *command]

    def run(self, *command: str, given: str = "") -> Any:
        """Run a command inside that prints JSON, and give that."""
        done = subprocess.run(
            self.argv(*command), input=given, capture_output=True, text=True, check=False, env=self.environment,
            timeout=_TOOL_S,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"{shlex.join(command)[:80]} ended with {done.returncode}: {done.stdout} {done.stderr}"
        )
        return json.loads(done.stdout)

    def agent(self, *arguments: str, given: str = "") -> Any:
        """Run a command of the agent inside, with `--json`."""
        _tell(f"{_DEVICE}$ edge-agent {' '.join(arguments)}")
        return self.run("edge-agent", *arguments, "--json", given=given)

    def is_up(self) -> bool:
        """Whether the agent answers."""
        try:
            return bool(self.agent("status"))
        except AssertionError:
            return False


@dataclass
class Load:
    """Asks for predictions without a break, on a thread of its own, and checks every one.

    Attributes:
        answers: Right answers by version of the model.
        failures: What was wrong with the others.
    """

    address: tuple[str, int]
    answers: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        """Start."""
        self._thread = threading.Thread(target=self._ask, name="load")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, after the answer that is under way."""
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        with InferenceClient(self.address) as client:
            while not self._stop.wait(_LOAD_PAUSE_S):
                try:
                    self.answers[ask(client)] += 1
                except (EdgeError, AssertionError) as error:
                    self.failures.append(str(error))


def ask(client: InferenceClient) -> int:
    """One prediction, checked.

    Returns:
        The version that made it.
    """
    answer = client.infer(_MODULE, [Tensor("x", "FP32", (1, 4), _INPUT)])
    expected = [value + _CONSTANTS[answer.version] for value in _INPUT]
    assert answer.outputs["y"].data == expected, f"version {answer.version} says {answer.outputs['y'].data!r}"
    return answer.version


class Trial:
    """The whole way of a model to the device. Used by one thread."""

    def __init__(self, folder: Path, device: Device, stack: ExitStack, steps: dict[str, float]) -> None:
        """Use an empty folder; `stack` ends what is started; `steps` receives seconds by step."""
        self.steps = steps
        self._folder = folder
        self._device = device
        self._stack = stack
        self._platform = ""
        self._plant = Plant(folder, _Commands())
        stack.callback(self._plant.stop)

    def run(self) -> dict[str, Any]:
        """Everything in order; what came out."""
        with self._step("look around"):
            facts = self._device.run("python3", "-c", _FACTS, *_DISTRIBUTIONS)
        runtime = self._device.profile.runtime
        self._platform = facts["platform"]
        agent = self._arrive()
        with self._step("ship version 1"):
            self._ship(1)
        with self._step("infer over TCP"), InferenceClient(self._address()) as client:
            assert ask(client) == 1
        swap = self._swap()
        with self._step("status"):
            module = self._device.agent("status")["modules"][_MODULE]
            assert (module["version"], module["serving"], module["phase"]) == (2, True, "idle"), module
        with self._step("telemetry in the lake"):
            answers = 1 + sum(swap.answers.values())
            wait_until(lambda: self._predictions() >= answers, _TELEMETRY_S, what=f"{answers} predictions")
            predictions = self._predictions()
            assert predictions == answers, f"{predictions} predictions arrived of {answers}"
        with self._step("refuse version 3, whose outputs are wrong"):
            self._refuse(3)
        with self._step("kill the agent and start it again"):
            agent.kill()
            agent = self._start_agent()
            wait_until(self._answers_again, _START_S, what="an answer of version 2 after the restart")
        with self._step("verify every byte"):
            self._device.agent("verify", "--all")
        with self._step("stop the agent"):
            agent.send(signal.SIGTERM)
            assert agent.wait(_STOP_S) == 0
        return {
            **facts,
            "runtime": f"{runtime} {facts['versions'][runtime]}",
            "live": {"module": _MODULE, "version": module["version"], "manifest": module["live"]},
            "answers_during_swap": {f"version {version}": count for version, count in sorted(swap.answers.items())},
            "failures_during_swap": len(swap.failures),
            "predictions_in_lake": predictions,
        }

    def _arrive(self) -> Child:
        """Start the cloud's side, enrol the device and start its agent."""
        with self._step("start broker and registry"):
            self._plant.start_broker("mosquitto")
            self._plant.start_registry()
            self._plant.tool("packager", "keys", "init", str(self._plant.keys))
        with self._step("enrol"):
            made = self._plant.tool("cloud-registry", "devices", "enrol-token", _DEVICE, "--tag", "site=bench")
            arguments = ("enroll", "--url", self._plant.url, "--token-file", "-")
            self._device.agent(*arguments, given=str(made.document["token"]))
        with self._step("start the agent"):
            return self._start_agent()

    def _start_agent(self) -> Child:
        log, argv = self._folder / "agent.log", self._device.argv("edge-agent", "run")
        running = child_process(argv, log_path=log, env=self._device.environment, stop_deadline_s=_STOP_S)
        agent = self._stack.enter_context(running)
        wait_until(lambda: not agent.is_running or self._device.is_up(), _START_S, what="the agent")
        assert agent.is_running, f"the agent ended with {agent.exit_code}"
        return agent

    def _swap(self) -> Load:
        """Ship version 2 while version 1 is asked without a break; no request may fail."""
        with self._step("swap to version 2 under load"), Load(self._address()) as load:
            wait_until(lambda: load.answers[1] > 0, _START_S, what="an answer of version 1")
            self._ship(2)
            wait_until(lambda: load.answers[2] > 0, _START_S, what="an answer of version 2")
        assert not load.failures, load.failures[:3]
        return load

    def _refuse(self, version: int) -> None:
        """Ship a version whose golden outputs are not what it computes; the device has to find out."""
        shipped = self._ship(version, error=0.001)
        assert not shipped.is_positive, "the device took it"
        (failed,) = shipped.document["wait"]["failed"]
        assert failed["error"]["code"] == "model.golden-mismatch", failed

    def _answers_again(self) -> bool:
        try:
            with InferenceClient(self._address()) as client:
                return ask(client) == 2
        except (EdgeError, ValueError):  # it has no address before it serves
            return False

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        _tell(f"-- {name}")
        started = time.monotonic()
        yield
        self.steps[name] = round(time.monotonic() - started, 1)

    def _ship(self, version: int, error: float = 0.0) -> Ran:
        """Ship a version with golden vectors.

        The outputs that the device has to meet are computed here, by another processor's runtime; with `error` they
        are given, that far from the truth.
        """
        constant = _CONSTANTS.get(version, 0.0)
        model = self._folder / f"{_MODULE}-{version}{self._device.profile.suffix}"
        model.write_bytes(self._device.profile.make(constant))
        golden = self._folder / f"golden-{version}.npz"
        x = np.random.default_rng(version).normal(size=(16, 4)).astype(np.float32)
        if error:
            np.savez(golden, x=x, y=x + np.float32(constant + error))
        else:
            np.savez(golden, x=x)
        return self._plant.tool(
            "packager", "ship", str(model), "--name", _MODULE, "--golden", str(golden), "--platform", self._platform,
            "--probation-ms", "2000", "--sampling-ratio", "1", "--condition", _CONDITION, "--wait",
            *(["--trust-golden"] if error else []), may_deny=bool(error),
        )  # fmt: skip

    def _address(self) -> tuple[str, int]:
        tcp = self._device.agent("status")["modules"][_MODULE]["tcp"]
        host, _, port = str(tcp).rpartition(":")
        return host, int(port)

    def _predictions(self) -> int:
        query = f"SELECT count(*) FROM predictions WHERE device = '{_DEVICE}'"
        found = self._plant.tool_quietly("cloud-registry", "query", query)
        return int(found["rows"][0][0])


def main(arguments: Sequence[str]) -> int:
    """Run the trial and print what came out."""
    parser = argparse.ArgumentParser(prog="arm_device")
    parser.add_argument("--root", type=Path, required=True, help="root file system with the device's installation")
    parser.add_argument("--profile", choices=sorted(PROFILES), required=True, help="what is installed there")
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder for the cloud's side")
    parser.add_argument("--step", action="append", default=[], help="NAME=SECONDS of a step that was done before")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)

    steps = {name: float(seconds) for name, _, seconds in (step.partition("=") for step in chosen.step)}
    started = time.monotonic() - sum(steps.values())
    try:
        with ExitStack() as stack:
            device = Device(chosen.root, PROFILES[chosen.profile])
            outcome = Trial(chosen.folder, device, stack, steps).run()
    except (AssertionError, EdgeError) as error:
        log = chosen.folder / "agent.log"
        if log.exists():
            _tell(log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_CHARS:])
        _print({"profile": chosen.profile, "is_working": False, "error": str(error), "steps": steps})
        return 1
    seconds = round(time.monotonic() - started, 1)
    _print(
        {"profile": chosen.profile, "is_working": True, **outcome, "steps": steps, "seconds": seconds},
    )
    return 0


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _print(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
