"""Who may sign for which model: end to end, and with somebody who tries to do more than that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Targets

from cloud_registry.adapters import tuf_rules
from cloud_registry.ports import MetadataRow
from edge_contract.errors import EdgeError
from packager.delegate import bundles, delegate, undelegate, withdraw
from packager.keychange import renew
from packager.keys import KeyPlan, make, read_public
from packager.limits import LIST_MAX
from packager.sign import require_signer
from packager.tufmake import NewTarget, RoleKeys, expiry
from tests.integration.trust.world import QUIET, Device, Site, maker, ring, some_bundle


def team_keys(folder: Path, model: str, count: int = 1, threshold: int = 1) -> RoleKeys:
    """Keys that a model's team makes for itself."""
    role = f"model.{model}"
    made = make(folder, role, KeyPlan({role: count}, {role: threshold}), maker())
    return read_public(Path(made["public_file"]))[1]


def team_of(site: Site, model: str, count: int = 1, threshold: int = 1) -> Path:
    """A model with a team that has keys of its own, in a folder that also has the pinned root."""
    folder = site.folder / f"{model}-team"
    keys = team_keys(folder, model, count, threshold)
    delegate(site.client, ring(site.keys, folder), model, keys, 365, QUIET)
    (folder / "image.root.json").write_bytes((site.keys / "image.root.json").read_bytes())
    return folder


def code_of(error: pytest.ExceptionInfo[EdgeError]) -> str:
    return error.value.code


def test_a_model_with_keys_of_its_own_is_signed_by_them_and_installed(site: Site, device: Device) -> None:
    team = team_of(site, "digits")
    bundle = some_bundle("digits")
    assert site.publish(bundle, keys=[team]) == 1
    site.assign(bundle)
    assert device.runs() == [bundle.digest]
    lists = [name for name in device.asked if name.startswith("image/") and "digits" in name]
    assert len(lists) == 1, "its list alone, neither catalogue nor bins"
    assert not [name for name in device.asked if "bins-" in name or "catalogue" in name]


def test_bundles_signed_before_move_along(site: Site, device: Device) -> None:
    old, other = some_bundle("digits", 1), some_bundle("letters", 1)
    site.publish(old, other)
    site.assign(old, other)
    assert set(device.runs()) == {old.digest, other.digest}
    team = team_of(site, "digits")
    assert set(device.runs()) == {old.digest, other.digest}
    listed = {item["path"]: item["role"] for item in bundles(site.client, ring(team))["bundles"]}
    assert listed[old.path] == "model.digits"
    assert listed[other.path].startswith("bins-")
    new = some_bundle("digits", 2)
    site.publish(new, keys=[team])
    site.assign(new, other)
    assert set(device.runs()) == {new.digest, other.digest}


def test_a_models_key_signs_for_no_other_model(site: Site, device: Device) -> None:
    digits, letters = team_of(site, "digits"), team_of(site, "letters")
    good = some_bundle("letters", 1)
    site.publish(good, keys=[letters])
    for victim in ("letters", "others"):
        with pytest.raises(EdgeError) as caught:
            site.publish(some_bundle(victim, 2, "evil"), keys=[digits])
        assert code_of(caught) == "trust.signature-invalid"
    site.assign(good)
    assert device.runs() == [good.digest]


def test_a_model_that_is_not_theirs_is_refused_before_anything_is_sent(site: Site) -> None:
    digits = team_of(site, "digits")
    require_signer(site.client, ring(digits), "digits")
    require_signer(site.client, ring(site.keys), "letters")
    for keys, model in ((digits, "letters"), (site.keys, "digits")):
        with pytest.raises(EdgeError, match="needs 1 signatures") as caught:
            require_signer(site.client, ring(keys), model)
        assert code_of(caught) == "trust.signature-invalid"


