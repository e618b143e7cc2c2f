"""Scenarios of what it takes to be confirmed, and of probation."""

from typing import Final

from edge_agent.core import commands as do
from tests.core.script import (
    HOUR_MS,
    STAGED,
    TOLD,
    TOLD_TESTED,
    TOLD_WATCHED,
    WATCHED,
    WAY,
    Row,
    answers_otherwise,
    assigns,
    at,
    dies,
    ends_late,
    fails,
    hangs,
    holds,
    loses_power,
    rolls_back,
    waits,
    withdraws,
)

COMMITS: Final = (
    Row(
        "another bundle answers when the new one is to be committed",
        given=(1,),
        steps=(assigns(2), at("commit"), answers_otherwise(1)),
        chain=f"{WAY} back attest",
        reports=f"{TOLD_WATCHED}, committing 2|1, rolling_back(device.answers-otherwise) 2|1, "
        "idle:rolled_back(device.answers-otherwise) 1|0",
        ends="rolled_back 1|0",
    ),
    Row(
        "the outputs differ when it is to be committed",
        given=(1,),
        steps=(fails(do.CommitSlot, "model.golden-mismatch"), assigns(2)),
        chain=f"{WAY} back attest",
        reports=f"{TOLD_WATCHED}, committing 2|1, rolling_back(model.golden-mismatch) 2|1, "
        "idle:rolled_back(model.golden-mismatch) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "the proof fails twice and then works",
        given=(1,),
        steps=(fails(do.CommitSlot, "model.not-serving", 2), assigns(2)),
        chain=WAY,
        reports=f"{TOLD_WATCHED}, committing 2|1, committing(model.not-serving) 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "the proof fails as often as is tolerated",
        given=(1,),
        steps=(fails(do.CommitSlot, "model.not-serving", 3), assigns(2)),
        chain=f"{WAY} back attest",
        reports=f"{TOLD_WATCHED}, committing 2|1, committing(model.not-serving) 2|1, rolling_back(model.not-serving) "
        "2|1, idle:rolled_back(model.not-serving) 1|0",
        ends="rolled_back 1|0",
    ),
    Row(
        "the worker ends while it is to be committed, and comes up again",
        given=(1,),
        steps=(assigns(2), at("commit"), dies()),
        chain=f"{WAY} serve commit",
        reports=f"{TOLD_WATCHED}, committing 2|1, committing 2*|1, committing(model.not-serving) 2*|1, "
        "committing(model.not-serving) 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "the worker ends while it is to be committed, and stays down",
        given=(1,),
        steps=(
            assigns(2),
            at("commit"),
            fails(do.ServeLive, "model.load-failed", 3),
            fails(do.CommitSlot, "model.not-serving", 2),
            dies(),
        ),
        chain=f"{WAY} serve commit serve back attest",
        reports=f"{TOLD_WATCHED}, committing 2|1, committing 2*|1, committing(model.not-serving) 2*|1, "
        "rolling_back(model.load-failed) 2*|1, idle:rolled_back(model.load-failed) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "a power cut before the proof",
        given=(1,),
        steps=(assigns(2), at("commit"), loses_power),
        chain=f"{WAY} serve commit",
        reports=f"{TOLD_WATCHED}, committing 2|1, committing 2*|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "too many power cuts before the proof",
        given=(1,),
        steps=(
            assigns(2),
            at("commit"),
            loses_power,
            at("commit"),
            loses_power,
            at("commit"),
            loses_power,
            at("commit"),
            loses_power,
        ),
        chain=f"{WAY} serve commit serve commit serve commit back attest",
        reports=f"{TOLD_WATCHED}, committing 2|1, committing 2*|1, committing 2|1, committing 2*|1, committing 2|1, "
        "committing 2*|1, committing 2|1, rolling_back(model.unhealthy) 2*|1, "
        "idle:rolled_back(model.unhealthy) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "a power cut between two proofs",
        given=(1,),
        steps=(fails(do.CommitSlot, "model.not-serving"), assigns(2), at("commit"), waits(0), loses_power),
        chain=f"{WAY} serve commit",
        reports=f"{TOLD_WATCHED}, committing 2|1, committing(model.not-serving) 2|1, committing(model.not-serving) "
        "2*|1, committing(model.not-serving) 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "a proof of the live bundle that fails for a while is tried again",
        given=(1,),
        steps=(fails(do.AttestLive, "model.overloaded", 2), waits(2 * HOUR_MS)),
        chain="attest",
        reports="idle:confirmed 1|0[model.overloaded], idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "a live bundle that cannot prove itself is not said to answer",
        given=(1,),
        steps=(fails(do.AttestLive, "model.overloaded", 3), waits(HOUR_MS * 5 // 4)),
        chain="attest",
        reports="idle:confirmed 1|0[model.overloaded], idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "another bundle is found answering, and then the right one",
        given=(1,),
        steps=(answers_otherwise(3), waits(HOUR_MS * 5 // 4)),
        chain="attest",
        reports="idle:confirmed 1=3|0[device.answers-otherwise], idle:confirmed 1|0",
        ends="confirmed 1|0",
        rest_ms=HOUR_MS,
    ),
    Row(
        "a proof that hangs is given up and asked for again",
        given=(1,),
        steps=(hangs(do.AttestLive), waits(2 * HOUR_MS), waits(2 * HOUR_MS), ends_late),
        chain="attest cancel attest",
        reports="idle:confirmed 1|0[device.step-overdue], idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
)
"""Installed is not confirmed: what is to be confirmed proves that it answers."""

PROBATIONS: Final = (
    Row(
        "a newer assignment ends a probation, the proved fallback stays",
        given=(1,),
        steps=(assigns(2), at("observe"), assigns(3)),
        chain=f"{WATCHED} cancel {WAY}",
        reports=f"{TOLD_WATCHED}, resolving 2|1, fetching 2|1, verifying 2|1, staging 2|1, testing 2|1, activating "
        "2|1, probation 3|1, committing 3|1, idle:confirmed 3|1",
        ends="confirmed 3|1",
    ),
    Row(
        "a newer assignment that fails leaves the one on probation",
        given=(1,),
        steps=(assigns(2), at("observe"), fails(do.ResolveBundle, "artifact.platform-mismatch"), assigns(3)),
        chain=f"{WATCHED} cancel resolve attest",
        reports=f"{TOLD_WATCHED}, resolving 2|1, idle:refused(artifact.platform-mismatch) 2|1",
        ends="refused 2|1",
    ),
    Row(
        "after that the one on probation is assigned again and proves itself",
        given=(1,),
        steps=(
            assigns(2),
            at("observe"),
            fails(do.ResolveBundle, "artifact.platform-mismatch"),
            assigns(3),
            waits(1_000),
            assigns(2, "again"),
        ),
        chain=f"{WATCHED} cancel resolve attest observe commit",
        reports=f"{TOLD_WATCHED}, resolving 2|1, idle:refused(artifact.platform-mismatch) 2|1, probation 2|1, "
        "committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "the same bundle again on probation goes on",
        given=(1,),
        steps=(assigns(2), at("observe"), assigns(2, "again")),
        chain=WAY,
        reports=TOLD,
        ends="confirmed 2|1",
    ),
    Row(
        "a newcomer in quarantine does not end a probation",
        given=(1,),
        steps=(
            fails(do.ProveCandidate, "model.golden-mismatch"),
            assigns(3),
            waits(2_000),
            assigns(2),
            at("observe"),
            assigns(3, "again"),
        ),
        chain=f"{STAGED} prove discard {WAY}",
        reports=f"{TOLD_TESTED}, idle:refused(model.golden-mismatch) 1|0, {TOLD_WATCHED}, committing 2|1, "
        "idle:refused(artifact.quarantined) 2|1",
        ends="refused 2|1",
        quarantined=(3,),
    ),
    Row(
        "a held newcomer does not end a probation",
        given=(1,),
        steps=(assigns(2), at("observe"), holds, assigns(3)),
        chain=WAY,
        reports=f"{TOLD_WATCHED}, committing 2|1, resolving(device.held) 2|1",
        ends="- 2|1",
    ),
    Row(
        "a withdrawal does not end a probation",
        given=(1,),
        steps=(assigns(2), at("observe"), withdraws),
        chain=WAY,
        reports=TOLD,
        ends="confirmed 2|1",
    ),
    Row(
        "an operator ends a probation without blame",
        given=(1,),
        steps=(assigns(2), at("observe"), rolls_back),
        chain=f"{WATCHED} back attest",
        reports=f"{TOLD_WATCHED}, rolling_back 2|1, idle:rolled_back 1|0",
        ends="rolled_back 1|0",
    ),
    Row(
        "an operator cannot roll back a first bundle",
        given=(),
        steps=(assigns(1), at("observe"), rolls_back),
        chain=WAY,
        reports="resolving 0|0, fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, probation 1|0, "
        "probation(device.no-fallback) 1|0, committing(device.no-fallback) 1|0, idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "a power cut on probation begins the window anew",
        given=(1,),
        steps=(assigns(2), at("observe"), loses_power),
        chain=f"{WATCHED} serve observe commit",
        reports=f"{TOLD_WATCHED}, probation 2*|1, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "too many power cuts on probation",
        given=(1,),
        steps=(
            assigns(2),
            at("observe"),
            loses_power,
            waits(100),
            loses_power,
            waits(100),
            loses_power,
            waits(100),
            loses_power,
        ),
        chain=f"{WATCHED} serve back attest",
        reports=f"{TOLD_WATCHED}, probation 2*|1, probation 2|1, probation 2*|1, probation 2|1, probation 2*|1, "
        "probation 2|1, rolling_back(model.unhealthy) 2*|1, idle:rolled_back(model.unhealthy) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "a bundle on probation does not come up after a power cut",
        given=(1,),
        steps=(assigns(2), at("observe"), fails(do.ServeLive, "model.load-failed"), loses_power),
        chain=f"{WATCHED} serve back attest",
        reports=f"{TOLD_WATCHED}, probation 2*|1, rolling_back(model.load-failed) 2*|1, "
        "idle:rolled_back(model.load-failed) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "a newer one cut a probation short and cannot be fetched, and the worker stays down",
        given=(1,),
        steps=(
            assigns(2),
            at("observe"),
            fails(do.FetchBlobs, "network.unreachable", 3),
            assigns(3),
            waits(100),
            fails(do.ServeLive, "model.load-failed", 2),
            dies(),
        ),
        chain=f"{WATCHED} cancel resolve ask-download fetch attest serve resolve ask-download fetch serve back "
        f"resolve ask-download fetch attest {WAY}",
        reports=f"{TOLD_WATCHED}, resolving 2|1, fetching 2|1, resolving(network.unreachable) 2|1, "
        "resolving(network.unreachable) 2*|1, fetching 2*|1, resolving(network.unreachable) 2*|1, "
        "rolling_back(model.load-failed) 2*|1, resolving 1|0, fetching 1|0, resolving(network.unreachable) "
        "1|0, fetching 1|0, verifying 1|0, staging 1|0, testing 1|0, activating 1|0, probation 3|1, "
        "committing 3|1, idle:confirmed 3|1",
        ends="confirmed 3|1",
        quarantined=(2,),
        rest_ms=60_000,
    ),
)
"""What may end a probation, and what may not."""
