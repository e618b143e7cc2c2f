"""Deltas of versions are made in order and within a budget, and one that fails stops no other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from cloud_registry.client import RegistryClient
from edge_contract.delta import read_delta_manifest
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import DELTAS_MAX
from edge_delta.decode import decode
from packager.commands.delta import build_before
from packager.delta import building, process
from packager.delta.building import Budget, Built, build_deltas, check_budget, common_bases, file_pairs
from packager.delta.encode import encode
from packager.delta.process import EncodedFile, EncodeRequest, Encoding, require_makes
from packager.progress import QuietReporter
from tests.support.net import wait_until
from tests.support.require import REPOSITORY_ROOT
from tests.unit.packager.weights import dense, trained, tuned

PLENTY = Budget(600.0, 1 << 30)
INDEX = b'{"schemaVersion": 2}'


class FakeRegistry:
    """Versions of one model in memory of a folder, and what the packager sends."""

    def __init__(self, versions: Mapping[int, Mapping[str, Path]]) -> None:
        self.files = versions
        self.blobs: dict[Digest, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.registered: list[Digest] = []
        self.downloaded: list[tuple[int, str]] = []
        self.listed: list[dict[str, Any]] = []
        self.held: list[dict[str, Any]] = []
        self.refuse: Callable[[], None] = lambda: None
        self.on_download: Callable[[], None] = lambda: None

    def client(self) -> RegistryClient:
        return cast(RegistryClient, self)

    def get_version(self, model: str, version: int) -> dict[str, Any]:
        del model
        files = [
            {"path": path, "digest": str(Digest.of(source.read_bytes())), "size": source.stat().st_size}
            for path, source in self.files[version].items()
        ]
        return {"version": version, "entry": files[0]["path"], "files": files}

    def deltas(self, model: str, version: int) -> list[dict[str, Any]]:
        del model, version
        return self.listed

    def bases(self, model: str, version: int, condition: str, module: str) -> dict[str, Any]:
        del model, version, condition, module
        return {"bases": self.held}

    def get_manifest(self, repository: str, reference: str) -> bytes:
        del repository, reference
        return INDEX

    def download(self, model: str, version: int, path: str, target: Path, progress: Any = None) -> None:
        del model
        self.downloaded.append((version, path))
        self.on_download()
        size = self.files[version][path].stat().st_size
        progress(size, size)
        shutil.copy(self.files[version][path], target)

    def upload_blob(self, repository: str, path: Path, digest: Digest, progress: Any = None) -> None:
        del repository, progress
        self.blobs[digest] = path.read_bytes()

    def upload_bytes(self, repository: str, data: bytes) -> None:
        del repository
        self.blobs[Digest.of(data)] = data

    def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> Digest:
        del repository, media_type
        self.manifests[reference] = data
        return Digest(reference)

    def register_delta(self, model: str, version: int, manifest: Digest) -> None:
        del model, version
        self.refuse()
        self.registered.append(manifest)


@pytest.fixture
def line(tmp_path: Path) -> FakeRegistry:
    """Three releases of a model of one file, each a little more trained."""
    weights = [trained(), tuned(trained()), tuned(trained(), seed=3)]
    names = ("first", "second", "third")
    files = [dense(tmp_path, f"{name}.onnx", matrix) for name, matrix in zip(names, weights, strict=True)]
    return FakeRegistry({number: {"model.onnx": file} for number, file in enumerate(files, 1)})


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def build(line: FakeRegistry, work: Path, bases: Sequence[int], budget: Budget = PLENTY, version: int = 3) -> Built:
    return build_deltas(line.client(), "m", version, bases, budget, work, QuietReporter())


def reasons(built: Built) -> list[str]:
    return [str(item["reason"]) for item in built.skipped]


def answered(monkeypatch: pytest.MonkeyPatch, *answers: int | EdgeError | None) -> list[EncodeRequest]:
    """Put an encoder in place that gives these lengths, none for time that is up, or raises; its requests."""
    asked: list[EncodeRequest] = []

    class Answered:
        def __init__(self, request: EncodeRequest) -> None:
            asked.append(request)
            self.request, self.number = request, len(asked)

        def wait(self, seconds_max: float) -> EncodedFile | None:
            assert seconds_max >= 0
            answer = answers[self.number - 1]
            if isinstance(answer, EdgeError):
                raise answer
            if answer is None:
                return None
            self.request.out.write_bytes(bytes([self.number]) * answer)
            return EncodedFile(answer, self.request.new.stat().st_size, 1_000, 0.1, {})

    monkeypatch.setattr(building, "Encoding", Answered)
    return asked


# -- which files, and from where


def _version(**files: tuple[str, int]) -> dict[str, Any]:
    return {
        "files": [
            {"path": path.replace("_", "."), "digest": str(Digest.of(content.encode())), "size": size}
            for path, (content, size) in files.items()
        ]
    }


def test_files_go_together_by_path() -> None:
    old = _version(a_onnx=("a1", 9_000), b_onnx=("b", 9_000), tiny_txt=("t1", 50))
    new = _version(a_onnx=("a2", 9_500), b_onnx=("b", 9_000), tiny_txt=("t2", 50))
    assert [(pair.base_path, pair.path, pair.base_bytes, pair.new_bytes) for pair in file_pairs(old, new)] == [
        ("a.onnx", "a.onnx", 9_000, 9_500)
    ]


def test_the_only_file_left_of_a_kind_is_a_renamed_one_and_two_are_not_guessed_at() -> None:
    old = _version(v1_onnx=("old", 9_000), other_tflite=("o", 9_000))
    (pair,) = file_pairs(old, _version(v2_onnx=("new", 9_000)))
    assert (pair.base_path, pair.path) == ("v1.onnx", "v2.onnx")
    assert not list(file_pairs(old, _version(v2_onnx=("new", 9_000), v3_onnx=("newer", 9_000))))


def test_the_base_that_most_devices_hold_comes_first_whatever_their_platforms() -> None:
    fleet = FakeRegistry({})
    fleet.held = [
        {"model": "m", "version": 2, "devices": 40},
        {"model": "m", "version": 1, "devices": 30},
        {"model": "m", "version": 1, "devices": 20},
        {"model": "elsewhere", "version": 7, "devices": 900},
        {"model": "m", "version": 3, "devices": 800},
    ]
    assert common_bases(fleet.client(), "m", 3, "*", "") == [1, 2]


# -- what is published


def test_a_delta_is_published_as_an_artifact_that_refers_to_the_bundle(line: FakeRegistry, work: Path) -> None:
    built = build(line, work, [1])
    (made,) = built.deltas
    (name,) = line.registered
    delta, subject = read_delta_manifest(line.manifests[str(name)])
    assert subject == Digest.of(INDEX)
    assert made["digest"] == str(delta.digest)
    assert delta.bytes < 0.6 * delta.new_bytes
    (work / "delta").write_bytes(line.blobs[delta.digest])
    with (
        line.files[1]["model.onnx"].open("rb") as base,
        (work / "delta").open("rb") as stream,
        (work / "out").open("w+b") as output,
    ):
        for _ in decode(base, stream, output, base_bytes=delta.base_bytes, new_bytes=delta.new_bytes):
            pass
    assert (work / "out").read_bytes() == line.files[3]["model.onnx"].read_bytes()
    assert Digest.of((work / "out").read_bytes()) == delta.new


def test_what_is_there_is_not_made_again(line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answered(monkeypatch, 900)
    line.listed = [build(line, work, [1]).deltas[0]]
    assert reasons(build(line, work, [1])) == ["there is one already"]
    assert len(asked) == 1


def test_two_versions_with_the_same_file_need_one_delta(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.files = {**line.files, 2: line.files[1]}
    answered(monkeypatch, 900)
    built = build(line, work, [1, 2])
    assert [item["base_version"] for item in built.deltas] == [1]
    assert reasons(built) == ["there is one already"]


def test_no_more_deltas_are_made_than_devices_are_told_of(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.listed = [{"base": f"base {number}", "new": "new"} for number in range(DELTAS_MAX - 1)]
    answered(monkeypatch, 900)
    built = build(line, work, [1, 2])
    assert [item["base_version"] for item in built.deltas] == [1]
    assert f"{DELTAS_MAX} deltas" in reasons(built)[0]


# -- the budget


def test_what_comes_first_gets_the_time(line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, 900, None)
    built = build(line, work, [2, 1])
    assert [item["base_version"] for item in built.deltas] == [2]
    assert reasons(built) == ["the budget is spent"]


def test_without_time_nothing_is_downloaded(line: FakeRegistry, work: Path) -> None:
    assert reasons(build(line, work, [1, 2], Budget(0.0, 1 << 30))) == ["the budget is spent"] * 2
    assert line.downloaded == []


def test_a_delta_over_the_budget_of_bytes_is_not_published_and_a_smaller_one_may_be(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(monkeypatch, 1_500, 900)
    built = build(line, work, [1, 2], Budget(600.0, 1_000))
    assert [item["base_version"] for item in built.deltas] == [2]
    assert reasons(built) == ["1500 bytes are more than the budget has left"]
    assert built.bytes == 900


def test_time_that_is_up_ends_a_download_too(line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answered(monkeypatch)
    later = time.monotonic() + 10_000
    line.on_download = lambda: monkeypatch.setattr("packager.delta.building.time.monotonic", lambda: later)
    assert reasons(build(line, work, [1, 2])) == ["the budget is spent", "the budget is spent"]
    assert asked == []
    assert line.downloaded == [(1, "model.onnx")]
    assert not list(work.glob("*.delta"))


def test_a_delta_that_saves_next_to_nothing_is_not_published(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = line.files[3]["model.onnx"].stat().st_size
    answered(monkeypatch, size - 10)
    assert reasons(build(line, work, [1])) == [f"it would save nothing: {size - 10} bytes"]
    assert line.registered == []


@pytest.mark.parametrize("budget", [(-1.0, 0, 1), (float("nan"), 0, 1), (0.0, -1, 1), (0.0, 0, 0), (0.0, 0, 65)])
def test_a_budget_out_of_bounds_is_refused(budget: tuple[float, int, int]) -> None:
    with pytest.raises(EdgeError) as caught:
        check_budget(*budget)
    assert caught.value.code == "config.invalid"


# -- several at once


class Waiting:
    """An encoder that tells when it begins, is waited for, and is ended."""

    def __init__(self, log: list[str], answers: Mapping[str, int | None], request: EncodeRequest) -> None:
        self.log, self.answers, self.request = log, answers, request
        self.name = request.base.name[:4]
        log.append(f"begin {self.name}")

    def wait(self, seconds_max: float) -> EncodedFile | None:
        del seconds_max
        self.log.append(f"wait {self.name}")
        size = self.answers.get(self.name, 900)
        if size is None:
            return None
        self.request.out.write_bytes(self.name.encode().ljust(size))
        return EncodedFile(size, self.request.new.stat().st_size, 1_000, 0.1, {})

    def end(self) -> None:
        self.log.append(f"end {self.name}")


def waiting(monkeypatch: pytest.MonkeyPatch, answers: Mapping[str, int | None] | None = None) -> list[str]:
    log: list[str] = []
    monkeypatch.setattr(building, "Encoding", lambda request: Waiting(log, answers or {}, request))
    return log


def names(line: FakeRegistry) -> tuple[str, str]:
    first, second = (Digest.of(line.files[number]["model.onnx"].read_bytes()).hex[:4] for number in (1, 2))
    return first, second


def test_as_many_are_encoded_at_once_as_asked_for_and_published_in_their_order(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = waiting(monkeypatch)
    first, second = names(line)
    built = build(line, work, [1, 2], Budget(600.0, 1 << 30, jobs=2))
    assert log == [f"begin {first}", f"begin {second}", f"wait {first}", f"wait {second}"]
    assert [item["base_version"] for item in built.deltas] == [1, 2]
    assert not list(work.glob("*.delta"))
    log.clear()
    build(line, work, [1, 2])
    assert log == [f"begin {first}", f"wait {first}", f"begin {second}", f"wait {second}"]


def test_a_pair_that_is_under_way_is_waited_for_and_not_made_twice(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.files = {**line.files, 2: line.files[1]}
    log = waiting(monkeypatch)
    built = build(line, work, [1, 2], Budget(600.0, 1 << 30, jobs=8))
    assert len(log) == 2
    assert reasons(built) == ["there is one already"]


def test_the_last_place_goes_to_the_next_pair_when_the_one_before_made_nothing(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.listed = [{"base": f"base {number}", "new": "new"} for number in range(DELTAS_MAX - 1)]
    waiting(monkeypatch, {names(line)[0]: None})
    built = build(line, work, [1, 2], Budget(600.0, 1 << 30, jobs=8))
    assert [item["base_version"] for item in built.deltas] == [2]


def test_when_the_registry_goes_away_nothing_goes_on_encoding(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = waiting(monkeypatch)

    def refuse() -> None:
        raise EdgeError("network.unreachable", "the registry is gone")

    line.refuse = refuse
    with pytest.raises(EdgeError, match="gone"):
        build(line, work, [1, 2], Budget(600.0, 1 << 30, jobs=2))
    assert log[-1] == f"end {names(line)[1]}"
    assert not list(work.glob("*.delta"))


def test_an_encoder_that_is_ended_leaves_nothing(line: FakeRegistry, work: Path) -> None:
    base, new = line.files[1]["model.onnx"], line.files[3]["model.onnx"]
    encoding = Encoding(EncodeRequest(base, new, work / "out"))
    encoding.end()
    encoding.end()
    assert not (work / "out").exists()


# -- trouble


def test_a_pair_that_fails_is_told_and_the_next_one_is_made(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(monkeypatch, EdgeError("internal.bug", "the encoder was killed"), 900)
    built = build(line, work, [1, 2])
    assert [item["base_version"] for item in built.deltas] == [2]
    assert reasons(built) == ["the encoder was killed [internal.bug]"]
    assert not list(work.glob("*.delta"))


def test_a_registry_that_goes_away_ends_it_and_what_was_made_is_still_told(
    line: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(monkeypatch, 900, 900)
    line.held = [{"model": "m", "version": 1, "devices": 2}, {"model": "m", "version": 2, "devices": 1}]

    def refuse() -> None:
        if line.registered:
            raise EdgeError("network.unreachable", "the registry is gone")

    line.refuse = refuse
    options = {"budget_s": 600.0, "budget_bytes": 1 << 30, "jobs": 1, "module": ""}
    result = build_before(line.client(), "m", 3, "*", options, QuietReporter())
    assert [item["base_version"] for item in result["deltas"]] == [1]
    assert result["error"]["code"] == "network.unreachable"


def test_a_version_without_a_bundle_has_no_deltas_and_that_is_told(line: FakeRegistry, work: Path) -> None:
    def refuse(repository: str, reference: str) -> bytes:
        raise EdgeError("artifact.not-found", f"{repository} has no manifest {reference}")

    line.get_manifest = refuse  # type: ignore[method-assign]
    assert build(line, work, []).to_json() == {"deltas": [], "skipped": [], "bytes": 0}
    with pytest.raises(EdgeError) as caught:
        build(line, work, [1])
    assert caught.value.code == "artifact.not-found"
    assert "packager push" in caught.value.hint


# -- files that are kept


def test_a_kept_folder_saves_the_downloads(line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, 900, 900)
    build(line, work, [1])
    build(line, work, [2])
    assert line.downloaded == [(1, "model.onnx"), (3, "model.onnx"), (2, "model.onnx")]


def test_a_kept_file_that_was_damaged_is_downloaded_again(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answered(monkeypatch, 900, 900)
    build(line, work, [1])
    asked[0].base.write_bytes(b"damaged")
    build(line, work, [1])
    assert line.downloaded[2:] == [(1, "model.onnx")]
    assert asked[1].base.read_bytes() == line.files[1]["model.onnx"].read_bytes()


# -- external data


def _apart(folder: Path, matrix: Any) -> dict[str, Path]:
    """A model of two ONNX files; the second keeps its weights in a file below its folder."""
    folder.mkdir()
    entry = dense(folder, "entry.onnx", np.ones((2, 2), np.float32))
    model = onnx.load(dense(folder, "graph.onnx", matrix))
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    (folder / "part.bin").write_bytes(bytes(64) + data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "data/part.bin"), ("offset", "64"), ("length", str(len(data)))):
        item = tensor.external_data.add()
        item.key, item.value = key, value
    (folder / "graph.onnx").write_bytes(model.SerializeToString())
    return {"entry.onnx": entry, "net/graph.onnx": folder / "graph.onnx", "net/data/part.bin": folder / "part.bin"}


def test_external_data_get_their_tensors_from_the_onnx_file_that_names_them(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = FakeRegistry({1: _apart(tmp_path / "1", trained()), 2: _apart(tmp_path / "2", tuned(trained()))})
    built = build(registry, work, [1], version=2)
    (made,) = [item for item in built.deltas if item["path"] == "net/data/part.bin"]
    assert made["ratio"] < 0.6
    # As plain bytes it is longer.
    monkeypatch.setattr(building, "read_external", lambda path: {})
    plain = build(registry, work, [1], version=2)
    (longer,) = [item for item in plain.deltas if item["path"] == "net/data/part.bin"]
    assert made["bytes"] < 0.9 * longer["bytes"]


# -- the process


def test_time_that_is_up_ends_the_encoder_and_leaves_no_delta(line: FakeRegistry, work: Path) -> None:
    base, new = line.files[1]["model.onnx"], line.files[3]["model.onnx"]
    assert Encoding(EncodeRequest(base, new, work / "out")).wait(0.001) is None
    assert not (work / "out").exists()


def test_an_encoder_ends_with_the_packager_however_that_ends(work: Path) -> None:
    endless = work / "modules" / "numpy"
    endless.mkdir(parents=True)
    (endless / "__init__.py").write_text("import threading\nthreading.Event().wait()\n")
    (work / "base").write_bytes(bytes(10))
    program = f"""
