"""The process that decodes: what it may do, how it ends, and what the agent makes of that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.delta.frames import HEAD, Frame, FrameReader, Kind
from edge_agent.delta.limits import STATE_BYTES_MAX
from edge_agent.delta.process import ChildDecoding, Work
from edge_contract.errors import ContractError, EdgeError
from tests.support.fakedecoder import COMMAND, STEP, fake_delta
from tests.support.net import wait_until
from tests.support.require import REPOSITORY_ROOT, require_program

BASE = b"base" * 100
NEW = bytes(range(250)) * 20  # five steps


def never() -> bool:
    return False


class Bench:
    """Files for one decoding."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"
        self.points: list[tuple[int, int, bytes]] = []
        self._folder = folder

    def decode(
        self,
        stop: int = -1,
        how: str = "",
        is_cancelled: Callable[[], bool] = never,
        stall_ms: int = 20_000,
        state: bytes = b"",
    ) -> None:
        """Run one."""
        delta, data = fake_delta(BASE, NEW, stop, how)
        for name, content in (("base", BASE), ("delta", data)):
            (self._folder / name).write_bytes(content)
        self.output.write_bytes(NEW[: int(state or b"0")])
        with (
            (self._folder / "base").open("rb") as base,
            (self._folder / "delta").open("rb") as source,
            self.output.open("r+b") as output,
        ):
            work = Work(delta, base.fileno(), source.fileno(), output.fileno(), state)
            ChildDecoding(COMMAND, stall_ms)(work, lambda *point: self.points.append(point), is_cancelled)

    def code(self, stop: int, how: str, **more: object) -> str:
        """The code of the error that it ends with."""
        with pytest.raises(EdgeError) as caught:
            self.decode(stop, how, **more)  # type: ignore[arg-type]
        return caught.value.code


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def children() -> set[int]:
    """Processes of ours that have not been waited for."""
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(pid) for pid in task.read_text(encoding="ascii").split()}


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """No test leaves a process behind, whatever the decoder did."""
    before = children()
    yield
    assert children() <= before


def test_what_it_makes_is_in_the_file_and_every_checkpoint_is_told(bench: Bench) -> None:
    bench.decode()
    assert bench.output.read_bytes() == NEW
    assert [place for place, _, _ in bench.points] == [STEP, 2 * STEP, 3 * STEP, 4 * STEP]
    assert [verified for _, verified, _ in bench.points] == [0, 2 * STEP, 2 * STEP, 4 * STEP]


def test_it_goes_on_from_a_checkpoint(bench: Bench) -> None:
    bench.decode(state=b"3000")
    assert bench.output.read_bytes() == NEW
    assert [place for place, _, _ in bench.points] == [4 * STEP]


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("invalid", "artifact.delta-invalid"),
        ("exit", "internal.bug"),
        ("kill", "device.memory-short"),
        ("spin", "device.step-overdue"),
        ("memory", "device.memory-short"),
        ("garbage", "internal.bug"),
        ("long", "artifact.delta-invalid"),
    ],
)
def test_however_it_ends_there_is_a_code_for_it(bench: Bench, how: str, code: str) -> None:
    assert bench.code(2 * STEP, how) == code
    assert [place for place, _, _ in bench.points][:2] == [STEP, 2 * STEP]


@pytest.mark.parametrize("how", ["file", "socket"])
def test_it_can_open_nothing(bench: Bench, how: str) -> None:
    """Too many open files, because three are all it may have."""
    with pytest.raises(EdgeError, match="Too many open files"):
        bench.decode(STEP, how)


def test_what_a_library_prints_is_no_frame(bench: Bench) -> None:
    bench.decode(STEP, "print")
    assert bench.output.read_bytes() == NEW


def test_one_that_comes_to_nothing_is_given_up(bench: Bench) -> None:
    assert bench.code(STEP, "hang", stall_ms=1_500) == "device.step-overdue"


def test_one_that_is_not_wanted_any_more_ends_at_once(bench: Bench) -> None:
    began = time.monotonic()
    assert bench.code(2 * STEP, "hang", is_cancelled=lambda: bool(bench.points)) == "network.cut"
    assert time.monotonic() - began < 10


