"""`edge-agent tuf download`: files verified, resumed, never fetched twice; python-tuf's client beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from edge_agent.store import durable
from edge_agent.transport import Patience
from edge_agent.trust.download import TargetFolder
from edge_agent.trust.remote import RemoteFolder
from edge_agent.trust.target import Target
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from tests.support.rawhttp import Asked, answer, raw_server
from tests.support.tufplain import Pair, PlainRepository, plain_pair

PATIENT = Patience(total_ms=30_000, stall_ms=500, window_ms=300, window_bytes_min=1000)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with plain_pair(PlainRepository(), tmp_path) as made:
        yield made


def test_files_are_fetched_once(pair: Pair) -> None:
    for path in ("a.txt", "folder/in/folder/b.txt"):
        pair.repository.add(path, path.encode())
    pair.repository.publish_all()
    assert pair.refresh() == 0
    assert pair.fetched(pair.ours) == []
    assert pair.download("a.txt", "folder/in/folder/b.txt") == 0
    digest = Digest.of(b"folder/in/folder/b.txt").hex
    assert pair.requests[-1] == f"folder/in/folder/{digest}.b.txt"
    assert pair.download("folder/in/folder/b.txt", "a.txt") == 0
    assert pair.requests == ["2.root.json", "timestamp.json"]
    assert "was there already" in pair.ours.output


def test_a_changed_target_takes_the_place_of_the_former(pair: Pair) -> None:
    for content in (b"first", b"second, and longer", b"3"):
        pair.repository.add("a.txt", content)
        pair.repository.publish_all()
        assert pair.download("a.txt") == 0
        assert pair.fetched(pair.ours) == [content]


def test_a_file_that_changed_on_disk_is_fetched_again(pair: Pair) -> None:
    pair.repository.add("a.txt", b"content")
    pair.repository.publish_all()
    assert pair.download("a.txt") == 0
    for client in (pair.ours, pair.reference):
        next(client.files.iterdir()).write_bytes(b"CONTENT")
    assert pair.download("a.txt") == 0
    assert pair.fetched(pair.ours) == [b"content"]


@pytest.mark.parametrize("served", [b"other___", b"short", b"far too long a content", b""])
def test_content_that_was_not_signed_is_not_kept(pair: Pair, served: bytes) -> None:
    pair.repository.add("a.txt", b"original")
    pair.repository.publish_all()
    assert pair.download("a.txt") == 0
    for name in [name for name in pair.repository.files if name.endswith(".a.txt")]:
        pair.repository.files[name] = served
    assert pair.download("a.txt") == 0, "it is there already"
    pair.repository.add("b.txt", b"original")
    pair.repository.publish_all()
    for name in [name for name in pair.repository.files if name.endswith(".b.txt")]:
        pair.repository.files[name] = served
    assert pair.download("b.txt") == 1
    assert pair.fetched(pair.ours) == [b"original"]
    assert [path.name for path in pair.ours.files.iterdir() if path.name.startswith(".") and path.stat().st_size] == []


def test_an_empty_target(pair: Pair) -> None:
    pair.repository.add("empty", b"")
    pair.repository.publish_all()
    assert pair.download("empty") == 0
    assert pair.fetched(pair.ours) == [b""]


def test_every_hash_has_to_fit(pair: Pair) -> None:
    repository = pair.repository
    repository.add("a.txt", b"content", hashes=("sha512", "sha256", "blake2b"))
    repository.publish_all()
    assert pair.download("a.txt") == 0
    for number, change in enumerate(({"sha512": "0" * 128}, {"unheard-of": "00"}, {"shake_128": "00"})):
        path = f"{number}.txt"
        repository.add(path, b"content", hashes=("sha256",))
        repository.targets().targets[path].hashes |= change
        repository.publish_all()
        assert pair.download(path) == 1


def test_one_target_that_fails_does_not_keep_the_others(pair: Pair) -> None:
    pair.repository.add("a.txt", b"a")
    pair.repository.add("b.txt", b"b")
    pair.repository.publish_all()
    assert pair.ours.download("a.txt", "missing", "b.txt") == 1
    assert pair.fetched(pair.ours) == [b"a", b"b"]


@pytest.mark.parametrize(
    "path", [".", "..", "../x", "/etc/x", "a/../../x", ".part-x", "a b", "ü", "%2e%2e/x", "a?b", "p" * 250, "ü" * 90]
)
def test_odd_target_paths_stay_in_their_folder(pair: Pair, tmp_path: Path, path: str) -> None:
    pair.repository.add(path, b"content")
    digest = Digest.of(b"content").hex
    folder, slash, name = path.rpartition("/")
    for spelling in (path, path.replace(" ", "%20").replace("ü", "%C3%BC")):
        folder, slash, name = spelling.rpartition("/")
        pair.repository.files[f"targets/{folder}{slash}{digest}.{name}".lstrip("/")] = b"content"
        pair.repository.files[f"targets/{folder}{slash}{digest}.{name}"] = b"content"
    pair.repository.publish_all()
    before = {item for item in tmp_path.rglob("*") if item.is_file()}
    assert pair.ours.download(path) == 0, pair.ours.output
    made = {item for item in tmp_path.rglob("*") if item.is_file()} - before
    assert {item.parent for item in made} == {pair.ours.metadata, pair.ours.files}
    (kept,) = pair.ours.files.iterdir()
    assert kept.read_bytes() == b"content"
    assert not kept.name.startswith(".")
    assert pair.ours.download(path) == 0
    assert "was there already" in pair.ours.output


# --- a folder of targets alone ---


class Bench:
    """A server of one target, and a folder."""

    content = bytes(range(256)) * 4000

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = Target("a.bin", len(self.content), {"sha256": Digest.of(self.content).hex})

    def fetch(self, url: str) -> Path:
        remote = RemoteFolder(url)
        try:
            return TargetFolder(self.folder, remote, PATIENT).fetch(self.target, is_prefixed=False)
        finally:
            remote.close()

    def refused(self, url: str) -> str:
        with pytest.raises(EdgeError) as caught:
            self.fetch(url)
        return caught.value.code

    def parts(self) -> list[int]:
        return [path.stat().st_size for path in self.folder.glob(".part-*")]

    def ranges(self, asked: Asked) -> Iterable[bytes]:
        text = asked.headers.get("range", "bytes=0-")
        start = int(text.removeprefix("bytes=").removesuffix("-"))
        if start == 0:
            return [answer(200, self.content)]
        end = len(self.content)
        return [answer(206, self.content[start:], Content_Range=f"bytes {start}-{end - 1}/{end}")]

    def cut_after(self, count: int) -> bytes:
        return answer(200, self.content[:count], length=len(self.content))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "files")


def test_a_download_goes_on_where_it_was_cut(bench: Bench) -> None:
    with raw_server(lambda _: [bench.cut_after(700_000)]) as server:
        assert bench.refused(server.url) == "network.cut"
        (length,) = bench.parts()
        assert 0 < length <= 700_000
        server.script = bench.ranges
        assert bench.fetch(server.url).read_bytes() == bench.content
        assert server.asked[-1].headers["range"] == f"bytes={length}-"
    assert bench.parts() == []


def test_a_cut_is_noticed_where_no_length_was_declared(bench: Bench) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    with raw_server(lambda _: [head + bench.content[:700_000]]) as server:
        assert bench.refused(server.url) == "network.cut"
        assert bench.parts() == [700_000]
        server.script = bench.ranges
        assert bench.fetch(server.url).read_bytes() == bench.content


def test_a_server_without_ranges_sends_everything_again(bench: Bench) -> None:
    with raw_server(lambda _: [bench.cut_after(700_000)]) as server:
        assert bench.refused(server.url) == "network.cut"
        server.script = lambda _: [answer(200, bench.content)]
        assert bench.fetch(server.url).read_bytes() == bench.content


def test_a_part_that_turns_out_wrong_is_fetched_anew_once(bench: Bench) -> None:
    with raw_server(lambda _: [bench.cut_after(700_000)]) as server:
        assert bench.refused(server.url) == "network.cut"
        for part in bench.folder.glob(".part-*"):
            part.write_bytes(b"\xff" * part.stat().st_size)  # as after a power cut
        server.script = bench.ranges
        assert bench.fetch(server.url).read_bytes() == bench.content
        assert ["range" in asked.headers for asked in server.asked] == [False, True, False]


def test_a_part_of_former_content_is_not_resumed(bench: Bench) -> None:
    with raw_server(lambda _: [bench.cut_after(700_000)]) as server:
        assert bench.refused(server.url) == "network.cut"
        newer = bench.content[::-1]
        bench.target = Target("a.bin", len(newer), {"sha256": Digest.of(newer).hex})
        server.script = lambda _: [answer(200, newer)]
        assert bench.fetch(server.url).read_bytes() == newer
        assert "range" not in server.asked[-1].headers
    assert bench.parts() == []


@pytest.mark.parametrize(
    "head",
    [
        answer(206, b"", Content_Range="bytes 0-9/10"),
        answer(206, b""),
        answer(500),
        answer(416),
    ],
)
def test_an_answer_to_another_question_is_refused(bench: Bench, head: bytes) -> None:
    with raw_server(lambda _: [bench.cut_after(700_000)]) as server:
        assert bench.refused(server.url) == "network.cut"
        server.script = lambda _: [head]
        assert bench.refused(server.url) == "cloud.unavailable"
        server.script = bench.ranges
        assert bench.fetch(server.url).read_bytes() == bench.content


def test_a_slow_server_is_given_up_and_what_came_is_kept(bench: Bench) -> None:
    def drip(_: Asked) -> Iterator[bytes]:
        yield bench.cut_after(100_000)
        for _number in range(1000):
            server.pause(0.05)
            yield b"x"

    with raw_server(drip) as server:
        assert bench.refused(server.url) == "network.too-slow"
    assert bench.parts()


def test_slow_metadata_is_given_up() -> None:
    def drip(_: Asked) -> Iterator[bytes]:
        yield answer(200, b"{", length=10_000)
        for _number in range(1000):
            server.pause(0.05)
            yield b" "

    with raw_server(drip) as server:
        remote = RemoteFolder(server.url, PATIENT)
        with pytest.raises(EdgeError) as caught:
            remote("timestamp.json", 16_000)
        remote.close()
    assert caught.value.code == "network.too-slow"


def test_redirections_are_followed_and_bounded(bench: Bench) -> None:
    with raw_server(bench.ranges) as target, raw_server(lambda _: []) as server:
        server.script = lambda _: [answer(302, Location=f"{target.url}/elsewhere?signed=1")]
        assert bench.fetch(server.url).read_bytes() == bench.content
        assert target.asked[0].path == "/elsewhere?signed=1"
        server.script = lambda _: [answer(302, Location="/again")]
        bench.folder.joinpath("a.bin").unlink()
        assert bench.refused(server.url) == "cloud.unavailable"


@pytest.mark.parametrize("status", [403, 404])
def test_a_file_that_is_not_there_has_its_code(bench: Bench, status: int) -> None:
    with raw_server(lambda _: [answer(status)]) as server:
        assert bench.refused(server.url) == "artifact.not-found"


def test_nothing_has_its_name_before_it_is_durable(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, durable.rename

    def noted_fsync(descriptor: int) -> None:
        done.append("sync")
        fsync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(durable, "rename", noted_rename)
    with raw_server(bench.ranges) as server:
        bench.fetch(server.url)
    assert done[-3:] == ["sync", "rename", "sync"], "content, name, folder"


# --- as a program ---


def test_the_program_ends_with_0_or_1(tmp_path: Path) -> None:
    repository = PlainRepository()
    repository.add("a.txt", b"content")
    repository.publish_all()
    (tmp_path / "root.json").write_bytes(repository.files["metadata/1.root.json"])
    with raw_server(repository.serve, keep_alive=True) as server:
        common = [sys.executable, "-P", "-m", "edge_agent.cli", "tuf", "--metadata-dir", str(tmp_path / "m")]
        online = [*common, "--metadata-url", f"{server.url}/metadata"]
        files = ["--target-base-url", f"{server.url}/targets", "--target-dir", str(tmp_path / "t")]

        def run(*arguments: str) -> tuple[int, str]:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
            return done.returncode, done.stdout + done.stderr

        assert run(*online, "refresh")[0] == 1
        assert run(*common, "init", str(tmp_path / "root.json")) == (0, f"root version 1 is trusted in {tmp_path}/m\n")
        assert run(*online, "refresh") == (0, "root 1, timestamp 2, snapshot 2, targets 2\n")
        assert run(*online, *files, "--target-name", "a.txt", "download") == (0, f"{tmp_path}/t/a.txt\n")
        code, text = run(*online, *files, "--target-name", "b.txt", "download")
        assert (code, "error: " in text, "trust.target-unknown" in text) == (1, True, True)
