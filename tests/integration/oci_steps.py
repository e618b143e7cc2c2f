"""Steps of pushing to the distribution API that several tests take."""

from __future__ import annotations

from typing import Any

import httpx

from edge_contract.digest import Digest
from edge_contract.manifest import MANIFEST_TYPE
from tests.unit.cloud_data.artifacts import Artifact, modelpack_config, modelpack_manifest

MISSING = Digest.of(b"nowhere")


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
