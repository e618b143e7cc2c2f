"""What a script may import: the standard library, its bundle, and what the device has only if declared; in this order.

A worker is one Python process for the server and for scripts, so the order is set before anything else is imported:
what a bundle brings along comes before what the agent is installed with. Once the server has what it needs itself, the
agent's folders leave the path altogether. What is loaded already stays importable, numpy above all: it is part of what
a script is promised.
"""

import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_SCHEMES: Final = ("stdlib", "platstdlib")
_SITES: Final = ("site-packages", "dist-packages")


def _is_standard(entry: str) -> bool:
    """Whether a folder of the path is the standard library's."""
    roots = [sysconfig.get_path(name) for name in _SCHEMES]
    if any(part in _SITES for part in Path(entry).parts):
        return False
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    return Path(entry).name == archive or any(entry == root or entry.startswith(root + "/") for root in roots)


def put_bundle_first(site: Path) -> None:
    """Let what a bundle brings along come after the standard library and before the agent's own packages.

    To be called before the server's libraries are imported, so that a bundle's numpy is the one that is used.
    """
    standard = [entry for entry in sys.path if _is_standard(entry)]
    others = [entry for entry in sys.path if entry not in standard and entry != str(site)]
    sys.path[:] = [*standard, *([str(site)] if site.is_dir() else []), *others]


def leave_out_device() -> None:
    """Take the folders of the agent and of the device's packages off the path."""
    sys.path[:] = [entry for entry in sys.path if _is_standard(entry) or entry in _of_bundles]


_of_bundles: Final[set[str]] = set()


def add_bundle(folders: Sequence[Path]) -> None:
    """Let scripts import from folders of their bundle, the first one first, after the standard library."""
    wanted = list(dict.fromkeys(str(folder) for folder in folders))
    _of_bundles.update(wanted)
    standard = [entry for entry in sys.path if _is_standard(entry)]
    others = [entry for entry in sys.path if entry not in standard and entry not in wanted]
    sys.path[:] = [*standard, *wanted, *others]
