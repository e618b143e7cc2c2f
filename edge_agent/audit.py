"""Reads everything on the disk again and says what is damaged. Changes nothing, so it may run beside the agent."""

from dataclasses import dataclass
from pathlib import Path

from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.journal import FileJournal
from edge_agent.store.slots import FileSlotStore
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import MANIFEST_BYTES_MAX
from edge_contract.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing.

    Attributes:
        kind: "bundle", "blob" or "journal".
        name: For people: model and version, or a digest.
        digest: Of the bundle's manifest or of the blob; empty for the journal.
        error: What is wrong, or none.
    """

    kind: str
    name: str
    digest: str
    error: EdgeError | None = None

    def to_json(self) -> JsonObject:
        """The JSON form for `--json`."""
        error = None if self.error is None else self.error.to_json()
        return {"kind": self.kind, "name": self.name, "digest": self.digest, "error": error}


def audit(data: Path, is_all: bool = False) -> list[Finding]:
    """Read the bundles on this device again, compare every byte with what it was verified as.

    Args:
        data: The data directory.
        is_all: Also blobs that no bundle here needs, and the journal.

    Returns:
        One finding a bundle (its slot and all its blobs); with `is_all` also one a further blob and one for the
        journal.

    Raises:
        EdgeError: `device.disk-error` when the directory cannot be listed.
    """
    blobs = FileBlobStore(data)
    slots = FileSlotStore(data, blobs)
    findings: list[Finding] = []
    seen: set[Digest] = set()
    for digest in slots.complete():
        seen.add(digest)
        name, error = digest.short, None
        try:
            mark = slots.describe(digest)
            name = f"{mark.get('model')}:{mark.get('version')}"
            manifest = Manifest.parse(blobs.read(digest, MANIFEST_BYTES_MAX))
            seen.update(blob.digest for blob in manifest.blobs)
            slots.check(digest, manifest)
        except EdgeError as problem:
            error = problem
        findings.append(Finding("bundle", name, str(digest), error))
    if is_all:
        findings += [_blob(blobs, digest) for digest in blobs.digests() if digest not in seen]
        findings.append(_journal(data))
    return findings


def _blob(blobs: FileBlobStore, digest: Digest) -> Finding:
    try:
        blobs.check(digest)
    except EdgeError as error:
        return Finding("blob", digest.short, str(digest), error)
    return Finding("blob", digest.short, str(digest))


def _journal(data: Path) -> Finding:
    try:
        FileJournal(data / "journal.json").load()
    except EdgeError as error:
        return Finding("journal", "journal.json", "", error)
    return Finding("journal", "journal.json", "")
