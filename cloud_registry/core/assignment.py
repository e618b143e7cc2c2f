"""Which deployment wins each module of a device, and what has to change in the stored rows to say so.

For a module, deployments are ranked by priority, then by age, the newer first. The best one whose condition matches and
which has a bundle for the device wins. A better one without such a bundle is refused on this device, which keeps what
the next one assigns: a release that leaves a platform out never takes a model away.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloud_registry.core.condition import Condition, Facts
from cloud_registry.core.progress import TERMINAL, Standing
from cloud_registry.core.records import Bundle


@dataclass(frozen=True, slots=True)
class Candidate:
    """An active deployment.

    Attributes:
        deployment: Identifier.
        age: Rises with each deployment.
        module: Module it is for.
        priority: The higher one wins.
        condition: Which devices it is for.
        title: `<model> version <n>`, for messages.
        bundles: What it can install, by platform.
    """

    deployment: str
    age: int
    module: str
    priority: int
    condition: Condition
    title: str
    bundles: Mapping[str, Bundle]


@dataclass(frozen=True, slots=True)
class Row:
    """What is stored of one deployment on one device."""

    deployment: str
    is_current: bool
    standing: Standing
    manifest: str | None = None


@dataclass(frozen=True, slots=True)
class Assign:
    """The deployment becomes what the module should run (or gets another manifest)."""

    deployment: str
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class Refuse:
    """The deployment has nothing for this device."""

    deployment: str
    detail: str
    was_current: bool = False


@dataclass(frozen=True, slots=True)
class Release:
    """The deployment is no longer what the module should run; how far it came is kept if it had ended."""

    deployment: str
    was_current: bool


@dataclass(frozen=True, slots=True)
class Drop:
    """The deployment no longer concerns the device and never reached it."""

    deployment: str
    was_current: bool


Change = Assign | Refuse | Release | Drop


@dataclass(slots=True)
class _Wanted:
    current: dict[str, Bundle] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    outranked: set[str] = field(default_factory=set)


def plan(facts: Facts, candidates: Sequence[Candidate], rows: Mapping[str, Row]) -> tuple[Change, ...]:
    """What has to change for one device.

    Args:
        facts: The device.
        candidates: All active deployments of the modules in question.
        rows: Stored rows of the device for these modules by deployment, those of ended deployments too.

    Returns:
        Changes that bring the rows in line; empty when they are.
    """
    wanted = _resolve(facts, candidates)
    active = {candidate.deployment for candidate in candidates}
    changes: list[Change] = []
    for deployment, row in rows.items():
        if deployment in wanted.current or deployment in wanted.refused:
            continue
        is_unmatched = deployment in active and deployment not in wanted.outranked
        if is_unmatched and (row.manifest is None or row.standing is Standing.PENDING):
            changes.append(Drop(deployment, row.is_current))
        elif row.is_current or row.standing not in TERMINAL:
            changes.append(Release(deployment, row.is_current))
    for deployment, bundle in wanted.current.items():
        found = rows.get(deployment)
        if found is None or not found.is_current or found.manifest != str(bundle.manifest):
            changes.append(Assign(deployment, bundle))
    for deployment, detail in wanted.refused.items():
        found = rows.get(deployment)
        if found is None or found.is_current or found.manifest is not None or found.standing is not Standing.REFUSED:
            changes.append(Refuse(deployment, detail, found is not None and found.is_current))
    return tuple(changes)


def is_felt(changes: Iterable[Change]) -> bool:
    """Whether the device has to hear of the changes."""
    return any(isinstance(change, Assign) or getattr(change, "was_current", False) for change in changes)


def fitting_bundle(facts: Facts, bundles: Mapping[str, Bundle]) -> Bundle | str:
    """The bundle for a device, or why there is none."""
    bundle = bundles.get(facts.platform)
    if bundle is None:
        there = f"there are: {', '.join(sorted(bundles))}" if bundles else "no bundle is registered"
        return f"no bundle for {facts.platform or 'an unknown platform'}; {there}"
    if bundle.hardware_ids and facts.hardware_id not in bundle.hardware_ids:
        return f"the bundle for {facts.platform} is for the hardware {', '.join(bundle.hardware_ids)}"
    return bundle


def _resolve(facts: Facts, candidates: Sequence[Candidate]) -> _Wanted:
    wanted = _Wanted()
    taken: set[str] = set()
    for candidate in sorted(candidates, key=_rank):
        if not candidate.condition.matches(facts):
            continue
        if candidate.module in taken:
            wanted.outranked.add(candidate.deployment)
            continue
        bundle = fitting_bundle(facts, candidate.bundles)
        if isinstance(bundle, str):
            wanted.refused[candidate.deployment] = f"{candidate.title}: {bundle}"
            continue
        taken.add(candidate.module)
        wanted.current[candidate.deployment] = bundle
    return wanted


def _rank(candidate: Candidate) -> tuple[Any, ...]:
    return (-candidate.priority, -candidate.age)
