"""Trusted metadata on disk, one folder a repository. What is written here was verified before."""

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from edge_agent.limits import ROOT_BYTES_MAX, TARGETS_BYTES_MAX
from edge_agent.store import durable
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

_SUFFIX: Final = ".json"
_NAME_CHARS_MAX: Final = 240  # file systems take 255
_NAME_CHARS_KEPT: Final = 160
_SEED: Final = "seed"


class MetadataStore:
    """Files `<role>.json` of one repository, names percent-encoded. Used by one thread."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made on the first write.

        Args:
            folder: For example `<data>/trust/director`.
        """
        self._folder = folder

    def read(self, role: str) -> bytes | None:
        """The trusted metadata of a role, or none; a file that is too long was not written here, and counts as none.

        Raises:
            EdgeError: `device.disk-error`.
        """
        return _read(self._path(role), TARGETS_BYTES_MAX)

    def write(self, role: str, data: bytes) -> None:
        """Keep verified metadata, durably; nothing is written when it is there already.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`.
        """
        path = self._path(role)
        with durable.disk_errors(f"writing {path}"):
            if _read(path, TARGETS_BYTES_MAX) == data:
                return
            durable.make_folder(self._folder)
            durable.write_file(path, data)

    def remove(self, role: str) -> None:
        """Forget the metadata of a role.

        Raises:
            EdgeError: `device.disk-error`.
        """
        path = self._path(role)
        with durable.disk_errors(f"removing {path}"):
            durable.remove_file(path)

    def keep_only(self, roles: Iterable[str]) -> None:
        """Forget delegated metadata that is no longer used.

        Raises:
            EdgeError: `device.disk-error`.
        """
        wanted = {file_name(role, _SUFFIX) for role in roles} | {_SEED}
        with durable.disk_errors(f"tidying {self._folder}"):
            for path in durable.list_folder(self._folder):
                if path.name not in wanted:
                    durable.remove_file(path)

    def seed(self, root: bytes) -> None:
        """Begin with the root metadata of an enrolment, unless this very enrolment began here before.

        A new enrolment brings new roots; everything trusted under the old ones is forgotten then.

        Args:
            root: The root metadata that enrolment delivered, of any version.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`, `trust.metadata-too-large`.
        """
        if len(root) > ROOT_BYTES_MAX:
            raise EdgeError("trust.metadata-too-large", f"the first root metadata has {len(root)} bytes")
        path = self._folder / _SEED
        with durable.disk_errors(f"writing {path}"):
            if self.first_root() == root and self._path("root").exists():
                return
            durable.remove_tree(self._folder)
            durable.make_folder(self._folder)
            durable.write_file(self._path("root"), root)
            durable.write_file(path, root)

    def first_root(self) -> bytes | None:
        """The root that it all began with, or none: what is left when the newest one is damaged on disk.

        Raises:
            EdgeError: `device.disk-error`.
        """
        return _read(self._folder / _SEED, ROOT_BYTES_MAX)

    def begin(self, root: bytes) -> None:
        """Begin with a root, unless another one is trusted here; nothing happens when it began with this one.

        Raises:
            EdgeError: `config.invalid`, `device.disk-full`, `device.disk-error`.
        """
        path = self._folder / _SEED
        with durable.disk_errors(f"writing {path}"):
            if self._path("root").exists():
                if self.first_root() == root:
                    return
                raise EdgeError(
                    "config.invalid",
                    f"{self._folder} already holds metadata that is trusted by another root",
                    "Use another directory, or remove this one.",
                )
            durable.make_folder(self._folder)
            durable.write_file(path, root)
            durable.write_file(self._path("root"), root)

    def _path(self, role: str) -> Path:
        return self._folder / file_name(role, _SUFFIX)


def _read(path: Path, bytes_max: int) -> bytes | None:
    with durable.disk_errors(f"reading {path}"):
        try:
            return durable.read_file(path, bytes_max)
        except OSError as error:
            if error.errno == errno.EOVERFLOW:
                return None
            raise


def encoded(role: str) -> str:
    """A role's name as it stands in URLs and file names: percent-encoded, so that it cannot lead anywhere else.

    Raises:
        EdgeError: `trust.metadata-invalid` for a name that is no text.
    """
    try:
        return quote(role, safe="")
    except UnicodeEncodeError:
        raise EdgeError("trust.metadata-invalid", f"{role[:80]!r} is not a usable name of a role") from None


def file_name(name: str, suffix: str = "") -> str:
    """A file name for any name: percent-encoded, never hidden, never too long; different names stay different.

    Raises:
        EdgeError: `trust.metadata-invalid` for a name that is no text.
    """
    result = encoded(name)
    if result.startswith("."):
        result = f"%2E{result[1:]}"
    if len(result) > _NAME_CHARS_MAX:
        result = f"{result[:_NAME_CHARS_KEPT]}%~{Digest.of(name.encode()).hex}"
    return f"{result}{suffix}"
