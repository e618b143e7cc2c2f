"""A plain TUF client of one repository, on the verifier of the agent.

The agent needs none of this. It is here so that anybody can hold the verifier against any TUF repository, and any
suite for TUF clients against the verifier. What is verified is written piece by piece, as the specification says; the
clock is taken as it is.
"""

from pathlib import Path
from typing import Final

from edge_agent.limits import ROOT_BYTES_MAX
from edge_agent.store import durable
from edge_agent.trust.download import TargetFolder
from edge_agent.trust.metastore import MetadataStore
from edge_agent.trust.remote import RemoteFolder
from edge_agent.trust.repository import Repository
from edge_agent.trust.timefloor import Times
from edge_agent.trust.trusted import TrustedSet
from edge_contract.errors import EdgeError

_NAME: Final = "image"
_AGAIN: Final = "Begin with: edge-agent tuf --metadata-dir DIR init ROOT"


def begin(folder: Path, root_file: Path) -> int:
    """Begin to trust a repository by its root metadata.

    Args:
        folder: Where trusted metadata is to be kept; made when it is not there.
        root_file: Root metadata of any version, got from somebody trustworthy; may be expired.

    Returns:
        The root's version.

    Raises:
        EdgeError: `config.invalid` when another root is trusted there already, `config.file-missing`, `trust.*` for a
            root that does not sign itself, `device.*`.
    """
    try:
        root = durable.read_file(root_file, ROOT_BYTES_MAX)
    except OSError as error:
        raise EdgeError("config.file-missing", f"{root_file} cannot be read: {error}") from None
    if root is None:
        raise EdgeError("config.file-missing", f"{root_file} is not there")
    version = TrustedSet(_NAME, root).root.version
    MetadataStore(folder).begin(root)
    return version


class TufClient:
    """One repository and a folder of what is trusted of it. Used by one thread."""

    def __init__(self, folder: Path, metadata_url: str) -> None:
        """Put it together; nothing is read yet.

        Args:
            folder: Where `begin` put a root.
            metadata_url: Where `timestamp.json` is.

        Raises:
            EdgeError: `config.invalid` for an unusable URL.
        """
        self._remote = RemoteFolder(metadata_url)
        self._store = MetadataStore(folder)
        self._repository = Repository(_NAME, self._store, self._remote, is_eager=True, hint=_AGAIN)
        self._trusted: TrustedSet | None = None

    def refresh(self, wall_ms: int) -> dict[str, int]:
        """Bring top-level metadata up to date.

        Args:
            wall_ms: The time to judge expiry by, milliseconds since 1970.

        Returns:
            Versions by role.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`, `device.*`.
        """
        self._trusted = trusted = self._repository.refresh(Times(wall_ms))
        found = (trusted.root, trusted.timestamp, trusted.snapshot, trusted.targets)
        return {signed.type: signed.version for signed in found}

    def download(self, path: str, targets: TargetFolder) -> tuple[Path, bool]:
        """Find a target through the delegations and fetch it, unless the file is there already.

        Args:
            path: The target path, as it stands in metadata.
            targets: Where the file is to go, and where it comes from.

        Returns:
            Where it is, and whether it had to be fetched.

        Raises:
            EdgeError: `trust.*`, `artifact.*`, `network.*`, `cloud.*`, `device.*`; `config.invalid` for a path that is
                no text.
        """
        if self._trusted is None:
            raise RuntimeError("a target was asked for before metadata was refreshed")
        try:
            path.encode()
        except UnicodeEncodeError:
            raise EdgeError("config.invalid", f"{path!r} is not a usable target path: it is not UTF-8") from None
        target = self._repository.find(path)
        if target is None:
            raise EdgeError("trust.target-unknown", f"no role that may speak for {path!r} knows it")
        if targets.has(target):
            return targets.path_of(target), False
        return targets.fetch(target, is_prefixed=bool(self._trusted.root.consistent_snapshot)), True

    def close(self) -> None:
        """Close the kept connection."""
        self._remote.close()
