"""Puts the registry together from its configuration: the one place that knows every adapter."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from cloud_registry.adapters.sql.database import Database
from cloud_registry.config import RegistryConfig
from cloud_registry.ports import BrokerRoster, Clock, Nudger
from cloud_registry.services import Services
from edge_contract.errors import EdgeError

if TYPE_CHECKING:
    from cloud_registry.hub import HubParts

_log: Final = logging.getLogger(__name__)


class SystemClock:
    """The system's time (`Clock`)."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000


class SilentNudger:
    """Nudges nobody (`Nudger`): without a broker devices find changes when they poll."""

    def nudge(self, device: str, director_version: int) -> None:
        """Say so in the log."""
        _log.debug("no broker: %s is not nudged about director version %d", device, director_version)

    def close(self) -> None:
        """Nothing to do."""


class OpenRoster:
    """Keeps no list (`BrokerRoster`): the broker lets in whom its own configuration says."""

    def admit(self, identity: str, device: str) -> None:
        """Say so in the log."""
        _log.debug("the broker's list is not kept here: %s of %s is not added", identity, device)

    def remove(self, identity: str) -> None:
        """Say so in the log."""
        _log.debug("the broker's list is not kept here: %s is not removed", identity)

    def close(self) -> None:
        """Nothing to do."""


def open_database(config: RegistryConfig) -> Database:
    """The database of a configuration with its schema up to date; close it at the end.

    Raises:
        EdgeError: `config.invalid`, `cloud.unavailable`, `device.disk-error`.
    """
    make_data_dir(config)
    database = Database(config.sqlalchemy_url)
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database


def make_data_dir(config: RegistryConfig) -> None:
    """Make the data folder, closed to other users.

    Raises:
        EdgeError: `device.disk-error`.
    """
    try:
        config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeError("device.disk-error", f"cannot make {config.data_dir}: {error.strerror}") from None


def build_services(config: RegistryConfig, clock: Clock | None = None) -> Services:
    """Everything a router needs, over a migrated database; call `Services.close` at the end.

    Args:
        config: A checked configuration.
        clock: The time; the system's unless given.

    Raises:
        EdgeError: `config.*`, `cloud.unavailable`, `device.*`.
    """
    from cloud_registry.adapters.blobs_fs import FileBlobStorage
    from cloud_registry.adapters.device_keys import AnyAuthenticator, DeviceTokenVerifier
    from cloud_registry.adapters.director import TufDirector
    from cloud_registry.adapters.image_repo import TufImageRepository
    from cloud_registry.adapters.pki import LocalAuthority
    from cloud_registry.adapters.sql.deltas import SqlDeltas
    from cloud_registry.adapters.sql.deployments import SqlDeployments
    from cloud_registry.adapters.sql.devices import SqlDevices
    from cloud_registry.adapters.sql.documents import SqlDocuments
    from cloud_registry.adapters.sql.enrolments import SqlEnrolments
    from cloud_registry.adapters.sql.fleet import SqlFleet
    from cloud_registry.adapters.sql.models import SqlModels
    from cloud_registry.adapters.sql.rights import SqlRights
    from cloud_registry.adapters.sql.tokens import SqlTokens
    from cloud_registry.adapters.tuf_keys import OnlineKeys
    from cloud_registry.hub import EitherNudger, open_hub
    from cloud_registry.notify import ChangeNotifier

    clock = clock or SystemClock()
    database = open_database(config)
    try:
        documents = SqlDocuments(database)
        deployments = SqlDeployments(database, clock)
        devices = SqlDevices(database, clock)
        enrolments = SqlEnrolments(database, clock)
        tokens = SqlTokens(database, clock)
        keys = OnlineKeys(config.keys_dir)
        blobs = FileBlobStorage(config.oci_dir, clock)
        director = TufDirector(documents, keys, deployments, clock)
        hub = open_hub(config, devices, documents)
        nudger = _nudger(config) if hub is None else EitherNudger(hub, _nudger(config))

        return Services(
            config=config,
            clock=clock,
            tokens=AnyAuthenticator(tokens, DeviceTokenVerifier(enrolments.find_keys, enrolments.promote, clock)),
            blobs=blobs,
            images=TufImageRepository(documents, keys, clock),
            director=director,
            authority=LocalAuthority(config.pki_dir, clock, config.device_certificate_days),
            metadata=documents,
            fleet=SqlFleet(database),
            enrolments=enrolments,
            rights=SqlRights(database),
            assignments=deployments,
            nudger=nudger,
            roster=_roster(config, enrolments.identities),
            notifier=ChangeNotifier(director, nudger),
            models=SqlModels(database, clock),
            deltas=SqlDeltas(database, clock),
            deployments=deployments,
            devices=devices,
            operators=tokens,
            checks=_checks(config, database),
            hub=hub,
            on_close=database.close,
        )
    except BaseException:
        database.close()
        raise


def collector_hub(config: RegistryConfig, database: Database) -> "HubParts | None":
    """The hub's parts for a collector that is a process of its own; close the writer at the end.

    Raises:
        EdgeError: `config.*`.
    """
    from cloud_registry.adapters.sql.devices import SqlDevices
    from cloud_registry.adapters.sql.documents import SqlDocuments
    from cloud_registry.hub import open_hub

    return open_hub(config, SqlDevices(database, SystemClock()), SqlDocuments(database))


def _nudger(config: RegistryConfig) -> Nudger:
    if not config.mqtt.host:
        return SilentNudger()
    from cloud_registry.adapters.link_mqtt import MqttNudger

    return MqttNudger(config.mqtt)


def _roster(config: RegistryConfig, identities: Callable[[], Mapping[str, str]]) -> BrokerRoster:
    if not config.mqtt.host or not config.mqtt.keeps_roster:
        return OpenRoster()
    from cloud_registry.adapters.broker_roster import MosquittoRoster

    return MosquittoRoster(config.mqtt, identities)


def _checks(config: RegistryConfig, database: Database) -> Mapping[str, Callable[[], object]]:
    def storage() -> None:
        if not (config.oci_dir / "oci-layout").is_file():
            raise EdgeError("device.disk-error", f"{config.oci_dir} is not an OCI layout any more")

    return {"database": database.ping, "storage": storage}
