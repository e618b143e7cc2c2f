"""Pulling blobs from registries that are far, slow, broken or hostile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_agent.fetch import HttpBundleFetcher
from edge_agent.store.blobs import FileBlobStore
from edge_agent.tokens import FixedToken
from edge_agent.transport import Patience
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import MANIFEST_TYPE, WEIGHT_RAW, Descriptor
from tests.support.net import free_port
from tests.support.rawhttp import Asked, RawServer, Script, answer, blobs, raw_server

DATA = bytes(range(251)) * 4000
BLOB = Descriptor(WEIGHT_RAW, Digest.of(DATA), len(DATA))
CALM = Patience(total_ms=60_000)
HASTE = Patience(total_ms=5_000, connect_ms=2_000, stall_ms=600, window_ms=500, window_bytes_min=1_000)


@dataclass
class Bench:
    """A device's store and a registry whose script a test may replace."""

    server: RawServer
    folder: Path
    patience: Patience = field(default=CALM)

    def __post_init__(self) -> None:
        self.store = FileBlobStore(self.folder, reserve_bytes=0)
        self.fetcher = HttpBundleFetcher(self.server.url, FixedToken("secret"), self.store, patience=self.patience)

    def hurry(self) -> None:
        """Wait only briefly from now on; for servers that are meant to be too slow."""
        self.fetcher = HttpBundleFetcher(self.server.url, FixedToken("secret"), self.store, patience=HASTE)

    def fetch(self, blob: Descriptor = BLOB, is_cancelled: Callable[[], bool] = lambda: False) -> int:
        return self.fetcher.fetch("bundles/digits", blob, is_cancelled)

    def fails(self, blob: Descriptor = BLOB) -> str:
        with pytest.raises(EdgeError) as caught:
            self.fetch(blob)
        assert not self.store.has(blob.digest)
        return caught.value.code

    @property
    def partial(self) -> Path:
        return self.folder / "partial" / BLOB.digest.hex

    @property
    def ranges(self) -> list[str]:
        return [asked.headers.get("range", "") for asked in self.server.asked]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with raw_server(blobs(DATA)) as server:
        made = Bench(server, tmp_path)
        yield made
        made.fetcher.close()


def cut_after(count: int) -> Script:
    """An honest registry whose connections end after so many bytes of content."""
    honest = blobs(DATA)

    def script(asked: Asked) -> Iterable[bytes]:
        (whole,) = honest(asked)
        head, gap, body = whole.partition(b"\r\n\r\n")
        return [head + gap + body[:count]]

    return script


# --- the honest registry ----------------------------------------------------------------------------------------------


def test_the_request_is_what_a_registry_expects(bench: Bench) -> None:
    bench.fetch()
    asked = bench.server.asked[0]
    assert asked.path == f"/v2/bundles/digits/blobs/{BLOB.digest}"
    assert asked.headers["authorization"] == "Bearer secret"
    assert asked.headers["accept-encoding"] == "identity"


def test_a_manifest_is_asked_for_as_one(bench: Bench) -> None:
    manifest = Descriptor(MANIFEST_TYPE, BLOB.digest, BLOB.size)
    bench.fetch(manifest)
    assert bench.server.asked[0].path == f"/v2/bundles/digits/manifests/{BLOB.digest}"
    assert bench.server.asked[0].headers["accept"].startswith(MANIFEST_TYPE)


def test_an_empty_blob_needs_no_request(bench: Bench) -> None:
    blob = Descriptor(WEIGHT_RAW, Digest.of(b""), 0)
    assert bench.fetch(blob) == 0
    assert bench.store.read(blob.digest, 0) == b""
    assert bench.server.asked == []


def test_a_kept_connection_that_the_server_closed_is_opened_again(bench: Bench) -> None:
    other = b"another blob"
    bench.server.script = blobs(DATA, other)
    bench.fetch()
    assert bench.fetch(Descriptor(WEIGHT_RAW, Digest.of(other), len(other))) == len(other)


def test_one_connection_serves_many_blobs(bench: Bench) -> None:
    many = [f"blob {n}".encode() for n in range(5)]
    bench.server.script = blobs(*many)
    bench.server.keep_alive = True
    for data in many:
        bench.fetch(Descriptor(WEIGHT_RAW, Digest.of(data), len(data)))
    assert bench.server.connections == 1


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_ended(bench: Bench) -> None:
    bench.server.script = cut_after(300_000)
    assert bench.fails() == "network.cut"
    assert bench.partial.stat().st_size == 300_000
    assert bench.fails() == "network.cut"
    bench.server.script = blobs(DATA)
    assert bench.fetch() == len(DATA) - 600_000
    assert bench.ranges == ["", "bytes=300000-", "bytes=600000-"]
    assert bench.store.read(BLOB.digest, len(DATA)) == DATA
    assert not bench.partial.exists()


