"""What the agent's shell needs from the outside, as small Protocols named for the role.

Unless a method says otherwise it blocks, is called from the one lane of the shell that its port belongs to (metadata,
store or serving; `SlotStore.path` from serving as well), and raises `edge_contract.errors.EdgeError` for everything
that can go wrong in operation; a library's own exceptions never pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from edge_contract.delta import Delta
from edge_contract.deployment import Assignment, Policy
from edge_contract.digest import Digest
from edge_contract.hub import HubSettings
from edge_contract.jsonio import JsonObject
from edge_contract.manifest import Descriptor, Manifest
from edge_contract.telemetry import Ack, Batch
from edge_contract.terms import Agreement, Trial
from edge_contract.twin import ReportedDeployment

_NO_POLICY: Final = Policy()


class Clock(Protocol):
    """Time, so that the shell never asks the system itself. Any thread."""

    def monotonic_ms(self) -> int:
        """Milliseconds that never go back; the origin means nothing."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970 as the system claims; may be wrong."""
        ...


@dataclass(frozen=True, slots=True)
class Desired:
    """What verified director metadata says this device should run.

    Attributes:
        director_version: Version of the director targets metadata.
        assignments: One for each module, without those that this device must not take.
        refused: What was assigned and must not be taken here, by module; what the module runs stays as it is.
        is_clock_trusted: False when the clock is behind a time known to have passed, and that time was used instead.
    """

    director_version: int
    assignments: tuple[Assignment, ...]
    refused: Mapping[str, ReportedDeployment] = field(default_factory=dict)
    is_clock_trusted: bool = True


class MetadataVerifier(Protocol):
    """Fetches and fully verifies the metadata of both repositories (Uptane 2.1)."""

    def refresh(self, wall_ms: int) -> Desired:
        """Bring trusted metadata up to date and give what it assigns.

        Metadata trusted before stays in force when new metadata is bad. Everything is durable before it is trusted.

        Args:
            wall_ms: The system's claim of the time; when it is earlier than a time known to have passed, that is
                used in its place.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`, `device.*`.
        """
        ...


class BundleFetcher(Protocol):
    """Pulls content by digest from an OCI registry into the blob store, resuming what was cut."""

    def fetch(self, repository: str, blob: Descriptor, is_cancelled: Callable[[], bool]) -> int:
        """Make one blob present in the store, verified and durable.

        Args:
            repository: OCI repository, for example `bundles/digits`.
            blob: What to fetch; a manifest is recognised by its media type.
            is_cancelled: Asked between chunks; when true the call ends with `network.cut` and keeps what it has.

        Returns:
            Bytes that came over the network (0 when the blob was there).

        Raises:
            EdgeError: `network.*`, `cloud.*`, `artifact.*`, `device.disk-full`, `device.disk-error`.
        """
        ...

    def is_near(self, blob: Descriptor) -> bool:
        """Whether `fetch` would most likely bring no byte of it over the network."""
        ...


class DeltaMaker(Protocol):
    """Makes blobs out of others that are in the store, by deltas that are in the store (ADR 0038)."""

    def can_make(self, delta: Delta) -> bool:
        """Whether it is worth fetching: this device decodes deltas, and this one never failed here."""
        ...

    def made_bytes(self, delta: Delta) -> int:
        """How much of the output an interrupted `make` has left to go on from."""
        ...

    def make(self, delta: Delta, is_cancelled: Callable[[], bool]) -> None:
        """Make the blob `delta.new` present, verified and durable, out of `delta.base`; the delta is in the store.

        An interruption, of the power as well, costs what was made since the last checkpoint. A failure is remembered
        over restarts, and so is how often a decoding was started and never came to an end.

        Args:
            delta: Which.
            is_cancelled: Asked between chunks; when true the call ends with `network.cut` and keeps what it has.

        Raises:
            EdgeError: `artifact.delta-invalid`, `artifact.*`, `device.*`, `internal.*`: this delta is of no use now.
        """
        ...

    def hand_over(self, blob: Descriptor) -> int:
        """Let what was made of a blob, as far as the delta itself vouches for it, count as fetched.

        What was fetched before stays where it is more. Returns how many bytes of the blob are there then.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`.
        """
        ...


