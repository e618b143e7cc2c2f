"""The record: what the agent knows after a power cut. One versioned JSON document, written whole."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from edge_agent.core.limits import QUARANTINE_MAX
from edge_agent.core.probation import Baseline, Bounds
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject
from edge_contract.limits import MODULES_MAX, PROBATION_MS_MAX
from edge_contract.names import model_name
from edge_contract.phases import Outcome, Phase
from edge_contract.terms import Agreement
from edge_contract.twin import ReportedError

SCHEMA: Final = "lighterman.record/1"
_CODE: Final = "internal.record-invalid"
_GETTING: Final = (Phase.RESOLVING, Phase.FETCHING)
"""Phases in which the bundle's blobs are still on their way."""
_PHASES_WITH_LIVE: Final = (Phase.PROBATION, Phase.COMMITTING, Phase.ROLLING_BACK)


@dataclass(slots=True)
class ModuleRecord:
    """What is remembered of one module.

    Attributes:
        phase: Where its update machine is.
        desired: The newest verified assignment.
        live: The bundle that answers predictions.
        fallback: The bundle a rollback makes live.
        golden: Digest of the live bundle's outputs on its golden vectors.
        deployment: The assignment worked on, or the last one that ended.
        outcome: How it ended; none while it runs.
        error: Why it ended so, or what it waits for.
        attempt: Attempts of this deployment that met an error, plus one.
        failures: Those of them that failed on this device's own account, or that a restart cut short while a candidate
            was tested; they are bounded.
        rollbacks: Attempts of the rollback under way.
        probation_restarts: Restarts of the agent within this probation, and until its end is proved.
        probation_ms: Length of the probation window of the deployment.
        bounds: What its probation permits.
        before: What the worker was like that the live one took over from.
        trial: What the trial of the deployment found, or none.
        sampling_ratio: Share of requests to be collected, as the live bundle says itself; its policy may say otherwise.
        fallback_sampling_ratio: The same of the fallback.
        quarantined: Manifests that failed here, oldest first.
        is_live_proved: Whether the live bundle passed its probation; one that did not is nothing to roll back to.
        commits: Attempts of the live bundle to prove that it answers, at the end of this probation.
        heals: Times this deployment was done again because its slot was damaged on disk.
        is_again: Whether the desired assignment is to be done again although it ended.
        held: Whether an operator holds updates of this module back.
    """

    phase: Phase = Phase.IDLE
    desired: Assignment | None = None
    live: Assignment | None = None
    fallback: Assignment | None = None
    golden: Digest | None = None
    deployment: Assignment | None = None
    outcome: Outcome | None = None
    error: ReportedError | None = None
    attempt: int = 1
    failures: int = 0
    rollbacks: int = 0
    probation_restarts: int = 0
    probation_ms: int = 0
    bounds: Bounds = field(default_factory=Bounds)
    before: Baseline = field(default_factory=Baseline)
    trial: Agreement | None = None
    sampling_ratio: float = 1.0
    fallback_sampling_ratio: float = 1.0
    quarantined: tuple[Digest, ...] = ()
    is_live_proved: bool = True
    commits: int = 0
    heals: int = 0
    is_again: bool = False
    held: bool = False

    @property
    def is_getting(self) -> bool:
        """Whether blobs of the deployment are still on their way."""
        return self.outcome is None and self.phase in _GETTING

    def assign(self, assignment: Assignment) -> None:
        """Take the newest verified assignment.

        What is worked on, or lives, and differs from it in its deltas alone gets them too: a step that begins, or is
        done again, knows the newest.
        """
        self.desired = assignment
        if self.deployment == assignment:
            self.deployment = assignment
        if self.live == assignment:
            self.live = assignment

    @property
    def live_sampling_ratio(self) -> float:
        """Share of requests (0..1) that is collected from the live bundle."""
        override = None if self.live is None else self.live.policy.sampling_ratio
        return self.sampling_ratio if override is None else override

    def quarantine(self, manifest: Digest) -> None:
        """Never try this manifest again on this device (the oldest of `QUARANTINE_MAX` is forgotten)."""
        if manifest not in self.quarantined:
            self.quarantined = (*self.quarantined, manifest)[-QUARANTINE_MAX:]
        if self.fallback is not None and self.fallback.manifest == manifest:
            self.fallback = None  # it was deployed again and failed this time

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads.

        Deltas are remembered while a download may use them, and of nothing else: there can be many, the record is
        written at every step, and metadata bring them again.
        """
        deployment = None if self.deployment is None else self.deployment.to_json()
        return {
            "phase": str(self.phase),
            "desired": _assignment(self.desired),
            "live": _assignment(self.live),
            "fallback": _assignment(self.fallback),
            "golden": None if self.golden is None else str(self.golden),
            "deployment": deployment if self.is_getting else _assignment(self.deployment),
            "outcome": None if self.outcome is None else str(self.outcome),
            "error": None if self.error is None else self.error.to_json(),
            "attempt": self.attempt,
            "failures": self.failures,
            "rollbacks": self.rollbacks,
            "probation_restarts": self.probation_restarts,
            "probation_ms": self.probation_ms,
            "bounds": asdict(self.bounds),
            "before": asdict(self.before),
            "trial": None if self.trial is None else self.trial.to_json(),
            "sampling_ratio": self.sampling_ratio,
            "fallback_sampling_ratio": self.fallback_sampling_ratio,
            "quarantined": [str(digest) for digest in self.quarantined],
            "is_live_proved": self.is_live_proved,
            "commits": self.commits,
            "heals": self.heals,
            "is_again": self.is_again,
            "held": self.held,
        }

    @classmethod
    def from_json(cls, value: Any) -> "ModuleRecord":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `internal.record-invalid` or the code of the part that is wrong.
        """
        fields = Fields(value, "module record", _CODE)
        outcome, error, golden = fields.take("outcome"), fields.take("error"), fields.take("golden")
        trial = fields.take("trial")
        try:
            phase = Phase(fields.text("phase"))
            ended = None if outcome is None else Outcome(outcome)
        except ValueError as problem:
            raise ContractError(_CODE, f"the record names something unknown: {problem}") from None
        module = cls(
            phase=phase,
            desired=_read_assignment(fields.take("desired")),
            live=_read_assignment(fields.take("live")),
            fallback=_read_assignment(fields.take("fallback")),
            golden=None if golden is None else Digest(golden),
            deployment=_read_assignment(fields.take("deployment")),
            outcome=ended,
            error=None if error is None else ReportedError.from_json(error),
            attempt=fields.integer("attempt"),
            failures=fields.integer("failures", 0),
            rollbacks=fields.integer("rollbacks"),
            probation_restarts=fields.integer("probation_restarts"),
            probation_ms=fields.integer("probation_ms", high=PROBATION_MS_MAX),
            bounds=_read_bounds(fields.take("bounds")),
            before=_read_baseline(fields.take("before")),
            trial=None if trial is None else Agreement.from_json(trial),
            sampling_ratio=fields.number("sampling_ratio", high=1.0),
            fallback_sampling_ratio=fields.number("fallback_sampling_ratio", high=1.0),
            quarantined=tuple(Digest(item) for item in fields.texts("quarantined", QUARANTINE_MAX)),
            is_live_proved=fields.flag("is_live_proved", True),
            commits=fields.integer("commits", 0),
            heals=fields.integer("heals", 0),
            is_again=fields.flag("is_again", False),
            held=fields.flag("held", False),
        )
        module._check()
        return module

    def _check(self) -> None:
        """Require that the parts belong together, so that no action meets a phase without what it needs."""
        if self.phase is not Phase.IDLE and self.deployment is None:
            raise ContractError(_CODE, f"the record is in phase {self.phase} without a deployment")
        if self.live is None and (self.phase in _PHASES_WITH_LIVE or self.fallback is not None):
            raise ContractError(_CODE, f"the record is in phase {self.phase} without a live bundle")


