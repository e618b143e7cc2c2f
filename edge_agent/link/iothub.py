"""The link over Azure IoT Hub, on its device SDK.

The SDK waits for ever where the hub says nothing, retries at fixed intervals without jitter and gives up for good when
it is refused on a reconnect. So it is trusted with one connection at a time: its own retries are off, each connection
gets a new SDK object with the credentials as they are in the file by then, every call is bounded, and one thread here
reconnects with capped, jittered backoff whatever the reason was. The SDK is imported when that thread first needs it.

The hub's names for what the link carries: a nudge is the desired property `lighterman.director_version`; an
acknowledgement a cloud-to-device message with the property `kind=ack`, or the desired property `lighterman.ack.upto`;
reports and batches are device-to-cloud messages with `kind=report` and `kind=batch`. See docs/adr/0014-iot-hub-link.md.
"""

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from edge_agent.limits import (
    HUB_ABANDONED_MAX,
    HUB_INBOX_MAX,
    HUB_MESSAGE_BYTES_MAX,
    HUB_OPEN_MS_MAX,
    HUB_PATIENCE_MS,
    HUB_SECRET_BYTES_MAX,
    HUB_SEND_MS_MAX,
    LINK_KEEPALIVE_S,
    LINK_OUTBOX_MAX,
    LINK_RETRY_MS_FIRST,
    LINK_RETRY_MS_MAX,
    LINK_STOP_MS_MAX,
)
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import dump
from edge_contract.telemetry import ACK_SCHEMA, Ack, Batch

_LOG = logging.getLogger(__name__)
_REFUSALS: Final = ("CredentialError", "UnauthorizedError")
_NUMBER_MAX: Final = 2**53 - 1
REPORT: Final = "report"
BATCH: Final = "batch"
ACK: Final = "ack"


class Sdk(Protocol):
    """What the link needs of the SDK. Called from short-lived threads, one call at a time but for closing."""

    def client(self) -> Any:
        """A new `IoTHubDeviceClient` that neither connects nor reconnects by itself.

        Raises:
            EdgeError: `config.file-missing`, `config.invalid`.
        """
        ...

    def message(self, kind: str, content: bytes) -> Any:
        """A device-to-cloud message."""
        ...


