"""Who may ask over TCP. The unix socket is guarded by the permissions of its file; a TCP port is open to every user of
the machine, and to the network where the owner lets it listen there.
"""

import hmac
from typing import Final

from edge_agent.worker.http import Head

_OPEN_PATHS: Final = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Probes carry no secrets, and tell nothing but that something runs."""
_HEADER: Final = b"authorization"
_SCHEME: Final = b"bearer "


class TcpAccess:
    """Asks requests over TCP for a bearer token (RFC 6750 2.1). Any thread."""

    def __init__(self, token: str) -> None:
        """Require this token; without one everybody who can connect may ask."""
        self._wanted = token.encode("utf-8")

    def permits(self, kind: str, head: Head) -> bool:
        """Whether a request is let in.

        Args:
            kind: `unix` or `tcp`, how it came.
            head: Of the request.
        """
        if not self._wanted or kind != "tcp" or head.path in _OPEN_PATHS:
            return True
        said = head.headers.get(_HEADER, b"")
        return said[: len(_SCHEME)].lower() == _SCHEME and hmac.compare_digest(
            said[len(_SCHEME) :].strip(), self._wanted
        )
