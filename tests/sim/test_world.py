"""Worlds: one seed is one history, the rules hold for the core that ships, and they do find cores that break them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from device_sim.checkers import InvariantError
from device_sim.cli import cli
from device_sim.device import MakeAgent
from device_sim.faults import Faults, draw_faults
from device_sim.rng import stream
from device_sim.world import World, WorldError
from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.core.state import Commands
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from tests.support.require import REPOSITORY_ROOT

_SEEDS_TRIED = 12


@pytest.mark.parametrize("seed", range(8))
def test_every_rule_holds_for_the_core_that_ships(seed: int) -> None:
    result = World(devices=6, seed=seed, steps=1_500).run()
    assert result.steps > 1_500
    assert result.deployments > 2


def test_one_seed_is_one_history() -> None:
    first, again, other = (World(5, seed, 1_000).run() for seed in (7, 7, 8))
    assert first == again
    assert first.trace != other.trace


def test_a_history_does_not_depend_on_the_order_of_sets() -> None:
    traces = set()
    for hash_seed in ("1", "2"):
        finished = subprocess.run(
            [sys.executable, "-m", "device_sim", "world", "--devices", "4", "--seed", "3", "--steps", "800", "--json"],
            cwd=REPOSITORY_ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=60,
        )
        traces.add(json.loads(finished.stdout)["worlds"][0]["trace"])
    assert len(traces) == 1


def test_seeds_draw_worlds_with_and_without_each_fault() -> None:
    drawn = [draw_faults(stream(seed, "faults")) for seed in range(40)]
    for name in ("loss", "cut", "restart_mean_ms", "offline_mean_ms", "crash_mean_ms", "hostile", "disk_full"):
        values = {getattr(faults, name) > 0 for faults in drawn}
        assert values == {True, False}, name
    assert Faults().loss == 0


# -- cores that are broken on purpose --------------------------------------------------------------------------------


class ReportsFirst(Agent):
    """Tells the cloud before the record is durable."""

    def handle(self, event: inputs.Event, now: int) -> Commands:
        out = super().handle(event, now)
        return sorted(out, key=lambda command: not isinstance(command, do.SendReport))


class ActivatesFirst(Agent):
    """Writes the record down after the switch instead of before it."""

    def handle(self, event: inputs.Event, now: int) -> Commands:
        out = super().handle(event, now)
        if any(isinstance(command, do.ActivateSlot) for command in out):
            out.sort(key=lambda command: isinstance(command, do.Persist))
        return out


class TrustsTheDownload(Agent):
    """Never reads the blobs from disk again."""

    def handle(self, event: inputs.Event, now: int) -> Commands:
        out: Commands = []
        for command in super().handle(event, now):
            if isinstance(command, do.VerifyBlobs):
                out += self.handle(inputs.BlobsVerified(command.op), now)
            else:
                out.append(command)
        return out


class ForgetsFailures(Agent):
    """Does not remember what failed here."""

    def handle(self, event: inputs.Event, now: int) -> Commands:
        out = super().handle(event, now)
        for module in self._record.modules.values():
            module.quarantined = ()
        return [do.Persist(self.snapshot()) if isinstance(command, do.Persist) else command for command in out]


class NeverWakes(Agent):
    """Waits for events alone, so that a lost message is lost for ever."""

    def deadline(self) -> int | None:
        return None


class ThrowsAwayTheFallback(Agent):
    """Keeps only what is desired when it collects garbage."""

    def handle(self, event: inputs.Event, now: int) -> Commands:
        keep = frozenset(item.desired.manifest for item in self._record.modules.values() if item.desired)
        return [
            do.CollectGarbage(keep) if isinstance(command, do.CollectGarbage) else command
            for command in super().handle(event, now)
        ]


class SpinsOnTime(Agent):
    """Asks to be woken at once, always."""

    def deadline(self) -> int | None:
        return 0


class ForgetsVersions(Agent):
    """Loses what the metadata said last when it restarts."""

    @classmethod
    def restore(cls, record: JsonObject, device: str, *args: int) -> Agent:
        return super().restore({**record, "director_version": 0}, device, *args)


def _maker(kind: type[Agent]) -> MakeAgent:
    return lambda device, record: kind(device) if record is None else kind.restore(record, device)


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        (ReportsFirst, {"reports-are-durable"}),
        (ActivatesFirst, {"persist-before-acting"}),
        (TrustsTheDownload, {"only-verified-goes-live"}),
        (ForgetsFailures, {"failed-is-not-tried-again"}),
        (NeverWakes, {"everybody-converges", "what-answers-is-known"}),
        (ThrowsAwayTheFallback, {"slots-are-kept"}),
        (SpinsOnTime, {"no-spinning"}),
        (ForgetsVersions, {"versions-never-fall"}),
    ],
)
def test_a_broken_core_is_found_out(kind: type[Agent], rules: set[str]) -> None:
    error = _first_failure(kind)
    assert error is not None
    assert error.rule in rules
    assert f"--seed {error.seed}" in error.hint
    assert error.lines


def _first_failure(kind: type[Agent]) -> WorldError | None:
    for seed in range(_SEEDS_TRIED):
        try:
            World(6, seed, 2_500, _maker(kind)).run()
        except WorldError as error:
            return error
    return None


def test_a_broken_rule_is_shown_with_what_led_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: object, device: object) -> str:
        raise InvariantError("made-for-this-test", "dev-0001", "nothing is ever right")

    monkeypatch.setattr("device_sim.checkers.Checkers.unconverged", never)
    result = CliRunner().invoke(cli, ["world", "--devices", "2", "--steps", "50", "--seed", "9"])
    assert result.exit_code == 1
    assert "made-for-this-test" in result.output
    assert "device-sim world --devices 2 --seed 9 --steps 50" in result.output
    assert "the faults stop" in result.output


@pytest.mark.parametrize(("devices", "steps"), [(0, 10), (1, 0), (10**6, 10)])
def test_a_world_of_impossible_size_is_refused(devices: int, steps: int) -> None:
    with pytest.raises(EdgeError, match=r"config\.invalid"):
        World(devices, 1, steps)
