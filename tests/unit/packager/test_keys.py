"""Keys, roots and rotation, judged by python-tuf's own updater on the other side."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge_contract.errors import EdgeError
from packager.build import build
from packager.keychange import Change, renew, rotate
from packager.keys import KeyPlan, RingMaker, describe, set_up
from packager.keystore import DIRECTOR_ROOT, IMAGE_ROOT, IMAGE_TARGETS, KEY_ROLES, KeyFolder, KeyRing
from packager.layout import Layout
from packager.progress import QuietReporter
from packager.sign import sign_targets, targets_of
from packager.tufmake import NewTarget
from packager.tufview import ImageReader
from tests.unit.packager.support import TrustOfRegistry, make_spec

QUIET = QuietReporter()
SECRET = "correct horse"


def plan(keys: int = 1, threshold: int = 1, **changes: Any) -> KeyPlan:
    return KeyPlan(dict.fromkeys(KEY_ROLES, keys), dict.fromkeys(KEY_ROLES, threshold), **changes)


def maker(passphrase: str = SECRET) -> RingMaker:
    return RingMaker(lambda _is_new: passphrase)


class Fetcher(FetcherInterface):
    """Hands out what the registry has."""

    def __init__(self, registry: TrustOfRegistry) -> None:
        self.registry = registry

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield self.registry.tuf_file(url.removeprefix("http://registry/"))
        except EdgeError as error:
            raise DownloadHTTPError(error.detail, 404) from None


class Device:
    """A device that follows the image repository with python-tuf's updater, from the root it was given once."""

    def __init__(self, registry: TrustOfRegistry, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.registry = registry
        self.root = registry.tuf_file("image/1.root.json")

    def find(self, path: str) -> TargetFile | None:
        updater = Updater(
            str(self.folder),
            "http://registry/image/",
            fetcher=Fetcher(self.registry),
            config=UpdaterConfig(max_delegations=4),
            bootstrap=self.root,
        )
        updater.refresh()
        return updater.get_targetinfo(path)


@pytest.fixture
def registry(tmp_path: Path) -> TrustOfRegistry:
    return TrustOfRegistry(tmp_path / "registry")


@pytest.fixture
def keys(tmp_path: Path, registry: TrustOfRegistry) -> Path:
    folder = tmp_path / "keys"
    set_up(registry.as_client(), folder, plan(), maker(), QUIET)
    return folder


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    folder = tmp_path_factory.mktemp("bundle")
    build(make_spec(folder / "model", golden=False), folder / "out", QUIET)
    return Layout(folder / "out")


def sign(registry: TrustOfRegistry, ring: KeyRing, targets: list[NewTarget]) -> int:
    return sign_targets(registry.as_client(), ring, targets, 30, QUIET)


def some_targets(layout: Layout, version: int = 1) -> list[NewTarget]:
    from dataclasses import replace

    return [replace(item, artifact=replace(item.artifact, version=version)) for item in targets_of(layout)]


def test_a_device_finds_what_an_author_signed(
    tmp_path: Path, registry: TrustOfRegistry, keys: Path, layout: Layout
) -> None:
    device = Device(registry, tmp_path / "device")
    targets = targets_of(layout)
    assert device.find(targets[0].path) is None
    assert sign(registry, maker()(keys), targets) in (1, 2)
    for target, item in zip(targets, layout.bundles, strict=True):
        found = device.find(target.path)
        assert found is not None
        assert (found.length, found.hashes) == (len(item.data), {"sha256": item.descriptor.digest.hex})
        assert found.custom["platform"] == item.platform
        assert found.custom["repository"] == "bundles/linear"


def test_signing_again_changes_nothing(registry: TrustOfRegistry, keys: Path, layout: Layout) -> None:
    ring = maker()(keys)
    sign(registry, ring, targets_of(layout))
    before = registry.submissions
    assert sign(registry, ring, targets_of(layout)) == 0
    assert registry.submissions == before


def test_a_signed_entry_never_changes(registry: TrustOfRegistry, keys: Path, layout: Layout) -> None:
    from dataclasses import replace

    ring = maker()(keys)
    targets = targets_of(layout)
    sign(registry, ring, targets)
    other = [replace(item, artifact=replace(item.artifact, release_counter=99)) for item in targets]
    before = registry.submissions
    with pytest.raises(EdgeError, match="never change") as caught:
        sign(registry, ring, other)
    assert caught.value.code == "cloud.conflict"
    assert registry.submissions == before


def test_two_authors_at_once_both_get_in(tmp_path: Path, registry: TrustOfRegistry, keys: Path, layout: Layout) -> None:
    targets = some_targets(layout, 1)
    rivals = iter(range(2, 5))

    def rival_publishes() -> None:
        version = next(rivals, None)
        if version is not None:
            registry.before_submit, saved = (lambda: None), registry.before_submit
            sign(registry, maker()(keys), some_targets(layout, version))
            # The rival also touches the bins of the first author, so that the first author's versions are outdated.
            renew(registry.as_client(), maker()(keys), 30, QUIET)
            registry.before_submit = saved

    registry.before_submit = rival_publishes
    sign(registry, maker()(keys), targets)
    device = Device(registry, tmp_path / "device")
    for version in (1, 2, 3, 4):
        assert all(device.find(target.path) for target in some_targets(layout, version))


def test_a_conflict_without_end_is_given_up(
    registry: TrustOfRegistry, keys: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packager.sign.SIGN_BACKOFF_S", 0.0)

    def refuse() -> None:
        raise EdgeError("cloud.conflict", "somebody is always faster")

    registry.before_submit = refuse
    with pytest.raises(EdgeError, match="always faster"):
        sign(registry, maker()(keys), targets_of(layout))


def test_a_lost_answer_does_not_sign_twice(
    registry: TrustOfRegistry, keys: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packager.sign.SIGN_BACKOFF_S", 0.0)

    def lose() -> None:
        registry.after_submit = lambda: None
        raise EdgeError("network.cut", "the answer was lost")

    registry.after_submit = lose
    before = registry.submissions
    assert sign(registry, maker()(keys), targets_of(layout)) == 0
    assert registry.submissions == before + 1


@pytest.mark.parametrize("roles", [KEY_ROLES, (IMAGE_ROOT,), (IMAGE_TARGETS,), (DIRECTOR_ROOT,)])
def test_a_device_follows_new_keys_at_every_step(
    tmp_path: Path, registry: TrustOfRegistry, keys: Path, layout: Layout, roles: tuple[str, ...]
) -> None:
    targets = targets_of(layout)
    sign(registry, maker()(keys), targets)
    device = Device(registry, tmp_path / "device")
    seen = []

    def look() -> None:
        seen.append(device.find(targets[0].path) is not None)

    registry.before_submit = registry.after_submit = look
    client = registry.as_client()
    submit = registry.submit_roots

    def watched(image: str | None = None, director: str | None = None) -> None:
        look()
        submit(image, director)
        look()

    registry.submit_roots = watched  # type: ignore[method-assign]
    before = {key.keyid for key in KeyFolder.open(keys).keys}
    rotate(client, maker()(keys), Change(roles), QUIET)
    assert len(seen) >= 2
    assert all(seen)
    folder = KeyFolder.open(keys)
    for role in KEY_ROLES:
        current = {key.keyid for key in folder.of_role(role)}
        assert len(current) == 1
        assert (not current & before) == (role in roles)
    # The old keys are worth nothing any more, the new ones are.
    sign(registry, maker()(keys), some_targets(layout, 2))
    assert device.find(some_targets(layout, 2)[0].path) is not None
    newest = ImageReader(client, keys).root()
    if IMAGE_TARGETS in roles:
        assert not before & set(newest.roles["targets"].keyids)
    if IMAGE_ROOT in roles:
        assert not before & set(newest.roles["root"].keyids)


class FlakyLine:
    """Breaks after so many events, where every request is two: before it arrives, and before its answer does."""

    left = 0

    def around(self, send: Any) -> Any:
        def sent(*arguments: Any, **named: Any) -> None:
            self._pass("before")
            send(*arguments, **named)
            self._pass("after")

        return sent

    def _pass(self, when: str) -> None:
        if self.left == 0:
            raise EdgeError("network.cut", f"the line broke {when}")
        self.left -= 1


def rotates(registry: TrustOfRegistry, keys: Path) -> EdgeError | None:
    """Rotate all keys; the error that ended it, if one did."""
    try:
        rotate(registry.as_client(), maker()(keys), Change(KEY_ROLES), QUIET)
    except EdgeError as error:
        return error
    return None


def test_a_rotation_that_was_cut_is_taken_up(
    tmp_path: Path, registry: TrustOfRegistry, keys: Path, layout: Layout
) -> None:
    targets = targets_of(layout)
    sign(registry, maker()(keys), targets)
    device = Device(registry, tmp_path / "device")
    submit_roots, submit_metadata = registry.submit_roots, registry.submit_metadata
    line = FlakyLine()
    registry.submit_roots = line.around(submit_roots)  # type: ignore[method-assign]
    registry.submit_metadata = line.around(submit_metadata)  # type: ignore[method-assign]
    cuts = 0
    while cuts < 20:
        line.left = cuts
        if not rotates(registry, keys):
            break
        assert device.find(targets[0].path) is not None
        cuts += 1
    assert 0 < cuts < 20
    uses = [key.use for key in KeyFolder.open(keys).keys]
    assert (uses.count("current"), uses.count("retired"), uses.count("next")) == (3, 3, 0)
    assert device.find(targets[0].path) is not None
    director = Metadata[Root].from_bytes((keys / "director.root.json").read_bytes())
    assert director.signed.version == 2
    assert registry.trust()["director_root_version"] == 2


def test_setting_up_that_was_cut_is_taken_up(tmp_path: Path, registry: TrustOfRegistry) -> None:
    folder = tmp_path / "keys"

    def cut() -> None:
        registry.before_submit = lambda: None
        raise EdgeError("network.cut", "the line broke")

    registry.before_submit = cut
    with pytest.raises(EdgeError, match="the line broke"):
        set_up(registry.as_client(), folder, plan(), maker(), QUIET)
    before = {key.keyid for key in KeyFolder.open(folder).keys}
    assert set_up(registry.as_client(), folder, plan(), maker(), QUIET)["published"]
    assert {key.keyid for key in KeyFolder.open(folder).keys} == before
    assert not set_up(registry.as_client(), folder, plan(), maker(), QUIET)["published"]


def test_a_registry_is_set_up_once(tmp_path: Path, registry: TrustOfRegistry, keys: Path) -> None:
    with pytest.raises(EdgeError) as caught:
        set_up(registry.as_client(), tmp_path / "other", plan(), maker(), QUIET)
    assert caught.value.code == "cloud.conflict"
    assert not (tmp_path / "other").exists()


def test_renewing_gives_everything_a_later_end(registry: TrustOfRegistry, keys: Path, layout: Layout) -> None:
    sign(registry, maker()(keys), targets_of(layout))
    before = ImageReader(registry.as_client(), keys).view(is_whole=True)
    renew(registry.as_client(), maker()(keys), 700, QUIET)
    after = ImageReader(registry.as_client(), keys).view(is_whole=True)
    assert after.root.version == before.root.version + 1
    assert after.root.expires > before.root.expires
    assert after.targets.expires > before.targets.expires
    assert all(after.roles[name].expires > content.expires for name, content in before.roles.items())
    assert sum(len(content.targets) for content in after.roles.values()) == len(layout.bundles)


def test_what_has_expired_is_renewed_and_signed_for_again(
    tmp_path: Path, registry: TrustOfRegistry, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "keys"
    set_up(registry.as_client(), folder, plan(expires_days=5), maker(), QUIET)
    registry.clock.days_ahead = 6

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(days=6)

    monkeypatch.setattr("packager.tufview.datetime", Later)
    monkeypatch.setattr("packager.tufmake.datetime", Later)
    with pytest.raises(EdgeError) as caught:
        sign(registry, maker()(folder), targets_of(layout))
    assert caught.value.code == "trust.metadata-expired"
    assert "keys renew" in caught.value.hint
    renew(registry.as_client(), maker()(folder), 30, QUIET)
    assert sign(registry, maker()(folder), targets_of(layout)) > 0


def test_signatures_of_several_people_are_put_together(
    tmp_path: Path, registry: TrustOfRegistry, layout: Layout
) -> None:
    folder = tmp_path / "keys"
    set_up(registry.as_client(), folder, plan(2, 2), maker(), QUIET)
    # One of the two signing keys moves to a colleague's folder.
    mine, theirs = KeyFolder.open(folder), tmp_path / "theirs"
    moved = mine.of_role(IMAGE_TARGETS)[1]
    other = KeyFolder.create(theirs, mine.thresholds)
    other.keys = (moved,)
    other.save()
    (folder / moved.uri.removeprefix("pem:")).rename(theirs / moved.uri.removeprefix("pem:"))
    mine.keys = tuple(key for key in mine.keys if key is not moved)
    mine.save()
    with pytest.raises(EdgeError, match="needs 2 signatures") as caught:
        sign(registry, maker()(folder), targets_of(layout))
    assert caught.value.code == "trust.signature-invalid"
    sign(registry, maker()(folder, theirs), targets_of(layout))
    assert Device(registry, tmp_path / "device").find(targets_of(layout)[0].path) is not None


def test_a_threshold_above_the_number_of_keys_is_refused() -> None:
    with pytest.raises(EdgeError, match="2 of 1 keys"):
        plan(1, 2).check()


def test_private_keys_are_encrypted_and_for_their_owner_alone(keys: Path) -> None:
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    files = sorted(keys.glob("*.pem"))
    assert len(files) == 3
    for path in files:
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((keys / "keys.json").stat().st_mode) == 0o600
    assert "PRIVATE" not in (keys / "keys.json").read_text()


def test_nothing_private_is_ever_sent(tmp_path: Path, registry: TrustOfRegistry, keys: Path, layout: Layout) -> None:
    ring = maker()(keys)
    sign(registry, ring, targets_of(layout))
    rotate(registry.as_client(), ring, Change(KEY_ROLES), QUIET)
    table = registry.repository._table.rows  # type: ignore[attr-defined]  # everything the registry ever stored
    stored = b"".join(data for _, data in table.values())
    assert b"PRIVATE" not in stored
    assert SECRET.encode() not in stored
    signers: list[Any] = list(ring._signers.values())
    raw = [signer._private_key.private_bytes_raw() for signer in signers]
    assert len(raw) == 6
    assert not any(private in stored or private.hex().encode() in stored for private in raw)


def test_a_wrong_pass_phrase_says_so(registry: TrustOfRegistry, keys: Path, layout: Layout) -> None:
    with pytest.raises(EdgeError, match="pass phrase is wrong") as caught:
        sign(registry, maker("wrong horse")(keys), targets_of(layout))
    assert caught.value.code == "config.key-invalid"


def test_a_mistyped_pass_phrase_makes_no_new_keys(registry: TrustOfRegistry, keys: Path) -> None:
    before = sorted(path.name for path in keys.iterdir())
    with pytest.raises(EdgeError, match="pass phrase is wrong"):
        rotate(registry.as_client(), maker("wrong horse")(keys), Change(KEY_ROLES), QUIET)
    assert sorted(path.name for path in keys.iterdir()) == before


def test_a_key_that_others_can_read_is_not_used(registry: TrustOfRegistry, keys: Path, layout: Layout) -> None:
    for path in keys.glob("image-targets-*.pem"):
        path.chmod(0o644)
    with pytest.raises(EdgeError, match="can be read by others") as caught:
        sign(registry, maker()(keys), targets_of(layout))
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "lighterman.keys/2"},
        {"keys": "none"},
        {"thresholds": {"image-root": 0, "image-targets": 1, "director-root": 1}},
        {"more": 1},
        {"keys": [{"role": "image-root", "keyid": "a", "public": {}, "uri": "pem:a.pem", "use": "current"}]},
        {
            "keys": [
                {
                    "role": "image-root",
                    "keyid": "a",
                    "public": {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "00" * 32}},
                    "uri": "pem:../../etc/key.pem",
                    "use": "current",
                }
            ]
        },
    ],
)
def test_a_damaged_list_of_keys_is_refused(keys: Path, change: dict[str, Any]) -> None:
    path = keys / "keys.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EdgeError) as caught:
        KeyFolder.open(keys)
    assert caught.value.code == "config.key-invalid"
    assert "keys.json" in caught.value.detail


