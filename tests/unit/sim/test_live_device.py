"""A simulated device on an event loop keeps the shell's promises: order, durability, telemetry until acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from device_sim import broker
from device_sim.live import device as live
from device_sim.live.device import LiveDevice
from device_sim.live.link import BrokerAddress, MqttLink
from device_sim.processes import Child, is_listening, spawn, wait_until
from device_sim.rng import stream
from edge_agent.core.agent import Agent
from edge_agent.keys import new_file_key
from edge_agent.shell.clock import SystemClock
from edge_agent.shell.dispatch import Dispatcher, Ports
from edge_agent.shell.runner import Identity
from edge_contract import topics
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.signed import REPORT_TYPE, Envelope
from edge_contract.telemetry import Ack
from edge_contract.twin import Nudge
from tests.unit.shell.fakes import (
    PLATFORM,
    Cloud,
    FakeJournal,
    FakeLink,
    FakeServer,
    FakeSlots,
    FakeSpool,
    FakeStore,
    FakeVerifier,
)

_DEADLINE_S = 20.0
BOOT = "00" * 8


KEY = new_file_key("ed25519")


class AsyncFakeLink(FakeLink):
    """The fake link of the shell's tests, as a coroutine; it takes signed reports alone."""

    def send_report(self, report: bytes) -> bool:
        """Verify, then keep what was signed."""
        envelope = Envelope.parse(report)
        assert (envelope.payload_type, envelope.keyid) == (REPORT_TYPE, KEY.keyid)
        assert isinstance(KEY.public, Ed25519PublicKey)
        KEY.public.verify(envelope.signature, envelope.content)
        return super().send_report(envelope.payload)

    async def run(
        self, on_nudge: Callable[[int], None], on_ack: Callable[[Ack], None], on_online: Callable[[bool], None]
    ) -> None:
        """Come online and stay so."""
        self.start(on_nudge, on_ack, on_online)
        await asyncio.Event().wait()


class CountingJournal(FakeJournal):
    """Counts what it is asked to save."""

    attempts = 0

    def save(self, record: JsonObject) -> None:
        """Count, then save or fail."""
        self.attempts += 1
        super().save(record)