@pytest.mark.parametrize("victim", ["letters", "others"])
def test_the_registry_refuses_a_list_that_reaches_beyond_its_model(site: Site, victim: str) -> None:
    digits = team_of(site, "digits")
    team_of(site, "letters")
    evil = some_bundle(victim, 1, "evil")
    content = Targets(version=2, expires=expiry(30), targets={evil.path: evil.to_file()})
    before = site.registry.repository.read("timestamp.json")
    for role in ("model.digits", f"model.{victim}", "catalogue", "targets"):
        with pytest.raises(EdgeError) as caught:
            site.registry.submit_metadata({role: signed_by(digits, content)})
        assert code_of(caught) in ("trust.metadata-invalid", "trust.signature-invalid")
    assert site.registry.repository.read("timestamp.json") == before


@pytest.mark.parametrize("victim", ["letters", "others"])
def test_a_device_looks_nowhere_but_where_the_delegation_points(site: Site, device: Device, victim: str) -> None:
    """Even when the registry's online keys help: a list of `digits` that names others is never asked for them."""
    digits = team_of(site, "digits")
    evil = some_bundle(victim, 1, "evil")
    own = some_bundle("digits", 1)
    content = Targets(version=2, expires=expiry(30), targets={file.path: file.to_file() for file in (evil, own)})
    repository = site.registry.repository
    current = repository._now()
    data = signed_by(digits, content).encode()
    listed = current.listed | {"model.digits": tuf_rules.listed(2, data)}
    rows = [MetadataRow("image", "2.model.digits", 2, data)]
    repository._sign_and_store(current, listed, site.registry.clock.wall_ms(), rows, [])
    site.assign(own)
    assert device.runs() == [own.digest], "the list itself is in force"
    site.assign(evil)
    assert device.refused() == "trust.target-unknown"


def signed_by(folder: Path, content: Targets) -> str:
    metadata = Metadata(content)
    keys = ring(folder)
    for signer in keys.signers([key.keyid for key in keys.home.keys], 1, "evil"):
        metadata.sign(signer, append=True)
    return metadata.to_bytes().decode()


def test_a_threshold_holds_for_a_model_too(site: Site, device: Device) -> None:
    team = team_of(site, "digits", count=3, threshold=2)
    bundle = some_bundle("digits")
    site.publish(bundle, keys=[team])
    site.assign(bundle)
    assert device.runs() == [bundle.digest]
    for path in sorted(team.glob("*.pem"))[:2]:
        path.unlink()
    with pytest.raises(EdgeError):
        site.publish(some_bundle("digits", 2), keys=[team])


def test_a_new_model_can_be_given_away_by_public_halves_alone(site: Site, device: Device, tmp_path: Path) -> None:
    team = tmp_path / "far-away"
    keys = team_keys(team, "digits")
    said = delegate(site.client, ring(site.keys), "digits", keys, 365, QUIET)
    assert said["is_listed"] is False
    bundle, other = some_bundle("digits"), some_bundle("letters")
    site.publish(other)
    site.assign(other)
    assert device.runs() == [other.digest]
    (team / "image.root.json").write_bytes((site.keys / "image.root.json").read_bytes())
    site.publish(bundle, keys=[team])
    site.assign(bundle, other)
    assert set(device.runs()) == {bundle.digest, other.digest}


def test_a_model_with_bundles_is_not_given_away_behind_its_teams_back(site: Site, tmp_path: Path) -> None:
    site.publish(some_bundle("digits"))
    keys = team_keys(tmp_path / "far-away", "digits")
    with pytest.raises(EdgeError, match="have to sign them too") as caught:
        delegate(site.client, ring(site.keys), "digits", keys, 365, QUIET)
    assert code_of(caught) == "trust.signature-invalid"
    with pytest.raises(EdgeError) as caught:
        delegate(site.client, ring(tmp_path / "far-away"), "digits", keys, 365, QUIET)
    assert code_of(caught) == "trust.root-unknown"


