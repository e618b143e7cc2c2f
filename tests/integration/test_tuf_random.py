"""Repositories with random pasts and random delegations: ours and python-tuf's client say the same of each."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.tufplain import Pair, PlainRepository, keys, plain_pair

TARGET_ROLES = ("targets", "A", "B")
STEPS = 14


class Past:
    """One repository that does, step by step, whatever the dice say, much of it wrong."""

    def __init__(self, dice: random.Random, pair: Pair) -> None:
        self.dice = dice
        self.pair = pair
        self.repository = pair.repository
        self.days = 0.0
        self.done: list[str] = []

    def step(self) -> None:
        """Do something."""
        kinds: list[tuple[int, Callable[[], None]]] = [
            (6, self.publish_in_order),
            (3, self.publish_some),
            (2, self.change_target),
            (2, self.new_root),
            (1, self.rotate),
            (1, self.fall),
            (1, self.swap),
            (1, self.tamper),
            (1, self.forget),
            (2, self.wait),
        ]
        (work,) = self.dice.choices([work for _, work in kinds], [weight for weight, _ in kinds])
        self.done.append(work.__name__)
        work()

    def publish_in_order(self) -> None:
        """As it should be; also ends most of what went wrong before."""
        for role in ("timestamp", "snapshot", *TARGET_ROLES):
            self.fresh(role)
        self.repository.publish_all(*TARGET_ROLES)

    def publish_some(self) -> None:
        """Some roles, in any order."""
        roles = self.dice.sample(["timestamp", "snapshot", *TARGET_ROLES], self.dice.randint(1, 4))
        for role in roles:
            self.fresh(role)
        self.repository.publish(*roles)

    def fresh(self, role: str) -> None:
        """Give a role's next metadata some time to live."""
        lives = {"timestamp": 3, "snapshot": 8}
        life = lives.get(role, 20) + self.days
        self.repository.contents[role].expires = self.repository.soon + timedelta(days=life - 30)

    def change_target(self) -> None:
        """Somebody lists some target."""
        role, path = self.dice.choice(TARGET_ROLES), self.dice.choice(["a/1", "b/1", "a/2"])
        self.repository.add(path, f"{role} {self.dice.random()}".encode(), role)

    def new_root(self) -> None:
        """A root without news."""
        self.repository.root.expires = self.repository.soon + timedelta(days=self.days + self.dice.choice([-35, 5, 40]))
        self.repository.publish("root")

    def rotate(self) -> None:
        """New keys for everything online, or for targets."""
        roles = self.dice.choice([("timestamp", "snapshot"), ("targets",)])
        for role in roles:
            self.repository.give_keys(role, keys(self.dice.randint(1, 2)))
        self.new_root()

    def fall(self) -> None:
        """A version falls."""
        role = self.dice.choice(["timestamp", "snapshot", *TARGET_ROLES])
        content = self.repository.contents[role]
        content.version = max(1, content.version - self.dice.randint(1, 3))

    def swap(self) -> None:
        """One file is served in place of another."""
        names = sorted(name for name in self.repository.files if name.startswith("metadata/"))
        first, second = self.dice.choice(names), self.dice.choice(names)
        self.repository.files[first] = self.repository.files[second]

    def tamper(self) -> None:
        """A byte of a file changes."""
        name = self.dice.choice(sorted(name for name in self.repository.files if name.startswith("metadata/")))
        data = bytearray(self.repository.files[name])
        data[self.dice.randrange(len(data))] ^= 1
        self.repository.files[name] = bytes(data)

    def forget(self) -> None:
        """A file vanishes."""
        names = sorted(name for name in self.repository.files if name.startswith("metadata/"))
        del self.repository.files[self.dice.choice(names)]

    def wait(self) -> None:
        """Time passes."""
        self.days += self.dice.choice([1.0, 2.5, 6.0])


@pytest.mark.parametrize("is_consistent", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_random_pasts_are_judged_alike(tmp_path: Path, seed: int, is_consistent: bool) -> None:
    dice = random.Random(seed * 2 + is_consistent)
    repository = PlainRepository(is_consistent=is_consistent, has_hashes=dice.random() < 0.5)
    repository.delegate("targets", "A", ["a/*"])
    repository.delegate("targets", "B", ["*/*"])
    repository.publish_delegated()
    verdicts = set()
    with plain_pair(repository, tmp_path) as pair:
        past = Past(dice, pair)
        for _ in range(STEPS):
            past.step()
            try:
                if dice.random() < 0.5:
                    verdicts.add(pair.refresh(days=past.days))
                else:
                    verdicts.add(pair.download(dice.choice(["a/1", "b/1", "a/2"]), days=past.days))
            except AssertionError as error:
                raise AssertionError(f"after {past.done}: {error}") from error
    assert verdicts


@pytest.mark.parametrize("seed", range(12))
def test_random_delegations_are_searched_alike(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    repository = PlainRepository()
    names = ["targets", *"ABCDEFG"]
    patterns = ["*", "*/*", "a/*", "b/*", "a/x", "?/x", "*/y", "nothing"]
    paths = ["a/x", "a/y", "b/x", "b/y", "z"]
    for _ in range(dice.randint(4, 20)):
        delegator, role = dice.choice(names), dice.choice(names[1:])
        if delegator == "targets" or delegator in repository.contents:
            chosen = dice.sample(patterns, dice.randint(1, 3))
            if dice.random() < 0.2:
                prefixes = dice.sample("0123456789abcdef", 8)
                repository.delegate(delegator, role, None, path_hash_prefixes=prefixes, is_last=dice.random() < 0.2)
            else:
                repository.delegate(delegator, role, chosen, is_last=dice.random() < 0.2)
    known = [role for role in names if role in repository.contents]
    for _ in range(8):
        role, path = dice.choice(known), dice.choice(paths)
        repository.add(path, f"{path} of {role}".encode(), role)
    repository.publish_delegated()
    with plain_pair(repository, tmp_path) as pair:
        for path in paths:
            pair.download(path)
