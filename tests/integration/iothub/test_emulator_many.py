"""Many connections at once: nothing is lost and nobody is refused. The benchmark has the figures for 500."""

from __future__ import annotations

from benchmarks import iothub
from tests.support.iothub import free_host


def test_a_hundred_devices_at_once_lose_nothing() -> None:
    result = iothub.run({**iothub.OPTIONS, "clients": "100", "messages": "5", "host": free_host()})
    assert result["connections"] == 100
    assert result["messages"] == 500
    assert [result[name] for name in ("messages_lost", "methods_failed", "closed_by_hub", "refused")] == [0, 0, 0, 0]
