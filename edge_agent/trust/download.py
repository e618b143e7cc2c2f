"""Target files: fetched in pieces that survive an interruption, verified from the disk, then given their name."""

import logging
import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import quote

from edge_agent.limits import RESTARTS_MAX
from edge_agent.store import durable
from edge_agent.transport import FOR_BLOBS, Answer, Patience
from edge_agent.trust.metastore import file_name
from edge_agent.trust.remote import ABSENT, RemoteFolder
from edge_agent.trust.target import Target
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError

_PART: Final = ".part-"
_PART_CHARS: Final = 32
_URL_SAFE: Final = "/%:@!$&'()*+,;=~?"  # a target path is written as it stands in a URL (TUF specification 1.0, 4.5)
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_LOG: Final = logging.getLogger(__name__)


class TargetFolder:
    """A folder of verified target files, one file a target path. Used by one thread."""

    def __init__(self, folder: Path, remote: RemoteFolder, patience: Patience = FOR_BLOBS) -> None:
        """Name the folder, which is made on the first download.

        Args:
            folder: Where verified files go; parts of others have names that begin with `.part-`.
            remote: Where they come from.
            patience: How long to wait for one file.
        """
        self._folder = folder
        self._remote = remote
        self._patience = patience

    def path_of(self, target: Target) -> Path:
        """Where the file of a target is, or will be: always directly in the folder."""
        return self._folder / file_name(target.path)

    def has(self, target: Target) -> bool:
        """Whether the file is there, with the length and all hashes that the metadata says."""
        return _matches(self.path_of(target), target)

    def fetch(self, target: Target, *, is_prefixed: bool) -> Path:
        """Fetch a file, going on where an earlier attempt was cut.

        Args:
            target: What verified metadata says of it.
            is_prefixed: Whether the repository puts a hash in front of file names (consistent snapshots).

        Returns:
            Where it is. Durable, and read again from the disk before it got its name.

        Raises:
            EdgeError: `artifact.not-found`, `artifact.size-mismatch`, `artifact.digest-mismatch`, `network.*`,
                `cloud.*`, `device.*`.
        """
        place = self.path_of(target)
        part = self._part(target)
        for attempt in range(RESTARTS_MAX + 1):
            resumed = _length(part)
            with durable.disk_errors(f"writing {part}"):
                self._receive(target, part, is_prefixed)
            if _matches(part, target):
                break
            with durable.disk_errors(f"removing {part}"):
                durable.remove_file(part)
            if attempt == RESTARTS_MAX or not resumed:
                raise EdgeError("artifact.digest-mismatch", f"{target.path} is not the file that was signed")
            _LOG.warning("%s: what was resumed is wrong, it is fetched anew", target.path)
        with durable.disk_errors(f"writing {place}"):
            durable.rename(part, place)
        return place

    def _receive(self, target: Target, part: Path, is_prefixed: bool) -> None:
        """Bring a part to the length of the target, durably."""
        durable.make_folder(self._folder, 0o755)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            count = os.lseek(descriptor, 0, os.SEEK_END)
            if count > target.length:
                os.ftruncate(descriptor, 0)
                count = 0
            if count < target.length or target.length == 0:
                self._download(target, descriptor, count, is_prefixed)
        finally:
            try:
                os.fsync(descriptor)  # also what a cut left behind, so that the next attempt finds it
            finally:
                os.close(descriptor)

    def _download(self, target: Target, descriptor: int, count: int, is_prefixed: bool) -> None:
        path = target.prefixed_path if is_prefixed else target.path
        headers = {"Range": f"bytes={count}-"} if count else {}
        with self._remote.get(_url(path), headers, self._patience) as answer:
            _require_content(answer, target, count)
            if answer.status == 200:
                os.ftruncate(descriptor, 0)  # a server without ranges sends everything again
                count = 0
            os.lseek(descriptor, count, os.SEEK_SET)
            is_cut_noticed = answer.length is not None
            for chunk in answer.chunks():
                if count + len(chunk) > target.length:
                    os.ftruncate(descriptor, 0)
                    raise EdgeError("artifact.size-mismatch", f"{target.path}: more than {target.length} bytes came")
                durable.write_all(descriptor, chunk)
                count += len(chunk)
        if count < target.length and not is_cut_noticed:
            raise EdgeError(
                "network.cut", f"{target.path}: {count} of {target.length} bytes came, no length was declared"
            )
        if count < target.length:
            os.ftruncate(descriptor, 0)
            raise EdgeError("artifact.size-mismatch", f"{target.path}: {count} bytes came, {target.length} were signed")

    def _part(self, target: Target) -> Path:
        """Where the part of a target is, after those of its former contents were removed."""
        path = Digest.of(target.path.encode()).hex[:_PART_CHARS]
        content = Digest.of(repr(sorted(target.hashes.items())).encode()).hex[:_PART_CHARS]
        part = self._folder / f"{_PART}{path}-{content}"
        with durable.disk_errors(f"tidying {self._folder}"):
            for other in self._folder.glob(f"{_PART}{path}-*"):
                if other != part:
                    durable.remove_file(other)
        return part


def _require_content(answer: Answer, target: Target, count: int) -> None:
    if answer.status in ABSENT:
        raise EdgeError("artifact.not-found", f"{answer.what}: the repository does not have it")
    if answer.status == 200:
        return
    found = _RANGE.fullmatch(answer.header("Content-Range")) if answer.status == 206 else None
    if found is None or int(found[1]) != count or found[2] not in ("*", str(target.length)):
        raise EdgeError("cloud.unavailable", f"{answer.what}: HTTP status {answer.status} is no answer to that")


def _url(path: str) -> str:
    return quote(path, safe=_URL_SAFE)


def _length(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _matches(path: Path, target: Target) -> bool:
    try:
        with os.fdopen(durable.open_file(path), "rb") as file:
            return target.is_content(file)
    except OSError:
        return False