def test_a_cancelled_download_keeps_what_it_has(bench: Bench) -> None:
    def half(_: Asked) -> Iterable[bytes]:
        yield answer(200, DATA[:400_000], length=len(DATA))
        bench.server.pause(30)

    bench.server.script = half
    with pytest.raises(EdgeError) as caught:
        bench.fetch(is_cancelled=lambda: bench.partial.exists() and bench.partial.stat().st_size > 100_000)
    assert caught.value.code == "network.cut"
    bench.server.script = blobs(DATA)
    assert 0 < bench.fetch() < len(DATA)


def test_a_server_without_ranges_sends_everything_again(bench: Bench) -> None:
    bench.server.script = cut_after(300_000)
    bench.fails()
    bench.server.script = blobs(DATA, ranges=False)
    assert bench.fetch() == len(DATA)


def test_spoiled_bytes_of_an_earlier_attempt_are_not_held_against_the_artifact(bench: Bench) -> None:
    bench.partial.parent.mkdir()
    bench.partial.write_bytes(b"\x00" * 200_000)  # what a file system may leave behind after a power cut
    assert bench.fetch() == 2 * len(DATA) - 200_000
    assert bench.store.read(BLOB.digest, len(DATA)) == DATA


def test_a_whole_but_spoiled_partial_file_is_fetched_again(bench: Bench) -> None:
    bench.partial.parent.mkdir()
    bench.partial.write_bytes(b"\x00" * len(DATA))
    assert bench.fetch() == len(DATA)


def test_a_whole_partial_file_is_only_given_its_name(bench: Bench) -> None:
    bench.partial.parent.mkdir()
    bench.partial.write_bytes(DATA)
    bench.partial.chmod(0o444)  # power failed between taking the permission and the name
    assert bench.fetch() == 0
    assert bench.store.has(BLOB.digest)


def test_a_partial_file_that_is_too_long_starts_from_nothing(bench: Bench) -> None:
    bench.partial.parent.mkdir()
    bench.partial.write_bytes(DATA + b"?")
    assert bench.fetch() == len(DATA)


# --- hostile or broken content ----------------------------------------------------------------------------------------


def test_wrong_bytes_are_refused_and_forgotten(bench: Bench) -> None:
    bench.server.script = lambda _: [answer(200, DATA[:-1] + b"?")]
    assert bench.fails() == "artifact.digest-mismatch"
    assert not bench.partial.exists()


@pytest.mark.parametrize("is_announced", [True, False])
def test_more_bytes_than_declared_are_refused_before_they_are_kept(bench: Bench, is_announced: bool) -> None:
    def endless(_: Asked) -> Iterable[bytes]:
        if is_announced:
            yield answer(200, b"", length=10**12)
        else:
            yield b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        for _n in range(100):
            yield b"\xaa" * 1_000_000

    bench.server.script = endless
    assert bench.fails() == "artifact.size-mismatch"
    assert not bench.partial.exists()


def test_a_registry_with_a_shorter_blob_of_that_name_is_refused(bench: Bench) -> None:
    bench.server.script = lambda _: [answer(200, DATA[:1000])]
    assert bench.fails() == "artifact.size-mismatch"


def test_another_range_than_was_asked_for_is_not_taken(bench: Bench) -> None:
    bench.server.script = cut_after(300_000)
    bench.fails()
    bench.server.script = lambda _: [answer(206, DATA[5:], Content_Range=f"bytes 5-{len(DATA) - 1}/{len(DATA)}")]
    assert bench.fails() == "cloud.unavailable"
    bench.server.script = blobs(DATA)
    assert bench.fetch() == len(DATA) - 300_000


def test_a_range_the_registry_cannot_give_starts_anew(bench: Bench) -> None:
    bench.server.script = cut_after(300_000)
    bench.fails()
    honest = blobs(DATA)

    def short_memory(asked: Asked) -> Iterable[bytes]:
        return [answer(416)] if "range" in asked.headers else honest(asked)

    bench.server.script = short_memory
    assert bench.fetch() == len(DATA)


def test_a_captive_portal_is_not_the_artifacts_fault(bench: Bench) -> None:
    bench.server.script = lambda _: [answer(200, b"<html>Log in</html>", Content_Type="text/html; charset=utf-8")]
    assert bench.fails() == "cloud.unavailable"