@dataclass(frozen=True, slots=True)
class AzureSdk:
    """The real SDK.

    Attributes:
        connection_string_file: Holds the device's connection string; read again for each connection.
        ca: PEM file of the authorities to trust instead of the system's, or none.
        gateway: Host to dial instead of the hub, or empty.
    """

    connection_string_file: Path
    ca: Path | None = None
    gateway: str = ""

    def client(self) -> Any:
        """See `Sdk.client`."""
        try:
            from azure.iot.device import IoTHubDeviceClient
        except ImportError as error:
            hint = "Install the extra: pip install 'lighterman[azure]'."
            raise EdgeError("config.invalid", f"[iothub] needs azure-iot-device: {error}", hint) from None
        secret = _read(self.connection_string_file).strip().rstrip(";")
        if self.gateway and "gatewayhostname=" not in secret.lower():
            secret += f";GatewayHostName={self.gateway}"
        options: dict[str, Any] = {
            "auto_connect": False,
            "connection_retry": False,
            "ensure_desired_properties": False,
            "keep_alive": LINK_KEEPALIVE_S,
        }
        if self.ca is not None:
            options["server_verification_cert"] = _read(self.ca)
        try:
            return IoTHubDeviceClient.create_from_connection_string(secret, **options)
        except (ValueError, KeyError, TypeError):
            # Without the SDK's words, which may hold the key.
            detail = f"{self.connection_string_file} holds no connection string of a device with a symmetric key"
            raise EdgeError("config.invalid", detail, "HostName=…;DeviceId=…;SharedAccessKey=…") from None

    def message(self, kind: str, content: bytes) -> Any:
        """See `Sdk.message`."""
        from azure.iot.device import Message

        make: Callable[..., Any] = Message
        message = make(content, content_encoding="utf-8", content_type="application/json")
        message.custom_properties["kind"] = kind
        return message


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
    ) -> None:
        """Describe the link; `start` connects it.

        Args:
            sdk: Makes SDK objects.
            retry_ms_first: Wait after the first failure to connect.
            retry_ms_max: Upper bound of the waits, which double.
            open_ms_max: Bound of connecting, subscribing and reading the twin together.
            send_ms_max: Bound of one send, to the hub's acknowledgement.
            patience_ms: Wait between connections while too many calls of the SDK never came back.
        """
        self._sdk = sdk
        self._retry_ms = (retry_ms_first, retry_ms_max)
        self._open_ms_max, self._send_ms_max = open_ms_max, send_ms_max
        self._patience_ms = patience_ms
        self._turn = threading.Condition()  # guards everything below
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._is_online = False
        self._is_stopping = False
        self._abandoned: list[threading.Thread] = []
        self._thread: threading.Thread | None = None
        self._error: EdgeError | None = None

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
        return self._send(REPORT, [report])

    def send_batch(self, batch: bytes) -> bool:
        """See `ports.Link.send_batch`. A batch that is too long for the hub goes in parts."""
        try:
            return self._send(BATCH, list(_parts(batch)))
        except ContractError as error:
            _LOG.warning("a batch of %d bytes is too long for the hub and cannot be divided: %s", len(batch), error)
            return False

    def stop(self) -> None:
        """See `ports.Link.stop`. What waits is sent first, within the bound."""
        with self._turn:
            self._is_stopping = True
            self._turn.notify_all()
        if self._thread is not None:
            self._thread.join(LINK_STOP_MS_MAX / 1000)
            if self._thread.is_alive():
                _LOG.warning("the link's thread did not end within %d ms", LINK_STOP_MS_MAX)

    def _send(self, kind: str, messages: list[bytes]) -> bool:
        if any(len(message) > HUB_MESSAGE_BYTES_MAX for message in messages):
            _LOG.warning("a %s is longer than the hub takes, %d bytes", kind, HUB_MESSAGE_BYTES_MAX)
            return False
        with self._turn:
            if not self._is_online or self._is_stopping:
                return False
            if kind == REPORT:
                self._outbox = deque(item for item in self._outbox if item[0] != REPORT)
            if len(self._outbox) + len(messages) > LINK_OUTBOX_MAX:
                return False
            self._outbox.extend((kind, message) for message in messages)
            self._turn.notify_all()
        return True

    # --- the link's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        attempt = 0  # connections in a row that never came up
        while not self._is_stopping:
            connection = _Connection(self._sdk, self._turn)
            is_up = False
            try:
                self._bounded(connection.open, self._open_ms_max, "connecting", ends_early=True)
                is_up = True
                self._serve(connection)
            except EdgeError as error:
                self._error = EdgeError(error.code, error.detail, error.hint)
                if (attempt == 0 or is_up) and not self._is_stopping:
                    _LOG.warning("the link to the IoT hub is down: %s", error)
            self._set_online(False)
            self._close(connection)
            attempt = 1 if is_up else attempt + 1
            self._wait(attempt)

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

    def _serve(self, connection: "_Connection") -> None:
        """Carry messages until the connection ends or the link is stopped and has sent what waited."""
        self._error = None
        self._set_online(True)
        while True:
            with self._turn:
                self._turn.wait_for(
                    lambda: connection.lost or connection.inbox or self._outbox or self._is_stopping,
                )
                heard, lost = list(connection.inbox), connection.lost
                connection.inbox.clear()
                message = self._outbox.popleft() if self._outbox and not lost else None
            for is_twin, value in heard:
                self._hear(connection, is_twin, value)
            if lost:
                raise EdgeError("network.cut", f"the IoT hub: {lost}")
            if message is not None:
                kind, content = message
                self._bounded(partial(connection.send, kind, content), self._send_ms_max, f"sending a {kind}")
            elif self._is_stopping:
                return

    def _hear(self, connection: "_Connection", is_twin: bool, value: Any) -> None:
        """What the hub said: a hint that anybody may have written, so what cannot be read is passed over."""
        try:
            if is_twin:
                if not connection.is_newer(value):
                    return
                value = value.get("lighterman")
                if not isinstance(value, dict):
                    return
                version, ack = value.get("director_version"), value.get("ack")
                if isinstance(version, int) and not isinstance(version, bool) and 0 <= version <= _NUMBER_MAX:
                    self._on_nudge(version)
                if isinstance(ack, dict):
                    self._on_ack(Ack.parse(dump({"schema": ACK_SCHEMA, "upto": ack.get("upto")})))
            elif (getattr(value, "custom_properties", None) or {}).get("kind") == ACK:
                content = value.data
                self._on_ack(Ack.parse(content if isinstance(content, bytes) else str(content).encode()))
        except (ContractError, ValueError, TypeError, AttributeError, RecursionError) as error:
            _LOG.warning("what the IoT hub sent cannot be read: %s", str(error)[:200])

    def _set_online(self, is_online: bool) -> None:
        with self._turn:
            has_changed = self._is_online != is_online
            self._is_online = is_online
            if not is_online:
                self._outbox.clear()
        if has_changed:
            self._on_online(is_online)

    def _close(self, connection: "_Connection") -> None:
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


