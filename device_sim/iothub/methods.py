"""Direct methods: asked by the service, answered by a connected device, or not in time. On the hub's loop."""

import asyncio
import contextlib
import itertools
from dataclasses import dataclass

from device_sim.iothub.hub import Hub
from device_sim.iothub.identities import HubError
from device_sim.iothub.limits import METHOD_BYTES_MAX, METHOD_S_DEFAULT, METHOD_S_MAX
from edge_contract.hub import HubAddress


@dataclass(frozen=True, slots=True)
class MethodAnswer:
    """What a device answered: its own status, and JSON or nothing."""

    status: int
    payload: bytes


class Methods:
    """Methods that are under way."""

    def __init__(self, hub: Hub) -> None:
        """Begin with none."""
        self._hub = hub
        self._numbers = itertools.count(1)
        self._waiting: dict[tuple[HubAddress, str], asyncio.Future[MethodAnswer]] = {}
        self._arrivals: dict[HubAddress, asyncio.Event] = {}
        hub.observers.append(self._observe)

    async def invoke(
        self,
        address: HubAddress,
        name: str,
        payload: bytes,
        response_s: float = METHOD_S_DEFAULT,
        connect_s: float = 0,
    ) -> MethodAnswer:
        """Call a method of a device or module and wait for its answer.

        Args:
            address: Whose.
            name: Of the method.
            payload: JSON, at most `METHOD_BYTES_MAX` bytes.
            response_s: How long to wait for the answer.
            connect_s: How long to wait for the device to be connected first.

        Raises:
            HubError: 400, 404 (unknown, or not connected), 413, 504 (no answer in time).
        """
        if not name or any(sign in name for sign in "/+#$?") or len(name) > 128:
            raise HubError(400, "ArgumentInvalid", f"{name[:80]!r} is no name of a method")
        if len(payload) > METHOD_BYTES_MAX:
            raise HubError(413, "MessageTooLarge", f"{len(payload)} bytes, at most {METHOD_BYTES_MAX}", 413001)
        if not 0 < response_s <= METHOD_S_MAX or not 0 <= connect_s <= METHOD_S_MAX:
            raise HubError(400, "ArgumentInvalid", f"methods have at most {METHOD_S_MAX} seconds")
        self._hub.identity(address)
        loop = asyncio.get_running_loop()
        if connect_s and address not in self._hub.links:
            arrival = self._arrivals.setdefault(address, asyncio.Event())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(arrival.wait(), connect_s)
        request = str(next(self._numbers))
        key, future = (address, request), loop.create_future()
        self._waiting[key] = future
        try:
            link = self._hub.links.get(address)
            if link is None or not link.method(request, name, payload):
                raise HubError(404, "DeviceNotOnline", f"{address} is not connected, or listens for no methods", 404103)
            return await asyncio.wait_for(future, response_s)
        except TimeoutError:
            raise HubError(504, "GatewayTimeout", f"{address} did not answer in {response_s} s", 504101) from None
        finally:
            self._waiting.pop(key, None)

    def answered(self, address: HubAddress, request: str, status: int, payload: bytes) -> bool:
        """A device answered; false when nobody waits any more."""
        future = self._waiting.get((address, request))
        if future is None or future.done():
            return False
        future.set_result(MethodAnswer(status, payload))
        return True

    def _observe(self, what: str, address: HubAddress) -> None:
        if what == "connected" and (arrival := self._arrivals.pop(address, None)):
            arrival.set()
        if what != "disconnected":
            return
        for (whose, _request), future in self._waiting.items():
            if whose == address and not future.done():
                future.set_exception(HubError(404, "DeviceNotOnline", f"{address} went away", 404103))
