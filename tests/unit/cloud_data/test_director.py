"""The director: what each device should run, with versions that mean something."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from cloud_registry.adapters.director import TufDirector
from cloud_registry.adapters.image_repo import TufImageRepository
from cloud_registry.adapters.tuf_keys import OnlineKeys
from cloud_registry.limits import DIRECTOR_TARGETS_LIFE_MS, TIMESTAMP_LIFE_MS
from edge_contract.deployment import Assignment, Policy, read_director_custom, target_path
from edge_contract.errors import EdgeError
from tests.support.author import Author, bundle
from tests.unit.cloud_data.support import MemoryTable, SetAssignments, SetClock


def assignment(model: str = "digits", version: int = 1, module: str = "", **policy: Any) -> Assignment:
    digest, length, artifact = bundle(model, version)
    return Assignment(module or model, f"d-{version}", digest, length, artifact, Policy(**policy))


class Desk:
    """A director on a table in memory."""

    def __init__(self, folder: Path) -> None:
        self.clock = SetClock(int(datetime.now(UTC).timestamp() * 1000))
        self.table = MemoryTable()
        self.keys = OnlineKeys(folder / "keys")
        self.assignments = SetAssignments()
        self.assignments.by_device["d1"] = ()
        self.director = self.opened()

    def opened(self) -> TufDirector:
        return TufDirector(self.table, self.keys, self.assignments, self.clock)

    def with_root(self) -> Desk:
        images = TufImageRepository(self.table, self.keys, self.clock)
        author = Author(images.trust_summary()["online_keys"])
        images.submit_roots(None, author.signed_root("director"))
        return self

    def chain(self, device: str = "d1") -> tuple[Timestamp, Snapshot, Targets]:
        """What a device would read now, verified from the root."""
        root = Metadata[Root].from_bytes(self.director.metadata(device, "1.root.json")).signed
        timestamp = Metadata[Timestamp].from_bytes(self.director.metadata(device, "timestamp.json"))
        root.verify_delegate("timestamp", timestamp.signed_bytes, timestamp.signatures)
        meta = timestamp.signed.snapshot_meta
        data = self.director.metadata(device, f"{meta.version}.snapshot.json")
        meta.verify_length_and_hashes(data)
        snapshot = Metadata[Snapshot].from_bytes(data)
        root.verify_delegate("snapshot", snapshot.signed_bytes, snapshot.signatures)
        version = snapshot.signed.meta["targets.json"].version
        targets = Metadata[Targets].from_bytes(self.director.metadata(device, f"{version}.targets.json"))
        root.verify_delegate("targets", targets.signed_bytes, targets.signatures)
        return timestamp.signed, snapshot.signed, targets.signed

    def versions(self, device: str = "d1") -> tuple[int, int, int]:
        timestamp, snapshot, targets = self.chain(device)
        return timestamp.version, snapshot.version, targets.version


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path).with_root()


def code_of(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(EdgeError) as caught:
        call(*args)
    return caught.value.code


def test_without_a_root_there_is_no_metadata(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.director.root() is None
    assert desk.director.version("d1") == 0
    assert code_of(desk.director.metadata, "d1", "timestamp.json") == "trust.root-unknown"
    assert code_of(desk.director.metadata, "d1", "1.root.json") == "cloud.not-found"


def test_a_device_with_nothing_assigned_is_named_all_the_same(desk: Desk) -> None:
    _, _, targets = desk.chain()
    assert targets.targets == {}
    assert targets.unrecognized_fields["lighterman"] == {"device": "d1"}
    assert targets.delegations is None


def test_an_assignment_is_read_back_as_it_was_made(desk: Desk) -> None:
    wanted = assignment(sampling_ratio=0.25, probation_ms=500, allow_release_rollback=True)
    desk.assignments.by_device["d1"] = (wanted,)
    _, _, targets = desk.chain()
    path = target_path("digits", 1, wanted.manifest)
    target = targets.targets[path]
    assert target.hashes == {"sha256": wanted.manifest.hex}
    assert read_director_custom(target.custom, wanted.manifest, target.length) == (wanted,)


def test_versions_rise_only_when_something_changed(desk: Desk) -> None:
    assert desk.versions() == (1, 1, 1)
    assert desk.versions() == (1, 1, 1)
    assert desk.director.version("d1") == 1
    desk.assignments.by_device["d1"] = (assignment(),)
    desk.director.invalidate("d1")
    assert desk.director.version("d1") == 2
    assert desk.versions() == (2, 2, 2)
    assert desk.opened().version("d1") == 2
    desk.assignments.by_device["d1"] = (assignment(sampling_ratio=0.5),)
    assert desk.versions() == (3, 3, 3)
    desk.assignments.by_device["d1"] = (replace(assignment(sampling_ratio=0.5), deployment="other"),)
    assert desk.versions() == (4, 4, 4)
    desk.assignments.by_device["d1"] = ()
    assert desk.versions() == (5, 5, 5)


def test_a_timestamp_is_renewed_without_a_new_version_of_the_targets(desk: Desk) -> None:
    desk.versions()
    desk.clock.now_ms += TIMESTAMP_LIFE_MS // 2 - 1_000
    assert desk.versions() == (1, 1, 1)
    desk.clock.now_ms += 1_000
    assert desk.versions() == (2, 1, 1)
    assert desk.director.version("d1") == 1


def test_a_timestamp_says_when_it_was_signed(desk: Desk) -> None:
    assert desk.chain()[0].unrecognized_fields == {"lighterman": {"signed_ms": desk.clock.now_ms}}
    desk.clock.now_ms += TIMESTAMP_LIFE_MS
    assert desk.chain()[0].unrecognized_fields == {"lighterman": {"signed_ms": desk.clock.now_ms}}


def test_targets_near_their_expiry_get_a_new_version(desk: Desk) -> None:
    desk.versions()
    desk.clock.now_ms += DIRECTOR_TARGETS_LIFE_MS // 2
    timestamp, snapshot, targets = desk.chain()
    assert (timestamp.version, snapshot.version, targets.version) == (2, 2, 2)
    now = datetime.fromtimestamp(desk.clock.now_ms / 1000, UTC)
    for part in (timestamp, snapshot, targets):
        assert not part.is_expired(now)
    assert (targets.expires - now).total_seconds() > 6.9 * 24 * 3_600


def test_a_device_in_the_middle_of_a_refresh_can_finish_it(desk: Desk) -> None:
    desk.versions()
    desk.director.metadata("d1", "timestamp.json")
    desk.assignments.by_device["d1"] = (assignment(),)
    desk.director.version("d1")
    assert desk.director.metadata("d1", "1.snapshot.json")
    assert desk.director.metadata("d1", "1.targets.json")
    desk.assignments.by_device["d1"] = ()
    desk.director.version("d1")
    assert code_of(desk.director.metadata, "d1", "1.targets.json") == "cloud.not-found"
    assert desk.director.metadata("d1", "2.targets.json")


def test_devices_have_metadata_of_their_own(desk: Desk) -> None:
    desk.assignments.by_device["d2"] = (assignment("letters", 4),)
    assert desk.chain("d1")[2].targets == {}
    assert len(desk.chain("d2")[2].targets) == 1
    assert desk.chain("d2")[2].unrecognized_fields["lighterman"] == {"device": "d2"}


def test_an_unknown_device_gets_nothing_and_leaves_nothing(desk: Desk) -> None:
    before = dict(desk.table.rows)
    assert code_of(desk.director.metadata, "stranger", "timestamp.json") == "cloud.not-found"
    assert code_of(desk.director.metadata, "../d1", "timestamp.json") == "cloud.name-invalid"
    assert code_of(desk.director.metadata, "stranger", "1.targets.json") == "cloud.not-found"
    assert desk.table.rows == before


@pytest.mark.parametrize(
    "name",
    ["", "x", "root.json", "targets.json", "0.targets.json", "9.targets.json", "01.targets.json", "1.bins-00.json",
     "1.timestamp.json", "1.targets", "-1.targets.json", "1" * 40 + ".targets.json", "٣.targets.json", "2.root.json"],
)  # fmt: skip
def test_other_file_names_lead_nowhere(desk: Desk, name: str) -> None:
    desk.versions()
    assert code_of(desk.director.metadata, "d1", name) == "cloud.not-found"


def test_a_deleted_device_is_forgotten(desk: Desk) -> None:
    desk.assignments.by_device["d1"] = (assignment(),)
    desk.versions()
    desk.director.forget("d1")
    assert ("director/d1", "current") not in desk.table.rows
    assert desk.director.metadata("d1", "1.root.json")
    assert desk.versions() == (1, 1, 1)


def test_two_processes_never_give_out_two_documents_of_one_version(desk: Desk) -> None:
    desk.versions()
    for turn in range(2, 12):
        desk.assignments.by_device["d1"] = (assignment(version=turn),)
        barrier = threading.Barrier(3)
        seen: list[bytes] = []
        failures: list[EdgeError] = []

        def ask(barrier: threading.Barrier, seen: list[bytes], failures: list[EdgeError]) -> None:
            director = desk.opened()
            barrier.wait(10)
            try:
                seen.append(director.metadata("d1", "timestamp.json"))
            except EdgeError as error:
                failures.append(error)

        threads = [threading.Thread(target=ask, args=(barrier, seen, failures)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not failures
        assert len(seen) == 3
        assert len(set(seen)) == 1
        assert desk.versions() == (turn, turn, turn)


def test_two_modules_with_the_same_bundle_stand_in_one_target(desk: Desk) -> None:
    both = (assignment(module="left"), assignment(module="right"))
    desk.assignments.by_device["d1"] = both
    (target,) = desk.chain()[2].targets.values()
    assert read_director_custom(target.custom, both[0].manifest, target.length) == both
