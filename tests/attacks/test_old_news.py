"""What was true once: metadata of yesterday, a lower release counter, metadata that somebody keeps from ageing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from tuf.api.metadata import MetaFile, Timestamp

from edge_contract.deployment import target_path
from tests.attacks.attacker import attacker_before
from tests.attacks.forgery import DIRECTOR, IMAGE, Forgery
from tests.attacks.ground import Ground
from tests.attacks.scene import Attack, Scene, Victim

pytestmark = [pytest.mark.e2e, pytest.mark.system]

FREEZE_S = 6
"""How long the metadata of the freeze attacks are valid, so that a device sees them fresh before it sees them stale."""
MONTHS_MS = 120 * 24 * 3600 * 1000
WAKING_MS = 12_345
"""The clock of a device that wakes up without one: 12 seconds after the beginning of 1970."""


# -- rollback ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repository", [DIRECTOR, IMAGE])
def test_metadata_of_yesterday_are_refused_at_every_step_of_the_chain(scene: Scene, repository: str) -> None:
    """Replayed as they were; then with stolen keys, so that only the next link of the chain shows their age."""
    with scene.under_watch() as asker:
        scene.recovers(scene.ship(), asker)
    live, yesterday = scene.live[scene.model], scene.yesterday(repository)
    role = "targets"
    if repository == IMAGE:
        path = target_path(live.model, live.version, live.manifest)
        role = scene.forge(IMAGE).lister(path)

    def replay(scene: Scene) -> None:
        scene.attacker.files = dict(yesterday)

    def older_snapshot(scene: Scene) -> None:
        forgery = scene.forge(repository, "timestamp")
        forgery.put_timestamp(lambda timestamp: setattr(timestamp, "snapshot_meta", MetaFile(1)))
        scene.attacker.files = forgery.files

    def older_targets(scene: Scene) -> None:
        forgery = scene.forge(repository, "timestamp", "snapshot")
        forgery.put_snapshot(lambda snapshot: snapshot.meta.update({f"{role}.json": MetaFile(1)}))
        scene.attacker.files = forgery.files

    words = f"{repository} repository: "
    scene.withstands(
        Attack("trust.metadata-rollback", words + "timestamp falls", replay),
        Attack("trust.metadata-rollback", words + "snapshot falls", older_snapshot),
        Attack("trust.metadata-rollback", f"{words}{role}.json falls", older_targets),
    )


def test_a_lower_release_counter_needs_a_signed_permit_and_stops_its_own_module_alone(scene: Scene) -> None:
    old, other = scene.live[scene.model], scene.live[scene.others[0]]
    with scene.under_watch() as asker:
        scene.recovers(scene.ship(), asker)
        scene.assign(old)
        scene.names("trust.release-rollback", "would fall")
        scene.is_unmoved(asker)
        scene.recovers(scene.assign(other, sampling_ratio=0.25), asker, except_for="trust.release-rollback")
        scene.is_unmoved(asker)
        scene.recovers(scene.assign(old, allow_release_rollback=True), asker)
        assert asker.newest() == old.version


# -- freeze ------------------------------------------------------------------------------------------------------------


def _freeze(scene: Scene) -> Forgery:
    """The registry's last words, which are true for some seconds, and then repeated for ever."""
    forgery = scene.forge(DIRECTOR, "timestamp")

    def shorten(timestamp: Timestamp) -> None:
        timestamp.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=FREEZE_S)

    forgery.put_timestamp(shorten)
    return forgery


def test_a_device_that_is_kept_from_the_present_notices_when_the_past_expires(scene: Scene) -> None:
    with scene.under_watch() as asker:
        scene.attacker.is_shut = True
        frozen = _freeze(scene)
        scene.believes(frozen)
        shipped = scene.ship()
        scene.names("trust.metadata-expired", f"timestamp version {frozen.timestamp.signed.version} expired")
        scene.is_unmoved(asker)
        assert scene.standing(shipped) == "pending"
        scene.recovers(shipped, asker)


@pytest.fixture(scope="module")
def clockless(ground_of_session: Ground) -> Iterator[Scene]:
    """A device whose clock begins in 1970, with a live model."""
    ground = ground_of_session
    with attacker_before(ground.port) as attacker, ground.ending_devices():
        victim = ground.enrol(Victim(ground.folder / "c", "clockless", "sundial", is_clocked=True), attacker.url)
        victim.set_clock(wall_ms=WAKING_MS)
        live = ground.ship("sundial", 1, victim.name)
        victim.start()
        victim.wait(lambda: victim.has_confirmed(live), "the model to be live")
        yield Scene(ground, attacker, victim, {live.model: live})


def test_a_device_without_a_clock_says_so_and_counts_the_seconds_since_the_newest_signature(clockless: Scene) -> None:
    """It installs, it is not held up, and a freeze shows when it has run longer than the frozen metadata live."""
    scene, victim = clockless, clockless.victim

    def is_said() -> bool:
        with scene.ground.client() as client:
            report = client.device(victim.name)["report"]
        return report is not None and report["clock_trusted"] is False

    victim.wait(is_said, "the registry to hear that the clock is not to be trusted")
    with scene.under_watch() as asker:
        scene.recovers(scene.ship(), asker, except_for="device.clock-untrusted")
        scene.attacker.is_shut = True
        scene.believes(_freeze(scene))
        shipped = scene.ship()
        scene.names("trust.metadata-expired", "director repository: timestamp")
        scene.is_unmoved(asker)
        scene.recovers(shipped, asker, except_for="device.clock-untrusted")


def test_a_clock_that_somebody_set_forward_stops_updates_until_it_is_right_again_and_no_longer(
    clockless: Scene,
) -> None:
    scene, victim = clockless, clockless.victim
    victim.set_clock()
    victim.wait(lambda: victim.status()["clock_trusted"], "the clock to be right")
    with scene.under_watch() as asker:
        victim.set_clock(wall_ms=int(time.time() * 1000) + MONTHS_MS)
        shipped = scene.ship()
        scene.names("trust.metadata-expired", "expired at")
        scene.is_unmoved(asker)
        assert scene.standing(shipped) == "pending"
        victim.set_clock()
        scene.recovers(shipped, asker)
        assert victim.status()["clock_trusted"]
