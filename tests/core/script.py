"""The words that scenario rows are written in: what the cloud, the operator, the disk, the hook and the clock do."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.terms import Agreement, Trial
from edge_contract.twin import ReportedDeployment, ReportedError, ReportedModule
from tests.core.bench import Bench, assignment

MODULE = "digits"
HOUR_MS = 3_600_000
Step = Callable[[Bench], None]

NAMES: dict[type, str] = {
    do.ResolveBundle: "resolve",
    do.FetchBlobs: "fetch",
    do.VerifyBlobs: "verify",
    do.StageSlot: "stage",
    do.ProveCandidate: "prove",
    do.BeginTrial: "try",
    do.ObserveTrial: "look",
    do.ActivateSlot: "activate",
    do.ObserveHealth: "observe",
    do.CommitSlot: "commit",
    do.RollBack: "back",
    do.ServeLive: "serve",
    do.RestartLive: "restart",
    do.AttestLive: "attest",
    do.HealSlot: "heal",
    do.ScrubStore: "scrub",
    do.CancelOperation: "cancel",
    do.DiscardCandidate: "discard",
}
"""What a chain calls the commands; `ask-download`, `ask-activate` and `prove-alone` are told apart by their fields."""

WAY = "resolve ask-download fetch verify stage ask-activate prove activate observe commit"
"""The chain of an update in which nothing happens."""
WATCHED = WAY.removesuffix(" commit")
STAGED = WATCHED.removesuffix(" prove activate observe")

TOLD_STAGED = "resolving 1|0, fetching 1|0, verifying 1|0, staging 1|0"
TOLD_TESTED = f"{TOLD_STAGED}, testing 1|0"
TOLD_ACTIVATED = f"{TOLD_TESTED}, activating 1|0"
TOLD_WATCHED = f"{TOLD_ACTIVATED}, probation 2|1"
TOLD = f"{TOLD_WATCHED}, committing 2|1, idle:confirmed 2|1"
"""What is reported of an update from version 1 to version 2 in which nothing happens."""


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario.

    Attributes:
        name: What it shows.
        given: Versions confirmed one after the other before it begins.
        steps: What happens; afterwards everything is left alone for `rest_ms`.
        chain: The commands to module `digits` that follow, repeats written once.
        reports: What is reported of it, repeats left out, as `told` writes it.
        ends: How it stands at the end: outcome of its deployment (- for none), live version|fallback, 0 for none.
        quarantined: Versions never to be tried again.
        rest_ms: How long it is left alone.
        sound: How module `sound` is reported at the end; empty where there is none.
    """

    name: str
    given: tuple[int, ...]
    steps: tuple[Step, ...]
    chain: str
    reports: str
    ends: str
    quarantined: tuple[int, ...] = ()
    rest_ms: int = 10_000
    sound: str = ""


# -- the cloud ---------------------------------------------------------------------------------------------------------


def assigns(version: int, deployment: str | None = None, sound: int = 0) -> Step:
    """The cloud assigns a version, and one to module `sound` where asked."""
    others = (assignment(sound, module="sound"),) if sound else ()
    return lambda bench: _publish(bench, assignment(version, deployment=deployment), *others)


def tries(version: int, **terms: Any) -> Step:
    """The cloud assigns a version that has to stand a trial of five seconds first, which decides."""
    trial = Trial(**{"window_ms": 5_000, "gate": True, "top1_ppm_min": 990_000} | terms)
    return lambda bench: _publish(bench, assignment(version, trial=trial))


def agrees(compared: int, top1_ppm: int = 1_000_000, failed: int = 0) -> Step:
    """What trials find from now on."""

    def do_it(bench: Bench) -> None:
        bench.agreement = Agreement(compared, failed=failed, top1_ppm=top1_ppm)

    return do_it


def withdraws(bench: Bench) -> None:
    """The cloud assigns nothing any more."""
    _publish(bench)


