"""`edge-agent tuf` as a TUF client over HTTP, with python-tuf's client as a second opinion on every scenario."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile

from tests.support.tufplain import Pair, PlainRepository, keys, plain_pair, sign

YESTERDAY = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)


@pytest.fixture
def repository() -> PlainRepository:
    return PlainRepository()


@pytest.fixture
def pair(repository: PlainRepository, tmp_path: Path) -> Iterator[Pair]:
    with plain_pair(repository, tmp_path) as made:
        yield made


@pytest.fixture(params=[False, True], ids=["no-hashes", "hashes"])
def hashed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with plain_pair(PlainRepository(has_hashes=request.param), tmp_path) as made:
        yield made


# --- the honest case ---


def test_the_first_refresh_asks_for_each_file_once(pair: Pair) -> None:
    assert pair.refresh() == 0
    assert pair.requests == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    assert pair.versions == (1, 1, 1, 1)
    for name in ("1.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"):
        kept = pair.ours.metadata / name.removeprefix("1.")
        assert kept.read_bytes() == pair.repository.files[f"metadata/{name}"], "byte for byte"


def test_when_nothing_is_new_two_files_are_asked_for(hashed: Pair) -> None:
    assert (hashed.refresh(), hashed.refresh()) == (0, 0)
    assert hashed.requests == ["2.root.json", "timestamp.json"]


def test_without_consistent_snapshots_names_carry_no_versions(tmp_path: Path) -> None:
    repository = PlainRepository(is_consistent=False)
    repository.add("folder/a file.txt", b"content")
    repository.delegate("targets", "one")
    repository.publish_delegated()
    with plain_pair(repository, tmp_path) as pair:
        assert pair.download("folder/a file.txt") == 0
        assert pair.requests[-3:] == ["snapshot.json", "targets.json", "folder/a%20file.txt"]
        assert pair.download("missing") == 1
        assert pair.requests[-1] == "one.json"


def test_unknown_fields_belong_to_what_is_signed(pair: Pair) -> None:
    root = pair.repository.root
    root.unrecognized_fields["field"] = {"b": [1, "ü"], "a": None}
    next(iter(root.keys.values())).unrecognized_fields["field"] = 1
    root.roles["root"].unrecognized_fields["field"] = "x"
    pair.repository.timestamp.unrecognized_fields["field"] = True
    pair.repository.publish("root", "timestamp")
    assert pair.refresh() == 0
    assert pair.versions == (2, 2, 1, 1)
    pair.repository.replace("timestamp.json", lambda data: data.replace(b'"field":true', b'"field":null'))
    assert pair.refresh() == 1


# --- keys and signatures ---


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        ("ed25519", "ed25519"),
        ("ecdsa", "ecdsa-sha2-nistp256"),
        ("rsa", "rsassa-pss-sha256"),
        ("rsa", "rsa-pkcs1v15-sha256"),
    ],
)
def test_keys_of_every_kind(pair: Pair, kind: str, scheme: str) -> None:
    make = getattr(CryptoSigner, f"generate_{kind}")
    signer = make() if kind == "ed25519" else make(scheme=scheme) if kind == "rsa" else make()
    assert signer.public_key.scheme == scheme
    repository = pair.repository
    before = repository.signers["root"]
    for role in ("root", "timestamp", "snapshot", "targets"):
        repository.give_keys(role, [signer])
    repository.publish("root", signers=[*before, signer])
    repository.publish_all()
    assert pair.refresh() == 0
    repository.publish("timestamp")
    repository.replace("timestamp.json", lambda data: data.replace(b'"version":3', b'"version":4'))
    assert pair.refresh() == 1


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize(
    ("named", "threshold", "signing", "verdict"),
    [
        ([0], 1, [0], 0),
        ([1], 1, [1], 0),
        ([0], 1, [], 1),
        ([0], 1, [2, 3, 0, 4], 0),
        ([1], 1, [2, 3, 4], 1),
        ([0, 1, 2, 3, 4], 3, [0, 2, 4], 0),
        ([0, 1, 2, 3, 4], 3, [4, 3, 1], 0),
        ([0, 1, 3, 4, 5], 3, [0, 2, 4], 1),
        ([0, 1, 3, 4, 5], 3, [0, 4], 1),
        ([0, 1], 3, [0, 1], 1),
    ],
)
def test_a_threshold_counts_keys_of_the_role_alone(
    pair: Pair, role: str, named: list[int], threshold: int, signing: list[int], verdict: int
) -> None:
    pool = keys(6)
    pair.repository.give_keys(role, [pool[n] for n in named], threshold)
    pair.repository.signers[role] = [pool[n] for n in signing]
    pair.repository.publish("root")
    pair.repository.publish_all()
    assert pair.refresh() == verdict
    assert pair.versions[0] == 2, "the root is taken in any case"


ROOTS: dict[str, list[tuple[list[int], int, list[int]]]] = {
    "key replaced": [([1], 1, [1]), ([2], 1, [2, 1]), ([2], 1, [2])],
    "with others' signatures": [([1], 1, [3, 1, 4]), ([2], 1, [3, 2, 1, 4]), ([2], 1, [3, 2, 4])],
    "3 of 5, ever others": [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 2, 3, 4], 3, [1, 3, 4])],
    "3 of 5, one replaced": [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 1])],
    "3 of 5, all replaced": [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([5, 6, 7, 8, 9], 3, [0, 2, 4, 5, 6, 7])],
    "threshold up": [([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [1, 2])],
    "threshold down": [([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1, 2]), ([1, 2, 3], 1, [1])],
    "without the old key!": [([1], 1, [1]), ([2], 1, [2, 3, 4])],
    "without the new key!": [([1], 1, [1]), ([2], 1, [1, 3, 4])],
    "too few of the new!": [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 2, 4])],
    "too few of the old!": [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 5])],
    "new threshold missed!": [([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [2])],
    "old threshold missed!": [([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1])],
    "unsigned!": [([1], 1, [1]), ([1], 1, [])],
}


@pytest.mark.parametrize("case", ROOTS)
def test_a_root_needs_the_old_and_the_new_threshold(tmp_path: Path, case: str) -> None:
    pool = keys(10)
    repository = PlainRepository()
    repository.root.version = 0
    for named, threshold, signing in ROOTS[case]:
        repository.give_keys("root", [pool[n] for n in named], threshold)
        repository.publish("root", signers=[pool[n] for n in signing])
    with plain_pair(repository, tmp_path) as pair:
        assert pair.refresh() == int(case.endswith("!"))
        assert pair.versions[0] == len(ROOTS[case]) - int(case.endswith("!"))


def test_the_same_signature_twice_is_not_two(pair: Pair) -> None:
    pool = keys(2)
    pair.repository.give_keys("timestamp", pool, 2)
    pair.repository.signers["timestamp"] = pool[:1]
    pair.repository.publish("root", "timestamp")

    def twice(data: bytes) -> bytes:
        document = json.loads(data)
        document["signatures"] *= 2
        return json.dumps(document).encode()

    pair.repository.replace("timestamp.json", twice)
    assert pair.refresh() == 1


@pytest.mark.parametrize("signature", ["", "zz", "00", "ü", "00" * 64, "00" * 5000])
def test_an_invalid_signature_beside_enough_valid_ones_does_no_harm(pair: Pair, signature: str) -> None:
    pair.repository.give_keys("timestamp", keys(2), 1)
    pair.repository.publish("root", "timestamp")

    def spoil(count: int) -> Callable[[bytes], bytes]:
        def change(data: bytes) -> bytes:
            document = json.loads(data)
            for place in range(count):
                document["signatures"][place]["sig"] = signature
            return json.dumps(document).encode()

        return change

    if len(signature) < 5000:  # or else it is too long for a timestamp
        pair.repository.replace("timestamp.json", spoil(1))
        assert pair.refresh() == 0
    pair.repository.publish("timestamp")
    pair.repository.replace("timestamp.json", spoil(2))
    assert pair.refresh() == 1


@pytest.mark.parametrize("entry", [None, 5, {}, {"keyid": 1, "sig": "00"}, {"keyid": "x"}, {"keyid": "x", "sig": 7}])
def test_an_entry_that_is_no_signature_is_judged_as_python_tuf_does(pair: Pair, entry: object) -> None:
    def change(data: bytes) -> bytes:
        document = json.loads(data)
        document["signatures"].append(entry)
        return json.dumps(document).encode()

    pair.repository.replace("timestamp.json", change)
    pair.refresh()


def test_a_key_under_two_names_is_one_key(pair: Pair) -> None:
    """Here we are stricter than python-tuf, which counts names."""
    repository = pair.repository
    (signer,) = keys(1)
    twin = CryptoSigner(signer._private_key, type(signer.public_key).from_dict("twin", signer.public_key.to_dict()))
    repository.give_keys("timestamp", [signer, twin], 2)
    repository.publish("root", "timestamp")
    assert (pair.ours.refresh(), pair.reference.refresh()) == (1, 0)
    assert "valid signatures of 1 keys, 2 are needed" in pair.ours.output


def test_names_of_keys_need_not_be_their_hashes(pair: Pair) -> None:
    (signer,) = keys(1)
    named = CryptoSigner(
        signer._private_key, type(signer.public_key).from_dict("any name", signer.public_key.to_dict())
    )
    pair.repository.give_keys("snapshot", [named])
    pair.repository.publish("root", "snapshot", "timestamp")
    assert pair.refresh() == 0


def test_a_key_that_root_does_not_hold_counts_for_nothing(pair: Pair) -> None:
    pair.repository.root.roles["snapshot"].keyids.append("nobody")
    pair.repository.publish("root", "snapshot", "timestamp")
    assert pair.refresh() == 0
    pair.repository.root.roles["snapshot"].threshold = 2
    pair.repository.publish("root", "snapshot", "timestamp")
    assert pair.refresh() == 1


# --- roots ---


@pytest.mark.parametrize("change", [0, -1, 1, 5])
def test_a_root_has_exactly_the_next_version(pair: Pair, change: int) -> None:
    assert pair.refresh() == 0
    root = pair.repository.root
    root.version = 2 + change
    pair.repository.files["metadata/2.root.json"] = sign(root, pair.repository.signers["root"])
    assert pair.refresh() == int(change != 0)
    assert pair.versions[0] == (1 if change else 2)


def test_only_the_last_root_must_not_be_expired(pair: Pair) -> None:
    root, soon = pair.repository.root, pair.repository.soon
    root.expires = YESTERDAY
    pair.repository.publish("root")
    assert pair.refresh() == 1
    assert pair.versions == (2, None, None, None), "kept all the same"
    root.expires = soon
    pair.repository.publish("root")
    assert pair.refresh() == 0
    assert pair.versions == (3, 1, 1, 1)


def test_a_chain_of_roots_is_bounded_and_goes_on_with_the_next_refresh(pair: Pair) -> None:
    for _ in range(258):
        pair.repository.publish("root")
    assert pair.refresh() == 0
    assert pair.versions[0] == 257
    assert pair.refresh() == 0
    assert pair.versions[0] == 259


# --- expiry ---


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_expired_metadata_is_refused_and_what_was_trusted_stays(pair: Pair, role: str) -> None:
    assert pair.refresh() == 0
    pair.repository.contents[role].expires = YESTERDAY
    pair.repository.publish_all()
    assert pair.refresh() == 1
    place = ("root", "timestamp", "snapshot", "targets").index(role)
    assert pair.versions[place] == 1
    pair.repository.contents[role].expires = pair.repository.soon
    pair.repository.publish_all()
    assert pair.refresh() == 0


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_expired_metadata_on_disk_does_not_hinder(pair: Pair, role: str) -> None:
    pair.repository.contents[role].expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=7)
    pair.repository.publish_all()
    assert pair.refresh() == 0
    assert pair.refresh(days=10) == 1
    pair.repository.contents[role].expires = pair.repository.soon
    pair.repository.publish_all()
    assert pair.refresh(days=10) == 0


def test_a_delegated_role_expires_too(pair: Pair) -> None:
    repository = pair.repository
    repository.delegate("targets", "one", ["a/*"])
    repository.targets("one").expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=7)
    for name in ("a/1", "a/2"):
        repository.add(name, name.encode(), "one")
    repository.publish_delegated()
    assert pair.download("a/1") == 0
    assert pair.download("a/2", days=10) == 1
    repository.targets("one").expires = repository.soon
    repository.publish_all("one")
    assert pair.download("a/2", days=10) == 0
    assert pair.fetched(pair.ours) == [b"a/1", b"a/2"]


def test_a_timestamp_signed_anew_under_its_version_is_taken_when_the_old_one_is_expired(pair: Pair) -> None:
    """Here python-tuf stays with the expired one; we do not let what is on disk hold up a refresh."""
    pair.repository.timestamp.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=7)
    pair.repository.publish("timestamp")
    assert pair.refresh() == 0
    pair.repository.timestamp.expires = pair.repository.soon
    pair.repository.publish("timestamp", bump=False)
    assert pair.refresh() == 0
    pair.ours.days = pair.reference.days = 10
    assert (pair.ours.refresh(), pair.reference.refresh()) == (0, 1)


# --- rollback ---


def test_a_timestamp_does_not_fall(pair: Pair) -> None:
    pair.repository.publish("timestamp")
    assert pair.refresh() == 0
    pair.repository.timestamp.version = 1
    pair.repository.publish("timestamp", bump=False)
    assert pair.refresh() == 1
    assert pair.versions == (1, 2, 1, 1)


def test_a_timestamp_of_the_same_version_is_the_same(pair: Pair) -> None:
    assert pair.refresh() == 0
    kept = (pair.ours.metadata / "timestamp.json").read_bytes()
    pair.repository.timestamp.snapshot_meta.version = 100
    pair.repository.publish("timestamp", bump=False)
    assert pair.refresh() == 0
    assert (pair.ours.metadata / "timestamp.json").read_bytes() == kept


def test_a_snapshot_does_not_fall(hashed: Pair) -> None:
    hashed.repository.publish("snapshot", "timestamp")
    assert hashed.refresh() == 0
    hashed.repository.snapshot.version = 0
    hashed.repository.publish("snapshot", "timestamp")
    assert hashed.refresh() == 1
    assert hashed.versions == (1, 2, 2, 1)


def test_targets_do_not_fall(hashed: Pair) -> None:
    hashed.repository.publish_all()
    assert hashed.refresh() == 0
    hashed.repository.targets().version = 0
    hashed.repository.publish_all()
    assert hashed.refresh() == 1
    assert hashed.versions == (1, 3, 2, 2)


def test_a_role_does_not_vanish_from_the_snapshot(pair: Pair) -> None:
    pair.repository.delegate("targets", "one")
    pair.repository.publish_delegated()
    assert pair.refresh() == 0
    del pair.repository.snapshot.meta["one.json"]
    pair.repository.publish("snapshot", "timestamp")
    assert pair.refresh() == 1


def test_new_keys_recover_from_versions_driven_up(pair: Pair) -> None:
    repository = pair.repository
    repository.timestamp.version = repository.snapshot.version = repository.targets().version = 99_999
    repository.publish_all()
    assert pair.refresh() == 0
    repository.timestamp.version = repository.snapshot.version = repository.targets().version = 1
    repository.publish_all()
    assert pair.refresh() == 1
    repository.give_keys("timestamp", keys(1))
    repository.give_keys("snapshot", keys(1))
    repository.publish("root")
    repository.publish_all()
    assert pair.refresh() == 0
    assert pair.versions == (2, 3, 3, 3)


# --- mix and match ---


def test_a_snapshot_that_is_not_the_announced_one_is_refused(hashed: Pair) -> None:
    repository = hashed.repository
    old = repository.files["metadata/1.snapshot.json"]
    repository.publish("snapshot", "timestamp")
    repository.files["metadata/2.snapshot.json"] = old
    assert hashed.refresh() == 1
    assert hashed.versions == (1, 2, None, None), "what verified before stays written"


def test_another_snapshot_of_the_same_version_counts_when_its_hash_is_announced(tmp_path: Path) -> None:
    """Here python-tuf stays with the one on its disk; we hold that to the announced hash as well."""
    repository = PlainRepository(has_hashes=True)
    with plain_pair(repository, tmp_path) as pair:
        assert pair.refresh() == 0
        repository.publish("targets")
        repository.publish("snapshot", bump=False)
        repository.publish("timestamp")
        assert (pair.ours.refresh(), pair.reference.refresh()) == (0, 0)
        assert pair.trusted(pair.ours)["targets"] == 2
        assert pair.trusted(pair.reference)["targets"] == 1


def test_targets_that_are_not_the_announced_ones_are_refused(hashed: Pair) -> None:
    repository = hashed.repository
    old = repository.files["metadata/1.targets.json"]
    repository.publish_all()
    repository.files["metadata/2.targets.json"] = old
    assert hashed.refresh() == 1
    assert hashed.versions == (1, 2, 2, None)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda meta: MetaFile(meta.version, meta.length - 1, meta.hashes),
        lambda meta: MetaFile(meta.version, meta.length + 1, meta.hashes),
        lambda meta: MetaFile(meta.version, meta.length, {"sha256": "0" * 64}),
        lambda meta: MetaFile(meta.version, meta.length, meta.hashes | {"sha512": "0" * 128}),
        lambda meta: MetaFile(meta.version, None, {"unheard-of": "00"}),
    ],
)
def test_lengths_and_hashes_are_kept_to_where_they_stand(tmp_path: Path, spoil: Callable[[Any], MetaFile]) -> None:
    repository = PlainRepository(has_hashes=True)
    with plain_pair(repository, tmp_path) as pair:
        repository.timestamp.snapshot_meta = spoil(repository.timestamp.snapshot_meta)
        repository.publish("timestamp")
        assert pair.refresh() == 1
        repository.publish("snapshot")
        repository.snapshot.meta["targets.json"] = spoil(repository.snapshot.meta["targets.json"])
        repository.publish("snapshot", "timestamp")
        assert pair.refresh() == 1


@pytest.mark.parametrize("served", ["timestamp.json", "1.snapshot.json", "1.targets.json", "2.root.json"])
@pytest.mark.parametrize("other", ["1.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_one_kind_of_metadata_is_not_another(pair: Pair, served: str, other: str) -> None:
    if served == other:
        return
    pair.repository.files[f"metadata/{served}"] = pair.repository.files[f"metadata/{other}"]
    assert pair.refresh() == 1


def test_what_is_damaged_on_disk_is_fetched_again(pair: Pair) -> None:
    pair.repository.delegate("targets", "one")
    pair.repository.publish_delegated()
    assert pair.download("missing") == 1
    for client in (pair.ours, pair.reference):
        for name in ("timestamp", "snapshot", "targets", "one"):
            (client.metadata / f"{name}.json").write_bytes(b"{" if name == "one" else b"")
    assert pair.download("missing") == 1
    assert pair.requests == [
        "2.root.json",
        "timestamp.json",
        "2.snapshot.json",
        "2.targets.json",
        "2.one.json" if "one" in pair.repository.snapshot.meta else "1.one.json",
    ]


# --- endless data ---


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_endless_metadata_is_refused(pair: Pair, name: str) -> None:
    pair.repository.files[f"metadata/{name}"] = b" " * 5_000_001
    assert pair.refresh() == 1


# --- init and the command line ---


def test_a_root_that_does_not_sign_itself_is_never_trusted(repository: PlainRepository, tmp_path: Path) -> None:
    with plain_pair(repository, tmp_path) as pair:
        root = json.loads(repository.files["metadata/1.root.json"])
        root["signatures"][0]["sig"] = "00" * 64
        forged = tmp_path / "forged.json"
        for content in (json.dumps(root), json.dumps({**root, "signed": {}}), "", "[]"):
            forged.write_text(content)
            pair.ours.metadata = tmp_path / "elsewhere"
            assert pair.ours.init(forged) == 1
            repository.asked.clear()
            assert pair.ours.refresh() == 1
            assert repository.asked == []


def test_init_twice_changes_nothing_and_another_root_is_not_taken(pair: Pair, tmp_path: Path) -> None:
    pair.repository.publish("root")
    assert pair.refresh() == 0
    assert pair.ours.init(tmp_path / "initial.json") == 0
    assert pair.versions[0] == 2
    other = tmp_path / "other.json"
    other.write_bytes(PlainRepository().files["metadata/1.root.json"])
    assert pair.ours.init(other) == 1
    assert "already holds metadata" in pair.ours.output
    assert pair.refresh() == 0


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["refresh"], "--metadata-url"),
        (["--metadata-url", "http://127.0.0.1:1", "download"], "--target-name"),
        (["--metadata-url", "http://127.0.0.1:1", "--target-name", "a", "download"], "--target-base-url"),
    ],
)
def test_what_is_missing_is_named(pair: Pair, arguments: list[str], missing: str) -> None:
    assert pair.ours.call(*arguments) == 1
    assert f"{missing} is missing" in pair.ours.output


def test_a_repository_that_is_down_is_no_attack(pair: Pair) -> None:
    assert pair.refresh() == 0
    pair.server.close()
    assert pair.ours.refresh() == 1
    assert "network.unreachable" in pair.ours.output


def test_a_role_that_takes_a_top_level_name_is_refused(pair: Pair) -> None:
    """It would be kept under the name of the root of all trust."""
    pair.repository.delegate("targets", "one")
    pair.repository.publish_delegated()

    def rename(data: bytes) -> bytes:
        document = json.loads(data.replace(b'"one"', b'"root"'))
        return json.dumps(document).encode()

    pair.repository.replace("2.targets.json", rename)
    assert pair.refresh() == 1