class Bench:
    """One device with fakes outside."""

    def __init__(
        self, executor: ThreadPoolExecutor, cloud: Cloud | None = None, record: JsonObject | None = None
    ) -> None:
        self.cloud = cloud or Cloud()
        self.server = FakeServer()
        self.journal = CountingJournal()
        self.journal.record = record
        self.link = AsyncFakeLink()
        self.spool = FakeSpool()
        store = FakeStore(self.cloud)
        outside = Ports(SystemClock(), FakeVerifier(self.cloud), store, store, FakeSlots(), self.server)
        core = Agent("dev") if record is None else Agent.restore(record, "dev")
        self.device = LiveDevice(
            core,
            Identity("dev", BOOT, PLATFORM, "0"),
            Dispatcher(PLATFORM, "", outside),
            SystemClock(),
            self.journal,
            KEY,
            self.link,
            self.spool,
            executor,
        )

    def outcome(self) -> str | None:
        """Of the newest reported deployment."""
        module = self.link.reports[-1].modules.get("digits") if self.link.reports else None
        return None if module is None or module.deployment is None else str(module.deployment.outcome)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(_DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in code that knows no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _running(bench: Bench) -> AsyncIterator[Bench]:
    task = asyncio.create_task(bench.device.run())
    try:
        await _until(lambda: bench.link.reports or task.done())
        yield bench
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def _drive(story: Callable[[ThreadPoolExecutor], object]) -> None:
    with ThreadPoolExecutor(4) as executor:
        asyncio.run(story(executor))  # type: ignore[arg-type]  # a coroutine function


def test_a_nudge_brings_a_bundle_to_life() -> None:
    async def story(executor: ThreadPoolExecutor) -> None:
        async with _running(Bench(executor)) as bench:
            bench.link.nudge(bench.cloud.assign(bench.cloud.publish(1)))
            await _until(lambda: bench.outcome() == "confirmed")
            assert bench.server.live["digits"] == bench.device.modules["digits"].live
            assert bench.device.bytes_fetched > 0
            assert bench.journal.record == bench.device.core.snapshot()

    _drive(story)


def test_a_bundle_that_fails_its_golden_vectors_is_refused_and_the_live_one_goes_on() -> None:
    async def story(executor: ThreadPoolExecutor) -> None:
        async with _running(Bench(executor)) as bench:
            good, bad = bench.cloud.publish(1), bench.cloud.publish(2)
            bench.server.bad.add(bad.manifest)
            bench.link.nudge(bench.cloud.assign(good))
            await _until(lambda: bench.outcome() == "confirmed")
            bench.link.nudge(bench.cloud.assign(bad))
            await _until(lambda: bench.outcome() == "refused")
            assert bench.server.live["digits"] == good.manifest

    _drive(story)


def test_a_device_goes_on_from_its_record() -> None:
    async def story(executor: ThreadPoolExecutor) -> None:
        async with _running(Bench(executor)) as bench:
            bench.link.nudge(bench.cloud.assign(bench.cloud.publish(1)))
            await _until(lambda: bench.outcome() == "confirmed")
        record = bench.journal.record
        again = Bench(executor, bench.cloud, record)
        assert again.device.modules["digits"].live == bench.device.modules["digits"].live

    _drive(story)


def test_nothing_is_reported_before_it_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_PERSIST_RETRY_S", 0.01)

    async def story(executor: ThreadPoolExecutor) -> None:
        async with _running(Bench(executor)) as bench:
            bench.journal.error = EdgeError("device.disk-full", "no room for the record")
            bench.link.nudge(bench.cloud.assign(bench.cloud.publish(1)))
            before = bench.journal.attempts
            await _until(lambda: bench.journal.attempts >= before + 3)
            assert bench.outcome() is None
            assert not bench.server.live
            bench.journal.error = None
            await _until(lambda: bench.outcome() == "confirmed")

    _drive(story)


def test_telemetry_is_repeated_until_it_is_acknowledged() -> None:
    sample = {"kind": "event", "module": "", "model": "", "version": 0, "manifest": None, "taken_ms": 1, "body": {}}

    async def story(executor: ThreadPoolExecutor) -> None:
        async with _running(Bench(executor)) as bench:
            bench.device.take_samples([sample, sample])
            await _until(lambda: bench.link.batches)
            bench.link.online(False)
            bench.link.online(True)  # what was under way may be lost
            await _until(lambda: len(bench.link.batches) >= 2)
            assert bench.link.batches[0] == bench.link.batches[1]
            bench.link.ack(Ack({BOOT: 2}))
            await _until(lambda: not bench.spool.waiting)

    _drive(story)


def test_a_bug_in_a_lane_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(executor: ThreadPoolExecutor) -> None:
        bench = Bench(executor)
        monkeypatch.setattr(FakeVerifier, "refresh", lambda self, wall_ms: 1 // 0)
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.timeout(_DEADLINE_S):
                await bench.device.run()
        assert caught.group_contains(ZeroDivisionError)

    _drive(story)


def _start_broker_at(port: int, log: Path) -> Child:
    import sys

    child = spawn("the broker", [sys.executable, "-m", "device_sim.broker", str(port)], log)
    wait_until(lambda: is_listening(port), _DEADLINE_S, "the broker", child)
    return child


def test_the_link_outlives_its_broker(tmp_path: Path) -> None:
    first = broker.start_embedded(tmp_path / "broker.log")
    children = [first.child]
    nudges: list[int] = []
    changes: list[bool] = []

    async def nudge(version: int) -> None:
        async with aiomqtt.Client("127.0.0.1", first.port, protocol=aiomqtt.ProtocolVersion.V311) as cloud:
            await cloud.publish(topics.nudge("dev-1"), Nudge(version).to_bytes(), qos=1)
            await cloud.publish(topics.nudge("dev-1"), b"not a nudge", qos=1)

    async def story() -> None:
        link = MqttLink("dev-1", BrokerAddress("127.0.0.1", first.port, None), stream(1, "link"))
        assert not link.send_report(b"offline")
        task = asyncio.create_task(link.run(nudges.append, lambda ack: None, changes.append))
        try:
            await _until(lambda: changes == [True])
            await nudge(1)
            await _until(lambda: nudges == [1])
            assert link.send_report(b"online")
            first.child.stop()
            await _until(lambda: changes == [True, False])
            children.append(await asyncio.to_thread(_start_broker_at, first.port, tmp_path / "broker.log"))
            await _until(lambda: changes == [True, False, True])
            await nudge(2)
            await _until(lambda: nudges == [1, 2])
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    try:
        asyncio.run(story())
    finally:
        for child in children:
            child.stop()
