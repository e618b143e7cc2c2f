"""The OCI distribution API over real HTTP: pull, manifests, discovery and deletion as distribution-spec 1.1 says."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator

import httpx
import pytest

from edge_contract.digest import Digest
from edge_contract.manifest import BUNDLE_ARTIFACT_TYPE, INDEX_TYPE, MANIFEST_TYPE
from tests.integration.oci_steps import MISSING, oci_code, push, push_blob, put_manifest
from tests.support.registry import RegistryProcess, registry_process
from tests.unit.cloud_data.artifacts import Artifact, modelpack_config, modelpack_manifest


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
