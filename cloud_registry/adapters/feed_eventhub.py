"""Messages from devices on an IoT hub, from its Event-Hubs-compatible endpoint (azure-eventhub).

One reader of all partitions for each kind of message. How far each partition is done with is kept in the registry's
database, written only after the messages were released, so that a crash repeats some and loses none; what is repeated
is known by its number. A reader that has no room makes the library wait, which makes the hub wait.
docs/adr/0033-iot-hub-cloud.md.
"""

import json
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from cloud_registry.adapters.link_iothub import HubWriter, read_secret
from cloud_registry.adapters.link_mqtt import LinkHandlers, LinkMessage
from cloud_registry.config import IotHubConfig
from cloud_registry.hub_directory import HubDirectory
from cloud_registry.limits import (
    HUB_CHECKPOINT_S,
    HUB_PARTITIONS_MAX,
    HUB_RETRY_MS,
    HUB_RETRY_MS_MAX,
    STOP_TIMEOUT_S,
)
from cloud_registry.ports import MetadataRow, MetadataTable
from edge_contract import topics
from edge_contract.errors import EdgeError
from edge_contract.hub import KIND_BATCH, KIND_KEY, KIND_REPORT, HubAddress
from edge_contract.telemetry import Ack

_log: Final = logging.getLogger(__name__)
_BEGINNING: Final = "-1"
_FULL_WAIT_S: Final = 0.05
_TOPICS: Final = {KIND_BATCH: topics.telemetry, KIND_REPORT: topics.report}


@dataclass(frozen=True, slots=True)
class EventToken:
    """Names one delivery.

    Attributes:
        partition: Identifier of the partition.
        offset: Where it lies there, as the hub says.
        sequence: Its number there.
    """

    partition: str
    offset: str
    sequence: int


class Checkpoints:
    """How far each partition is done with, in the registry's database. Any thread."""

    def __init__(self, table: MetadataTable, name: str) -> None:
        """Use a name space of one reader."""
        self._table = table
        self._repository = f"iothub/{name}"
        self._guard = threading.Lock()
        self._taken: dict[str, deque[EventToken]] = {}
        self._released: dict[str, set[int]] = {}
        self._done: dict[str, EventToken] = {}
        self._written: dict[str, int] = {}
        self._positions: dict[str, str] = {}

    def positions(self, partitions: list[str]) -> dict[str, str]:
        """Behind which offset each partition goes on; the beginning where nothing is known.

        What is given moves on with what is done, until this is asked again: the library looks there whenever it comes
        back to a partition that failed, and would read everything since the start once more.

        Raises:
            EdgeError: `cloud.unavailable`.
        """
        found: dict[str, str] = {}
        for partition in partitions:
            row = self._table.get(self._repository, partition)
            found[partition] = _BEGINNING if row is None else str(json.loads(row[1])["offset"])
        with self._guard:
            self._positions = found
        return found

    def taken(self, token: EventToken) -> None:
        """A message came; behind all that came of its partition before, or the reader went back to what is not done."""
        with self._guard:
            waiting = self._taken.setdefault(token.partition, deque())
            if waiting and token.sequence <= waiting[-1].sequence:
                waiting.clear()
            waiting.append(token)

    def done(self, token: EventToken) -> None:
        """A message is done with; its partition is up to the first that is not."""
        partition = token.partition
        with self._guard:
            waiting = self._taken.get(partition)
            if not waiting or token.sequence < waiting[0].sequence:
                return  # of a reader before, and not taken again yet, or done with already
            released = self._released.setdefault(partition, set())
            released.add(token.sequence)
            while waiting and waiting[0].sequence in released:
                done = self._done[partition] = waiting.popleft()
                released.discard(done.sequence)
                self._positions[partition] = done.offset
            if not waiting:
                released.clear()

    def forget(self) -> None:
        """The reader ended: what it took and nobody was done with comes again."""
        with self._guard:
            self._taken.clear()
            self._released.clear()

    def write(self) -> None:
        """Make it durable.

        Raises:
            EdgeError: `cloud.unavailable`; it is tried again with the next one.
        """
        with self._guard:
            fresh = [item for item in self._done.values() if item.sequence != self._written.get(item.partition)]
        if not fresh:
            return
        rows = [
            MetadataRow(
                self._repository,
                item.partition,
                1,
                json.dumps({"offset": item.offset, "sequence": item.sequence}).encode(),
            )
            for item in fresh
        ]
        self._table.put_many(rows, {})
        with self._guard:
            self._written.update({item.partition: item.sequence for item in fresh})


