"""Full verification against repositories that python-tuf made, honest and hostile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Delegations, MetaFile, Root, SuccinctRoles

from edge_agent.ports import Desired
from edge_agent.store import durable
from edge_agent.trust.timefloor import TimeFloor
from edge_agent.trust.uptane import UptaneVerifier
from edge_contract.deployment import Policy
from edge_contract.errors import EdgeError
from tests.support.tufrepo import DAY_MS, NOW_MS, TufRepository, TwoRepositories, path_of, set_threshold


class Device:
    """A verifier with its folder, its clock and what it has installed; it can be started anew."""

    def __init__(self, folder: Path, repositories: TwoRepositories) -> None:
        self.folder = folder
        self.repositories = repositories
        self.wall_ms = NOW_MS
        self.installed: dict[str, int] = {}
        self.roots = (repositories.director.files["1.root.json"], repositories.image.files["1.root.json"])
        self.start()

    def start(self) -> None:
        """As after a restart."""
        self.floor = TimeFloor(self.folder / "time.json", released_ms=NOW_MS - 365 * DAY_MS)
        self.verifier = UptaneVerifier(
            self.folder,
            self.repositories.device,
            self.repositories.director.fetch,
            self.repositories.image.fetch,
            lambda: self.installed,
            self.floor,
        )
        self.verifier.seed(*self.roots)

    def refresh(self) -> Desired:
        return self.verifier.refresh(self.wall_ms)

    def refused(self) -> str:
        """The code of the error that a refresh ends with."""
        with pytest.raises(EdgeError) as caught:
            self.refresh()
        return caught.value.code

    def on_disk(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*.json")}


@pytest.fixture
def repositories() -> TwoRepositories:
    return TwoRepositories()


@pytest.fixture
def device(tmp_path: Path, repositories: TwoRepositories) -> Device:
    return Device(tmp_path / "trust", repositories)


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


# --- the wrong device
# -----------------------------------------------------------------------------------------------------------


def test_another_devices_metadata_is_refused_and_does_not_shut_out_our_own(device: Device) -> None:
    device.repositories.deploy(1)
    device.refresh()
    before = device.on_disk()
    director = device.repositories.director
    honest = dict(director.files)
    # The same keys sign for every device, and the other one is far ahead of us.
    director.signed_fields = {"lighterman": {"device": "dev-2"}}
    for _ in range(20):
        director.publish()
    assert device.refused() == "trust.wrong-device"
    assert device.on_disk() == before
    director.files = honest
    device.refresh()


@pytest.mark.parametrize(
    "fields", [{}, {"lighterman": "dev-1"}, {"lighterman": {}}, {"lighterman": {"device": ["dev-1"]}}]
)
def test_director_targets_that_name_no_device_are_refused(device: Device, fields: dict[str, object]) -> None:
    device.repositories.director.signed_fields = fields
    device.repositories.director.publish()
    assert device.refused() == "trust.wrong-device"


# --- the two repositories
# -------------------------------------------------------------------------------------------------------


def test_an_artifact_the_image_repository_never_signed_is_refused(device: Device) -> None:
    made = device.repositories.release(1)
    del device.repositories.image.targets[path_of(made)]
    device.repositories.image.publish()
    device.repositories.assign(made)
    assert device.refused() == "trust.target-unknown"


def test_a_director_that_changes_the_artifact_is_refused(device: Device) -> None:
    made = device.repositories.release(1)
    custom = made.custom()
    for key, value in {
        "platform": "linux/arm64",
        "release_counter": 99,
        "repository": "bundles/other",
        "hardware_ids": ["board-7"],
    }.items():
        device.repositories.director.targets.clear()
        device.repositories.director.set_target(
            path_of(made), made.manifest_bytes, {"sha256": made.manifest.hex}, {**custom, key: value}
        )
        device.repositories.director.publish()
        with pytest.raises(EdgeError, match=key) as caught:
            device.refresh()
        assert caught.value.code == "trust.repositories-disagree"


def test_a_director_that_changes_the_length_is_refused(device: Device) -> None:
    made = device.repositories.release(1)
    device.repositories.director.set_target(
        path_of(made), made.manifest_bytes + 1, {"sha256": made.manifest.hex}, made.custom()
    )
    device.repositories.director.publish()
    assert device.refused() == "trust.repositories-disagree"


def test_hashes_that_differ_in_one_algorithm_are_refused(device: Device) -> None:
    made = device.repositories.deploy(1)
    image, path = device.repositories.image, path_of(made)
    hashes = {"sha256": made.manifest.hex, "sha512": "0" * 128}
    image.set_target(path, made.manifest_bytes, hashes, made.artifact.to_json())
    image.publish()
    device.refresh()  # one algorithm is enough, as long as none of both contradicts
    director = device.repositories.director
    director.set_target(path, made.manifest_bytes, hashes | {"sha512": "1" * 128}, made.custom())
    director.publish()
    assert device.refused() == "trust.repositories-disagree"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda made: {"path": "digits/1/other.json"},
        lambda made: {"path": "digits/2/" + made.manifest.hex + ".json"},
        lambda made: {"hashes": {"sha512": "0" * 128}},
        lambda made: {"custom": {}},
        lambda made: {"custom": {**made.custom(), "module": "../etc"}},
        lambda made: {"custom": {**made.custom(), "policy": {"sampling_ppm": 2_000_000}}},
        lambda made: {"length": 0},
        lambda made: {"length": 2**40},
    ],
)
def test_a_director_target_that_is_no_assignment_is_refused(
    device: Device, spoil: Callable[..., dict[str, object]]
) -> None:
    made = device.repositories.release(1)
    fields = {
        "path": path_of(made),
        "length": made.manifest_bytes,
        "hashes": {"sha256": made.manifest.hex},
        "custom": made.custom(),
        **spoil(made),
    }
    device.repositories.director.set_target(**fields)  # type: ignore[arg-type]
    device.repositories.director.publish()
    assert device.refused() == "trust.metadata-invalid"


def test_two_bundles_for_one_module_are_refused(device: Device) -> None:
    device.repositories.assign(device.repositories.release(1), device.repositories.release(2))
    assert device.refused() == "trust.metadata-invalid"


def test_a_director_that_delegates_is_refused(device: Device) -> None:
    director = device.repositories.director
    targets = director.make_targets()
    key = CryptoSigner.generate_ed25519().public_key
    targets.delegations = Delegations({key.keyid: key}, succinct_roles=SuccinctRoles([key.keyid], 1, 4, "x"))
    director.put("targets", targets)
    director.publish("snapshot")
    assert device.refused() == "trust.metadata-invalid"


# --- release counters
# -----------------------------------------------------------------------------------------------------------


def test_a_falling_release_counter_needs_a_permit(device: Device) -> None:
    device.installed = {"digits": 5}
    device.repositories.deploy(4)
    assert device.refused() == "trust.release-rollback"
    made = device.repositories.deploy(4, Policy(allow_release_rollback=True))
    assert device.refresh().assignments == (made,)
    device.repositories.deploy(5)
    assert device.refresh().assignments[0].artifact.version == 5


# --- endless data, rubbish
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json"])
def test_endless_metadata_is_refused(device: Device, name: str) -> None:
    device.repositories.director.files[name] = b" " * 6_000_000
    assert device.refused() == "trust.metadata-too-large"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"signed":{},"signatures":[]}',
        b'{"signed":{"_type":"timestamp"},"signatures":[]}',
        b'{"signed":null,"signatures":null}',
    ],
)
def test_rubbish_is_refused(device: Device, data: bytes) -> None:
    device.repositories.director.files["timestamp.json"] = data[:16_000]
    assert device.refused() == "trust.metadata-invalid"


def _mutations(document: object) -> list[object]:
    """The document with each of its values replaced by each of some odd ones, one at a time."""
    odd: list[object] = [None, True, -1, 1.5, 2**70, "", "x" * 50, [], {}, [None], {"a": None}]
    result: list[object] = []

    def walk(node: object, rebuild: Callable[[object], object]) -> None:
        result.extend(rebuild(value) for value in odd)
        if isinstance(node, dict):
            result.extend(rebuild({k: v for k, v in node.items() if k != key}) for key in node)
            for key, value in node.items():
                walk(value, lambda new, key=key: rebuild({**node, key: new}))  # type: ignore[misc]
        elif isinstance(node, list):
            for place, value in enumerate(node):
                walk(value, lambda new, place=place: rebuild([*node[:place], new, *node[place + 1 :]]))  # type: ignore[misc]

    walk(document, lambda new: new)
    return result


@pytest.mark.parametrize(
    "name", ["timestamp.json", "2.root.json", "{snapshot}.snapshot.json", "{targets}.targets.json"]
)
def test_no_spoiled_document_is_trusted_or_breaks_the_verifier(device: Device, name: str) -> None:
    device.repositories.deploy(1)
    director = device.repositories.director
    director.publish_root()
    name = name.format(**director.versions)
    genuine = director.files[name]
    original = json.loads(genuine)
    spoiled = [document for document in _mutations(original) if document != original]
    assert len(spoiled) > 100
    for document in spoiled:
        director.files[name] = json.dumps(document).encode()
        (device.folder / "director" / "root.json").write_bytes(device.roots[0])
        device.start()
        try:
            device.refresh()
        except EdgeError as error:
            assert error.code.startswith("trust."), error  # noqa: PT017
        else:
            # Unsigned surroundings and further signatures carry no meaning; what is signed has to be whole.
            assert isinstance(document, dict)
            assert document["signed"] == original["signed"]
    director.files[name] = genuine
    device.refresh()


def test_a_key_that_stands_twice_is_refused(device: Device) -> None:
    files = device.repositories.director.files
    files["timestamp.json"] = files["timestamp.json"].replace(b'"_type"', b'"_type":"timestamp","_type"', 1)
    assert device.refused() == "trust.metadata-invalid"


# --- the clock
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wall_ms", [0, -1, 1_000, 946_684_800_000])
def test_a_clock_in_the_past_is_reported_and_nothing_is_fetched(device: Device, wall_ms: int) -> None:
    device.repositories.deploy(1)
    device.wall_ms = wall_ms
    asked = len(device.repositories.director.asked)
    assert device.refused() == "device.clock-untrusted"
    assert len(device.repositories.director.asked) == asked


def test_a_clock_far_ahead_finds_everything_expired_and_leaves_the_floor_alone(device: Device) -> None:
    device.repositories.deploy(1)
    for wall_ms in (NOW_MS + 1000 * DAY_MS, 2**62):
        device.wall_ms = wall_ms
        assert device.refused() == "trust.metadata-expired"
    device.wall_ms = NOW_MS
    device.refresh()


def test_a_clock_put_back_to_keep_old_metadata_fresh_is_noticed(device: Device) -> None:
    device.repositories.deploy(1)
    device.refresh()
    device.wall_ms = device.repositories.advance(30)
    device.refresh()
    device.wall_ms = NOW_MS
    device.start()
    assert device.refused() == "device.clock-untrusted"


# --- what stays in force
# --------------------------------------------------------------------------------------------------------


def test_bad_metadata_changes_nothing_on_disk_and_the_next_good_one_is_taken(device: Device) -> None:
    device.repositories.deploy(1)
    device.refresh()
    before = device.on_disk()
    director = device.repositories.director
    good = director.signers["targets"]
    director.signers["targets"] = [CryptoSigner.generate_ed25519()]
    device.repositories.deploy(2)
    assert device.refused() == "trust.signature-invalid"
    assert {name: data for name, data in device.on_disk().items() if "image" not in name} == {
        name: data for name, data in before.items() if "image" not in name
    }
    director.signers["targets"] = good
    made = device.repositories.deploy(3)
    assert device.refresh().assignments == (made,)


def test_missing_files_are_a_matter_of_waiting(device: Device) -> None:
    device.repositories.deploy(1)
    director = device.repositories.director
    del director.files[f"{director.versions['snapshot']}.snapshot.json"]
    assert device.refused() == "cloud.unavailable"


def test_a_power_cut_between_any_two_files_is_survived(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.repositories.deploy(1)
    device.refresh()
    real = durable.write_file
    for survivors in range(8):
        device.repositories.director.rotate("timestamp")
        made = device.repositories.deploy(2 + survivors)
        written = 0

        def dying(path: Path, data: bytes, mode: int = 0o600, limit: int = survivors) -> None:
            nonlocal written
            if written == limit:
                raise KeyboardInterrupt
            written += 1
            real(path, data, mode)

        with monkeypatch.context() as patched:
            patched.setattr(durable, "write_file", dying)
            try:
                device.refresh()
            except KeyboardInterrupt:
                device.start()
        assert device.refresh().assignments == (made,)
