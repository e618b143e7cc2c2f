"""Reports that the device did not send: unsigned, signed by others, changed, repeated."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest

from edge_contract import topics
from edge_contract.signed import Envelope
from edge_contract.twin import Report
from tests.attacks.identity import identity_of, stranger
from tests.attacks.scene import Scene

pytestmark = [pytest.mark.e2e, pytest.mark.system]

FUTURE = "f" * 16
"""A boot that comes behind every other."""


def _lie(report: bytes) -> bytes:
    """A report that says that everything is gone, and is newer than any."""
    return json.dumps(json.loads(report) | {"boot": FUTURE, "number": 1, "modules": {}}).encode()


def _changed(envelope: Envelope) -> bytes:
    document = json.loads(envelope.to_bytes())
    document["payload"] = base64.b64encode(_lie(envelope.payload)).decode()
    return json.dumps(document).encode()


def test_reports_that_the_device_did_not_sign_or_has_sent_before_change_nothing(scene: Scene) -> None:
    """Eve writes to the device's own topic; people see that somebody tried, and nothing else is different."""
    victim, topic = scene.victim, topics.report(scene.victim.name)
    other = identity_of(scene.ground.device("gossip", "none"))
    mine = identity_of(victim)
    with scene.under_watch() as asker, scene.ground.eve() as eve:
        eve.wait_for(lambda heard: len([one for one, _ in heard if one == topic]) >= 2)
        first, second = [Envelope.parse(message) for name, message in eve.heard if name == topic][:2]
        unsigned = "trust.report-unsigned"
        forgeries: list[tuple[str, Callable[[], bytes]]] = [
            (unsigned, lambda: _lie(first.payload)),
            (unsigned, lambda: _changed(first)),
            (unsigned, lambda: stranger(victim.name).envelope(_lie(first.payload))),
            (unsigned, lambda: stranger(victim.name).envelope(_lie(first.payload), mine.keyid)),
            (unsigned, lambda: other.envelope(_lie(first.payload))),
            (unsigned, lambda: other.envelope(_lie(first.payload), mine.keyid)),
            ("trust.report-replayed", first.to_bytes),
            ("trust.report-replayed", second.to_bytes),
        ]
        for code, forge in forgeries:
            before = _refused(scene)[1]
            eve.publish(topic, forge())
            assert _refused_after(scene, before) == code
        _is_true(scene, first)
        scene.recovers(scene.ship(), asker)
        _is_true(scene, second)


def _refused(scene: Scene) -> tuple[str, int]:
    with scene.ground.client() as client:
        found = client.device(scene.victim.name)["report_refused"]
    return (found["code"], found["count"]) if found else ("", 0)


def _refused_after(scene: Scene, count: int) -> str:
    scene.victim.wait(lambda: _refused(scene)[1] > count, "the registry to refuse a report")
    return _refused(scene)[0]


def _is_true(scene: Scene, older: Envelope) -> None:
    """What the registry believes is the device's own, and newer than what was played with."""

    def is_newer() -> bool:
        with scene.ground.client() as client:
            known = client.device(scene.victim.name)["report"]
        assert known["boot"] == scene.victim.status()["boot"]
        live = {model: known["modules"][model]["live"] for model in scene.live}
        return known["number"] > Report.parse(older.payload).number and live == {
            model: str(shipment.manifest) for model, shipment in scene.live.items()
        }

    scene.victim.wait(is_newer, "the registry to believe the device")
    for model in scene.live:
        assert scene.standing(scene.live[model]) == "confirmed"
