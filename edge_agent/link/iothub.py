"""The link over Azure IoT Hub, on its device SDK.

The SDK waits for ever where the hub says nothing, retries at fixed intervals without jitter, gives up for good when it
is refused on a reconnect, keeps nothing for later and never subscribes again. So it is trusted with one connection at a
time: its own retries are off, each connection gets a new SDK object with the credentials as they are in the files by
then, every call is bounded, and one thread here reconnects with capped, jittered backoff whatever the reason was. The
SDK is imported when that thread first needs it.

The hub's names for what the link carries are in `edge_contract.hub`: nudges, acknowledgements and settings are desired
properties; reports and batches are messages; a summary and the newest signed report are reported properties; direct
methods go to `ports.Operations`. See docs/adr/0014-iot-hub-link.md and docs/adr/0032-iot-hub-sdk.md.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from edge_agent.limits import (
    HUB_ABANDONED_MAX,
    HUB_MESSAGE_BYTES_MAX,
    HUB_OPEN_MS_MAX,
    HUB_OUTPUT_TRIES_MAX,
    HUB_OUTPUTS_MAX,
    HUB_PATIENCE_MS,
    HUB_REPORTED_MS_MAX,
    HUB_REPORTED_MS_MIN,
    HUB_SEND_MS_MAX,
    HUB_TWIN_MS,
    LINK_OUTBOX_MAX,
    LINK_RETRY_MS_FIRST,
    LINK_RETRY_MS_MAX,
    LINK_STOP_MS_MAX,
)
from edge_agent.link.iothub_connection import OUTPUT, HubConnection, Listeners, Outgoing
from edge_agent.link.iothub_sdk import Sdk
from edge_agent.link.iothub_twin import DesiredTwin, patch_between, reported_document
from edge_agent.ports import LinkInput, Operations
from edge_contract.errors import ContractError, EdgeError
from edge_contract.hub import KIND_ACK, KIND_BATCH, KIND_KEY, KIND_REPORT, METHODS, TWIN_KEY, HubSettings
from edge_contract.jsonio import JsonObject
from edge_contract.telemetry import Ack, Batch

_LOG = logging.getLogger(__name__)
_REFUSALS: Final = ("CredentialError", "UnauthorizedError")
_REJECTION: Final = "ServiceError"
"""What the SDK raises when the hub answered a request with an error, on a connection that is still good."""


class IotHubLink:
    """Implements `ports.Link`. Any thread may send; callbacks run on the link's own thread."""

    def __init__(
        self,
        sdk: Sdk,
        *,
        retry_ms_first: int = LINK_RETRY_MS_FIRST,
        retry_ms_max: int = LINK_RETRY_MS_MAX,
        open_ms_max: int = HUB_OPEN_MS_MAX,
        send_ms_max: int = HUB_SEND_MS_MAX,
        patience_ms: int = HUB_PATIENCE_MS,
        twin_ms: int = HUB_TWIN_MS,
        reported_ms: int = HUB_REPORTED_MS_MIN,
        operations: Operations | None = None,
        methods: tuple[str, ...] = METHODS,
    ) -> None:
        """Describe the link; `start` connects it.

        Args:
            sdk: Makes SDK objects.
            retry_ms_first: Wait after the first failure to connect.
            retry_ms_max: Upper bound of the waits, which double.
            open_ms_max: Bound of connecting, subscribing and reading the twin together.
            send_ms_max: Bound of one send, to the hub's acknowledgement.
            patience_ms: Wait between connections while too many calls of the SDK never came back.
            twin_ms: How often the twin is read again; patches can be lost on their way.
            reported_ms: Least time between two writes of reported properties.
            operations: Answers direct methods and takes settings; without it there are neither.
            methods: Those that may be called.
        """
        self._sdk = sdk
        self._retry_ms = (retry_ms_first, retry_ms_max)
        self._open_ms_max, self._send_ms_max = open_ms_max, send_ms_max
        self._patience_ms, self._twin_ms, self._reported_ms = patience_ms, twin_ms, reported_ms
        self._operations, self._methods = operations, methods
        self._on_input: Callable[[LinkInput], None] | None = None
        self._turn = threading.Condition()  # guards everything below
        self._outbox: deque[Outgoing] = deque()
        self._outputs: deque[Outgoing] = deque()  # outlive connections: nobody else has them any more
        self._newest = b""  # the report that reported properties are made of
        self._is_online = False
        self._is_stopping = False
        self._abandoned: list[threading.Thread] = []
        self._thread: threading.Thread | None = None
        self._error: EdgeError | None = None
        # Of the link's thread alone:
        self._desired = DesiredTwin()
        self._settings, self._problem = HubSettings(), ""
        self._reported_at = self._twin_at = 0.0
        self._reported_wait_ms = self._twin_wait_ms = reported_ms
        self._made: tuple[tuple[bytes, HubSettings, str], JsonObject] | None = None

    @property
    def error(self) -> EdgeError | None:
        """Why the link is down, or none while it is up."""
        return self._error

    def start(
        self, on_nudge: Callable[[int], None], on_ack: Callable[[Ack], None], on_online: Callable[[bool], None]
    ) -> None:
        """See `ports.Link.start`. Called once."""
        self._on_nudge, self._on_ack, self._on_online = on_nudge, on_ack, on_online
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def send_report(self, report: bytes) -> bool:
        """See `ports.Link.send_report`. Of several reports that wait, only the newest is sent."""
        with self._turn:
            self._newest = report
        return self._send([Outgoing(KIND_REPORT, report)])

    def send_batch(self, batch: bytes) -> bool:
        """See `ports.Link.send_batch`. A batch that is too long for the hub goes in parts."""
        try:
            return self._send([Outgoing(KIND_BATCH, part) for part in _parts(batch)])
        except ContractError as error:
            _LOG.warning("a batch of %d bytes is too long for the hub and cannot be divided: %s", len(batch), error)
            return False

    def listen(self, on_input: Callable[[LinkInput], None]) -> None:
        """See `ports.ModuleMessages.listen`; called on threads of the SDK."""
        self._on_input = on_input

    def send_output(self, name: str, content: bytes, properties: Mapping[str, str], content_type: str) -> bool:
        """See `ports.ModuleMessages.send_output`. What was taken outlives connections: it is sent on the next."""
        if len(content) > HUB_MESSAGE_BYTES_MAX:
            _LOG.warning("an %s is longer than the hub takes, %d bytes", OUTPUT, HUB_MESSAGE_BYTES_MAX)
            return False
        with self._turn:
            if not self._is_online or self._is_stopping or len(self._outputs) >= HUB_OUTPUTS_MAX:
                return False
            self._outputs.append(Outgoing(OUTPUT, content, name, dict(properties), content_type))
            self._turn.notify_all()
        return True

    def stop(self) -> None:
        """See `ports.Link.stop`. What waits is sent first, within the bound."""
        with self._turn:
            self._is_stopping = True
            self._turn.notify_all()
        if self._thread is not None:
            self._thread.join(LINK_STOP_MS_MAX / 1000)
            if self._thread.is_alive():
                _LOG.warning("the link's thread did not end within %d ms", LINK_STOP_MS_MAX)

    def _send(self, items: list[Outgoing]) -> bool:
        for item in items:
            if len(item.content) > HUB_MESSAGE_BYTES_MAX:
                _LOG.warning("a %s is longer than the hub takes, %d bytes", item.kind, HUB_MESSAGE_BYTES_MAX)
                return False
        with self._turn:
            if not self._is_online or self._is_stopping:
                return False
            if items[0].kind == KIND_REPORT:
                self._outbox = deque(item for item in self._outbox if item.kind != KIND_REPORT)
            if len(self._outbox) + len(items) > LINK_OUTBOX_MAX:
                return False
            self._outbox.extend(items)
            self._turn.notify_all()
        return True

    # --- the link's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        attempt = 0  # connections in a row that never came up
        while not self._is_stopping:
            connection = HubConnection(
                self._sdk, self._turn, Listeners(self._on_input, self._operations, self._methods)
            )
            is_up = False
            try:
                self._bounded(connection.open, self._open_ms_max, "connecting", ends_early=True)
                is_up = True
                self._serve(connection)
            except EdgeError as error:
                self._error = EdgeError(error.code, error.detail, error.hint)
                if error.code == "network.refused":
                    self._sdk.refused()
                if (attempt == 0 or is_up) and not self._is_stopping:
                    _LOG.warning("the link to the IoT hub is down: %s", error)
            except Exception as error:  # noqa: BLE001 - logged; a link never gives up
                self._error = EdgeError("internal.bug", f"the link to the IoT hub failed: {type(error).__name__}")
                _LOG.exception("the link to the IoT hub failed unexpectedly")
            self._leave(connection)
            attempt = 1 if is_up else attempt + 1
            self._wait(attempt)

    def _leave(self, connection: HubConnection) -> None:
        """Say that the link is down, and let go of the connection; neither may end the thread."""
        for step in (partial(self._set_online, False), partial(self._close, connection)):
            try:
                step()
            except Exception:  # noqa: BLE001 - logged; a link never gives up
                _LOG.exception("leaving a connection to the IoT hub failed")

    def _wait(self, attempt: int) -> None:
        """Half of the capped exponential and a drawn other half; longer while too many dead connections linger."""
        first, most = self._retry_ms
        full = min(most, first << min(attempt - 1, 20)) / 1000
        with self._turn:
            self._turn.wait_for(lambda: self._is_stopping, full / 2 + random.uniform(0, full / 2))
            # Some never do: the SDK's shutdown does not wake whoever waits for a twin.
            self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
            if len(self._abandoned) >= HUB_ABANDONED_MAX:
                _LOG.warning("%d calls of the IoT hub's SDK never came back", len(self._abandoned))
                self._turn.wait_for(lambda: self._is_stopping, self._patience_ms / 1000)

    def _serve(self, connection: HubConnection) -> None:
        """Carry messages until the connection ends or the link is stopped and has sent what waited."""
        self._error = None
        self._desired = DesiredTwin()
        self._reported_at = 0.0
        self._reported_wait_ms = self._twin_wait_ms = self._reported_ms
        self._plan_twin()
        self._set_online(True)
        while True:
            with self._turn:
                self._turn.wait_for(
                    lambda: connection.lost or connection.inbox or self._outbox or self._outputs or self._is_stopping,
                    self._time_left(connection),
                )
                heard, lost = list(connection.inbox), connection.lost
                connection.inbox.clear()
                item = None if lost else self._next()
            for kind, value in heard:
                self._hear(kind, value)
            if lost:
                raise EdgeError("network.cut", f"the IoT hub: {lost}")
            if item is not None:
                self._deliver(connection, item)
            elif self._is_stopping:
                return
            self._tend(connection)

    def _next(self) -> Outgoing | None:
        """What is sent next: reports and telemetry before outputs, of which there may be many."""
        waiting = self._outbox or self._outputs
        return waiting.popleft() if waiting else None

    def _deliver(self, connection: HubConnection, item: Outgoing) -> None:
        try:
            self._bounded(partial(connection.send, item), self._send_ms_max, f"sending a {item.kind}")
        except EdgeError:
            if item.kind == OUTPUT and item.tries < HUB_OUTPUT_TRIES_MAX:
                with self._turn:
                    self._outputs.appendleft(replace(item, tries=item.tries + 1))
            elif item.kind == OUTPUT:
                _LOG.warning("a message for the output %s is given up after %d tries", item.name, item.tries + 1)
            raise

    def _time_left(self, connection: HubConnection) -> float:
        """Seconds until something is to be done though nothing happens."""
        now = time.monotonic()
        left = self._twin_at - now
        if self._report_patch(connection, self._document()):
            left = min(left, self._reported_at - now)
        return max(0.0, left)

    def _tend(self, connection: HubConnection) -> None:
        """Read the twin and write to it, when it is time."""
        now = time.monotonic()
        if now >= self._twin_at:
            self._read_again(connection)
        document = self._document()  # a newer report may come while this one is written
        if now < self._reported_at or self._is_stopping or not (patch := self._report_patch(connection, document)):
            return
        try:
            self._bounded(partial(connection.report, {TWIN_KEY: patch}), self._send_ms_max, "writing the twin")
            connection.reported = {TWIN_KEY: document}
            self._reported_wait_ms = self._reported_ms
        except _RejectedError as error:
            # Too much, or too often: the connection is good, and the report went as a message as well.
            _LOG.warning("%s", error.detail)
            self._reported_wait_ms = min(2 * self._reported_wait_ms, HUB_REPORTED_MS_MAX)
        self._reported_at = now + self._reported_wait_ms * random.uniform(1.0, 1.25) / 1000

    def _read_again(self, connection: HubConnection) -> None:
        """Read the twin; where the hub has too much to do, ask again later on the same connection."""
        try:
            self._bounded(connection.read_twin, self._send_ms_max, "reading the twin")
        except _RejectedError as error:
            _LOG.warning("%s", error.detail)
            self._twin_at = time.monotonic() + self._twin_wait_ms * random.uniform(1.0, 1.25) / 1000
            self._twin_wait_ms = min(2 * self._twin_wait_ms, HUB_REPORTED_MS_MAX)
            return
        self._twin_wait_ms = self._reported_ms
        self._plan_twin()

    def _plan_twin(self) -> None:
        self._twin_at = time.monotonic() + self._twin_ms * random.uniform(0.75, 1.25) / 1000

    def _document(self) -> JsonObject:
        """What reported properties are to say, read once for each report."""
        key = (self._newest, self._settings, self._problem)
        if self._made is None or self._made[0] != key:
            self._made = (key, reported_document(*key))
        return self._made[1]

    def _report_patch(self, connection: HubConnection, document: JsonObject) -> JsonObject:
        """What reported properties lack; nothing before the first report."""
        if not self._newest:
            return {}
        known = connection.reported
        return patch_between(known.get(TWIN_KEY) if isinstance(known, dict) else None, document)

    def _hear(self, kind: str, value: Any) -> None:
        """What the hub said: a hint that anybody may have written, so what cannot be read is passed over."""
        try:
            if kind == "message":
                if (getattr(value, "custom_properties", None) or {}).get(KIND_KEY) == KIND_ACK:
                    content = value.data
                    self._on_ack(Ack.parse(content if isinstance(content, bytes) else str(content).encode()))
                return
            if kind == "patch" and self._desired.is_behind(value):
                self._twin_at = 0.0  # one was missed: what it said is in the whole
            said = self._desired.take(value, is_whole=kind == "twin")
        except (ContractError, ValueError, TypeError, AttributeError, RecursionError) as error:
            _LOG.warning("what the IoT hub sent cannot be read: %s", str(error)[:200])
            return
        if said is None:
            return
        if said.problem != self._problem:
            self._problem = said.problem
            if said.problem:
                _LOG.warning("desired properties are passed over: %s", said.problem)
        if said.director_version is not None:
            self._on_nudge(said.director_version)
        if said.ack is not None:
            self._on_ack(said.ack)
        if said.settings is not None and said.settings != self._settings and self._operations is not None:
            self._settings = said.settings
            self._operations.set(said.settings)

    def _set_online(self, is_online: bool) -> None:
        with self._turn:
            has_changed = self._is_online != is_online
            self._is_online = is_online
            if not is_online:
                self._outbox.clear()
        if has_changed:
            self._on_online(is_online)

    def _close(self, connection: HubConnection) -> None:
        """Let the SDK end its threads, as long as that may take."""
        thread = threading.Thread(target=connection.close, name="link-close", daemon=True)
        thread.start()
        thread.join(LINK_STOP_MS_MAX / 4000)
        if thread.is_alive():
            with self._turn:
                self._abandoned.append(thread)

    def _bounded(self, call: Callable[[], None], ms_max: int, what: str, *, ends_early: bool = False) -> None:
        """Run a call of the SDK on a thread of its own and wait for it within a bound.

        Raises:
            EdgeError: `network.timeout`, `network.refused`, `network.unreachable`, `network.cut`, `config.*`.
        """
        outcome: list[Exception | None] = []

        def work() -> None:
            failure: Exception | None = None
            try:
                call()
            except Exception as error:  # noqa: BLE001 - the SDK lets its inner layers' through
                failure = error
            with self._turn:
                outcome.append(failure)
                self._turn.notify_all()

        thread = threading.Thread(target=work, name="link-call", daemon=True)
        thread.start()
        with self._turn:
            self._turn.wait_for(lambda: outcome or (ends_early and self._is_stopping), ms_max / 1000)
            if not outcome:
                self._abandoned.append(thread)
        if not outcome:
            raise EdgeError("network.timeout", f"the IoT hub: {what} took longer than {ms_max} ms")
        if (failure := outcome[0]) is not None:
            raise _told(failure, what)


