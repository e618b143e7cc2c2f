"""Gives what verified metadata assigns to this device, without verifying again what cannot have changed.

Every refresh asks the clock and its floor, and fetches both timestamps. Only when one of them differs from the last
verified one, or something has expired, everything is verified in full: here, or in a process of its own
(`trust.child`), so that python-tuf and cryptography take no memory between two changes.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edge_agent.limits import TIMESTAMP_BYTES_MAX
from edge_agent.ports import Desired
from edge_agent.trust.metastore import MetadataStore
from edge_agent.trust.receipt import Receipt
from edge_agent.trust.source import FetchMetadata
from edge_agent.trust.timefloor import TimeFloor, Times
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.phases import Outcome, Phase
from edge_contract.twin import ReportedDeployment, ReportedError


class UptaneVerifier:
    """Implements `ports.MetadataVerifier`. Used by one thread."""

    def __init__(
        self,
        folder: Path,
        device: str,
        director: FetchMetadata,
        image: FetchMetadata,
        installed: Callable[[], Mapping[tuple[str, str], int]],
        floor: TimeFloor,
        verify: Callable[[Times], Receipt] | None = None,
    ) -> None:
        """Put the verifier together; nothing is read yet.

        Args:
            folder: For example `<data>/trust`; `director/` and `image/` below it hold trusted metadata.
            device: Name of this device.
            director: Fetches files of this device's director repository.
            image: Fetches files of the image repository.
            installed: Gives the release counters of what is live, by module and model; asked once a refresh.
            floor: The floor under the clock.
            verify: Verifies in full, judging by given times; in this process when none.
        """
        self._stores = (MetadataStore(folder / "director"), MetadataStore(folder / "image"))
        self._director = director
        self._image = image
        self._installed = installed
        self._floor = floor
        self._verify = verify or _InThisProcess(folder, device, director, image)
        self._receipt: Receipt | None = None

    def seed(self, director_root: bytes, image_root: bytes) -> None:
        """Begin with the roots of an enrolment; call it at every start, it does nothing when they were taken before.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`, `trust.metadata-too-large`.
        """
        for store, root in zip(self._stores, (director_root, image_root), strict=True):
            store.seed(root)

    def refresh(self, wall_ms: int) -> Desired:
        """See `ports.MetadataVerifier.refresh`.

        Whether an artifact is for this platform and hardware is signed too, and judged for each deployment by itself
        when its bundle is resolved, so that one wrong assignment does not hold up the others.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`, `device.*`.
        """
        receipt = self._receipt
        if receipt is None or not self._still_holds(receipt, self._floor.times(wall_ms)):
            # Forgotten first: after a failure half way, what was trusted on disk may be newer than the receipt.
            self._receipt = None
            self._receipt = receipt = self._verify(self._floor.times(wall_ms))
        self._floor.learn(wall_ms, receipt.signed)
        allowed, refused = _by_counter(receipt.desired.assignments, self._installed())
        is_clock_trusted = self._floor.is_trusted(wall_ms, receipt.repositories)
        return Desired(receipt.desired.director_version, allowed, refused, is_clock_trusted)

    def _still_holds(self, receipt: Receipt, times: Times) -> bool:
        """Whether both repositories serve what was verified, and nothing of it has expired."""
        return (
            times.latest(receipt.repositories) < receipt.fresh_until_ms
            and _timestamp(self._director) == receipt.director
            and (receipt.image is None or _timestamp(self._image) == receipt.image)
        )


class _InThisProcess:
    """A full verification whose libraries are imported by its first use."""

    def __init__(self, folder: Path, device: str, director: FetchMetadata, image: FetchMetadata) -> None:
        self._parts = (folder, device, director, image)
        self._inner: Callable[[Times], Receipt] | None = None

    def __call__(self, times: Times) -> Receipt:
        from edge_agent.trust.full import FullVerification

        if self._inner is None:
            self._inner = FullVerification(*self._parts)
        return self._inner(times)


def _timestamp(fetch: FetchMetadata) -> Digest | None:
    data = fetch("timestamp.json", TIMESTAMP_BYTES_MAX)
    return None if data is None else Digest.of(data)


def _by_counter(
    assignments: Iterable[Assignment], installed: Mapping[tuple[str, str], int]
) -> tuple[tuple[Assignment, ...], dict[str, ReportedDeployment]]:
    """Part assignments whose release counter may be taken from those that are refused, by module."""
    allowed, refused = [], {}
    for assignment in assignments:
        try:
            require_counter(assignment, installed)
        except EdgeError as error:
            why = ReportedError.of(error.code, error.detail, Phase.RESOLVING)
            refused[assignment.module] = ReportedDeployment(
                assignment.deployment, assignment.manifest, Outcome.REFUSED, why
            )
        else:
            allowed.append(assignment)
    return tuple(allowed), refused


def require_counter(assignment: Assignment, installed: Mapping[tuple[str, str], int]) -> None:
    """Require that a module's release counter does not fall, unless the director signed a permit.

    Args:
        assignment: Verified.
        installed: Release counters of what is live, by module and model: counters of two models do not compare, a
            module may change its model, and two modules may run versions of one model that differ.

    Raises:
        EdgeError: `trust.release-rollback`.
    """
    artifact = assignment.artifact
    floor, counter = installed.get((assignment.module, artifact.model), 0), artifact.release_counter
    if counter < floor and not assignment.policy.allow_release_rollback:
        raise EdgeError(
            "trust.release-rollback",
            f"the release counter of model {artifact.model} would fall from {floor} to {counter}",
            "To go back on purpose, deploy with the policy allow_release_rollback.",
        )
