"""The queue between a connection and the collector: bounded, in order, never blocking."""

from __future__ import annotations

import pytest

from cloud_registry.adapters.link_mqtt import LinkMessage, LinkToken
from cloud_registry.collect.inputs import LinkLost, MessageReceived
from cloud_registry.collect.intake import Intake


@pytest.fixture
def intake() -> Intake:
    return Intake(lambda: 5, content_bytes_max=100)


def message(number: int, size: int = 10) -> LinkMessage:
    return LinkMessage(LinkToken(1, number), "topic", b"x" * size)


def test_events_come_out_in_the_order_they_went_in(intake: Intake) -> None:
    intake.offer(message(1))
    intake.lost()
    intake.lost()
    intake.offer(message(2))
    first, lost, second = intake.take(10, 0)
    assert first == MessageReceived(LinkToken(1, 1), "topic", b"x" * 10, 5)
    assert isinstance(lost, LinkLost)
    assert isinstance(second, MessageReceived)
    assert intake.take(10, 0) == []


def test_it_refuses_beyond_its_number(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_registry.collect.intake.QUEUE_MESSAGES_MAX", 4)
    assert [intake.offer(message(number)) for number in range(6)] == [True] * 4 + [False] * 2
    intake.take(2, 0)
    assert [intake.offer(message(number)) for number in range(3)] == [True, True, False]


def test_it_refuses_beyond_its_bytes(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_registry.collect.intake.QUEUE_BYTES_MAX", 100)
    assert [intake.offer(message(number, 40)) for number in range(4)] == [True, True, False, False]
    intake.take(10, 0)
    assert intake.offer(message(4, 40))


def test_content_that_is_refused_anyway_is_not_kept(intake: Intake) -> None:
    intake.offer(message(1, size=1_000_000))
    (event,) = intake.take(1, 0)
    assert isinstance(event, MessageReceived)
    assert len(event.content) == 101


def test_a_closed_queue_does_not_wait(intake: Intake) -> None:
    intake.close()
    assert intake.take(1, timeout_s=60) == []
