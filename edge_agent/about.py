"""The agent's version, as its package was built."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

_UNKNOWN: Final = "0"


def agent_version() -> str:
    """Version of the installed distribution; `0` when it runs from a tree that was never installed."""
    try:
        return version("lighterman")
    except PackageNotFoundError:
        return _UNKNOWN
