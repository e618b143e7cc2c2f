"""What the cloud's parts need from each other and from the outside, as Protocols named for the role.

Unless a method says otherwise it blocks, may be called from any thread, and raises `edge_contract.errors.EdgeError` for
everything that can go wrong in operation; a library's own exceptions never pass. Times are milliseconds since 1970.
What the SQL adapter offers to the API alone is in `cloud_registry.stores`.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cloud_registry.core.roles import Principal
from edge_contract.deployment import Artifact, Assignment
from edge_contract.digest import Digest
from edge_contract.jsonio import JsonObject
from edge_contract.signed import Envelope
from edge_contract.telemetry import Sample


class Clock(Protocol):
    """The time, so that nothing asks the system itself and tests can set it. Any thread."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        ...


# --- Content ---


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest or index as it was put.

    Attributes:
        media_type: Content type it was put with.
        data: Its exact bytes.
        digest: Digest of the bytes.
    """

    media_type: str
    data: bytes
    digest: Digest


@dataclass(frozen=True, slots=True)
class Referrer:
    """What the referrers API says of one manifest whose subject is the asked digest.

    Attributes:
        media_type: Its content type.
        digest: Its digest.
        size: Its length in bytes.
        artifact_type: Its artifact type (that of the config when it has none of its own).
        annotations: Its annotations.
    """

    media_type: str
    digest: Digest
    size: int
    artifact_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)


class BlobStorage(Protocol):
    """Content-addressed blobs, and which repository may see which; never holds a blob in memory.

    A repository name is checked by the caller against the grammar of distribution-spec 1.1. Everything acknowledged is
    durable. A blob is one file however many repositories link it.
    """

    def exists(self, digest: Digest) -> int | None:
        """Size in bytes of a blob or manifest in any repository, or none."""
        ...

    def in_repository(self, repository: str, digest: Digest) -> int | None:
        """Size in bytes if this repository holds the blob or manifest, or none."""
        ...

    def open(self, digest: Digest, offset: int = 0, length: int | None = None) -> Generator[bytes, None, None]:
        """Chunks of at most `CHUNK_BYTES` from `offset` on, `length` bytes or to the end; closing it frees the file.

        Raises:
            EdgeError: `artifact.not-found`, before the first chunk; `device.disk-error`.
        """
        ...

    def begin_upload(self, repository: str) -> str:
        """Start a resumable upload into a repository; returns its identifier, safe in a URL. Survives a restart."""
        ...

    def append(self, upload: str, offset: int, chunks: Iterable[bytes]) -> int:
        """Add bytes at `offset`, which has to be where the upload stands; returns the offset behind them.

        What came before a failure of `chunks` is kept. Durable only after `checkpoint` or `finish_upload`.

        Raises:
            EdgeError: `cloud.not-found` for an unknown upload, `cloud.upload-invalid` for another offset,
                `cloud.too-large`.
        """
        ...

    def checkpoint(self, upload: str) -> int:
        """Make durable what was appended, before it is acknowledged; returns the offset behind it.

        Raises:
            EdgeError: `cloud.not-found` for an unknown upload.
        """
        ...

    def upload_offset(self, repository: str, upload: str) -> int:
        """Where an upload stands.

        Raises:
            EdgeError: `cloud.not-found` for an unknown upload, or one of another repository.
        """
        ...

    def finish_upload(self, upload: str, digest: Digest) -> int:
        """Verify the whole upload, make it a blob of its repository, durably; returns its size in bytes.

        Raises:
            EdgeError: `artifact.digest-mismatch` (the upload is gone then), `cloud.not-found`.
        """
        ...

    def abort(self, upload: str) -> None:
        """Forget an upload; nothing happens if there is none."""
        ...

    def link_blob(self, repository: str, digest: Digest) -> None:
        """Make a blob that exists a member of a repository too (cross-repository mount); idempotent.

        Raises:
            EdgeError: `artifact.not-found`.
        """
        ...

    def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> Digest:
        """Keep a manifest or index under a tag or its own digest; what it refers to has to be in the repository.

        Raises:
            EdgeError: `artifact.digest-mismatch`, `artifact.not-found`, `artifact.document-invalid`, `cloud.too-large`.
        """
        ...

    def get_manifest(self, repository: str, reference: str) -> StoredManifest:
        """A manifest or index by tag or digest.

        Raises:
            EdgeError: `artifact.not-found`.
        """
        ...

    def tags(self, repository: str, last: str = "", count: int = 1000) -> Sequence[str]:
        """At most `count` tags in ASCII order, those after `last`.

        Raises:
            EdgeError: `artifact.not-found` if the repository does not exist.
        """
        ...

    def referrers(
        self, repository: str, digest: Digest, artifact_type: str = "", last: Digest | None = None
    ) -> Sequence[Referrer]:
        """One page of the manifests whose subject is `digest`, of one artifact type if one is given, by digest.

        The next page begins behind `last`; the page after the last one is empty.
        """
        ...

    def delete_manifest(self, repository: str, reference: str) -> None:
        """Remove a tag, or a manifest with all its tags.

        Raises:
            EdgeError: `artifact.not-found`; `cloud.in-use` while an index of the repository lists the manifest.
        """
        ...

    def delete_blob(self, repository: str, digest: Digest) -> None:
        """Remove a blob from a repository; the file goes when no repository links it.

        Raises:
            EdgeError: `artifact.not-found`; `cloud.in-use` while a manifest of the repository lists the blob.
        """
        ...

    def close(self) -> None:
        """Free files and connections; nobody may use the storage any more."""
        ...


# --- Trust ---


@dataclass(frozen=True, slots=True)
class ImageTarget:
    """What the signed metadata of the image repository says of one target.

    Attributes:
        path: Target path (`edge_contract.deployment.target_path`).
        length: Bytes of the manifest.
        digest: Digest of the manifest.
        artifact: The custom object.
    """

    path: str
    length: int
    digest: Digest
    artifact: Artifact


@dataclass(frozen=True, slots=True)
class OnlineKeyWish:
    """What the next key of one online role is to be.

    Attributes:
        repository: `image` or `director`.
        role: `snapshot` or `timestamp`, of the director also `targets`.
        uri: Of a key on a token or in a key service; empty for a file that the server makes.
    """

    repository: str
    role: str
    uri: str = ""


class ImageRepository(Protocol):
    """TUF metadata of the image repository: which bytes are genuine.

    Authors sign targets; the server signs snapshot and timestamp.
    """

    def trust_summary(self) -> JsonObject:
        """What `GET /api/v1/trust` answers.

        `initialised`, `online_keys` (those in use), `next_online_keys` (those that wait for a root),
        `image_root_version` and `director_root_version`.
        """
        ...

    def prepare_online_keys(self, wishes: Sequence[OnlineKeyWish], is_afresh: bool) -> JsonObject:
        """Have a next key ready for some online roles, all of them when none is named; gives the trust summary.

        Nothing is signed with them before a root trusts them. Keys that wait already are kept unless `is_afresh`.

        Raises:
            EdgeError: `cloud.bad-request` for an unknown role, `config.*` for a URI that cannot be used.
        """
        ...

    def submit_roots(self, image: bytes | None, director: bytes | None) -> None:
        """Take new root metadata of either repository, verified by the TUF root rules and stored in one transaction.

        Raises:
            EdgeError: `trust.*` for what does not verify, `cloud.conflict` for a version that is not the next.
        """
        ...

    def submit_metadata(self, files: Mapping[str, bytes]) -> None:
        """Take signed targets by role (`{"targets": …, "bins-00": …}`), then sign a new snapshot and timestamp.

        All or nothing, durable on return.

        Raises:
            EdgeError: `trust.*` for what does not verify, `cloud.conflict` for a version that is not the next.
        """
        ...

    def target(self, path: str) -> ImageTarget | None:
        """The target with this path in the current metadata, or none."""
        ...

    def read(self, filename: str) -> bytes:
        """One metadata file by its consistent-snapshot name, for example `timestamp.json` or `3.bins-0a.json`.

        Raises:
            EdgeError: `cloud.not-found`.
        """
        ...

    def root(self) -> bytes | None:
        """The newest root metadata, for enrolment; none before the first was submitted."""
        ...


class AssignmentSource(Protocol):
    """What each device should run now, as the operators decided."""

    def assignments(self, device: str) -> tuple[Assignment, ...]:
        """One assignment a module, sorted by module; always what the database says at this moment.

        Raises:
            EdgeError: `cloud.not-found` for a device that is not enrolled.
        """
        ...


class Director(Protocol):
    """Per-device TUF metadata: which of the genuine bytes this device should run.

    `metadata` and `version` compare the current assignments with those the cached metadata was made from, so they are
    right even if nobody called `invalidate` (another server process, a crash between two steps).
    """

    def metadata(self, device: str, filename: str) -> bytes:
        """One metadata file of a device's director repository, made or renewed when needed.

        Raises:
            EdgeError: `cloud.not-found` for an unknown device or file, `trust.root-unknown` before the first root.
        """
        ...

    def version(self, device: str) -> int:
        """Version of the device's targets metadata after taking in its current assignments; 0 before the first root."""
        ...

    def invalidate(self, device: str) -> None:
        """Drop what is held in memory for a device; a hint after its assignments changed. Never fails."""
        ...

    def forget(self, device: str) -> None:
        """Remove all metadata of a device that was deleted. Its versions may start again at 1."""
        ...

    def root(self) -> bytes | None:
        """The newest root metadata, for enrolment; none before the first was submitted."""
        ...


