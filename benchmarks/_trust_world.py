"""Two repositories of any size in the shape that the registry gives them, served over HTTP, with every byte counted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from edge_agent.trust.source import IMAGE_PREFIX, director_prefix
from edge_contract.delegation import CATALOGUE, CATALOGUE_PATHS, bin_prefix
from edge_contract.deployment import Artifact, Assignment, bundle_repository, director_custom, target_path
from edge_contract.digest import Digest

DEVICE: Final = "bench-1"
_BITS: Final = 8
_TOP: Final = ("root", "timestamp", "snapshot", "targets")
_VERSIONS_PER_MODEL: Final = 100
_COMPACT: Final = JSONSerializer(compact=True)


class World:
    """An image repository of so many bundles, and a director that assigns one of them.

    Attributes:
        files: What is served, by URL path.
        requests: Requests since `forget`.
        body_bytes: Bytes of the files that were sent since `forget`.
        wire_bytes: Those and the heads of requests and answers; what TCP, IP and TLS add is not in it.
    """

    def __init__(self, bundles: int) -> None:
        """Make and sign everything.

        Args:
            bundles: How many, spread over as many models as there are hundreds.
        """
        self.files: dict[str, bytes] = {}
        self.requests = self.body_bytes = self.wire_bytes = 0
        self.now = datetime.now(UTC).replace(microsecond=0)
        self._keys = {role: CryptoSigner.generate_ed25519() for role in (*_TOP, "bins")}
        self._versions: dict[str, int] = {}
        self._bins = SuccinctRoles([self._keys["bins"].public_key.keyid], 1, _BITS, bin_prefix(CATALOGUE))
        self._listed: dict[str, dict[str, TargetFile]] = {role: {} for role in self._bins.get_roles()}
        for prefix in (IMAGE_PREFIX, director_prefix(DEVICE)):
            self._put(prefix, "root", self._root())
        for number in range(bundles):
            self._list(number)
        self._publish_image(*self._listed, CATALOGUE, "targets")
        self.assign(bundles - 1)

    def forget(self) -> None:
        """Begin to count anew."""
        self.requests = self.body_bytes = self.wire_bytes = 0

    def root(self, prefix: str) -> bytes:
        """The first root of a repository."""
        return self.files[f"{prefix}/1.root.json"]

    def publish(self, number: int) -> None:
        """Sign one more bundle, as an author does with every version."""
        self._publish_image(self._list(number))

    def assign(self, number: int) -> None:
        """Let the director assign exactly this bundle."""
        assignment = _assignment(number)
        path = _path(assignment)
        hashes = {"sha256": assignment.manifest.hex}
        custom = {"custom": director_custom([assignment])}
        target = TargetFile(assignment.manifest_bytes, hashes, path, custom)
        prefix = director_prefix(DEVICE)
        fields = {"lighterman": {"device": DEVICE}}
        content = Targets(self._next(prefix, "targets"), expires=self._in(7), targets={path: target})
        content.unrecognized_fields.update(fields)
        self._put(prefix, "targets", content)
        self._finish(prefix, ("targets",))

    @property
    def target(self) -> str:
        """A target path that the image repository knows."""
        return _path(_assignment(0))

    def _list(self, number: int) -> str:
        assignment = _assignment(number)
        path = _path(assignment)
        role = self._bins.get_role_for_target(path)
        custom = {"custom": assignment.artifact.to_json()}
        hashes = {"sha256": assignment.manifest.hex}
        self._listed[role][path] = TargetFile(assignment.manifest_bytes, hashes, path, custom)
        return role

    def _publish_image(self, *roles: str) -> None:
        for role in roles:
            expires, version = self._in(365), self._next(IMAGE_PREFIX, role)
            content = Targets(version, expires=expires, targets=dict(self._listed.get(role, {})))
            key = self._keys["bins"].public_key
            if role == "targets":
                catalogue = DelegatedRole(CATALOGUE, [key.keyid], 1, True, list(CATALOGUE_PATHS))
                content.delegations = Delegations({key.keyid: key}, roles={CATALOGUE: catalogue})
            elif role == CATALOGUE:
                content.delegations = Delegations({key.keyid: key}, succinct_roles=self._bins)
            self._put(IMAGE_PREFIX, role, content)
        self._finish(IMAGE_PREFIX, ("targets", CATALOGUE, *self._listed))

    def _finish(self, prefix: str, roles: tuple[str, ...]) -> None:
        """A snapshot and a timestamp over what is there."""
        meta = {f"{role}.json": MetaFile(self._versions[f"{prefix}/{role}"]) for role in roles}
        snapshot = Snapshot(self._next(prefix, "snapshot"), expires=self._in(7), meta=meta)
        data = self._put(prefix, "snapshot", snapshot)
        listed = MetaFile.from_data(snapshot.version, data, ["sha256"])
        timestamp = Timestamp(self._next(prefix, "timestamp"), expires=self._in(1), snapshot_meta=listed)
        timestamp.unrecognized_fields["lighterman"] = {"signed_ms": int(self.now.timestamp() * 1000)}
        self._put(prefix, "timestamp", timestamp)

    def _root(self) -> Root:
        root = Root(1, expires=self._in(365), consistent_snapshot=True)
        for role in _TOP:
            root.add_key(self._keys[role].public_key, role)
        return root

    def _put(self, prefix: str, role: str, content: Signed) -> bytes:
        metadata: Metadata[Any] = Metadata(content)
        metadata.sign(self._keys[role if role in _TOP else "bins"])
        data = metadata.to_bytes(_COMPACT)
        name = "timestamp.json" if role == "timestamp" else f"{content.version}.{role}.json"
        self.files[f"{prefix}/{name}"] = data
        return data

    def _next(self, prefix: str, role: str) -> int:
        key = f"{prefix}/{role}"
        self._versions[key] = self._versions.get(key, 0) + 1
        return self._versions[key]

    def _in(self, days: int) -> datetime:
        return self.now + timedelta(days=days)


def _assignment(number: int) -> Assignment:
    model, version = f"model-{number // _VERSIONS_PER_MODEL}", number % _VERSIONS_PER_MODEL + 1
    artifact = Artifact(model, version, "linux/arm64", version, bundle_repository(model))
    return Assignment(model, f"dep-{number}", Digest.of(str(number).encode()), 2_000, artifact)


def _path(assignment: Assignment) -> str:
    return target_path(assignment.artifact.model, assignment.artifact.version, assignment.manifest)


@contextmanager
def served(world: World) -> Iterator[str]:
    """Serve a world on 127.0.0.1 for the length of a `with` block; gives the base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            data = world.files.get(self.path)
            body = b"{}" if data is None else data
            status = "404 Not Found" if data is None else "200 OK"
            head = (
                f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            )
            world.requests += 1
            world.body_bytes += len(body)
            world.wire_bytes += len(self.requestline) + len(bytes(self.headers)) + len(head) + len(body)
            self.wfile.write(head + body)  # last: whoever counts begins as soon as it came

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
