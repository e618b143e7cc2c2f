"""Decides which manifest is served: by signed metadata, by a pinned digest, or, when asked to, by nobody's word.

Nothing is remembered from one start to the next, so signed metadata is judged by what it says now: signatures from the
given root down, expiry by the clock, and that it names this very manifest for this model, version and platform. That a
version may not be older than one that was served here before, which a device knows, is left to who names the version.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_agent.limits import ROOT_BYTES_MAX
from edge_agent.web.asked import Asked
from edge_agent.web.sources import Content, media_type_of
from edge_contract.deployment import Artifact, target_path
from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.manifest import INDEX_TYPE, MODEL, PLATFORM, VERSION, Index, Manifest
from edge_contract.names import model_name

if TYPE_CHECKING:
    from edge_agent.trust.source import FetchMetadata

SIGNED: Final = "signed-metadata"
PINNED: Final = "pinned-digest"
NOBODY: Final = "nobody"

_HASH: Final = "sha256"
_DIGITS_MAX: Final = 15
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The manifest to serve.

    Attributes:
        digest: Its digest.
        manifest: What it says.
        model: Name of the model it says it holds.
        version: Its version.
        vouched: Who vouches for it: `SIGNED`, `PINNED` or `NOBODY`.
    """

    digest: Digest
    manifest: Manifest
    model: str
    version: int
    vouched: str


def choose(asked: Asked, content: Content, platform: str, folder: Path) -> Chosen:
    """Find the platform's manifest and require that it is the one that is wanted.

    Args:
        asked: What was asked for.
        content: Where documents come from.
        platform: `os/architecture[/variant]` of this machine.
        folder: Where trust metadata may be put for as long as this takes.

    Raises:
        EdgeError: `trust.*`, `artifact.*`, `config.*`, `network.*`, `cloud.*`, `device.*`.
    """
    digest, data = _manifest_for(content, platform, asked.digest)
    manifest = Manifest.parse(data)
    notes = manifest.annotations
    if notes.get(PLATFORM) != platform:
        what = f"the manifest {digest.short} is for {notes.get(PLATFORM)!r}, this machine is {platform}"
        raise EdgeError("artifact.platform-mismatch", what, "Build the bundle for this platform.")
    model, version = _name(notes.get(MODEL, "")), _number(notes.get(VERSION, ""))
    wanted = (asked.model or model, asked.version or version)
    if (model, version) != wanted:
        what = f"the bundle is {model}:{version}, {wanted[0]}:{wanted[1]} was asked for"
        raise EdgeError("artifact.manifest-invalid", what)
    vouched = PINNED if asked.digest is not None else NOBODY
    if asked.root is not None:
        _require_signed(asked, asked.root, (model, version, platform), (digest, len(data)), folder)
        vouched = SIGNED
    if vouched == NOBODY:
        _log.warning("nobody vouches for %s:%d, %s: it was neither signed nor pinned", model, version, digest)
    return Chosen(digest, manifest, model, version, vouched)


def _manifest_for(content: Content, platform: str, pinned: Digest | None) -> tuple[Digest, bytes]:
    """The platform's manifest: that of the index, or the one document that was pinned."""
    data = content.first() if pinned is None else content.document(pinned)
    if media_type_of(data) != INDEX_TYPE:
        return Digest.of(data), data
    descriptor = Index.parse(data).for_platform(platform)
    data = content.document(descriptor.digest)
    if len(data) != descriptor.size:
        what = f"{descriptor.digest} has {len(data)} bytes, its index says {descriptor.size}"
        raise EdgeError("artifact.size-mismatch", what)
    return descriptor.digest, data


