"""The runbook's accidents (docs/trust.md), each from the damage to the last device that recovered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root, Timestamp

from cloud_registry.adapters.director import TufDirector
from cloud_registry.adapters.image_repo import TufImageRepository
from cloud_registry.adapters.tuf_keys import OnlineKeys
from cloud_registry.limits import VERSION_MAX
from edge_contract.errors import EdgeError
from packager.delegate import bundles, withdraw
from packager.keychange import renew
from packager.keys import KeyPlan, make, read_public
from packager.keystore import DIRECTOR_ROOT, IMAGE_ROOT, IMAGE_TARGETS, KEY_ROLES, KeyFolder
from tests.integration.trust.thief import ONLINE, Thief, steal
from tests.integration.trust.world import QUIET, Device, Site, maker, plan, ring, some_bundle

GOOD, BETTER, EVIL = some_bundle("digits", 1), some_bundle("digits", 2), some_bundle("digits", 3, "evil")


def in_use(site: Site, device: Device) -> None:
    """A device that runs something."""
    site.publish(GOOD)
    site.assign(GOOD)
    assert device.runs() == [GOOD.digest]


def goes_on(site: Site, device: Device) -> None:
    """The site publishes, and the device follows."""
    site.publish(BETTER)
    site.assign(BETTER)
    assert device.runs() == [BETTER.digest]


def watched(site: Site, device: Device) -> list[bool]:
    """Lets the device look before and after every request of the author."""
    seen: list[bool] = []
    registry = site.registry

    def around(send: Callable[..., None]) -> Callable[..., None]:
        def sent(*arguments: object, **named: object) -> None:
            seen.append(bool(device.runs()))
            send(*arguments, **named)
            seen.append(bool(device.runs()))

        return sent

    registry.submit_roots = around(registry.submit_roots)  # type: ignore[method-assign]
    registry.submit_metadata = around(registry.submit_metadata)  # type: ignore[method-assign]
    return seen


def drop_private(folder: Path, role: str) -> None:
    """Lose the files of a role's keys."""
    for key in KeyFolder.open(folder).of_role(role):
        (folder / key.uri.removeprefix("pem:")).unlink()


# --- lost keys ---


def test_a_lost_targets_key(site: Site, device: Device) -> None:
    in_use(site, device)
    drop_private(site.keys, IMAGE_TARGETS)
    with pytest.raises(EdgeError):
        site.publish(BETTER)
    seen = watched(site, device)
    site.rotate(IMAGE_TARGETS)
    assert seen
    assert all(seen)
    goes_on(site, device)


def test_a_lost_root_key_while_enough_are_left(tmp_path: Path) -> None:
    site = Site(tmp_path, plan(root=(3, 2)))
    device = Device(site, tmp_path / "device")
    in_use(site, device)
    folder = KeyFolder.open(site.keys)
    lost = [folder.of_role(role)[0] for role in (IMAGE_ROOT, DIRECTOR_ROOT)]
    for key in lost:
        (site.keys / key.uri.removeprefix("pem:")).unlink()
    seen = watched(site, device)
    site.rotate(IMAGE_ROOT, DIRECTOR_ROOT, is_keeping=True, count=1, dropped=[key.keyid[:12] for key in lost])
    assert all(seen)
    for name, key in zip(("image", "director"), lost, strict=True):
        root = Metadata[Root].from_bytes(site.serve(name, "2.root.json") or b"").signed.roles["root"]
        assert (len(root.keyids), root.threshold) == (3, 2)
        assert key.keyid not in root.keyids
    goes_on(site, device)


def test_root_keys_lost_below_the_threshold_can_sign_nothing_new(tmp_path: Path) -> None:
    site = Site(tmp_path, plan(root=(2, 2)))
    device = Device(site, tmp_path / "device")
    in_use(site, device)
    key = KeyFolder.open(site.keys).of_role(IMAGE_ROOT)[0]
    (site.keys / key.uri.removeprefix("pem:")).unlink()
    with pytest.raises(EdgeError):
        site.rotate(IMAGE_ROOT)
    # What is delegated already goes on until the root expires; then a new beginning is the only way.
    goes_on(site, device)
    site.registry.clock.days_ahead = 370
    assert device.refused() == "trust.metadata-expired"