class Authenticator(Protocol):
    """Tells operators and devices by their tokens."""

    def authenticate(self, token: str) -> Principal | None:
        """Whose token this is, or none for one that is unknown or revoked. Compares in constant time.

        Raises:
            EdgeError: `cloud.unauthorized`, `cloud.token-expired` or `cloud.device-revoked` for a device's token that
                is not good.
        """
        ...


# --- Tables ---


@dataclass(frozen=True, slots=True)
class MetadataRow:
    """One document to keep.

    Attributes:
        repository: Name space, at most 128 characters, for example `image` or `director/<device>`.
        name: Name in it, at most 128 characters, for example `targets`, `3.root` or `bins-0a`.
        version: From 1.
        data: The exact bytes, at most 64 MiB.
    """

    repository: str
    name: str
    version: int
    data: bytes


class MetadataTable(Protocol):
    """Small versioned documents in the registry's database, changed together or not at all."""

    def get(self, repository: str, name: str) -> tuple[int, bytes] | None:
        """(version, bytes) of a document, or none."""
        ...

    def versions(self, repository: str) -> dict[str, int]:
        """Version of every document of a repository by name."""
        ...

    def put_many(
        self,
        rows: Sequence[MetadataRow],
        expect: Mapping[tuple[str, str], int],
        remove: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Insert or replace documents and remove others, in one transaction, durable on return.

        Args:
            rows: What to keep.
            expect: Version that must be stored at this moment by (repository, name); 0 for "absent". Documents that
                are not named here are not compared.
            remove: (repository, name) of documents to remove; absent ones are no error.

        Raises:
            EdgeError: `cloud.conflict` if a version differs from `expect`; nothing changed then.
        """
        ...

    def remove_repository(self, repository: str) -> None:
        """Remove every document of a repository."""
        ...


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far the telemetry of one boot of one device is durable.

    Attributes:
        device: Name of the device.
        boot: The boot that numbered the records.
        previous: Watermark the file was made against, 0 when none; a different stored value is a conflict.
        last: New watermark, above `previous`.
    """

    device: str
    boot: str
    previous: int
    last: int


@dataclass(frozen=True, slots=True)
class LakeFile:
    """Catalogue row of one Parquet file.

    Attributes:
        path: Relative to the lake's folder, '/'-separated.
        rows: Records in it, at least 1.
        size: Bytes.
        received_ms_min: Earliest time of receipt in it.
        received_ms_max: Latest.
    """

    path: str
    rows: int
    size: int
    received_ms_min: int
    received_ms_max: int


@dataclass(frozen=True, slots=True)
class ReportMessage:
    """A message that claims to be a report.

    Attributes:
        content: Its bytes, from whoever was let in: nothing about them is known.
        received_ms: When it came.
        is_copy: Whether it most likely came before, by another way: a replay is then not held against its device.
    """

    content: bytes
    received_ms: int
    is_copy: bool = False


@dataclass(frozen=True, slots=True)
class ReportVerdict:
    """What became of such a message.

    Attributes:
        code: Why it was not believed, for example `trust.report-unsigned`; none for a genuine report.
        detail: What is wrong with it.
        is_applied: Whether it is what is known of the device now; false when a newer one came along with it.
    """

    code: str | None = None
    detail: str = ""
    is_applied: bool = False


class EnvelopeVerifier(Protocol):
    """Checks signatures."""

    def __call__(self, envelope: Envelope, pem: str) -> bool:
        """Whether the envelope's signature is one of this public key over exactly its content."""
        ...


class FleetStore(Protocol):
    """What the collector keeps in the registry's database."""

    def take_reports(self, device: str, messages: Sequence[ReportMessage]) -> Sequence[ReportVerdict]:
        """Verify what came on a device's topic, and take the newest report and what follows from it; all durable.

        Only a report that a key of the device's enrolment signed, and that is newer than what was taken of that
        enrolment before, changes anything. Others are counted and remembered with their reason.

        Args:
            device: Whose topic it was.
            messages: In the order in which they came.

        Returns:
            A verdict for each message.

        Raises:
            EdgeError: `cloud.unavailable`, `device.*`; nothing was taken then.
        """
        ...

    def watermark(self, device: str, boot: str) -> int | None:
        """Highest durable record number of a boot, 0 when none; none for a device that is not enrolled, or revoked."""
        ...

    def commit_batch(self, marks: Sequence[Watermark], file: LakeFile) -> None:
        """Advance watermarks and enter the file into the catalogue in ONE transaction, durable on return.

        Raises:
            EdgeError: `cloud.conflict` if a stored watermark is not `previous` (another collector was faster) or the
                device is gone; nothing changed then: read the watermarks again and write another file.
        """
        ...

    def lake_files(self) -> Sequence[LakeFile]:
        """The whole catalogue, oldest file first."""
        ...

    def report_rows(self) -> Iterator[JsonObject]:
        """The newest report of every device that sent one, as rows of the table `reports`, by device."""
        ...

    def replace_files(self, old: Sequence[str], new: Sequence[LakeFile]) -> None:
        """Exchange catalogue rows in one transaction (compaction, retention).

        Raises:
            EdgeError: `cloud.conflict` if an old file is not in the catalogue.
        """
        ...


# --- Telemetry ---


@dataclass(frozen=True, slots=True)
class LakeRow:
    """One record of telemetry on its way into the lake.

    Attributes:
        device: Name of the device.
        boot: The boot that numbered the record.
        received_ms: When the collector took its batch.
        sample: The record.
    """

    device: str
    boot: str
    received_ms: int
    sample: Sample


class LakeWriter(Protocol):
    """Makes durable files of records. Used by one thread; a file counts only once it is in the catalogue."""

    def write(self, rows: Sequence[LakeRow]) -> LakeFile:
        """Write one new file, durable under its final name on return.

        Args:
            rows: At least one.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error` or `device.memory-short` when it may work later;
                `artifact.document-invalid` when these rows can never be written.
        """
        ...

    def merge(self, files: Sequence[LakeFile]) -> LakeFile:
        """Write one new file with the records of several, as `write` does."""
        ...

    def retire(self, files: Sequence[LakeFile]) -> None:
        """Start the grace of files that just left the catalogue: queries that began before may still read them."""
        ...

    def sweep(self, catalogue: Callable[[], Sequence[LakeFile]]) -> int:
        """Remove files neither in the catalogue nor in their grace nor a living collector's; how many."""
        ...


# --- Messages ---


class BrokerRoster(Protocol):
    """Which enrolments the broker lets in. Only who holds a certificate of an identity can use its entry."""

    def admit(self, identity: str, device: str) -> None:
        """Let an identity use its device's topics, now or when the broker can be reached. Never blocks or raises."""
        ...

    def remove(self, identity: str) -> None:
        """Close the broker to an identity and end its connection. Never blocks, never raises."""
        ...

    def close(self) -> None:
        """Disconnect; bounded."""
        ...


class Nudger(Protocol):
    """Tells devices that something changed. Only a hint: devices also poll."""

    def nudge(self, device: str, director_version: int) -> None:
        """Hand a nudge to the broker, or drop it when offline. Never blocks, never raises."""
        ...

    def close(self) -> None:
        """Disconnect; bounded."""
        ...
