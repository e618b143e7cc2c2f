"""Full verification: the chain of each repository, honest and attacked. Agreement is in test_trust_assignments.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, Root

from edge_agent.trust.timefloor import TimeFloor
from edge_agent.trust.uptane import UptaneVerifier
from edge_contract.deployment import Policy
from edge_contract.errors import EdgeError
from tests.support.tufrepo import DAY_MS, NOW_MS, TufRepository, TwoRepositories, path_of, set_threshold
from tests.unit.agent.trustbench import Device

# --- the honest case --------------------------------------------------------------------------------------------------


def test_an_assignment_that_both_repositories_know_is_desired(device: Device) -> None:
    made = device.repositories.deploy(1, Policy(sampling_ratio=0.25, probation_ms=10))
    desired = device.refresh()
    assert desired.assignments == (made,)
    assert desired.director_version == device.repositories.director.versions["targets"]


def test_nothing_assigned_needs_no_image_repository(device: Device) -> None:
    device.repositories.image.files.clear()
    assert device.refresh().assignments == ()


def test_several_modules_are_found_in_their_bins(device: Device) -> None:
    made = [device.repositories.release(1, model=f"model-{n}") for n in range(8)]
    device.repositories.assign(*made)
    assert set(device.refresh().assignments) == set(made)
    bins = {name for name in device.repositories.image.asked if ".bins-" in name}
    assert 0 < len(bins) <= 8, "only bins that hold an assigned target are fetched"


def test_a_second_refresh_fetches_nothing_but_what_may_have_changed(device: Device) -> None:
    device.repositories.deploy(1)
    device.refresh()
    for repository in (device.repositories.director, device.repositories.image):
        repository.asked.clear()
    device.refresh()
    for repository in (device.repositories.director, device.repositories.image):
        assert repository.asked == ["timestamp.json"]


def test_trusted_metadata_survives_a_restart_and_expiry_and_never_blocks_a_refresh(device: Device) -> None:
    device.repositories.deploy(1)
    device.refresh()
    device.start()
    device.wall_ms = device.repositories.advance(200)
    made = device.repositories.deploy(2)
    assert device.refresh().assignments == (made,)


def test_damaged_files_on_disk_are_fetched_again(device: Device) -> None:
    made = device.repositories.deploy(1)
    device.refresh()
    for path in device.folder.rglob("*.json"):
        if path.name not in ("root.json", "time.json"):
            path.write_bytes(b"\x00" * 100)
    device.start()
    assert device.refresh().assignments == (made,)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00" * 6_000_000])
def test_a_damaged_root_on_disk_is_walked_to_again_from_the_first(device: Device, damage: bytes) -> None:
    device.repositories.deploy(1)
    for repository in (device.repositories.director, device.repositories.image):
        repository.rotate("root")
        repository.rotate("timestamp")
        repository.publish()
    device.refresh()
    for name in ("director", "image"):
        for file in ("root", "timestamp", "snapshot", "targets"):
            (device.folder / name / f"{file}.json").write_bytes(damage)
    device.start()
    made = device.repositories.deploy(2)
    assert device.refresh().assignments == (made,)
    assert b'"version":3' in (device.folder / "director" / "root.json").read_bytes()


def test_a_damaged_first_root_is_no_root(device: Device) -> None:
    device.refresh()
    for name in ("root.json", "seed"):
        (device.folder / "director" / name).write_bytes(b"{}")
    device.repositories.deploy(1)
    assert device.refused() == "trust.metadata-invalid"
    device.start()
    device.refresh()


def test_bins_that_are_no_longer_needed_leave_the_disk(device: Device) -> None:
    for version in range(1, 6):
        device.repositories.deploy(version)
        device.refresh()
    assert len([name for name in device.on_disk() if "bins" in name]) == 1


# --- arbitrary software
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_role_signed_by_somebody_else_is_refused(device: Device, role: str) -> None:
    director = device.repositories.director
    director.signers[role] = [CryptoSigner.generate_ed25519()]
    director.publish()
    assert device.refused() == "trust.signature-invalid"


def test_unsigned_metadata_is_refused(device: Device) -> None:
    director = device.repositories.director
    director.put("timestamp", director.make_timestamp(), signers=[])
    assert device.refused() == "trust.signature-invalid"


def test_a_changed_byte_under_a_signature_is_refused(device: Device) -> None:
    device.repositories.deploy(1)
    files = device.repositories.director.files
    document = json.loads(files["timestamp.json"])
    document["signed"]["version"] += 1
    files["timestamp.json"] = json.dumps(document).encode()
    assert device.refused() == "trust.signature-invalid"


def test_a_bin_signed_by_the_wrong_key_is_refused(device: Device) -> None:
    made = device.repositories.deploy(1)
    image = device.repositories.image
    role = image.bin_of(path_of(made))
    stranger = [CryptoSigner.generate_ed25519()]
    image.put(role, image.make_targets(role), stranger)
    image.put("snapshot", image.make_snapshot())
    image.put("timestamp", image.make_timestamp())
    assert device.refused() == "trust.signature-invalid"


def test_one_signature_of_two_is_too_few(device: Device) -> None:
    director = device.repositories.director
    pair = [CryptoSigner.generate_ed25519() for _ in range(2)]
    director.publish_root(lambda root: set_threshold(root, "timestamp", pair, 2))
    director.signers["timestamp"] = pair[:1]
    director.publish()
    assert device.refused() == "trust.signature-invalid"
    director.signers["timestamp"] = pair
    director.publish()
    device.refresh()


# --- roots
# ----------------------------------------------------------------------------------------------------------------


def test_a_chain_of_rotated_roots_is_followed(device: Device) -> None:
    made = device.repositories.deploy(1)
    for role in ("root", "timestamp", "root", "targets", "snapshot"):
        device.repositories.director.rotate(role)
    device.repositories.director.publish()
    assert device.refresh().assignments == (made,)
    device.start()
    assert device.refresh().assignments == (made,)


def test_a_new_root_without_the_old_keys_is_refused(device: Device) -> None:
    stranger = CryptoSigner.generate_ed25519()

    def replace(root: Root) -> None:
        set_threshold(root, "root", [stranger], 1)

    device.repositories.director.publish_root(replace, [stranger])
    assert device.refused() == "trust.signature-invalid"


def test_a_new_root_without_its_own_keys_is_refused(device: Device) -> None:
    stranger = CryptoSigner.generate_ed25519()
    director = device.repositories.director

    def replace(root: Root) -> None:
        set_threshold(root, "root", [stranger], 1)

    director.publish_root(replace, director.signers["root"])
    assert device.refused() == "trust.signature-invalid"


def test_a_root_that_skips_a_version_is_refused(device: Device) -> None:
    director = device.repositories.director
    director.publish_root()
    director.publish_root()
    director.files["2.root.json"] = director.files["3.root.json"]
    assert device.refused() == "trust.metadata-mismatch"


def test_an_old_root_under_a_new_name_is_refused(device: Device) -> None:
    director = device.repositories.director
    director.files["2.root.json"] = director.files["1.root.json"]
    assert device.refused() == "trust.metadata-rollback"


def test_an_expired_last_root_is_refused_and_an_expired_one_in_between_is_not(device: Device) -> None:
    device.wall_ms = device.repositories.advance(400)
    assert device.refused() == "trust.metadata-expired"
    device.repositories.director.publish_root()
    device.refresh()


def test_a_device_without_a_root_says_so(tmp_path: Path, repositories: TwoRepositories) -> None:
    floor = TimeFloor(tmp_path / "time.json")
    nothing = UptaneVerifier(tmp_path, "dev-1", repositories.director.fetch, repositories.image.fetch, dict, floor)
    with pytest.raises(EdgeError) as caught:
        nothing.refresh(NOW_MS)
    assert caught.value.code == "trust.root-unknown"


def test_versions_driven_up_with_stolen_keys_are_forgotten_when_the_keys_are_rotated(device: Device) -> None:
    director = device.repositories.director
    director.versions["timestamp"] = director.versions["snapshot"] = 1_000_000
    director.publish()
    device.refresh()
    director.versions["timestamp"] = director.versions["snapshot"] = 10
    director.publish()
    assert device.refused() == "trust.metadata-rollback"
    director.rotate("timestamp")
    director.rotate("snapshot")
    director.publish()
    assert device.refresh().director_version == director.versions["targets"]


def stolen_two_of_three(device: Device) -> list[CryptoSigner]:
    """Snapshot and timestamp need two of three keys; versions were driven up with all of them."""
    director = device.repositories.director
    trio = [CryptoSigner.generate_ed25519() for _ in range(3)]
    for role in ("snapshot", "timestamp"):
        director.signers[role] = list(trio)
        director.publish_root(lambda root, role=role: set_threshold(root, role, trio, 2))  # type: ignore[misc]
    director.versions["timestamp"] = director.versions["snapshot"] = 1_000_000
    director.publish()
    device.refresh()
    director.versions["timestamp"] = director.versions["snapshot"] = 10
    return trio


def test_one_new_key_of_three_is_enough_to_forget_driven_up_versions(device: Device) -> None:
    trio = stolen_two_of_three(device)
    director = device.repositories.director
    trio[0] = CryptoSigner.generate_ed25519()
    director.signers["timestamp"] = director.signers["snapshot"] = trio
    director.publish_root(lambda root: set_threshold(root, "timestamp", trio, 2))
    director.publish_root(lambda root: set_threshold(root, "snapshot", trio, 2))
    director.publish()
    device.start()
    assert device.refresh().director_version == director.versions["targets"]


def test_a_key_more_or_another_threshold_forgets_nothing(device: Device) -> None:
    trio = stolen_two_of_three(device)
    director = device.repositories.director
    more = [*trio, CryptoSigner.generate_ed25519()]
    director.signers["timestamp"] = director.signers["snapshot"] = more
    director.publish_root(lambda root: set_threshold(root, "timestamp", more, 1))
    director.publish_root(lambda root: set_threshold(root, "snapshot", more, 3))
    director.publish()
    assert device.refused() == "trust.metadata-rollback"


def test_a_key_under_two_names_is_one_key(device: Device) -> None:
    director = device.repositories.director
    signer = CryptoSigner.generate_ed25519()
    twin = CryptoSigner(signer._private_key, type(signer.public_key).from_dict("twin", signer.public_key.to_dict()))
    director.publish_root(lambda root: set_threshold(root, "timestamp", [signer, twin], 2))
    director.signers["timestamp"] = [signer, twin]
    director.publish()
    assert device.refused() == "trust.signature-invalid"


def test_a_device_that_was_away_for_ten_roots_follows_all_of_them(device: Device) -> None:
    made = device.repositories.deploy(1)
    device.refresh()
    for _ in range(10):
        device.wall_ms = device.repositories.advance(300)
        for repository in (device.repositories.director, device.repositories.image):
            for role in ("root", "timestamp", "snapshot"):
                repository.rotate(role)
            repository.publish()
    device.start()
    assert device.refresh().assignments == (made,)
    assert device.repositories.director.versions["root"] == 31


def test_a_new_enrolment_forgets_what_the_old_roots_signed(device: Device) -> None:
    device.repositories.deploy(1)
    device.refresh()
    device.repositories = fresh = TwoRepositories()
    device.roots = (fresh.director.files["1.root.json"], fresh.image.files["1.root.json"])
    device.start()
    assert device.refresh().assignments == ()


# --- rollback
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["director", "image"])
def test_an_older_timestamp_is_refused(device: Device, name: str) -> None:
    device.repositories.deploy(1)
    repository: TufRepository = getattr(device.repositories, name)
    old = repository.files["timestamp.json"]
    repository.publish()
    device.refresh()
    repository.files["timestamp.json"] = old
    device.start()
    assert device.refused() == "trust.metadata-rollback"


def test_a_newer_timestamp_that_names_an_older_snapshot_is_refused(device: Device) -> None:
    director = device.repositories.director
    director.publish()
    device.refresh()
    director.versions["snapshot"] -= 1
    director.put("timestamp", director.make_timestamp())
    assert device.refused() == "trust.metadata-rollback"


def test_a_newer_snapshot_that_lists_older_targets_is_refused(device: Device) -> None:
    device.repositories.deploy(1)
    director = device.repositories.director
    device.refresh()
    director.versions["targets"] -= 1
    director.put("snapshot", director.make_snapshot())
    director.put("timestamp", director.make_timestamp())
    assert device.refused() == "trust.metadata-rollback"


def test_a_snapshot_that_drops_a_role_is_refused(device: Device) -> None:
    device.repositories.deploy(1)
    device.refresh()
    image = device.repositories.image
    snapshot = image.make_snapshot()
    del snapshot.meta["bins-0.json"]
    image.put("snapshot", snapshot)
    image.put("timestamp", image.make_timestamp())
    assert device.refused() == "trust.metadata-rollback"


# --- freeze
# -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "role"), [(1.5, "timestamp"), (8, "snapshot"), (40, "targets")])
def test_frozen_metadata_is_refused_when_it_expires(device: Device, days: float, role: str) -> None:
    device.repositories.deploy(1)
    device.refresh()
    director = device.repositories.director
    director.days |= {"timestamp": 100}
    if role == "targets":
        director.days |= {"snapshot": 100}
    if role != "timestamp":
        director.publish("snapshot", "timestamp")
    device.wall_ms = NOW_MS + int(days * DAY_MS)
    with pytest.raises(EdgeError, match=f"director repository: {role} version") as caught:
        device.refresh()
    assert caught.value.code == "trust.metadata-expired"


def test_a_frozen_image_repository_is_noticed(device: Device) -> None:
    device.repositories.deploy(1)
    device.refresh()
    device.wall_ms = device.repositories.director.wall_ms = NOW_MS + 2 * DAY_MS
    device.repositories.director.publish()
    assert device.refused() == "trust.metadata-expired"


# --- mix and match
# ------------------------------------------------------------------------------------------------------------


def test_a_snapshot_of_another_time_is_refused(device: Device) -> None:
    director = device.repositories.director
    before = director.files[f"{director.versions['snapshot']}.snapshot.json"]
    director.publish()
    director.files[f"{director.versions['snapshot']}.snapshot.json"] = before
    assert device.refused() == "trust.metadata-mismatch"


def test_targets_of_another_time_are_refused(device: Device) -> None:
    device.repositories.deploy(1)
    director = device.repositories.director
    before = director.files[f"{director.versions['targets']}.targets.json"]
    device.repositories.deploy(2)
    director.files[f"{director.versions['targets']}.targets.json"] = before
    assert device.refused() == "trust.metadata-mismatch"


def test_a_version_that_was_not_announced_is_refused_even_without_hashes(device: Device) -> None:
    director = device.repositories.director
    timestamp = director.make_timestamp()
    timestamp.snapshot_meta = MetaFile(director.versions["snapshot"] + 1)
    director.put("timestamp", timestamp)
    director.files[f"{director.versions['snapshot'] + 1}.snapshot.json"] = director.files[
        f"{director.versions['snapshot']}.snapshot.json"
    ]
    assert device.refused() == "trust.metadata-mismatch"


def test_one_kind_of_metadata_for_another_is_refused(device: Device) -> None:
    director = device.repositories.director
    director.files["timestamp.json"] = director.files["1.root.json"]
    assert device.refused() == "trust.metadata-invalid"


def test_targets_the_snapshot_does_not_list_are_refused(device: Device) -> None:
    director = device.repositories.director
    snapshot = director.make_snapshot()
    snapshot.meta = {"other.json": MetaFile(1)}
    director.put("snapshot", snapshot)
    director.put("timestamp", director.make_timestamp())
    assert device.refused() == "trust.metadata-mismatch"
