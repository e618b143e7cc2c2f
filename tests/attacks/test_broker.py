"""A hostile broker: it may delay and lose, and say what it likes; it decides nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_contract import topics
from edge_contract.telemetry import Ack, Batch
from edge_contract.twin import Nudge
from tests.attacks.identity import identity_of
from tests.attacks.scene import Scene
from tests.support.net import LOOPBACK

pytestmark = [pytest.mark.e2e, pytest.mark.system]

NUDGES = 3_000
LOOKS_MAX = 60
"""Looks at the metadata that a flood of nudges may cause while it lasts and a little longer; each is two requests."""
ABSURD = 2**53 - 1
OVERSIZED = bytes(300 * 1024)


def _looks(scene: Scene) -> int:
    """How often the device looked at its metadata."""
    path = f"/tuf/director/{scene.victim.name}/timestamp.json"
    return sum(asked == path for _, asked, _ in scene.attacker.asked)


def test_absurd_oversized_and_countless_messages_cost_the_device_some_looks_at_its_metadata(scene: Scene) -> None:
    device = scene.victim.name
    junk = [b"", b"{", b"\x00" * 64, b'{"schema":"lighterman.nudge/1","director_version":-1}', OVERSIZED]
    junk += [b'{"schema":"lighterman.nudge/1","director_version":1' + b"0" * 900 + b"}", Nudge(ABSURD).to_bytes()]
    with scene.under_watch() as asker, scene.ground.eve() as eve:
        for message in junk:
            eve.publish(topics.nudge(device), message)
            eve.publish(topics.ack(device), message)
            eve.publish(f"{topics.nudge(device)}/more", message)
        before = _looks(scene)
        eve.flood(topics.nudge(device), (Nudge(ABSURD - number).to_bytes() for number in range(NUDGES)))
        scene.is_unmoved(asker)
        assert _looks(scene) - before < LOOKS_MAX
        assert not scene.victim.all_errors()
        scene.recovers(scene.ship(), asker)


def test_junk_that_waits_at_the_broker_for_every_connection_does_no_harm(scene: Scene) -> None:
    names = [name(scene.victim.name) for name in (topics.nudge, topics.ack)]
    with scene.under_watch() as asker, scene.ground.eve() as eve:
        for name in names:
            eve.publish(name, b"not what you think", retain=True)
        try:
            with _in_place_of(scene):
                scene.victim.wait(lambda: not scene.victim.status()["online"], "the device to be cut off")
            scene.victim.wait(lambda: scene.victim.status()["online"], "the device to be connected again")
            scene.is_unmoved(asker)
            scene.recovers(scene.ship(), asker)
        finally:
            for name in names:
                eve.publish(name, b"", retain=True)


def test_somebody_who_takes_the_devices_place_at_the_broker_keeps_no_update_from_it(scene: Scene) -> None:
    """He connects as the device, again and again; metadata are looked at all the same, over HTTP."""
    with scene.under_watch() as asker:
        with _in_place_of(scene):
            scene.victim.wait(lambda: not scene.victim.status()["online"], "the device to be cut off")
            scene.recovers(scene.ship(), asker)
        scene.victim.wait(lambda: scene.victim.status()["online"], "the device to be connected again")
        shipped = scene.live[scene.model]
        scene.victim.wait(lambda: scene.standing(shipped) == "confirmed", "the registry to hear of it")


def test_acknowledgements_of_what_was_never_sent_make_the_device_forget_nothing(scene: Scene) -> None:
    """While the cloud is silent Eve says that everything is durable, and everything that will ever be."""
    victim, registry, boot = scene.victim, scene.ground.registry, scene.victim.status()["boot"]
    assert registry is not None
    with scene.under_watch() as asker, scene.ground.eve() as eve:

        def numbers() -> list[int]:
            batches = [Batch.parse(message) for name, message in eve.heard if name == topics.telemetry(victim.name)]
            return sorted({sample.seq for batch in batches if batch.boot == boot for sample in batch.samples})

        registry.send(signal.SIGSTOP)
        try:
            asker.go_on()
            sent = victim.wait(numbers, "records to be sent")[-1]
            asker.go_on(30)
            eve.publish(topics.ack(victim.name), Ack({boot: ABSURD, "0" * 16: ABSURD}).to_bytes())
            victim.wait(lambda: numbers()[-1] > sent, "the records behind them to be sent")
        finally:
            registry.send(signal.SIGCONT)
        heard = numbers()
        assert heard == list(range(heard[0], heard[-1] + 1)), "no record was skipped"
        scene.is_unmoved(asker)
        scene.recovers(scene.ship(), asker)


@contextmanager
def _in_place_of(scene: Scene) -> Iterator[None]:
    """Somebody who connects under the device's client identifier, whenever the device has it back.

    The broker's owner can: at the port of the cloud everybody chooses his own identifier.
    """
    folder = scene.ground.secure.config / "eve"
    name = identity_of(scene.victim).user
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv311)
    client.tls_set_context(scene.ground.tls(folder / "eve.crt", folder / "eve.key"))
    client.reconnect_delay_set(1, 1)
    client.connect(LOOPBACK, scene.ground.secure.port)
    client.loop_start()
    try:
        yield
    finally:
        client.disconnect()
        client.loop_stop()
