"""Models, versions, aliases, search and deletion over HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloud_registry.client import RegistryClient
from cloud_registry.errors import RegistryError
from edge_contract.digest import Digest
from tests.integration.registry.running import START_MS, Registry, error_of
from tests.unit.cloud.making import tiny_onnx

ODD_NAMES = ["", "Digits", "di gits", "../etc", "a/b", "-x", "x-", "ä", "x" * 65, "a\tb", "a'b", "%00", "a..b", "."]


def test_a_model_is_created_once_and_shown(registry: Registry) -> None:
    client = registry.client()
    made = client.create_model("digits", "handwritten", {"task": "vision"}, {"owner": "lab 3"})
    assert made == client.model("digits")
    assert made["created_at"] == "2026-09-21T14:13:20.000Z"
    assert (made["created_by"], made["latest_version"], made["aliases"]) == ("admin", None, {})
    assert error_of(client.create_model, "digits").code == "cloud.conflict"
    assert error_of(client.model, "other").code == "cloud.not-found"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_refused(local_registry: Registry, name: str) -> None:
    assert error_of(local_registry.client().create_model, name).code == "cloud.name-invalid"
    if "/" not in name and name not in ("", "."):
        assert error_of(local_registry.client().model, name).code == "cloud.name-invalid"


def test_versions_are_numbered_by_the_server(registry: Registry) -> None:
    first = registry.register(
        "digits",
        description="linear",
        tags={"stage": "trial"},
        properties={"accuracy": "0.93"},
        lineage={"run_id": "r1", "dataset": "uci"},
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    )
    second = registry.register("digits")
    client = registry.client()
    assert (first["version"], second["version"]) == (1, 2)
    assert client.get_version("digits", 1) == first
    assert first["lineage"] == {"run_id": "r1", "dataset": "uci"}
    assert first["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert [item["version"] for item in client.versions("digits")["items"]] == [2, 1]
    assert client.model("digits")["latest_version"] == 2
    assert error_of(client.get_version, "digits", 3).code == "cloud.not-found"


@pytest.mark.parametrize("reference", ["0", "01", "99999999999999", "1e3", "-1", "none", "1.0", "٣"])
def test_a_version_that_is_none_is_not_found(local_registry: Registry, reference: str) -> None:
    local_registry.register("digits")
    code = error_of(local_registry.client().get_version, "digits", reference).code
    assert code in ("cloud.not-found", "cloud.name-invalid")


def test_twenty_racing_registrations_get_twenty_numbers_without_gaps(registry: Registry) -> None:
    client = registry.client()
    client.create_model("digits")
    data = tiny_onnx()
    digest = client.upload_bytes("models/digits", data)
    body = {"format": "onnx", "files": [{"path": "m.onnx", "digest": str(digest), "size": len(data)}]}
    with ThreadPoolExecutor(20) as racers:
        numbers = list(racers.map(lambda _: client.register_version("digits", body)["version"], range(20)))
    assert sorted(numbers) == list(range(1, 21))
    assert [item["version"] for item in client.versions("digits")["items"]] == list(range(20, 0, -1))


def test_a_refused_registration_leaves_no_gap(registry: Registry) -> None:
    registry.register("digits")
    client = registry.client()
    ghost = {"path": "m.onnx", "digest": str(Digest.of(b"ghost")), "size": 5}
    error = error_of(client.register_version, "digits", {"format": "onnx", "files": [ghost]})
    assert error.code == "artifact.not-found"
    assert registry.register("digits")["version"] == 2


def test_a_blob_of_another_model_does_not_count(local_registry: Registry) -> None:
    client = local_registry.client()
    local_registry.register("digits")
    client.create_model("other")
    data = tiny_onnx()
    file = {"path": "m.onnx", "digest": str(Digest.of(data)), "size": len(data)}
    error = error_of(client.register_version, "other", {"format": "onnx", "files": [file]})
    assert error.code == "artifact.not-found"


def test_a_wrong_size_and_a_file_that_is_no_model_are_refused(local_registry: Registry) -> None:
    client = local_registry.client()
    client.create_model("digits")
    text = b"this is not a model at all"
    digest = str(client.upload_bytes("models/digits", text))
    wrong = {"format": "script", "files": [{"path": "score.py", "digest": digest, "size": 5}]}
    assert error_of(client.register_version, "digits", wrong).code == "artifact.size-mismatch"
    lie = {"format": "onnx", "files": [{"path": "m.onnx", "digest": digest, "size": len(text)}]}
    assert error_of(client.register_version, "digits", lie).code == "artifact.not-a-model"
    assert client.versions("digits")["items"] == []


def test_only_description_tags_and_properties_of_a_version_change(registry: Registry) -> None:
    before = registry.register("digits", tags={"a": "1"}, properties={"p": "1"})
    client = registry.client()
    after = client.update_version("digits", 1, {"description": "better", "tags": {"b": "2"}})
    assert after == before | {"description": "better", "tags": {"b": "2"}}
    error = error_of(client.update_version, "digits", 1, {"format": "tflite"})
    assert error.code == "cloud.bad-request"
    assert client.update_model("digits", {"properties": {"x": "y"}})["properties"] == {"x": "y"}


def test_an_alias_names_a_version_and_remembers_every_move(registry: Registry) -> None:
    registry.register("digits")
    registry.register("digits")
    client = registry.client()
    client.set_alias("digits", "production", 1)
    client.set_alias("digits", "production", 1)
    registry.clock.now_ms += 1_000
    client.set_alias("digits", "production", 2)
    assert client.get_version("digits", "production")["version"] == 2
    assert client.get_version("digits", 2)["aliases"] == ["production"]
    client.delete_alias("digits", "production")
    assert client.aliases("digits") == []
    assert error_of(client.get_version, "digits", "production").code == "cloud.not-found"
    assert [item["version"] for item in client.alias_history("digits", "production")] == [1, 2, None]
    assert error_of(client.alias_history, "digits", "other").code == "cloud.not-found"
    assert error_of(client.set_alias, "digits", "production", 9).code == "cloud.not-found"
    assert error_of(client.set_alias, "digits", "7", 1).code == "cloud.name-invalid"


def test_search_finds_by_every_filter(registry: Registry) -> None:
    registry.register("digits", tags={"site": "north"}, description="Reads CHEQUES")
    registry.clock.now_ms += 3_600_000
    client = registry.client()
    client.create_model("digits-small", "for 100% tiny boards", {"site": "south"}, {"owner": "lab"})
    client.create_model("faces", properties={"owner": "lab"})

    def names(**filters: object) -> list[str]:
        return [item["name"] for item in client.search(**filters)["items"]]  # type: ignore[arg-type]

    assert names() == ["digits", "digits-small", "faces"]
    assert names(name="digits") == ["digits"]
    assert names(name="digits*") == ["digits", "digits-small"]
    assert names(name="d_gits*") == []
    assert names(query="cheques") == ["digits"]
    assert names(query="100%") == ["digits-small"]
    assert names(query="0_%") == []
    assert names(tags={"site": "north"}) == ["digits"]
    assert names(tags={"site": "north", "other": "x"}) == []
    assert names(properties={"owner": "lab"}) == ["digits-small", "faces"]
    assert names(format="onnx") == ["digits"]
    assert names(created_after="2026-09-21T15:00:00Z") == ["digits-small", "faces"]
    assert names(created_before="2026-09-21T15:00:00Z") == ["digits"]
    assert error_of(client.search, format="pickle").code == "cloud.bad-request"


def test_pages_go_on_where_the_last_one_ended_whatever_is_added_meanwhile(registry: Registry) -> None:
    client = registry.client()
    for number in range(7):
        client.create_model(f"m{number}")
    first = client.search(limit=3)
    client.create_model("a-newcomer-before")
    second = client.search(limit=3, cursor=first["next"])
    third = client.search(limit=3, cursor=second["next"])
    seen = [item["name"] for page in (first, second, third) for item in page["items"]]
    assert seen == [f"m{number}" for number in range(7)]
    assert third["next"] is None
    assert error_of(client.versions, "m0", cursor=first["next"]).code == "cloud.bad-request"


def test_what_is_needed_is_not_deleted(registry: Registry) -> None:
    registry.register("digits")
    registry.register("digits")
    registry.bundle("digits", 1)
    registry.enrol("cam-1")
    client = registry.client()
    client.set_alias("digits", "production", 1)
    deployment = client.create_deployment("digits", 1, "*")["id"]
    error = error_of(client.delete_version, "digits", 1)
    assert error.code == "cloud.in-use"
    assert isinstance(error, RegistryError)
    assert [(item["kind"], item["name"]) for item in error.extras["needed_by"]] == [
        ("alias", "production"),
        ("deployment", deployment),
    ]
    assert error_of(client.delete_model, "digits").code == "cloud.in-use"
    client.delete_alias("digits", "production")
    client.cancel_deployment(deployment)
    client.delete_version("digits", 1)
    assert error_of(client.get_version, "digits", 1).code == "cloud.not-found"


def test_a_number_is_never_used_again(registry: Registry) -> None:
    registry.register("digits")
    registry.register("digits")
    client = registry.client()
    client.delete_version("digits", 2)
    assert registry.register("digits")["version"] == 3
    client.delete_model("digits")
    assert error_of(client.model, "digits").code == "cloud.not-found"
    assert registry.register("digits")["version"] == 4


def test_a_file_is_downloaded_verified_and_resumed(local_registry: Registry, tmp_path: Path) -> None:
    local_registry.register("digits")
    client = local_registry.client()
    target = tmp_path / "out.onnx"
    # What an earlier attempt left.
    (tmp_path / "out.onnx.partial").write_bytes(tiny_onnx()[:10])
    assert client.download("digits", 1, "model.onnx", target) == len(tiny_onnx())
    assert target.read_bytes() == tiny_onnx()
    assert not (tmp_path / "out.onnx.partial").exists()
    assert error_of(client.download, "digits", 1, "other", target).code == "cloud.not-found"


def test_a_damaged_beginning_is_dropped_and_the_next_attempt_succeeds(local_registry: Registry, tmp_path: Path) -> None:
    local_registry.register("digits")
    client = local_registry.client()
    target = tmp_path / "out.onnx"
    (tmp_path / "out.onnx.partial").write_bytes(b"\xff" * 10)
    assert error_of(client.download, "digits", 1, "model.onnx", target).code == "artifact.digest-mismatch"
    assert client.download("digits", 1, "model.onnx", target) == len(tiny_onnx())


def test_a_range_of_a_file_is_served(local_registry: Registry) -> None:
    local_registry.register("digits")
    path = "/api/v1/models/digits/versions/1/files/model.onnx"
    part = local_registry.request("GET", path, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, tiny_onnx()[2:6])
    assert part.headers["content-range"] == f"bytes 2-5/{len(tiny_onnx())}"
    assert local_registry.request("HEAD", path).headers["content-length"] == str(len(tiny_onnx()))
    beyond = local_registry.request("GET", path, headers={"Range": "bytes=9999-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "cloud.not-acceptable")


def test_times_are_those_of_the_registry_s_clock(local_registry: Registry) -> None:
    local_registry.register("digits")
    assert local_registry.clock.now_ms == START_MS
    assert local_registry.client().get_version("digits", 1)["created_at"] == "2026-09-21T14:13:20.000Z"


def test_a_client_without_a_registry_says_so() -> None:
    with RegistryClient("http://127.0.0.1:9", "x", timeout_s=1) as client:
        error = error_of(client.create_model, "digits")
    assert error.code == "network.unreachable"
