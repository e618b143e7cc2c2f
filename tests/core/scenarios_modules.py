"""Scenarios of little memory, and of several modules."""

from typing import Final

from edge_agent.core import commands as do
from tests.core.script import (
    HOUR_MS,
    STAGED,
    TOLD,
    TOLD_STAGED,
    TOLD_TESTED,
    WAY,
    Row,
    assigns,
    at,
    fails,
    hangs,
    holds,
    is_sick,
    is_well,
    loses_power,
    refuses,
    rolls_back,
    runs_short,
    waits,
    withdraws,
)

ALONE: Final = (
    Row(
        "memory for one worker: the live one stops first, and the gap is told",
        given=(1,),
        steps=(runs_short, assigns(2)),
        chain=f"{STAGED} prove-alone activate observe commit",
        reports=f"{TOLD_STAGED}, testing 1*|0, activating 1*|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "stopped first, and the candidate fails: the live one answers again",
        given=(1,),
        steps=(runs_short, fails(do.ProveCandidate, "model.golden-mismatch"), assigns(2)),
        chain=f"{STAGED} prove-alone discard serve attest",
        reports=f"{TOLD_STAGED}, testing 1*|0, idle:refused(model.golden-mismatch) 1*|0, "
        "idle:refused(model.golden-mismatch) 1|0",
        ends="refused 1|0",
        quarantined=(2,),
    ),
    Row(
        "stopped first, and the activation fails",
        given=(1,),
        steps=(runs_short, fails(do.ActivateSlot, "model.worker-crashed"), assigns(2)),
        chain=f"{STAGED} prove-alone activate discard serve attest",
        reports=f"{TOLD_STAGED}, testing 1*|0, activating 1*|0, idle:refused(model.worker-crashed) 1*|0, "
        "idle:refused(model.worker-crashed) 1|0",
        ends="refused 1|0",
        quarantined=(2,),
    ),
    Row(
        "stopped first, and a newer assignment comes",
        given=(1,),
        steps=(runs_short, assigns(2), at("prove-alone"), assigns(3)),
        chain=f"{STAGED} prove-alone cancel discard serve {STAGED} prove-alone activate observe commit",
        reports=f"{TOLD_STAGED}, testing 1*|0, resolving 1*|0, {TOLD_STAGED}, testing 1*|0, activating 1*|0, probation "
        "3|1, committing 3|1, idle:confirmed 3|1",
        ends="confirmed 3|1",
    ),
    Row(
        "stopped first, and the live bundle is assigned again",
        given=(1,),
        steps=(runs_short, assigns(2), at("prove-alone"), assigns(1, "back")),
        chain=f"{STAGED} prove-alone cancel discard serve attest",
        reports=f"{TOLD_STAGED}, testing 1*|0, idle:superseded 1*|0, idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "stopped first, and withdrawn",
        given=(1,),
        steps=(runs_short, assigns(2), at("prove-alone"), withdraws),
        chain=f"{STAGED} prove-alone cancel discard serve attest",
        reports=f"{TOLD_STAGED}, testing 1*|0, idle:superseded 1*|0, idle:superseded 1|0",
        ends="superseded 1|0",
    ),
    Row(
        "stopped first, and held",
        given=(1,),
        steps=(runs_short, assigns(2), at("prove-alone"), holds),
        chain=f"{STAGED} prove-alone cancel discard serve attest",
        reports=f"{TOLD_STAGED}, testing 1*|0, resolving(device.held) 1*|0, resolving(device.held) 1|0",
        ends="- 1|0",
    ),
    Row(
        "stopped first, and the power fails",
        given=(1,),
        steps=(runs_short, assigns(2), at("prove-alone"), loses_power),
        chain=f"{STAGED} prove-alone serve {STAGED} prove-alone activate observe commit",
        reports=f"{TOLD_STAGED}, testing 1*|0, resolving 1*|0, {TOLD_STAGED}, testing 1*|0, activating 1*|0, probation "
        "2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "stopped first, and the power fails before the activation",
        given=(1,),
        steps=(runs_short, assigns(2), at("activate"), loses_power),
        chain=f"{STAGED} prove-alone activate serve {STAGED} prove-alone activate observe commit",
        reports=f"{TOLD_STAGED}, testing 1*|0, activating 1*|0, resolving 1*|0, {TOLD_STAGED}, testing 1*|0, "
        "activating 1*|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "stopped first, and the test hangs",
        given=(1,),
        steps=(runs_short, hangs(do.ProveCandidate), assigns(2)),
        chain=f"{STAGED} prove-alone cancel discard serve attest {STAGED} prove-alone activate observe commit",
        reports=f"{TOLD_STAGED}, testing 1*|0, resolving(device.step-overdue) 1*|0, resolving(device.step-overdue) "
        "1|0, fetching 1|0, verifying 1|0, staging 1|0, testing 1*|0, activating 1*|0, probation 2|1, "
        "committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
        rest_ms=3 * HOUR_MS,
    ),
    Row(
        "stopped first, and an operator rolls back",
        given=(1, 2),
        steps=(runs_short, assigns(3), at("prove-alone"), rolls_back, at("back"), is_well),
        chain=f"{STAGED} prove-alone cancel discard back {STAGED} prove-alone activate observe commit",
        reports="resolving 2|1, fetching 2|1, verifying 2|1, staging 2|1, testing 2*|1, rolling_back 2*|1, "
        f"{TOLD_STAGED}, testing 1*|0, activating 1*|0, probation 3|1, committing 3|1, idle:confirmed 3|1",
        ends="confirmed 3|1",
    ),
    Row(
        "stopped first, and a rollback that an operator asked for never works",
        given=(1, 2),
        steps=(
            runs_short,
            assigns(3),
            at("prove-alone"),
            fails(do.RollBack, "model.load-failed", 3),
            rolls_back,
            waits(500),
            holds,
        ),
        chain=f"{STAGED} prove-alone cancel discard back serve attest",
        reports="resolving 2|1, fetching 2|1, verifying 2|1, staging 2|1, testing 2*|1, rolling_back 2*|1, "
        "resolving(device.held) 2*|1, resolving(device.held) 2|1",
        ends="- 2|1",
    ),
    Row(
        "nothing to stop on a device that runs nothing",
        given=(),
        steps=(runs_short, assigns(1)),
        chain=WAY,
        reports="resolving 0|0, fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, probation 1|0, "
        "committing 1|0, idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "stopped first, and sick: the fallback comes back",
        given=(1,),
        steps=(runs_short, is_sick, assigns(2)),
        chain=f"{STAGED} prove-alone activate observe back attest",
        reports=f"{TOLD_STAGED}, testing 1*|0, activating 1*|0, probation 2|1, rolling_back(model.unhealthy) 2|1, "
        "idle:rolled_back(model.unhealthy) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
)
"""Memory for one worker only: the live one stops before the candidate loads."""

MODULES: Final = (
    Row(
        "a refused module keeps what it has, the other goes on",
        given=(),
        steps=(assigns(2, sound=1), waits(10_000), refuses(1, sound=2)),
        chain=WAY,
        reports="resolving 0|0, fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, probation 2|0, "
        "committing 2|0, idle:confirmed 2|0",
        ends="confirmed 2|0",
        sound="idle:confirmed 2|1",
    ),
    Row(
        "a module that is new and refused is reported",
        given=(),
        steps=(refuses(1, sound=2),),
        chain="",
        reports="idle 0|0",
        ends="- 0|0",
        sound="idle:confirmed 2|0",
    ),
    Row(
        "a refresh that one module's metadata spoils changes neither",
        given=(),
        steps=(
            assigns(1, sound=1),
            waits(10_000),
            fails(do.RefreshMetadata, "trust.repositories-disagree", 3),
            assigns(2, sound=2),
        ),
        chain=WAY,
        reports="resolving 0|0, fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, probation 1|0, "
        "committing 1|0, idle:confirmed 1|0",
        ends="confirmed 1|0",
        rest_ms=1_000,
        sound="idle:confirmed 1|0",
    ),
    Row(
        "and both go on when the metadata is good again",
        given=(),
        steps=(
            assigns(1, sound=1),
            waits(10_000),
            fails(do.RefreshMetadata, "trust.repositories-disagree", 2),
            assigns(2, sound=2),
        ),
        chain=f"{WAY} {WAY}",
        reports="resolving 0|0, fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, probation 1|0, "
        f"committing 1|0, idle:confirmed 1|0, {TOLD}",
        ends="confirmed 2|1",
        rest_ms=20_000,
        sound="idle:confirmed 2|1",
    ),
    Row(
        "one of two bundles is bad",
        given=(),
        steps=(
            assigns(1, sound=1),
            waits(10_000),
            fails(do.ProveCandidate, "model.golden-mismatch"),
            assigns(2, sound=2),
        ),
        chain=f"{WAY} {STAGED} prove discard",
        reports="resolving 0|0, fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, probation 1|0, "
        f"committing 1|0, idle:confirmed 1|0, {TOLD_TESTED}, idle:refused(model.golden-mismatch) 1|0",
        ends="refused 1|0",
        quarantined=(2,),
        sound="idle:confirmed 2|1",
    ),
    Row(
        "two modules and a power cut in between",
        given=(),
        steps=(assigns(1, sound=1), at("activate"), loses_power),
        chain=f"{STAGED} prove activate {WAY}",
        reports="resolving 0|0, fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, resolving 0|0, "
        "fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, probation 1|0, committing "
        "1|0, idle:confirmed 1|0",
        ends="confirmed 1|0",
        sound="idle:confirmed 1|0",
    ),
)
"""Several modules beside each other."""
