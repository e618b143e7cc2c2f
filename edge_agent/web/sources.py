"""Where the content of a bundle comes from: an OCI layout in a folder, or a registry. Whatever comes is verified."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, Protocol
from urllib.parse import quote

from edge_agent.fetch import HttpBundleFetcher
from edge_agent.store.blobs import FileBlobStore
from edge_agent.tokens import FixedToken
from edge_agent.transport import Origin
from edge_contract.deployment import bundle_repository
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, parse_object
from edge_contract.limits import CHUNK_BYTES, MANIFEST_BYTES_MAX
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE, MODEL, REF_NAME, Descriptor
from edge_contract.stream import verify_bytes

_LAYOUT_FILE: Final = "oci-layout"
_INDEX_FILE: Final = "index.json"
_BUILD: Final = "Build one with `packager build … --out DIR`."


class Content(Protocol):
    """Gives the documents and blobs of one bundle. Used by one thread; blocks within bounds."""

    def first(self) -> bytes:
        """The document that the bundle's name leads to: its index, or the manifest of one platform. Not verified.

        Raises:
            EdgeError: `config.*`, `artifact.*`, `network.*`, `cloud.*`.
        """
        ...

    def document(self, digest: Digest) -> bytes:
        """An index or manifest, verified.

        Raises:
            EdgeError: `artifact.*`, `network.*`, `cloud.*`.
        """
        ...

    def fetch(self, blob: Descriptor, blobs: FileBlobStore) -> None:
        """Take a blob into a store, verified while it is written.

        Raises:
            EdgeError: `artifact.*`, `network.*`, `cloud.*`, `device.*`.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class LayoutContent:
    """Implements `Content` with a folder that holds an OCI image layout."""

    def __init__(self, folder: Path, model: str = "", version: int = 0) -> None:
        """Open a layout.

        Args:
            folder: The folder with `oci-layout`; nothing in it is believed.
            model: Which model's bundle, where it holds several; empty when it holds one.
            version: Which version, likewise; 0 when it holds one.

        Raises:
            EdgeError: `config.file-missing` when it is no layout.
        """
        self._folder = folder
        self._model = model
        self._version = version
        if not (folder / _LAYOUT_FILE).is_file():
            raise EdgeError("config.file-missing", f"{folder} is not an OCI layout", _BUILD)

    def first(self) -> bytes:
        """See `Content.first`."""
        path = self._folder / _INDEX_FILE
        try:
            with _open_file(path) as file:
                listed = parse_object(file.read(MANIFEST_BYTES_MAX + 1), str(path), MANIFEST_BYTES_MAX)
        except OSError as error:
            raise EdgeError("config.file-missing", f"{path} cannot be read: {error.strerror}", _BUILD) from None
        items = listed.get("manifests")
        found = [item for item in items if self._is_wanted(item)] if isinstance(items, list) else []
        if len(found) != 1:
            raise EdgeError(
                "artifact.not-found",
                f"{self._folder} holds {len(found)} bundles that fit, one is needed",
                "Name it with --model and --version, or by --digest.",
            )
        return self.document(Digest(str(found[0].get("digest"))))

    def _is_wanted(self, item: object) -> bool:
        if not isinstance(item, dict) or item.get("mediaType") not in (INDEX_TYPE, MANIFEST_TYPE):
            return False
        notes = item.get("annotations")
        notes = notes if isinstance(notes, dict) else {}
        # What is not noted may still fit: the manifest itself says which model it is of.
        is_model = not self._model or notes.get(MODEL, self._model) == self._model
        tag = str(notes.get(REF_NAME, "")).rpartition(":")[2]
        return is_model and (not self._version or not tag or tag == str(self._version))

    def document(self, digest: Digest) -> bytes:
        """See `Content.document`."""
        try:
            with self._open(digest) as file:
                data = file.read(MANIFEST_BYTES_MAX + 1)
        except OSError as error:
            raise self._unreadable(digest, error) from None
        return _verified(data, digest)

    def fetch(self, blob: Descriptor, blobs: FileBlobStore) -> None:
        """See `Content.fetch`."""
        if blobs.has(blob.digest):
            return
        with blobs.resume(blob.digest, blob.size) as partial:
            blobs.require_space(partial.remaining)
            try:
                file = self._open(blob.digest)
            except OSError as error:
                raise self._unreadable(blob.digest, error) from None
            with file:
                while chunk := file.read(CHUNK_BYTES):
                    partial.write(chunk)
            partial.commit()

    def close(self) -> None:
        """See `Content.close`."""

    def _open(self, digest: Digest) -> BinaryIO:
        return _open_file(self._folder / "blobs" / "sha256" / digest.hex)

    def _unreadable(self, digest: Digest, error: OSError) -> EdgeError:
        what = f"{self._folder} has no readable blob {digest}: {error.strerror}"
        return EdgeError("artifact.not-found", what, "`packager inspect DIR` says what is in there.")


