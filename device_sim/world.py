"""A world: a cloud and many devices under virtual time, every fault drawn from one seed, rules checked at each step.

First the world is rough for a number of steps: deployments good and flawed come and go while messages are lost, disks
fill and devices restart. Then the faults stop, one good deployment goes to every module of every device, and all of
them have to get there in bounded time. The code that decides on a device is the core that ships; none is imitated.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from device_sim.checkers import Checkers, InvariantError
from device_sim.clock import VirtualClock
from device_sim.cloud import Bundle, Cloud
from device_sim.device import MakeAgent, SimDevice, Surroundings, core_agent, next_fault_ms
from device_sim.faults import NO_FAULTS, Faults, draw_faults
from device_sim.hardware import Flaw
from device_sim.network import Network
from device_sim.rng import spell_ms, stream
from device_sim.trace import Trace
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

CALM_MS_MAX: Final = 45 * 60_000
"""Virtual time in which every device has to converge after the faults stop: some of the longest waits in a row."""

DEVICES_MAX: Final = 5_000
STEPS_MAX: Final = 10_000_000
TRACE_LINES_SHOWN: Final = 60
_MODULES: Final = ("digits", "anomaly")
_DEPLOY_MEAN_MS: Final = 60_000
_FLAWS: Final = (Flaw.NONE,) * 5 + (Flaw.INVALID, Flaw.BYTES, Flaw.OUTPUTS, Flaw.SICK, Flaw.CRASHING)
_CHECK_MS: Final = 5_000
_WITH_DELTAS: Final = 0.7


@dataclass(frozen=True, slots=True)
class WorldResult:
    """How a world went.

    Attributes:
        seed: Its seed.
        devices: Number of devices.
        steps: Events the cores handled.
        virtual_ms: Virtual time that passed.
        calm_ms: Virtual time between the end of the faults and the last device's arrival.
        deployments: Deployments made.
        restarts: Power cuts of all devices.
        trace: Digest of the whole trace; the same for the same seed.
    """

    seed: int
    devices: int
    steps: int
    virtual_ms: int
    calm_ms: int
    deployments: int
    restarts: int
    trace: Digest


class WorldError(EdgeError):
    """A rule broke; carries what a person needs to see it again."""

    def __init__(self, error: InvariantError, seed: int, repeat: str, lines: list[str]) -> None:
        """Tell which rule broke in which world, and how it came."""
        super().__init__("internal.bug", f"seed {seed} broke the rule {error.detail}", f"Repeat it with: {repeat}")
        self.rule = error.rule
        self.seed = seed
        self.lines = lines


class World:
    """One world. `run` runs it once."""

    def __init__(self, devices: int, seed: int, steps: int, make_agent: MakeAgent = core_agent) -> None:
        """Prepare a world.

        Args:
            devices: How many devices, `1..DEVICES_MAX`.
            seed: Draws everything.
            steps: Events the cores handle before the faults stop, `1..STEPS_MAX`.
            make_agent: Makes a device's core; for trying a changed one against the rules.

        Raises:
            EdgeError: `config.invalid`.
        """
        if not 1 <= devices <= DEVICES_MAX or not 1 <= steps <= STEPS_MAX:
            raise EdgeError("config.invalid", f"a world has 1 to {DEVICES_MAX} devices and 1 to {STEPS_MAX} steps")
        self._seed, self._steps = seed, steps
        self._draw = stream(seed, "world")
        self.clock = VirtualClock()
        self.trace = Trace(lambda: self.clock.now_ms)
        self.cloud = Cloud(seed)
        self.checkers = Checkers(self.cloud)
        self.faults: Faults = draw_faults(stream(seed, "faults"))
        network = Network(self.clock, stream(seed, "network"), lambda: self.faults)
        self._around = Surroundings(
            seed, self.clock, network, self.cloud, self.trace, self.checkers, lambda: self.faults, make_agent
        )
        self.devices = [SimDevice(f"dev-{number:04}", self._around) for number in range(1, devices + 1)]
        self._deployments = 0

    def run(self) -> WorldResult:
        """Run it to its end.

        Raises:
            WorldError: A rule broke.
        """
        try:
            self._begin()
            while self.checkers.steps < self._steps and self.clock.advance():
                pass
            self._calm()
            began_ms = self.clock.now_ms
            self._converge(began_ms)
        except InvariantError as error:
            repeat = f"device-sim world --devices {len(self.devices)} --seed {self._seed} --steps {self._steps}"
            raise WorldError(error, self._seed, repeat, self.trace.last(TRACE_LINES_SHOWN, error.device)) from error
        return WorldResult(
            seed=self._seed,
            devices=len(self.devices),
            steps=self.checkers.steps,
            virtual_ms=self.clock.now_ms,
            calm_ms=self.clock.now_ms - began_ms,
            deployments=self._deployments,
            restarts=sum(device.restarts for device in self.devices),
            trace=self.trace.digest,
        )

    # -- rough weather ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.trace.add("world", f"seed {self._seed}: {self.faults}")
        for device in self.devices:
            self.cloud.enrol(device.name)
            self.clock.call_in(self._draw.randint(0, 10_000), device.start)
            draw = stream(self._seed, "weather", device.name)
            self._plan(draw, lambda: self.faults.restart_mean_ms, device.cut_power)
            self._plan(draw, lambda: self.faults.offline_mean_ms, self._offline_spell(device, draw))
            self._plan(draw, lambda: self.faults.crash_mean_ms, self._on_a_module(draw, device.crash_worker))
            self._plan(draw, lambda: self.faults.rollback_mean_ms, self._on_a_module(draw, device.ask_rollback))
            self._plan(draw, lambda: self.faults.rot_mean_ms, self._rot_spell(device, draw))
            self._plan(draw, lambda: self.faults.hold_mean_ms, self._hold_spell(device, draw))
        self.clock.call_in(0, self._deploy_something)

    def _plan(self, draw: random.Random, mean_ms: Callable[[], float], strike: Callable[[], None]) -> None:
        wait_ms = next_fault_ms(draw, mean_ms())
        if wait_ms is None:
            return

        def due() -> None:
            if mean_ms() > 0:
                strike()
                self._plan(draw, mean_ms, strike)

        self.clock.call_in(wait_ms, due)

    def _offline_spell(self, device: SimDevice, draw: random.Random) -> Callable[[], None]:
        return lambda: device.go_offline(spell_ms(draw, 60_000))

    def _rot_spell(self, device: SimDevice, draw: random.Random) -> Callable[[], None]:
        return lambda: device.rot(draw)

    def _hold_spell(self, device: SimDevice, draw: random.Random) -> Callable[[], None]:
        return lambda: device.hold(spell_ms(draw, 60_000))

    def _on_a_module(self, draw: random.Random, strike: Callable[[str], None]) -> Callable[[], None]:
        return lambda: strike(draw.choice(_MODULES))

    def _deploy_something(self) -> None:
        if self.faults is NO_FAULTS:
            return
        module = self._draw.choice(_MODULES)
        chosen = [device for device in self.devices if self._draw.random() < 0.7]
        if self._draw.random() < 0.1:
            for device in chosen:
                self.cloud.withdraw(module, device.name)
            self.trace.add("cloud", f"withdraws {module} from {len(chosen)} devices")
            self._nudge(chosen)
        elif self._draw.random() < 0.2 and self.cloud.bundles:
            self._make_deltas(self._draw.choice(list(self.cloud.bundles.values())))
        elif self._draw.random() < 0.2 and self.cloud.bundles:
            old = self._draw.choice([item for item in self.cloud.bundles.values() if item.model == module] or [None])
            if old is not None:
                self._deploy(module, chosen, old.flaw, old.manifest)
        else:
            self._deploy(module, chosen, self._draw.choice(_FLAWS))
        self.clock.call_in(spell_ms(self._draw, _DEPLOY_MEAN_MS), self._deploy_something)

    def _deploy(self, module: str, chosen: list[SimDevice], flaw: Flaw, manifest: Digest | None = None) -> None:
        bundle = self.cloud.bundles[manifest] if manifest else self.cloud.publish(module, flaw, self._draw)
        if self._draw.random() < _WITH_DELTAS:
            self.cloud.make_deltas(bundle, self._draw)
        deployment = self.cloud.deploy(bundle, module, [device.name for device in chosen])
        self._deployments += 1
        what = f"{bundle.model}:{bundle.version}@{bundle.manifest.short} (flaw: {flaw})"
        self.trace.add("cloud", f"{deployment} assigns {what} to {len(chosen)} devices")
        self._nudge(chosen)

    def _make_deltas(self, bundle: Bundle) -> None:
        """Deltas may come late, when devices are at it already."""
        count = self.cloud.make_deltas(bundle, self._draw)
        self.trace.add("cloud", f"has {count} more deltas of {bundle.model}:{bundle.version}")
        if count:
            self._nudge(self.devices)

    def _nudge(self, devices: list[SimDevice]) -> None:
        for device in devices:
            version = self.cloud.director_versions[device.name]
            self._around.network.send(
                device.name,
                lambda device=device, version=version: device.receive_nudge(version),  # type: ignore[misc]
            )

    # -- calm ------------------------------------------------------------------------------------------------------

    def _calm(self) -> None:
        self.faults = NO_FAULTS
        self.trace.add("world", "the faults stop")
        for module in _MODULES:
            self._deploy(module, self.devices, Flaw.NONE)

    def _converge(self, began_ms: int) -> None:
        waiting = list(self.devices)
        look_at_ms = began_ms
        while self.clock.now_ms - began_ms <= CALM_MS_MAX:
            if self.clock.now_ms >= look_at_ms:
                waiting = [device for device in waiting if self.checkers.unconverged(device)]
                look_at_ms = self.clock.now_ms + _CHECK_MS
                if not waiting:
                    return
            if not self.clock.advance():
                break
        waiting = [device for device in waiting if self.checkers.unconverged(device)]
        if waiting:
            why = self.checkers.unconverged(waiting[0])
            minutes = CALM_MS_MAX // 60_000
            detail = f"{len(waiting)} devices had not converged {minutes} virtual minutes after the faults: {why}"
            raise InvariantError("everybody-converges", waiting[0].name, detail)
