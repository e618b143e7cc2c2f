"""The parts of an IoT hub that the registry uses together: made once a process, where one is configured."""

from collections.abc import Callable
from dataclasses import dataclass

from cloud_registry.adapters.link_iothub import AzureHubService, HubService, HubWriter
from cloud_registry.config import RegistryConfig
from cloud_registry.core.condition import Condition
from cloud_registry.hub_directory import HubDirectory
from cloud_registry.ports import MetadataTable, Nudger
from cloud_registry.stores import DeviceStore
from edge_contract.errors import EdgeError


@dataclass(frozen=True, slots=True)
class HubParts:
    """What belongs to one hub.

    Attributes:
        directory: Whom it carries.
        writer: Nudges and acknowledges; runs already.
        make_service: Makes a service of the hub for another thread.
        table: Keeps checkpoints.
    """

    directory: HubDirectory
    writer: HubWriter
    make_service: Callable[[], HubService]
    table: MetadataTable


class _Tagged:
    """The database as the directory asks it."""

    def __init__(self, devices: DeviceStore) -> None:
        self._devices = devices

    def tags(self, device: str) -> dict[str, str] | None:
        try:
            return dict(self._devices.get(device).tags)
        except EdgeError as error:
            if error.code != "cloud.not-found":
                raise
            return None

    def matching(self, condition: Condition) -> list[str]:
        return list(self._devices.matching(condition))


def open_hub(config: RegistryConfig, devices: DeviceStore, table: MetadataTable) -> HubParts | None:
    """The hub of a configuration, writing already; none where there is none. Close its writer at the end.

    Raises:
        EdgeError: `config.*`.
    """
    hub = config.iothub
    if not hub.is_used:
        return None
    # Beside a broker, the hub carries those devices that say so with their tag.
    directory = HubDirectory(_Tagged(devices), is_default=not config.mqtt.host)
    writer = HubWriter(AzureHubService(hub), directory, hub.writes_per_s)
    writer.start()
    return HubParts(directory, writer, lambda: AzureHubService(hub), table)


class EitherNudger:
    """Nudges over the hub whom it carries, and all others over the broker (`Nudger`). Any thread."""

    def __init__(self, hub: HubParts, broker: Nudger) -> None:
        """Put both together."""
        self._hub = hub
        self._broker = broker

    def nudge(self, device: str, director_version: int) -> None:
        """See `Nudger.nudge`."""
        try:
            is_hubs = self._hub.directory.address(device) is not None
        except EdgeError:
            is_hubs = True  # the writer looks again
        if is_hubs:
            self._hub.writer.nudge(device, director_version)
        else:
            self._broker.nudge(device, director_version)

    def close(self) -> None:
        """See `Nudger.close`."""
        self._hub.writer.close()
        self._broker.close()
