"""The image repository: only what the author signed, only the next version, all or nothing."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from cloud_registry.adapters.image_repo import TufImageRepository
from cloud_registry.adapters.tuf_keys import OnlineKeys
from cloud_registry.limits import METADATA_HISTORY, TIMESTAMP_LIFE_MS
from edge_contract.delegation import CATALOGUE
from edge_contract.deployment import target_path
from edge_contract.errors import EdgeError
from tests.support.author import PREFIX, Author, bundle, in_days, sign
from tests.unit.cloud_data.support import MemoryTable, SetClock


class Registry:
    """An image repository on a table in memory, and an author for it."""

    def __init__(self, folder: Path) -> None:
        self.clock = SetClock(int(datetime.now(UTC).timestamp() * 1000))
        self.table = MemoryTable()
        self.keys = OnlineKeys(folder / "keys")
        self.images = self.opened()
        self.author = Author(self.images.trust_summary()["online_keys"])

    def opened(self) -> TufImageRepository:
        return TufImageRepository(self.table, self.keys, self.clock)

    def with_roots(self) -> Registry:
        self.images.submit_roots(self.author.signed_root("image"), self.author.signed_root("director"))
        return self

    def with_bins(self) -> Registry:
        self.with_roots().images.submit_metadata(self.author.first_publish())
        return self

    def timestamp(self) -> Timestamp:
        return Metadata[Timestamp].from_bytes(self.images.read("timestamp.json")).signed

    def snapshot(self) -> Snapshot:
        name = f"{self.timestamp().snapshot_meta.version}.snapshot.json"
        return Metadata[Snapshot].from_bytes(self.images.read(name)).signed


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def code_of(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(EdgeError) as caught:
        call(*args)
    return caught.value.code


# --- keys ---


def test_online_keys_are_made_once_and_readable_by_the_owner_alone(tmp_path: Path) -> None:
    first = OnlineKeys(tmp_path / "keys").public()
    assert OnlineKeys(tmp_path / "keys").public() == first
    files = sorted(path.name for path in (tmp_path / "keys").iterdir())
    assert files == [
        "director-snapshot.pem",
        "director-targets.pem",
        "director-timestamp.pem",
        "image-snapshot.pem",
        "image-timestamp.pem",
    ]
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert set(first) == {"image", "director"}
    assert {entry["keytype"] for roles in first.values() for entry in roles.values()} == {"ed25519"}
    assert "private" not in json.dumps(first).lower()


def test_processes_that_start_at_once_agree_about_the_keys(tmp_path: Path) -> None:
    found: list[Any] = []
    barrier = threading.Barrier(4)

    def start() -> None:
        barrier.wait(10)
        found.append(OnlineKeys(tmp_path / "keys").public())

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4
    assert all(item == found[0] for item in found)


def test_a_key_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "image-snapshot.pem").write_text("nothing")
    with pytest.raises(EdgeError) as caught:
        OnlineKeys(tmp_path / "keys").public()
    assert caught.value.code == "config.key-invalid"
    assert "image-snapshot.pem" in caught.value.detail


# --- roots ---


def test_before_the_first_root_there_is_nothing(registry: Registry) -> None:
    summary = registry.images.trust_summary()
    assert (summary["initialised"], summary["image_root_version"], summary["director_root_version"]) == (False, 0, 0)
    assert registry.images.root() is None
    assert registry.images.target("a/1/b.json") is None
    assert code_of(registry.images.read, "timestamp.json") == "cloud.not-found"
    assert code_of(registry.images.read, "1.root.json") == "cloud.not-found"
    assert code_of(registry.images.submit_metadata, {"targets": b"{}"}) == "trust.root-unknown"


def test_the_first_roots_are_taken_and_served_byte_by_byte(registry: Registry) -> None:
    image, director = registry.author.signed_root("image"), registry.author.signed_root("director")
    registry.images.submit_roots(image, director)
    assert registry.images.root() == image
    assert registry.images.read("1.root.json") == image
    summary = registry.images.trust_summary()
    assert (summary["initialised"], summary["image_root_version"], summary["director_root_version"]) == (True, 1, 1)
    registry.images.submit_roots(image, director)
    assert code_of(registry.images.submit_roots, registry.author.signed_root("image", expires=in_days(9)), None) == (
        "cloud.conflict"
    )


def test_one_bad_root_of_two_changes_neither(registry: Registry) -> None:
    bad = registry.author.signed_root("director", version=2)
    assert code_of(registry.images.submit_roots, registry.author.signed_root("image"), bad) == "cloud.conflict"
    assert registry.images.root() is None


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda a: a.signed_root("image", signers=a.root_signers[:1]), "trust.signature-invalid"),
        (lambda a: a.signed_root("image", signers=[]), "trust.signature-invalid"),
        (lambda a: a.signed_root("image", signers=[CryptoSigner.generate_ed25519()] * 2), "trust.signature-invalid"),
        (lambda a: a.signed_root("image").replace(b'"version":1', b'"version":2'), "cloud.conflict"),
        (lambda a: a.signed_root("image").replace(b'"expires":"2', b'"expires":"3'), "trust.signature-invalid"),
        (lambda a: a.signed_root("image", expires=in_days(-1)), "trust.metadata-expired"),
        (lambda a: a.signed_root("image", consistent_snapshot=False), "trust.metadata-invalid"),
        (lambda a: a.signed_root("director"), "trust.metadata-invalid"),
        (lambda a: sign(Targets(expires=in_days(1)), a.root_signers), "trust.metadata-invalid"),
        (lambda a: b"{}", "trust.metadata-invalid"),
        (lambda a: b"\xff\xfe", "trust.metadata-invalid"),
        (lambda a: b"[" * 100_000, "trust.metadata-invalid"),
        (lambda a: b'{"signed": {}, "signed": {}, "signatures": []}', "trust.metadata-invalid"),
        (lambda a: b" " * 600_000, "trust.metadata-too-large"),
    ],
)
def test_a_root_that_does_not_verify_or_work_is_refused(
    registry: Registry, make: Callable[[Author], bytes], code: str
) -> None:
    assert code_of(registry.images.submit_roots, make(registry.author), None) == code
    assert registry.images.root() is None


def test_a_root_must_leave_the_offline_roles_offline(registry: Registry) -> None:
    author = registry.author
    root = author.root("image")
    online = registry.keys.signer("image", "snapshot").public_key
    root.add_key(online, "targets")
    assert code_of(registry.images.submit_roots, sign(root, author.root_signers), None) == "trust.metadata-invalid"
    root = author.root("image")
    root.add_key(online, "root")
    assert code_of(registry.images.submit_roots, sign(root, author.root_signers), None) == "trust.metadata-invalid"


def test_a_root_with_other_online_keys_is_refused(registry: Registry, tmp_path: Path) -> None:
    stranger = Author(OnlineKeys(tmp_path / "others").public())
    assert code_of(registry.images.submit_roots, stranger.signed_root("image"), None) == "trust.metadata-invalid"
    root = registry.author.root("image")
    root.roles["timestamp"].threshold = 2
    refused = sign(root, registry.author.root_signers)
    assert code_of(registry.images.submit_roots, refused, None) == "trust.metadata-invalid"


def test_roots_rotate_one_by_one_signed_by_old_and_new_keys(registry: Registry) -> None:
    author = registry.with_bins().author
    old = list(author.root_signers)
    author.root_signers = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()]
    fresh = author.root_signers
    submit = registry.images.submit_roots
    assert code_of(submit, author.signed_root("image", 2, signers=fresh), None) == "trust.signature-invalid"
    assert code_of(submit, author.signed_root("image", 2, signers=old), None) == "trust.signature-invalid"
    assert code_of(submit, author.signed_root("image", 3, signers=old + fresh), None) == "cloud.conflict"
    second = author.signed_root("image", 2, signers=old + fresh)
    submit(second, None)
    assert registry.images.root() == second
    assert registry.images.read("2.root.json") == second
    assert registry.images.read("1.root.json") != second
    registry.images.submit_metadata(author.publish([bundle()]))


def test_new_targets_keys_need_targets_signed_by_them_first(registry: Registry) -> None:
    author = registry.with_bins().author
    old = author.targets_signer
    author.targets_signer = CryptoSigner.generate_ed25519()
    second = author.signed_root("image", 2)
    with pytest.raises(EdgeError) as caught:
        registry.images.submit_roots(second, None)
    assert caught.value.code == "trust.signature-invalid"
    assert "old and the new keys" in caught.value.hint
    registry.images.submit_metadata({"targets": author.bump("targets", signers=[old, author.targets_signer])})
    registry.images.submit_roots(second, None)
    registry.images.submit_metadata({"targets": author.bump("targets", signers=[author.targets_signer])})


# --- targets and bins ---


def test_the_first_publish_brings_targets_and_every_bin(registry: Registry) -> None:
    files = registry.with_roots().author.first_publish()
    missing = {role: data for role, data in files.items() if role != f"{PREFIX}-07"}
    assert code_of(registry.images.submit_metadata, missing) == "trust.metadata-invalid"
    assert code_of(registry.images.submit_metadata, {f"{PREFIX}-07": files[f"{PREFIX}-07"]}) == "trust.metadata-invalid"
    assert code_of(registry.images.read, "timestamp.json") == "cloud.not-found"
    registry.images.submit_metadata(files)
    assert registry.images.read("1.targets.json") == files["targets"]
    assert registry.images.read(f"1.{PREFIX}-ff.json") == files[f"{PREFIX}-ff"]
    assert registry.snapshot().version == registry.timestamp().version == 1
    assert len(registry.snapshot().meta) == 258


def test_a_published_bundle_is_found_with_what_was_signed_of_it(registry: Registry) -> None:
    images, author = registry.with_bins().images, registry.author
    digest, length, artifact = bundle()
    path = target_path(artifact.model, artifact.version, digest)
    assert images.target(path) is None
    images.submit_metadata(author.publish([(digest, length, artifact)]))
    found = images.target(path)
    assert found is not None
    assert (found.path, found.length, found.digest, found.artifact) == (path, length, digest, artifact)
    assert images.target(path + "x") is None
    # Another process sees the same.
    assert registry.opened().target(path) == found
    images.submit_metadata(author.publish([bundle("digits", 2), bundle("letters", 1)]))
    assert images.target(path) == found
    assert registry.snapshot().version == registry.timestamp().version == 3


def test_the_same_publish_again_changes_nothing(registry: Registry) -> None:
    images = registry.with_bins().images
    files = registry.author.publish([bundle()])
    images.submit_metadata(files)
    images.submit_metadata(files)
    assert registry.timestamp().version == 2


@pytest.mark.parametrize("step", [0, -1, 2])
def test_only_the_next_version_is_taken(registry: Registry, step: int) -> None:
    author = registry.with_bins().author
    registry.images.submit_metadata({"bins-00": author.bump("bins-00")})
    assert code_of(registry.images.submit_metadata, {"bins-00": author.bump("bins-00", step, days=80)}) == (
        "cloud.conflict"
    )
    assert registry.snapshot().meta["bins-00.json"].version == 2


def test_of_two_publishes_at_once_one_is_refused(registry: Registry) -> None:
    author = registry.with_bins().author
    # All are a second version of the same bin; their expiry tells them apart.
    candidates = [{"bins-00": author.bump("bins-00", by=1 if days == 90 else 0, days=days)} for days in range(90, 94)]
    barrier = threading.Barrier(4)
    results: list[str] = []

    def publish(files: dict[str, bytes]) -> None:
        images = registry.opened()
        barrier.wait(10)
        try:
            images.submit_metadata(files)
            results.append("taken")
        except EdgeError as error:
            results.append(error.code)

    threads = [threading.Thread(target=publish, args=(files,)) for files in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == ["cloud.conflict"] * 3 + ["taken"]
    assert registry.snapshot().version == 2


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda a: {}, "trust.metadata-invalid"),
        (lambda a: {"bins-00": a.bump("bins-00", signers=[])}, "trust.signature-invalid"),
        (lambda a: {"bins-00": a.bump("bins-00", signers=a.root_signers)}, "trust.signature-invalid"),
        (lambda a: {"targets": a.bump("targets", signers=a.root_signers)}, "trust.signature-invalid"),
        (lambda a: {"bins-00": a.bump("bins-00").replace(b'"version":2', b'"version":3')}, "trust.signature-invalid"),
        (lambda a: {"bins-00": a.bump("bins-01")}, "ok"),
        (lambda a: {"bins-0": a.bump("bins-00")}, "trust.metadata-invalid"),
        (lambda a: {"bins-0A": a.bump("bins-0a")}, "trust.metadata-invalid"),
        (lambda a: {"snapshot": a.bump("bins-00")}, "trust.metadata-invalid"),
        (lambda a: {"../root": a.bump("bins-00")}, "trust.metadata-invalid"),
        (lambda a: {"bins-00": b"{"}, "trust.metadata-invalid"),
        (lambda a: {"bins-00": b" " * 5_000_001}, "trust.metadata-too-large"),
        (lambda a: {"bins-00": a.signed_root("image")}, "trust.metadata-invalid"),
    ],
)
def test_metadata_that_does_not_verify_is_refused_as_a_whole(
    registry: Registry, make: Callable[[Author], dict[str, bytes]], code: str
) -> None:
    author = registry.with_bins().author
    files = make(author)
    if code == "ok":
        # An empty bin of the next version fits under any bin's name: nothing in it says otherwise.
        registry.images.submit_metadata(files)
        return
    good = {"bins-42": author.bump("bins-42")} if files else {}
    assert code_of(registry.images.submit_metadata, files | good) == code
    assert registry.timestamp().version == 1
    assert registry.snapshot().meta["bins-42.json"].version == 1


def test_expired_metadata_is_refused(registry: Registry) -> None:
    author = registry.with_bins().author
    author.contents["bins-00"].version = 2
    author.contents["bins-00"].expires = in_days(-1)
    old = sign(author.contents["bins-00"], [author.targets_signer])
    assert code_of(registry.images.submit_metadata, {"bins-00": old}) == "trust.metadata-expired"


def put_target(author: Author, role: str, path: str, target: TargetFile) -> dict[str, bytes]:
    author.contents[role].targets[path] = target
    return {role: author.bump(role)}


def test_a_bin_holds_only_targets_of_our_form_that_belong_into_it(registry: Registry) -> None:
    author = registry.with_bins().author
    digest, length, artifact = bundle()
    path = target_path(artifact.model, artifact.version, digest)
    role = author.bins.get_role_for_target(path)
    other = next(name for name in author.bins.get_roles() if name != role)
    good = TargetFile(length, {"sha256": digest.hex}, path, {"custom": artifact.to_json()})
    submit = registry.images.submit_metadata

    assert code_of(submit, put_target(author, other, path, good)) == "trust.metadata-invalid"
    no_custom = TargetFile(length, {"sha256": digest.hex}, path)
    assert code_of(submit, put_target(author, role, path, no_custom)) == "trust.metadata-invalid"
    other_hash = TargetFile(length, {"sha512": "0" * 128}, path, {"custom": artifact.to_json()})
    author.contents[role].version = 1
    assert code_of(submit, put_target(author, role, path, other_hash)) == "trust.metadata-invalid"
    other_name = "digits/9/" + digest.hex + ".json"
    role = author.bins.get_role_for_target(other_name)
    author.contents[role].targets.clear()
    author.contents[role].version = 1
    assert code_of(submit, put_target(author, role, other_name, good)) == "trust.metadata-invalid"


def test_a_bin_delegates_to_nobody_and_targets_to_bins_alone(registry: Registry) -> None:
    author = registry.with_bins().author
    submit = registry.images.submit_metadata
    keys: dict[str, Key] = {author.targets_signer.public_key.keyid: author.targets_signer.public_key}
    author.contents["bins-00"].delegations = Delegations(keys, succinct_roles=author.bins)
    assert code_of(submit, {"bins-00": author.bump("bins-00")}) == "trust.metadata-invalid"
    for delegations in (None, Delegations(keys, roles={}), Delegations(keys, succinct_roles=_many_bins(author))):
        changed = author.targets(version=2, delegations=delegations)
        assert code_of(submit, {"targets": changed}) == "trust.metadata-invalid"
    digest, length, artifact = bundle()
    path = target_path(artifact.model, artifact.version, digest)
    direct = TargetFile(length, {"sha256": digest.hex}, path, {"custom": artifact.to_json()})
    assert code_of(submit, {"targets": author.targets(version=2, targets={path: direct})}) == "trust.metadata-invalid"


def roles_of(author: Author, *roles: DelegatedRole) -> Delegations:
    return Delegations(author.keys, roles={role.name: role for role in roles})


def model(author: Author, name: str = "model.digits", **changes: Any) -> DelegatedRole:
    keyids = [author.targets_signer.public_key.keyid]
    fields: dict[str, Any] = {"keyids": keyids, "threshold": 1, "terminating": True, "paths": ["digits/*/*"]}
    return DelegatedRole(name, **(fields | changes))


@pytest.mark.parametrize(
    "make",
    [
        lambda a: roles_of(a, model(a)),  # nobody answers for the rest
        lambda a: roles_of(a, a.catalogue, model(a)),  # the catalogue answers first
        lambda a: roles_of(a, model(a, paths=["*/*/*"]), a.catalogue),
        lambda a: roles_of(a, model(a, paths=["digits/*/*", "letters/*/*"]), a.catalogue),
        lambda a: roles_of(a, model(a, terminating=False), a.catalogue),
        lambda a: roles_of(a, model(a, paths=None, path_hash_prefixes=["00"]), a.catalogue),
        lambda a: roles_of(a, model(a, threshold=2), a.catalogue),
        lambda a: roles_of(a, model(a, keyids=["0" * 64]), a.catalogue),
        lambda a: roles_of(a, model(a, "model.Digits"), a.catalogue),
        lambda a: roles_of(a, model(a, "digits"), a.catalogue),
        lambda a: roles_of(a, model(a, "bins-00"), a.catalogue),
        lambda a: Delegations(a.keys, succinct_roles=a.bins),
    ],
)
def test_targets_delegate_in_one_shape_only(registry: Registry, make: Callable[[Author], Delegations]) -> None:
    author = registry.with_bins().author
    changed = author.targets(version=2, delegations=make(author))
    assert code_of(registry.images.submit_metadata, {"targets": changed}) == "trust.metadata-invalid"
    fine = author.targets(version=2, delegations=roles_of(author, model(author), author.catalogue))
    registry.images.submit_metadata({"targets": fine})


def test_nobody_delegates_to_a_key_of_the_server(registry: Registry) -> None:
    author = registry.with_bins().author
    key = registry.keys.signer("image", "snapshot").public_key
    delegations = roles_of(author, model(author, keyids=[key.keyid]), author.catalogue)
    delegations.keys[key.keyid] = key
    changed = author.targets(version=2, delegations=delegations)
    assert code_of(registry.images.submit_metadata, {"targets": changed}) == "trust.metadata-invalid"


def test_a_models_role_lists_its_own_bundles_or_bins_of_its_own_name(registry: Registry) -> None:
    author = registry.with_bins().author
    top = author.targets(version=2, delegations=roles_of(author, model(author), author.catalogue))
    registry.images.submit_metadata({"targets": top})
    submit = registry.images.submit_metadata

    def role(**content: Any) -> dict[str, bytes]:
        part = Targets(version=1, expires=in_days(9), **content)
        return {"model.digits": sign(part, [author.targets_signer])}

    digest, length, artifact = bundle("letters")
    path = target_path(artifact.model, artifact.version, digest)
    foreign = TargetFile(length, {"sha256": digest.hex}, path, {"custom": artifact.to_json()})
    assert code_of(submit, role(targets={path: foreign})) == "trust.metadata-invalid"
    assert code_of(submit, role(delegations=roles_of(author, model(author)))) == "trust.metadata-invalid"
    assert code_of(submit, role(delegations=Delegations(author.keys, succinct_roles=author.bins))) == (
        "trust.metadata-invalid"
    )
    own = SuccinctRoles([author.targets_signer.public_key.keyid], 1, 1, "bins.digits")
    split = role(delegations=Delegations(author.keys, succinct_roles=own))
    assert code_of(submit, split) == "trust.metadata-invalid"  # without its bins
    bins = {name: sign(Targets(version=1, expires=in_days(9)), [author.targets_signer]) for name in own.get_roles()}
    submit(split | bins)
    digest, length, artifact = bundle("digits")
    path = target_path("digits", 1, digest)
    file = TargetFile(length, {"sha256": digest.hex}, path, {"custom": artifact.to_json()})
    name = own.get_role_for_target(path)
    submit({name: sign(Targets(version=2, expires=in_days(9), targets={path: file}), [author.targets_signer])})
    found = registry.images.target(path)
    assert found is not None
    assert found.artifact == artifact


def test_two_processes_prepare_the_same_next_key(tmp_path: Path) -> None:
    OnlineKeys(tmp_path / "keys").public()
    found: list[str] = []
    barrier = threading.Barrier(4)

    def prepare() -> None:
        keys = OnlineKeys(tmp_path / "keys")
        used = [keys.generations("image", "timestamp")[0].public.keyid]
        barrier.wait(10)
        found.append(keys.prepare("image", "timestamp", used, "", False).public.keyid)

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert (tmp_path / "keys" / "image-timestamp.1.pem").is_file()
    assert not (tmp_path / "keys" / "image-timestamp.2.pem").exists()


def _many_bins(author: Author) -> SuccinctRoles:
    return SuccinctRoles([author.targets_signer.public_key.keyid], 1, 20, PREFIX)


def test_new_keys_below_the_top_need_everything_signed_by_them(registry: Registry) -> None:
    author = registry.with_bins().author
    old, fresh = author.targets_signer, CryptoSigner.generate_ed25519()
    files = author.delegate_to(fresh)
    files["targets"] = sign(author.contents["targets"], [old])  # the root still names the old key for the top
    for missing in (CATALOGUE, "bins-55"):
        fewer = {role: data for role, data in files.items() if role != missing}
        assert code_of(registry.images.submit_metadata, fewer) == "trust.signature-invalid"
    registry.images.submit_metadata(files)
    assert registry.snapshot().meta["bins-00.json"].version == 2


# --- what the server signs ---


def test_the_timestamp_is_renewed_at_half_of_its_life_and_the_snapshot_too(registry: Registry) -> None:
    registry.with_bins()
    first = registry.images.read("timestamp.json")
    registry.clock.now_ms += TIMESTAMP_LIFE_MS // 2 - 2_000
    assert registry.images.read("timestamp.json") == first
    registry.clock.now_ms += 4_000
    second = registry.timestamp()
    assert (second.version, second.snapshot_meta.version) == (2, 1)
    assert second.expires.timestamp() * 1000 > registry.clock.now_ms + TIMESTAMP_LIFE_MS - 2_000
    registry.clock.now_ms += 4 * 24 * 3_600 * 1_000
    assert (registry.timestamp().version, registry.snapshot().version) == (3, 2)
    assert len(registry.snapshot().meta) == 258


def test_a_timestamp_says_when_it_was_signed(registry: Registry) -> None:
    registry.with_bins()
    assert registry.timestamp().unrecognized_fields == {"lighterman": {"signed_ms": registry.clock.now_ms}}
    registry.clock.now_ms += TIMESTAMP_LIFE_MS
    assert registry.timestamp().unrecognized_fields == {"lighterman": {"signed_ms": registry.clock.now_ms}}


def test_a_renewal_by_somebody_else_meanwhile_is_as_good(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.with_bins()
    registry.clock.now_ms += TIMESTAMP_LIFE_MS
    other = registry.opened()
    real = registry.table.put_many
    calls = 0

    def put_many(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            other.read("timestamp.json")
        real(*args, **kwargs)

    monkeypatch.setattr(registry.table, "put_many", put_many)
    assert registry.images.read("timestamp.json") == other.read("timestamp.json")
    assert registry.timestamp().version == 2


def test_former_versions_stay_for_a_while_and_then_go(registry: Registry) -> None:
    author = registry.with_bins().author
    for _ in range(METADATA_HISTORY + 2):
        registry.images.submit_metadata({"bins-00": author.bump("bins-00")})
    newest = METADATA_HISTORY + 3
    assert registry.images.read(f"{newest}.bins-00.json")
    assert registry.images.read(f"{newest - METADATA_HISTORY + 1}.bins-00.json")
    assert code_of(registry.images.read, "1.bins-00.json") == "cloud.not-found"
    assert code_of(registry.images.read, "1.snapshot.json") == "cloud.not-found"
    assert registry.images.read("1.bins-01.json")


@pytest.mark.parametrize(
    "name",
    ["", "root.json", "snapshot.json", "targets.json", "0.root.json", "01.root.json", "-1.root.json", "9.root.json",
     "1.root", "1.root.json.json", "1..json", ".json", "1.timestamp.json", "../1.root.json", "1.root\x00.json",
     "1." + "x" * 200 + ".json", "٣.root.json"],
)  # fmt: skip
def test_other_file_names_lead_nowhere(registry: Registry, name: str) -> None:
    registry.with_bins()
    assert code_of(registry.images.read, name) == "cloud.not-found"