class RegistryContent:
    """Implements `Content` with a registry that speaks the OCI distribution API."""

    def __init__(
        self,
        url: str,
        model: str,
        version: int,
        token: str = "",
        ca: Path | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Name a registry; nothing is connected yet.

        Args:
            url: Its base URL, without `/v2`.
            model: Name of the model.
            version: Its version, which is the tag.
            token: Bearer token, or empty.
            ca: Certificates to trust for https; the system's when none.
            is_cancelled: Asked while content comes.

        Raises:
            EdgeError: `config.invalid` for an unusable URL.
        """
        self._url = url
        self._repository = bundle_repository(model)
        self._version = version
        self._tokens = FixedToken(token) if token else None
        self._ca = ca
        self._is_cancelled = is_cancelled
        self._origin = Origin(url, self._tokens, ca)
        self._fetcher: HttpBundleFetcher | None = None

    def first(self) -> bytes:
        """See `Content.first`."""
        return self._manifest(str(self._version))

    def document(self, digest: Digest) -> bytes:
        """See `Content.document`."""
        return _verified(self._manifest(str(digest)), digest)

    def fetch(self, blob: Descriptor, blobs: FileBlobStore) -> None:
        """See `Content.fetch`."""
        if self._fetcher is None:
            self._fetcher = HttpBundleFetcher(self._url, self._tokens, blobs, self._ca)
        self._fetcher.fetch(self._repository, blob, self._is_cancelled)

    def close(self) -> None:
        """See `Content.close`."""
        self._origin.close()
        if self._fetcher is not None:
            self._fetcher.close()

    def _manifest(self, reference: str) -> bytes:
        path = f"/v2/{quote(self._repository, safe='/')}/manifests/{reference}"
        headers = {"Accept": f"{INDEX_TYPE}, {MANIFEST_TYPE}"}
        with self._origin.request("GET", path, headers=headers, is_cancelled=self._is_cancelled) as answer:
            if answer.status == 404:
                raise EdgeError("artifact.not-found", f"{answer.what}: the registry does not have it")
            if answer.status in (401, 403):
                raise EdgeError(
                    "network.refused",
                    f"{answer.what}: the registry refuses ({answer.status})",
                    "Give a token that may read: LIGHTERMAN_TOKEN, or --token-file FILE.",
                )
            if answer.status != 200:
                raise answer.error()
            return answer.read(MANIFEST_BYTES_MAX, "artifact.document-too-large")


def media_type_of(data: bytes) -> str:
    """Which kind of document this claims to be.

    Raises:
        EdgeError: `artifact.*` when it is no JSON object.
    """
    document: JsonObject = parse_object(data, "manifest", MANIFEST_BYTES_MAX)
    return str(document.get("mediaType"))


def _verified(data: bytes, digest: Digest) -> bytes:
    if len(data) > MANIFEST_BYTES_MAX:
        what = f"{digest} is longer than the {MANIFEST_BYTES_MAX} bytes that a manifest may have"
        raise EdgeError("artifact.document-too-large", what)
    return verify_bytes(data, digest, len(data))


def _open_file(path: Path) -> BinaryIO:
    """A regular file; links are followed (volumes are mounted with them), and nothing that could block is opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(2, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")
