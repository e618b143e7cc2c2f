"""What is remembered of decodings: it round-trips, is bounded, and damage makes it an empty one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.delta.limits import RECORD_BYTES_MAX, STATE_BYTES_MAX
from edge_agent.delta.record import Point, Record, Tried, load_record, save_record
from edge_agent.limits import DELTA_STARTS_MAX, DELTA_STUCK_MAX
from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.limits import DELTAS_MAX

ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
POINT = Point(ONE, 3_000, 2_000, bytes(range(256)))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = Record().begun(TWO).failed(TWO, "artifact.delta-invalid").begun(ONE).came_to(POINT)
    path = tmp_path / "partial" / "x.delta"
    save_record(path, record)
    assert load_record(path) == record
    assert record.tried == {TWO: Tried(1, 1, "artifact.delta-invalid"), ONE: Tried(1, 0)}


def test_the_largest_record_is_within_its_bound() -> None:
    record = Record()
    for number in range(DELTAS_MAX + 10):
        record = record.begun(Digest.of(b"%d" % number)).failed(Digest.of(b"%d" % number), "artifact.delta-invalid")
    assert len(record.tried) == DELTAS_MAX
    largest = record.came_to(Point(ONE, 2**35, 2**35, b"x" * STATE_BYTES_MAX))
    assert len(largest.tried) == DELTAS_MAX
    assert len(largest.to_bytes()) <= RECORD_BYTES_MAX


def test_every_changed_byte_makes_it_no_record(tmp_path: Path) -> None:
    genuine = Record().begun(ONE).came_to(POINT).to_bytes()
    for place in range(len(genuine)):
        spoiled = bytearray(genuine)
        spoiled[place] ^= 0x01
        with pytest.raises(ContractError):
            Record.parse(bytes(spoiled))
    for length in (0, 10, 40, len(genuine) - 1):
        path = tmp_path / "cut"
        path.write_bytes(genuine[:length])
        assert load_record(path) == Record()
    assert load_record(tmp_path / "nothing") == Record()


def test_a_decoding_that_never_comes_to_an_end_is_given_up() -> None:
    record = Record()
    for _ in range(DELTA_STUCK_MAX):
        assert not record.of(ONE).is_hopeless
        record = record.begun(ONE)
    assert record.of(ONE).is_hopeless
    assert not record.of(TWO).is_hopeless


def test_progress_counts_but_not_for_ever() -> None:
    record = Record()
    for _ in range(DELTA_STARTS_MAX):
        assert not record.of(ONE).is_hopeless
        record = record.begun(ONE).came_to(POINT)
    assert record.of(ONE).is_hopeless


def test_an_interruption_of_our_own_counts_for_nothing() -> None:
    record = Record().begun(ONE).came_to(POINT)
    for _ in range(DELTA_STARTS_MAX):
        record = record.begun(ONE).interrupted(ONE)
    assert not record.of(ONE).is_hopeless
    assert record.point == POINT


def test_a_point_belongs_to_one_delta() -> None:
    record = Record().begun(ONE).came_to(POINT)
    assert record.point_of(ONE) == POINT
    assert record.point_of(TWO) is None
    assert record.begun(TWO).point is None
    assert record.failed(ONE, "internal.bug").point == POINT
