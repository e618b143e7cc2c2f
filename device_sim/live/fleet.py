"""A whole fleet: enrols devices, runs their cores on one event loop, and lets their own clients ask them things."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloud_registry.client import RegistryClient
from device_sim.live.decoding import SharedDecoding
from device_sim.live.device import LiveDevice
from device_sim.live.link import BrokerAddress, MqttLink
from device_sim.live.models import ModelRoom, Prediction
from device_sim.live.server import RoomServer
from device_sim.live.spool import MemorySpool
from device_sim.rng import stream
from edge_agent.about import agent_version
from edge_agent.core.agent import Agent
from edge_agent.delta.maker import FileDeltaMaker
from edge_agent.enroll import enroll
from edge_agent.fetch import HttpBundleFetcher
from edge_agent.identity import DeviceIdentity, load_identity
from edge_agent.keys import open_key
from edge_agent.shell.clock import SystemClock
from edge_agent.shell.dispatch import Dispatcher, Ports
from edge_agent.shell.runner import Identity
from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.boots import next_boot
from edge_agent.store.journal import FileJournal
from edge_agent.store.slots import FileSlotStore
from edge_agent.tokens import DeviceTokens
from edge_agent.transport import tls_context
from edge_agent.trust.source import IMAGE_PREFIX, HttpMetadataSource, director_prefix
from edge_agent.trust.timefloor import TimeFloor
from edge_agent.trust.uptane import UptaneVerifier
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import POLL_MS_DEFAULT, REPORT_MS_DEFAULT
from edge_contract.names import device_name

DEVICES_MAX: Final = 5_000
THREADS: Final = 8
"""Threads of the executor that all devices share, however many they are."""

RATE_PER_S_MAX: Final = 50.0
_STATUS_S: Final = 1.0
_TICK_S: Final = 0.5
_RESERVE_BYTES: Final = 0  # a simulated device has no disk of its own to keep room on


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """What to simulate.

    Attributes:
        devices: How many devices, `1..DEVICES_MAX`.
        seed: Draws their traffic and the waits of their links.
        url: Base URL of the registry.
        token: Operator's token, for enrolment tokens.
        data: Folder with one data directory for each device; what is there is taken up again.
        prefix: Names are `<prefix>-0001` and so on.
        tags: Tags of every device.
        rate_per_s: Requests a second that each device's own clients make, `0..RATE_PER_S_MAX`.
        ca: CA of an https registry, or none for the system's.
        poll_ms: See `edge_agent.config.AgentConfig`.
        report_ms: See there.
        deltas: Whether devices use deltas.
    """

    devices: int
    seed: int
    url: str
    token: str
    data: Path
    prefix: str = "sim"
    tags: Mapping[str, str] = field(default_factory=dict)
    rate_per_s: float = 1.0
    ca: Path | None = None
    poll_ms: int = POLL_MS_DEFAULT
    report_ms: int = REPORT_MS_DEFAULT
    deltas: bool = True

    def check(self) -> None:
        """Refuse what cannot be simulated.

        Raises:
            EdgeError: `config.invalid`, `cloud.name-invalid`.
        """
        if not 1 <= self.devices <= DEVICES_MAX:
            raise EdgeError("config.invalid", f"{self.devices} devices: 1 to {DEVICES_MAX} can be simulated")
        if not 0 <= self.rate_per_s <= RATE_PER_S_MAX:
            raise EdgeError(
                "config.invalid", f"{self.rate_per_s} requests a second: 0 to {RATE_PER_S_MAX:g} are possible"
            )
        device_name(self.name_of(self.devices))

    def name_of(self, number: int) -> str:
        """The name of a device, counted from 1."""
        return f"{self.prefix}-{number:04}"


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """How a fleet stands.

    Attributes:
        devices: How many devices run.
        online: How many the broker accepted.
        live: Devices by what answers in them, `model:version`.
        requests: Requests their own clients made.
        right: Those answered with the right digit.
        waiting: Samples not yet acknowledged.
        bytes_fetched: Bytes of blobs that came over the network.
        bytes_saved: Bytes that needed not come because deltas made them.
    """

    devices: int
    online: int
    live: dict[str, int]
    requests: int
    right: int
    waiting: int
    bytes_fetched: int
    bytes_saved: int = 0

    def to_json(self) -> JsonObject:
        """As `device-sim run --json` prints it."""
        return {
            "devices": self.devices,
            "online": self.online,
            "live": self.live,
            "requests": self.requests,
            "right": self.right,
            "waiting": self.waiting,
            "bytes_fetched": self.bytes_fetched,
            "bytes_saved": self.bytes_saved,
        }


class Fleet:
    """Runs on the event loop that calls `run`."""

    def __init__(self, options: FleetOptions) -> None:
        """Prepare; nothing is asked of the registry yet.

        Raises:
            EdgeError: `config.invalid`.
        """
        options.check()
        self._options = options
        self._room = ModelRoom()
        self._draw = stream(options.seed, "traffic")
        self._requests = 0
        self._right = 0
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="fleet")
        self._decoding = SharedDecoding(options.data / ".decoded") if options.deltas else None
        self._servers: dict[str, RoomServer] = {}
        self.devices: list[LiveDevice] = []

    async def run(self, stop: asyncio.Event, on_status: Callable[[FleetStatus], None]) -> FleetStatus:
        """Enrol the devices and run them until `stop` is set.

        Args:
            stop: Set it to end the fleet.
            on_status: Told about once a second.

        Returns:
            How the fleet stood at the end.

        Raises:
            EdgeError: When a device cannot be enrolled.
        """
        try:
            identities = await self._enrol_all(stop)
            if stop.is_set():
                return self.status
            self.devices = [self._build(number, item) for number, item in enumerate(identities, 1)]
            work = asyncio.create_task(self._run_all(on_status), name="fleet")
            waiting = asyncio.create_task(stop.wait(), name="stop")
            try:
                await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await work
            return self.status
        finally:
            # What a thread is at ends by itself soon: downloads look, documents have a deadline.
            self._executor.shutdown(wait=False, cancel_futures=True)
            if self._decoding is not None:
                self._decoding.close()

    @property
    def status(self) -> FleetStatus:
        """How the fleet stands."""
        live: Counter[str] = Counter()
        for device in self.devices:
            for module in device.modules.values():
                if module.live is not None:
                    live[f"{module.model}:{module.version}"] += 1
        return FleetStatus(
            devices=len(self.devices),
            online=sum(device.is_online for device in self.devices),
            live=dict(sorted(live.items())),
            requests=self._requests,
            right=self._right,
            waiting=sum(device.spool.backlog()[0] for device in self.devices),
            bytes_fetched=sum(device.bytes_fetched for device in self.devices),
            bytes_saved=sum(device.bytes_saved for device in self.devices),
        )

    async def _run_all(self, on_status: Callable[[FleetStatus], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for device in self.devices:
                tasks.create_task(device.run(), name=device.name)
            tasks.create_task(self._traffic(), name="traffic")
            while True:
                await asyncio.sleep(_STATUS_S)
                on_status(self.status)

    # -- enrolment -------------------------------------------------------------------------------------------------

    async def _enrol_all(self, stop: asyncio.Event) -> list[DeviceIdentity]:
        """Enrol as many at a time as there are threads; a fleet that is stopped meanwhile ends early."""
        loop = asyncio.get_running_loop()
        gate = asyncio.Semaphore(THREADS)
        with RegistryClient(self._options.url, self._options.token, ca_file=self._options.ca) as client:

            async def one(number: int) -> DeviceIdentity | None:
                async with gate:
                    if stop.is_set():
                        return None
                    return await loop.run_in_executor(self._executor, self._enrol, client, number)

            async with asyncio.TaskGroup() as tasks:
                made = [tasks.create_task(one(number)) for number in range(1, self._options.devices + 1)]
        return [identity for task in made if (identity := task.result()) is not None]

    def _enrol(self, client: RegistryClient, number: int) -> DeviceIdentity:
        options = self._options
        name = options.name_of(number)
        data = options.data / name
        try:
            return load_identity(data)
        except EdgeError as error:
            if error.code != "device.not-enrolled":
                raise
        token = client.create_enrolment_token(name, options.tags)["token"]
        return enroll(options.url, str(token), data, ca=options.ca)

    # -- building --------------------------------------------------------------------------------------------------

    def _build(self, number: int, identity: DeviceIdentity) -> LiveDevice:
        options, clock = self._options, SystemClock()
        data = options.data / identity.device
        boot = next_boot(data / "boots.json", clock.wall_ms())
        blobs = FileBlobStore(data, _RESERVE_BYTES)
        journal = FileJournal(data / "journal.json")
        record = journal.load()
        core = (
            Agent(identity.device, options.poll_ms, options.report_ms)
            if record is None
            else Agent.restore(record, identity.device, options.poll_ms, options.report_ms)
        )
        device: LiveDevice
        ca = identity.registry_ca
        key = open_key(identity.key.uri, identity.folder)
        tokens = DeviceTokens(identity.device, key, clock)
        verifier = UptaneVerifier(
            data / "trust",
            identity.device,
            HttpMetadataSource(identity.url, director_prefix(identity.device), tokens, ca),
            HttpMetadataSource(identity.url, IMAGE_PREFIX, tokens, ca),
            lambda: device.release_counters,
            TimeFloor(data / "trust" / "time.json"),
        )
        verifier.seed(*identity.roots())
        server = self._servers[identity.device] = RoomServer(self._room)
        outside = Ports(
            clock=clock,
            verifier=verifier,
            fetcher=HttpBundleFetcher(identity.url, tokens, blobs, ca),
            blobs=blobs,
            slots=FileSlotStore(data, blobs),
            server=server,
            maker=None if self._decoding is None else FileDeltaMaker(blobs, self._decoding),
        )
        device = LiveDevice(
            core=core,
            identity=Identity(identity.device, boot, identity.platform, agent_version()),
            dispatcher=Dispatcher(identity.platform, identity.hardware_id, outside),
            clock=clock,
            journal=journal,
            signer=key,
            link=MqttLink(identity.device, _address(identity), stream(options.seed, "link", number)),
            spool=MemorySpool(identity.device, boot),
            executor=self._executor,
        )
        return device

    # -- traffic ---------------------------------------------------------------------------------------------------

    async def _traffic(self) -> None:
        """Let the devices' own clients ask; samples go to their spools."""
        if self._options.rate_per_s <= 0:
            return
        loop = asyncio.get_running_loop()
        owed = 0.0
        while True:
            await asyncio.sleep(_TICK_S)
            owed += self._options.rate_per_s * _TICK_S
            count, owed = int(owed), owed % 1
            asked = [(device, self._draw.randrange(2**31), self._draw.random()) for device in self.devices * count]
            answers = await loop.run_in_executor(self._executor, self._ask_all, asked)
            for device, predictions in answers:
                self._requests += len(predictions)
                self._right += sum(item.answer == item.label for item in predictions)
                records = [item.record for item in predictions if item.record is not None]
                if records:
                    device.take_samples(records)

    def _ask_all(self, asked: list[tuple[LiveDevice, int, float]]) -> list[tuple[LiveDevice, list[Prediction]]]:
        return [(device, self._servers[device.name].ask(number, chance)) for device, number, chance in asked]


def _address(identity: DeviceIdentity) -> BrokerAddress:
    if identity.broker is None:
        raise EdgeError(
            "config.invalid",
            f"the registry told {identity.device} of no MQTT broker",
            "Start the registry with a broker; simulated devices report through it.",
        )
    tls: ssl.SSLContext | None = None
    if identity.broker.tls:
        tls = tls_context(identity.broker_ca)
        tls.load_cert_chain(identity.link_certificate, identity.link_key)
    return BrokerAddress(identity.broker.host, identity.broker.port, tls)