def test_a_root_key_of_somebody_else_is_replaced_by_public_halves(tmp_path: Path, site: Site, device: Device) -> None:
    in_use(site, device)
    made = make(tmp_path / "carol", IMAGE_ROOT, KeyPlan({IMAGE_ROOT: 1}, {IMAGE_ROOT: 1}), maker())
    role, public = read_public(Path(made["public_file"]))
    site.rotate(IMAGE_ROOT, is_keeping=True, public={role: public})
    root = Metadata[Root].from_bytes(site.serve("image", "2.root.json") or b"").signed
    assert len(root.roles["root"].keyids) == 2
    # Now both have to sign.
    with pytest.raises(EdgeError):
        site.rotate(IMAGE_ROOT, is_keeping=True, threshold=3)
    site.rotate(IMAGE_ROOT, is_keeping=True, threshold=2, keys=[site.keys, tmp_path / "carol"])
    with pytest.raises(EdgeError, match="needs 2 signatures"):
        site.rotate(IMAGE_ROOT)
    goes_on(site, device)


# --- thresholds ---


def test_the_root_threshold_goes_up_and_down(site: Site, device: Device) -> None:
    in_use(site, device)
    seen = watched(site, device)
    for count, threshold in ((3, 2), (5, 3), (1, 1)):
        site.rotate(IMAGE_ROOT, DIRECTOR_ROOT, count=count, threshold=threshold)
        for name in ("image", "director"):
            number = site.registry.trust()[f"{name}_root_version"]
            root = Metadata[Root].from_bytes(site.serve(name, f"{number}.root.json") or b"").signed.roles["root"]
            assert (len(root.keyids), root.threshold) == (count, threshold)
        assert KeyFolder.open(site.keys).thresholds[IMAGE_ROOT] == threshold
    assert all(seen)
    goes_on(site, device)


def test_a_threshold_that_keys_cannot_reach_is_refused(site: Site) -> None:
    with pytest.raises(EdgeError, match="3 of 2 keys") as caught:
        site.rotate(IMAGE_ROOT, count=2, threshold=3)
    assert caught.value.code == "config.invalid"
    # The refused wish does not linger.
    site.rotate(IMAGE_ROOT, count=2, threshold=2)


# --- time ---


def test_a_device_that_was_away_for_ten_roots(site: Site, device: Device) -> None:
    in_use(site, device)
    for number in range(10):
        site.rotate(IMAGE_ROOT, DIRECTOR_ROOT) if number % 2 else site.rotate("online")
    assert site.registry.trust()["image_root_version"] == 11
    assert site.registry.trust()["director_root_version"] == 11
    device.asked.clear()
    goes_on(site, device)
    assert [name for name in device.asked if name.endswith(".root.json")] == [
        f"{name}/{number}.root.json" for name in ("director", "image") for number in range(2, 13)
    ]


def test_an_expired_root_is_signed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, plan(days=5))
    device = Device(site, tmp_path / "device")
    site.publish(GOOD)
    site.assign(GOOD)
    assert device.runs() == [GOOD.digest]
    site.registry.clock.days_ahead = 6

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(days=6)

    monkeypatch.setattr("packager.tufview.datetime", Later)
    monkeypatch.setattr("packager.tufmake.datetime", Later)
    assert device.refused() == "trust.metadata-expired"
    renew(site.client, ring(site.keys), 365, QUIET)
    goes_on(site, device)


# --- stolen keys ---