class BlobStore(Protocol):
    """Content-addressed blobs on disk."""

    def has(self, digest: Digest) -> bool:
        """Whether the whole blob is present (it was verified before it got its name)."""
        ...

    def partial_bytes(self, digest: Digest) -> int:
        """How much has come of a blob that is not whole; 0 when nothing has, or when it is whole."""
        ...

    def remove(self, digest: Digest) -> None:
        """Remove a blob that nobody needs any more, and whatever has come of it.

        Raises:
            EdgeError: `device.disk-error`.
        """
        ...

    def read(self, digest: Digest, bytes_max: int) -> bytes:
        """The verified bytes of a small blob.

        Raises:
            EdgeError: `artifact.not-found`, `artifact.document-too-large`, `device.disk-corrupt`.
        """
        ...

    def verify(self, digest: Digest, size: int) -> None:
        """Read a blob from disk again and compare size and digest; a damaged blob is removed.

        Raises:
            EdgeError: `device.disk-corrupt`, `artifact.not-found`.
        """
        ...

    def require_space(self, bytes_needed: int) -> None:
        """Require room for so many bytes beside the emergency reserve.

        Raises:
            EdgeError: `device.disk-full`.
        """
        ...

    def collect(self, keep: frozenset[Digest]) -> int:
        """Remove every blob and partial download that is not to be kept; returns the bytes freed.

        What an interrupted `DeltaMaker.make` has left stays as long as its blob is to be kept and is not whole.
        """
        ...


class SlotStore(Protocol):
    """Unpacked bundles named by the digest of their manifest."""

    def stage(self, manifest_digest: Digest, manifest: Manifest) -> Path:
        """Unpack a bundle whose blobs are all present; atomic, idempotent, durable on return.

        Returns:
            The slot's folder; bundle files are below `files/`, unpacked wheels in `site/`.

        Raises:
            EdgeError: `artifact.*`, `device.disk-full`, `device.disk-error`.
        """
        ...

    def path(self, manifest_digest: Digest) -> Path:
        """The folder of a complete slot.

        Raises:
            EdgeError: `artifact.not-found`.
        """
        ...

    def verify(self, manifest_digest: Digest, is_cancelled: Callable[[], bool]) -> None:
        """Read a complete slot from disk again and compare every file with what the manifest says of it.

        Raises:
            EdgeError: `device.disk-corrupt` when something differs or is missing, `artifact.not-found` when there is
                no complete slot, `network.cut` when cancelled.
        """
        ...

    def set_aside(self, manifest_digest: Digest) -> None:
        """Take a damaged slot out of use, durably, with whatever of its blobs is damaged; a running worker keeps its
        open files. `stage` makes it anew once its blobs are there again. Nothing happens if there is no slot.
        """
        ...

    def bytes_needed(self, manifest: Manifest) -> int:
        """Upper bound of what `stage` will write for a bundle, beside its blobs; 0 when its slot is complete."""
        ...

    def collect(self, keep: frozenset[Digest]) -> None:
        """Remove every slot that is not to be kept."""
        ...


