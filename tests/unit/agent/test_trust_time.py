"""Verification on a device whose clock is wrong, or gone, or behind a hostile repository (ADR 15)."""

from __future__ import annotations

from typing import Any

import pytest

from edge_contract.errors import EdgeError
from tests.support.tufrepo import DAY_MS, NOW_MS, TufRepository
from tests.unit.agent.trustbench import Device

HOUR_MS = 3_600_000
NO_CLOCK = [0, -1, 1_000, 946_684_800_000]


# --- no clock ---


@pytest.mark.parametrize("wall_ms", NO_CLOCK)
def test_a_device_without_a_clock_goes_on_and_says_so(device: Device, wall_ms: int) -> None:
    device.wall_ms = wall_ms
    made = device.repositories.deploy(1)
    desired = device.refresh()
    assert (desired.assignments, desired.is_clock_trusted) == ((made,), False)
    made = device.repositories.deploy(2)
    assert device.refresh().assignments == (made,)
    assert device.floor.floor_ms == NOW_MS
    device.wall_ms = NOW_MS + 60_000
    assert device.refresh().is_clock_trusted


def test_a_device_with_a_clock_says_so(device: Device) -> None:
    assert device.refresh().is_clock_trusted
    device.wall_ms = NOW_MS - 60_000  # the registry's clock is a minute fast
    assert device.refresh().is_clock_trusted


def test_old_metadata_played_to_a_clock_put_back_is_noticed(device: Device) -> None:
    device.repositories.deploy(1)
    old = dict(device.repositories.director.files)
    device.wall_ms = device.repositories.advance(30)
    fresh = device.repositories.director.files
    device.refresh()
    for path in (device.folder / "director").glob("[!rs]*.json"):
        path.unlink()  # without the rollback protection of the old timestamp
    device.wall_ms = NOW_MS
    device.repositories.director.files = old
    device.start()
    assert device.refused() == "trust.metadata-expired"
    device.repositories.director.files = fresh
    assert not device.refresh().is_clock_trusted


def test_a_freeze_is_noticed_without_a_clock_by_the_time_that_passes(device: Device) -> None:
    device.wall_ms = 0
    device.repositories.deploy(1)
    device.refresh()
    device.running_ms = 2 * DAY_MS
    assert device.refused() == "trust.metadata-expired"
    device.repositories.advance(2)
    device.refresh()


def test_without_a_clock_a_restart_does_not_forget_the_time(device: Device) -> None:
    device.wall_ms = 0
    device.refresh()
    device.running_ms = 20 * HOUR_MS
    device.refresh()
    device.start()
    assert device.floor.floor_ms == NOW_MS + 20 * HOUR_MS
    device.running_ms += 5 * HOUR_MS
    assert device.refused() == "trust.metadata-expired"


def test_timestamps_that_do_not_say_when_they_were_signed_still_work(device: Device) -> None:
    odds: tuple[Any, ...] = ("soon", "", -1, 0, True, [], {}, 2**70)
    for odd in odds:
        device.repositories.director.signed_ms = odd
        device.repositories.director.publish("timestamp")
        device.wall_ms = 0
        assert not device.refresh().is_clock_trusted
    assert device.floor.floor_ms == NOW_MS - 365 * DAY_MS


# --- a clock that is ahead ---


def test_a_clock_far_ahead_finds_everything_expired_and_leaves_the_floor_alone(device: Device) -> None:
    device.repositories.deploy(1)
    for wall_ms in (NOW_MS + 1000 * DAY_MS, 2**62):
        device.wall_ms = wall_ms
        assert device.refused() == "trust.metadata-expired"
    device.wall_ms = NOW_MS
    assert device.refresh().is_clock_trusted


# --- what is on disk expires ---


def test_expired_metadata_on_disk_never_blocks_what_is_fresh(device: Device) -> None:
    device.repositories.deploy(1)
    device.refresh()
    for days in (2, 10, 50, 500):  # timestamps, snapshots, targets and bins, roots
        device.wall_ms = device.repositories.advance(days)
        if days > 365:
            device.repositories.director.publish_root()
            device.repositories.image.publish_root()
        made = device.repositories.deploy(days)
        device.start()
        desired = device.refresh()
        assert (desired.assignments, desired.is_clock_trusted) == ((made,), True)


