"""A decoder rests where the rest of the machine has work to do, and nowhere else."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.delta.limits import BURST_S, BUSY_SHARE, DUTY_BESIDE_OTHERS, PAUSE_S_MAX
from edge_agent.delta.pacing import Load, Pace, parse_load, pause_s, share_of_others

PROCESSORS = 2
TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A `/proc/stat` of its own, on which a piece of work takes what it is told to take."""

    def __init__(self, file: Path, others: float) -> None:
        self.file, self.others = file, others
        self.now = self.ran = self.rested = 0.0
        self._total = self._idle = 1000.0
        self._write()

    def _pass(self, seconds: float, ran: float) -> None:
        self.now += seconds
        self.ran += ran
        total = seconds * PROCESSORS * TICKS
        self._total += total
        self._idle += max(0.0, total * (1 - self.others) - ran * TICKS)
        self._write()

    def _write(self) -> None:
        busy = round(self._total) - round(self._idle)
        self.file.write_text(f"cpu  {busy} 0 0 {round(self._idle)} 0 0 0 0 0 0\ncpu0 1 2 3\n", encoding="ascii")

    def work(self, seconds: float, passed: float | None = None) -> None:
        self._pass(seconds if passed is None else passed, seconds)

    def rest(self, seconds: float) -> None:
        self.rested += seconds
        self._pass(seconds, 0.0)


@pytest.fixture
def stat(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    file = tmp_path / "stat"
    file.write_text("", encoding="ascii")
    number = os.open(file, os.O_RDONLY)
    yield file, number
    os.close(number)


def decode(machine: Machine, stat_fd: int, pieces: int, passed: float | None = None) -> None:
    pace = Pace(stat_fd, lambda: machine.now, lambda: machine.ran, machine.rest)
    for _ in range(pieces):
        pace()
        machine.work(0.004, passed)


def test_beside_a_busy_model_it_runs_its_part_of_the_time(stat: tuple[Path, int]) -> None:
    machine = Machine(stat[0], others=0.7)
    decode(machine, stat[1], 1000)
    assert machine.ran / machine.now == pytest.approx(DUTY_BESIDE_OTHERS, rel=0.1)


def test_on_an_idle_machine_it_rests_once_until_it_knows(stat: tuple[Path, int]) -> None:
    machine = Machine(stat[0], others=0.05)
    decode(machine, stat[1], 1000)
    assert 0 < machine.rested <= PAUSE_S_MAX


def test_it_notices_when_the_load_begins_and_ends(stat: tuple[Path, int]) -> None:
    machine = Machine(stat[0], others=0.05)
    pace = Pace(stat[1], lambda: machine.now, lambda: machine.ran, machine.rest)
    rested = []
    for others in (0.05, 0.9, 0.05):
        machine.others, before = others, machine.rested
        for _ in range(300):
            pace()
            machine.work(0.004)
        rested.append(machine.rested - before)
    assert rested[1] > 4
    assert rested[0] <= PAUSE_S_MAX
    assert rested[2] <= 2 * PAUSE_S_MAX


@pytest.mark.parametrize("text", ["", "intr 5\n", "cpu  1 2\n", "cpu  a b c d e f g h\n"])
def test_where_the_load_cannot_be_read_the_machine_counts_as_busy(stat: tuple[Path, int], text: str) -> None:
    machine = Machine(stat[0], others=0.0)
    machine.file = stat[0].with_name("elsewhere")
    stat[0].write_text(text, encoding="ascii")
    decode(machine, stat[1], 500)
    assert machine.ran / machine.now == pytest.approx(DUTY_BESIDE_OTHERS, rel=0.1)


def test_a_decoder_that_hardly_runs_does_not_rest_as_well(stat: tuple[Path, int]) -> None:
    machine = Machine(stat[0], others=0.95)
    decode(machine, stat[1], 300, passed=0.08)
    assert machine.rested == 0


@given(ran=st.floats(0, 1e3), extra=st.floats(0, 1e3))
def test_rests_are_bounded_and_never_more_than_the_part_asks_for(ran: float, extra: float) -> None:
    rest = pause_s(ran, ran + extra)
    assert 0 <= rest <= PAUSE_S_MAX
    assert rest == 0 or ran / (ran + extra + rest) >= DUTY_BESIDE_OTHERS * (1 - 1e-9)


@given(total=st.integers(-5, 10_000), idle=st.integers(0, 10_000), ran=st.floats(0, 10_000))
def test_the_share_of_others_is_a_share_whatever_the_kernel_counts(total: int, idle: int, ran: float) -> None:
    assert 0 <= share_of_others(Load(0, 0), Load(total, idle), ran) <= 1


def test_what_the_process_took_itself_is_not_others() -> None:
    before, after = Load(1000, 500), Load(1040, 516)
    assert share_of_others(before, after, 20) == pytest.approx(0.1)
    assert share_of_others(before, after, 0) == pytest.approx(0.6)
    assert 0.1 < BUSY_SHARE < 0.6


def test_the_load_of_this_very_machine_can_be_read() -> None:
    load = parse_load(Path("/proc/stat").read_bytes())
    assert load is not None
    assert 0 < load.idle < load.total
    assert BURST_S < PAUSE_S_MAX
