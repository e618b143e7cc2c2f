"""`edge-agent tuf` in search of targets through delegations, with python-tuf's client as a second opinion."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from edge_agent.limits import DELEGATIONS_MAX
from tests.support.tufplain import Pair, PlainRepository, keys, plain_pair

TOP_FILES = 4


@pytest.fixture
def repository() -> PlainRepository:
    return PlainRepository()


@pytest.fixture
def pair(repository: PlainRepository, tmp_path: Path) -> Iterator[Pair]:
    with plain_pair(repository, tmp_path) as made:
        yield made


def visited(pair: Pair) -> list[str]:
    """Roles that were asked for, in order, without the top-level ones."""
    return [name.split(".", 1)[1].removesuffix(".json") for name in pair.requests[TOP_FILES:] if name.endswith(".json")]


Edge = tuple[str, str, list[str], bool]  # delegator, role, paths, terminating

GRAPHS: dict[str, tuple[list[Edge], list[str]]] = {
    "one": ([("targets", "A", ["*"], False)], ["A"]),
    "two": ([("targets", "A", ["*"], False), ("targets", "B", ["*"], False)], ["A", "B"]),
    "depth first": (
        [
            ("targets", "A", ["*"], False),
            ("targets", "B", ["*"], False),
            ("A", "C", ["*"], False),
            ("A", "D", ["*"], False),
        ],
        ["A", "C", "D", "B"],
    ),
    "three levels": (
        [
            ("targets", "A", ["*"], False),
            ("targets", "B", ["*"], False),
            ("A", "C", ["*"], False),
            ("C", "D", ["*"], False),
        ],
        ["A", "C", "D", "B"],
    ),
    "terminating": (
        [
            ("targets", "A", ["*"], False),
            ("targets", "B", ["*"], False),
            ("A", "C", ["*"], True),
            ("A", "D", ["*"], False),
        ],
        ["A", "C"],
    ),
    "below a terminating one": (
        [
            ("targets", "A", ["*"], False),
            ("targets", "B", ["*"], False),
            ("A", "C", ["*"], True),
            ("C", "D", ["*"], False),
        ],
        ["A", "C", "D"],
    ),
    "paths that do not match": (
        [
            ("targets", "A", ["*.py"], False),
            ("targets", "B", ["*", "x"], False),
            ("A", "C", ["*"], False),
            ("B", "D", ["other", "a/*"], False),
        ],
        ["B"],
    ),
    "a terminating one whose paths do not match": (
        [("targets", "A", ["*.py"], True), ("targets", "B", ["*"], False)],
        ["B"],
    ),
    "a circle": (
        [
            ("targets", "A", ["*"], False),
            ("targets", "B", ["*"], False),
            ("B", "C", ["*"], False),
            ("C", "D", ["*"], False),
            ("D", "B", ["*"], False),
        ],
        ["A", "B", "C", "D"],
    ),
    "a role that delegates to itself": ([("targets", "A", ["*"], False), ("A", "A", ["*"], False)], ["A"]),
    "two ways to a third": (
        [
            ("targets", "A", ["*"], False),
            ("targets", "B", ["*"], False),
            ("B", "C", ["*"], False),
            ("A", "C", ["*"], False),
        ],
        ["A", "C", "B"],
    ),
    "one of two ways to a third": (
        [
            ("targets", "A", ["*"], False),
            ("targets", "B", ["*"], False),
            ("B", "C", ["*"], False),
            ("A", "C", ["*.py"], False),
        ],
        ["A", "B", "C"],
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_roles_are_visited_in_preorder(pair: Pair, case: str) -> None:
    edges, expected = GRAPHS[case]
    for delegator, role, paths, is_last in edges:
        pair.repository.delegate(delegator, role, paths, is_last=is_last)
    pair.repository.publish_delegated()
    assert pair.download("missing") == 1
    assert visited(pair) == expected
    assert "trust.target-unknown" in pair.ours.output


@pytest.mark.parametrize(
    ("path", "roles"),
    [
        ("file", []),
        ("README.md", ["A"]),
        ("releases/x/v1", ["B", "C"]),
        ("releases/y/v1.zip", ["B", "D"]),
        ("releases/z/v1.zip", ["B"]),
        ("releases/x/deep/v1", []),
    ],
)
def test_only_roles_that_may_speak_for_a_path_are_asked(pair: Pair, path: str, roles: list[str]) -> None:
    repository = pair.repository
    repository.delegate("targets", "A", ["*.doc", "*.md"])
    repository.delegate("targets", "B", ["releases/*/*"])
    repository.delegate("B", "C", ["releases/x/*"])
    repository.delegate("B", "D", ["releases/y/*.zip"])
    for name, role in {"file": "targets", "README.md": "A", "releases/x/v1": "C", "releases/y/v1.zip": "D"}.items():
        repository.add(name, name.encode(), role)
    repository.add("releases/z/v1.zip", b"D may not say this", "D")
    repository.add("releases/x/deep/v1", b"neither may C", "C")
    repository.publish_delegated()
    is_known = path not in ("releases/z/v1.zip", "releases/x/deep/v1")
    assert pair.download(path) == int(not is_known)
    assert visited(pair) == roles
    assert pair.fetched(pair.ours) == ([path.encode()] if is_known else [])


def test_an_earlier_delegation_wins(pair: Pair) -> None:
    repository = pair.repository
    repository.delegate("targets", "A")
    repository.delegate("targets", "B")
    repository.add("file", b"of B", "B")
    repository.add("file", b"of A", "A")
    repository.publish_delegated()
    assert pair.download("file") == 0
    assert pair.fetched(pair.ours) == [b"of A"]


@pytest.mark.parametrize("length", [DELEGATIONS_MAX - 1, DELEGATIONS_MAX, DELEGATIONS_MAX + 1, DELEGATIONS_MAX + 20])
def test_a_search_is_bounded(pair: Pair, length: int) -> None:
    repository = pair.repository
    delegator = "targets"
    for number in range(length):
        repository.delegate(delegator, f"r{number}")
        delegator = f"r{number}"
    repository.add("file", b"at the end", delegator)
    repository.publish_delegated()
    assert pair.download("file") == int(length > DELEGATIONS_MAX)
    assert len(visited(pair)) == min(length, DELEGATIONS_MAX)


def test_hash_prefixes_choose_the_role(pair: Pair) -> None:
    repository = pair.repository
    paths = [f"file-{number}" for number in range(6)]
    for half, prefixes in enumerate((list("01234567"), list("89abcdef"))):
        repository.delegate("targets", f"half{half}", None, path_hash_prefixes=prefixes)
    for path in paths:
        role = f"half{int(hashlib.sha256(path.encode()).hexdigest()[0] >= '8')}"
        repository.add(path, path.encode(), role)
    repository.publish_delegated()
    assert pair.download(*paths) == 0
    assert pair.download("missing") == 1


def test_succinct_bins_right_below_the_top(pair: Pair) -> None:
    repository = pair.repository
    bins = repository.delegate_bins("targets", 8, "bins")
    repository.add("a/b", b"content", bins.get_role_for_target("a/b"))
    repository.publish_delegated()
    assert pair.download("a/b") == 0
    assert visited(pair) == [bins.get_role_for_target("a/b")]
    assert pair.download("a/c") == 1


def test_a_role_for_a_model_and_bins_for_the_rest(pair: Pair) -> None:
    """As our own image repository is: models with keys of their own first, then a catalogue that delegates to bins."""
    repository = pair.repository
    repository.delegate("targets", "model-digits", ["digits/*/*"], is_last=True)
    repository.delegate("targets", "catalogue", ["*/*/*"], is_last=True)
    bins = repository.delegate_bins("catalogue", 4, "bins")
    own, other = "digits/1/a", "letters/1/b"
    repository.add(own, b"own", "model-digits")
    repository.add(other, b"other", bins.get_role_for_target(other))
    stolen = "digits/2/c"
    repository.add(stolen, b"bins must not say this", bins.get_role_for_target(stolen))
    repository.publish_delegated()
    assert pair.download(own) == 0
    assert visited(pair) == ["model-digits"]
    assert pair.download(other) == 0
    assert pair.requests[2:4] == ["1.catalogue.json", f"1.{bins.get_role_for_target(other)}.json"]
    assert pair.download(stolen) == 1, "the model's role is the last word on its paths"
    assert pair.fetched(pair.ours) == [b"other", b"own"]


def test_a_role_by_two_ways_is_verified_with_the_keys_of_each(pair: Pair) -> None:
    """Python-tuf finds it on its disk by then, and verifies anew; within one process it does not."""
    repository = pair.repository
    repository.delegate("targets", "A", ["a/*"])
    repository.delegate("targets", "B", ["b/*"])
    repository.delegate("A", "shared", ["*/*"])
    repository.signers["shared"], honest = keys(1), repository.signers["shared"]
    repository.delegate("B", "shared", ["*/*"])  # trusts another key under the same name
    repository.signers["shared"] = honest
    for path in ("a/1", "b/1"):
        repository.add(path, path.encode(), "shared")
    repository.publish_delegated()
    assert pair.download("a/1") == 0
    assert pair.download("b/1") == 1
    assert pair.ours.download("a/1", "b/1") == 1
    assert pair.fetched(pair.ours) == [b"a/1"]


@pytest.mark.parametrize("spoil", ["stranger", "unsigned", "unlisted", "old"])
def test_a_delegated_role_is_verified(pair: Pair, spoil: str) -> None:
    repository = pair.repository
    repository.delegate("targets", "A")
    repository.add("file", b"content", "A")
    repository.publish_delegated()
    if spoil == "unlisted":
        del repository.snapshot.meta["A.json"]
        repository.publish("snapshot", "timestamp")
    elif spoil == "old":
        repository.snapshot.meta["A.json"].version = 2
        repository.files["metadata/2.A.json"] = repository.files["metadata/1.A.json"]
        repository.publish("snapshot", "timestamp")
    else:
        repository.signers["A"] = keys(1) if spoil == "stranger" else []
        repository.publish_all("A")
    assert pair.refresh() == 0, "nobody asked for the role yet"
    assert pair.download("file") == 1
    assert "A" not in pair.trusted(pair.ours)


ODD_ROLES = [
    "?",
    "#",
    "/role",
    "../role",
    "../../../../role",
    ".",
    "..",
    "...",
    "a b",
    "%2e%2e%2f",
    "ünïcödé/役割",
    "a\\b",
    "a:b*c|d",
    "nul\x00l",
    ".tmp-x",
    "seed",
    "r" * 250,
    "ü" * 80,
    "x.json",
    "9.root",
]


@pytest.mark.parametrize("is_consistent", [True, False])
@pytest.mark.parametrize("role", ODD_ROLES, ids=range(len(ODD_ROLES)))
def test_odd_names_of_roles_lead_nowhere_else(tmp_path: Path, role: str, is_consistent: bool) -> None:
    repository = PlainRepository(is_consistent=is_consistent)
    repository.delegate("targets", role)
    repository.add("file", b"content", role)
    repository.publish_delegated()
    with plain_pair(repository, tmp_path) as pair:
        before = set(tmp_path.rglob("*"))
        is_fine = len(quote(role, safe="")) <= 250  # python-tuf cannot store longer ones, we can
        assert pair.ours.download("file") == 0, pair.ours.output
        made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
        assert {path.parent for path in made} == {pair.ours.metadata, pair.ours.files}
        assert len([path for path in made if path.suffix == ".json"]) == 4, "beside the root"
        repository.asked.clear()
        assert pair.ours.download("file") == 0
        assert [name for name in repository.asked if name not in ("2.root.json", "timestamp.json")] == []
        assert pair.reference.download("file") == int(not is_fine)
