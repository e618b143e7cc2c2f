"""Full verification of both repositories, with python-tuf: the I/O around the pure rest.

Order: director (root chain, timestamp, snapshot, targets, device), then, only when something is assigned, the image
repository (the same chain, and for each assignment the bin that holds it), then agreement of both.

A repository's timestamp, snapshot and targets are written only when the whole chain has held, for the director
including the name of the device: otherwise metadata of another device, properly signed, would become the measure that
refuses our own. Roots are written one by one as they verify.
"""

from pathlib import Path

from edge_agent.ports import Desired
from edge_agent.trust.match import director_assignments, require_agreement
from edge_agent.trust.metastore import MetadataStore
from edge_agent.trust.receipt import Receipt
from edge_agent.trust.repository import Repository
from edge_agent.trust.source import FetchMetadata
from edge_agent.trust.timefloor import Times
from edge_contract.digest import Digest


class FullVerification:
    """Verifies what a device should run; call it with the times to judge by. Used by one thread."""

    def __init__(self, folder: Path, device: str, director: FetchMetadata, image: FetchMetadata) -> None:
        """Put it together; nothing is read yet.

        Args:
            folder: For example `<data>/trust`; `director/` and `image/` below it hold trusted metadata.
            device: Name of this device.
            director: Fetches files of this device's director repository.
            image: Fetches files of the image repository.
        """
        self._device = device
        self._director = Repository("director", MetadataStore(folder / "director"), director)
        self._image = Repository("image", MetadataStore(folder / "image"), image)

    def __call__(self, times: Times) -> Receipt:
        """Bring trusted metadata up to date and give what it says.

        Args:
            times: What to judge expiry by.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`, `device.*`.
        """
        director = self._director.refresh(times)
        assigned = director_assignments(director.targets, self._device)
        self._director.commit()
        fresh_until_ms = director.fresh_until_ms
        signed = {"director": self._director.signed_time}
        image_timestamp: Digest | None = None
        if assigned:
            image = self._image.refresh(times)
            paths = {target.path for _, target in assigned}
            found = {path: self._image.find(path) for path in sorted(paths)}
            # Before anything is written: a thief of the author's key alone shall leave nothing behind.
            for assignment, target in assigned:
                require_agreement(assignment, target, found[target.path])
            self._image.commit()
            fresh_until_ms = min(fresh_until_ms, image.fresh_until_ms)
            signed["image"] = self._image.signed_time
            image_timestamp = self._image.timestamp
        desired = Desired(director.targets.version, tuple(assignment for assignment, _ in assigned))
        return Receipt(desired, fresh_until_ms, self._director.timestamp, image_timestamp, signed)
