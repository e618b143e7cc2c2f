"""The parts of the harness that decide what counts: reading strace's words, and the disk that forgets."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.calls import Call, points_of, read_calls
from tests.crash.disk import ForgetfulDisk, Loss, Shelf, contents, fingerprint, tree_of

LOG = r"""
7 openat(AT_FDCWD</home>, "/d/a", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 3</d/a>
7 write(3</d/a>, "x\0\"\377y", 5 <unfinished ...>
8 openat(AT_FDCWD</home>, "/d/a", O_RDONLY|O_CLOEXEC) = 4</d/a>
8 write(2</dev/null>, "elsewhere", 9) = 9
7 <... write resumed>)              = 5
7 fsync(3</d/a>)                    = 0
7 rename("/d/a", "/d/b")            = -1 ENOSPC (No space left on device) (INJECTED)
8 unlinkat(5</d/sub>, "old", 0)     = 0
8 unlink("/d/b" <unfinished ...>
7 +++ killed by SIGKILL +++
"""


def calls_of(log: str, tmp_path: Path) -> list[Call]:
    file = tmp_path / "log"
    file.write_text(log.lstrip(), encoding="latin-1")
    return read_calls(file, Path("/d"))


def test_calls_below_the_folder_are_read_whole_and_in_order(tmp_path: Path) -> None:
    calls = calls_of(LOG, tmp_path)
    assert [(call.thread, call.name, call.paths) for call in calls] == [
        (7, "openat", ("a",)),
        (8, "openat", ("a",)),
        (7, "write", ("a",)),
        (7, "fsync", ("a",)),
        (7, "rename", ("a", "b")),
        (8, "unlinkat", ("sub/old",)),
        (8, "unlink", ("b",)),
    ]
    assert calls[2].data == b'x\0"\xffy'
    assert [call.is_changing for call in calls] == [True, False, True, True, True, True, True]
    assert [call.is_injected for call in calls] == [False, False, False, False, True, False, False]
    assert [call.result for call in calls[-3:]] == [-1, 0, None]


def test_points_are_counted_as_strace_counts_them(tmp_path: Path) -> None:
    points = {(point.call, point.path, point.number) for point in points_of(calls_of(LOG, tmp_path))}
    assert points == {
        ("openat", "a", 1), ("write", "a", 1), ("fsync", "a", 1), ("rename", "a", 1), ("unlinkat", "sub", 1),
    }  # fmt: skip


def test_a_string_that_strace_cut_short_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="larger -s"):
        calls_of('7 write(3</d/a>, "xx"..., 5) = 5\n', tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> ForgetfulDisk:
    source = tmp_path / "base"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "old").write_bytes(b"old")
    return ForgetfulDisk(source)


def left(disk: ForgetfulDisk, loss: Loss) -> dict[str, bytes | None]:
    found = contents(disk.after(loss, random.Random(1)))
    return {path: data for path, data in found.items() if path != "sub"}


def run(disk: ForgetfulDisk, tmp_path: Path, log: str) -> None:
    for call in calls_of(log, tmp_path):
        disk.apply(call)


def test_what_was_not_synced_is_lost_as_told(disk: ForgetfulDisk, tmp_path: Path) -> None:
    run(
        disk,
        tmp_path,
        '7 openat(AT_FDCWD</>, "/d/a", O_WRONLY|O_CREAT, 0600) = 3</d/a>\n7 write(3</d/a>, "xy", 2) = 2\n',
    )
    old = {"sub/old": b"old"}
    assert left(disk, Loss.ALL) == left(disk, Loss.NAMES) == old
    assert left(disk, Loss.DATA) == {**old, "a": b""}
    assert left(disk, Loss.NOTHING) == {**old, "a": b"xy"}
    run(disk, tmp_path, "7 fsync(3</d/a>) = 0\n")
    assert left(disk, Loss.ALL) == old
    assert left(disk, Loss.DATA) == {**old, "a": b"xy"}
    run(disk, tmp_path, "7 fsync(4</d>) = 0\n")
    assert left(disk, Loss.ALL) == {**old, "a": b"xy"}


def test_a_rename_without_a_sync_of_its_folder_may_not_have_happened(disk: ForgetfulDisk, tmp_path: Path) -> None:
    run(disk, tmp_path, '7 rename("/d/sub/old", "/d/new") = 0\n')
    assert left(disk, Loss.ALL) == {"sub/old": b"old"}
    assert left(disk, Loss.NOTHING) == {"new": b"old"}
    run(disk, tmp_path, "7 fsync(4</d>) = 0\n")
    assert left(disk, Loss.ALL) == {"sub/old": b"old", "new": b"old"}
    run(disk, tmp_path, "7 fsync(4</d/sub>) = 0\n")
    assert left(disk, Loss.ALL) == {"new": b"old"}


def test_bytes_that_were_synced_are_never_lost(disk: ForgetfulDisk, tmp_path: Path) -> None:
    run(disk, tmp_path, '7 write(3</d/sub/old>, "+more", 5) = 5\n')
    for seed in range(50):
        for loss in Loss:
            data = contents(disk.after(loss, random.Random(seed)))["sub/old"]
            assert data is not None
            assert b"old+more".startswith(data.rstrip(b"\0"))
            assert len(data) >= 3


def test_a_call_that_failed_changed_nothing(disk: ForgetfulDisk, tmp_path: Path) -> None:
    run(disk, tmp_path, '7 unlink("/d/sub/old") = -1 EIO (Input/output error) (INJECTED)\n')
    assert left(disk, Loss.NOTHING) == {"sub/old": b"old"}


def test_a_tree_is_written_as_it_is_with_its_hard_links(disk: ForgetfulDisk, tmp_path: Path) -> None:
    run(disk, tmp_path, '7 link("/d/sub/old", "/d/again") = 0\n')
    tree = disk.after(Loss.NOTHING, random.Random(0))
    Shelf(tmp_path / "shelf").put(tree, tmp_path / "made")
    assert fingerprint(tree_of(tmp_path / "made")) == fingerprint(tree)
    assert (tmp_path / "made" / "again").samefile(tmp_path / "made" / "sub" / "old")
