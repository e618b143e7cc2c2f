"""The client: uploads and downloads go on where they were cut, answers that are lost do no harm."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud_registry.client import RegistryClient
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from tests.integration.registry.running import Registry, error_of
from tests.support.net import wait_until
from tests.support.proxy import rough_proxy

MIB = 1024 * 1024
SIZE = 6 * MIB + 17


@pytest.fixture
def data() -> bytes:
    """Bytes that no compression and no accident reproduces."""
    return random.Random(7).randbytes(SIZE)


@pytest.fixture
def blob(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(data)
    return path


def lose_answers(client: RegistryClient, monkeypatch: pytest.MonkeyPatch, methods: set[str]) -> list[str]:
    """Let the first answer to each of these methods get lost on its way; gives the methods as they are sent."""
    http = client._transport._http
    real = http.request
    sent: list[str] = []

    def request(method: str, url: Any, **options: Any) -> httpx.Response:
        response = real(method, url, **options)
        sent.append(method)
        if method in methods:
            methods.remove(method)
            raise httpx.ReadError("lost on the way")
        return response

    monkeypatch.setattr(http, "request", request)
    return sent


def test_an_upload_goes_on_where_it_was_cut(
    local_registry: Registry, blob: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(local_registry.url.rpartition(":")[2])
    starts: list[int] = []
    seen: list[int] = []
    with (
        rough_proxy(port) as proxy,
        RegistryClient(f"http://127.0.0.1:{proxy.port}", local_registry.admin_token) as client,
    ):
        cuts = [2 * MIB, 4 * MIB]
        send = client._transport.send
        uploads = local_registry.services.blobs._uploads._folder  # type: ignore[attr-defined]

        def received() -> int:
            return sum(file.stat().st_size for file in uploads.iterdir())

        def watched(url: httpx.URL, headers: dict[str, str], chunks: Any) -> httpx.Response:
            starts.append(int(headers["Content-Range"].partition("-")[0]))
            return send(url, headers, chunks)

        def progress(done: int, total: int) -> None:
            assert total == SIZE
            seen.append(done)
            if cuts and done >= cuts[0]:
                cuts.pop(0)
                # What this side handed over may wait in sockets, and is lost with them: cut when half of it has come.
                wait_until(lambda: received() >= done // 2, 30, what="the registry to write what was sent")
                proxy.drop_all()

        monkeypatch.setattr(client._transport, "send", watched)
        sent = client.upload_blob("models/digits", blob, Digest.of(data), progress)
    assert not cuts
    # A busy registry may notice a cut later than the client asks how far it came, which costs one more request.
    assert len(starts) >= 3
    assert starts[0] == 0
    assert starts[-1] >= MIB
    assert (sent, seen[-1]) == (SIZE, SIZE)
    storage = local_registry.services.blobs
    assert b"".join(storage.open(Digest.of(data))) == data


def test_a_blob_that_is_there_is_not_sent_again(local_registry: Registry, blob: Path, data: bytes) -> None:
    client = local_registry.client()
    assert client.upload_blob("models/digits", blob, Digest.of(data)) == SIZE
    calls: list[tuple[int, int]] = []
    assert client.upload_blob("models/digits", blob, Digest.of(data), lambda *call: calls.append(call)) == 0
    assert calls == [(SIZE, SIZE)]


def test_an_empty_blob_is_uploaded(local_registry: Registry) -> None:
    client = local_registry.client()
    assert client.has_blob("models/digits", client.upload_bytes("models/digits", b""))


def test_a_wrong_digest_is_refused(local_registry: Registry, blob: Path) -> None:
    client = local_registry.client()
    error = error_of(client.upload_blob, "models/digits", blob, Digest.of(b"something else"))
    assert error.code == "artifact.digest-mismatch"
    assert not client.has_blob("models/digits", Digest.of(b"something else"))


def test_a_missing_file_is_named(local_registry: Registry, tmp_path: Path) -> None:
    error = error_of(local_registry.client().upload_blob, "models/x", tmp_path / "absent", Digest.of(b""))
    assert error.code == "config.file-missing"
    assert "absent" in error.detail


def test_a_download_goes_on_where_it_was_cut(local_registry: Registry, blob: Path, data: bytes, tmp_path: Path) -> None:
    client = local_registry.client()
    client.create_model("digits")
    script = b"def run(data):\n    return data\n"
    digest = client.upload_bytes("models/digits", script)
    client.upload_blob("models/digits", blob, Digest.of(data))
    files = [
        {"path": "score.py", "digest": str(digest), "size": len(script)},
        {"path": "weights.bin", "digest": str(Digest.of(data)), "size": SIZE},
    ]
    client.register_version("digits", {"format": "script", "files": files})
    target = tmp_path / "pulled.bin"
    port = int(local_registry.url.rpartition(":")[2])
    with (
        rough_proxy(port) as proxy,
        RegistryClient(f"http://127.0.0.1:{proxy.port}", local_registry.admin_token) as rough,
    ):
        proxy.cut_after = 2 * MIB
        assert rough.download("digits", 1, "weights.bin", target) == SIZE
        assert proxy.cuts >= 3
        assert proxy.passed < 2 * SIZE
    assert target.read_bytes() == data


def test_a_dead_registry_is_given_up_after_a_bound(local_registry: Registry) -> None:
    port = int(local_registry.url.rpartition(":")[2])
    with (
        rough_proxy(port) as proxy,
        RegistryClient(f"http://127.0.0.1:{proxy.port}", local_registry.admin_token) as client,
    ):
        assert client.own_token()["name"] == "admin"
        proxy.is_down = True
        proxy.drop_all()
        error = error_of(client.model, "digits")
    assert error.code.startswith("network.")


def test_a_deletion_whose_answer_was_lost_succeeds(local_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    local_registry.register("digits")
    client = local_registry.client()
    sent = lose_answers(client, monkeypatch, {"DELETE"})
    client.delete_version("digits", 1)
    assert sent == ["DELETE", "DELETE"]
    assert error_of(client.delete_version, "digits", 1).code == "cloud.not-found"


def test_an_upload_whose_last_answer_was_lost_succeeds(
    local_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = local_registry.client()
    sent = lose_answers(client, monkeypatch, {"PUT"})
    digest = client.upload_bytes("models/digits", b"some bytes")
    assert sent.count("PUT") >= 2
    assert client.has_blob("models/digits", digest)


def test_a_registration_is_never_repeated_by_itself(local_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    local_registry.register("digits")
    client = local_registry.client()
    content = {"format": "onnx", "files": client.get_version("digits", 1)["files"]}
    sent = lose_answers(client, monkeypatch, {"POST"})
    assert error_of(client.register_version, "digits", content).code == "network.cut"
    assert sent == ["POST"]
    assert [item["version"] for item in client.versions("digits")["items"]] == [2, 1]


def test_the_token_goes_to_no_other_host() -> None:
    with RegistryClient("http://127.0.0.1:9", "lmo_secret") as client:
        request = httpx.Request("POST", "http://127.0.0.1:9/v2/x/blobs/uploads/")
        elsewhere = httpx.Response(202, headers={"Location": "http://elsewhere.example/up"}, request=request)
        error = error_of(client._transport.location, elsewhere)
    assert error.code == "cloud.unavailable"
    assert "lmo_secret" not in str(error)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8400", "ftp://host", "http://", "nonsense", "http://[::1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(EdgeError) as caught:
        RegistryClient(url)
    assert caught.value.code == "config.invalid"


def test_a_token_that_is_none_is_refused_and_not_repeated() -> None:
    for token in ("lmo_a\nb", "lmo a", "lmö", "lmo_\0"):
        with pytest.raises(EdgeError) as caught:
            RegistryClient("http://127.0.0.1:9", token)
        assert caught.value.code == "config.invalid"
        assert token not in str(caught.value)