import threading
from pathlib import Path
from packager.delta.process import EncodeRequest, Encoding
folder = Path({str(work)!r})
encoding = Encoding(EncodeRequest(folder / "base", folder / "base", folder / "out"))
(folder / "pid.partial").write_text(str(encoding._process.pid))
(folder / "pid.partial").rename(folder / "pid")
threading.Event().wait()
"""
    environment = os.environ | {"PYTHONPATH": str(endless.parent)}
    packager = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY_ROOT, env=environment)
    try:
        wait_until((work / "pid").is_file, 30)
    finally:
        packager.kill()
        packager.wait()
    pid = int((work / "pid").read_text(encoding="ascii"))
    wait_until(lambda: not _is_running(pid), 20, what="the end of the encoder")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_the_encoder_refuses_comes_back_with_its_code(line: FakeRegistry, work: Path) -> None:
    (work / "empty").touch()
    with pytest.raises(EdgeError) as caught:
        Encoding(EncodeRequest(line.files[1]["model.onnx"], work / "empty", work / "out")).wait()
    assert caught.value.code == "config.invalid"
    assert "empty" in caught.value.detail


def test_a_delta_that_makes_another_file_is_not_given_away(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, new, other = (line.files[number]["model.onnx"] for number in (1, 3, 2))
    right = work / "right"
    encode(base, new, right)
    require_makes(base, new, right)
    monkeypatch.setattr("packager.delta.encode.encode", lambda *_, **__: encode(base, other, work / "out"))
    asked = {"base": str(base), "new": str(new), "out": str(work / "out"), "base_onnx": None, "new_onnx": None}
    with pytest.raises(EdgeError, match="does not make") as caught:
        process._run(asked)
    assert caught.value.code == "internal.bug"
    assert not (work / "out").exists()
    right.write_bytes(right.read_bytes()[:-10])
    with pytest.raises(EdgeError, match="does not make"):
        require_makes(base, new, right)


def test_an_encoder_that_dies_is_told_with_its_last_words(
    line: FakeRegistry, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = work / "modules" / "numpy"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise MemoryError('no memory left')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    with pytest.raises(EdgeError) as caught:
        Encoding(EncodeRequest(line.files[1]["model.onnx"], line.files[3]["model.onnx"], work / "out")).wait()
    assert caught.value.code == "internal.bug"
    assert "no memory left" in caught.value.detail
