"""The cloud's side of Azure IoT Hub: nudges and acknowledgements become desired properties, by the hub's service API.

Both are hints and both are absolute, so only the newest of a device waits, and one write carries both. A hub takes few
writes a second (50 for tier S1), so they go out at a bounded rate; what waits longer grows newer, never longer.
docs/adr/0033-iot-hub-cloud.md.
"""

import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Protocol

from cloud_registry.config import IotHubConfig
from cloud_registry.hub_directory import HubDirectory
from cloud_registry.limits import (
    HUB_ITEMS_MAX,
    HUB_PAGES_MAX,
    HUB_RETRY_MS,
    HUB_RETRY_MS_MAX,
    HUB_SECRET_BYTES_MAX,
    HUB_TIMEOUT_S,
    NUDGES_WAITING_MAX,
    STOP_TIMEOUT_S,
)
from edge_contract.errors import EdgeError
from edge_contract.hub import TWIN_KEY, HubAddress, HubDesired
from edge_contract.jsonio import JsonObject
from edge_contract.telemetry import Ack

_log: Final = logging.getLogger(__name__)


class HubService(Protocol):
    """The part of the hub's service API that is needed. One thread at a time."""

    def patch_desired(self, address: HubAddress, patch: JsonObject) -> None:
        """Merge into desired properties.

        Raises:
            EdgeError: `cloud.not-found` for an address the hub does not know; `cloud.unavailable`, `network.*`.
        """
        ...

    def desired(self, address: HubAddress) -> JsonObject:
        """Desired properties as they are.

        Raises:
            EdgeError: as `patch_desired`.
        """
        ...

    def query(self, text: str) -> Iterator[JsonObject]:
        """Rows of a query, page by page.

        Raises:
            EdgeError: `cloud.unavailable`, `network.*`.
        """
        ...


class AzureHubService:
    """Implements `HubService` on azure-iot-hub. One thread at a time."""

    def __init__(self, config: IotHubConfig) -> None:
        """Read the connection string; nothing is connected yet.

        Raises:
            EdgeError: `config.dependency-missing`, `config.file-missing`, `config.invalid`.
        """
        try:
            from azure.iot.hub import IoTHubRegistryManager, models
        except ImportError as error:
            hint = "Install lighterman[cloud,azure-cloud]."
            raise EdgeError("config.dependency-missing", f"azure-iot-hub is not installed: {error}", hint) from None
        self._models: Any = models
        try:
            self._manager: Any = IoTHubRegistryManager.from_connection_string(
                read_secret(config.connection_string_file, "iothub.connection_string_file")
            )
        except (ValueError, KeyError, TypeError):
            hint = "HostName=…;SharedAccessKeyName=…;SharedAccessKey=…, of a policy that may read and write twins."
            why = f"{config.connection_string_file} holds no connection string of a hub's policy"
            raise EdgeError("config.invalid", why, hint) from None
        connection = self._manager.protocol.config.connection
        connection.timeout = HUB_TIMEOUT_S
        if config.ca is not None:
            connection.verify = str(config.ca)

    def patch_desired(self, address: HubAddress, patch: JsonObject) -> None:
        """See `HubService.patch_desired`."""
        twin = self._models.Twin(properties=self._models.TwinProperties(desired=patch))
        with _told(f"writing the twin of {address}"):
            if address.module:
                self._manager.update_module_twin(address.device, address.module, twin)
            else:
                self._manager.update_twin(address.device, twin)

    def desired(self, address: HubAddress) -> JsonObject:
        """See `HubService.desired`."""
        with _told(f"reading the twin of {address}"):
            if address.module:
                twin = self._manager.get_module_twin(address.device, address.module)
            else:
                twin = self._manager.get_twin(address.device)
        found = None if twin.properties is None else twin.properties.desired
        return dict(found) if isinstance(found, dict) else {}

    def query(self, text: str) -> Iterator[JsonObject]:
        """See `HubService.query`."""
        specification = self._models.QuerySpecification(query=text)
        token: str | None = None
        for _page in range(HUB_PAGES_MAX):
            with _told("a query"):
                answer = self._manager.query_iot_hub(specification, token, HUB_ITEMS_MAX)
            for item in answer.items or []:
                yield _row(item)
            token = answer.continuation_token
            if not token:
                return