def test_delegating_twice_is_one_delegation(site: Site, tmp_path: Path) -> None:
    team = team_of(site, "digits")
    keys = team_keys(team, "digits")
    before = site.registry.submissions
    assert delegate(site.client, ring(site.keys), "digits", keys, 365, QUIET)["moved"] == 0
    assert site.registry.submissions == before
    with pytest.raises(EdgeError, match="keys of its own already") as caught:
        delegate(site.client, ring(site.keys), "digits", team_keys(tmp_path / "b", "digits"), 365, QUIET)
    assert code_of(caught) == "cloud.conflict"


def test_taking_a_delegation_back(site: Site, device: Device) -> None:
    team = team_of(site, "digits")
    bundle = some_bundle("digits")
    site.publish(bundle, keys=[team])
    site.assign(bundle)
    assert device.runs() == [bundle.digest]
    assert undelegate(site.client, ring(site.keys), "digits", True, 365, QUIET)["taken_over"] == 1
    assert device.runs() == [bundle.digest]
    with pytest.raises(EdgeError) as caught:
        site.publish(some_bundle("digits", 2, "evil"), keys=[team])
    assert code_of(caught) == "trust.signature-invalid"
    site.publish(some_bundle("digits", 2))
    # And once more, to somebody else: numbers go on where they were.
    again = site.folder / "another-team"
    delegate(site.client, ring(site.keys, _made(again)), "digits", team_keys(again, "digits"), 365, QUIET)
    assert device.runs() == [bundle.digest]


def _made(folder: Path) -> Path:
    team_keys(folder, "digits")
    return folder


def test_what_a_stolen_model_key_signed_is_left_behind(site: Site, device: Device) -> None:
    team = team_of(site, "digits")
    good, evil = some_bundle("digits", 1), some_bundle("digits", 2, "evil")
    site.publish(good, evil, keys=[team])
    undelegate(site.client, ring(site.keys), "digits", False, 365, QUIET)
    site.publish(good)
    site.assign(evil)
    assert device.refused() == "trust.target-unknown"
    site.assign(good)
    assert device.runs() == [good.digest]


def test_a_withdrawn_bundle_is_taken_by_no_device(site: Site, device: Device) -> None:
    good, bad = some_bundle("digits", 1), some_bundle("digits", 2)
    site.publish(good, bad)
    assert withdraw(site.client, ring(site.keys), "digits", 2, 365, QUIET)["withdrawn"] == [bad.path]
    site.assign(bad)
    assert device.refused() == "trust.target-unknown"
    site.assign(good)
    assert device.runs() == [good.digest]
    with pytest.raises(EdgeError) as caught:
        withdraw(site.client, ring(site.keys), "digits", 2, 365, QUIET)
    assert code_of(caught) == "cloud.not-found"


def test_a_models_keys_rotate_without_the_root(site: Site, device: Device) -> None:
    team = team_of(site, "digits")
    bundle = some_bundle("digits")
    site.publish(bundle, keys=[team])
    site.assign(bundle)
    old = {key.keyid for key in ring(team).home.keys}
    site.rotate("model.digits", keys=[team, site.keys])
    assert device.runs() == [bundle.digest]
    view = bundles(site.client, ring(team))
    keyids = next(set(role["keyids"]) for role in view["roles"] if role["role"] == "model.digits")
    assert keyids
    assert not keyids & old
    new = some_bundle("digits", 2)
    site.publish(new, keys=[team])
    site.assign(new)
    assert device.runs() == [new.digest]


def test_everybody_renews_what_is_theirs(site: Site) -> None:
    team = team_of(site, "digits")
    site.publish(some_bundle("digits"), keys=[team])
    by_team = renew(site.client, ring(team), 700, QUIET)
    assert by_team["renewed"] == ["model.digits"]
    assert "image root" in by_team["left"]
    by_author = renew(site.client, ring(site.keys), 700, QUIET)
    assert by_author["renewed"] == ["director root", "image root", "targets"]
    assert by_author["left"] == ["model.digits"]


