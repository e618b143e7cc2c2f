"""Small files become large ones, and every record stays visible exactly once throughout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cloud_registry.adapters.lake import LockedLake, ParquetLake
from cloud_registry.collect.tend import compact, files_to_merge
from cloud_registry.limits import COMPACT_BYTES_MAX, COMPACT_FILES_MAX, COMPACT_FILES_MIN, ORPHAN_GRACE_MS
from cloud_registry.ports import LakeFile, ReportMessage, ReportVerdict, Watermark
from edge_contract.errors import EdgeError
from tests.unit.cloud_telemetry.making import T0_MS, Catalogue, rows


class Fleet(Catalogue):
    """A catalogue that can be exchanged."""

    error: EdgeError | None = None

    def replace_files(self, old: Sequence[str], new: Sequence[LakeFile]) -> None:
        if self.error is not None:
            raise self.error
        assert set(old) <= {file.path for file in self.files}
        self.files = [file for file in self.files if file.path not in set(old)] + list(new)

    def take_reports(self, device: str, messages: Sequence[ReportMessage]) -> Sequence[ReportVerdict]:
        raise AssertionError(f"not asked for {messages} of {device}")

    def watermark(self, device: str, boot: str) -> int | None:
        raise AssertionError(f"not asked for {device} {boot}")

    def commit_batch(self, marks: Sequence[Watermark], file: LakeFile) -> None:
        raise AssertionError(f"not asked for {marks} {file}")


def file(name: str, size: int = 1_000, day: str = "2026-11-22") -> LakeFile:
    return LakeFile(f"received_date={day}/{name}.parquet", 1, size, 0, 0)


def test_few_files_and_large_files_are_left_alone() -> None:
    assert files_to_merge([]) == []
    assert files_to_merge([file(str(n)) for n in range(COMPACT_FILES_MIN - 1)]) == []
    assert files_to_merge([file(str(n), COMPACT_BYTES_MAX // 2) for n in range(COMPACT_FILES_MIN * 2)]) == []


def test_files_of_one_day_are_merged_the_oldest_first() -> None:
    days = ("2026-11-21", "2026-11-22")
    catalogue = [file(f"{n}", day=day) for n in range(COMPACT_FILES_MIN) for day in reversed(days)]
    chosen = files_to_merge(catalogue)
    assert {item.path.partition("/")[0] for item in chosen} == {"received_date=2026-11-21"}
    assert len(chosen) == COMPACT_FILES_MIN


def test_one_merge_is_bounded_in_files_and_bytes() -> None:
    assert len(files_to_merge([file(str(n)) for n in range(2 * COMPACT_FILES_MAX)])) == COMPACT_FILES_MAX
    size = COMPACT_BYTES_MAX // COMPACT_FILES_MIN - 1
    chosen = files_to_merge([file(str(n), size) for n in range(200)])
    assert len(chosen) >= COMPACT_FILES_MIN
    assert sum(item.size for item in chosen) <= COMPACT_BYTES_MAX


def seen(tmp_path: Path, fleet: Fleet) -> list[list[object]]:
    paths = [str(tmp_path / item.path) for item in fleet.files]
    found: list[list[object]] = LockedLake(paths, None).run("SELECT seq FROM telemetry ORDER BY seq", 1_000)["rows"]
    return found


@pytest.mark.parametrize("code", ["", "cloud.conflict", "cloud.unavailable"])
def test_records_are_seen_once_before_and_after_a_merge_that_worked_or_did_not(tmp_path: Path, code: str) -> None:
    now = [T0_MS]
    lake = ParquetLake(tmp_path, lambda: now[0])
    fleet = Fleet([lake.write(rows("dev", [n])) for n in range(COMPACT_FILES_MIN)])
    before = seen(tmp_path, fleet)
    if code:
        fleet.error = EdgeError(code, "as told")
    if code == "cloud.unavailable":
        with pytest.raises(EdgeError, match="as told"):
            compact(fleet, lake, fleet.lake_files())
    else:
        assert compact(fleet, lake, fleet.lake_files()) == (0 if code else COMPACT_FILES_MIN)
    assert len(fleet.files) == (COMPACT_FILES_MIN if code else 1)
    assert seen(tmp_path, fleet) == before == [[n] for n in range(COMPACT_FILES_MIN)]
    # The sweep takes what is no longer named, after its grace, and nothing else.
    now[0] += ORPHAN_GRACE_MS
    assert lake.sweep(fleet.lake_files) == {"": COMPACT_FILES_MIN, "cloud.conflict": 1, "cloud.unavailable": 0}[code]
    assert seen(tmp_path, fleet) == before
    lake.close()
