"""One ground for all tests of this folder, and one victim; each test gets it unharmed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attacks.attacker import attacker_before
from tests.attacks.ground import Ground, running_ground
from tests.attacks.scene import HURRIED, Scene, Victim


@pytest.fixture(scope="session")
def ground_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A ground that lives as long as the run."""
    with running_ground(tmp_path_factory.mktemp("attacks")) as ground:
        yield ground


@pytest.fixture
def ground(ground_of_session: Ground) -> Iterator[Ground]:
    """The ground; the test's own devices end with it."""
    with ground_of_session.ending_devices():
        yield ground_of_session


@pytest.fixture(scope="session")
def scene_of_session(ground_of_session: Ground) -> Iterator[Scene]:
    """The victim with two live models, and the attacker before its door."""
    ground = ground_of_session
    with attacker_before(ground.port) as attacker, ground.ending_devices():
        made = Victim(ground.folder / "v", "victim", "pilot", more_models=["log"], variables=HURRIED)
        victim = ground.enrol(made, attacker.url)
        live = {"pilot": ground.ship("pilot", 1, victim.name)}
        victim.start()
        victim.wait(lambda: victim.has_confirmed(live["pilot"]), "the first model to be live")
        live["log"] = ground.ship("log", 1, victim.name)
        victim.wait(lambda: victim.has_confirmed(live["log"]), "the second model to be live")
        yield Scene(ground, attacker, victim, live)


@pytest.fixture
def scene(scene_of_session: Scene) -> Iterator[Scene]:
    """The scene, everybody honest and at rest."""
    scene_of_session.settle()
    yield scene_of_session
    scene_of_session.attacker.tell_the_truth()