class _RejectedError(EdgeError):
    """The hub answered a request with an error."""


def _parts(batch: bytes) -> Iterator[bytes]:
    """A batch as messages the hub takes: acknowledgement is by number, so halves are as good as the whole.

    Raises:
        ContractError: a batch that is too long is none.
    """
    if len(batch) <= HUB_MESSAGE_BYTES_MAX:
        yield batch
        return
    whole = Batch.parse(batch)
    if len(whole.samples) < 2:
        yield batch
        return
    middle = len(whole.samples) // 2
    for samples in (whole.samples[:middle], whole.samples[middle:]):
        yield from _parts(replace(whole, samples=samples).to_bytes())


def _told(error: Exception, what: str) -> EdgeError:
    """An exception of the SDK's as ours, by the names in its chain of causes."""
    if isinstance(error, EdgeError):
        return type(error)(error.code, error.detail, error.hint)
    names: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(names) < 8:
        names.append(type(cause).__name__)
        cause = cause.__cause__
    detail = f"the IoT hub: {what} failed: {' <- '.join(names)}"
    if any(name in _REFUSALS for name in names):
        hint = "Is the device disabled at the hub, its key replaced, or the device's clock wrong? It is tried again."
        return EdgeError("network.refused", detail, hint)
    if _REJECTION in names and what != "connecting":
        return _RejectedError("network.refused", detail)
    return EdgeError("network.unreachable" if what == "connecting" else "network.cut", detail)
