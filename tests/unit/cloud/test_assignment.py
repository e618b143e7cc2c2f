"""Which deployment wins a module of a device, and how the stored rows follow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_registry.core.assignment import Assign, Candidate, Change, Drop, Refuse, Release, Row, is_felt, plan
from cloud_registry.core.condition import Facts, parse_condition
from cloud_registry.core.progress import TERMINAL, Standing
from cloud_registry.core.records import Bundle
from edge_contract.digest import Digest

DEVICE = Facts("cam-1", "linux/arm64", "board-7", {"site": "north"})


def bundle(text: str, platform: str = "linux/arm64", hardware_ids: tuple[str, ...] = ()) -> Bundle:
    digest = Digest.of(text.encode())
    return Bundle(platform, digest, 100, 1, hardware_ids, "bundles/digits", digest)


def candidate(
    name: str, age: int, condition: str = "*", priority: int = 0, module: str = "digits", *bundles: Bundle
) -> Candidate:
    found = bundles or (bundle(name),)
    return Candidate(
        name, age, module, priority, parse_condition(condition), name, {item.platform: item for item in found}
    )


def row(item: Candidate, standing: Standing, is_current: bool = True) -> dict[str, Row]:
    return {
        item.deployment: Row(item.deployment, is_current, standing, str(next(iter(item.bundles.values())).manifest))
    }


def applied(rows: dict[str, Row], changes: tuple[Change, ...]) -> dict[str, Row]:
    """What the database holds afterwards."""
    result = dict(rows)
    for change in changes:
        name = change.deployment
        if isinstance(change, Assign):
            result[name] = Row(name, True, Standing.PENDING, str(change.bundle.manifest))
        elif isinstance(change, Refuse):
            result[name] = Row(name, False, Standing.REFUSED, None)
        elif isinstance(change, Drop):
            del result[name]
        else:
            before = result[name]
            standing = before.standing if before.standing in TERMINAL else Standing.SUPERSEDED
            result[name] = Row(name, False, standing, before.manifest)
    return result


def test_the_newer_deployment_wins() -> None:
    old, new = candidate("d1", 1), candidate("d2", 2)
    assert plan(DEVICE, [old, new], {}) == (Assign("d2", new.bundles["linux/arm64"]),)


def test_a_higher_priority_wins_over_a_newer_deployment() -> None:
    old, new = candidate("d1", 1, priority=5), candidate("d2", 2)
    assert plan(DEVICE, [old, new], {}) == (Assign("d1", old.bundles["linux/arm64"]),)


def test_a_condition_that_does_not_match_gives_way() -> None:
    old, new = candidate("d1", 1), candidate("d2", 2, "tags.site = 'south'")
    assert plan(DEVICE, [old, new], {}) == (Assign("d1", old.bundles["linux/arm64"]),)


def test_modules_do_not_compete() -> None:
    digits, faces = candidate("d1", 1), candidate("d2", 2, module="faces")
    assert {change.deployment for change in plan(DEVICE, [digits, faces], {})} == {"d1", "d2"}


def test_a_release_without_a_bundle_for_the_platform_is_refused_and_the_one_before_stays() -> None:
    old = candidate("d1", 1)
    new = candidate("d2", 2, "*", 0, "digits", bundle("d2", "linux/amd64"))
    changes = plan(DEVICE, [old, new], row(old, Standing.CONFIRMED))
    assert len(changes) == 1
    assert isinstance(changes[0], Refuse)
    assert "no bundle for linux/arm64; there are: linux/amd64" in changes[0].detail
    assert not is_felt(changes)


def test_a_bundle_for_other_hardware_does_not_fit() -> None:
    other = candidate("d1", 1, "*", 0, "digits", bundle("d1", hardware_ids=("board-8",)))
    own = candidate("d1", 1, "*", 0, "digits", bundle("d1", hardware_ids=("board-8", "board-7")))
    assert isinstance(plan(DEVICE, [other], {})[0], Refuse)
    assert isinstance(plan(DEVICE, [own], {})[0], Assign)


def test_what_is_in_place_stays_untouched() -> None:
    item = candidate("d1", 1)
    for standing in Standing:
        assert plan(DEVICE, [item], row(item, standing)) == ()


def test_another_manifest_starts_the_deployment_anew() -> None:
    item = candidate("d1", 1)
    rows = {"d1": Row("d1", True, Standing.CONFIRMED, "sha256:" + "0" * 64)}
    assert plan(DEVICE, [item], rows) == (Assign("d1", item.bundles["linux/arm64"]),)


def test_the_loser_keeps_how_it_ended() -> None:
    old, new = candidate("d1", 1), candidate("d2", 2)
    changes = plan(DEVICE, [old, new], row(old, Standing.CONFIRMED))
    assert changes == (Release("d1", True), Assign("d2", new.bundles["linux/arm64"]))
    after = applied(row(old, Standing.CONFIRMED), changes)
    assert (after["d1"].standing, after["d1"].is_current) == (Standing.CONFIRMED, False)


def test_a_cancelled_deployment_lets_the_one_before_return() -> None:
    old, new = candidate("d1", 1), candidate("d2", 2)
    rows = row(old, Standing.SUPERSEDED, is_current=False) | row(new, Standing.IN_PROGRESS)
    assert plan(DEVICE, [old], rows) == (Release("d2", True), Assign("d1", old.bundles["linux/arm64"]))


def test_a_device_that_no_longer_matches_and_never_heard_of_it_leaves_the_deployment() -> None:
    item = candidate("d1", 1, "tags.site = 'south'")
    changes = plan(DEVICE, [item], row(item, Standing.PENDING))
    assert changes == (Drop("d1", True),)
    assert is_felt(changes)


MODULES = st.sampled_from(["digits", "faces"])
CONDITIONS = st.sampled_from(["*", "tags.site = 'north'", "tags.site = 'south'"])
PLATFORMS = st.lists(st.sampled_from(["linux/arm64", "linux/amd64"]), max_size=2, unique=True)


@st.composite
def fleets(draw: st.DrawFn) -> list[Candidate]:
    count = draw(st.integers(0, 5))
    return [
        Candidate(
            f"d{age}",
            age,
            draw(MODULES),
            draw(st.integers(0, 1)),
            parse_condition(draw(CONDITIONS)),
            f"d{age}",
            {name: bundle(f"d{age}{name}", name) for name in draw(PLATFORMS)},
        )
        for age in range(1, count + 1)
    ]


@given(fleets(), fleets(), st.sampled_from(["linux/arm64", "linux/amd64"]), st.sampled_from(["north", "south"]))
def test_after_a_plan_nothing_is_left_to_do_and_a_module_has_one_deployment(
    before: list[Candidate], after: list[Candidate], platform: str, site: str
) -> None:
    modules = {item.deployment: item.module for item in before}
    # A deployment keeps its module for ever.
    after = [item for item in after if modules.get(item.deployment, item.module) == item.module]
    modules |= {item.deployment: item.module for item in after}
    facts = Facts("cam-1", platform, "", {"site": site})
    rows = applied({}, plan(DEVICE, before, {}))
    rows = applied(rows, plan(facts, after, rows))
    assert plan(facts, after, rows) == ()
    current = [modules[name] for name, item in rows.items() if item.is_current]
    assert len(current) == len(set(current))
    for item in after:
        if item.condition.matches(facts) and platform in item.bundles:
            assert item.module in current
