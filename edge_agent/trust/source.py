"""Where metadata files come from: the port, and HTTP (`GET <prefix>/<name>`)."""

from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from edge_agent.transport import FOR_DOCUMENTS, Origin, Patience, TokenSource
from edge_contract.errors import EdgeError

IMAGE_PREFIX: Final = "/tuf/image"
"""Where the image repository is, below the registry's URL."""


class FetchMetadata(Protocol):
    """Gets one metadata file of one repository; blocks within a bound."""

    def __call__(self, name: str, bytes_max: int) -> bytes | None:
        """The file's bytes, or none when the repository does not have it.

        Args:
            name: File name, safe in a URL, for example `3.root.json`.
            bytes_max: The longest file to accept.

        Raises:
            EdgeError: `trust.metadata-too-large` beyond `bytes_max`, `network.*`, `cloud.*`.
        """
        ...


class HttpMetadataSource:
    """Fetches the files of one repository; an instance is a `FetchMetadata`. Used by one thread."""

    def __init__(
        self,
        url: str,
        prefix: str,
        tokens: TokenSource | None = None,
        ca: Path | None = None,
        patience: Patience = FOR_DOCUMENTS,
    ) -> None:
        """Name a repository; nothing is connected yet.

        Args:
            url: Base URL of the registry.
            prefix: `/tuf/image`, or `/tuf/director/<device>`.
            tokens: Gives this device's bearer tokens, or none.
            ca: Certificates to trust for https; the system's when none.
            patience: How long to wait for one file.

        Raises:
            EdgeError: `config.invalid` for an unusable URL.
        """
        self._origin = Origin(url, tokens, ca)
        self._prefix = prefix
        self._patience = patience

    def __call__(self, name: str, bytes_max: int) -> bytes | None:
        """See `FetchMetadata`.

        Raises:
            EdgeError: `trust.metadata-too-large`, `network.*`, `cloud.*`.
        """
        path = f"{self._prefix}/{name}"
        with self._origin.request("GET", path, patience=self._patience) as answer:
            if answer.status == 404:
                answer.error()  # read, so that the connection can be kept
                return None
            if answer.status in (401, 403):
                raise answer.refusal()
            if answer.status != 200:
                raise answer.error()
            if answer.header("Content-Type").startswith("text/html"):
                # A captive portal or a proxy says "OK" too; that is the network, and nobody's attack.
                raise EdgeError("cloud.unavailable", f"{answer.what}: a web page came instead of metadata")
            return answer.read(bytes_max, "trust.metadata-too-large")

    def close(self) -> None:
        """Close the kept connection."""
        self._origin.close()


def director_prefix(device: str) -> str:
    """Where a device's director repository is, below the registry's URL."""
    return f"/tuf/director/{quote(device, safe='')}"
