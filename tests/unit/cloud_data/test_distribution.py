"""Names, ranges and manifests of the distribution API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloud_registry.core.distribution import (
    DOCKER_LIST_TYPE,
    DOCKER_MANIFEST_TYPE,
    check_tags,
    is_managed,
    parse_content_range,
    parse_range,
    parse_reference,
    read_document,
    repository_name,
    tag_name,
)
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE

BLOB = Digest.of(b"blob")


@pytest.mark.parametrize("name", ["a", "models/digits", "a/b/c", "a--b", "a__b", "a.b-c_d/e", "0", "x" * 255])
def test_repository_names_of_the_specification_pass(name: str) -> None:
    assert repository_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "/", "A", "a/", "/a", "a//b", "../a", "a/../b", ".", "a/.", "-a", "a-", "a___b", "a..b", "a b", "a\n", "a\x00",
     "é", "a%2fb", "a:b", "a@b", "x" * 256],
)  # fmt: skip
def test_other_repository_names_are_refused(name: str) -> None:
    with pytest.raises(EdgeError) as caught:
        repository_name(name)
    assert caught.value.code == "cloud.name-invalid"


@pytest.mark.parametrize("tag", ["1", "latest", "_x", "A.b-c_d", "v" * 128])
def test_tags_of_the_specification_pass(tag: str) -> None:
    assert tag_name(tag) == tag
    assert parse_reference(tag).tag == tag


@pytest.mark.parametrize("tag", ["", ".x", "-x", "a/b", "a b", "é", "v" * 129, "..", "a\n"])
def test_other_tags_are_refused(tag: str) -> None:
    with pytest.raises(EdgeError) as caught:
        tag_name(tag)
    assert caught.value.code == "cloud.name-invalid"


def test_a_reference_with_a_colon_is_a_digest_or_nothing() -> None:
    assert parse_reference(str(BLOB)).digest == BLOB
    for wrong in ("sha256:abc", "sha512:" + "0" * 128, "sha256:" + "A" * 64, ":"):
        with pytest.raises(EdgeError) as caught:
            parse_reference(wrong)
        assert caught.value.code == "artifact.digest-invalid"


def test_tags_that_come_along_are_few_and_each_counts_once() -> None:
    assert check_tags(["a", "b", "a"]) == ("a", "b")
    with pytest.raises(EdgeError):
        check_tags([str(n) for n in range(17)])


def test_models_and_bundles_belong_to_the_registry() -> None:
    assert is_managed("models/digits")
    assert is_managed("bundles/digits")
    assert not is_managed("modelsdigits")
    assert not is_managed("other/models")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-", (0, 10)),
        ("bytes=0-0", (0, 1)),
        ("bytes=3-5", (3, 3)),
        ("bytes=9-9", (9, 1)),
        ("bytes=3-99", (3, 7)),
        ("bytes=-4", (6, 4)),
        ("bytes=-99", (0, 10)),
        ("bytes= 1-2 ", (1, 2)),
    ],
)
def test_a_range_is_cut_to_what_is_there(header: str, expected: tuple[int, int]) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=5-3", "bytes=-0", "bytes=12-11"])
def test_a_range_without_a_byte_cannot_be_met(header: str) -> None:
    with pytest.raises(EdgeError) as caught:
        parse_range(header, 10)
    assert caught.value.code == "cloud.not-acceptable"


@pytest.mark.parametrize("header", ["items=0-1", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "bytes", "", "bytes=+1-2"])
def test_what_is_not_one_range_asks_for_the_whole(header: str) -> None:
    assert parse_range(header, 10) is None


def test_an_empty_blob_has_no_range() -> None:
    for header in ("bytes=0-", "bytes=0-0", "bytes=-1"):
        with pytest.raises(EdgeError):
            parse_range(header, 0)


def test_an_announced_chunk_counts_both_ends() -> None:
    assert parse_content_range("0-0") == (0, 1)
    assert parse_content_range("5-9") == (5, 5)
    assert parse_content_range("bytes 5-9/20") == (5, 5)
    for wrong in ("", "5", "9-5", "-5", "a-b", "0-" + "9" * 30):
        with pytest.raises(EdgeError) as caught:
            parse_content_range(wrong)
        assert caught.value.code == "cloud.upload-invalid"


def descriptor(**changes: Any) -> dict[str, Any]:
    return {"mediaType": "application/x", "digest": str(BLOB), "size": 4} | changes


def document(**changes: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(mediaType="application/vnd.test.config"),
        "layers": [descriptor(digest=str(Digest.of(b"layer")), size=5)],
    } | changes


def read(value: Any, media_type: str = MANIFEST_TYPE) -> Any:
    return read_document(media_type, json.dumps(value).encode())


def test_a_manifest_says_what_it_lists_and_what_it_is() -> None:
    found = read(document(subject=descriptor(digest=str(Digest.of(b"subject"))), annotations={"k": "v"}))
    assert [child.digest for child in found.children] == [BLOB, Digest.of(b"layer")]
    assert found.artifact_type == "application/vnd.test.config"
    assert found.subject == Digest.of(b"subject")
    assert found.annotations == {"k": "v"}
    assert read(document(artifactType="application/vnd.mine")).artifact_type == "application/vnd.mine"


def test_an_index_lists_manifests_and_may_be_empty() -> None:
    found = read({"schemaVersion": 2, "manifests": [descriptor()]}, INDEX_TYPE)
    assert [child.is_manifest for child in found.children] == [True]
    assert read({"schemaVersion": 2, "mediaType": DOCKER_LIST_TYPE, "manifests": []}, DOCKER_LIST_TYPE).children == ()


def test_layers_that_lie_elsewhere_need_not_be_here() -> None:
    found = read(document(layers=[descriptor(digest=str(Digest.of(b"far")), urls=["https://example.org/x"])]))
    assert [child.is_elsewhere for child in found.children] == [False, True]


def test_parameters_of_the_content_type_do_not_matter() -> None:
    assert read(document(), MANIFEST_TYPE + "; charset=utf-8").media_type == MANIFEST_TYPE
    docker = document(mediaType=DOCKER_MANIFEST_TYPE)
    assert read(docker, DOCKER_MANIFEST_TYPE).media_type == DOCKER_MANIFEST_TYPE


@pytest.mark.parametrize(
    ("value", "media_type"),
    [
        (document(), "application/json"),
        (document(), INDEX_TYPE),
        (document(schemaVersion=1), MANIFEST_TYPE),
        (document(layers=None), MANIFEST_TYPE),
        (document(layers=[1]), MANIFEST_TYPE),
        (document(config=None), MANIFEST_TYPE),
        (document(config=descriptor(size=-1)), MANIFEST_TYPE),
        (document(config=descriptor(size="4")), MANIFEST_TYPE),
        (document(config=descriptor(size=True)), MANIFEST_TYPE),
        (document(config=descriptor(digest="sha256:../../etc/passwd")), MANIFEST_TYPE),
        (document(config=descriptor(digest=None)), MANIFEST_TYPE),
        (document(config=descriptor(mediaType="not a type")), MANIFEST_TYPE),
        (document(config={"digest": str(BLOB), "size": 4}), MANIFEST_TYPE),
        (document(artifactType=7), MANIFEST_TYPE),
        (document(annotations={"k": 1}), MANIFEST_TYPE),
        (document(subject="x"), MANIFEST_TYPE),
        ([], MANIFEST_TYPE),
    ],
)
def test_what_is_no_manifest_is_refused(value: Any, media_type: str) -> None:
    with pytest.raises(EdgeError) as caught:
        read(value, media_type)
    assert caught.value.code.startswith("artifact.")


def test_a_manifest_with_a_key_twice_is_refused() -> None:
    data = json.dumps(document()).encode().replace(b'"schemaVersion": 2', b'"schemaVersion": 2, "schemaVersion": 2')
    with pytest.raises(EdgeError) as caught:
        read_document(MANIFEST_TYPE, data)
    assert caught.value.code == "artifact.duplicate-key"


def test_a_manifest_lists_a_bounded_number_of_digests() -> None:
    layers = [descriptor(digest=str(Digest.of(str(n).encode()))) for n in range(4_097)]
    with pytest.raises(EdgeError) as caught:
        read(document(layers=layers))
    assert caught.value.code == "artifact.manifest-invalid"