@pytest.mark.parametrize("jump", [1, 1_000, VERSION_MAX, 2**53 - 1_000_000])
def test_stolen_online_keys_and_versions_that_were_driven_up(site: Site, device: Device, jump: int) -> None:
    in_use(site, device)
    thief = Thief(site, steal(site, *ONLINE))
    site.publish(BETTER)
    thief.forge_director(BETTER, jump)
    for name in ("timestamp", "snapshot"):
        thief.stolen.setdefault(f"image-{name}", thief.own)
    timestamp, snapshot, _ = thief.newest("image")
    lists = {name.removesuffix(".json"): meta for name, meta in snapshot.meta.items()}
    names = ["image-timestamp", "image-snapshot"]
    thief.chain("image", lists, snapshot.version + jump, timestamp.version + jump, names)
    device.wire = thief.wire
    assert device.runs() == [BETTER.digest], "he can assign what is genuine, and drive versions up"
    device.wire = lambda _repository, _name, data: data
    assert device.refused() == "trust.metadata-rollback"
    site.rotate("online", is_afresh=True)
    site.assign(GOOD)
    assert device.runs() == [GOOD.digest]
    # What he signed, and what he signs from here on, is worth nothing.
    device.wire = thief.wire
    assert device.refused() == "trust.signature-invalid"
    device.wire = lambda _repository, _name, data: data
    goes_on(site, device)


def test_versions_that_were_driven_up_in_the_registry_itself_begin_again(site: Site, device: Device) -> None:
    in_use(site, device)
    repository = site.registry.repository
    rows = site.table.rows  # type: ignore[attr-defined]
    current = repository._now()
    assert current.snapshot is not None
    thief = Thief(site, steal(site, *ONLINE))
    number = VERSION_MAX + 5
    thief.chain("image", current.listed, number, number, ["image-timestamp", "image-snapshot"])
    for name in ("timestamp", f"{number}.snapshot"):
        rows["image", name] = (number, thief.files["image", f"{name}.json"])
    assert device.runs() == [GOOD.digest]
    site.rotate("online", is_afresh=True)
    timestamp = Metadata[Timestamp].from_bytes(site.serve("image", "timestamp.json") or b"").signed
    assert (timestamp.version, timestamp.snapshot_meta.version) == (1, 1)
    goes_on(site, device)


def test_online_keys_change_without_a_moment_in_which_a_device_fails(site: Site, device: Device) -> None:
    in_use(site, device)
    before = site.online.public()
    seen = watched(site, device)
    site.rotate("online")
    assert all(seen)
    after = site.online.public()
    assert all(before[name][role] != after[name][role] for name, role in ONLINE.values())
    goes_on(site, device)


def test_a_device_that_read_the_old_root_a_moment_ago_can_finish(site: Site, device: Device) -> None:
    """The registry signs by both keys when it changes them."""
    in_use(site, device)

    def no_new_roots(_repository: str, name: str, data: bytes | None) -> bytes | None:
        return None if name == "2.root.json" else data

    site.rotate("online")
    device.wire = no_new_roots
    assert device.runs() == [GOOD.digest]
    device.wire = lambda _repository, _name, data: data
    goes_on(site, device)
    # The old key has signed for the last time.
    device.wire = no_new_roots
    site.registry.clock.days_ahead = 1
    fresh = Device(site, site.folder / "fresh")
    fresh.wire = no_new_roots
    site.serve("director", "timestamp.json")
    timestamp = Metadata[Timestamp].from_bytes(site.serve("image", "timestamp.json") or b"")
    assert len(timestamp.signatures) == 1


def test_the_registry_signs_with_what_the_newest_root_trusts_in_every_process(site: Site, device: Device) -> None:
    in_use(site, device)
    other_keys = OnlineKeys(site.online._folder)
    other = TufImageRepository(site.table, other_keys, site.registry.clock)
    director = TufDirector(site.table, other_keys, site.assignments, site.registry.clock)
    other.read("timestamp.json")
    director.version("dev-1")
    site.rotate("online")
    assert other.trust_summary() == site.registry.trust()
    site.registry.clock.days_ahead = 1
    site.registry.repository = other
    site.director = director
    goes_on(site, device)


