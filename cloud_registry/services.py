"""The registry's parts, put together once and handed to the API, the collector and the command line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cloud_registry.config import RegistryConfig
from cloud_registry.hub import HubParts
from cloud_registry.identities import CertificateAuthority, ContentRights, EnrolmentStore
from cloud_registry.notify import ChangeNotifier
from cloud_registry.ports import (
    AssignmentSource,
    Authenticator,
    BlobStorage,
    BrokerRoster,
    Clock,
    Director,
    FleetStore,
    ImageRepository,
    MetadataTable,
    Nudger,
)
from cloud_registry.stores import DeltaStore, DeploymentStore, DeviceStore, ModelStore, TokenStore


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a router may need. One a process; every member may be used from any thread.

    Attributes:
        config: The configuration.
        clock: The time.
        tokens: Whose token it is.
        blobs: Blobs and manifests.
        images: Metadata of the image repository.
        director: Per-device metadata.
        authority: Certificates of devices.
        metadata: Versioned documents.
        fleet: What the collector keeps.
        enrolments: Spends enrolment tokens, keeps identities.
        rights: Which content belongs to which device.
        assignments: What each device should run.
        nudger: Tells devices that something changed.
        roster: Which devices the broker lets in.
        notifier: Has devices nudged behind a request's back.
        models: Models, versions, aliases, bundles.
        deltas: Deltas between files of versions.
        deployments: Deployments.
        devices: Devices and enrolment tokens.
        operators: Operator tokens.
        checks: What has to answer for the registry to be ready, by name; a check raises `EdgeError` if it does not.
        on_close: Called last, for example to close the database.
        hub: What belongs to an IoT hub, or none.
    """

    config: RegistryConfig
    clock: Clock
    tokens: Authenticator
    blobs: BlobStorage
    images: ImageRepository
    director: Director
    authority: CertificateAuthority
    metadata: MetadataTable
    fleet: FleetStore
    enrolments: EnrolmentStore
    rights: ContentRights
    assignments: AssignmentSource
    nudger: Nudger
    roster: BrokerRoster
    notifier: ChangeNotifier
    models: ModelStore
    deltas: DeltaStore
    deployments: DeploymentStore
    devices: DeviceStore
    operators: TokenStore
    checks: Mapping[str, Callable[[], object]]
    on_close: Callable[[], object]
    hub: HubParts | None = None

    def close(self) -> None:
        """Stop what runs in the background; bounded."""
        self.notifier.close()
        self.nudger.close()
        self.roster.close()
        self.blobs.close()
        self.on_close()
