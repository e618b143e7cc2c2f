"""A TUF repository of the general kind over HTTP, and two clients that judge it: ours and python-tuf's ngclient."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch
from urllib.parse import quote, unquote

from click.testing import CliRunner
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient import Updater

from edge_agent import tuf as tuf_command
from edge_agent.cli import main
from tests.support.rawhttp import Asked, RawServer, answer, raw_server

TOP = ("root", "timestamp", "snapshot", "targets")
_RANGE = re.compile(r"bytes=(\d+)-")


def keys(count: int) -> list[CryptoSigner]:
    """So many new keys."""
    return [CryptoSigner.generate_ed25519() for _ in range(count)]


@dataclass
class PlainRepository:
    """What a repository says and serves.

    Attributes:
        is_consistent: Whether file names carry versions and hashes.
        has_hashes: Whether snapshot and timestamp list lengths and hashes.
        contents: By role, what is published next; change it at will.
        signers: By role, who signs it.
        files: What is served, by path below the server.
        asked: Names of the metadata files that were asked for; of target files, their path.
    """

    is_consistent: bool = True
    has_hashes: bool = False
    contents: dict[str, Any] = field(default_factory=dict)
    signers: dict[str, list[CryptoSigner]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.soon = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
        self.contents = {
            "targets": Targets(expires=self.soon),
            "snapshot": Snapshot(expires=self.soon),
            "timestamp": Timestamp(expires=self.soon),
            "root": Root(expires=self.soon, consistent_snapshot=self.is_consistent),
        }
        for role in TOP:
            self.give_keys(role, keys(1))
        self.publish(*self.contents, bump=False)

    @property
    def root(self) -> Root:
        """The root that is published next."""
        return cast(Root, self.contents["root"])

    @property
    def timestamp(self) -> Timestamp:
        """The timestamp that is published next."""
        return cast(Timestamp, self.contents["timestamp"])

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that is published next."""
        return cast(Snapshot, self.contents["snapshot"])

    def targets(self, role: str = "targets") -> Targets:
        """The targets of a role that are published next."""
        return cast(Targets, self.contents[role])

    # --- changes ---

    def give_keys(self, role: str, signers: Sequence[CryptoSigner], threshold: int | None = None) -> None:
        """Let exactly these keys sign for a top-level role."""
        self.root.roles[role] = Role([], threshold or len(signers))
        for signer in signers:
            self.root.add_key(signer.public_key, role)
        self.signers[role] = list(signers)

    def delegate(
        self, delegator: str, role: str, paths: Sequence[str] | None = ("*",), *, is_last: bool = False, **more: Any
    ) -> None:
        """Delegate to a role with a key of its own; its metadata is made when there is none."""
        targets = self.targets(delegator)
        if targets.delegations is None:
            targets.delegations = Delegations({}, roles={})
        assert targets.delegations.roles is not None
        listed = None if paths is None else list(paths)
        targets.delegations.roles[role] = DelegatedRole(role, [], 1, is_last, listed, **more)
        self.signers.setdefault(role, keys(1))
        targets.add_key(self.signers[role][0].public_key, role)
        self.contents.setdefault(role, Targets(expires=self.soon))

    def delegate_bins(self, delegator: str, bits: int, prefix: str) -> SuccinctRoles:
        """Delegate to succinct hash bins that share a key."""
        signer = keys(1)[0]
        bins = SuccinctRoles([], 1, bits, prefix)
        targets = self.targets(delegator)
        targets.delegations = Delegations({}, None, bins)
        targets.add_key(signer.public_key)
        for role in bins.get_roles():
            self.contents[role] = Targets(expires=self.soon)
            self.signers[role] = [signer]
        return bins

    def add(self, path: str, data: bytes, role: str = "targets", hashes: Sequence[str] = ("sha256",)) -> None:
        """Let a role list a target and the server have its file."""
        target = TargetFile.from_data(path, data, list(hashes))
        self.targets(role).targets[path] = target
        names = target.get_prefixed_paths() if self.is_consistent else [path]
        for name in names:
            self.files[f"targets/{quote(name)}"] = data

    def publish(self, *roles: str, bump: bool = True, signers: Sequence[CryptoSigner] | None = None) -> None:
        """Sign and serve roles in the given order; whoever lists them is told and, unless named, not published."""
        for role in roles:
            content = self.contents[role]
            if bump and (role in self.snapshot.meta or f"{role}.json" in self.snapshot.meta or role in TOP):
                content.version += 1
            data = sign(content, self.signers[role] if signers is None else signers)
            name = f"{quote(role, safe='')}.json"
            if role == "root" or (self.is_consistent and role != "timestamp"):
                name = f"{content.version}.{name}"
            self.files[f"metadata/{name}"] = data
            listed = MetaFile.from_data(content.version, data, ["sha256"]) if self.has_hashes else None
            if role == "snapshot":
                self.timestamp.snapshot_meta = listed or MetaFile(content.version)
            elif role not in ("root", "timestamp"):
                self.snapshot.meta[f"{role}.json"] = listed or MetaFile(content.version)

    def publish_all(self, *roles: str) -> None:
        """Publish these targets roles (the top-level ones when none are named), the snapshot and the timestamp."""
        self.publish(*(roles or ("targets",)), "snapshot", "timestamp")

    def publish_delegated(self) -> None:
        """Publish everything but the root, delegated roles for the first time."""
        self.publish(*(role for role in self.contents if role not in TOP))
        self.publish_all()

    def replace(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Tamper with a served metadata file."""
        self.files[f"metadata/{name}"] = change(self.files[f"metadata/{name}"])

    # --- HTTP ---

    def serve(self, asked: Asked) -> Iterable[bytes]:
        """A script for `rawhttp`: metadata without ranges, targets with them."""
        path = asked.path.lstrip("/")
        folder, _, name = path.partition("/")
        self.asked.append(name)
        data = self.files.get(path)
        if data is None:
            return [answer(404, b"nothing here")]
        place = _RANGE.fullmatch(asked.headers.get("range", ""))
        if folder == "metadata" or place is None:
            return [answer(200, data)]
        start = int(place[1])
        if start >= len(data):
            return [answer(416)]
        return [answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")]


def sign(content: Signed, signers: Sequence[CryptoSigner]) -> bytes:
    """Metadata with the signatures of all signers."""
    metadata: Metadata[Any] = Metadata(content)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


class Ours:
    """`edge-agent tuf`, in this process."""

    def __init__(self, folder: Path, url: str) -> None:
        self.metadata, self.files = folder / "metadata", folder / "files"
        self.url = url
        self.days = 0.0
        self.output = ""

    def call(self, *arguments: str) -> int:
        """Run a command with the given arguments; its exit code."""
        later_ms = tuf_command._now_ms() + int(self.days * 86_400_000)
        with patch.object(tuf_command, "_now_ms", lambda: later_ms):
            result = CliRunner().invoke(main, ["tuf", "--metadata-dir", str(self.metadata), *arguments])
        self.output = result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code

    def init(self, root: Path) -> int:
        """`init ROOT`."""
        return self.call("init", str(root))

    def refresh(self) -> int:
        """`refresh`."""
        return self.call("--metadata-url", f"{self.url}/metadata", "refresh")

    def download(self, *names: str) -> int:
        """`download` of these targets."""
        wanted = [part for name in names for part in ("--target-name", name)]
        places = ["--target-base-url", f"{self.url}/targets/", "--target-dir", str(self.files)]
        return self.call("--metadata-url", f"{self.url}/metadata/", *wanted, *places, "download")


class Reference:
    """python-tuf's own client, with the same commands."""

    def __init__(self, folder: Path, url: str) -> None:
        self.metadata, self.files = folder / "metadata", folder / "files"
        self.url = url
        self.days = 0.0
        self.output = ""
        self._root: bytes | None = None

    def init(self, root: Path) -> int:
        """Remember the root."""
        self.metadata.mkdir(parents=True)
        self.files.mkdir()
        self._root = root.read_bytes()
        return 0

    def refresh(self) -> int:
        """Refresh."""
        return self._judge(lambda updater: updater.refresh())

    def download(self, *names: str) -> int:
        """Find, and download what is not cached."""

        def work(updater: Updater) -> None:
            updater.refresh()
            for name in names:
                target = updater.get_targetinfo(name)
                if target is None:
                    raise RepositoryError(f"no {name}")
                if updater.find_cached_target(target) is None:
                    updater.download_target(target)

        return self._judge(work)

    def _judge(self, work: Callable[[Updater], None]) -> int:
        try:
            updater = Updater(
                str(self.metadata),
                f"{self.url}/metadata/",
                str(self.files),
                f"{self.url}/targets/",
                bootstrap=self._root,
            )
            self._root = None
            updater._trusted_set.reference_time = datetime.now(UTC) + timedelta(days=self.days)
            work(updater)
        except (RepositoryError, DownloadError, OSError, ValueError) as error:
            self.output = repr(error)
            return 1
        return 0


@dataclass
class Pair:
    """Both clients on one repository: same verdict, same requests, same trusted versions, or the test fails."""

    repository: PlainRepository
    server: RawServer
    folder: Path

    def __post_init__(self) -> None:
        self.ours = Ours(self.folder / "ours", self.server.url)
        self.reference = Reference(self.folder / "reference", self.server.url)
        self.requests: list[str] = []

    def init(self, root: bytes | None = None) -> None:
        """Begin with the first root."""
        place = self.folder / "initial.json"
        place.write_bytes(self.repository.files["metadata/1.root.json"] if root is None else root)
        assert (self.ours.init(place), self.reference.init(place)) == (0, 0), self.ours.output

    def refresh(self, days: float = 0) -> int:
        """Both refresh, so many days from now."""
        return self._both(lambda client: client.refresh(), days)

    def download(self, *names: str, days: float = 0) -> int:
        """Both download."""
        verdict = self._both(lambda client: client.download(*names), days)
        assert self.fetched(self.ours) == self.fetched(self.reference)
        return verdict

    def _both(self, work: Callable[[Ours | Reference], int], days: float) -> int:
        said, asked = [], []
        for client in (self.ours, self.reference):
            client.days = days
            self.repository.asked.clear()
            said.append(work(client))
            asked.append(list(self.repository.asked))
        assert said[0] == said[1], f"ours: {self.ours.output}; reference: {self.reference.output}"
        # Of what is refused we may ask for less: python-tuf judges expiry one file later.
        assert asked[0] == (asked[1][: len(asked[0])] if said[0] else asked[1])
        assert self.trusted(self.ours) == self.trusted(self.reference)
        self.requests = asked[0]
        return said[0]

    @staticmethod
    def trusted(client: Ours | Reference) -> dict[str, int]:
        """Versions of what a client trusts, by role."""
        found = {unquote(path.stem): path for path in client.metadata.glob("*.json")}
        return {role: Metadata.from_file(str(path)).signed.version for role, path in sorted(found.items())}

    @property
    def versions(self) -> Any:
        """Versions of root, timestamp, snapshot and targets that both trust."""
        found = self.trusted(self.ours)
        return tuple(found.get(role) for role in TOP)

    @staticmethod
    def fetched(client: Ours | Reference) -> list[bytes]:
        """Contents of the files a client downloaded, also those in other folders."""
        return sorted(path.read_bytes() for path in client.files.rglob("*") if path.is_file() and path.name[0] != ".")


@contextmanager
def plain_pair(repository: PlainRepository, folder: Path) -> Iterator[Pair]:
    """Both clients and a server for the length of a `with` block; the clients have their first root."""
    with raw_server(repository.serve, keep_alive=True) as server:
        pair = Pair(repository, server, folder)
        pair.init()
        yield pair
