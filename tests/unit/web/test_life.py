"""Restarts of a worker that keeps crashing, and signals at every moment, with a supervisor that is told what to do."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edge_agent.serving.limits import ServingLimits
from edge_agent.web import life
from edge_agent.web.asked import Asked
from edge_agent.web.limits import RESTARTS_MAX
from edge_contract.deployment import Policy
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from tests.support.bundles import Written, adder_bundle
from tests.support.net import free_port


class ScriptedSupervisor:
    """Stands in for `WorkerSupervisor`: counts, and does at each start what a test wants.

    Attributes:
        starts: How often a worker was started.
        events: What happened, in order.
        on_start: Called at each start with its number; may raise.
        policies: The policy of each start.
    """

    on_start: Callable[[ScriptedSupervisor], None] = staticmethod(lambda _: None)
    made: ClassVar[list[ScriptedSupervisor]] = []

    def __init__(self, run_dir: Path, *, on_exit: Callable[[str, Digest], None], limits: ServingLimits, **_: Any):
        assert run_dir.is_dir()
        self.starts, self.events, self.policies = 0, list[str](), list[Policy]()
        self.limits, self._on_exit, self._manifest = limits, on_exit, Digest.of(b"")
        ScriptedSupervisor.made.append(self)

    def restart(self, module: str, manifest: Digest, slot: Path, policy: Policy) -> Digest | None:
        assert (slot / "files" / "model.onnx").is_file()
        self.starts += 1
        self._manifest = manifest
        self.policies.append(policy)
        self.events.append("start")
        type(self).on_start(self)
        return Digest.of(b"golden")

    def crash(self) -> None:
        self._on_exit("digits", self._manifest)

    def set_sampling(self, module: str, ratio: float) -> None:
        assert ratio == 0.0

    def worker_pid(self, module: str) -> int | None:
        return None

    def addresses(self, module: str) -> tuple[Path, str, int]:
        return Path("s"), "127.0.0.1", 1

    def stop(self, module: str) -> None:
        self.events.append("stop")

    def close(self) -> None:
        self.events.append("close")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedSupervisor]:
    monkeypatch.setattr(life, "WorkerSupervisor", ScriptedSupervisor)
    monkeypatch.setattr(life, "RESTART_MS_FIRST", 1)
    monkeypatch.setattr(ScriptedSupervisor, "made", [])
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    return ScriptedSupervisor


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return adder_bundle(tmp_path_factory.mktemp("life") / "bundle")


def serve(bundle: Written, **options: Any) -> list[JsonObject]:
    """Serve until it ends; gives what was announced."""
    told: list[JsonObject] = []
    asked = Asked(bundle=bundle.folder, digest=bundle.index, port=free_port(), **options)
    life.serve(asked.check(), told.append)
    return told


def at_start(number: int, do: Callable[[ScriptedSupervisor], None]) -> Callable[[ScriptedSupervisor], None]:
    return lambda supervisor: do(supervisor) if supervisor.starts == number else None


def end(_: Any = None, number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def later(do: Callable[[], None]) -> None:
    threading.Timer(0.05, do).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_serves_until_a_signal_and_then_drains(
    bundle: Written, scripted: type[ScriptedSupervisor], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(scripted, "on_start", at_start(1, lambda _: later(lambda: end(number=number))))
    policy = Policy(allow_pickle=True)
    (facts,) = serve(bundle, drain_s=7, policy=policy)
    (supervisor,) = scripted.made
    assert facts["golden"] == str(Digest.of(b"golden"))
    assert supervisor.events == ["start", "stop", "close"]
    assert supervisor.limits.drain_ms == 7_000
    assert supervisor.policies == [policy]


def test_a_worker_that_crashes_is_started_again_with_the_same_policy(
    bundle: Written, scripted: type[ScriptedSupervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash_thrice(supervisor: ScriptedSupervisor) -> None:
        later(supervisor.crash if supervisor.starts <= 3 else end)

    monkeypatch.setattr(scripted, "on_start", crash_thrice)
    assert len(serve(bundle)) == 1, "it is announced once"
    (supervisor,) = scripted.made
    assert supervisor.starts == 4
    assert len(set(map(str, supervisor.policies))) == 1


def test_a_worker_that_always_crashes_is_given_up(
    bundle: Written, scripted: type[ScriptedSupervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "on_start", lambda supervisor: supervisor.crash())
    monkeypatch.setattr(life, "RESTART_MS_MAX", 2)
    with pytest.raises(EdgeError) as caught:
        serve(bundle)
    assert caught.value.code == "model.worker-crashed"
    (supervisor,) = scripted.made
    assert supervisor.starts == 1 + RESTARTS_MAX
    assert supervisor.events[-1] == "close"


def test_a_worker_that_cannot_be_started_again_is_given_up_with_its_own_error(
    bundle: Written, scripted: type[ScriptedSupervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_from_the_second(supervisor: ScriptedSupervisor) -> None:
        if supervisor.starts > 1:
            raise EdgeError("device.memory-short", "no room")
        supervisor.crash()

    monkeypatch.setattr(scripted, "on_start", fail_from_the_second)
    monkeypatch.setattr(life, "RESTART_MS_MAX", 2)
    with pytest.raises(EdgeError, match="no room"):
        serve(bundle)
    assert scripted.made[0].starts == 1 + RESTARTS_MAX


def test_a_worker_that_served_long_enough_begins_a_new_row(
    bundle: Written, scripted: type[ScriptedSupervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash_often(supervisor: ScriptedSupervisor) -> None:
        later(supervisor.crash if supervisor.starts < 3 * RESTARTS_MAX else end)

    monkeypatch.setattr(scripted, "on_start", crash_often)
    monkeypatch.setattr(life, "STEADY_MS", 10)
    serve(bundle)
    assert scripted.made[0].starts == 3 * RESTARTS_MAX


def test_a_signal_while_it_starts_gives_up_at_once(
    bundle: Written, scripted: type[ScriptedSupervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "on_start", end)
    assert serve(bundle) == []
    assert scripted.made[0].events == ["start", "close"]


def test_a_signal_between_two_restarts_ends_the_waiting(
    bundle: Written, scripted: type[ScriptedSupervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "on_start", lambda supervisor: supervisor.crash())
    monkeypatch.setattr(life, "RESTART_MS_FIRST", 60_000)
    monkeypatch.setattr(life, "RESTART_MS_MAX", 60_000)
    monkeypatch.setattr(life, "STEADY_MS", 1e9)
    # The pause before the second restart in a row would be a minute.
    threading.Timer(1.0, end).start()
    serve(bundle)
    assert scripted.made[0].starts == 2
    assert scripted.made[0].events[-1] == "close"


def test_whoever_listened_to_signals_before_does_so_again(
    bundle: Written, scripted: type[ScriptedSupervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(scripted, "on_start", end)
    serve(bundle)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
