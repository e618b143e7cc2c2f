"""The lake: what is written is what is read, files are whole or absent, and only true orphans are swept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_registry.adapters.lake import LockedLake, ParquetLake
from cloud_registry.limits import ORPHAN_GRACE_MS
from cloud_registry.ports import LakeFile, LakeRow
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from tests.support.net import wait_until
from tests.support.processes import start_process
from tests.support.require import require_root
from tests.unit.cloud_telemetry.making import BOOT, T0_MS, rows, sample


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.ms = 0

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lake(tmp_path: Path, clock: Clock) -> Iterator[ParquetLake]:
    made = ParquetLake(tmp_path / "lake", clock)
    yield made
    made.close()


def read(tmp_path: Path, *files: LakeFile, sql: str = "SELECT * FROM telemetry") -> list[list[object]]:
    """What a query over these files gives."""
    paths = [str(tmp_path / "lake" / file.path) for file in files]
    found: list[list[object]] = LockedLake(paths, None).run(sql, 1000)["rows"]
    return found


def test_a_file_holds_every_column_of_every_row(tmp_path: Path, lake: ParquetLake) -> None:
    digest = Digest("sha256:" + "ab" * 32)
    row = LakeRow("dev-1", BOOT, T0_MS, sample(7, manifest=digest, version=3, body={"b": 1, "a": [None, "é🙂"]}))
    file = lake.write([row])
    assert file.path.startswith("received_date=2026-11-18/")
    assert (file.rows, file.received_ms_min, file.received_ms_max) == (1, T0_MS, T0_MS)
    assert file.size == (tmp_path / "lake" / file.path).stat().st_size
    assert read(tmp_path, file) == [
        [
            "dev-1",
            BOOT,
            7,
            "prediction",
            "digits",
            "digits",
            3,
            str(digest),
            T0_MS + 7,
            T0_MS,
            '{"a":[null,"é🙂"],"b":1}',
        ]
    ]


@pytest.mark.parametrize(
    "text", ["a\x00b", "'; DROP TABLE x; --", '"\\', "\u2028\n\r\t", "\U0001f6a2" * 16, "{}", "null", "a,b\nc"]
)
def test_text_of_any_kind_comes_back_as_it_went(tmp_path: Path, lake: ParquetLake, text: str) -> None:
    file = lake.write([LakeRow("dev", text[:32], T0_MS, sample(1, model=text, body={text: text}))])
    found = read(tmp_path, file, sql="SELECT boot, model, body FROM telemetry")
    assert found[0][:2] == [text[:32], text]
    values = read(tmp_path, file, sql="SELECT json_extract_string(body, '$.*')[1] FROM telemetry")
    assert values == [[text]]


def test_the_largest_numbers_and_bodies_fit(tmp_path: Path, lake: ParquetLake) -> None:
    largest = 2**53 - 1
    wide = sample(largest, version=largest, taken_ms=largest, body={"k": '"' * 32_000, "n": 10**300})
    file = lake.write([LakeRow("dev", BOOT, T0_MS, wide)])
    assert read(tmp_path, file, sql="SELECT seq, version, taken_ms, length(body) > 64000 FROM telemetry") == [
        [largest, largest, largest, True]
    ]


def test_predictions_have_their_parts_as_columns(tmp_path: Path, lake: ParquetLake) -> None:
    file = lake.write([*rows("dev", [1, 2]), LakeRow("dev", BOOT, T0_MS, sample(3, kind="event", body={"what": "x"}))])
    found = read(
        tmp_path, file, sql="SELECT seq, inputs, outputs, latency_us, request_id FROM predictions ORDER BY seq"
    )
    assert found == [[1, '{"x":[1]}', '{"y":[1]}', 121, "r1"], [2, '{"x":[2]}', '{"y":[2]}', 122, "r2"]]


def test_a_prediction_without_the_usual_parts_does_not_break_the_view(tmp_path: Path, lake: ParquetLake) -> None:
    file = lake.write([LakeRow("dev", BOOT, T0_MS, sample(1, body={"latency_us": "slow"}))])
    assert read(tmp_path, file, sql="SELECT inputs, latency_us, request_id FROM predictions") == [[None, None, None]]


def test_merged_files_hold_all_the_records_once(tmp_path: Path, lake: ParquetLake) -> None:
    files = [lake.write(rows("dev", [n], received_ms=T0_MS + n)) for n in range(1, 6)]
    merged = lake.merge(files)
    assert (merged.rows, merged.received_ms_min, merged.received_ms_max) == (5, T0_MS + 1, T0_MS + 5)
    assert read(tmp_path, merged, sql="SELECT seq FROM telemetry ORDER BY seq") == [[n] for n in range(1, 6)]


def test_what_fails_leaves_no_half_file_and_the_next_one_works(
    tmp_path: Path, lake: ParquetLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EdgeError) as caught:
            lake.write(rows("dev", [1]))
    assert caught.value.code == "device.disk-full"
    assert [path.suffix for path in (tmp_path / "lake").rglob("*") if path.is_file()] == [".lock"]
    assert read(tmp_path, lake.write(rows("dev", [1])), sql="SELECT count(*) FROM telemetry") == [[1]]


def test_a_really_full_disk_says_so_and_recovers(tmp_path: Path) -> None:
    require_root("mounting a small file system")
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "lighterman-test", mount], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
    try:
        ballast = mount / "ballast"
        lake = ParquetLake(mount / "lake", lambda: T0_MS)
        ballast.write_bytes(bytes(500_000))
        many = rows("dev", range(1, 3_000))
        with pytest.raises(EdgeError) as caught:
            lake.write(many)
        assert caught.value.code == "device.disk-full"
        ballast.unlink()
        assert lake.write(many[:100]).rows == 100
        lake.close()
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_query_sees_exactly_the_files_it_is_given(tmp_path: Path, lake: ParquetLake) -> None:
    named = lake.write(rows("dev", [1]))
    lake.write(rows("dev", [2]))
    assert read(tmp_path, named, sql="SELECT seq FROM telemetry") == [[1]]
    assert read(tmp_path, sql="SELECT count(*) FROM telemetry") == [[0]]


# --- Orphans ---


def age(tmp_path: Path, file: LakeFile, clock: Clock) -> None:
    """Let the grace of a file pass."""
    clock.ms = int((tmp_path / "lake" / file.path).stat().st_mtime * 1000) + ORPHAN_GRACE_MS + 1


def test_an_orphan_of_a_dead_writer_is_swept_after_its_grace(tmp_path: Path, lake: ParquetLake, clock: Clock) -> None:
    dead = ParquetLake(tmp_path / "lake", clock)
    kept, orphan = dead.write(rows("dev", [1])), dead.write(rows("dev", [2]))
    dead.close()
    assert lake.sweep(lambda: [kept]) == 0
    age(tmp_path, orphan, clock)
    assert lake.sweep(lambda: [kept]) == 1
    assert (tmp_path / "lake" / kept.path).exists()
    assert not (tmp_path / "lake" / orphan.path).exists()


def test_a_file_that_a_living_writer_may_still_enter_is_left_alone(
    tmp_path: Path, lake: ParquetLake, clock: Clock
) -> None:
    other = ParquetLake(tmp_path / "lake", clock)
    waiting = other.write(rows("dev", [1]))
    age(tmp_path, waiting, clock)
    assert lake.sweep(list) == 0
    other.close()
    assert lake.sweep(list) == 1


def test_a_file_entered_just_before_its_writer_ended_is_left_alone(
    tmp_path: Path, lake: ParquetLake, clock: Clock
) -> None:
    dead = ParquetLake(tmp_path / "lake", clock)
    file = dead.write(rows("dev", [1]))
    dead.close()
    age(tmp_path, file, clock)
    answers = iter([[], [file]])
    assert lake.sweep(lambda: next(answers)) == 0
    assert (tmp_path / "lake" / file.path).exists()


def test_retired_files_go_after_their_grace_though_their_writer_lives(
    tmp_path: Path, lake: ParquetLake, clock: Clock
) -> None:
    file = lake.write(rows("dev", [1]))
    age(tmp_path, file, clock)
    assert lake.sweep(list) == 0
    lake.retire([file])
    assert lake.sweep(list) == 0
    clock.ms += ORPHAN_GRACE_MS
    assert lake.sweep(lambda: [file]) == 0
    assert lake.sweep(list) == 1


def test_what_a_killed_writer_left_in_staging_is_swept(tmp_path: Path, lake: ParquetLake) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cloud_registry.adapters.lake import ParquetLake\n"
        "lake = ParquetLake(Path(sys.argv[1]), lambda: 0)\n"
        "lake._staged('ndjson').write_bytes(b'half'); print('ready', flush=True); time.sleep(60)"
    )
    child = start_process([sys.executable, "-c", code, tmp_path / "lake"], log_path=tmp_path / "log", env=None)
    try:
        wait_until(lambda: "ready" in child.output(), 20, what="the writer to start")
        assert lake.sweep(list) == 0
        assert len(list((tmp_path / "lake" / "staging").iterdir())) == 3
        child.kill()
    finally:
        child.stop()
    lake.sweep(list)
    assert [path.name for path in (tmp_path / "lake" / "staging").iterdir()] == [lake._staged("lock").name]


def test_files_that_are_not_the_lakes_own_are_never_touched(tmp_path: Path, lake: ParquetLake, clock: Clock) -> None:
    folder = tmp_path / "lake" / "received_date=2026-01-01"
    folder.mkdir()
    for name in ("notes.txt", "mine.parquet"):
        (folder / name).write_bytes(b"x")
    clock.ms = 2**50
    assert lake.sweep(list) == 0
    assert len(list(folder.iterdir())) == 2
