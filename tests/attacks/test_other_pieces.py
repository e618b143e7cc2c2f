"""Pieces that are genuine and do not belong together, or not here: mix-and-match, mixed bundles, wrong device."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from edge_agent.platforms import detect_platform
from edge_contract.deployment import target_path
from tests.attacks.forgery import DIRECTOR, IMAGE, assign_instead
from tests.attacks.scene import Attack, Scene
from tests.e2e.stack import Shipment, condition

pytestmark = [pytest.mark.e2e, pytest.mark.system]

ROUNDS_MAX = 100
ELSEWHERE = "linux/arm64" if detect_platform() != "linux/arm64" else "linux/amd64"


# -- mix-and-match -----------------------------------------------------------------------------------------------------


def _older(scene: Scene, repository: str, role: str) -> Attack:
    """Tell an older file of one role, genuine and not expired, in the place of the newest."""
    place = scene.place(repository)
    shape = re.compile(re.escape(place) + r"\d+\." + re.escape(role) + r"\.json")

    def play(scene: Scene) -> None:
        old = next(bodies[0] for path, bodies in scene.attacker.heard.items() if shape.fullmatch(path))
        scene.attacker.change = lambda path, body: old if shape.fullmatch(path) else body

    return Attack("trust.metadata-mismatch", f"{repository} repository: {role}", play)


def test_files_of_two_moments_are_refused(scene: Scene) -> None:
    scene.withstands(
        _older(scene, DIRECTOR, "snapshot"),
        _older(scene, DIRECTOR, "targets"),
        _older(scene, IMAGE, "snapshot"),
    )


# -- mixed bundles -----------------------------------------------------------------------------------------------------


def test_of_two_modules_that_are_updated_together_none_is_updated_by_half_of_the_metadata(scene: Scene) -> None:
    """One signed document assigns both; what takes a part of it away, takes all of it away."""
    old = dict(scene.live)
    first, second = scene.model, scene.others[0]

    def without_the_second(path: str, body: bytes) -> bytes:
        if not path.endswith(".targets.json"):
            return body
        document = json.loads(body)
        files = document["signed"]["targets"]
        document["signed"]["targets"] = {name: file for name, file in files.items() if not name.startswith(second)}
        return json.dumps(document, separators=(",", ":")).encode()

    def half_of_the_director(scene: Scene) -> None:
        scene.attacker.change = without_the_second

    def half_of_the_images(scene: Scene) -> None:
        forgery = scene.forge(IMAGE)
        role = forgery.lister(target_path(made[1].model, made[1].version, made[1].manifest))
        before = forgery.role(role).signed.version - 1
        with scene.ground.client() as client:
            older = client.tuf_file(f"image/{before}.{role}.json")
        now = f"/tuf/image/{before + 1}.{role}.json"
        scene.attacker.change = lambda path, body: older if path == now else body

    made: list[Shipment] = []

    def both() -> Shipment:
        made.extend((scene.ship(first), scene.ship(second)))
        return made[0]

    scene.withstands(
        Attack("trust.metadata-mismatch", "director repository: targets", half_of_the_director),
        Attack("trust.metadata-mismatch", "image repository: ", half_of_the_images),
        new=both,
    )
    scene.victim.wait(lambda: scene.victim.has_confirmed(made[1]), "the second module to follow")
    scene.live[second] = made[1]
    assert [scene.live[name].version for name in (first, second)] > [old[name].version for name in (first, second)]


# -- wrong device ------------------------------------------------------------------------------------------------------


def test_the_metadata_of_another_device_are_refused(scene: Scene) -> None:
    """Properly signed, and newer than the device's own: refused for whose they are and for nothing else."""
    other = scene.ground.device("neighbour", scene.model)

    def swap(scene: Scene) -> None:
        _outrun(scene, other.name)
        scene.attacker.token = scene.ground.variables["LIGHTERMAN_TOKEN"]
        mine, theirs = scene.place(DIRECTOR), f"/tuf/director/{other.name}/"
        scene.attacker.reroute = lambda path: path.replace(mine, theirs)

    scene.withstands(Attack("trust.wrong-device", other.name, swap))


def _outrun(scene: Scene, other: str) -> None:
    version, wanted = 0, scene.forge(DIRECTOR).timestamp.signed.version + 2
    with scene.ground.client() as client:
        for number in range(1, ROUNDS_MAX):
            policy = {"sampling_ratio": number / ROUNDS_MAX}
            client.create_deployment(scene.model, 1, condition(other), "", policy, "", 0)
            version = json.loads(client.tuf_file(f"director/{other}/timestamp.json"))["signed"]["version"]
            if version >= wanted:
                return
    raise AssertionError(f"the metadata of {other} stay at {version}, behind {wanted}")


# -- wrong hardware ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made_for", "words"),
    [
        pytest.param({"platform": ELSEWHERE}, f"is for {ELSEWHERE}", id="platform"),
        pytest.param({"hardware_ids": ("other-board",)}, "is for the hardware other-board", id="hardware"),
    ],
)
def test_a_genuine_bundle_for_other_hardware_is_refused(scene: Scene, made_for: dict[str, Any], words: str) -> None:
    """The director's keys are stolen; what they assign is genuine, and not for this device."""
    foreign = scene.ship("", "nobody", **made_for)
    mine, genuine = scene.live[scene.model], scene.forge(IMAGE).target(foreign)
    with scene.under_watch() as asker:
        scene.attacker.is_shut = True
        forgery = scene.forge(DIRECTOR, "targets", "snapshot", "timestamp")
        forgery.put_targets(lambda targets: assign_instead(targets, mine, foreign, genuine))
        scene.attacker.files = forgery.files
        scene.attacker.is_shut = False
        scene.names("artifact.platform-mismatch", words)
        scene.is_unmoved(asker)
        scene.attacker.is_shut = True
        scene.outrun_forgery()
        scene.recovers(scene.ship(), asker)
