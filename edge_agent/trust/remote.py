"""Files below a URL of anybody's: no token, redirections are followed."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from edge_agent.limits import REDIRECTS_MAX
from edge_agent.transport import FOR_DOCUMENTS, Answer, Origin, Patience
from edge_contract.errors import EdgeError

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
ABSENT: Final = frozenset({403, 404})
"""What servers say of a file that is not there; object stores that may not be listed say 403."""


class RemoteFolder:
    """Reads files; an instance is a `FetchMetadata`. Used by one thread."""

    def __init__(self, url: str, patience: Patience = FOR_DOCUMENTS) -> None:
        """Name a folder; nothing is connected yet.

        Args:
            url: `http://` or `https://`, with or without a slash at the end.
            patience: How long to wait for one metadata file.

        Raises:
            EdgeError: `config.invalid` for an unusable URL.
        """
        self._origin = Origin(url)
        self._patience = patience

    def __call__(self, name: str, bytes_max: int) -> bytes | None:
        """See `FetchMetadata`.

        Raises:
            EdgeError: `trust.metadata-too-large`, `network.*`, `cloud.unavailable`.
        """
        with self.get(name, {}, self._patience) as answer:
            if answer.status in ABSENT:
                return None
            if answer.status != 200:
                raise EdgeError("cloud.unavailable", f"{answer.what}: HTTP status {answer.status}")
            return answer.read(bytes_max, "trust.metadata-too-large")

    @contextmanager
    def get(self, path: str, headers: Mapping[str, str], patience: Patience) -> Iterator[Answer]:
        """Ask for a file and follow redirections, out of https never.

        Args:
            path: Below the folder, safe in a URL.
            headers: Further headers.
            patience: How long to wait.

        Raises:
            EdgeError: `network.*`, `cloud.unavailable`.
        """
        origin, place = self._origin, f"/{path}"
        with ExitStack() as strangers:
            for _ in range(REDIRECTS_MAX + 1):
                with origin.request("GET", place, headers=headers, patience=patience) as answer:
                    if answer.status not in _REDIRECTS:
                        yield answer
                        return
                    origin, place = origin.elsewhere(answer.header("Location"))
                    strangers.callback(origin.close)
        raise EdgeError(
            "cloud.unavailable", f"GET {self._origin.url}/{path}: redirected more than {REDIRECTS_MAX} times"
        )

    def close(self) -> None:
        """Close the kept connection."""
        self._origin.close()