def test_next_online_keys_are_kept_until_they_are_used_unless_afresh(site: Site) -> None:
    first = site.registry.prepare_online_keys()["next_online_keys"]
    assert site.registry.prepare_online_keys()["next_online_keys"] == first
    assert site.registry.trust()["next_online_keys"] == first
    fresh = site.registry.prepare_online_keys(afresh=True)["next_online_keys"]
    assert all(fresh[name][role] != first[name][role] for name, role in ONLINE.values())
    with pytest.raises(EdgeError) as caught:
        site.registry.prepare_online_keys([{"repository": "image", "role": "root"}])
    assert caught.value.code == "cloud.bad-request"


def test_one_online_key_alone_can_change(site: Site, device: Device) -> None:
    in_use(site, device)
    site.rotate("online", online=[{"repository": "image", "role": "timestamp"}])
    trust = site.registry.trust()
    assert (trust["image_root_version"], trust["director_root_version"]) == (2, 1)
    goes_on(site, device)


def test_a_registry_that_lost_its_online_keys_gets_new_ones(site: Site, device: Device) -> None:
    in_use(site, device)
    folder = site.online._folder
    for path in folder.iterdir():
        path.unlink()
    keys = OnlineKeys(folder)
    site.registry.repository._keys = keys
    site.director = TufDirector(site.table, keys, site.assignments, site.registry.clock)
    assert device.runs() == [GOOD.digest], "what is signed holds until it expires"
    with pytest.raises(EdgeError, match="trusts no") as caught:
        site.publish(BETTER)
    assert caught.value.code == "config.key-invalid"
    site.rotate("online")
    goes_on(site, device)


def test_a_stolen_targets_key(site: Site, device: Device) -> None:
    in_use(site, device)
    stolen = steal(site, IMAGE_TARGETS)
    site.publish(EVIL)  # what the thief got published before anybody noticed
    site.rotate(IMAGE_TARGETS)
    paths = {item["path"] for item in bundles(site.client, ring(site.keys))["bundles"]}
    assert paths == {GOOD.path, EVIL.path}
    withdraw(site.client, ring(site.keys), "digits", EVIL.artifact.version, 365, QUIET)
    site.assign(EVIL)
    assert device.refused() == "trust.target-unknown"
    site.assign(GOOD)
    assert device.runs() == [GOOD.digest]
    thief = Thief(site, stolen | steal(site, *ONLINE))
    thief.forge_image(EVIL)
    thief.forge_director(EVIL)
    device.wire = thief.wire
    assert device.refused() == "trust.signature-invalid", "not even with every key of the registry"
    device.wire = lambda _repository, _name, data: data
    site.rotate("online", is_afresh=True)
    goes_on(site, device)


def test_a_stolen_root_key_below_the_threshold(tmp_path: Path) -> None:
    site = Site(tmp_path, plan(root=(3, 2)))
    device = Device(site, tmp_path / "device")
    in_use(site, device)
    thief = Thief(site, steal(site, IMAGE_ROOT, *ONLINE))
    thief.forge_image(EVIL)
    thief.forge_director(EVIL)
    device.wire = thief.wire
    assert device.refused() == "trust.signature-invalid"
    device.wire = lambda _repository, _name, data: data
    site.rotate(IMAGE_ROOT, DIRECTOR_ROOT, "online", is_afresh=True)
    goes_on(site, device)


def test_everything_is_replaced_at_once(site: Site, device: Device) -> None:
    in_use(site, device)
    seen = watched(site, device)
    old = {key.keyid for key in KeyFolder.open(site.keys).keys}
    site.rotate(*KEY_ROLES, "online")
    assert all(seen)
    assert not old & {key.keyid for role in KEY_ROLES for key in KeyFolder.open(site.keys).of_role(role)}
    goes_on(site, device)
