"""Which devices an IoT hub carries, and what each is called there."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol

from cloud_registry.core.condition import Condition, parse_condition
from cloud_registry.limits import HUB_KNOWN_MAX, HUB_KNOWN_S
from edge_contract.errors import ContractError, EdgeError
from edge_contract.hub import ADDRESS_TAG, HubAddress

_log: Final = logging.getLogger(__name__)


class TaggedDevices(Protocol):
    """What the directory asks the database. Any thread."""

    def tags(self, device: str) -> dict[str, str] | None:
        """A device's tags; none for one that is not known."""
        ...

    def matching(self, condition: Condition) -> list[str]:
        """Names of devices that match."""
        ...


class HubDirectory:
    """Looks addresses up, and remembers them for a little while. Any thread."""

    def __init__(
        self, devices: TaggedDevices, *, is_default: bool, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Look up in these.

        Args:
            devices: The database.
            is_default: Whether devices without the tag are on the hub as well, under their own names.
            monotonic_s: A clock.
        """
        self._devices = devices
        self._is_default = is_default
        self._now = monotonic_s
        self._guard = threading.Lock()
        self._addresses: OrderedDict[str, tuple[float, HubAddress | None]] = OrderedDict()
        self._names: OrderedDict[HubAddress, tuple[float, str | None]] = OrderedDict()

    def address(self, device: str) -> HubAddress | None:
        """A device's address at the hub; none for one that the hub does not carry.

        Raises:
            EdgeError: `cloud.unavailable`.
        """
        with self._guard:
            found = self._addresses.get(device)
        if found is not None and found[0] > self._now():
            return found[1]
        address = self._look_up(device)
        with self._guard:
            self._addresses[device] = (self._now() + HUB_KNOWN_S, address)
            _bound(self._addresses)
        return address

    def device(self, address: HubAddress) -> str | None:
        """Whose address this is; none where it is nobody's.

        Raises:
            EdgeError: `cloud.unavailable`.
        """
        with self._guard:
            found = self._names.get(address)
        if found is not None and found[0] > self._now():
            return found[1]
        name = self._find(address)
        with self._guard:
            self._names[address] = (self._now() + HUB_KNOWN_S, name)
            _bound(self._names)
        return name

    def _look_up(self, device: str) -> HubAddress | None:
        tags = self._devices.tags(device)
        if tags is None:
            return None
        text = tags.get(ADDRESS_TAG)
        if text is None:
            return HubAddress(device) if self._is_default else None
        try:
            return HubAddress.parse(text)
        except ContractError as error:
            _log.warning("device %s has the tag %s, which is no address: %s", device, ADDRESS_TAG, error.detail)
            return None

    def _find(self, address: HubAddress) -> str | None:
        try:
            HubAddress.parse(str(address))  # so that it can be quoted
        except EdgeError:
            return None
        named = set(self._devices.matching(parse_condition(f"tags.{ADDRESS_TAG} = '{address}'")))
        if not address.module and self._look_up(address.device) == address:
            named.add(address.device)
        if len(named) > 1:
            _log.warning("devices %s have one address at the hub: %s", " and ".join(sorted(named)), address)
            return None
        return next(iter(named), None)


def _bound(table: OrderedDict[Any, Any]) -> None:
    while len(table) > HUB_KNOWN_MAX:
        table.popitem(last=False)
