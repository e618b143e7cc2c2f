"""One simulated device: the agent's core and dispatcher that ship, driven by asyncio instead of threads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Final, Protocol, TypeVar

from edge_agent import ports
from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_agent.core.agent import Agent
from edge_agent.core.batching import Delivery
from edge_agent.reporting import envelope_for
from edge_agent.shell.dispatch import Dispatcher, Lane, lane_of
from edge_agent.shell.runner import Identity
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.telemetry import Ack
from edge_contract.twin import Report, ReportedModule

_T = TypeVar("_T")

EVENTS_MAX: Final = 1_000
_IDLE_MS_MAX: Final = 10_000
_PERSIST_RETRY_S: Final = 2.0
_PERSIST_TRIES_MAX: Final = 30


class AsyncLink(Protocol):
    """What a device needs of its connection. The event loop's thread."""

    def send_report(self, message: bytes) -> bool:
        """Hand a report over; false when offline."""
        ...

    def send_batch(self, message: bytes) -> bool:
        """Hand a batch over; false when offline."""
        ...

    async def run(
        self, on_nudge: Callable[[int], None], on_ack: Callable[[Ack], None], on_online: Callable[[bool], None]
    ) -> None:
        """Stay connected until cancelled."""
        ...


class LiveDevice:
    """Runs one core. Everything but the commands' blocking work happens on the event loop."""

    def __init__(
        self,
        core: Agent,
        identity: Identity,
        dispatcher: Dispatcher,
        clock: ports.Clock,
        journal: ports.Journal,
        signer: ports.DeviceSigner,
        link: AsyncLink,
        spool: ports.Spool,
        executor: Executor,
    ) -> None:
        """Bring the parts together; `run` starts them. `executor` is shared by all devices."""
        self.core = core
        self.identity = identity
        self.spool = spool
        self._dispatcher = dispatcher
        self._clock = clock
        self._journal = journal
        self._signer = signer
        self._link = link
        self._executor = executor
        self._events: asyncio.Queue[inputs.Event | Ack | None] = asyncio.Queue(EVENTS_MAX)
        self._lanes: dict[Lane, asyncio.Queue[do.Command]] = {lane: asyncio.Queue(EVENTS_MAX) for lane in Lane}
        self._cancelled: set[int] = set()
        self._is_stopping = False
        self._delivery = Delivery()
        self._is_online = False
        self._reports = 0
        # Read by the dispatcher's verifier on an executor thread; replaced whole.
        self.release_counters: dict[tuple[str, str], int] = core.release_counters

    @property
    def name(self) -> str:
        """Name of the device."""
        return self.identity.device

    @property
    def is_online(self) -> bool:
        """Whether the broker accepted it."""
        return self._is_online

    @property
    def modules(self) -> dict[str, ReportedModule]:
        """How its modules stand."""
        return self.core.reported_modules()

    @property
    def bytes_fetched(self) -> int:
        """Bytes of blobs that came over the network."""
        return self._dispatcher.network_bytes

    @property
    def bytes_saved(self) -> int:
        """Bytes that needed not come because deltas made them."""
        return self._dispatcher.saved_bytes

    def take_samples(self, records: list[JsonObject]) -> None:
        """Keep telemetry and see that it is sent. The event loop's thread."""
        self.spool.append(records)
        self._delivery.record_waits(self._clock.monotonic_ms())
        self._post(None)

    async def run(self) -> None:
        """Run until cancelled. What a lane meets that is no operating error passes through: it is a bug."""
        async with asyncio.TaskGroup() as tasks:
            for lane in Lane:
                tasks.create_task(self._run_lane(lane), name=f"{self.name}-{lane}")
            tasks.create_task(
                self._link.run(
                    lambda version: self._post(inputs.NudgeReceived(version)), self._post, self._link_changed
                ),
                name=f"{self.name}-link",
            )
            try:
                await self._handle(inputs.Started())
                while True:
                    await self._turn()
            finally:
                self._is_stopping = True

    def _post(self, item: inputs.Event | Ack | None) -> None:
        try:
            self._events.put_nowait(item)
        except asyncio.QueueFull:
            # Nudges and acknowledgements come again; completions are never posted this way.
            return

    def _nudged(self, director_version: int) -> None:
        self._post(inputs.NudgeReceived(director_version))

    def _link_changed(self, is_online: bool) -> None:
        self._is_online = is_online
        self._delivery.link_changed()
        self._post(inputs.LinkChanged(is_online))

    # -- the loop --------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        item = await self._next()
        now = self._clock.monotonic_ms()
        if isinstance(item, Ack):
            if self.spool.acknowledge(item):
                self._delivery.batch_acknowledged(now, has_more=self.spool.backlog()[0] > 0)
        elif item is not None:
            await self._handle(item)
        deadline = self.core.deadline()
        if deadline is not None and self._clock.monotonic_ms() >= deadline:
            await self._handle(inputs.TimeReached())
        self._deliver(self._clock.monotonic_ms())

    async def _next(self) -> inputs.Event | Ack | None:
        now = self._clock.monotonic_ms()
        times = (self.core.deadline(), self._delivery.deadline(self._is_online))
        wait_ms = min(_IDLE_MS_MAX, min((at - now for at in times if at is not None), default=_IDLE_MS_MAX))
        try:
            async with asyncio.timeout(max(0, wait_ms) / 1000):
                return await self._events.get()
        except TimeoutError:
            return None

    async def _handle(self, event: inputs.Event) -> None:
        commands = deque(self.core.handle(event, self._clock.monotonic_ms()))
        self.release_counters = self.core.release_counters
        while commands:
            command = commands.popleft()
            if isinstance(command, do.Persist):
                await self._persist(command.record)
            elif isinstance(command, do.CancelOperation):
                self._cancelled.add(command.op)
            elif isinstance(command, do.SendReport):
                self._send_report()
            else:
                self._lanes[lane_of(command)].put_nowait(command)

    async def _persist(self, record: JsonObject) -> None:
        """Write the record; the core waits meanwhile, so nothing that follows from it can be ahead of it."""
        for attempt in range(_PERSIST_TRIES_MAX):
            try:
                await self._in_executor(lambda: self._journal.save(record))
            except EdgeError:
                if attempt == _PERSIST_TRIES_MAX - 1:
                    raise
                await asyncio.sleep(_PERSIST_RETRY_S)
            else:
                return

    def _send_report(self) -> None:
        self._reports += 1
        who = self.identity
        report = Report(
            device=who.device,
            boot=who.boot,
            number=self._reports,
            sent_ms=max(0, self._clock.wall_ms()),
            platform=who.platform,
            agent_version=who.agent_version,
            director_version=self.core.director_version,
            modules=self.modules,
            error=self.core.error,
            bytes_fetched=self.bytes_fetched,
            bytes_saved=self.bytes_saved,
            clock_trusted=self.core.is_clock_trusted,
        )
        # In this process and at once: a file's key signs in a tenth of a millisecond.
        self._link.send_report(envelope_for(report.to_bytes(), self._signer))

    def _deliver(self, now: int) -> None:
        deadline = self._delivery.deadline(self._is_online)
        if deadline is None or now < deadline:
            return
        batch = self.spool.next_batch()
        if batch is None:
            self._delivery.batch_acknowledged(now, has_more=False)
        else:
            self._link.send_batch(batch.to_bytes())
            self._delivery.batch_sent(now)

    # -- lanes -----------------------------------------------------------------------------------------------------

    async def _run_lane(self, lane: Lane) -> None:
        """Carry out a lane's commands one after the other, each on a thread of the shared executor."""
        while True:
            command = await self._lanes[lane].get()
            op = getattr(command, "op", None)

            def is_cancelled(op: int | None = op) -> bool:
                return self._is_stopping or op in self._cancelled

            def work(command: do.Command = command) -> inputs.Event | None:
                return self._dispatcher.execute(command, is_cancelled)  # awaited before the next turn

            event = None if op in self._cancelled else await self._in_executor(work)
            if op is not None:
                self._cancelled.discard(op)
            if event is not None:
                await self._events.put(event)

    def _in_executor(self, work: Callable[[], _T]) -> Awaitable[_T]:
        return asyncio.get_running_loop().run_in_executor(self._executor, work)
