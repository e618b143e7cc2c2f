"""Stolen keys, one by one and together, against a real device. What every set is good for: test_key_table.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile, Targets

from edge_agent.platforms import detect_platform
from edge_contract.deployment import Artifact, bundle_repository, target_path
from edge_contract.digest import Digest
from packager.build import build
from packager.progress import QuietReporter
from packager.spec import Flags
from packager.specload import load_spec
from tests.attacks.attacker import attacker_before
from tests.attacks.forgery import DIRECTOR, IMAGE, Forgery, assign_instead
from tests.attacks.ground import Ground
from tests.attacks.scene import Attack, Scene, Victim
from tests.e2e.stack import Shipment

pytestmark = [pytest.mark.e2e, pytest.mark.system]

FAST = 1_000_000
EVIL = 666
ONLINE = ("targets", "snapshot", "timestamp")


def _nothing(targets: Targets) -> None:
    """Change nothing; it is signed anew all the same."""


# -- one key -----------------------------------------------------------------------------------------------------------


def _forged_up_to(repository: str, stolen: str, refused_at: str) -> Attack:
    """New targets, with one key of the chain for real; the first link without is where it breaks."""

    def play(scene: Scene) -> None:
        forgery = scene.forge(repository, stolen)
        forgery.put_targets(_nothing)
        scene.attacker.files = forgery.files

    return Attack("trust.signature-invalid", f"{repository} repository: {refused_at}", play)


def test_the_key_of_a_snapshot_or_a_timestamp_alone_changes_nothing(scene: Scene) -> None:
    scene.withstands(
        _forged_up_to(DIRECTOR, "timestamp", "snapshot"),
        _forged_up_to(DIRECTOR, "snapshot", "timestamp"),
        _forged_up_to(IMAGE, "timestamp", "snapshot"),
        _forged_up_to(IMAGE, "snapshot", "timestamp"),
    )


def test_the_authors_key_alone_changes_nothing_of_what_is_assigned(scene: Scene) -> None:
    made: list[Shipment] = []

    def new() -> Shipment:
        made.append(scene.ship())
        return made[0]

    def relist(scene: Scene) -> None:
        forgery = scene.forge(IMAGE, "targets")
        path = target_path(made[0].model, made[0].version, made[0].manifest)

        def lengthen(targets: Targets) -> None:
            targets.targets[path].length += 1

        forgery.put_targets(lengthen, forgery.lister(path), is_next_version=False)
        scene.attacker.files = forgery.files

    scene.withstands(Attack("trust.metadata-mismatch", "image repository: ", relist), new=new)


@pytest.mark.parametrize("stolen", [("targets",), ONLINE], ids=["the-directors-targets", "every-key-of-the-director"])
def test_what_the_server_can_sign_does_not_make_software_genuine(scene: Scene, stolen: tuple[str, ...]) -> None:
    """It assigns what no author signed; or not even that, with less than its whole chain."""
    with scene.under_watch() as asker:
        scene.attacker.is_shut = True
        new = scene.ship()
        listed = scene.forge(IMAGE).target(new)
        listed.hashes["sha256"] = "0" * 64
        evil = Shipment(new.model, new.version, "", Digest.from_hex("0" * 64), new.blob, new.size)
        forgery = scene.forge(DIRECTOR, *stolen)
        is_whole = stolen == ONLINE
        forgery.put_targets(lambda targets: assign_instead(targets, new, evil, listed), is_next_version=is_whole)
        scene.attacker.files = forgery.files
        scene.attacker.is_shut = False
        if is_whole:
            scene.names("trust.target-unknown", target_path(evil.model, evil.version, evil.manifest))
        else:
            scene.names("trust.metadata-mismatch", "director repository: targets")
        scene.is_unmoved(asker)
        if is_whole:
            scene.attacker.is_shut = True
            scene.outrun_forgery()
            new = scene.ship()
        scene.recovers(new, asker)


# -- fast-forward ------------------------------------------------------------------------------------------------------


def test_versions_that_were_driven_up_are_no_measure_once_the_stolen_key_is_replaced(scene: Scene) -> None:
    with scene.under_watch() as asker:
        scene.attacker.is_shut = True
        forgery = scene.forge(DIRECTOR, "timestamp")
        forgery.put_timestamp(lambda timestamp: setattr(timestamp, "version", FAST))
        scene.believes(forgery)
        scene.attacker.tell_the_truth()
        shipped = scene.ship()
        scene.names("trust.metadata-rollback", f"timestamp falls from version {FAST + 1}")
        scene.is_unmoved(asker)
        _rotate(scene.ground, "online")
        scene.recovers(shipped, asker)


# -- whoever holds a root, or a key of each side -----------------------------------------------------------------------


@pytest.fixture
def pawn(ground: Ground, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A device that may be lost."""
    name = f"pawn-{abs(hash(request.node.name)) % 10_000}"
    with attacker_before(ground.port) as attacker:
        victim = ground.enrol(Victim(ground.folder / name, name, name), attacker.url)
        live = ground.ship(name, 1, name)
        victim.start()
        victim.wait(lambda: victim.has_confirmed(live), "the model to be live")
        yield Scene(ground, attacker, victim, {name: live})