class EventHubFeed:
    """Implements `collect.consume.Feed` for one kind of message. `start` once, `close` at the end; any thread."""

    def __init__(
        self,
        config: IotHubConfig,
        kind: str,
        directory: HubDirectory,
        checkpoints: Checkpoints,
        writer: HubWriter,
        handlers: LinkHandlers,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            config: Where and how.
            kind: `edge_contract.hub.KIND_BATCH` or `KIND_REPORT`; messages of another kind are passed over.
            directory: Whose messages they are.
            checkpoints: Where to go on.
            writer: Carries acknowledgements.
            handlers: What to call, on the library's threads.

        Raises:
            EdgeError: `config.*`.
        """
        self._config = config
        self._kind = kind
        self._directory = directory
        self._checkpoints = checkpoints
        self._writer = writer
        self._handlers = handlers
        self._text = read_secret(config.eventhub_connection_string_file, "iothub.eventhub_connection_string_file")
        _import()
        self._is_stopping = threading.Event()
        self._is_ready = threading.Event()
        self._client: Any = None
        self._guard = threading.Lock()
        self._failures = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"hub-{kind}", daemon=True),
            threading.Thread(target=self._keep, name=f"hub-{kind}-checkpoints", daemon=True),
        ]

    @property
    def is_ready(self) -> bool:
        """Whether the hub's partitions are being read."""
        return self._is_ready.is_set()

    def start(self) -> None:
        """Connect and begin."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End; what was released is checkpointed."""
        self._is_stopping.set()
        self._close_client()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(STOP_TIMEOUT_S)
        self._checkpoint()

    def _close_client(self) -> None:
        with self._guard:
            client = self._client
        if client is not None:
            with suppress(Exception):  # the library's own trouble at the end is nobody's
                client.close()

    def acknowledge(self, token: object) -> None:
        """Release a delivery."""
        if isinstance(token, EventToken):
            self._checkpoints.done(token)

    def send_ack(self, device: str, ack: Ack) -> None:
        """Tell a device what is durable."""
        self._writer.send_ack(device, ack)

    # --- the threads

    def _run(self) -> None:
        attempt = 0
        while not self._is_stopping.is_set():
            began = time.monotonic()
            try:
                self._read()
            except EdgeError as error:
                _log.warning("messages over the IoT hub cannot be read: %s", error)
            except Exception as error:  # noqa: BLE001 - the library has several trees; its words may hold secrets
                _log.warning("messages over the IoT hub cannot be read: %s", type(error).__name__)
            finally:
                self._is_ready.clear()
            attempt = 0 if (time.monotonic() - began) * 1000 > HUB_RETRY_MS_MAX else attempt + 1
            wait_ms = min(HUB_RETRY_MS_MAX, HUB_RETRY_MS << min(attempt, 20)) * random.uniform(0.5, 1.0)
            self._is_stopping.wait(wait_ms / 1000)

    def _read(self) -> None:
        """One client from beginning to end; returns when it was closed."""
        client = self._make()
        with self._guard:
            self._client = client
        try:
            if self._is_stopping.is_set():
                return
            partitions = list(client.get_partition_ids())
            if len(partitions) > HUB_PARTITIONS_MAX:
                raise EdgeError("cloud.unavailable", f"the hub has {len(partitions)} partitions")
            self._checkpoints.forget()
            self._handlers.on_lost()
            positions = self._checkpoints.positions(partitions)
            client.receive(
                self._received,
                on_error=self._failed,
                on_partition_initialize=lambda _context: self._is_ready.set(),
                starting_position=positions,
                starting_position_inclusive=False,
                prefetch=self._config.prefetch,
            )
        finally:
            with suppress(Exception):
                client.close()

    def _make(self) -> Any:
        library = _import()
        options: dict[str, Any] = {"consumer_group": self._config.consumer_group}
        if self._config.eventhub_address:
            options["custom_endpoint_address"] = self._config.eventhub_address
        if self._config.ca is not None:
            options["connection_verify"] = str(self._config.ca)
        if self._config.websockets:
            options["transport_type"] = library.TransportType.AmqpOverWebsocket
        try:
            return library.EventHubConsumerClient.from_connection_string(self._text, **options)
        except (ValueError, KeyError, TypeError):
            hint = "Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…;EntityPath=…, as the hub shows it."
            file = self._config.eventhub_connection_string_file
            raise EdgeError("config.invalid", f"{file} holds no connection string of an event hub", hint) from None

    def _failed(self, context: Any, error: Exception) -> None:
        """The library goes on by itself; it is only told once in a while."""
        self._failures += 1
        self._is_ready.clear()
        where = "the hub" if context is None else f"partition {context.partition_id}"
        if self._failures & (self._failures - 1) == 0:
            _log.warning("reading %s failed (%d times): %s", where, self._failures, type(error).__name__)

    def _received(self, context: Any, event: Any) -> None:
        """One event, on a thread of the library's; blocks while there is no room."""
        if event is None or self._is_stopping.is_set():
            return
        self._is_ready.set()
        token = EventToken(str(context.partition_id), str(event.offset), int(event.sequence_number))
        self._checkpoints.taken(token)
        if _texts(event.properties).get(KIND_KEY) != self._kind:
            self._checkpoints.done(token)  # the other reader's, or not of Lighterman at all
            return
        topic = self._topic(event)
        if self._is_stopping.is_set():
            return  # whose it is may not have been looked up: it comes again
        message = LinkMessage(token, topic, event_body(event))
        while not self._handlers.on_message(message):
            if self._is_stopping.wait(_FULL_WAIT_S):
                return

    def _topic(self, event: Any) -> str:
        """The topic that this message would have had over MQTT; empty for one that is nobody's.

        Whose it is was proved to the hub, and is not what the message says of itself.
        """
        system = _texts(event.system_properties)
        address = HubAddress(
            system.get("iothub-connection-device-id", ""), system.get("iothub-connection-module-id", "")
        )
        device = None
        while not self._is_stopping.is_set():
            try:
                device = self._directory.device(address)
                break
            except EdgeError as error:  # the database is away: nothing could be stored either
                _log.warning("whose messages these are cannot be looked up: %s", error)
                self._is_stopping.wait(HUB_RETRY_MS / 1000)
        return "" if device is None else _TOPICS[self._kind](device)

    def _keep(self) -> None:
        while not self._is_stopping.wait(HUB_CHECKPOINT_S):
            self._checkpoint()
        self._close_client()  # once more: one may have begun to read while this was being closed

    def _checkpoint(self) -> None:
        try:
            self._checkpoints.write()
        except EdgeError as error:
            _log.warning("how far the hub was read cannot be written down, so some may be read twice: %s", error)
        except Exception:  # noqa: BLE001 - logged; reading goes on, and has to be written down later
            _log.exception("how far the hub was read cannot be written down")


def event_body(event: Any) -> bytes:
    """The bytes of an event, whatever parts the library has them in."""
    body = event.body
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    try:
        return b"".join(body)
    except (TypeError, ValueError):
        return b""


def _texts(properties: Mapping[Any, Any] | None) -> dict[str, str]:
    """Properties with names and values as text, which AMQP may give as bytes."""
    return {_text(key): _text(value) for key, value in (properties or {}).items()}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _import() -> Any:
    try:
        import azure.eventhub as library
    except ImportError as error:
        hint = "Install lighterman[cloud,azure-cloud]."
        raise EdgeError("config.dependency-missing", f"azure-eventhub is not installed: {error}", hint) from None
    return library
