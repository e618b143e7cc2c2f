"""`device-sim iothub`: an emulator until a signal comes, with everything on the terminal that its clients need."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device_sim.iothub.hub import address_of
from device_sim.iothub.identities import HubError
from device_sim.iothub.running import Emulator
from device_sim.iothub.workload import Workload
from edge_contract.errors import EdgeError
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject

_EDGE_PARTS: Final = 2


@dataclass(frozen=True, slots=True)
class HubOptions:
    """What the command was asked for; see its help."""

    host: str
    name: str
    data: Path | None
    units: int
    mqtt_port: int
    http_port: int
    amqp_port: int
    devices: tuple[str, ...]
    edge: tuple[str, ...]
    ca: Path | None


def run_hub(options: HubOptions, show: Callable[[JsonObject], None]) -> None:
    """Run an emulator until SIGINT or SIGTERM.

    Args:
        options: What to run.
        show: Gets everything that clients need, once, when they can connect.

    Raises:
        EdgeError: `config.invalid`: an address in use, or a device that cannot be registered.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: ended.set())
    with contextlib.ExitStack() as stack:
        emulator = _started(options)
        stack.callback(emulator.stop)
        workloads = [_workload(stack, emulator, text) for text in options.edge]
        try:
            devices = {text: _registered(emulator, text) for text in options.devices}
        except HubError as error:
            raise EdgeError("config.invalid", error.detail, "Give other names to --device.") from None
        if options.ca is not None:
            options.ca.write_text(emulator.ca_pem, encoding="ascii")
        show(
            {
                "host": emulator.host,
                "name": emulator.name,
                "mqtt_port": emulator.mqtt_port,
                "url": emulator.url,
                "ca": str(options.ca or emulator.ca_file),
                "service": emulator.service_connection_string,
                "eventhub": emulator.eventhub_connection_string,
                "eventhub_address": emulator.eventhub_address,
                "id_scope": emulator.dps.scope,
                "devices": devices,
                "workload": {workload.device: str(workload.path) for workload in workloads},
            }
        )
        ended.wait()


def _started(options: HubOptions) -> Emulator:
    emulator = Emulator(
        options.host,
        name=options.name,
        data=options.data,
        units=options.units,
        mqtt_port=options.mqtt_port,
        http_port=options.http_port,
        amqp_port=options.amqp_port,
    )
    try:
        return emulator.start()
    except OSError as error:
        hint = "Something else listens there: take another --host, such as 127.0.0.2."
        raise EdgeError("config.invalid", f"the emulator cannot listen on {options.host}: {error}", hint) from None


def _registered(emulator: Emulator, text: str) -> str:
    address = address_of(text)
    missing = [HubAddress(address.device), address] if address.module else [address]
    for each in missing:
        if emulator.call(lambda each=each: each not in emulator.hub.identities):  # type: ignore[misc]
            emulator.admin.add(device=each.device, module=each.module)
    return emulator.call(lambda: emulator.verbs.connection_string(address.device, address.module))


def _workload(stack: contextlib.ExitStack, emulator: Emulator, text: str) -> Workload:
    device, _, path = text.partition("=")
    if emulator.call(lambda: HubAddress(device) not in emulator.hub.identities):
        emulator.admin.add(device=device, edge=True)
    if not path:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lighterman-edge-"))
        path = str(Path(folder) / "workload.sock")
    try:
        return stack.enter_context(Workload(emulator, device, Path(path)))
    except (OSError, ValueError) as error:
        raise EdgeError("config.invalid", f"the workload API cannot listen on {path}: {error}") from None
