"""Delegations of the image repository as a device meets them: by model first, the rest to a catalogue of hash bins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Targets

from edge_agent.limits import DELEGATIONS_MAX
from edge_contract.delegation import CATALOGUE, model_role
from edge_contract.deployment import director_custom
from tests.support.tufrepo import BINS, TwoRepositories, moment, path_of
from tests.unit.agent.trustbench import Device

DIGITS = model_role("digits")


@pytest.fixture
def tree(tmp_path: Path) -> Device:
    return Device(tmp_path / "trust", TwoRepositories(models=("digits", "words")))


def asked(device: Device) -> list[str]:
    """Delegated roles that were asked for since the last time."""
    image = device.repositories.image
    names = [name.split(".", 1)[1].removesuffix(".json") for name in image.asked]
    image.asked.clear()
    return [name for name in names if name in image.delegated_roles]


def put_below(device: Device, role: str, content: Targets) -> None:
    """Publish a delegated role, signed by its own key, with a snapshot and a timestamp over it."""
    image = device.repositories.image
    image.put(role, content)
    image.put("snapshot", image.make_snapshot())
    image.put("timestamp", image.make_timestamp())


def test_a_model_with_a_role_of_its_own_is_found_there(tree: Device) -> None:
    made = tree.repositories.deploy(1)
    assert tree.refresh().assignments == (made,)
    assert asked(tree) == [DIGITS]


def test_everything_else_is_found_in_the_catalogue(tree: Device) -> None:
    made = tree.repositories.release(1, model="letters")
    tree.repositories.assign(made)
    assert tree.refresh().assignments == (made,)
    assert asked(tree) == [CATALOGUE, tree.repositories.image.bin_of(path_of(made))]


def test_both_at_once_and_after_a_restart_without_a_request(tree: Device) -> None:
    made = [tree.repositories.release(1, model=model) for model in ("digits", "letters", "words")]
    tree.repositories.assign(*made)
    assert set(tree.refresh().assignments) == set(made)
    assert len(asked(tree)) == 4
    tree.start()
    assert set(tree.refresh().assignments) == set(made)
    assert asked(tree) == [], "all of it is on the disk"


def test_who_signs_the_bins_cannot_speak_for_a_model(tree: Device) -> None:
    made = tree.repositories.release(1)
    image = tree.repositories.image
    stolen = image.bin_of(path_of(made))
    content = image.make_targets(stolen)
    content.targets[path_of(made)] = image.targets[path_of(made)]
    put_below(tree, stolen, content)
    image.targets.clear()
    image.publish(DIGITS, "snapshot")
    tree.repositories.assign(made)
    assert tree.refused() == "trust.target-unknown"
    assert asked(tree) == [DIGITS]


def test_who_signs_a_model_cannot_speak_for_another(tree: Device) -> None:
    made = tree.repositories.release(1, model="words")
    image = tree.repositories.image
    content = image.make_targets(DIGITS)
    content.targets[path_of(made)] = image.targets.pop(path_of(made))
    put_below(tree, DIGITS, content)
    image.publish(model_role("words"), "snapshot")
    tree.repositories.assign(made)
    assert tree.refused() == "trust.target-unknown"


@pytest.mark.parametrize("role", [DIGITS, CATALOGUE, BINS])
def test_a_delegated_role_signed_by_another_roles_key_is_refused(tree: Device, role: str) -> None:
    made = tree.repositories.deploy(1, model="digits" if role == DIGITS else "letters")
    image = tree.repositories.image
    name = image.bin_of(path_of(made)) if role == BINS else role
    image.put(name, image.make_targets(name), [image.signers["targets"][0]])
    image.put("snapshot", image.make_snapshot())
    image.put("timestamp", image.make_timestamp())
    assert tree.refused() == "trust.signature-invalid"


@pytest.mark.parametrize("role", [DIGITS, CATALOGUE, BINS])
def test_a_delegated_role_expires(tree: Device, role: str) -> None:
    made = tree.repositories.deploy(1, model="digits" if role == DIGITS else "letters")
    image = tree.repositories.image
    name = image.bin_of(path_of(made)) if role == BINS else role
    content = image.make_targets(name)
    content.expires = moment(tree.wall_ms - 1)
    put_below(tree, name, content)
    assert tree.refused() == "trust.metadata-expired"


@pytest.mark.parametrize("role", [DIGITS, CATALOGUE])
def test_a_delegated_role_never_falls_even_if_nobody_asked_for_it(tree: Device, role: str) -> None:
    made = tree.repositories.deploy(1, model="words")
    image = tree.repositories.image
    image.publish(role)
    assert tree.refresh().assignments == (made,)
    image.versions[role] = 0
    image.publish(role)
    assert tree.refused() == "trust.metadata-rollback"


def test_a_delegation_that_is_taken_back_counts_at_once(tree: Device) -> None:
    made = tree.repositories.deploy(1)
    tree.refresh()
    image = tree.repositories.image
    image.signers[DIGITS] = [CryptoSigner.generate_ed25519()]
    image.publish("targets")
    assert tree.refused() == "trust.signature-invalid", "what is on disk was signed by the former key"
    image.publish(DIGITS)
    assert tree.refresh().assignments == (made,)


def test_circles_and_chains_without_end_are_bounded(tree: Device) -> None:
    tree.repositories.deploy(1)
    image = tree.repositories.image
    image.targets.clear()
    names = [DIGITS, *(f"r{number}" for number in range(2 * DELEGATIONS_MAX))]
    image.models = ()
    key = image.key_of(DIGITS).public_key
    for place, name in enumerate(names):
        image.signers[name] = image.signers[DIGITS]
        content = Targets(version=image._next(name), expires=image._expiry(BINS))
        below = [names[0], *names[place + 1 : place + 2]]  # back to the start, and on
        content.delegations = Delegations(
            {key.keyid: key}, roles={role: DelegatedRole(role, [key.keyid], 1, False, ["*/*/*"]) for role in below}
        )
        image.put(name, content)
    top = image.make_targets("targets")
    top.delegations = Delegations(
        {key.keyid: key}, roles={DIGITS: DelegatedRole(DIGITS, [key.keyid], 1, True, ["digits/*/*"])}
    )
    image.put("targets", top)
    snapshot = image.make_snapshot()
    for name in names:
        snapshot.meta[f"{name}.json"] = image._meta(name)
    image.put("snapshot", snapshot)
    image.put("timestamp", image.make_timestamp())
    image.asked.clear()
    assert tree.refused() == "trust.target-unknown"
    delegated = [name for name in image.asked if name.split(".", 1)[1].removesuffix(".json") in names]
    assert len(delegated) == DELEGATIONS_MAX


def test_two_modules_may_run_one_bundle(tree: Device) -> None:
    made = tree.repositories.release(1)
    twin = replace(made, module="second", deployment="dep-9")
    director = tree.repositories.director
    hashes = {"sha256": made.manifest.hex}
    director.set_target(path_of(made), made.manifest_bytes, hashes, director_custom([made, twin]))
    director.publish()
    assert set(tree.refresh().assignments) == {made, twin}
    tree.installed = {("second", "digits"): 3}
    desired = tree.refresh()
    assert (desired.assignments, set(desired.refused)) == ((made,), {"second"})
