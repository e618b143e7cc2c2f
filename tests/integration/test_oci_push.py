"""Uploads over real HTTP: chunks, slips, cuts and kills; and what hostile askers get."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from edge_contract.digest import Digest
from tests.integration.oci_steps import MISSING, oci_code, push, push_blob, start
from tests.support.net import wait_until
from tests.support.registry import RegistryProcess, registry_process


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def link(registry: RegistryProcess) -> Iterator[httpx.Client]:
    with registry.link() as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return "t/" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]


# --- blobs in ---


def test_an_upload_in_chunks_tells_where_it_stands(link: httpx.Client, name: str) -> None:
    data = os.urandom(10_000)
    location = start(link, name)
    first = link.patch(location, content=data[:4000], headers={"Content-Range": "0-3999"})
    assert (first.status_code, first.headers["range"]) == (202, "0-3999")
    location = first.headers["location"]
    status = link.get(location)
    assert (status.status_code, status.headers["range"], status.content) == (204, "0-3999", b"")
    second = link.patch(location, content=data[4000:9000], headers={"Content-Range": "4000-8999"})
    assert second.headers["range"] == "0-8999"
    done = link.put(
        location, params={"digest": str(Digest.of(data))}, content=data[9000:], headers={"Content-Range": "9000-9999"}
    )
    assert done.status_code == 201
    assert done.headers["docker-content-digest"] == str(Digest.of(data))
    assert link.get(done.headers["location"]).content == data
    gone = link.get(location)
    assert (gone.status_code, oci_code(gone)) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_in_one_stream_without_a_length(link: httpx.Client, name: str) -> None:
    data = os.urandom(3_000_000)
    location = start(link, name)
    pieces = iter([data[:1], data[1:1_500_000], data[1_500_000:]])
    assert link.patch(location, content=pieces).headers["range"] == f"0-{len(data) - 1}"
    assert link.put(location, params={"digest": str(Digest.of(data))}).status_code == 201
    assert link.get(f"/v2/{name}/blobs/{Digest.of(data)}").content == data


def test_a_put_may_bring_everything(link: httpx.Client, name: str) -> None:
    location = start(link, name)
    assert link.put(location, params={"digest": str(Digest.of(b"all"))}, content=b"all").status_code == 201


@pytest.mark.parametrize("announced", ["1-3", "5-9", "3-2", "x", "10-10"])
def test_a_chunk_out_of_order_is_refused_and_changes_nothing(link: httpx.Client, name: str, announced: str) -> None:
    location = start(link, name)
    if announced != "1-3":
        link.patch(location, content=b"012", headers={"Content-Range": "0-2"})
    answer = link.patch(location, content=b"abc", headers={"Content-Range": announced})
    assert (answer.status_code, oci_code(answer)) == (416, "BLOB_UPLOAD_INVALID")
    assert link.get(location).headers["range"] == ("0-0" if announced == "1-3" else "0-2")


def test_a_chunk_that_is_not_as_long_as_announced_is_refused(link: httpx.Client, name: str) -> None:
    location = start(link, name)
    for announced, content in (("0-9", b"abc"), ("0-1", b"abc")):
        answer = link.patch(location, content=content, headers={"Content-Range": announced})
        assert (answer.status_code, oci_code(answer)) == (400, "SIZE_INVALID")
    assert link.get(location).headers["range"] == "0-0"
    # Without a length of the body, the end of it tells.
    answer = link.patch(location, content=iter([b"a", b"b"]), headers={"Content-Range": "0-9"})
    assert (answer.status_code, oci_code(answer)) == (400, "SIZE_INVALID")


def test_a_wrong_digest_makes_no_blob(link: httpx.Client, name: str) -> None:
    location = start(link, name)
    link.patch(location, content=b"abc")
    answer = link.put(location, params={"digest": str(MISSING)})
    assert (answer.status_code, oci_code(answer)) == (400, "DIGEST_INVALID")
    assert link.head(f"/v2/{name}/blobs/{MISSING}").status_code == 404
    assert link.head(f"/v2/{name}/blobs/{Digest.of(b'abc')}").status_code == 404
    assert link.get(location).status_code == 404
    one_shot = link.post(f"/v2/{name}/blobs/uploads/", params={"digest": str(MISSING)}, content=b"abc")
    assert (one_shot.status_code, oci_code(one_shot)) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("digest", ["", "sha256:abc", "md5:0", "sha512:" + "0" * 128, "sha256:" + "G" * 64, "../../x"])
def test_a_digest_that_is_none_is_refused(link: httpx.Client, name: str, digest: str) -> None:
    location = start(link, name)
    link.patch(location, content=b"abc")
    answer = link.put(location, params={"digest": digest})
    assert (answer.status_code, oci_code(answer)) == (400, "DIGEST_INVALID")
    assert link.get(location).headers["range"] == "0-2", "a slip in the address does not cost the upload"
    if digest and "/" not in digest:
        assert link.get(f"/v2/{name}/blobs/{digest}").status_code == 400


def test_another_digest_algorithm_is_refused_at_the_start(link: httpx.Client, name: str) -> None:
    answer = link.post(f"/v2/{name}/blobs/uploads/", params={"digest-algorithm": "sha512"})
    assert (answer.status_code, oci_code(answer)) == (400, "DIGEST_INVALID")


def test_an_upload_can_be_cancelled(link: httpx.Client, name: str) -> None:
    location = start(link, name)
    assert link.delete(location).status_code == 204
    assert link.delete(location).status_code == 404
    assert link.patch(location, content=b"x").status_code == 404


def test_an_upload_cannot_be_reached_through_another_repository(link: httpx.Client, name: str) -> None:
    location = start(link, name)
    elsewhere = location.replace(name, f"{name}/other")
    assert link.get(elsewhere).status_code == 404
    assert link.put(elsewhere, params={"digest": str(Digest.of(b""))}).status_code == 404


def test_an_upload_that_is_cut_goes_on_where_it_was_cut(
    registry: RegistryProcess, link: httpx.Client, name: str
) -> None:
    data = os.urandom(2_500_000)
    location = start(link, name)
    _send_and_cut(registry, "PATCH", location, data[:1_800_000], announced=len(data))

    def offset() -> int:
        return int(link.get(location).headers["range"].removeprefix("0-")) + 1

    wait_until(lambda: offset() == 1_800_000, 20, what="the registry to keep what came")
    rest = link.patch(location, content=data[1_800_000:], headers={"Content-Range": f"1800000-{len(data) - 1}"})
    assert rest.status_code == 202
    assert link.put(location, params={"digest": str(Digest.of(data))}).status_code == 201
    assert link.get(f"/v2/{name}/blobs/{Digest.of(data)}").content == data


def test_a_push_in_one_piece_that_is_cut_leaves_nothing(
    registry: RegistryProcess, link: httpx.Client, name: str
) -> None:
    before = sorted((registry.data / "oci.uploads").iterdir())
    data = os.urandom(1_500_000)
    path = f"/v2/{name}/blobs/uploads/?digest={Digest.of(data)}"
    _send_and_cut(registry, "POST", path, data[:-1], announced=len(data))
    wait_until(lambda: sorted((registry.data / "oci.uploads").iterdir()) == before, 20, what="the remains to go")
    assert link.head(f"/v2/{name}/blobs/{Digest.of(data)}").status_code == 404


def _send_and_cut(registry: RegistryProcess, method: str, path: str, data: bytes, announced: int) -> None:
    """Send a request whose body ends too early, as a cut connection does."""
    address = urlsplit(registry.url)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {registry.admin_token}\r\n"
        f"Content-Length: {announced}\r\n\r\n"
    )
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as connection:
        connection.sendall(head.encode() + data)


# --- hostile ---


@pytest.mark.parametrize(
    "path",
    [
        "A/blobs/{d}", "a..b/blobs/{d}", "..%2fa/blobs/{d}", "%2e%2e/%2e%2e/etc/passwd/blobs/{d}", "a%00b/blobs/{d}",
        "a%0ab/blobs/{d}", "-a/blobs/{d}", "a//b/blobs/{d}", "é/blobs/{d}", "x" * 256 + "/blobs/{d}",
        "a%3fb/blobs/{d}", "/blobs/{d}",
    ],
)  # fmt: skip
def test_a_hostile_name_reaches_nothing(registry: RegistryProcess, link: httpx.Client, path: str) -> None:
    digest = push_blob(link, "a", b"secret of a")
    target = "/v2/" + path.replace("{d}", str(digest))
    answer = _raw_get(registry, target)
    assert answer.split(b" ", 2)[1] in (b"400", b"404"), answer[:200]
    assert b"secret of a" not in answer


@pytest.mark.parametrize(
    "path", ["a/manifests/..%2f..%2fx", "a/manifests/%2e%2e", "a/blobs/uploads/..%2f..%2fx", "a/blobs/..%2fsha256"]
)
def test_a_hostile_reference_reaches_nothing(registry: RegistryProcess, path: str) -> None:
    answer = _raw_get(registry, f"/v2/{path}")
    assert answer.split(b" ", 2)[1] in (b"400", b"404"), answer[:200]


def _raw_get(registry: RegistryProcess, target: str) -> bytes:
    """A request no library would send: the target goes out as it is."""
    address = urlsplit(registry.url)
    head = (
        f"GET {target} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {registry.admin_token}\r\n"
        "Connection: close\r\n\r\n"
    )
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as connection:
        connection.sendall(head.encode())
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65_536):
                answer += chunk
    return answer


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "PATCH"])
def test_other_paths_and_methods_get_an_error_of_the_same_form(link: httpx.Client, method: str) -> None:
    for path in ("/v2/_catalog", "/v2/a/blobs", "/v2/a/tags", "/v2/a/manifests/1/2"):
        answer = link.request(method, path)
        assert answer.status_code in (400, 404)
        oci_code(answer)


# --- restarts ---


def test_an_upload_survives_a_kill_of_the_registry(tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    with registry_process(tmp_path / "registry") as registry:
        with registry.link() as link:
            kept, _ = push(link, "bundles/digits", "1", b"weights")
            location = start(link, "a")
            acknowledged = link.patch(location, content=data[:3_000_000])
            assert acknowledged.headers["range"] == "0-2999999"
        registry.kill()
        registry.start()
        with registry.link() as link:
            assert link.get("/v2/bundles/digits/manifests/1").content == kept.data
            assert link.get(location).headers["range"] == "0-2999999"
            rest = link.patch(location, content=data[3_000_000:], headers={"Content-Range": "3000000-4999999"})
            assert rest.status_code == 202
            assert link.put(location, params={"digest": str(Digest.of(data))}).status_code == 201
            assert link.get(f"/v2/a/blobs/{Digest.of(data)}").content == data
        index = json.loads((registry.data / "oci" / "index.json").read_bytes())
        assert [item["digest"] for item in index["manifests"]] == [str(kept.digest)]
