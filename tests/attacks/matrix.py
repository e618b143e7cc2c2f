"""Which stolen keys are enough for what: every set of keys, tried against the verifier of the agent.

The two repositories are verified one after the other and must agree, so each is tried by itself, with the other as the
attacker would like it; what he needs in all is one of the smallest sets of each. `test_key_table.py` tries these
products once more, against both repositories at once.
"""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root

from edge_agent.ports import Desired
from edge_agent.trust.timefloor import TimeFloor
from edge_agent.trust.uptane import UptaneVerifier
from edge_contract.deployment import Assignment
from edge_contract.errors import EdgeError
from tests.support.tufrepo import BINS, DAY_MS, NOW_MS, TOP_ROLES, TufRepository, TwoRepositories

KeySet = frozenset[str]
NONE: KeySet = frozenset()

DIRECTOR_KEYS = ("root", "targets", "snapshot", "timestamp")
IMAGE_KEYS = ("root", "targets", BINS, "snapshot", "timestamp")
DAYS = {"root": 365.0, "targets": 365.0, BINS: 365.0, "snapshot": 7.0, "timestamp": 1.0}
"""How long metadata live by default; the director's targets live as long as its snapshot."""
FAST = 1_000_000
_STRANGER = CryptoSigner.generate_ed25519()


class Repository(TufRepository):
    """A repository that somebody may take over."""

    def taken_over(self, keys: KeySet, wall_ms: int = NOW_MS) -> Repository:
        """A copy in the hands of somebody with these keys, at that time; in place of the others he has his own."""
        taken = copy.copy(self)
        taken.wall_ms = wall_ms
        taken.files, taken.versions, taken.targets = dict(self.files), dict(self.versions), dict(self.targets)
        taken.signed_fields, taken.asked = dict(self.signed_fields), []
        taken.root = copy.deepcopy(self.root)
        taken.signers = {role: list(signers) if role in keys else [_STRANGER] for role, signers in self.signers.items()}
        if "root" in keys:
            taken.publish_root(_give_everything, [*self.signers["root"], _STRANGER])
            taken.signers = {role: [_STRANGER] for role in (*TOP_ROLES, BINS)}
        return taken


def _give_everything(root: Root) -> None:
    for role in TOP_ROLES:
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(_STRANGER.public_key, role)


def variants(repository: Repository, keys: KeySet) -> Iterator[Repository]:
    """The ways to publish what `repository.targets` says, for somebody with these keys."""
    delegated = [*repository.bin_roles]
    parts = [["targets"]] if not delegated else [delegated, ["targets", *delegated]]
    for roles in parts:
        everything = repository.taken_over(keys)
        everything.publish(*roles)
        yield everything
        if "root" not in keys:
            # Without touching what is above, in the place of what the device has not seen yet.
            alone = repository.taken_over(keys)
            for role in roles:
                alone.versions[role] -= 1
                alone.put(role, alone.make_targets(role))
            yield alone


@dataclass
class World:
    """A device that trusts yesterday, and repositories that have moved on.

    Attributes:
        folder: For the device's trusted metadata.
        repositories: As they are today.
        live: What the device runs.
        coming: What it is to get today.
    """

    folder: Path
    repositories: TwoRepositories = field(init=False)
    live: Assignment = field(init=False)
    coming: Assignment = field(init=False)
    _tries: int = 0

    def __post_init__(self) -> None:
        made = TwoRepositories()
        made.director = Repository(NOW_MS, None, {"lighterman": {"device": made.device}}, days=DAYS | {"targets": 7.0})
        made.image = Repository(NOW_MS, 1, days=dict(DAYS))
        self.repositories = made
        self.live = made.deploy(1)
        verifier = self._verifier(self.folder / "yesterday", self.director, self.image)
        verifier.seed(self.director.files["1.root.json"], self.image.files["1.root.json"])
        assert verifier.refresh(NOW_MS).assignments == (self.live,)
        self.coming = made.deploy(2)

    @property
    def director(self) -> Repository:
        """Today's director repository."""
        assert isinstance(self.repositories.director, Repository)
        return self.repositories.director

    @property
    def image(self) -> Repository:
        """Today's image repository."""
        assert isinstance(self.repositories.image, Repository)
        return self.repositories.image

    def ask(
        self, director: Repository, image: Repository, wall_ms: int = NOW_MS, *then: tuple[Repository, Repository]
    ) -> Desired | None:
        """What a device that trusts yesterday takes from these repositories, and then from others.

        None when it refuses the last of them.
        """
        self._tries += 1
        place = self.folder / f"try-{self._tries}"
        shutil.copytree(self.folder / "yesterday", place)
        desired: Desired | None = None
        for served in ((director, image), *then):
            try:
                desired = self._verifier(place, *served).refresh(wall_ms)
            except EdgeError as error:
                if not error.code.startswith("trust."):
                    raise
                desired = None
        shutil.rmtree(place)
        return desired

    def _verifier(self, place: Path, director: Repository, image: Repository) -> UptaneVerifier:
        floor = TimeFloor(place / "time.json")
        return UptaneVerifier(place, self.repositories.device, director.fetch, image.fetch, dict, floor)


