"""A bundle on its way into a slot: who vouches for it, and everything that may be wrong with it."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.web.asked import Asked
from edge_agent.web.life import Unpacked, unpack
from edge_contract.deployment import Artifact, bundle_repository, target_path
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.manifest import CODE_RAW, CODE_TAR, INDEX_TYPE, MANIFEST_TYPE, MODEL, PLATFORM, VERSION, Role
from edge_contract.runtime import RUNTIME_PATH, Runtime
from tests.support.bundles import ELSEWHERE, HERE, Written, adder_bundle
from tests.support.rawhttp import Asked as Request
from tests.support.rawhttp import RawServer, answer, raw_server
from tests.support.slots import adder
from tests.support.tufrepo import TufRepository


@pytest.fixture
def bundle(tmp_path: Path) -> Written:
    return adder_bundle(tmp_path / "bundle", platforms=(HERE, ELSEWHERE))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    return place


def code_of(asked: Asked, place: Path) -> str:
    """The code it is refused with; nothing of it may have become a slot."""
    with pytest.raises(EdgeError) as caught:
        unpack(asked.check(), place)
    assert not list(place.glob("slots/*/slot.json"))
    return caught.value.code


def unsigned(bundle: Written, **options: Any) -> Asked:
    return Asked(bundle=bundle.folder, is_unsigned=True, **options)


# --- pinned digests


def test_the_digest_of_the_index_or_of_the_manifest_will_do(bundle: Written, place: Path, tmp_path: Path) -> None:
    manifest, _ = bundle.manifests[HERE]
    by_index = unpack(Asked(bundle=bundle.folder, digest=bundle.index).check(), place)
    assert (by_index.chosen.digest, by_index.chosen.vouched) == (manifest, "pinned-digest")
    other = tmp_path / "other"
    other.mkdir()
    by_manifest = unpack(Asked(bundle=bundle.folder, digest=manifest).check(), other)
    assert by_manifest.chosen == by_index.chosen
    slot = by_manifest.slot / "files"
    assert (slot / "model.onnx").read_bytes() == adder(10.0)
    assert Runtime.parse((slot / RUNTIME_PATH).read_bytes()) == by_manifest.runtime


def test_only_what_the_model_needs_stays_on_the_disk(bundle: Written, place: Path) -> None:
    unpack(unsigned(bundle).check(), place)
    assert not [path for path in (place / "blobs").rglob("*") if path.is_file()]


def test_another_digest_is_another_bundle(bundle: Written, place: Path) -> None:
    assert code_of(Asked(bundle=bundle.folder, digest=Digest.of(b"another")), place) == "artifact.not-found"
    config = bundle.manifest().config.digest
    assert code_of(Asked(bundle=bundle.folder, digest=config), place) == "artifact.manifest-invalid"


def test_the_manifest_of_another_platform_is_refused_even_when_it_is_pinned(bundle: Written, place: Path) -> None:
    manifest, _ = bundle.manifests[ELSEWHERE]
    assert code_of(Asked(bundle=bundle.folder, digest=manifest), place) == "artifact.platform-mismatch"


def test_a_bundle_for_other_platforms_names_them(tmp_path: Path, place: Path) -> None:
    bundle = adder_bundle(tmp_path / "bundle", platforms=(ELSEWHERE,))
    with pytest.raises(EdgeError, match=ELSEWHERE) as caught:
        unpack(unsigned(bundle), place)
    assert caught.value.code == "artifact.platform-mismatch"


def test_a_bundle_has_to_be_the_model_and_version_that_were_named(bundle: Written, place: Path) -> None:
    assert unpack(unsigned(bundle, model="digits", version=1).check(), place).chosen.version == 1
    assert code_of(unsigned(bundle, model="others"), place / "a") == "artifact.not-found"
    assert code_of(unsigned(bundle, version=2), place / "b") == "artifact.not-found"
    pinned = Asked(bundle=bundle.folder, digest=bundle.index, version=2)
    assert code_of(pinned, place / "c") == "artifact.manifest-invalid"


# --- tampering


def _tamper(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _blobs(bundle: Written) -> list[Digest]:
    manifest = bundle.manifest()
    return [bundle.index, bundle.manifests[HERE][0], *(blob.digest for blob in manifest.blobs)]


@pytest.mark.parametrize("which", range(6), ids=["index", "manifest", "config", "runtime", "model", "golden"])
@pytest.mark.parametrize("is_pinned", [True, False], ids=["pinned", "unsigned"])
def test_no_byte_of_a_bundle_can_be_changed(bundle: Written, place: Path, which: int, is_pinned: bool) -> None:
    asked = Asked(bundle=bundle.folder, digest=bundle.index) if is_pinned else unsigned(bundle)
    digests = _blobs(bundle)
    assert len(digests) == 6
    _tamper(bundle.blob(digests[which]))
    assert code_of(asked, place) == "artifact.digest-mismatch"


def test_a_blob_that_is_cut_or_grows_is_refused(bundle: Written, place: Path) -> None:
    model = bundle.blob(bundle.manifest().with_role(Role.MODEL)[0].digest)
    whole = model.read_bytes()
    for data in (whole[:-1], whole + b"\0", b""):
        model.write_bytes(data)
        assert code_of(unsigned(bundle), place) == "artifact.size-mismatch"
    model.unlink()
    assert code_of(unsigned(bundle), place) == "artifact.not-found"


def test_a_pipe_in_the_place_of_a_blob_holds_nobody_up(bundle: Written, place: Path) -> None:
    blob = bundle.blob(bundle.manifest().with_role(Role.MODEL)[0].digest)
    blob.unlink()
    os.mkfifo(blob)
    assert code_of(unsigned(bundle), place) == "artifact.not-found"


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (lambda folder: (folder / "index.json").write_text("{"), "artifact.document-invalid"),
        (lambda folder: (folder / "index.json").write_text('{"manifests": []}'), "artifact.not-found"),
        (lambda folder: (folder / "index.json").write_text('{"manifests": [1, {}]}'), "artifact.not-found"),
        (lambda folder: (folder / "index.json").unlink(), "config.file-missing"),
        (lambda folder: (folder / "oci-layout").unlink(), "config.file-missing"),
    ],
)  # fmt: skip
def test_what_is_no_layout_is_refused(bundle: Written, place: Path, write: Callable[[Path], Any], code: str) -> None:
    write(bundle.folder)
    assert code_of(unsigned(bundle), place) == code


def test_a_layout_with_two_bundles_needs_to_be_told_which(bundle: Written, tmp_path: Path, place: Path) -> None:
    second = adder_bundle(tmp_path / "second", 20.0, version=2)
    for blob in (second.folder / "blobs" / "sha256").iterdir():
        (bundle.folder / "blobs" / "sha256" / blob.name).write_bytes(blob.read_bytes())
    listed = [json.loads((folder / "index.json").read_text())["manifests"] for folder in (bundle.folder, second.folder)]
    document = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [item for items in listed for item in items]}
    (bundle.folder / "index.json").write_text(json.dumps(document))
    assert code_of(unsigned(bundle), place) == "artifact.not-found"
    assert unpack(unsigned(bundle, version=2), place).chosen.version == 2


def test_a_manifest_that_lies_about_itself_is_refused(tmp_path: Path, place: Path) -> None:
    for count, (notes, code) in enumerate(
        (
            ({MODEL: "others"}, "artifact.runtime-invalid"),
            ({VERSION: "2"}, "artifact.runtime-invalid"),
            ({VERSION: "one"}, "artifact.manifest-invalid"),
            ({MODEL: "../x"}, "artifact.manifest-invalid"),
            ({PLATFORM: ELSEWHERE}, "artifact.platform-mismatch"),
        )
    ):
        bundle = adder_bundle(tmp_path / f"b{count}", notes=notes)
        assert code_of(unsigned(bundle), place) == code


def test_a_bundle_without_golden_vectors_is_served_only_when_that_is_permitted(tmp_path: Path, place: Path) -> None:
    bundle = adder_bundle(tmp_path / "bundle", golden=False)
    assert code_of(unsigned(bundle), place) == "artifact.golden-invalid"
    assert unpack(unsigned(bundle, is_unproved=True), place).runtime.golden is None


# --- hostile archives: the bounds of a device's store hold here too


def _tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def _link() -> tarfile.TarInfo:
    info = tarfile.TarInfo("code/link")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


def _bomb() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("package/zeros.py", b"\0" * 64_000_000)
    return target.getvalue()


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        ((CODE_TAR, Role.CODE, "code", _tar((tarfile.TarInfo("../../escaped"), b"x"))), "artifact.path-unsafe"),
        ((CODE_TAR, Role.CODE, "code", _tar((tarfile.TarInfo("/etc/escaped"), b"x"))), "artifact.path-unsafe"),
        ((CODE_TAR, Role.CODE, "code", _tar((_link(), b""))), "artifact.entry-forbidden"),
        ((CODE_RAW, Role.WHEEL, "wheels/bomb-1-py3-none-any.whl", _bomb()), "artifact.archive-bomb"),
        ((CODE_RAW, Role.CODE, "../escaped", b"x"), "artifact.path-unsafe"),
    ],
    ids=["parent", "absolute", "link", "bomb", "layer"],
)
def test_hostile_archives_do_not_leave_their_slot(
    tmp_path: Path, place: Path, layer: tuple[str, str, str, bytes], code: str
) -> None:
    bundle = adder_bundle(tmp_path / "bundle", layers=[layer])
    assert code_of(unsigned(bundle), place) == code
    assert not list(tmp_path.rglob("escaped"))


# --- signed metadata


class Signed:
    """An image repository that knows a bundle, in a folder."""

    def __init__(self, bundle: Written, folder: Path, days_ago: float = 0.0, **changes: Any) -> None:
        self.bundle, self.folder = bundle, folder
        self.repository = TufRepository(int((time.time() - days_ago * 86_400) * 1000), bits=2)
        digest, length = bundle.manifests[HERE]
        about: dict[str, Any] = {
            "model": "digits", "version": 1, "platform": HERE, "release_counter": 1,
            "repository": bundle_repository("digits"),
        }  # fmt: skip
        artifact = Artifact(**(about | changes))
        self.repository.set_target(target_path("digits", 1, digest), length, {"sha256": digest.hex}, artifact.to_json())
        self.repository.publish()
        folder.mkdir()
        self.root = folder.with_suffix(".root.json")
        self.root.write_bytes(self.repository.files["1.root.json"])

    def asked(self, **options: Any) -> Asked:
        for name, data in self.repository.files.items():
            (self.folder / name).write_bytes(data)
        return Asked(bundle=self.bundle.folder, root=self.root, metadata=str(self.folder), **options)


def test_what_signed_metadata_knows_is_served(bundle: Written, tmp_path: Path, place: Path) -> None:
    signed = Signed(bundle, tmp_path / "trust")
    found = unpack(signed.asked().check(), place)
    assert (found.chosen.digest, found.chosen.vouched) == (bundle.manifests[HERE][0], "signed-metadata")


def test_a_newer_root_is_followed_from_the_given_one(bundle: Written, tmp_path: Path, place: Path) -> None:
    signed = Signed(bundle, tmp_path / "trust")
    signed.repository.rotate("targets")
    signed.repository.publish()
    assert unpack(signed.asked().check(), place).chosen.vouched == "signed-metadata"


def test_what_nobody_signed_is_refused(bundle: Written, tmp_path: Path, place: Path) -> None:
    other = adder_bundle(tmp_path / "other", 11.0)
    signed = Signed(other, tmp_path / "trust")
    signed.bundle = bundle
    assert code_of(signed.asked(), place) == "trust.target-unknown"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 2}, "trust.repositories-disagree"),
        ({"model": "others"}, "trust.repositories-disagree"),
        ({"platform": ELSEWHERE}, "trust.repositories-disagree"),
        ({"hardware_ids": ("board-9",)}, "artifact.platform-mismatch"),
    ],
)
def test_what_was_signed_as_something_else_is_refused(
    bundle: Written, tmp_path: Path, place: Path, changes: dict[str, Any], code: str
) -> None:
    assert code_of(Signed(bundle, tmp_path / "trust", **changes).asked(), place) == code


def test_the_hardware_it_was_signed_for_may_serve_it(bundle: Written, tmp_path: Path, place: Path) -> None:
    signed = Signed(bundle, tmp_path / "trust", hardware_ids=("board-9",))
    assert unpack(signed.asked(hardware_id="board-9"), place).chosen.vouched == "signed-metadata"


def test_expired_metadata_vouches_for_nothing(bundle: Written, tmp_path: Path, place: Path) -> None:
    assert code_of(Signed(bundle, tmp_path / "trust", days_ago=3).asked(), place) == "trust.metadata-expired"


def test_metadata_of_another_root_vouches_for_nothing(bundle: Written, tmp_path: Path, place: Path) -> None:
    signed, other = Signed(bundle, tmp_path / "trust"), Signed(bundle, tmp_path / "other")
    asked = signed.asked()
    signed.root.write_bytes(other.root.read_bytes())
    assert code_of(asked, place) == "trust.signature-invalid"


def test_metadata_that_was_changed_or_is_missing_vouches_for_nothing(
    bundle: Written, tmp_path: Path, place: Path
) -> None:
    signed = Signed(bundle, tmp_path / "trust")
    asked = signed.asked()
    timestamp = signed.folder / "timestamp.json"
    whole = timestamp.read_bytes()
    timestamp.write_bytes(whole.replace(b'"version"', b'"versiom"'))
    assert code_of(asked, place / "a").startswith("trust.")
    timestamp.write_bytes(b"x" * 20_000)
    assert code_of(asked, place / "b") == "trust.metadata-too-large"
    timestamp.unlink()
    assert code_of(asked, place / "c") == "cloud.unavailable"


def test_a_root_that_cannot_be_read_is_named(bundle: Written, tmp_path: Path, place: Path) -> None:
    signed = Signed(bundle, tmp_path / "trust")
    asked = signed.asked()
    signed.root.write_bytes(b"{}")
    assert code_of(asked, place / "a").startswith("trust.")
    signed.root.unlink()
    assert code_of(asked, place / "b") == "config.file-missing"


def test_a_pin_beside_signed_metadata_has_to_hold_as_well(bundle: Written, tmp_path: Path, place: Path) -> None:
    signed = Signed(bundle, tmp_path / "trust")
    assert unpack(signed.asked(digest=bundle.index).check(), place).chosen.vouched == "signed-metadata"
    assert code_of(signed.asked(digest=Digest.of(b"another")), place / "a") == "artifact.not-found"


# --- registries


def registry_of(bundle: Written, files: dict[str, bytes] | None = None) -> Callable[[Request], list[bytes]]:
    """A registry that holds one bundle, and the metadata of an image repository."""
    manifests = {str(bundle.index): INDEX_TYPE, str(bundle.manifests[HERE][0]): MANIFEST_TYPE, "1": INDEX_TYPE}

    def script(asked: Request) -> list[bytes]:
        if asked.headers.get("authorization") != "Bearer secret":
            return [answer(401)]
        kind, _, reference = asked.path.removeprefix("/v2/bundles/digits/").partition("/")
        if asked.path.startswith("/tuf/image/") and files is not None:
            data = files.get(asked.path.removeprefix("/tuf/image/"))
            return [answer(404) if data is None else answer(200, data)]
        if kind == "manifests" and reference in manifests:
            digest = bundle.index if reference == "1" else Digest(reference)
            return [answer(200, bundle.blob(digest).read_bytes(), Content_Type=manifests[reference])]
        if kind == "blobs" and bundle.blob(Digest(reference)).is_file():
            return [answer(200, bundle.blob(Digest(reference)).read_bytes())]
        return [answer(404)]

    return script


def pulled(server: RawServer, **options: Any) -> Asked:
    about: dict[str, Any] = {"registry": server.url, "model": "digits", "version": 1, "token": "secret"}
    return Asked(**(about | options)).check()


def test_a_bundle_is_pulled_by_its_pinned_digest(bundle: Written, place: Path) -> None:
    with raw_server(registry_of(bundle), keep_alive=True) as server:
        found: Unpacked = unpack(pulled(server, digest=bundle.index), place)
    assert found.chosen.digest == bundle.manifests[HERE][0]
    assert (found.slot / "files" / "model.onnx").read_bytes() == adder(10.0)
    assert not [asked for asked in server.asked if asked.path.endswith("/manifests/1")]


def test_a_bundle_is_pulled_and_verified_by_signed_metadata(bundle: Written, tmp_path: Path, place: Path) -> None:
    signed = Signed(bundle, tmp_path / "trust")
    with raw_server(registry_of(bundle, signed.repository.files), keep_alive=True) as server:
        found = unpack(pulled(server, root=signed.root), place)
    assert found.chosen.vouched == "signed-metadata"


def test_a_registry_that_serves_another_bundle_under_the_tag_is_found_out(
    bundle: Written, tmp_path: Path, place: Path
) -> None:
    signed = Signed(bundle, tmp_path / "trust")
    hostile = adder_bundle(tmp_path / "hostile", 666.0)
    with raw_server(registry_of(hostile, signed.repository.files), keep_alive=True) as server:
        assert code_of(pulled(server, root=signed.root), place / "a") == "trust.target-unknown"
        assert code_of(pulled(server, digest=bundle.index), place / "b") == "artifact.not-found"


def test_a_registry_that_changes_bytes_is_found_out(bundle: Written, place: Path) -> None:
    _tamper(bundle.blob(bundle.manifest().with_role(Role.MODEL)[0].digest))
    with raw_server(registry_of(bundle), keep_alive=True) as server:
        assert code_of(pulled(server, digest=bundle.index), place / "a") == "artifact.digest-mismatch"
    _tamper(bundle.blob(bundle.index))
    with raw_server(registry_of(bundle), keep_alive=True) as server:
        assert code_of(pulled(server, digest=bundle.index), place / "b") == "artifact.digest-mismatch"


def test_a_registry_that_refuses_or_lacks_it_says_so(bundle: Written, place: Path) -> None:
    with raw_server(registry_of(bundle), keep_alive=True) as server:
        assert code_of(pulled(server, is_unsigned=True, token="wrong"), place / "a") == "network.refused"
        assert code_of(pulled(server, is_unsigned=True, version=7), place / "b") == "artifact.not-found"
    assert code_of(pulled(server, is_unsigned=True), place / "c") == "network.unreachable"