def test_a_registry_that_forged_its_root_is_not_signed_for(
    tmp_path: Path, registry: TrustOfRegistry, keys: Path, layout: Layout
) -> None:
    impostor = TrustOfRegistry(tmp_path / "impostor")
    set_up(impostor.as_client(), tmp_path / "impostor-keys", plan(), maker(), QUIET)
    rotate(impostor.as_client(), maker()(tmp_path / "impostor-keys"), Change((IMAGE_ROOT,)), QUIET)
    with pytest.raises(EdgeError) as caught:
        sign(impostor, maker()(keys), targets_of(layout))
    assert caught.value.code == "trust.signature-invalid"


def test_a_registry_that_goes_back_in_time_is_not_signed_for(
    registry: TrustOfRegistry, keys: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packager.sign.SIGN_BACKOFF_S", 0.0)
    table = registry.repository._table
    old = dict(table.rows)  # type: ignore[attr-defined]
    sign(registry, maker()(keys), targets_of(layout))
    table.rows = old  # type: ignore[attr-defined]
    registry.repository._current = None
    with pytest.raises(EdgeError) as caught:
        sign(registry, maker()(keys), some_targets(layout, 2))
    assert caught.value.code == "trust.metadata-rollback"


def test_a_folder_without_a_root_signs_nothing(registry: TrustOfRegistry, keys: Path, layout: Layout) -> None:
    (keys / "image.root.json").unlink()
    with pytest.raises(EdgeError) as caught:
        sign(registry, maker()(keys), targets_of(layout))
    assert caught.value.code == "trust.root-unknown"


def test_a_forged_list_is_refused_by_who_verifies(registry: TrustOfRegistry, keys: Path, layout: Layout) -> None:
    sign(registry, maker()(keys), targets_of(layout))
    reader = ImageReader(registry.as_client(), keys)
    path = targets_of(layout)[0].path
    name = reader.view([path]).holder_of(path)
    table = registry.repository._table.rows  # type: ignore[attr-defined]
    key = ("image", f"{reader.view().versions[name]}.{name}")
    version, data = table[key]
    table[key] = (version, data.replace(b'"release_counter":1', b'"release_counter":9'))
    with pytest.raises(EdgeError) as caught:
        reader.view([path])
    assert caught.value.code == "trust.metadata-mismatch", "the snapshot names the digest of every list"
    device = Device(registry, keys.parent / "device")
    with pytest.raises(RepositoryError):
        device.find(path)


def test_what_a_folder_holds_can_be_shown(keys: Path) -> None:
    facts = describe(KeyFolder.open(keys))
    assert [key["role"] for key in facts["keys"]] == list(KEY_ROLES)
    assert facts["roots"]["image"]["version"] == 1
    assert "PRIVATE" not in json.dumps(facts)