class Journal(Protocol):
    """The one small file that holds the agent's record."""

    def load(self) -> JsonObject | None:
        """The newest record that can be read, or none on a new device.

        Raises:
            EdgeError: `internal.record-invalid` when a record was there and cannot be read at all.
        """
        ...

    def save(self, record: JsonObject) -> None:
        """Write the record; durable on return.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Health:
    """What a worker counted since it went live.

    Attributes:
        is_alive: Whether the worker process runs and answers.
        requests: Inference requests answered, good or bad (client mistakes are not counted).
        failures: Those that failed through the model's or worker's fault.
        nonfinite: Answers with NaN or infinity although every input was finite.
        latencies: A histogram of answered requests: (least latency of the bucket in microseconds, how many lie in it),
            ascending, empty buckets left out.
        drift: How far, in standard deviations of the golden outputs, the mean of the live outputs lies from theirs; 0
            when unknown.
    """

    is_alive: bool
    requests: int
    failures: int
    nonfinite: int = 0
    latencies: tuple[tuple[int, int], ...] = ()
    drift: float = 0.0


@dataclass(frozen=True, slots=True)
class Attestation:
    """What a module's own socket said when the agent asked it for a prediction like any client.

    Attributes:
        manifest: Digest of the bundle that answered.
        golden: Digest of the outputs that this worker computed on its golden vectors just now; none without vectors.
    """

    manifest: Digest
    golden: Digest | None


class ModelServer(Protocol):
    """Starts, proves, swaps and watches worker processes: one live worker a module, at most one candidate beside it."""

    def prove(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """Start a candidate worker from a slot, load it and prove it on the golden vectors; it does not serve yet.

        A candidate of the same module from before is discarded first.

        Args:
            module: Name of the module.
            manifest: Digest of the bundle's manifest.
            slot: The bundle's slot.
            policy: The signed policy: what the worker may use, and whether it may load pickles.

        Returns:
            Digest over the outputs on the golden vectors, or none when the bundle has no golden vectors.

        Raises:
            EdgeError: `model.*`, `device.memory-short`.
        """
        ...

    def activate(self, module: str, manifest: Digest) -> int:
        """Let the proved candidate accept requests, drain the live worker and end it. Loses no request.

        Returns:
            How long nobody answered, in milliseconds: 0 unless the live worker was paused or had ended before.

        Raises:
            EdgeError: `model.worker-crashed`, `model.timeout`; then the live worker still serves.
        """
        ...

    def ensure(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """Make this bundle what serves: nothing to do when it does, else prove and activate it. Returns as `prove`.

        Proving it takes the place of any candidate of the module.
        """
        ...

    def attest(self, module: str) -> Attestation:
        """Ask the module's own socket which bundle answers, and let that worker compute its golden vectors again.

        Raises:
            EdgeError: `model.golden-mismatch`, `model.timeout`, `model.worker-crashed`, `model.not-serving`,
                `device.answers-otherwise` when somebody else answers in the bundle's name, `device.disk-corrupt` when
                the golden vectors are no longer what was staged.
        """
        ...

    def restart(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """Swap the live worker for a fresh one of the same bundle, from its slot as it is now. Returns as `prove`."""
        ...

    def begin_trial(self, module: str, trial: Trial) -> None:
        """Let the proved candidate compute on a share of the live worker's inputs, beside it; it answers nobody.

        It goes on until the candidate is activated or discarded, or another trial of the module begins.

        Raises:
            EdgeError: `model.worker-crashed` when there is no candidate or no live worker.
        """
        ...

    def trial(self, module: str) -> Agreement:
        """What the trial under way has found so far.

        Raises:
            EdgeError: `model.worker-crashed` when the candidate ended, `model.timeout`.
        """
        ...

    def pause(self, module: str) -> None:
        """End the live worker and keep its sockets, so that a candidate can load in its memory.

        Connections wait in the listening sockets' queues, or get 503, until `activate` or `ensure`; the end is no
        news (`on_exit` is not called). Nothing happens when nothing is live.
        """
        ...

    def memory_bytes(self, module: str) -> int:
        """Memory that ending the live worker would give back, 0 when there is none. Any thread."""
        ...

    def discard(self, module: str) -> None:
        """End the candidate, if there is one."""
        ...

    def stop(self, module: str) -> None:
        """Serve this module no more: drain and end its workers.

        Requests get 503 or are refused until the next `ensure`.
        """
        ...

    def health(self, module: str) -> Health:
        """Counters of the live worker; `is_alive` false when there is none."""
        ...

    def set_sampling(self, module: str, ratio: float) -> None:
        """Collect this share of requests (0..1) from the live worker."""
        ...

    def close(self) -> None:
        """End all workers, draining them within a bound. Called once, at the agent's end."""
        ...


class MemoryGauge(Protocol):
    """How much memory this device can still give. Any thread."""

    def available_bytes(self) -> int | None:
        """Memory that new processes may use, the limits of a cgroup included; none when nobody can tell."""
        ...


