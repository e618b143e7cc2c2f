"""The table of docs/trust.md: which stolen keys together are enough for what, played line by line.

The thief of every test sits on the device's line and serves complete repositories; only signatures can stop him.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_contract.errors import EdgeError
from packager.delegate import delegate
from packager.keys import KeyPlan, make, read_public
from packager.tufmake import NewTarget
from tests.integration.trust.thief import ONLINE, Thief, steal
from tests.integration.trust.world import QUIET, Device, Site, maker, plan, ring, some_bundle
from tests.support.require import REPOSITORY_ROOT

pytestmark = pytest.mark.slow

NAMES = {
    "image-timestamp", "image-snapshot", "director-targets", "director-snapshot", "director-timestamp",
    "image-root", "image-targets", "director-root", "model.digits",
}  # fmt: skip
OLD, NEW, EVIL = some_bundle("digits", 1), some_bundle("digits", 2), some_bundle("digits", 3, "evil")
OTHER = some_bundle("letters", 3, "evil")
_ROW = re.compile(r"^\| (?P<keys>`[^|]*) \| (?P<own>yes|no) \| (?P<others>yes|no) \| (?P<old>yes|no) \|")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        keys: Stolen keys.
        is_own: Whether they install bytes of the thief's for the model `digits`.
        is_others: The same for a model without keys of its own.
        is_old: Whether they install another genuine bundle than the assigned one, with a permit to go back.
    """

    keys: tuple[str, ...]
    is_own: bool
    is_others: bool
    is_old: bool


def rows() -> list[Row]:
    found = []
    for line in (REPOSITORY_ROOT / "docs" / "trust.md").read_text(encoding="utf-8").splitlines():
        match = _ROW.match(line)
        if match is not None:
            names: list[str] = []
            for name in re.findall(r"`([^`]+)`", match["keys"]):
                names += [online for online in ONLINE if online.startswith(name[:-1])] if name.endswith("*") else [name]
            found.append(Row(tuple(names), match["own"] == "yes", match["others"] == "yes", match["old"] == "yes"))
    return found


def test_the_table_names_real_keys_and_every_one_of_them() -> None:
    assert {name for row in rows() for name in row.keys} == NAMES
    assert {row.keys for row in rows() if len(row.keys) == 1} == {(name,) for name in NAMES}, "each key alone"


@pytest.fixture
def team(tmp_path: Path) -> Path:
    return tmp_path / "team"


@pytest.fixture
def victim(tmp_path: Path, team: Path) -> Device:
    """A device that runs version 2 of a model with keys of its own; version 1 is signed too."""
    site = Site(tmp_path, plan())
    made = make(team, "model.digits", KeyPlan({"model.digits": 1}, {"model.digits": 1}), maker())
    keys = read_public(Path(made["public_file"]))[1]
    delegate(site.client, ring(site.keys, team), "digits", keys, 365, QUIET)
    (team / "image.root.json").write_bytes((site.keys / "image.root.json").read_bytes())
    site.publish(OLD, NEW, keys=[team])
    site.publish(some_bundle("letters", 1))
    site.assign(NEW)
    device = Device(site, tmp_path / "device")
    assert device.runs() == [NEW.digest]
    device.installed = {("digits", "digits"): NEW.artifact.release_counter}
    return device


def installs(device: Device, thief: Thief, digest: object) -> bool:
    """Whether the device would install these bytes; what it ran before stays in force otherwise."""
    device.wire = thief.wire
    try:
        return digest in device.runs()
    except EdgeError as error:
        if not error.code.startswith("trust."):
            raise
        return False


def deceives_a_new_device(victim: Device, thief: Thief, target: NewTarget) -> bool:
    """Whether forged lists of the current versions are enough for a device that has not read the real ones."""
    fresh = Device(victim.site, victim.site.folder / "fresh")
    other = Thief(victim.site, thief.stolen)
    other.replace_lists(target)
    other.forge_director(target)
    return installs(fresh, other, target.digest)


def _id(row: Row) -> str:
    return "+".join(row.keys)


@pytest.mark.parametrize("row", rows(), ids=_id)
def test_bytes_of_the_thief_for_a_model_with_keys_of_its_own(victim: Device, team: Path, row: Row) -> None:
    thief = Thief(victim.site, steal(victim.site, *row.keys, folders=[team]))
    thief.forge_image(EVIL)
    thief.forge_director(EVIL)
    assert installs(victim, thief, EVIL.digest) is row.is_own
    assert row.is_own or not deceives_a_new_device(victim, thief, EVIL)


@pytest.mark.parametrize("row", rows(), ids=_id)
def test_bytes_of_the_thief_for_any_other_model(victim: Device, team: Path, row: Row) -> None:
    thief = Thief(victim.site, steal(victim.site, *row.keys, folders=[team]))
    thief.forge_image(OTHER)
    thief.forge_director(OTHER)
    assert installs(victim, thief, OTHER.digest) is row.is_others
    assert row.is_others or not deceives_a_new_device(victim, thief, OTHER)


@pytest.mark.parametrize("row", rows(), ids=_id)
def test_a_genuine_older_bundle(victim: Device, team: Path, row: Row) -> None:
    thief = Thief(victim.site, steal(victim.site, *row.keys, folders=[team]))
    thief.forge_director(OLD, allow_release_rollback=True)
    assert installs(victim, thief, OLD.digest) is row.is_old


@pytest.mark.parametrize("row", rows(), ids=_id)
def test_without_a_permit_the_counter_holds(victim: Device, team: Path, row: Row) -> None:
    thief = Thief(victim.site, steal(victim.site, *row.keys, folders=[team]))
    thief.forge_director(OLD)
    assert not installs(victim, thief, OLD.digest)