def _with_a_director_of_his_own(scene: Scene, new: Shipment) -> Forgery:
    forgery = scene.forge(DIRECTOR, "root")
    forgery.take_over()
    listed = scene.forge(IMAGE).target(new)
    evil = Shipment(new.model, new.version, "", Digest.from_hex("0" * 64), new.blob, new.size)
    listed.hashes["sha256"] = evil.manifest.hex
    forgery.put_targets(lambda targets: assign_instead(targets, new, evil, listed))
    return forgery


def _with_images_of_his_own(scene: Scene, new: Shipment) -> Forgery:
    forgery = scene.forge(IMAGE, "root")
    forgery.take_over()
    forgery.put_targets(lambda targets: setattr(targets, "delegations", None))
    return forgery


@pytest.mark.parametrize("attack", [_with_a_director_of_his_own, _with_images_of_his_own])
def test_one_root_alone_installs_nothing_and_a_device_that_believed_it_is_enrolled_again(
    pawn: Scene, attack: Callable[[Scene, Shipment], Forgery]
) -> None:
    with pawn.under_watch() as asker:
        pawn.attacker.is_shut = True
        new = pawn.ship()
        pawn.attacker.files = attack(pawn, new).files
        pawn.attacker.is_shut = False
        pawn.names("trust.target-unknown", "the image repository does not know")
        pawn.is_unmoved(asker)
        pawn.attacker.tell_the_truth()
        # No metadata of the registry's is worth anything to this device any more; what it runs, it runs.
        pawn.names("trust.signature-invalid", "timestamp")
        pawn.is_unmoved(asker)
    pawn.victim.stop()
    pawn.ground.enrol(pawn.victim, pawn.attacker.url, "--force")
    pawn.victim.start()
    pawn.victim.wait(lambda: pawn.victim.has_confirmed(new), "the device to go on behind its new enrolment")


def test_the_author_and_the_server_together_run_anything_and_it_is_brought_out_again(
    pawn: Scene, tmp_path: Path
) -> None:
    """The limit of all of this: the keys of the server and the author's, together, run anything."""
    with pawn.under_watch() as asker:
        pawn.attacker.is_shut = True
        new = pawn.ship()
        evil, listed, content = _evil_bundle(pawn, tmp_path)
        images = pawn.forge(IMAGE, "targets", "snapshot", "timestamp")
        path = target_path(evil.model, evil.version, evil.manifest)
        images.put_targets(lambda targets: targets.targets.update({path: listed}), images.last(path))
        director = pawn.forge(DIRECTOR, *ONLINE)
        director.put_targets(lambda targets: assign_instead(targets, new, evil, listed))
        pawn.attacker.files = {**images.files, **director.files, **content}
        pawn.attacker.is_shut = False
        asker.wait_for(EVIL)
        # The thief is found out. His keys are replaced; the counter that he drove up needs a permit.
        _rotate(pawn.ground, "online")
        _rotate(pawn.ground, "image-targets")
        pawn.attacker.tell_the_truth()
        shipped = pawn.ship()
        pawn.names("trust.release-rollback", f"from {EVIL} to")
        pawn.recovers(pawn.assign(shipped, allow_release_rollback=True), asker)


def _evil_bundle(scene: Scene, folder: Path) -> tuple[Shipment, TargetFile, dict[str, bytes | None]]:
    """A bundle that no author knows: what stands for it, how it would be listed, and its content by path."""
    model, golden = scene.ground.model_files(EVIL)
    flags = Flags(
        name=scene.model,
        version=EVIL,
        members=(("", model),),
        golden=golden,
        is_golden_trusted=True,
        is_peak_measured=False,
        probation_ms=0,
        platforms=(detect_platform(),),
    )
    build(load_spec(None, flags), folder / "evil", QuietReporter())
    blobs = {path.name: path.read_bytes() for path in (folder / "evil" / "blobs" / "sha256").iterdir()}
    (name,) = (name for name, data in blobs.items() if data[:1] == b"{" and json.loads(data).get("layers"))
    place = f"/v2/{bundle_repository(scene.model)}"
    content: dict[str, bytes | None] = {
        f"{place}/blobs/sha256:{hexadecimal}": data for hexadecimal, data in blobs.items()
    }
    content[f"{place}/manifests/sha256:{name}"] = blobs[name]
    artifact = Artifact(scene.model, EVIL, detect_platform(), EVIL, bundle_repository(scene.model))
    evil = Shipment(scene.model, EVIL, "", Digest.from_hex(name), Digest.of(model.read_bytes()), model.stat().st_size)
    path = target_path(evil.model, evil.version, evil.manifest)
    return evil, TargetFile(len(blobs[name]), {"sha256": name}, path, {"custom": artifact.to_json()}), content


def _rotate(ground: Ground, role: str) -> None:
    done = ground.run("packager", "keys", "rotate", "--role", role, "--json")
    assert done.exit_code == 0, done.stdout + done.stderr
