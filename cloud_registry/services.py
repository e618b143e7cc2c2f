"""The registry's parts, put together once and handed to the API, the collector and the command line."""

from dataclasses import dataclass

from cloud_registry.config import RegistryConfig
from cloud_registry.ports import (
    AssignmentSource,
    Authenticator,
    BlobStorage,
    CertificateAuthority,
    Clock,
    Director,
    EnrolmentStore,
    FleetStore,
    ImageRepository,
    MetadataTable,
    Nudger,
)


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
        enrolments: Spends enrolment tokens.
        assignments: What each device should run.
        nudger: Tells devices that something changed.
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
    assignments: AssignmentSource
    nudger: Nudger
