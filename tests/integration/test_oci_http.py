"""The OCI distribution API over real HTTP: distribution-spec 1.1, and what hostile or unlucky askers get."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from edge_contract.digest import Digest
from edge_contract.manifest import BUNDLE_ARTIFACT_TYPE, INDEX_TYPE, MANIFEST_TYPE
from tests.support.net import wait_until
from tests.support.registry import RegistryProcess, registry_process
from tests.unit.cloud_data.artifacts import Artifact, modelpack_config, modelpack_manifest

MISSING = Digest.of(b"nowhere")


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


def push_blob(link: httpx.Client, name: str, data: bytes) -> Digest:
    digest = Digest.of(data)
    answer = link.post(f"/v2/{name}/blobs/uploads/", params={"digest": str(digest)}, content=data)
    assert answer.status_code == 201, answer.text
    return digest


def push(
    link: httpx.Client, name: str, reference: str | None, layer: bytes, subject: Artifact | None = None, **notes: str
) -> tuple[Artifact, httpx.Response]:
    config = modelpack_config(Digest.of(layer))
    push_blob(link, name, config)
    push_blob(link, name, layer)
    data = modelpack_manifest(config, layer, subject, **notes)
    digest = Digest.of(data)
    answer = put_manifest(link, name, reference or str(digest), data)
    assert answer.status_code == 201, answer.text
    return Artifact(MANIFEST_TYPE, data, digest), answer


def put_manifest(
    link: httpx.Client, name: str, reference: str, data: bytes, kind: str = MANIFEST_TYPE, **query: Any
) -> httpx.Response:
    return link.put(f"/v2/{name}/manifests/{reference}", content=data, headers={"Content-Type": kind}, params=query)


def oci_code(answer: httpx.Response) -> str:
    (error,) = answer.json()["errors"]
    assert error["message"]
    assert "." in error["detail"]["code"]
    return str(error["code"])


def start(link: httpx.Client, name: str) -> str:
    answer = link.post(f"/v2/{name}/blobs/uploads/")
    assert answer.status_code == 202
    assert answer.headers["range"] == "0-0"
    return str(answer.headers["location"])


# --- who may what ---


def test_the_front_door_asks_for_a_token_and_takes_it_as_bearer_or_basic(registry: RegistryProcess) -> None:
    with registry.link("") as nobody:
        for path in ("/v2/", "/v2", f"/v2/a/blobs/{MISSING}", "/v2/a/b/c"):
            answer = nobody.get(path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Basic ")
            assert oci_code(answer) == "UNAUTHORIZED"
        basic = base64.b64encode(f"anybody:{registry.admin_token}".encode()).decode()
        assert nobody.get("/v2/", headers={"Authorization": f"Basic {basic}"}).status_code == 200
        for wrong in ("Bearer x", "Basic !!!", "Basic " + base64.b64encode(b"a:b").decode(), "Bearer", "Other x"):
            assert nobody.get("/v2/", headers={"Authorization": wrong}).status_code == 401
    with registry.link() as admin:
        answer = admin.get("/v2/")
        assert answer.status_code == 200
        assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


def test_a_viewer_pulls_and_a_publisher_pushes(registry: RegistryProcess, link: httpx.Client, name: str) -> None:
    digest = push_blob(link, name, b"content")
    with registry.link(registry.token("viewer")) as viewer:
        assert viewer.get(f"/v2/{name}/blobs/{digest}").content == b"content"
        for method, path in (
            ("POST", f"/v2/{name}/blobs/uploads/"),
            ("PUT", f"/v2/{name}/manifests/x"),
            ("DELETE", f"/v2/{name}/blobs/{digest}"),
            ("DELETE", f"/v2/{name}/manifests/x"),
        ):
            answer = viewer.request(method, path)
            assert (answer.status_code, oci_code(answer)) == (403, "DENIED")
    with registry.link(registry.token("publisher")) as publisher:
        push_blob(publisher, name, b"more")


# --- blobs out ---


def test_a_blob_is_served_whole_with_its_digest_and_for_ever(link: httpx.Client, name: str) -> None:
    data = os.urandom(300_000)
    digest = push_blob(link, name, data)
    url = f"/v2/{name}/blobs/{digest}"
    answer = link.get(url)
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["docker-content-digest"] == str(digest)
    assert answer.headers["content-length"] == str(len(data))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"] == f'"{digest}"'
    assert "immutable" in answer.headers["cache-control"]
    head = link.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(data))
    assert head.headers["docker-content-digest"] == str(digest)


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, 999),
        ("bytes=500-", 500, 999),
        ("bytes=500-599", 500, 599),
        ("bytes=990-5000", 990, 999),
        ("bytes=-10", 990, 999),
        ("bytes=-5000", 0, 999),
        ("bytes=999-999", 999, 999),
    ],
)
def test_one_range_is_served(link: httpx.Client, name: str, wanted: str, first: int, last: int) -> None:
    data = bytes(n % 251 for n in range(1000))
    digest = push_blob(link, name, data)
    answer = link.get(f"/v2/{name}/blobs/{digest}", headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (206, data[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/1000"
    assert answer.headers["content-length"] == str(last - first + 1)
    assert link.head(f"/v2/{name}/blobs/{digest}", headers={"Range": wanted}).status_code == 200


@pytest.mark.parametrize("wanted", ["bytes=1000-", "bytes=1000-1001", "bytes=9-5", "bytes=-0"])
def test_a_range_without_a_byte_is_refused_with_the_length(link: httpx.Client, name: str, wanted: str) -> None:
    digest = push_blob(link, name, b"x" * 1000)
    answer = link.get(f"/v2/{name}/blobs/{digest}", headers={"Range": wanted})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */1000"


@pytest.mark.parametrize("wanted", ["bytes=0-1,5-6", "lines=0-1", "bytes=x-y", "bytes=-", "="])
def test_what_is_not_one_range_gets_the_whole(link: httpx.Client, name: str, wanted: str) -> None:
    digest = push_blob(link, name, b"x" * 100)
    answer = link.get(f"/v2/{name}/blobs/{digest}", headers={"Range": wanted})
    assert (answer.status_code, len(answer.content)) == (200, 100)


def test_conditions_spare_a_transfer_or_guard_a_range(link: httpx.Client, name: str) -> None:
    digest = push_blob(link, name, b"0123456789")
    url = f"/v2/{name}/blobs/{digest}"
    for condition in (f'"{digest}"', f'W/"{digest}"', f'"other", "{digest}"', "*"):
        answer = link.get(url, headers={"If-None-Match": condition})
        assert (answer.status_code, answer.content) == (304, b"")
    assert link.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    resumed = link.get(url, headers={"Range": "bytes=4-", "If-Range": f'"{digest}"'})
    assert (resumed.status_code, resumed.content) == (206, b"456789")
    restarted = link.get(url, headers={"Range": "bytes=4-", "If-Range": '"other"'})
    assert (restarted.status_code, restarted.content) == (200, b"0123456789")


def test_an_empty_blob_can_be_pushed_and_pulled(link: httpx.Client, name: str) -> None:
    digest = push_blob(link, name, b"")
    answer = link.get(f"/v2/{name}/blobs/{digest}")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
    assert link.get(f"/v2/{name}/blobs/{digest}", headers={"Range": "bytes=0-"}).status_code == 416


def test_a_blob_of_another_repository_is_unknown_until_it_is_mounted(link: httpx.Client, name: str) -> None:
    digest = push_blob(link, f"{name}/source", b"shared")
    answer = link.get(f"/v2/{name}/blobs/{digest}")
    assert (answer.status_code, oci_code(answer)) == (404, "BLOB_UNKNOWN")
    assert link.head(f"/v2/{name}/blobs/{digest}").status_code == 404
    wrong = {"mount": str(digest), "from": f"{name}/elsewhere"}
    assert link.post(f"/v2/{name}/blobs/uploads/", params=wrong).status_code == 202
    assert link.post(f"/v2/{name}/blobs/uploads/", params={"mount": str(digest)}).status_code == 202
    assert link.get(f"/v2/{name}/blobs/{digest}").status_code == 404
    mounted = link.post(f"/v2/{name}/blobs/uploads/", params={"mount": str(digest), "from": f"{name}/source"})
    assert mounted.status_code == 201
    assert mounted.headers["location"] == f"/v2/{name}/blobs/{digest}"
    assert link.get(f"/v2/{name}/blobs/{digest}").content == b"shared"


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


# --- manifests ---


def test_a_manifest_is_served_byte_by_byte_by_tag_and_digest(link: httpx.Client, name: str) -> None:
    pushed, answer = push(link, name, "1", b"weights")
    assert answer.headers["location"] == f"/v2/{name}/manifests/{pushed.digest}"
    assert answer.headers["docker-content-digest"] == str(pushed.digest)
    for reference in ("1", str(pushed.digest)):
        got = link.get(f"/v2/{name}/manifests/{reference}")
        assert (got.status_code, got.content) == (200, pushed.data)
        assert got.headers["content-type"] == MANIFEST_TYPE
        assert got.headers["docker-content-digest"] == str(pushed.digest)
        head = link.head(f"/v2/{name}/manifests/{reference}")
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(pushed.data)))
        assert head.headers["content-type"] == MANIFEST_TYPE
    known = link.get(f"/v2/{name}/manifests/1", headers={"If-None-Match": f'"{pushed.digest}"'})
    assert known.status_code == 304


def test_a_manifest_that_is_not_there_is_unknown(link: httpx.Client, name: str) -> None:
    for reference in ("1", str(MISSING)):
        answer = link.get(f"/v2/{name}/manifests/{reference}")
        assert (answer.status_code, oci_code(answer)) == (404, "MANIFEST_UNKNOWN")
        assert link.head(f"/v2/{name}/manifests/{reference}").status_code == 404


def test_a_manifest_needs_its_blobs(link: httpx.Client, name: str) -> None:
    data = modelpack_manifest(modelpack_config(MISSING), b"layer")
    answer = put_manifest(link, name, "1", data)
    assert (answer.status_code, oci_code(answer)) == (404, "MANIFEST_BLOB_UNKNOWN")


@pytest.mark.parametrize(
    ("data", "kind", "code"),
    [
        (b"{}", MANIFEST_TYPE, "MANIFEST_INVALID"),
        (b"not json", MANIFEST_TYPE, "MANIFEST_INVALID"),
        (b'{"schemaVersion": 2, "schemaVersion": 2}', MANIFEST_TYPE, "MANIFEST_INVALID"),
        (b'{"schemaVersion": 2, "manifests": []}', "application/json", "MANIFEST_INVALID"),
        (b'{"schemaVersion": 2, "manifests": []}', "", "MANIFEST_INVALID"),
        (b'{"schemaVersion": 2, "mediaType": "a/b", "manifests": []}', INDEX_TYPE, "MANIFEST_INVALID"),
    ],
)
def test_what_is_no_manifest_is_refused(link: httpx.Client, name: str, data: bytes, kind: str, code: str) -> None:
    answer = put_manifest(link, name, "1", data, kind)
    assert (answer.status_code, oci_code(answer)) == (400, code)


def test_a_manifest_put_under_another_digest_is_refused(link: httpx.Client, name: str) -> None:
    pushed, _ = push(link, name, "1", b"weights")
    answer = put_manifest(link, name, str(MISSING), pushed.data)
    assert (answer.status_code, oci_code(answer)) == (400, "DIGEST_INVALID")


def test_a_manifest_of_four_mebibytes_passes_and_a_larger_one_does_not(link: httpx.Client, name: str) -> None:
    limit = 4 * 1024 * 1024
    empty = json.dumps({"schemaVersion": 2, "manifests": [], "annotations": {"x": ""}}).encode()
    fitting = empty.replace(b'"x": ""', b'"x": "' + b"y" * (limit - len(empty)) + b'"')
    assert len(fitting) == limit
    assert put_manifest(link, name, "big", fitting, INDEX_TYPE).status_code == 201
    assert link.get(f"/v2/{name}/manifests/big").content == fitting
    assert put_manifest(link, name, "bigger", fitting + b" ", INDEX_TYPE).status_code == 413


def test_a_manifest_put_by_digest_may_bring_tags(link: httpx.Client, name: str) -> None:
    pushed, _ = push(link, name, None, b"weights")
    answer = put_manifest(link, name, str(pushed.digest), pushed.data, tag=["a", "b"])
    assert answer.headers.get_list("oci-tag") == ["a", "b"]
    assert link.get(f"/v2/{name}/tags/list").json()["tags"] == ["a", "b"]
    refused = put_manifest(link, name, str(pushed.digest), pushed.data, tag=["c", "-bad-"])
    assert refused.status_code == 400
    assert link.get(f"/v2/{name}/tags/list").json()["tags"] == ["a", "b"]


def test_an_index_may_hold_an_index(link: httpx.Client, name: str) -> None:
    pushed, _ = push(link, name, None, b"weights")
    inner = _index([(MANIFEST_TYPE, pushed.digest, len(pushed.data))])
    assert put_manifest(link, name, "inner", inner, INDEX_TYPE).status_code == 201
    outer = _index([(INDEX_TYPE, Digest.of(inner), len(inner))])
    assert put_manifest(link, name, "outer", outer, INDEX_TYPE).status_code == 201
    assert link.get(f"/v2/{name}/manifests/outer").headers["content-type"] == INDEX_TYPE
    missing = put_manifest(link, name, "x", _index([(MANIFEST_TYPE, MISSING, 3)]), INDEX_TYPE)
    assert (missing.status_code, oci_code(missing)) == (404, "MANIFEST_BLOB_UNKNOWN")


def _index(items: list[tuple[str, Digest, int]]) -> bytes:
    listed = [{"mediaType": kind, "digest": str(digest), "size": size} for kind, digest, size in items]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed}).encode()


# --- discovery ---


def test_tags_are_listed_in_order_page_by_page(link: httpx.Client, name: str) -> None:
    unknown = link.get(f"/v2/{name}/tags/list")
    assert (unknown.status_code, oci_code(unknown)) == (404, "NAME_UNKNOWN")
    pushed, _ = push(link, name, "b", b"weights")
    for tag in ("C", "a", "_", "10", "9"):
        put_manifest(link, name, tag, pushed.data)
    whole = link.get(f"/v2/{name}/tags/list")
    assert whole.json() == {"name": name, "tags": ["10", "9", "C", "_", "a", "b"]}
    assert "link" not in whole.headers
    seen: list[str] = []
    url: str | None = f"/v2/{name}/tags/list?n=4"
    for _ in range(5):
        if url is None:
            break
        page = link.get(url)
        seen += page.json()["tags"]
        url = page.links["next"]["url"] if "next" in page.links else None
    assert seen == whole.json()["tags"]
    assert link.get(f"/v2/{name}/tags/list?n=6").links == {}
    none = link.get(f"/v2/{name}/tags/list?n=0")
    assert (none.json()["tags"], none.links) == ([], {})
    assert link.get(f"/v2/{name}/tags/list?n=2&last=C").json()["tags"] == ["_", "a"]
    for wrong in ("-1", "x", "1e3", "٣"):
        assert link.get(f"/v2/{name}/tags/list", params={"n": wrong}).status_code == 400


def test_referrers_are_an_index_of_what_refers(link: httpx.Client, name: str) -> None:
    nothing = link.get(f"/v2/{name}/referrers/{MISSING}")
    assert (nothing.status_code, nothing.json()["manifests"]) == (200, [])
    assert nothing.headers["content-type"] == INDEX_TYPE
    subject, plain = push(link, name, "1", b"weights")
    assert "oci-subject" not in plain.headers
    first, answer = push(link, name, None, b"signature", subject, purpose="proof")
    assert answer.headers["oci-subject"] == str(subject.digest)
    found = link.get(f"/v2/{name}/referrers/{subject.digest}")
    assert "oci-filters-applied" not in found.headers
    assert found.json()["manifests"] == [
        {
            "mediaType": MANIFEST_TYPE,
            "digest": str(first.digest),
            "size": len(first.data),
            "artifactType": BUNDLE_ARTIFACT_TYPE,
            "annotations": {"purpose": "proof"},
        }
    ]
    for kind, count in ((BUNDLE_ARTIFACT_TYPE, 1), ("application/other", 0)):
        filtered = link.get(f"/v2/{name}/referrers/{subject.digest}", params={"artifactType": kind})
        assert filtered.headers["oci-filters-applied"] == "artifactType"
        assert len(filtered.json()["manifests"]) == count
    assert link.get(f"/v2/{name}/referrers/sha256:abc").status_code == 400


def test_a_manifest_may_refer_to_one_that_is_not_there_yet(link: httpx.Client, name: str) -> None:
    data = modelpack_manifest(modelpack_config(MISSING), b"later")
    subject = Artifact(MANIFEST_TYPE, data, Digest.of(data))
    early, answer = push(link, name, None, b"early", subject)
    assert answer.headers["oci-subject"] == str(subject.digest)
    listed = link.get(f"/v2/{name}/referrers/{subject.digest}").json()["manifests"]
    assert [item["digest"] for item in listed] == [str(early.digest)]


def test_many_referrers_come_in_pages(link: httpx.Client, name: str) -> None:
    subject, _ = push(link, name, "1", b"weights")
    for number in range(3):
        push(link, name, None, f"signature {number}".encode(), subject, note="x" * 1_000_000)
    seen: list[str] = []
    url: str | None = f"/v2/{name}/referrers/{subject.digest}"
    for _ in range(5):
        if url is None:
            break
        page = link.get(url)
        seen += [item["digest"] for item in page.json()["manifests"]]
        url = page.links["next"]["url"] if "next" in page.links else None
    assert len(seen) == len(set(seen)) == 3


# --- deletion ---


def test_content_is_deleted_from_the_top_down(link: httpx.Client, name: str) -> None:
    pushed, _ = push(link, name, "1", b"weights")
    put_manifest(link, name, "2", pushed.data)
    layer = Digest.of(b"weights")
    needed = link.delete(f"/v2/{name}/blobs/{layer}")
    assert (needed.status_code, oci_code(needed)) == (409, "DENIED")
    assert link.delete(f"/v2/{name}/manifests/2").status_code == 202
    assert link.get(f"/v2/{name}/tags/list").json()["tags"] == ["1"]
    assert link.delete(f"/v2/{name}/manifests/{pushed.digest}").status_code == 202
    assert link.get(f"/v2/{name}/manifests/1").status_code == 404
    assert link.delete(f"/v2/{name}/manifests/{pushed.digest}").status_code == 404
    assert link.delete(f"/v2/{name}/blobs/{layer}").status_code == 202
    assert link.delete(f"/v2/{name}/blobs/{layer}").status_code == 404
    assert link.get(f"/v2/{name}/blobs/{layer}").status_code == 404


@pytest.mark.parametrize("kind", ["models", "bundles"])
def test_what_models_and_deployments_count_on_is_not_deleted_here(link: httpx.Client, name: str, kind: str) -> None:
    managed = f"{kind}/{name.replace('/', '-')}"
    pushed, _ = push(link, managed, "1", b"weights")
    for path in ("blobs/" + str(Digest.of(b"weights")), "manifests/1", f"manifests/{pushed.digest}"):
        answer = link.delete(f"/v2/{managed}/{path}")
        assert (answer.status_code, oci_code(answer)) == (405, "UNSUPPORTED")
    assert link.get(f"/v2/{managed}/manifests/1").content == pushed.data


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