@dataclass(slots=True)
class Record:
    """What is remembered of the whole agent.

    Attributes:
        director_version: Newest verified director targets version.
        modules: By name, at most `MODULES_MAX`.
        held: Whether an operator holds all updates back.
    """

    director_version: int = 0
    modules: dict[str, ModuleRecord] = field(default_factory=dict)
    held: bool = False

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {
            "schema": SCHEMA,
            "director_version": self.director_version,
            "modules": {name: module.to_json() for name, module in self.modules.items()},
            "held": self.held,
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> "Record":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `internal.record-invalid` or the code of the part that is wrong.
        """
        fields = Fields(value, "record", _CODE)
        fields.schema(SCHEMA)
        modules = fields.take("modules")
        if not isinstance(modules, dict) or len(modules) > MODULES_MAX:
            raise ContractError(_CODE, f"a record names at most {MODULES_MAX} modules")
        return cls(
            director_version=fields.integer("director_version"),
            modules={model_name(name): ModuleRecord.from_json(item) for name, item in modules.items()},
            held=fields.flag("held", False),
        )


def _read_bounds(value: Any) -> Bounds:
    fields = Fields(value, "bounds", _CODE)
    return Bounds(
        fields.number("failure_ratio_max", high=1.0),
        fields.number("nonfinite_ratio_max", high=1.0),
        fields.number("latency_ratio_max"),
        fields.number("drift_max"),
    )


def _read_baseline(value: Any) -> Baseline:
    fields = Fields(value, "baseline", _CODE)
    return Baseline(fields.integer("requests"), fields.integer("p50_us"), fields.integer("p99_us"))


def _assignment(value: Assignment | None) -> JsonObject | None:
    return None if value is None else replace(value, deltas=()).to_json()


def _read_assignment(value: Any) -> Assignment | None:
    return None if value is None else Assignment.from_json(value)
