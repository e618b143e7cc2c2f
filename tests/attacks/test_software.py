"""Arbitrary software: somebody wants the device to run what its author never signed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from tests.attacks.forgery import DIRECTOR, IMAGE
from tests.attacks.ground import Ground
from tests.attacks.scene import Attack, Play, Scene
from tests.e2e.stack import Shipment

pytestmark = [pytest.mark.e2e, pytest.mark.system]


def changing(part: str, change: Callable[[bytes], bytes]) -> Play:
    """Change what comes from paths that hold a part."""

    def play(scene: Scene) -> None:
        scene.attacker.change = lambda path, body: change(body) if part in path else body

    return play


def _without_signatures(body: bytes) -> bytes:
    return json.dumps(json.loads(body) | {"signatures": []}).encode()


def _another_digest(body: bytes) -> bytes:
    """The same signed targets with one digit of a digest changed."""
    file = next(iter(json.loads(body)["signed"]["targets"].values()))
    digest = file["hashes"]["sha256"]
    return body.replace(digest.encode(), (("0" if digest[0] != "0" else "1") + digest[1:]).encode())


def test_metadata_without_signatures_or_changed_behind_them_are_refused(scene: Scene) -> None:
    scene.withstands(
        Attack("trust.signature-invalid", "timestamp", changing("/timestamp.json", _without_signatures)),
        Attack("trust.metadata-mismatch", "targets", changing(".targets.json", _another_digest)),
        Attack("trust.metadata-invalid", "timestamp", changing("/timestamp.json", lambda _: b"<html>Welcome!</html>")),
    )


def test_metadata_signed_by_a_stranger_are_refused(scene: Scene) -> None:
    def forged(repository: str, role: str) -> Attack:
        def play(scene: Scene) -> None:
            forgery = scene.forge(repository)
            {"timestamp": forgery.put_timestamp, "root": lambda: forgery.put_root(lambda _: None)}[role]()
            scene.attacker.files = forgery.files

        return Attack("trust.signature-invalid", f"{repository} repository: {role}", play)

    scene.withstands(*(forged(repository, role) for repository in (DIRECTOR, IMAGE) for role in ("timestamp", "root")))


def test_another_manifest_under_the_name_of_the_assigned_one_is_refused(scene: Scene) -> None:
    old = scene.live[scene.model]

    def swap(scene: Scene) -> None:
        with scene.ground.client() as client:
            other = client.get_manifest(f"bundles/{old.model}", str(old.manifest))
        changing("/manifests/", lambda _: other)(scene)

    scene.withstands(Attack("artifact.digest-mismatch", "", swap))


def test_other_bytes_under_the_name_of_the_assigned_ones_are_refused(scene: Scene) -> None:
    made: list[Shipment] = []

    def new() -> Shipment:
        made.append(scene.ship())
        return made[0]

    def swap(change: Callable[[bytes], bytes]) -> Play:
        def play(scene: Scene) -> None:
            changing(f"/blobs/{made[0].blob}", change)(scene)

        return play

    scene.withstands(
        Attack("artifact.digest-mismatch", "", swap(lambda body: body[:40] + bytes([body[40] ^ 1]) + body[41:])),
        Attack("artifact.size-mismatch", "", swap(lambda body: body[:-1])),
        new=new,
    )
    victim = scene.victim
    assert not list((victim.data / "partial").glob("*")), "what was refused is not kept"


def test_a_blob_changed_in_the_registrys_own_storage_never_becomes_a_model(scene: Scene) -> None:
    victim = scene.victim
    with scene.under_watch() as asker:
        shipped = scene.ship("", "nobody")
        path = scene.ground.data / "oci" / "blobs" / "sha256" / shipped.blob.hex
        whole = path.read_bytes()
        assert Digest.of(whole) == shipped.blob
        _rewrite(path, whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
        shipped = scene.assign(shipped)
        scene.names("artifact.digest-mismatch")
        scene.is_unmoved(asker)
        assert not (victim.data / "blobs" / "sha256" / shipped.blob.hex).exists()
        assert not (victim.data / "slots" / shipped.manifest.hex).exists()
        # The wire or the registry are the suspects, not the bundle: made whole again, it is taken.
        _rewrite(path, whole)
        scene.recovers(shipped, asker)


def test_the_registry_refuses_a_bundle_that_nobody_signed(ground: Ground) -> None:
    shipped = ground.ship("forgery", 1)
    with ground.client() as client:
        manifest = json.loads(client.get_manifest("bundles/forgery", str(shipped.manifest)))
        manifest["annotations"]["forged"] = "yes"
        data = json.dumps(manifest).encode()
        forged = client.put_manifest("bundles/forgery", str(Digest.of(data)), manifest["mediaType"], data)
        index = json.loads(client.get_manifest("bundles/forgery", "1"))
        index["manifests"][0] |= {"digest": str(forged), "size": len(data)}
        data = json.dumps(index).encode()
        client.put_manifest("bundles/forgery", "forged", index["mediaType"], data)
        with pytest.raises(EdgeError) as refused:
            client.register_bundle("forgery", 1, Digest.of(data))
    assert refused.value.code == "trust.target-unknown"


def _rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