def test_the_same_version_signed_anew_takes_the_place_of_an_expired_timestamp(device: Device) -> None:
    device.refresh()
    director = device.repositories.director
    device.wall_ms = director.wall_ms = NOW_MS + 2 * DAY_MS
    director.versions["timestamp"] -= 1
    director.publish("timestamp")
    assert device.refresh().is_clock_trusted
    device.wall_ms = NOW_MS + int(2.5 * DAY_MS)
    device.start()
    device.refresh()


@pytest.mark.parametrize("days", [2, 10, 50, 500])
def test_with_everything_expired_and_no_network_the_network_is_to_blame(
    device: Device, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.repositories.deploy(1)
    device.refresh()
    honest = TufRepository.fetch
    device.wall_ms = NOW_MS + days * DAY_MS
    asked: list[str] = []

    def cut(repository: TufRepository, name: str, bytes_max: int) -> bytes | None:
        asked.append(name)
        if len(asked) > limit:
            raise EdgeError("network.cut", name)
        return honest(repository, name, bytes_max)

    monkeypatch.setattr(TufRepository, "fetch", cut)
    limit = 0
    device.start()
    assert device.refused() == "network.cut"
    # Whatever the request that fails, nothing but the network is blamed as long as what came was fresh.
    device.wall_ms = device.repositories.advance(days)
    if days > 365:
        device.repositories.director.publish_root()
        device.repositories.image.publish_root()
    device.repositories.deploy(2)
    device.start()
    codes = []
    for limit in range(20):  # noqa: B007 (read by `cut`)
        asked.clear()
        try:
            device.refresh()
        except EdgeError as error:
            codes.append(error.code)
        else:
            break
    assert len(codes) >= 6
    assert set(codes) == {"network.cut"}


# --- stolen online keys ---


@pytest.mark.parametrize("wall_ms", [0, NOW_MS])
@pytest.mark.parametrize("name", ["director", "image"])
def test_a_time_driven_up_with_a_stolen_key_ends_with_that_key(device: Device, name: str, wall_ms: int) -> None:
    device.wall_ms = wall_ms
    made = device.repositories.deploy(1)
    device.refresh()
    stolen: TufRepository = getattr(device.repositories, name)
    # As far as it goes: the first expiry of what other keys signed.
    stolen.days["timestamp"], stolen.signed_ms = 1000, NOW_MS + 6 * DAY_MS
    stolen.publish("timestamp")
    assert not device.refresh().is_clock_trusted
    stolen.days["timestamp"], stolen.signed_ms = 1, None
    stolen.publish("timestamp")
    assert device.refused() == "trust.metadata-expired", "what is honest looks old now"
    device.start()
    assert device.refused() == "trust.metadata-expired"
    stolen.rotate("timestamp")
    stolen.publish()
    desired = device.refresh()
    assert (desired.assignments, desired.is_clock_trusted) == ((made,), wall_ms == NOW_MS)
    device.start()
    assert device.refresh() == desired


@pytest.mark.parametrize("days", [7.5, 40, 400, 100_000])
def test_a_time_beyond_what_other_keys_signed_is_not_believed(device: Device, days: float) -> None:
    director = device.repositories.director
    director.days["timestamp"], director.signed_ms = 1000, NOW_MS + int(days * DAY_MS)
    director.publish("timestamp")
    assert device.refresh().is_clock_trusted
    director.signed_ms = None
    director.publish("timestamp")
    assert device.refresh().is_clock_trusted


def test_one_repository_cannot_make_the_other_look_expired(device: Device) -> None:
    """Or else the director's stolen key would keep a device from the image root that does not know it any more."""
    device.wall_ms = 0
    made = device.repositories.deploy(1)
    device.repositories.director.signed_ms = NOW_MS + 3 * DAY_MS
    device.repositories.director.days["timestamp"] = 30
    device.repositories.director.publish("timestamp")
    assert device.refresh().assignments == (made,)
    device.start()
    assert device.refresh().assignments == (made,)