def test_it_ends_with_its_agent(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from edge_agent.delta.process import ChildDecoding, Work
from tests.support.fakedecoder import COMMAND, fake_delta
delta, data = fake_delta({BASE!r}, {NEW!r}, 2000, "busy")
folder = Path({str(tmp_path)!r})
(folder / "base").write_bytes({BASE!r}); (folder / "delta").write_bytes(data); (folder / "output").touch()
def came_to(place, verified, state):
    (folder / "child").write_text(Path(f"/proc/self/task/{{os.getpid()}}/children").read_text())
files = [(folder / name).open("r+b") for name in ("base", "delta", "output")]
ChildDecoding(COMMAND)(Work(delta, *(file.fileno() for file in files)), came_to, lambda: False)
"""
    agent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY_ROOT, env={**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)}
    )
    try:
        wait_until(lambda: (tmp_path / "child").is_file() and (tmp_path / "child").read_text().strip(), 30)
        pid = int((tmp_path / "child").read_text(encoding="ascii").split()[0])
        assert b"fakedecoder" in Path(f"/proc/{pid}/cmdline").read_bytes()
    finally:
        agent.kill()
        agent.wait()
    wait_until(lambda: not _is_running(pid), 10, what="the end of the decoder")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_it_steps_back_behind_everything_else(bench: Bench) -> None:
    seen: dict[str, str] = {}

    def look() -> bool:
        if bench.points and not seen:
            # This process may have children of other tests, which end in their own time.
            (pid,) = (pid for pid in children() if COMMAND[-1] in Path(f"/proc/{pid}/cmdline").read_text().split("\0"))
            seen["nice"] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16]
            for name in ("oom_score_adj", "limits"):
                seen[name] = Path(f"/proc/{pid}/{name}").read_text()
            seen["environ"] = Path(f"/proc/{pid}/environ").read_text()
            asked = [require_program("ionice"), "-p", str(pid)]
            seen["io"] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        return bool(seen)

    assert bench.code(STEP, "hang", is_cancelled=look) == "network.cut"
    assert seen["nice"] == "19"
    assert seen["io"] == "idle"
    assert seen["oom_score_adj"].strip() == "1000"
    limits = {line[:26].strip(): line[26:47].strip() for line in seen["limits"].splitlines()}
    assert limits["Max open files"] == "8", "as many as it has: nothing more can be opened"
    assert limits["Max file size"] == str(len(NEW))
    assert int(limits["Max data size"]) < 200_000_000
    assert int(limits["Max cpu time"]) < 200
    (harder,) = [int(line[47:68]) for line in seen["limits"].splitlines() if line.startswith("Max cpu time")]
    assert harder > int(limits["Max cpu time"]), "time that is up must not look like a lack of memory"
    assert "OPENBLAS_NUM_THREADS=1" in seen["environ"]
    assert "MALLOC_TOP_PAD_=" in seen["environ"]


# --- frames


def test_frames_come_through_in_any_pieces() -> None:
    frames = [Frame(Kind.CHECKPOINT, 5, 4, b"state"), Frame(Kind.DONE, 7, 7), Frame(Kind.CHECKPOINT, 1, 0)]
    data = b"".join(frame.to_bytes() for frame in frames)
    for size in (1, 2, 7, len(data)):
        reader, found = FrameReader(), []
        for start in range(0, len(data), size):
            reader.feed(data[start : start + size])
            while frame := reader.next():
                found.append(frame)
        assert found == frames


@pytest.mark.parametrize("head", [HEAD.pack(9, 0, 0, 0), HEAD.pack(1, 0, 0, STATE_BYTES_MAX + 1)])
def test_what_is_no_frame_is_refused_before_it_is_read(head: bytes) -> None:
    reader = FrameReader()
    reader.feed(head)
    with pytest.raises(ContractError):
        reader.next()


def test_an_error_comes_through_and_an_unknown_one_too() -> None:
    error = EdgeError("device.disk-full", "no room", "Make some.")
    assert Frame.of_error(error).error().to_json() == error.to_json()
    assert Frame(Kind.ERROR, data=b'{"code":"made.up","detail":"x"}').error().code == "internal.bug"