def test_a_long_list_of_a_model_becomes_bins_and_a_device_reads_one(site: Site, device: Device) -> None:
    team = team_of(site, "digits")
    many = [some_bundle("digits", version) for version in range(1, LIST_MAX + 2)]
    assert site.publish(*many[:-1], keys=[team]) == 1
    assert site.publish(many[-1], keys=[team]) == 17, "the role and its sixteen bins"
    for target in (many[0], many[-1]):
        site.assign(target)
        device.asked.clear()
        assert device.runs() == [target.digest]
    assert len([name for name in device.asked if ".bins.digits-" in name]) == 1
    more = some_bundle("digits", len(many) + 1)
    assert site.publish(more, keys=[team]) == 1
    site.rotate("model.digits", keys=[team, site.keys])
    site.assign(more)
    assert device.runs() == [more.digest]


@pytest.mark.slow
def test_a_long_catalogue_gets_more_bins_and_loses_nothing(
    site: Site, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packager.sign.LIST_MAX", 8)
    models = [some_bundle(f"model-{number}") for number in range(60)]
    site.publish(*models)
    site.assign(models[0])
    assert device.runs() == [models[0].digest]
    more = [some_bundle(f"more-{number}") for number in range(120)]
    assert site.publish(*more) == 257, "the catalogue and its many bins"
    listed = {item["path"] for item in bundles(site.client, ring(site.keys))["bundles"]}
    assert listed == {target.path for target in (*models, *more)}
    for target in (models[0], models[-1], more[0]):
        site.assign(target)
        device.asked.clear()
        assert device.runs() == [target.digest]
        assert len([name for name in device.asked if ".bins-" in name]) <= 1
    assert site.publish(some_bundle("one-more")) == 1
    site.rotate("image-targets")
    renew(site.client, ring(site.keys), 300, QUIET)
    site.assign(models[3])
    assert device.runs() == [models[3].digest]


def test_a_device_reads_little_of_a_registry_with_many_models(site: Site, device: Device) -> None:
    folders = [team_of(site, f"model-{number}") for number in range(3)]
    for number, folder in enumerate(folders):
        site.publish(some_bundle(f"model-{number}"), keys=[folder])
    wanted = some_bundle("model-1")
    site.assign(wanted)
    assert device.runs() == [wanted.digest]
    read = [site.serve("image", name.removeprefix("image/")) or b"" for name in set(device.asked) if "image/" in name]
    assert sum(map(len, read)) < 40_000
    top = json.loads(site.serve("image", "4.targets.json") or b"{}")
    assert [role["name"] for role in top["signed"]["delegations"]["roles"]][-1] == "catalogue"


def test_somebody_elses_public_keys_are_read_as_they_were_made(tmp_path: Path) -> None:
    team = tmp_path / "team"
    made = make(team, "model.digits", KeyPlan({"model.digits": 2}, {"model.digits": 2}), maker())
    path = Path(made["public_file"])
    assert "PRIVATE" not in path.read_text()
    role, keys = read_public(path)
    assert (role, len(keys.keys), keys.threshold) == ("model.digits", 2, 2)
    changes: list[dict[str, Any]] = [{"threshold": 3}, {"role": "snapshot"}, {"keys": [{}]}, {"more": 1}]
    for change in changes:
        path.write_text(json.dumps(made | change))
        with pytest.raises(EdgeError) as caught:
            read_public(path)
        assert code_of(caught) == "config.key-invalid"


def test_a_bundle_that_is_signed_keeps_what_is_said_of_it(site: Site) -> None:
    team = team_of(site, "digits")
    bundle = some_bundle("digits")
    site.publish(bundle, keys=[team])
    other = NewTarget(bundle.digest, bundle.length + 1, bundle.artifact)
    with pytest.raises(EdgeError, match="never change"):
        site.publish(other, keys=[team])
