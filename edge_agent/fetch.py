"""Pulls blobs and manifests by digest over the OCI distribution API (distribution-spec 1.1), resuming what was cut."""

import logging
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from urllib.parse import quote

from edge_agent.limits import REDIRECTS_MAX, RESTARTS_MAX
from edge_agent.store.blobs import FileBlobStore, PartialBlob
from edge_agent.transport import FOR_BLOBS, Answer, Origin, Patience, TokenSource
from edge_contract.errors import EdgeError
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE, Descriptor

_LOG: Final = logging.getLogger(__name__)
_RANGE: Final = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")
_WRONG: Final = frozenset({"artifact.digest-mismatch", "artifact.size-mismatch"})


class HttpBundleFetcher:
    """Implements `ports.BundleFetcher`. Used by one thread."""

    def __init__(
        self,
        url: str,
        tokens: TokenSource | None,
        blobs: FileBlobStore,
        ca: Path | None = None,
        patience: Patience = FOR_BLOBS,
    ) -> None:
        """Name a registry; nothing is connected yet.

        Args:
            url: Base URL of the registry, without `/v2`.
            tokens: Gives this device's bearer tokens, or none.
            blobs: Where blobs go.
            ca: Certificates to trust for https; the system's when none.
            patience: How long to wait for one blob.

        Raises:
            EdgeError: `config.invalid` for an unusable URL.
        """
        self._origin = Origin(url, tokens, ca)
        self._blobs = blobs
        self._patience = patience

    def fetch(self, repository: str, blob: Descriptor, is_cancelled: Callable[[], bool]) -> int:
        """See `ports.BundleFetcher.fetch`.

        Bytes on disk from an earlier attempt are hashed again and built upon. If the whole then has the wrong digest,
        those bytes are the suspects, and the blob is fetched once more from its first byte before it is called wrong.
        """
        if self._blobs.has(blob.digest):
            return 0
        kind = "manifests" if blob.media_type in (MANIFEST_TYPE, INDEX_TYPE) else "blobs"
        path = f"/v2/{quote(repository, safe='/')}/{kind}/{blob.digest}"
        network_bytes = 0
        with self._blobs.resume(blob.digest, blob.size) as partial:
            for restarts in range(RESTARTS_MAX + 1):
                self._blobs.require_space(partial.remaining)
                has_old_bytes = partial.is_resumed
                try:
                    if partial.remaining:
                        network_bytes += self._receive(path, blob, partial, is_cancelled)
                    has_old_bytes = partial.is_resumed
                    partial.commit()
                    break
                except EdgeError as error:
                    if error.code not in _WRONG:
                        raise
                    if not has_old_bytes or restarts == RESTARTS_MAX:
                        partial.discard()
                        raise
                    _LOG.warning("%s: %s; fetching it from its first byte", path, error.detail)
                    partial.restart()
        return network_bytes

    def is_near(self, blob: Descriptor) -> bool:  # noqa: ARG002  # the port's signature
        """See `ports.BundleFetcher.is_near`."""
        return False

    def close(self) -> None:
        """Close the kept connection."""
        self._origin.close()

    def _receive(self, path: str, blob: Descriptor, partial: PartialBlob, is_cancelled: Callable[[], bool]) -> int:
        """Ask for what is missing and take it; returns the bytes that came."""
        with ExitStack() as strangers:
            return self._follow(path, blob, partial, is_cancelled, strangers)

    def _follow(
        self,
        path: str,
        blob: Descriptor,
        partial: PartialBlob,
        is_cancelled: Callable[[], bool],
        strangers: ExitStack,
    ) -> int:
        origin = self._origin
        for _ in range(REDIRECTS_MAX + 1):
            headers = {"Accept": f"{blob.media_type}, */*"}
            if partial.count:
                headers["Range"] = f"bytes={partial.count}-"
            with origin.request(
                "GET", path, headers=headers, patience=self._patience, is_cancelled=is_cancelled
            ) as answer:
                if answer.status in (301, 302, 303, 307, 308):
                    origin, path = origin.elsewhere(answer.header("Location"))
                    strangers.callback(origin.close)
                    continue
                if answer.status == 416 and partial.count:
                    partial.restart()
                    continue
                _require_content(answer, blob, partial)
                count = 0
                for chunk in answer.chunks():
                    partial.write(chunk)
                    count += len(chunk)
                if partial.remaining:
                    raise EdgeError("network.cut", f"{answer.what}: {partial.remaining} bytes are missing")
                return count
        raise EdgeError(
            "cloud.unavailable", f"GET {self._origin.url}{path}: redirected more than {REDIRECTS_MAX} times"
        )


def _require_content(answer: Answer, blob: Descriptor, partial: PartialBlob) -> None:
    """Require an answer that continues or restarts the blob, and set the partial file to where its bytes begin."""
    if answer.status == 404:
        raise EdgeError("artifact.not-found", f"{answer.what}: the registry does not have it")
    if answer.status in (401, 403):
        raise answer.refusal()
    if answer.status not in (200, 206):
        raise answer.error()
    if answer.header("Content-Type").startswith("text/html"):
        # A captive portal or a proxy says "OK" too; that must not count against the artifact.
        raise EdgeError("cloud.unavailable", f"{answer.what}: a web page came instead of the content")
    expected = blob.size
    if answer.status == 206:
        place = _RANGE.fullmatch(answer.header("Content-Range"))
        if place is None or int(place[1]) != partial.count:
            raise EdgeError("cloud.unavailable", f"{answer.what}: the answer is for another range than was asked for")
        if place[3] not in ("*", str(blob.size)):
            raise EdgeError(
                "artifact.size-mismatch",
                f"{blob.digest} was declared with {blob.size} bytes, the registry has {place[3]}",
            )
        expected = blob.size - partial.count
    elif partial.count:
        partial.restart()  # a server without ranges sends everything again
    is_short = answer.status == 200 and answer.length is not None and answer.length < expected
    if is_short or (answer.length is not None and answer.length > expected):
        raise EdgeError(
            "artifact.size-mismatch",
            f"{blob.digest}: {expected} bytes were expected, the registry sends {answer.length}",
        )