def _require_signed(
    asked: Asked, root: Path, names: tuple[str, int, str], manifest: tuple[Digest, int], folder: Path
) -> None:
    """Require that the image repository knows this manifest, as this version of this model for this platform.

    Raises:
        EdgeError: `trust.*`, `artifact.platform-mismatch` for other hardware, `network.*`, `cloud.*`, `device.*`.
    """
    from edge_agent.trust.metastore import MetadataStore
    from edge_agent.trust.repository import Repository
    from edge_agent.trust.timefloor import RELEASED_MS, Times

    (model, version, _), (digest, length) = names, manifest
    store = MetadataStore(folder)
    store.begin(_read_root(root))
    fetch, close = _metadata_source(asked)
    repository = Repository("image", store, fetch, hint="Give the root metadata that you trust with --root FILE.")
    try:
        repository.refresh(Times(max(RELEASED_MS, time.time_ns() // 1_000_000)))
        path = target_path(model, version, digest)
        target = repository.find(path)
    finally:
        close()
    if target is None:
        raise EdgeError(
            "trust.target-unknown",
            f"the image repository does not know {path}",
            "Nobody who may sign for this model signed this manifest: publish it with `packager push`.",
        )
    if target.hashes.get(_HASH) != digest.hex or target.length != length:
        raise EdgeError("trust.repositories-disagree", f"the image repository says something else of {path}")
    try:
        artifact = Artifact.from_json(target.custom)
    except ContractError as error:
        raise EdgeError("trust.metadata-invalid", f"image repository: {path}: {error.detail}") from None
    if (artifact.model, artifact.version, artifact.platform) != names:
        raise EdgeError("trust.repositories-disagree", f"the image repository signed {path} as another artifact")
    if artifact.hardware_ids and asked.hardware_id not in artifact.hardware_ids:
        raise EdgeError(
            "artifact.platform-mismatch",
            f"{model}:{version} is signed for the hardware {', '.join(artifact.hardware_ids)} alone",
            "Name this machine's with --hardware-id ID.",
        )


def _metadata_source(asked: Asked) -> "tuple[FetchMetadata, Callable[[], None]]":
    """Where metadata comes from, and how to let go of it."""
    if not asked.metadata:
        from edge_agent.tokens import FixedToken
        from edge_agent.trust.source import IMAGE_PREFIX, HttpMetadataSource

        tokens = FixedToken(asked.token) if asked.token else None
        source = HttpMetadataSource(asked.registry, IMAGE_PREFIX, tokens, asked.ca)
        return source, source.close
    if asked.metadata.startswith(("http://", "https://")):
        from edge_agent.trust.remote import RemoteFolder

        remote = RemoteFolder(asked.metadata)
        return remote, remote.close
    folder = Path(asked.metadata)
    if not folder.is_dir():
        raise EdgeError("config.file-missing", f"--metadata {folder} is no folder and no URL")
    return MetadataFolder(folder), lambda: None


class MetadataFolder:
    """Metadata files in a folder, named as a repository with consistent snapshots serves them. One thread.

    An instance is an `edge_agent.trust.source.FetchMetadata`.
    """

    def __init__(self, folder: Path) -> None:
        """Read from this folder."""
        self._folder = folder

    def __call__(self, name: str, bytes_max: int) -> bytes | None:
        """See `FetchMetadata`.

        Raises:
            EdgeError: `trust.metadata-too-large`, `config.file-missing` for a file that cannot be read.
        """
        path = self._folder / Path(name).name
        try:
            with path.open("rb") as file:
                data = file.read(bytes_max + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EdgeError("config.file-missing", f"{path} cannot be read: {error.strerror}") from None
        if len(data) > bytes_max:
            raise EdgeError("trust.metadata-too-large", f"{path} is longer than {bytes_max} bytes")
        return data


def _read_root(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(ROOT_BYTES_MAX + 1)
    except OSError as error:
        raise EdgeError("config.file-missing", f"--root {path} cannot be read: {error.strerror}") from None
    if len(data) > ROOT_BYTES_MAX:
        raise EdgeError("trust.metadata-too-large", f"--root {path} is longer than {ROOT_BYTES_MAX} bytes")
    return data


def _name(text: str) -> str:
    try:
        return model_name(text)
    except ContractError as error:
        raise EdgeError("artifact.manifest-invalid", f"the manifest names no model: {error.detail}") from None


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS_MAX or int(text) < 1:
        raise EdgeError("artifact.manifest-invalid", f"the manifest has the version {text!r}, not a number from 1")
    return int(text)
