"""Answers without an end: more bytes than were promised, or a byte now and then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attacks.scene import Attack, Play, Scene
from tests.e2e.stack import Shipment

pytestmark = [pytest.mark.e2e, pytest.mark.system]

CHUNK = bytes(64 * 1024)
DRIP_S = 0.1
MUCH = 64 * 1024 * 1024
"""More than any metadata may have; whoever reads on to its end is found out by the bytes that went by."""


def _padded(part: str, padding: bytes) -> Play:
    def play(scene: Scene) -> None:
        scene.attacker.change = lambda path, body: body + padding if part in path else body

    return play


def _for_ever(part: str) -> Play:
    """The genuine beginning, and then bytes without end."""

    def pour(path: str, body: bytes) -> Iterator[bytes] | None:
        return _stream(body) if part in path else None

    def _stream(body: bytes) -> Iterator[bytes]:
        yield body
        while True:
            yield CHUNK

    def play(scene: Scene) -> None:
        scene.attacker.poured = 0
        scene.attacker.pour = pour

    return play


def _dripping(part: str) -> Play:
    """The genuine bytes, one now and then."""

    def play(scene: Scene) -> None:
        ended = scene.attacker.ended

        def drip(body: bytes) -> Iterator[bytes]:
            for place in range(len(body)):
                ended.wait(DRIP_S)
                yield body[place : place + 1]

        scene.attacker.pour = lambda path, body: drip(body) if part in path else None

    return play


def test_metadata_longer_than_their_limit_are_not_read_to_the_end(scene: Scene) -> None:
    too_large = "trust.metadata-too-large"
    scene.withstands(
        Attack(too_large, "timestamp.json", _padded("/timestamp.json", b" " * 100_000)),
        Attack(too_large, "timestamp.json", _for_ever("/timestamp.json")),
        Attack(too_large, ".snapshot.json", _for_ever(".snapshot.json")),
        Attack(too_large, ".targets.json", _for_ever(".targets.json")),
    )
    assert scene.attacker.poured < MUCH


def test_content_longer_than_it_was_declared_is_not_read_to_the_end(scene: Scene) -> None:
    made: list[Shipment] = []

    def new() -> Shipment:
        made.append(scene.ship())
        return made[0]

    def for_ever(scene: Scene) -> None:
        _for_ever(f"/blobs/{made[0].blob}")(scene)

    wrong = "artifact.size-mismatch"
    scene.withstands(
        Attack(wrong, "", _padded("/manifests/", b" ")),
        Attack(wrong, "", _for_ever("/manifests/")),
        Attack(wrong, str(made[0].blob) if made else "", for_ever),
        new=new,
    )
    assert scene.attacker.poured < MUCH


def test_an_answer_that_comes_too_slowly_is_given_up(scene: Scene) -> None:
    """With a shortened patience (`hurry/`); slow metadata and slow content hold up neither the model nor the device."""
    scene.withstands(
        Attack("network.too-slow", "timestamp.json: the server sent only", _dripping("/timestamp.json")),
        Attack("network.too-slow", "the server sent only", _dripping("/manifests/")),
    )