class _Connection:
    """One SDK object and what it said; `inbox` and `lost` are guarded by the link's condition."""

    def __init__(self, sdk: Sdk, turn: threading.Condition) -> None:
        self._sdk = sdk
        self._turn = turn
        self._client: Any = None
        self._is_closed = False
        self._version = -1
        self.inbox: deque[tuple[bool, Any]] = deque(maxlen=HUB_INBOX_MAX)
        self.lost = ""

    def open(self) -> None:
        """Connect, subscribe, read the twin. Patches that come before the twin are older than it or repeat it."""
        client = self._sdk.client()
        with self._turn:
            self._client = client
            is_late = self._is_closed
        if is_late:
            self.close()
            return
        client.on_connection_state_change = self._changed
        client.on_background_exception = self._failed
        client.connect()
        client.on_message_received = lambda message: self._heard(False, message)
        client.on_twin_desired_properties_patch_received = lambda patch: self._heard(True, patch)
        twin = client.get_twin()
        self._heard(True, twin.get("desired") if isinstance(twin, dict) else None)

    def send(self, kind: str, content: bytes) -> None:
        self._client.send_message(self._sdk.message(kind, content))

    def close(self) -> None:
        with self._turn:
            self._is_closed = True
            client = self._client
        if client is None:
            return
        try:
            client.shutdown()
        except Exception as error:  # noqa: BLE001 - they have no common base
            _LOG.debug("the SDK did not shut down in order: %s", type(error).__name__)

    def is_newer(self, desired: Any) -> bool:
        """Whether desired properties are an object that nothing newer was heard before; one without number counts."""
        if not isinstance(desired, dict):
            return False
        version = desired.get("$version")
        if isinstance(version, int) and not isinstance(version, bool):
            if version <= self._version:
                return False
            self._version = version
        return True

    def _heard(self, is_twin: bool, value: Any) -> None:
        with self._turn:
            self.inbox.append((is_twin, value))
            self._turn.notify_all()

    def _changed(self) -> None:
        if not self._client.connected:
            self._end("the connection ended")

    def _failed(self, error: Exception) -> None:
        if not self._client.connected:
            self._end(type(error).__name__)

    def _end(self, reason: str) -> None:
        with self._turn:
            self.lost = self.lost or reason
            self._turn.notify_all()


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
        return EdgeError(error.code, error.detail, error.hint)
    names: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(names) < 8:
        names.append(type(cause).__name__)
        cause = cause.__cause__
    detail = f"the IoT hub: {what} failed: {' <- '.join(names)}"
    if any(name in _REFUSALS for name in names):
        hint = "Is the device disabled at the hub, its key replaced, or the device's clock wrong? It is tried again."
        return EdgeError("network.refused", detail, hint)
    return EdgeError("network.unreachable" if what == "connecting" else "network.cut", detail)


def _read(file: Path) -> str:
    try:
        with file.open("rb") as source:
            data = source.read(HUB_SECRET_BYTES_MAX + 1)
        if len(data) > HUB_SECRET_BYTES_MAX:
            raise EdgeError("config.invalid", f"{file} is longer than {HUB_SECRET_BYTES_MAX} bytes")
        return data.decode("utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise EdgeError("config.file-missing", f"{file} cannot be read: {reason}") from None