# -- what somebody may want --------------------------------------------------------------------------------------------


class Wish:
    """Something an attacker wants, asked for one repository at a time. `None` of a method: no key of it is needed."""

    def __init__(self, world: World) -> None:
        self.world = world

    def director(self, keys: KeySet) -> bool:
        """Whether these keys of the director's are enough, when everything else is as he likes it."""
        raise AssertionError("each wish has its own")

    def image(self, keys: KeySet) -> bool:
        """The same for the image repository."""
        raise AssertionError("each wish has its own")


class Install(Wish):
    """That the device runs a bundle: one of the attacker's own, or a genuine one that nobody assigned."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        honest = copy.copy(world.repositories)
        honest.director, honest.image = world.director.taken_over(_ALL), world.image.taken_over(_ALL)
        self.evil = honest.release(3)
        honest.assign(self.evil)
        self.assigned, self.listed = honest.director, honest.image

    def director(self, keys: KeySet) -> bool:
        return any(self._runs(made, self.listed) for made in self.directors(keys))

    def image(self, keys: KeySet) -> bool:
        return any(self._runs(self.assigned, made) for made in self.images(keys))

    def both(self, director: KeySet, image: KeySet) -> bool:
        """Both at once."""
        pairs = itertools.product(self.directors(director), self.images(image))
        return any(self._runs(*pair) for pair in pairs)

    def directors(self, keys: KeySet) -> list[Repository]:
        """Directors that assign it."""
        return _told(self.world.director, self.assigned, keys)

    def images(self, keys: KeySet) -> list[Repository]:
        """Image repositories that list it."""
        return _told(self.world.image, self.listed, keys)

    def _runs(self, director: Any, image: Any) -> bool:
        desired = self.world.ask(director, image)
        return desired is not None and self.evil in desired.assignments


def _told(today: Repository, wanted: Any, keys: KeySet) -> list[Repository]:
    telling = copy.copy(today)
    telling.targets = dict(wanted.targets)
    return list(variants(telling, keys))


class Hide(Wish):
    """That the device sees nothing new and notices nothing, so many days from now."""

    def __init__(self, world: World, days: float) -> None:
        super().__init__(world)
        self._wall_ms = NOW_MS + int(days * DAY_MS)
        self._fresh = tuple(_renewed(made, self._wall_ms) for made in (world.director, world.image))

    def director(self, keys: KeySet) -> bool:
        return any(self._holds(made, self._fresh[1]) for made in self._kept(self.world.director, keys))

    def image(self, keys: KeySet) -> bool:
        return any(self._holds(self._fresh[0], made) for made in self._kept(self.world.image, keys))

    def _kept(self, today: Repository, keys: KeySet) -> Iterator[Repository]:
        """Signed anew as far as the keys go; the roots of the owners pass through."""
        chain = ["timestamp", "snapshot", "targets"]
        for depth in range(len(chain) + 1):
            taken = _renewed(today, self._wall_ms, is_root_alone=True).taken_over(keys, self._wall_ms)
            if depth == len(chain):
                taken.publish()
            elif depth:
                taken.publish(chain[depth - 1])
            yield taken

    def _holds(self, director: Any, image: Any) -> bool:
        return self.world.ask(director, image, self._wall_ms) is not None


def _renewed(today: Repository, wall_ms: int, *, is_root_alone: bool = False) -> Repository:
    """As its owners keep it until then."""
    renewed = today.taken_over(_ALL - {"root"}, wall_ms)
    renewed.signers["root"] = list(today.signers["root"])
    renewed.publish_root()
    if not is_root_alone:
        renewed.publish()
    return renewed


class LockOut(Wish):
    """That the device refuses what is honest, also when the attack has ended."""

    def __init__(self, world: World, is_rotated: bool) -> None:
        super().__init__(world)
        self._is_rotated = is_rotated

    def director(self, keys: KeySet) -> bool:
        return self._locks(self.world.director, keys, lambda made: (made, self.world.image))

    def image(self, keys: KeySet) -> bool:
        return self._locks(self.world.image, keys, lambda made: (self.world.director, made))

    def _locks(self, today: Repository, keys: KeySet, beside: Callable[[Any], tuple[Any, Any]]) -> bool:
        honest = today.taken_over(_ALL - {"root"})
        honest.signers["root"] = list(today.signers["root"])
        if self._is_rotated:
            for role in ("timestamp", "snapshot", "targets"):
                honest.rotate(role)
            if honest.bits is not None:
                honest.signers[BINS] = [CryptoSigner.generate_ed25519()]
        honest.publish()
        for roles in (["timestamp"], ["timestamp", "snapshot"], list(today.versions)):
            fast = today.taken_over(keys)
            fast.versions |= {role: fast.versions[role] + FAST for role in roles if role != "root"}
            fast.publish(*([roles[-1]] if len(roles) < len(TOP_ROLES) else []))
            director, image = beside(fast)
            if self.world.ask(director, image, NOW_MS, beside(honest)) is None:
                return True
        return False


_ALL: KeySet = frozenset((*TOP_ROLES, BINS))


# -- the table ---------------------------------------------------------------------------------------------------------


def table(world: World) -> str:
    """The table of the page of threats: for each wish, the smallest sets of keys that are enough."""
    install, locked, lost = Install(world), LockOut(world, False), LockOut(world, True)
    rows: list[tuple[str, list[KeySet]]] = [
        ("run a bundle of his own", _together(install)),
        ("run a genuine bundle that nobody assigned, older ones too", _named("director", _directors(install))),
        ("hide updates for more than a day", _together(Hide(world, 1.5))),
        ("hide updates for more than a week", _together(Hide(world, 8))),
        ("hide updates for more than a year", _together(Hide(world, 400))),
        ("keep devices from updating until stolen keys are replaced", _apart(locked)),
        ("keep devices from updating until they are enrolled again", _apart(lost)),
    ]
    lines = ["| to | any of these sets of keys is enough, and nothing less |", "|---|---|"]
    for wish, sets in rows:
        shown = ["`" + "` + `".join(sorted(one)) + "`" for one in sorted(sets, key=lambda one: (len(one), sorted(one)))]
        lines.append(f"| {wish} | {'; '.join(shown)} |")
    return "\n".join(lines)


def _directors(wish: Wish) -> list[KeySet]:
    return smallest(DIRECTOR_KEYS, wish.director)


def _together(wish: Wish) -> list[KeySet]:
    """Sets for a wish that both repositories have to grant."""
    images = _named("image", smallest(IMAGE_KEYS, wish.image))
    return [one | other for one in _named("director", _directors(wish)) for other in images]


def _apart(wish: Wish) -> list[KeySet]:
    """Sets for a wish that one repository alone grants."""
    return _named("director", _directors(wish)) + _named("image", smallest(IMAGE_KEYS, wish.image))


def _named(repository: str, sets: Iterable[KeySet]) -> list[KeySet]:
    return [frozenset(f"{repository} {'model' if key == BINS else key}" for key in one) for one in sets]


def smallest(keys: Iterable[str], is_enough: Callable[[KeySet], bool]) -> list[KeySet]:
    """The smallest sets that are enough, by trying all that hold no smaller one."""
    names = tuple(keys)
    found: list[KeySet] = []
    for count in range(len(names) + 1):
        for chosen in map(frozenset, itertools.combinations(names, count)):
            if not any(less <= chosen for less in found) and is_enough(chosen):
                found.append(chosen)
    return found