class DeviceSigner(Protocol):
    """The device's private key, wherever it is (file, PKCS#11 token, TPM). Any thread."""

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key (SubjectPublicKeyInfo, DER), hexadecimal."""
        ...

    @property
    def algorithm(self) -> str:
        """`ES256` or `EdDSA` (RFC 7518, RFC 8037)."""
        ...

    def sign(self, content: bytes) -> bytes:
        """Sign: Ed25519, 64 bytes; or ECDSA P-256 over SHA-256 in DER. Blocks within a bound.

        Raises:
            EdgeError: `device.key-unusable`.
        """
        ...


class UpdateHook(Protocol):
    """The device owner's own say in when an update goes on."""

    def ask(self, gate: str, assignment: Assignment) -> int:
        """Ask whether to go on.

        Args:
            gate: `download` or `activate`.
            assignment: What is about to be downloaded or activated.

        Returns:
            0 to go on, or how many milliseconds to wait before asking again.

        Raises:
            EdgeError: `device.hook-failed`; the update waits and asks again.
        """
        ...


class Link(Protocol):
    """One device's connection to the cloud. Methods may be called from any thread and never block for the network."""

    def start(
        self, on_nudge: Callable[[int], None], on_ack: Callable[[Ack], None], on_online: Callable[[bool], None]
    ) -> None:
        """Connect, and stay connected with capped, jittered backoff. Callbacks run on the link's own thread."""
        ...

    def send_report(self, report: bytes) -> bool:
        """Hand a signed report (`edge_contract.signed.Envelope`) to the broker.

        False when offline or the queue is full; the caller sends a newer one later.
        """
        ...

    def send_batch(self, batch: bytes) -> bool:
        """Hand a batch to the broker; false when offline. Delivery is known only by the collector's acknowledgement."""
        ...

    def stop(self) -> None:
        """Disconnect and end the thread; bounded."""
        ...


class Operations(Protocol):
    """What the cloud may ask a device to do at once, where its link can ask (the direct methods of an IoT hub).

    Any thread; each call ends within a bound of its own. Nothing here can bring bytes onto the device or a bundle to
    life that signed metadata did not: at worst an asker delays updates or goes back to the fallback.
    """

    def perform(self, method: str, arguments: JsonObject) -> JsonObject:
        """Do one of `edge_contract.hub.METHODS` and give what is answered.

        Raises:
            EdgeError: `config.*` for a method or arguments that nobody knows; whatever the operation met.
        """
        ...

    def set(self, settings: HubSettings) -> None:
        """Let settings take effect until the next call; parts that are none go back to the device's own."""
        ...


@dataclass(frozen=True, slots=True)
class LinkInput:
    """A message for one of this module's inputs (Azure IoT Edge), as its hub delivered it.

    Attributes:
        name: Of the input.
        content: Its bytes, from whichever module the routes let through.
        properties: Application properties, as texts.
        content_type: What the sender called it; empty when nothing.
    """

    name: str
    content: bytes
    properties: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""


class ModuleMessages(Protocol):
    """Inputs and outputs of a module of Azure IoT Edge, over the connection that its link keeps. Any thread."""

    def listen(self, on_input: Callable[[LinkInput], None]) -> None:
        """Have inputs handed over, on the link's thread; the callee returns at once. Called once, before `start`."""
        ...

    def send_output(self, name: str, content: bytes, properties: Mapping[str, str], content_type: str) -> bool:
        """Hand a message for an output to the hub; false when offline or when too many wait."""
        ...


class Spool(Protocol):
    """Store-and-forward queue of telemetry with a byte budget; survives restarts. Any thread."""

    def append(self, records: Sequence[JsonObject]) -> None:
        """Number and keep records (samples without `seq`); over the budget the oldest are dropped and counted."""
        ...

    def next_batch(self) -> Batch | None:
        """The oldest unacknowledged records of one boot as a batch within the wire limits, or none."""
        ...

    def acknowledge(self, ack: Ack) -> int:
        """Forget what is durable in the cloud; returns how many records went."""
        ...

    def backlog(self) -> tuple[int, int, int]:
        """(records waiting, bytes waiting, records dropped since the spool was made)."""
        ...
