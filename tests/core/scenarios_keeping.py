"""Scenarios of what is live: it ends, rots, is healed, gives way."""

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
    assigns,
    at,
    dies,
    ends_late,
    fails,
    hangs,
    is_sick,
    loses_power,
    rolls_back,
    rots,
    waits,
)

KEEPING: Final = (
    Row(
        "a live worker ends and comes up again",
        given=(1,),
        steps=(dies(),),
        chain="serve attest",
        reports="idle:confirmed 1*|0, idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "a live worker ends again and again, and there is a fallback",
        given=(1, 2),
        steps=(dies(3),),
        chain="serve attest back attest",
        reports="idle:confirmed 2*|1, idle:confirmed 2|1, idle:confirmed 2*|1, idle:confirmed 2|1, "
        "rolling_back(model.worker-crashed) 2*|1, idle:rolled_back(model.worker-crashed) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "a live worker ends again and again, and there is no fallback",
        given=(1,),
        steps=(dies(4),),
        chain="serve attest serve attest serve attest",
        reports="idle:confirmed 1*|0, idle:confirmed 1|0, idle:confirmed 1*|0, idle:confirmed 1|0, idle:confirmed "
        "1*|0, idle:confirmed 1|0, idle:confirmed 1*|0, idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "a live bundle does not come up for want of memory: no blame",
        given=(1, 2),
        steps=(fails(do.ServeLive, "device.memory-short", 2), dies()),
        chain="serve back attest",
        reports="idle:confirmed 2*|1, rolling_back(device.memory-short) 2*|1, idle:rolled_back(device.memory-short) "
        "1|0",
        ends="rolled_back 1|0",
    ),
    Row(
        "a live bundle gives way while an update waits for the network, which then goes on",
        given=(1, 2),
        steps=(
            fails(do.FetchBlobs, "network.unreachable", 3),
            assigns(3),
            waits(100),
            fails(do.ServeLive, "model.load-failed", 2),
            dies(),
        ),
        chain="resolve ask-download fetch serve resolve ask-download fetch serve back resolve ask-download fetch "
        f"attest {WAY}",
        reports="resolving 2|1, fetching 2|1, resolving(network.unreachable) 2|1, resolving(network.unreachable) "
        "2*|1, fetching 2*|1, resolving(network.unreachable) 2*|1, rolling_back(model.load-failed) 2*|1, "
        "resolving 1|0, fetching 1|0, resolving(network.unreachable) 1|0, fetching 1|0, verifying 1|0, "
        "staging 1|0, testing 1|0, activating 1|0, probation 3|1, committing 3|1, idle:confirmed 3|1",
        ends="confirmed 3|1",
        quarantined=(2,),
        rest_ms=60_000,
    ),
    Row(
        "bringing the live bundle up hangs",
        given=(1,),
        steps=(hangs(do.ServeLive), dies(), waits(2 * HOUR_MS), ends_late),
        chain="serve cancel serve attest",
        reports="idle:confirmed 1*|0, idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "a damaged live slot without a fallback is healed",
        given=(1,),
        steps=(rots(1), dies()),
        chain="serve heal restart attest",
        reports="idle:confirmed 1*|0, idle:confirmed 1*|0[device.disk-corrupt], idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "a damaged live slot with a fallback: the fallback answers, and the bundle is fetched anew",
        given=(1, 2),
        steps=(rots(2), dies()),
        chain=f"serve back {WAY}",
        reports=f"idle:confirmed 2*|1, rolling_back(device.disk-corrupt) 2*|1[device.disk-corrupt], {TOLD}",
        ends="confirmed 2|1",
    ),
    Row(
        "damage again and again is not fetched for ever",
        given=(1, 2),
        steps=(
            rots(2),
            dies(),
            at("activate"),
            waits(5_000),
            rots(2),
            dies(),
            at("activate"),
            waits(5_000),
            rots(2),
            dies(),
            at("activate"),
            waits(5_000),
            rots(2),
            dies(),
        ),
        chain=f"serve back {WAY} serve back {WAY} serve back {WAY} serve back attest",
        reports=f"idle:confirmed 2*|1, rolling_back(device.disk-corrupt) 2*|1[device.disk-corrupt], {TOLD}, "
        f"idle:confirmed 2*|1, rolling_back(device.disk-corrupt) 2*|1[device.disk-corrupt], {TOLD}, "
        f"idle:confirmed 2*|1, rolling_back(device.disk-corrupt) 2*|1[device.disk-corrupt], {TOLD}, "
        "idle:confirmed 2*|1, rolling_back(device.disk-corrupt) 2*|1[device.disk-corrupt], "
        "idle:rolled_back(device.disk-corrupt) 1|0",
        ends="rolled_back 1|0",
    ),
    Row(
        "a slot damaged on probation is fetched anew after the rollback",
        given=(1,),
        steps=(assigns(2), at("observe"), rots(2), loses_power),
        chain=f"{WATCHED} serve back {WAY}",
        reports=f"{TOLD_WATCHED}, probation 2*|1, rolling_back(device.disk-corrupt) 2*|1[device.disk-corrupt], {TOLD}",
        ends="confirmed 2|1",
    ),
    Row(
        "healing fails offline, and works when there is a network again",
        given=(1,),
        steps=(rots(1), fails(do.HealSlot, "network.unreachable", 2), dies()),
        chain="serve heal serve heal restart attest",
        reports="idle:confirmed 1*|0, idle:confirmed 1*|0[device.disk-corrupt], idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "reading the disk finds the live slot damaged while it serves: healed without a gap",
        given=(1,),
        steps=(rots(1), at("scrub"), waits(0)),
        chain="attest scrub heal restart attest",
        reports="idle:confirmed 1|0, idle:confirmed 1|0[device.disk-corrupt], idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "damage found while serving and no network for a while: it goes on serving and says so",
        given=(1,),
        steps=(rots(1), fails(do.HealSlot, "network.unreachable", 3), at("scrub"), waits(0)),
        chain="attest scrub heal restart attest",
        reports="idle:confirmed 1|0, idle:confirmed 1|0[device.disk-corrupt], idle:confirmed 1|0",
        ends="confirmed 1|0",
        rest_ms=60_000,
    ),
    Row(
        "reading the disk finds the fallback damaged: healed, nothing else happens",
        given=(1, 2),
        steps=(rots(1), at("scrub"), waits(0)),
        chain="attest scrub heal",
        reports="idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "reading the disk hangs and is given up",
        given=(1,),
        steps=(hangs(do.ScrubStore), at("scrub"), waits(0)),
        chain="attest scrub attest cancel scrub attest scrub attest",
        reports="idle:confirmed 1|0",
        ends="confirmed 1|0",
        rest_ms=60 * HOUR_MS,
    ),
    Row(
        "a healed slot whose fresh worker does not come up",
        given=(1,),
        steps=(rots(1), fails(do.RestartLive, "model.timeout"), at("scrub"), waits(0)),
        chain="attest scrub heal restart serve attest",
        reports="idle:confirmed 1|0, idle:confirmed 1|0[device.disk-corrupt], idle:confirmed "
        "1*|0[device.disk-corrupt], idle:confirmed 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "damage is found while a candidate is tested",
        given=(1,),
        steps=(rots(1), assigns(2), at("prove"), dies()),
        chain=f"{STAGED} prove serve prove heal activate observe commit",
        reports=f"{TOLD_TESTED}, testing 1*|0, testing 1*|0[device.disk-corrupt], activating "
        "1*|0[device.disk-corrupt], probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "a damaged fallback is healed before it is rolled back to",
        given=(1,),
        steps=(is_sick, rots(1), assigns(2)),
        chain=f"{WATCHED} back heal back attest",
        reports=f"{TOLD_WATCHED}, rolling_back(model.unhealthy) 2|1, idle:rolled_back(model.unhealthy) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "a damaged fallback that cannot be healed in time: what is live goes on until a person asks again",
        given=(1,),
        steps=(is_sick, rots(1), fails(do.HealSlot, "network.unreachable", 3), assigns(2), waits(60_000), rolls_back),
        chain=f"{WATCHED} back heal back heal back attest heal back attest",
        reports=f"{TOLD_WATCHED}, rolling_back(model.unhealthy) 2|1, idle:rollback_failed(device.rollback-failed) 2|1, "
        "rolling_back 2|1, idle:rolled_back 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "a fallback that never comes up, and a worker that ended: what is live is brought up again",
        given=(1,),
        steps=(assigns(2), at("observe"), fails(do.RollBack, "model.load-failed", 3), dies()),
        chain=f"{WATCHED} back serve attest",
        reports=f"{TOLD_WATCHED}, rolling_back(model.worker-crashed) 2*|1, "
        "idle:rollback_failed(device.rollback-failed) 2*|1, idle:rollback_failed(device.rollback-failed) 2|1",
        ends="rollback_failed 2|1",
        quarantined=(2,),
    ),
    Row(
        "both slots are damaged: the fallback is healed, then the bundle is fetched anew",
        given=(1, 2),
        steps=(rots(1), rots(2), dies()),
        chain=f"serve back heal back {WAY}",
        reports=f"idle:confirmed 2*|1, rolling_back(device.disk-corrupt) 2*|1[device.disk-corrupt], {TOLD}",
        ends="confirmed 2|1",
    ),
    Row(
        "both slots are damaged and nothing can be fetched for a while",
        given=(1, 2),
        steps=(rots(1), rots(2), fails(do.HealSlot, "network.unreachable", 4), dies()),
        chain="serve back heal back heal back heal serve heal serve heal restart attest",
        reports="idle:confirmed 2*|1, rolling_back(device.disk-corrupt) 2*|1[device.disk-corrupt], "
        "idle:rollback_failed(device.rollback-failed) 2*|1[device.disk-corrupt], "
        "idle:rollback_failed(device.rollback-failed) 2|1",
        ends="rollback_failed 2|1",
        rest_ms=60_000,
    ),
    Row(
        "an operator rolls back",
        given=(1, 2),
        steps=(rolls_back,),
        chain="back attest",
        reports="rolling_back 2|1, idle:rolled_back 1|0",
        ends="rolled_back 1|0",
    ),
    Row(
        "an operator without a fallback is told so",
        given=(1,),
        steps=(rolls_back,),
        chain="",
        reports="idle:confirmed(device.no-fallback) 1|0",
        ends="confirmed 1|0",
    ),
    Row(
        "a power cut while rolling back",
        given=(1, 2),
        steps=(rolls_back, at("back"), loses_power),
        chain="back attest",
        reports="rolling_back 2|1, rolling_back 2*|1, idle:rolled_back 1|0",
        ends="rolled_back 1|0",
    ),
)
"""What is live ends, rots, is healed, gives way."""
