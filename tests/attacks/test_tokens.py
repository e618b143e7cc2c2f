"""Other people's doors: tokens that are stolen, expired or made up, and what a device may not read or say."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import jwt
import pytest

from edge_contract import topics
from edge_contract.deployment import bundle_repository
from tests.attacks.identity import Identity, get, identity_of, stranger
from tests.attacks.scene import Scene
from tests.integration.telemetry.parts import Peer
from tests.support.net import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.system]

HOUR_S = 3600
WAIT_S = 20.0
CONNECT_S = 10.0


@dataclass(frozen=True)
class Doors:
    """The victim and its neighbour, both enrolled."""

    scene: Scene
    mine: Identity
    other: Identity

    def own(self, identity: Identity) -> str:
        """The path of a device's own timestamp."""
        return f"/tuf/director/{identity.device}/timestamp.json"


@pytest.fixture(scope="module")
def doors(scene_of_session: Scene) -> Doors:
    scene = scene_of_session
    return Doors(scene, identity_of(scene.victim), identity_of(scene.ground.device("doorman", "none")))


def _public_as_secret(doors: Doors) -> str:
    """The oldest trick: a symmetric signature with what everybody knows."""
    head = {"alg": "HS256", "kid": doors.mine.keyid, "typ": "JWT"}
    claims = jwt.decode(doors.mine.token(), options={"verify_signature": False})
    body = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, claims))
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(body, doors.mine.public)
    return (body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def _unsigned(doors: Doors) -> str:
    claims = jwt.decode(doors.mine.token(), options={"verify_signature": False})
    return jwt.encode(claims, "", algorithm="none", headers={"kid": doors.mine.keyid})


@pytest.mark.parametrize(
    ("make", "code"),
    [
        pytest.param(lambda doors: doors.mine.token(shift_s=-HOUR_S), "cloud.token-expired", id="expired"),
        pytest.param(lambda doors: doors.mine.token(shift_s=HOUR_S), "cloud.token-expired", id="from-the-future"),
        pytest.param(lambda doors: doors.mine.token(life_s=HOUR_S), "cloud.unauthorized", id="for-an-hour"),
        pytest.param(lambda doors: doors.mine.token(aud="somebody"), "cloud.unauthorized", id="for-somebody-else"),
        pytest.param(
            lambda doors: doors.other.token(iss=doors.mine.device, sub=doors.mine.device),
            "cloud.unauthorized",
            id="of-the-neighbour-in-our-name",
        ),
        pytest.param(
            lambda doors: stranger(doors.mine.device).token(keyid=doors.mine.keyid), "cloud.unauthorized", id="forged"
        ),
        pytest.param(lambda doors: stranger(doors.mine.device).token(), "cloud.unauthorized", id="unknown-key"),
        pytest.param(_public_as_secret, "cloud.unauthorized", id="public-key-as-secret"),
        pytest.param(_unsigned, "cloud.unauthorized", id="no-signature"),
        pytest.param(lambda _: "lmo_made-up", "cloud.unauthorized", id="made-up"),
    ],
)
def test_a_token_that_is_not_the_devices_own_opens_nothing(
    doors: Doors, make: Callable[[Doors], str], code: str
) -> None:
    assert get(doors.scene.ground, doors.own(doors.mine), make(doors)) == (401, code)
    assert get(doors.scene.ground, doors.own(doors.mine), doors.mine.token())[0] == 200


def test_a_device_reads_its_own_metadata_and_its_own_bundles_alone(doors: Doors) -> None:
    scene, token = doors.scene, doors.other.token()
    live = scene.live[scene.model]
    place = f"/v2/{bundle_repository(live.model)}"
    assert get(scene.ground, doors.own(doors.other), token)[0] == 200
    assert get(scene.ground, "/tuf/image/timestamp.json", token)[0] == 200
    assert get(scene.ground, doors.own(doors.mine), token) == (403, "cloud.forbidden")
    for path in (f"{place}/manifests/{live.manifest}", f"{place}/blobs/{live.blob}", f"{place}/tags/list"):
        assert get(scene.ground, path, token)[0] in (403, 404), path
        assert get(scene.ground, path.replace("/tags/list", f"/blobs/{live.blob}"), doors.mine.token())[0] == 200, path
    for path in ("/api/v1/devices", f"/api/v1/devices/{doors.mine.device}", "/api/v1/deployments", "/api/v1/models"):
        assert get(scene.ground, path, token)[0] == 403, path
    for method, path in (("DELETE", f"/api/v1/devices/{doors.mine.device}"), ("POST", f"{place}/blobs/uploads/")):
        assert get(scene.ground, path, token, method)[0] == 403, path


def test_a_token_that_was_overheard_is_worth_minutes_and_one_device(doors: Doors) -> None:
    """Over plain HTTP, as here, somebody on the way hears it; https is what keeps it from him."""
    scene = doors.scene
    heard = next(token for _, path, token in reversed(scene.attacker.asked) if path == doors.own(doors.mine))
    claims = jwt.decode(heard, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] <= 10 * 60
    assert get(scene.ground, doors.own(doors.mine), heard)[0] == 200
    assert get(scene.ground, doors.own(doors.other), heard) == (403, "cloud.forbidden")


def test_a_device_neither_hears_nor_speaks_on_topics_of_another(doors: Doors) -> None:
    scene, device = doors.scene, doors.mine.device
    forbidden = [topics.nudge(device), topics.ack(device), topics.report(device), "lighterman/#", "#", "$CONTROL/#"]
    forged = [topics.report(device), topics.telemetry(device), topics.nudge(device), topics.ack(device)]
    own = topics.report(doors.other.device)
    with _connected(doors, doors.other) as peer, scene.ground.eve() as eve:
        assert peer.subscribe(topics.nudge(doors.other.device)) == [True]
        assert {name: peer.subscribe(name) for name in forbidden} == {name: [False] for name in forbidden}
        for name in forged:
            peer.publish(name, b"forged")
        peer.publish(own, b"own")
        eve.wait_for(lambda heard: (own, b"own") in heard)
        assert not [name for name, message in eve.heard if message == b"forged"]


def test_a_stolen_identity_ends_with_its_revocation_and_stays_ended_behind_a_new_enrolment(doors: Doors) -> None:
    ground = doors.scene.ground
    device = ground.device("careless", "none")
    stolen = replace(identity_of(device), folder=_copy(device.data / "identity", ground.folder / "stolen"))
    place = doors.own(stolen)
    assert get(ground, place, stolen.token())[0] == 200
    with _connected(doors, stolen) as peer:
        done = ground.run("cloud-registry", "devices", "revoke", device.name, "--yes", "--json")
        assert done.exit_code == 0, done.stdout + done.stderr
        wait_until(lambda: peer.losses, WAIT_S, what="the broker to end the thief's connection")
    assert get(ground, place, stolen.token()) == (401, "cloud.device-revoked")
    ground.enrol(device, "", "--force", "--key-type", "p256")
    assert get(ground, place, identity_of(device).token())[0] == 200
    assert get(ground, place, stolen.token())[0] == 401
    # The broker knows no list of revoked certificates: it lets him in, and lets him do nothing.
    with _connected(doors, stolen) as peer, ground.eve() as eve:
        assert peer.subscribe(topics.nudge(device.name)) == [False]
        peer.publish(topics.report(device.name), b"stolen")
        eve.publish(topics.report("nobody"), b"last")
        eve.wait_for(lambda heard: (topics.report("nobody"), b"last") in heard)
        assert b"stolen" not in [message for _, message in eve.heard]


def _copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


@contextmanager
def _connected(doors: Doors, identity: Identity) -> Iterator[Peer]:
    ground = doors.scene.ground
    peer = Peer(ground.secure.device_port, identity.user, tls=identity.tls(ground), wait_s=CONNECT_S)
    try:
        yield peer
    finally:
        peer.close()
