"""When a candidate may be loaded: windows of the week, and memory."""

from datetime import UTC, datetime

import pytest

from edge_agent.core.planning import stops_first, window_wait_ms
from edge_contract.deployment import ActivationMode, Window
from edge_contract.errors import EdgeError

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NIGHT = Window(2 * 60, 90)
MONDAYS = Window(22 * 60, 4 * 60, (1,))


@pytest.mark.parametrize(
    ("windows", "now", "wait_ms"),
    [
        ((), "2026-11-25T12:00:00", 0),
        ((NIGHT,), "2026-11-25T02:00:00", 0),
        ((NIGHT,), "2026-11-25T03:29:59", 0),
        ((NIGHT,), "2026-11-25T03:30:00", DAY_MS - 90 * MINUTE_MS),
        ((NIGHT,), "2026-11-25T01:59:00", MINUTE_MS),
        # 2026-11-23 is a Monday; its window reaches into Tuesday.
        ((MONDAYS,), "2026-11-23T21:00:00", HOUR_MS),
        ((MONDAYS,), "2026-11-24T01:59:00", 0),
        ((MONDAYS,), "2026-11-24T02:00:00", 6 * DAY_MS + 20 * HOUR_MS),
        ((MONDAYS,), "2026-11-22T23:00:00", 23 * HOUR_MS),
        ((MONDAYS, NIGHT), "2026-11-24T12:00:00", 14 * HOUR_MS),
        ((Window(0, 24 * 60),), "2026-11-24T12:00:00", 0),
        ((Window(0, 24 * 60, (7,)),), "2026-11-29T00:00:00", 0),
        ((Window(0, 24 * 60, (7,)),), "2026-11-30T00:00:00", 6 * DAY_MS),
    ],
)
def test_a_window_is_open_or_says_how_long_it_is_not(windows: tuple[Window, ...], now: str, wait_ms: int) -> None:
    assert window_wait_ms(windows, at(now)) == wait_ms


def test_waiting_as_long_as_it_says_finds_the_window_open() -> None:
    for minute in range(0, 7 * 24 * 60, 37):
        now = at("2026-11-23T00:00:00") + minute * MINUTE_MS
        wait_ms = window_wait_ms((MONDAYS, NIGHT), now)
        assert window_wait_ms((MONDAYS, NIGHT), now + wait_ms) == 0
        assert wait_ms == 0 or window_wait_ms((MONDAYS, NIGHT), now + wait_ms - 1) > 0


AUTO, OVERLAP, STOP = ActivationMode.AUTO, ActivationMode.OVERLAP, ActivationMode.STOP_FIRST


@pytest.mark.parametrize(
    ("mode", "peak", "live", "available", "expected"),
    [
        (AUTO, 80, 50, 100, False),
        (AUTO, 95, 50, 100, True),
        (AUTO, 0, 50, 0, False),
        (AUTO, 95, 50, None, False),
        (OVERLAP, 80, 50, 100, False),
        (OVERLAP, 80, 50, None, False),
        (STOP, 10, 50, 100, True),
        (STOP, 10, 0, 100, False),
        (STOP, 10, 50, None, True),
        (STOP, 130, 50, 100, True),
        (AUTO, 90, 0, 100, False),
    ],
)
def test_both_run_beside_each_other_where_that_fits(
    mode: ActivationMode, peak: int, live: int, available: int | None, expected: bool
) -> None:
    assert stops_first(mode, peak, live, available) is expected


@pytest.mark.parametrize(
    ("mode", "peak", "live", "available"),
    [(AUTO, 140, 50, 100), (AUTO, 91, 0, 100), (OVERLAP, 91, 50, 100), (STOP, 136, 50, 100), (STOP, 91, 0, 100)],
)
def test_what_fits_in_no_way_is_refused_before_anything_is_stopped(
    mode: ActivationMode, peak: int, live: int, available: int
) -> None:
    with pytest.raises(EdgeError) as caught:
        stops_first(mode, peak, live, available)
    assert caught.value.code == "device.memory-short"
    assert str(peak) in caught.value.detail