def _row(item: Any) -> JsonObject:
    """A row of a query over twins, as plain JSON."""
    if isinstance(item, dict):
        return item
    row: JsonObject = {"deviceId": item.device_id, "moduleId": item.module_id}
    properties = item.properties
    reported = None if properties is None else properties.reported
    row["reported"] = reported if isinstance(reported, dict) else None
    return row


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the library as ours; their texts may hold tokens, so their kind and status alone are told."""
    try:
        yield
    except EdgeError:
        raise
    except Exception as error:  # noqa: BLE001 - three libraries' trees meet here
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None:
            name = type(error).__name__
            raise EdgeError("network.unreachable", f"the IoT hub: {what} failed: {name}") from None
        if status == HTTPStatus.NOT_FOUND:
            raise EdgeError("cloud.not-found", f"the IoT hub: {what}: it knows no such device or module") from None
        is_right = status != HTTPStatus.UNAUTHORIZED
        hint = "" if is_right else "The policy needs the rights to read the registry and to connect as a service."
        raise EdgeError("cloud.unavailable", f"the IoT hub: {what} was answered with {status}", hint) from None


@dataclass(slots=True)
class _Wish:
    """What a device is to be told: the newest nudge and the marks of its boots."""

    director_version: int | None = None
    marks: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    not_before: float = 0.0


class HubWriter:
    """Nudges and acknowledges over a hub. Implements `Nudger`; its thread starts with `start`. Any thread."""

    def __init__(
        self,
        service: HubService,
        directory: HubDirectory,
        writes_per_s: int,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wait for wishes.

        Args:
            service: The hub.
            directory: Whom it carries.
            writes_per_s: Bound of the rate.
            monotonic_s: A clock.
        """
        self._service = service
        self._directory = directory
        self._gap_s = 1 / writes_per_s
        self._now = monotonic_s
        self._wishes: OrderedDict[str, _Wish] = OrderedDict()
        self._known: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._changed = threading.Condition()
        self._is_closed = False
        self._error: EdgeError | None = None
        self._thread = threading.Thread(target=self._run, name="hub-writer", daemon=True)

    @property
    def error(self) -> EdgeError | None:
        """Why the last write failed, or none."""
        return self._error

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def nudge(self, device: str, director_version: int) -> None:
        """See `Nudger.nudge`."""
        with self._changed:
            wish = self._wish(device)
            if wish is not None:
                wish.director_version = max(director_version, wish.director_version or 0)

    def send_ack(self, device: str, ack: Ack) -> None:
        """Acknowledge telemetry, now or with the next write."""
        with self._changed:
            wish = self._wish(device)
            if wish is not None:
                wish.marks.update({boot: max(mark, wish.marks.get(boot, 0)) for boot, mark in ack.upto.items()})

    def close(self) -> None:
        """See `Nudger.close`. What waits is a hint: devices poll, and send again what was not acknowledged."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)

    def _wish(self, device: str) -> _Wish | None:
        """A device's wish, made if need be; with the condition held."""
        if self._is_closed:
            return None
        wish = self._wishes.get(device)
        if wish is None:
            if len(self._wishes) >= NUDGES_WAITING_MAX:
                return None
            wish = self._wishes[device] = _Wish()
        self._changed.notify()
        return wish

    # --- the thread

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            device, wish = taken
            try:
                self._write(device, wish)
                self._error = None
            except EdgeError as error:
                self._failed(device, wish, error)
            except Exception as error:  # noqa: BLE001 - one device's trouble is not everybody's
                self._failed(device, wish, EdgeError("internal.bug", f"writing failed: {type(error).__name__}"))
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, self._gap_s)

    def _next(self) -> tuple[str, _Wish] | None:
        """The wish that waits longest and may be tried; none at the end."""
        with self._changed:
            while not self._is_closed:
                now = self._now()
                device = next((name for name, wish in self._wishes.items() if wish.not_before <= now), None)
                if device is not None:
                    return device, self._wishes.pop(device)
                soonest = min((wish.not_before for wish in self._wishes.values()), default=None)
                self._changed.wait(None if soonest is None else max(0.01, soonest - now))
            return None

    def _write(self, device: str, wish: _Wish) -> None:
        address = self._directory.address(device)
        if address is None:
            return
        patch: JsonObject = {}
        if wish.director_version is not None:
            patch |= HubDesired.nudge_patch(wish.director_version)[TWIN_KEY]
        if wish.marks:
            known = self._boots(device, address)
            patch |= HubDesired.ack_patch(wish.marks, known)[TWIN_KEY]
        self._service.patch_desired(address, {TWIN_KEY: patch})
        if wish.marks:
            self._known[device] = tuple(boot for boot, mark in patch["ack"]["upto"].items() if mark is not None)
            self._known.move_to_end(device)
            while len(self._known) > NUDGES_WAITING_MAX:
                self._known.popitem(last=False)

    def _boots(self, device: str, address: HubAddress) -> tuple[str, ...]:
        """Boots that the device's twin names already, so that old ones can be taken out of it."""
        known = self._known.get(device)
        if known is not None:
            return known
        said = self._service.desired(address).get(TWIN_KEY)
        ack = said.get("ack") if isinstance(said, dict) else None
        upto = ack.get("upto") if isinstance(ack, dict) else None
        return tuple(upto) if isinstance(upto, Mapping) else ()

    def _failed(self, device: str, wish: _Wish, error: EdgeError) -> None:
        """Try again later, with what is wished by then; an address that the hub does not know waits for a new wish."""
        if self._error is None or self._error.code != error.code:
            _log.warning("device %s was not told over the IoT hub: %s", device, error)
        self._error = EdgeError(error.code, error.detail, error.hint)
        if error.code == "cloud.not-found":
            return
        wish.attempts += 1
        wait_ms = min(HUB_RETRY_MS_MAX, HUB_RETRY_MS << min(wish.attempts - 1, 20)) * random.uniform(0.5, 1.0)
        wish.not_before = self._now() + wait_ms / 1000
        with self._changed:
            newer = self._wishes.get(device)
            if newer is None:
                if len(self._wishes) < NUDGES_WAITING_MAX:
                    self._wishes[device] = wish
                return
            newer.attempts, newer.not_before = wish.attempts, wish.not_before
            newer.director_version = newer.director_version or wish.director_version
            newer.marks = wish.marks | newer.marks


def read_secret(file: Path | None, name: str) -> str:
    """A secret from its file.

    Raises:
        EdgeError: `config.file-missing`, `config.invalid`.
    """
    if file is None:
        raise EdgeError("config.invalid", f"{name} is not set", "Name a file that holds the connection string.")
    try:
        with file.open("rb") as source:
            data = source.read(HUB_SECRET_BYTES_MAX + 1)
        text = data.decode("utf-8").strip()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise EdgeError("config.file-missing", f"{name}: {file} cannot be read: {reason}") from None
    if not text or len(data) > HUB_SECRET_BYTES_MAX:
        raise EdgeError("config.invalid", f"{name}: {file} is empty, or longer than {HUB_SECRET_BYTES_MAX} bytes")
    return text
