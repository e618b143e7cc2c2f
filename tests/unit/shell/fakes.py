"""Fakes at every port of the shell: in memory, without threads of their own, each failing when told to."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent import ports
from edge_contract.delta import Delta
from edge_contract.deployment import Artifact, Assignment, Policy
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.manifest import (
    CONFIG_TYPE,
    FILEPATH,
    ROLE,
    WEIGHT_CONFIG_RAW,
    WEIGHT_RAW,
    Descriptor,
    Manifest,
    Role,
)
from edge_contract.runtime import RUNTIME_PATH, Member, Probation, Runtime
from edge_contract.telemetry import Ack, Batch, Sample
from edge_contract.terms import Agreement, Trial
from edge_contract.twin import Report

PLATFORM = "linux/amd64"
GOLDEN = Digest.of(b"golden")
LIVE_BYTES = 50_000_000
_NO_POLICY = Policy()


class Cloud:
    """Bundles that exist, and what is assigned."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.desired = ports.Desired(0, ())

    def publish(
        self,
        version: int,
        platform: str = PLATFORM,
        says_version: int | None = None,
        load_peak_bytes: int = 0,
        padding_bytes: int = 0,
    ) -> Assignment:
        """Make a bundle; the runtime descriptor may lie about its version."""
        runtime = Runtime(
            "digits",
            says_version or version,
            (Member("digits", "onnx", "model.onnx"),),
            probation=Probation(window_ms=0),
            load_peak_bytes=load_peak_bytes,
        ).to_bytes()
        weights = f"weights {version}".encode() + b"." * padding_bytes
        layers = (
            self._blob(WEIGHT_CONFIG_RAW, runtime, Role.RUNTIME, RUNTIME_PATH),
            self._blob(WEIGHT_RAW, weights, Role.MODEL, "model.onnx"),
        )
        manifest = Manifest(self._blob(CONFIG_TYPE, b"{}", "", "config"), layers).to_bytes()
        self.blobs[Digest.of(manifest)] = manifest
        artifact = Artifact("digits", version, platform, version, "bundles/digits")
        return Assignment("digits", f"d{version}", Digest.of(manifest), len(manifest), artifact)

    def _blob(self, media_type: str, data: bytes, role: str, path: str) -> Descriptor:
        self.blobs[Digest.of(data)] = data
        annotations = {ROLE: role, FILEPATH: path} if role else {}
        return Descriptor(media_type, Digest.of(data), len(data), annotations)

    def assign(self, *assignments: Assignment) -> int:
        """Assign, and give the director version to nudge with."""
        self.desired = ports.Desired(self.desired.director_version + 1, assignments)
        return self.desired.director_version


class FakeVerifier:
    """Gives what the cloud assigns."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def refresh(self, wall_ms: int) -> ports.Desired:
        """The cloud's word, taken as verified."""
        assert wall_ms > 0
        return self._cloud.desired