def _publish(bench: Bench, *assignments: Assignment) -> None:
    """The device hears of it whatever else it is busy with: metadata has a lane of its own."""
    bench.desired = assignments
    bench.director_version += 1
    bench.tell(inputs.RefreshRequested())
    bench.waiting.insert(0, bench.waiting.pop())
    assert isinstance(bench.waiting[0], do.RefreshMetadata)
    bench.step()


def refuses(version: int, sound: int) -> Step:
    """The cloud assigns a version that must not be taken, and a good one to module `sound`."""

    def do_it(bench: Bench) -> None:
        error = ReportedError.of("trust.release-rollback", "the counter falls", "idle")
        wrong = assignment(version)
        bench.refused = {MODULE: ReportedDeployment(wrong.deployment, wrong.manifest, None, error)}
        _publish(bench, assignment(sound, module="sound"))

    return do_it


# -- the operator ------------------------------------------------------------------------------------------------------


def holds(bench: Bench) -> None:
    """The operator holds the device back."""
    bench.tell(inputs.HoldRequested())


def holds_module(bench: Bench) -> None:
    """The operator holds the module back."""
    bench.tell(inputs.HoldRequested(MODULE))


def resumes(bench: Bench) -> None:
    """The operator ends all holds."""
    bench.tell(inputs.ResumeRequested())


def resumes_module(bench: Bench) -> None:
    """The operator ends the hold of the module."""
    bench.tell(inputs.ResumeRequested(MODULE))


def rolls_back(bench: Bench) -> None:
    """The operator asks for the fallback."""
    bench.tell(inputs.RollbackRequested(MODULE))


# -- power, time, workers ----------------------------------------------------------------------------------------------


def loses_power(bench: Bench) -> None:
    """The power fails, and comes back."""
    bench.boot()


def waits(milliseconds: int) -> Step:
    """Everything goes on for so long."""
    return lambda bench: bench.settle(milliseconds)


def at(name: str) -> Step:
    """Everything goes on until this command is the next to be carried out."""

    def do_it(bench: Bench) -> None:
        for _ in range(1_000):
            if bench.waiting and name == name_of(bench.waiting[0]):
                return
            if not bench.step():
                deadline = bench.core.deadline()
                assert deadline is not None
                bench.now = max(bench.now, deadline)
                bench.tell(inputs.TimeReached())
        raise AssertionError(f"{name} never comes")

    return do_it


def dies(times: int = 1) -> Step:
    """The live worker ends by itself, again and again as soon as it is up."""

    def do_it(bench: Bench) -> None:
        for number in range(times):
            while MODULE not in bench.answers:
                assert bench.step() or number
                if not bench.waiting and MODULE not in bench.answers:
                    bench.settle(5_000)
            bench.end_worker()

    return do_it


def steps_once(bench: Bench) -> None:
    """The oldest command that waits is done."""
    assert bench.step()


def is_sick(bench: Bench) -> None:
    """The live worker answers wrongly from now on."""
    bench.health = (True, 20, 20)


def is_well(bench: Bench) -> None:
    """Workers answer rightly from now on."""
    bench.health = (True, 20, 0)


# -- what fails --------------------------------------------------------------------------------------------------------


def fails(kind: type[do.Command], code: str, times: int = 1) -> Step:
    """The next executions of a command fail."""
    return lambda bench: bench.failures.setdefault(kind, []).extend([(code, "it says no")] * times)


def hangs(kind: type[do.Command], times: int = 1) -> Step:
    """The next executions of a command never end."""
    return lambda bench: bench.hangs.update({kind: times})


def ends_late(bench: Bench) -> None:
    """What hung ends after all; nobody waits for it any more."""
    for command in bench.hung:
        bench.tell(bench.answer(command))
    bench.hung = []


def postpones(gate: do.Gate, wait_ms: int) -> Step:
    """A closed window or the hook asks to wait (0: not any more)."""
    return lambda bench: bench.postponed.update({str(gate): wait_ms})


def runs_short(bench: Bench) -> None:
    """Memory is too short for two workers from now on."""
    bench.is_memory_short = True