def test_chunked_content_is_read_too(bench: Bench) -> None:
    def chunked(_: Asked) -> Iterable[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for start in range(0, len(DATA), 70_000):
            piece = DATA[start : start + 70_000]
            yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
        yield b"0\r\n\r\n"

    bench.server.script = chunked
    assert bench.fetch() == len(DATA)


# --- slow or silent ---------------------------------------------------------------------------------------------------


def test_a_silent_server_is_given_up_and_what_came_is_kept(bench: Bench) -> None:
    def silent(_: Asked) -> Iterable[bytes]:
        yield answer(200, DATA[:5000], length=len(DATA))
        bench.server.pause(30)

    bench.server.script = silent
    bench.hurry()
    assert bench.fails() == "network.timeout"
    assert bench.partial.stat().st_size == 5000


def test_a_trickle_is_given_up_although_it_never_stops(bench: Bench) -> None:
    def trickle(_: Asked) -> Iterable[bytes]:
        yield answer(200, b"", length=len(DATA))
        for n in range(600):
            yield DATA[n : n + 1]
            bench.server.pause(0.05)

    bench.server.script = trickle
    bench.hurry()
    assert bench.fails() == "network.too-slow"


def test_headers_that_trickle_are_given_up(bench: Bench) -> None:
    def trickle(_: Asked) -> Iterable[bytes]:
        yield b"HTTP/1.1 200 OK\r\nX: "
        for _n in range(600):
            yield b"a"
            bench.server.pause(0.05)

    bench.server.script = trickle
    bench.hurry()
    assert bench.fails() == "network.too-slow"


def test_an_attempt_has_an_end_however_busy_it_is(tmp_path: Path) -> None:
    def steady(_: Asked) -> Iterable[bytes]:
        yield answer(200, b"", length=len(DATA))
        for start in range(0, len(DATA), 2000):
            yield DATA[start : start + 2000]
            server.pause(0.02)

    with raw_server(steady) as server:
        bench = Bench(server, tmp_path, Patience(total_ms=700, window_ms=200, window_bytes_min=100))
        assert bench.fails() == "network.timeout"
        assert bench.partial.stat().st_size > 0


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "network.refused"),
        (403, "network.refused"),
        (404, "artifact.not-found"),
        (429, "cloud.unavailable"),
        (500, "cloud.unavailable"),
        (503, "cloud.unavailable"),
        (400, "cloud.bad-request"),
    ],
)
def test_what_the_registry_refuses_has_a_code(bench: Bench, status: int, code: str) -> None:
    bench.server.script = lambda _: [answer(status, b"{}")]
    assert bench.fails() == code


def test_a_registry_that_is_down_is_unreachable(tmp_path: Path) -> None:
    fetcher = HttpBundleFetcher(f"http://127.0.0.1:{free_port()}", None, FileBlobStore(tmp_path, 0), patience=HASTE)
    with pytest.raises(EdgeError) as caught:
        fetcher.fetch("bundles/digits", BLOB, lambda: False)
    assert caught.value.code == "network.unreachable"


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x00" * 70_000])
def test_what_is_no_http_is_an_error_of_the_network_or_the_cloud(bench: Bench, reply: bytes) -> None:
    bench.server.script = lambda _: [reply]
    assert bench.fails() in ("network.cut", "cloud.unavailable")


# --- redirections -----------------------------------------------------------------------------------------------------


def test_a_redirection_is_followed_without_showing_our_token_to_strangers(bench: Bench) -> None:
    with raw_server(blobs(DATA)) as elsewhere:
        target = f"{elsewhere.url}/cdn/{BLOB.digest}"
        bench.server.script = lambda _: [answer(307, Location=target)]
        assert bench.fetch() == len(DATA)
        assert "authorization" not in elsewhere.asked[0].headers


def test_a_redirection_on_the_same_host_keeps_the_token(bench: Bench) -> None:
    honest = blobs(DATA)

    def script(asked: Asked) -> Iterable[bytes]:
        if asked.path.startswith("/v2/"):
            return [answer(302, Location=f"/store/{BLOB.digest}")]
        return honest(asked)

    bench.server.script = script
    assert bench.fetch() == len(DATA)
    assert bench.server.asked[1].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("location", ["", "ftp://127.0.0.1/x", "//", "http://", "/again", "http://user@127.0.0.1/"])
def test_a_redirection_that_leads_nowhere_is_given_up(bench: Bench, location: str) -> None:
    bench.server.script = lambda _: [answer(307, Location=location)]
    assert bench.fails() == "cloud.unavailable"


# --- the disk
# -----------------------------------------------------------------------------------------------------------


def test_no_download_begins_that_would_eat_the_reserve(bench: Bench) -> None:
    bench.store = FileBlobStore(bench.folder, reserve_bytes=2**62)
    bench.fetcher = HttpBundleFetcher(bench.server.url, None, bench.store)
    assert bench.fails() == "device.disk-full"
    assert bench.server.asked == []