class FakeStore:
    """Blobs in memory; also the fetcher."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.present: dict[Digest, bytes] = {}
        self.fail: EdgeError | None = None
        self.fail_for: dict[Digest, EdgeError] = {}
        self.collected: list[frozenset[Digest]] = []
        self.partial: dict[Digest, int] = {}
        self.near: set[Digest] = set()
        self.room_bytes: int | None = None
        self.fetched: list[Digest] = []

    def fetch(self, repository: str, blob: Descriptor, is_cancelled: Callable[[], bool]) -> int:
        """Copy from the cloud."""
        assert repository == "bundles/digits"
        if error := self.fail or self.fail_for.get(blob.digest):
            raise error
        if blob.digest in self.present:
            return 0
        self.present[blob.digest] = self._cloud.blobs[blob.digest]
        self.fetched.append(blob.digest)
        return blob.size - self.partial.pop(blob.digest, 0)

    def is_near(self, blob: Descriptor) -> bool:
        """Whether the test put it beside the device."""
        return blob.digest in self.near

    def partial_bytes(self, digest: Digest) -> int:
        """What the test says has come."""
        return 0 if digest in self.present else self.partial.get(digest, 0)

    def remove(self, digest: Digest) -> None:
        """Forget it."""
        self.present.pop(digest, None)
        self.partial.pop(digest, None)

    def has(self, digest: Digest) -> bool:
        """Whether it was fetched."""
        return digest in self.present

    def read(self, digest: Digest, bytes_max: int) -> bytes:
        """A fetched blob."""
        if digest not in self.present:
            raise EdgeError("artifact.not-found", f"no blob {digest}")
        assert len(self.present[digest]) <= bytes_max
        if Digest.of(self.present[digest]) != digest:
            raise EdgeError("device.disk-corrupt", f"blob {digest} is damaged")
        return self.present[digest]

    def verify(self, digest: Digest, size: int) -> None:
        """Compare size and digest; a damaged blob goes."""
        if digest not in self.present:
            raise EdgeError("artifact.not-found", f"no blob {digest}")
        data = self.present[digest]
        if len(data) != size or Digest.of(data) != digest:
            del self.present[digest]
            raise EdgeError("device.disk-corrupt", f"blob {digest} is damaged")

    def require_space(self, bytes_needed: int) -> None:
        """There is room, unless the test sets a bound."""
        if self.room_bytes is not None and bytes_needed > self.room_bytes:
            raise EdgeError("device.disk-full", f"{bytes_needed} bytes are needed")

    def collect(self, keep: frozenset[Digest]) -> int:
        """Forget the rest."""
        self.collected.append(keep)
        gone = [digest for digest in self.present if digest not in keep]
        return sum(len(self.present.pop(digest)) for digest in gone)


class FakeMaker:
    """Makes what the cloud has; deltas in `bad` fail, those in `unable` cannot be decoded here."""

    def __init__(self, cloud: Cloud, store: FakeStore) -> None:
        self._cloud = cloud
        self._store = store
        self.bad: dict[Digest, EdgeError] = {}
        self.unable: set[Digest] = set()
        self.begun: dict[Digest, int] = {}
        self.vouched: dict[Digest, int] = {}
        self.made: list[Digest] = []

    def can_make(self, delta: Delta) -> bool:
        """Whether the test lets it."""
        return delta.digest not in self.unable

    def made_bytes(self, delta: Delta) -> int:
        """What the test says was made."""
        return self.begun.get(delta.digest, 0)

    def make(self, delta: Delta, is_cancelled: Callable[[], bool]) -> None:
        """Make the blob present, or fail."""
        assert delta.base in self._store.present
        assert delta.digest in self._store.present
        if error := self.bad.get(delta.digest):
            raise error
        self._store.present[delta.new] = self._cloud.blobs[delta.new]
        self.made.append(delta.digest)

    def hand_over(self, blob: Descriptor) -> int:
        """Count as fetched what the test says the delta vouches for."""
        count = max(self._store.partial.get(blob.digest, 0), self.vouched.pop(blob.digest, 0))
        self._store.partial[blob.digest] = count
        return count


class FakeSlots:
    """Slots as a set of digests."""

    def __init__(self) -> None:
        self.staged: set[Digest] = set()
        self.damaged: set[Digest] = set()
        self.checked: list[Digest] = []

    def stage(self, manifest_digest: Digest, manifest: Manifest) -> Path:
        """Remember the slot."""
        assert manifest.layers
        self.staged.add(manifest_digest)
        return self.path(manifest_digest)

    def path(self, manifest_digest: Digest) -> Path:
        """Where it would be."""
        if manifest_digest not in self.staged:
            raise EdgeError("artifact.not-found", f"no slot {manifest_digest}")
        return Path("/slots") / manifest_digest.hex

    def verify(self, manifest_digest: Digest, is_cancelled: Callable[[], bool]) -> None:
        """Damaged when the test says so."""
        self.path(manifest_digest)
        if is_cancelled():
            raise EdgeError("network.cut", "cancelled")
        self.checked.append(manifest_digest)
        if manifest_digest in self.damaged:
            raise EdgeError("device.disk-corrupt", f"slot {manifest_digest} is damaged")

    def set_aside(self, manifest_digest: Digest) -> None:
        """Forget it, and the damage with it."""
        self.staged.discard(manifest_digest)
        self.damaged.discard(manifest_digest)

    def bytes_needed(self, manifest: Manifest) -> int:
        """A kilobyte a layer, as long as there is no slot."""
        is_staged = Digest.of(manifest.to_bytes()) in self.staged
        return 0 if is_staged else 1024 * len(manifest.layers)

    def collect(self, keep: frozenset[Digest]) -> None:
        """Forget the rest."""
        self.staged &= keep


class FakeServer:
    """Models that answer at once; digests in `bad` fail their golden vectors."""

    def __init__(self) -> None:
        self.live: dict[str, Digest] = {}
        self.proved: dict[str, Digest] = {}
        self.bad: set[Digest] = set()
        self.sampling: dict[str, float] = {}
        self.paused: set[str] = set()
        self.impostors: dict[str, Digest] = {}
        self.restarted: list[Digest] = []
        self.policies: dict[str, Policy] = {}
        self.trials: dict[str, Trial] = {}
        self.agreement = Agreement(compared=30, top1_ppm=1_000_000)
        self.latencies: tuple[tuple[int, int], ...] = ()

    def prove(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """Prove a candidate."""
        assert slot.name == manifest.hex
        self.policies[module] = policy
        if manifest in self.bad:
            raise EdgeError("model.golden-mismatch", "output scores differs by 0.9")
        self.proved[module] = manifest
        return GOLDEN

    def activate(self, module: str, manifest: Digest) -> int:
        """Swap."""
        assert self.proved.pop(module) == manifest
        gap_ms = 7 if module in self.paused else 0
        self.paused.discard(module)
        self.live[module] = manifest
        return gap_ms

    def attest(self, module: str) -> ports.Attestation:
        """Say what answers, which may be another bundle than the agent's."""
        if module not in self.live:
            raise EdgeError("model.not-serving", "nobody answers")
        return ports.Attestation(self.impostors.get(module, self.live[module]), GOLDEN)

    def restart(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """Serve the same from a fresh worker."""
        self.restarted.append(manifest)
        self.live[module] = manifest
        return GOLDEN

    def begin_trial(self, module: str, trial: Trial) -> None:
        """Remember its terms."""
        assert module in self.live
        assert module in self.proved
        self.trials[module] = trial

    def trial(self, module: str) -> Agreement:
        """What the test set."""
        return self.agreement

    def pause(self, module: str) -> None:
        """End the live worker."""
        self.live.pop(module, None)
        self.paused.add(module)

    def memory_bytes(self, module: str) -> int:
        """A fixed size each."""
        return LIVE_BYTES if module in self.live else 0

    def ensure(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """Serve."""
        if self.live.get(module) != manifest:
            self.prove(module, manifest, slot, policy)
            self.activate(module, manifest)
        return GOLDEN

    def discard(self, module: str) -> None:
        """Forget the candidate."""
        self.proved.pop(module, None)

    def stop(self, module: str) -> None:
        """Serve nothing."""
        self.live.pop(module, None)

    def health(self, module: str) -> ports.Health:
        """Always well."""
        return ports.Health(module in self.live, 1, 0, latencies=self.latencies)

    def set_sampling(self, module: str, ratio: float) -> None:
        """Remember the ratio."""
        self.sampling[module] = ratio

    def close(self) -> None:
        """End all."""
        self.live.clear()


class FakeJournal:
    """One record in memory; `error` makes every write fail."""

    def __init__(self) -> None:
        self.record: JsonObject | None = None
        self.error: EdgeError | None = None

    def load(self) -> JsonObject | None:
        """What was saved."""
        return self.record

    def save(self, record: JsonObject) -> None:
        """Save or fail."""
        if self.error:
            raise self.error
        self.record = record


class PlainReports:
    """Hands reports over as they are, without a signature."""

    def __init__(self, link: "Callable[[], FakeLink]") -> None:
        self.link = link

    def send(self, report: bytes) -> None:
        """Pass it on at once."""
        self.link().send_report(report)

    def link_changed(self, is_online: bool) -> None:
        """Nothing waits."""

    def stop(self) -> None:
        """Nothing waits."""


class FakeGauge:
    """So much memory is free."""

    def __init__(self) -> None:
        self.free_bytes: int | None = None

    def available_bytes(self) -> int | None:
        """What the test says."""
        return self.free_bytes


class FakeHook:
    """An owner who says what the test lets it say."""

    def __init__(self) -> None:
        self.wait_ms: dict[str, int] = {}
        self.asked: list[str] = []

    def ask(self, gate: str, assignment: Assignment) -> int:
        """Answer."""
        self.asked.append(gate)
        return self.wait_ms.get(gate, 0)


class FakeLink:
    """A link to nobody: keeps what is sent, and lets the test play the cloud."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.batches: list[Batch] = []
        self.changed = threading.Condition()

    def start(
        self,
        on_nudge: Callable[[int], None],
        on_ack: Callable[[Ack], None],
        on_online: Callable[[bool], None],
    ) -> None:
        """Come online at once."""
        self.nudge, self.ack, self.online = on_nudge, on_ack, on_online
        on_online(True)

    def send_report(self, report: bytes) -> bool:
        """Keep it."""
        with self.changed:
            self.reports.append(Report.parse(report))
            self.changed.notify_all()
        return True

    def send_batch(self, batch: bytes) -> bool:
        """Keep it."""
        with self.changed:
            self.batches.append(Batch.parse(batch))
            self.changed.notify_all()
        return True

    def stop(self) -> None:
        """Nothing to end."""

    def wait_for(self, predicate: Callable[[], object], deadline_s: float = 20.0) -> None:
        """Block until a message made the predicate true."""
        with self.changed:
            assert self.changed.wait_for(predicate, deadline_s), f"never came: {self.reports[-1:]}"


class FakeSpool:
    """A list; with an error it does nothing but raise it."""

    def __init__(self) -> None:
        self.waiting: list[Sample] = []
        self.error: EdgeError | None = None
        self._seq = 0

    def append(self, records: Sequence[JsonObject]) -> None:
        """Number and keep."""
        self._fail()
        for record in records:
            self._seq += 1
            self.waiting.append(Sample.from_json({**record, "seq": self._seq}))

    def next_batch(self) -> Batch | None:
        """Everything."""
        self._fail()
        return Batch("dev", "00" * 8, tuple(self.waiting)) if self.waiting else None

    def acknowledge(self, ack: Ack) -> int:
        """Forget."""
        self._fail()
        before = len(self.waiting)
        self.waiting = [item for item in self.waiting if item.seq > ack.upto.get("00" * 8, 0)]
        return before - len(self.waiting)

    def backlog(self) -> tuple[int, int, int]:
        """Count."""
        self._fail()
        return len(self.waiting), 0, 0

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class FakeSupervisor:
    """Counts the loop's signs of life."""

    def __init__(self) -> None:
        self.signs: list[str] = []

    def ready(self) -> None:
        """Up."""
        self.signs.append("ready")

    def alive(self, status: str) -> None:
        """Turning."""
        assert status

    def stopping(self) -> None:
        """Ending."""
        self.signs.append("stopping")

    def reloading(self) -> None:
        """Starting anew."""
        self.signs.append("reloading")
