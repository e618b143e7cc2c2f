"""Scenarios of every outcome of an update."""

from typing import Final

from edge_agent.core import commands as do
from tests.core.script import (
    STAGED,
    TOLD,
    TOLD_ACTIVATED,
    TOLD_STAGED,
    TOLD_TESTED,
    TOLD_WATCHED,
    WATCHED,
    WAY,
    Row,
    assigns,
    at,
    dies,
    fails,
    is_sick,
    is_well,
    loses_power,
    waits,
    withdraws,
)

ENDINGS: Final = (
    Row(
        "a first bundle is confirmed",
        given=(),
        steps=(assigns(1),),
        chain=WAY,
        reports="resolving 0|0, fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, probation 1|0, "
        "committing 1|0, idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "a second one leaves a fallback",
        given=(1,),
        steps=(assigns(2),),
        chain=WAY,
        reports=TOLD,
        ends="confirmed 2|1",
    ),
    Row(
        "a third one takes the fallback's place",
        given=(1, 2),
        steps=(assigns(3),),
        chain=WAY,
        reports="resolving 2|1, fetching 2|1, verifying 2|1, staging 2|1, testing 2|1, activating 2|1, probation 3|2, "
        "committing 3|2, idle:confirmed 3|2",
        ends="confirmed 3|2",
    ),
    Row(
        "the live bundle in a new deployment is confirmed without work",
        given=(1,),
        steps=(assigns(1, "other"),),
        chain="",
        reports="idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "the fallback assigned again goes the whole way",
        given=(1, 2),
        steps=(assigns(1, "other"),),
        chain=WAY,
        reports="resolving 2|1, fetching 2|1, verifying 2|1, staging 2|1, testing 2|1, activating 2|1, probation 1|2, "
        "committing 1|2, idle:confirmed 1|2",
        ends="confirmed 1|2",
    ),
    Row(
        "an invalid manifest is refused and quarantined",
        given=(1,),
        steps=(fails(do.ResolveBundle, "artifact.manifest-invalid"), assigns(2)),
        chain="resolve",
        reports="resolving 1|0, idle:refused(artifact.manifest-invalid) 1|0",
        ends="refused 1|0",
        quarantined=(2,),
    ),
    Row(
        "a wrong platform is refused and not quarantined",
        given=(1,),
        steps=(fails(do.ResolveBundle, "artifact.platform-mismatch"), assigns(2)),
        chain="resolve",
        reports="resolving 1|0, idle:refused(artifact.platform-mismatch) 1|0",
        ends="refused 1|0",
    ),
    Row(
        "a full disk is waited for",
        given=(1,),
        steps=(fails(do.ResolveBundle, "device.disk-full"), assigns(2)),
        chain=WAY,
        reports="resolving 1|0, resolving(device.disk-full) 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing "
        "1|0, activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
        rest_ms=120_000,
    ),
    Row(
        "a cut download is taken up again",
        given=(1,),
        steps=(fails(do.FetchBlobs, "network.cut", 2), assigns(2)),
        chain=f"resolve ask-download fetch resolve ask-download fetch {WAY}",
        reports="resolving 1|0, fetching 1|0, resolving(network.cut) 1|0, fetching 1|0, resolving(network.cut) 1|0, "
        "fetching 1|0, verifying 1|0, staging 1|0, testing 1|0, activating 1|0, probation 2|1, committing "
        "2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "wrong bytes on the wire, then right ones",
        given=(1,),
        steps=(fails(do.FetchBlobs, "artifact.digest-mismatch", 2), assigns(2)),
        chain=f"resolve ask-download fetch resolve ask-download fetch {WAY}",
        reports="resolving 1|0, fetching 1|0, resolving(artifact.digest-mismatch) 1|0, fetching 1|0, "
        "resolving(artifact.digest-mismatch) 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing 1|0, "
        "activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "wrong bytes on the wire for ever",
        given=(1,),
        steps=(fails(do.FetchBlobs, "artifact.digest-mismatch", 5), assigns(2)),
        chain="resolve ask-download fetch resolve ask-download fetch resolve ask-download fetch resolve "
        "ask-download fetch resolve ask-download fetch",
        reports="resolving 1|0, fetching 1|0, resolving(artifact.digest-mismatch) 1|0, fetching 1|0, "
        "resolving(artifact.digest-mismatch) 1|0, fetching 1|0, resolving(artifact.digest-mismatch) 1|0, "
        "fetching 1|0, resolving(artifact.digest-mismatch) 1|0, fetching 1|0, "
        "idle:refused(artifact.digest-mismatch) 1|0",
        ends="refused 1|0",
        rest_ms=120_000,
    ),
    Row(
        "a blob rots between download and check",
        given=(1,),
        steps=(fails(do.VerifyBlobs, "device.disk-corrupt"), assigns(2)),
        chain=f"resolve ask-download fetch verify {WAY}",
        reports="resolving 1|0, fetching 1|0, verifying 1|0, resolving(device.disk-corrupt) 1|0, fetching 1|0, "
        "verifying 1|0, staging 1|0, testing 1|0, activating 1|0, probation 2|1, committing 2|1, "
        "idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "an archive bomb is found while unpacking",
        given=(1,),
        steps=(fails(do.StageSlot, "artifact.archive-bomb"), assigns(2)),
        chain="resolve ask-download fetch verify stage",
        reports=f"{TOLD_STAGED}, idle:refused(artifact.archive-bomb) 1|0",
        ends="refused 1|0",
        quarantined=(2,),
    ),
    Row(
        "a disk that refuses to unpack for ever",
        given=(1,),
        steps=(fails(do.StageSlot, "device.disk-error", 5), assigns(2)),
        chain="resolve ask-download fetch verify stage resolve ask-download fetch verify stage resolve ask-download "
        "fetch verify stage resolve ask-download fetch verify stage resolve ask-download fetch verify stage",
        reports=f"{TOLD_STAGED}, resolving(device.disk-error) 1|0, fetching 1|0, verifying 1|0, staging 1|0, "
        "resolving(device.disk-error) 1|0, fetching 1|0, verifying 1|0, staging 1|0, "
        "resolving(device.disk-error) 1|0, fetching 1|0, verifying 1|0, staging 1|0, "
        "resolving(device.disk-error) 1|0, fetching 1|0, verifying 1|0, staging 1|0, "
        "idle:refused(device.disk-error) 1|0",
        ends="refused 1|0",
        rest_ms=120_000,
    ),
    Row(
        "trouble of the network does not use up the attempts that are the device's own",
        given=(1,),
        steps=(fails(do.FetchBlobs, "network.cut", 6), fails(do.StageSlot, "device.disk-error"), assigns(2)),
        chain="resolve ask-download fetch resolve ask-download fetch resolve ask-download fetch resolve "
        "ask-download fetch resolve ask-download fetch resolve ask-download fetch resolve ask-download fetch "
        f"verify stage {WAY}",
        reports="resolving 1|0, fetching 1|0, resolving(network.cut) 1|0, fetching 1|0, resolving(network.cut) 1|0, "
        "fetching 1|0, resolving(network.cut) 1|0, fetching 1|0, resolving(network.cut) 1|0, fetching 1|0, "
        "resolving(network.cut) 1|0, fetching 1|0, resolving(network.cut) 1|0, fetching 1|0, verifying 1|0, "
        "staging 1|0, resolving(device.disk-error) 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing "
        "1|0, activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
        rest_ms=300_000,
    ),
    Row(
        "a candidate takes the device down whenever it is tested",
        given=(1,),
        steps=(
            assigns(2),
            at("prove"),
            loses_power,
            at("prove"),
            loses_power,
            at("prove"),
            loses_power,
            at("prove"),
            loses_power,
            at("prove"),
            loses_power,
        ),
        chain=f"{STAGED} prove serve {STAGED} prove serve {STAGED} prove serve {STAGED} prove serve {STAGED} prove "
        "serve attest",
        reports=f"{TOLD_TESTED}, resolving 1*|0, {TOLD_TESTED}, resolving 1*|0, {TOLD_TESTED}, resolving 1*|0, "
        f"{TOLD_TESTED}, resolving 1*|0, {TOLD_TESTED}, idle:refused(device.restarted) 1*|0, "
        "idle:refused(device.restarted) 1|0",
        ends="refused 1|0",
    ),
    Row(
        "a candidate fails its golden vectors",
        given=(1,),
        steps=(fails(do.ProveCandidate, "model.golden-mismatch"), assigns(2)),
        chain=f"{STAGED} prove discard",
        reports=f"{TOLD_TESTED}, idle:refused(model.golden-mismatch) 1|0",
        ends="refused 1|0",
        quarantined=(2,),
    ),
    Row(
        "a candidate that failed here is refused without work",
        given=(1,),
        steps=(fails(do.ProveCandidate, "model.golden-mismatch"), assigns(2), waits(2_000), assigns(2, "again")),
        chain=f"{STAGED} prove discard",
        reports=f"{TOLD_TESTED}, idle:refused(model.golden-mismatch) 1|0, idle:refused(artifact.quarantined) 1|0",
        ends="refused 1|0",
        quarantined=(2,),
    ),
    Row(
        "an engine that this device does not have",
        given=(1,),
        steps=(fails(do.ProveCandidate, "model.engine-unavailable"), assigns(2)),
        chain=f"{STAGED} prove discard",
        reports=f"{TOLD_TESTED}, idle:refused(model.engine-unavailable) 1|0",
        ends="refused 1|0",
    ),
    Row(
        "memory too short for any way, then enough",
        given=(1,),
        steps=(fails(do.AskLeave, "device.memory-short"), assigns(2)),
        chain=f"resolve ask-download {WAY}",
        reports="resolving 1|0, resolving(device.memory-short) 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing "
        "1|0, activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
        rest_ms=120_000,
    ),
    Row(
        "a candidate's worker ends before it is activated",
        given=(1,),
        steps=(fails(do.ActivateSlot, "model.worker-crashed"), assigns(2)),
        chain=f"{STAGED} prove activate discard serve attest",
        reports=f"{TOLD_ACTIVATED}, idle:refused(model.worker-crashed) 1|0",
        ends="refused 1|0",
        quarantined=(2,),
    ),
    Row(
        "an activation that fails on the device's account is tried again",
        given=(1,),
        steps=(fails(do.ActivateSlot, "device.disk-error"), assigns(2)),
        chain=f"{STAGED} prove activate discard serve attest {WAY}",
        reports=f"{TOLD_ACTIVATED}, resolving(device.disk-error) 1|0, fetching 1|0, verifying 1|0, staging 1|0, "
        "testing 1|0, activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "a sick bundle is rolled back on probation",
        given=(1,),
        steps=(is_sick, assigns(2)),
        chain=f"{WATCHED} back attest",
        reports=f"{TOLD_WATCHED}, rolling_back(model.unhealthy) 2|1, idle:rolled_back(model.unhealthy) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "a first bundle that is sick leaves nothing",
        given=(),
        steps=(is_sick, assigns(1)),
        chain=f"{WATCHED} back",
        reports="resolving 0|0, fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, probation 1|0, "
        "rolling_back(model.unhealthy) 1|0, idle:rolled_back(model.unhealthy) 0|0",
        ends="rolled_back 0|0",
        quarantined=(1,),
    ),
    Row(
        "a worker ends on probation",
        given=(1,),
        steps=(assigns(2), at("observe"), dies()),
        chain=f"{WATCHED} back attest",
        reports=f"{TOLD_WATCHED}, rolling_back(model.worker-crashed) 2*|1, idle:rolled_back(model.worker-crashed) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "health cannot be read on probation",
        given=(1,),
        steps=(fails(do.ObserveHealth, "internal.bug"), assigns(2)),
        chain=f"{WATCHED} back attest",
        reports=f"{TOLD_WATCHED}, rolling_back(internal.bug) 2|1, idle:rolled_back(internal.bug) 1|0",
        ends="rolled_back 1|0",
    ),
    Row(
        "a rollback works at the second attempt",
        given=(1,),
        steps=(is_sick, fails(do.RollBack, "device.disk-error"), assigns(2)),
        chain=f"{WATCHED} back attest",
        reports=f"{TOLD_WATCHED}, rolling_back(model.unhealthy) 2|1, idle:rolled_back(model.unhealthy) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "a rollback that never works",
        given=(1,),
        steps=(is_sick, fails(do.RollBack, "model.load-failed", 3), assigns(2)),
        chain=f"{WATCHED} back attest",
        reports=f"{TOLD_WATCHED}, rolling_back(model.unhealthy) 2|1, idle:rollback_failed(device.rollback-failed) 2|1",
        ends="rollback_failed 2|1",
        quarantined=(2,),
    ),
    Row(
        "after a failed rollback a good bundle helps",
        given=(1,),
        steps=(is_sick, fails(do.RollBack, "model.load-failed", 3), assigns(2), waits(10_000), is_well, assigns(3)),
        chain=f"{WATCHED} back attest {WAY}",
        reports=f"{TOLD_WATCHED}, rolling_back(model.unhealthy) 2|1, idle:rollback_failed(device.rollback-failed) 2|1, "
        "resolving 2|1, fetching 2|1, verifying 2|1, staging 2|1, testing 2|1, activating 2|1, probation 3|0, "
        "committing 3|0, idle:confirmed 3|0",
        ends="confirmed 3|0",
        quarantined=(2,),
    ),
    Row(
        "an assignment is withdrawn before it is chosen again",
        given=(1,),
        steps=(assigns(2), at("fetch"), withdraws, waits(1_000), assigns(2)),
        chain=f"resolve ask-download fetch cancel {WAY}",
        reports=f"resolving 1|0, fetching 1|0, idle:superseded 1|0, {TOLD}",
        ends="confirmed 2|1",
    ),
    Row(
        "a withdrawn assignment leaves what is live",
        given=(1,),
        steps=(withdraws,),
        chain="",
        reports="",
        ends="confirmed 1|0",
    ),
)
"""Every outcome, by every way that leads to it."""