def answers_otherwise(version: int) -> Step:
    """Whoever is asked next at the module's socket is this version."""
    return lambda bench: bench.otherwise.append(assignment(version).manifest)


def rots(version: int) -> Step:
    """The slot of a version is damaged on disk."""
    return lambda bench: bench.damaged.add(assignment(version).manifest)


def is_given_up(bench: Bench) -> None:
    """Time passes until what hangs is given up."""
    while not any(isinstance(item, do.CancelOperation) and item.op == _op(bench.hung[-1]) for item in bench.sent):
        while bench.step():
            pass
        bench.now = max(bench.now, bench.core.deadline() or 0)
        bench.pass_time()


def _op(command: do.Command) -> int | None:
    return getattr(command, "op", None)


def stays_down(bench: Bench) -> None:
    """What is live does not come up, while the next step of the update is still under way."""
    while not any(isinstance(command, do.RollBack) for command in bench.waiting):
        serving = [command for command in bench.waiting if isinstance(command, do.ServeLive)]
        for command in serving:
            bench.waiting.remove(command)
            bench.tell(inputs.CommandFailed(command.op, "model.load-failed", "it says no"))
        if not serving:
            bench.now = max(bench.now, bench.core.deadline() or 0)
            bench.pass_time()


# -- what is seen of it ------------------------------------------------------------------------------------------------


def name_of(command: do.Command) -> str:
    """What a chain calls a command; empty for those a chain leaves out."""
    if isinstance(command, do.AskLeave):
        return f"ask-{command.gate}"
    if isinstance(command, do.ProveCandidate) and command.stops_first:
        return "prove-alone"
    return NAMES.get(type(command), "")


def chain(commands: list[do.Command]) -> str:
    """The chain of module `digits`: every command that concerns it or no module, repeats written once."""
    ops = {getattr(item, "op", None) for item in commands if not _is_foreign(item)}
    names = [
        name_of(item)
        for item in commands
        if not _is_foreign(item) and not (isinstance(item, do.CancelOperation) and item.op not in ops)
    ]
    return " ".join(name for name, _ in groupby(filter(None, names)))


def _is_foreign(command: do.Command) -> bool:
    named = command.assignment.module if isinstance(command, do.BundleCommand) else getattr(command, "module", MODULE)
    return named != MODULE


def told(module: ReportedModule) -> str:
    """One report in a word or two: phase, outcome, (error), live version, * when it does not answer, | fallback."""
    deployment = module.deployment
    outcome = f":{deployment.outcome}" if deployment and deployment.outcome else ""
    error = f"({deployment.error.code})" if deployment and deployment.error else ""
    live = f"{version_of(module.live)}{'' if module.serving or not module.live else '*'}"
    claims = "" if module.answering in (None, module.live) else f"={version_of(module.answering)}"
    damage = f"[{module.error.code}]" if module.error else ""
    return f"{module.phase}{outcome}{error} {live}{claims}|{version_of(module.fallback)}{damage}"


def version_of(manifest: Digest | None) -> int:
    """Version of a bundle of module `digits` or `sound`; 0 for none."""
    if manifest is None:
        return 0
    return next(
        n for n in range(1, 10) for name in (MODULE, "sound") if assignment(n, module=name).manifest == manifest
    )


def play(row: Row) -> Bench:
    """Let a scenario happen."""
    bench = Bench(poll_ms=6 * HOUR_MS, report_ms=6 * HOUR_MS)
    bench.settle(0)
    for version in row.given:
        bench.assign(assignment(version))
        bench.settle()
        assert bench.module["deployment"]["outcome"] == "confirmed"
    bench.sent.clear()
    bench.reports.clear()
    for step in row.steps:
        step(bench)
    bench.settle(row.rest_ms)
    return bench


def reports(bench: Bench) -> str:
    """All that was reported of module `digits`, repeats left out."""
    seen = [told(modules[MODULE]) for modules in bench.reports if MODULE in modules]
    return ", ".join(text for text, _ in groupby(seen))
