"""Reports are signed on a thread of their own: nobody waits, the newest wins, a lost one is followed by the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from edge_agent.reporting import SignedReports, envelope_for
from edge_contract.errors import EdgeError
from edge_contract.signed import REPORT_TYPE, Envelope


class Signer:
    """Signs by turning the bytes around, when it is let."""

    keyid = "ab" * 32
    algorithm = "EdDSA"

    def __init__(self) -> None:
        self.let = threading.Event()
        self.let.set()
        self.asked = threading.Semaphore(0)
        self.error: EdgeError | None = None

    def sign(self, content: bytes) -> bytes:
        error = self.error
        self.asked.release()
        assert self.let.wait(10)
        if error is not None:
            raise error
        return content[::-1]


class Link:
    def __init__(self) -> None:
        self.is_online = True
        self.sent: list[bytes] = []
        self.refused = 0
        self.came = threading.Condition()

    def start(self, on_nudge: Callable[[int], None], on_ack: Callable[[Any], None], on_online: Any) -> None:
        raise AssertionError("nobody starts the link here")

    def send_report(self, report: bytes) -> bool:
        with self.came:
            if self.is_online:
                self.sent.append(Envelope.parse(report).payload)
            else:
                self.refused += 1
            self.came.notify()
            return self.is_online

    def send_batch(self, batch: bytes) -> bool:
        raise AssertionError("nobody sends telemetry here")

    def stop(self) -> None:
        raise AssertionError("nobody stops the link here")

    def wait(self, count: int) -> list[bytes]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.sent) >= count, 10)
            return list(self.sent)


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def link() -> Link:
    return Link()


def test_an_envelope_is_signed_over_the_bytes_that_are_sent(signer: Signer) -> None:
    envelope = Envelope.parse(envelope_for(b'{"n":1}', signer))
    assert (envelope.payload_type, envelope.payload, envelope.keyid) == (REPORT_TYPE, b'{"n":1}', signer.keyid)
    assert envelope.signature == envelope.content[::-1]


def test_only_the_newest_of_the_reports_that_wait_is_signed(signer: Signer, link: Link) -> None:
    signer.let.clear()
    reports = SignedReports(signer, link)
    reports.send(b"1")
    assert signer.asked.acquire(timeout=10)
    for report in (b"2", b"3", b"4"):
        reports.send(report)
    signer.let.set()
    assert link.wait(2) == [b"1", b"4"]
    reports.stop()


def test_a_report_that_did_not_get_through_is_not_repeated(signer: Signer, link: Link) -> None:
    reports = SignedReports(signer, link)
    link.is_online = False
    reports.send(b"1")
    with link.came:
        assert link.came.wait_for(lambda: link.refused == 1, 10)
        link.is_online = True
    reports.send(b"2")
    assert link.wait(1) == [b"2"]
    reports.stop()
    assert link.sent == [b"2"]


def test_a_key_that_fails_costs_its_reports_and_is_told(signer: Signer, link: Link) -> None:
    reports = SignedReports(signer, link)
    signer.error = EdgeError("device.key-unusable", "the token is not there")
    reports.send(b"1")
    assert signer.asked.acquire(timeout=10)
    reports.stop()
    assert reports.error is not None
    assert reports.error.code == "device.key-unusable"
    assert link.sent == []


def test_a_key_that_works_again_is_no_error_any_more(signer: Signer, link: Link) -> None:
    reports = SignedReports(signer, link)
    signer.error = EdgeError("device.key-unusable", "the token is not there")
    reports.send(b"1")
    assert signer.asked.acquire(timeout=10)
    signer.error = None
    reports.send(b"2")
    assert link.wait(1) == [b"2"]
    reports.stop()
    assert reports.error is None


def test_nothing_is_signed_while_the_link_is_down(signer: Signer, link: Link) -> None:
    reports = SignedReports(signer, link)
    reports.link_changed(False)
    reports.send(b"1")
    reports.link_changed(True)
    reports.send(b"2")
    assert link.wait(1) == [b"2"]
    reports.stop()
    assert signer.asked.acquire(blocking=False)
    assert not signer.asked.acquire(blocking=False)


def test_the_report_that_waits_at_the_end_is_still_sent(signer: Signer, link: Link) -> None:
    reports = SignedReports(signer, link)
    reports.send(b"last")
    reports.stop()
    assert link.sent == [b"last"]
    reports.send(b"too late")
    assert link.sent == [b"last"]
