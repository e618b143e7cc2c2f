"""Scenarios of people who have a say: windows, hooks, holds."""

from typing import Final

from edge_agent.core import commands as do
from tests.core.script import (
    HOUR_MS,
    STAGED,
    TOLD,
    TOLD_ACTIVATED,
    TOLD_STAGED,
    TOLD_WATCHED,
    WATCHED,
    WAY,
    Row,
    assigns,
    at,
    fails,
    holds,
    holds_module,
    is_sick,
    loses_power,
    postpones,
    resumes,
    resumes_module,
    rolls_back,
    waits,
    withdraws,
)

LEAVE: Final = (
    Row(
        "a closed window before the activation, then an open one",
        given=(1,),
        steps=(postpones(do.Gate.ACTIVATE, 5_000), assigns(2), waits(6_000), postpones(do.Gate.ACTIVATE, 0)),
        chain=WAY,
        reports=f"{TOLD_STAGED}, staging(device.postponed) 1|0, testing 1|0, activating 1|0, probation 2|1, committing "
        "2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "the hook asks to wait with the download",
        given=(1,),
        steps=(postpones(do.Gate.DOWNLOAD, 5_000), assigns(2), waits(6_000), postpones(do.Gate.DOWNLOAD, 0)),
        chain=f"resolve ask-download resolve ask-download {WAY}",
        reports="resolving 1|0, resolving(device.postponed) 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing "
        "1|0, activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "the hook asks to wait at both",
        given=(1,),
        steps=(
            postpones(do.Gate.DOWNLOAD, 2_000),
            postpones(do.Gate.ACTIVATE, 2_000),
            assigns(2),
            waits(1_000),
            postpones(do.Gate.DOWNLOAD, 0),
            waits(2_000),
            postpones(do.Gate.ACTIVATE, 0),
        ),
        chain=f"resolve ask-download {WAY}",
        reports="resolving 1|0, resolving(device.postponed) 1|0, fetching 1|0, verifying 1|0, staging 1|0, "
        "staging(device.postponed) 1|0, testing 1|0, activating 1|0, probation 2|1, committing 2|1, "
        "idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "the hook fails",
        given=(1,),
        steps=(fails(do.AskLeave, "device.hook-failed"), assigns(2)),
        chain=f"resolve ask-download {WAY}",
        reports="resolving 1|0, resolving(device.hook-failed) 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing "
        "1|0, activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
        rest_ms=120_000,
    ),
    Row(
        "whoever asks to wait for ever is asked again every hour",
        given=(1,),
        steps=(postpones(do.Gate.ACTIVATE, 10**9), assigns(2)),
        chain=f"{STAGED} attest ask-activate attest ask-activate",
        reports=f"{TOLD_STAGED}, staging(device.postponed) 1|0",
        ends="- 1|0",
        rest_ms=5 * HOUR_MS // 2,
    ),
    Row(
        "whoever asks to wait no time at all is asked every second",
        given=(1,),
        steps=(postpones(do.Gate.ACTIVATE, 1), assigns(2)),
        chain=STAGED,
        reports=f"{TOLD_STAGED}, staging(device.postponed) 1|0",
        ends="- 1|0",
        rest_ms=2_500,
    ),
    Row(
        "a power cut while the window is closed",
        given=(1,),
        steps=(
            postpones(do.Gate.ACTIVATE, 5_000),
            assigns(2),
            waits(1_000),
            loses_power,
            waits(1_000),
            postpones(do.Gate.ACTIVATE, 0),
        ),
        chain=f"{STAGED} serve {STAGED} attest ask-activate prove activate observe commit",
        reports=f"{TOLD_STAGED}, staging(device.postponed) 1|0, resolving(device.postponed) 1*|0, "
        "resolving(device.postponed) 1|0, fetching 1|0, verifying 1|0, staging 1|0, staging(device.postponed) "
        "1|0, testing 1|0, activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "a newer assignment while the window is closed",
        given=(1,),
        steps=(
            postpones(do.Gate.ACTIVATE, 5_000),
            assigns(2),
            waits(1_000),
            postpones(do.Gate.ACTIVATE, 0),
            assigns(3),
        ),
        chain=f"{STAGED} {WAY}",
        reports=f"{TOLD_STAGED}, staging(device.postponed) 1|0, {TOLD_ACTIVATED}, probation 3|1, committing 3|1, "
        "idle:confirmed 3|1",
        ends="confirmed 3|1",
    ),
    Row(
        "an assignment is withdrawn while the window is closed",
        given=(1,),
        steps=(postpones(do.Gate.ACTIVATE, 5_000), assigns(2), waits(1_000), withdraws),
        chain=STAGED,
        reports=f"{TOLD_STAGED}, staging(device.postponed) 1|0, idle:superseded(device.postponed) 1|0",
        ends="superseded 1|0",
    ),
)
"""Windows and the device owner's hook, asked before the download and before the activation."""

HOLDS: Final = (
    Row(
        "a held device does not begin",
        given=(1,),
        steps=(holds, assigns(2)),
        chain="",
        reports="idle:confirmed 1|0, resolving(device.held) 1|0",
        ends="- 1|0",
    ),
    Row(
        "a hold that ends lets it begin",
        given=(1,),
        steps=(holds, assigns(2), waits(1_000), resumes),
        chain=WAY,
        reports=f"idle:confirmed 1|0, resolving(device.held) 1|0, {TOLD}",
        ends="confirmed 2|1",
    ),
    Row(
        "a module is held, and goes on when it is resumed",
        given=(1,),
        steps=(holds_module, assigns(2), waits(1_000), resumes_module),
        chain=WAY,
        reports=f"idle:confirmed 1|0, resolving(device.held) 1|0, {TOLD}",
        ends="confirmed 2|1",
    ),
    Row(
        "a module stays held when only its own hold ends",
        given=(1,),
        steps=(holds, holds_module, assigns(2), waits(1_000), resumes_module),
        chain="",
        reports="idle:confirmed 1|0, resolving(device.held) 1|0",
        ends="- 1|0",
    ),
    Row(
        "the end of the device's hold ends those of its modules",
        given=(1,),
        steps=(holds, holds_module, assigns(2), waits(1_000), resumes),
        chain=WAY,
        reports=f"idle:confirmed 1|0, resolving(device.held) 1|0, {TOLD}",
        ends="confirmed 2|1",
    ),
    Row(
        "a hold of one module leaves the other alone",
        given=(),
        steps=(assigns(1, sound=1), waits(10_000), holds_module, assigns(2, sound=2)),
        chain=WAY,
        reports="resolving 0|0, fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, probation 1|0, "
        "committing 1|0, idle:confirmed 1|0, resolving(device.held) 1|0",
        ends="- 1|0",
        sound="idle:confirmed 2|1",
    ),
    Row(
        "a restart while held stays held",
        given=(1,),
        steps=(holds, assigns(2), waits(1_000), loses_power),
        chain="serve attest",
        reports="idle:confirmed 1|0, resolving(device.held) 1|0, resolving(device.held) 1*|0, resolving(device.held) "
        "1|0",
        ends="- 1|0",
    ),
    Row(
        "a restart while held, and then resumed",
        given=(1,),
        steps=(holds, assigns(2), waits(1_000), loses_power, waits(1_000), resumes),
        chain=f"serve attest {WAY}",
        reports="idle:confirmed 1|0, resolving(device.held) 1|0, resolving(device.held) 1*|0, resolving(device.held) "
        f"1|0, {TOLD}",
        ends="confirmed 2|1",
    ),
    Row(
        "a hold on probation lets the probation end",
        given=(1,),
        steps=(assigns(2), at("observe"), holds),
        chain=WAY,
        reports=TOLD,
        ends="confirmed 2|1",
    ),
    Row(
        "a hold does not keep a sick bundle",
        given=(1,),
        steps=(is_sick, assigns(2), at("observe"), holds),
        chain=f"{WATCHED} back attest",
        reports=f"{TOLD_WATCHED}, rolling_back(model.unhealthy) 2|1, idle:rolled_back(model.unhealthy) 1|0",
        ends="rolled_back 1|0",
        quarantined=(2,),
    ),
    Row(
        "a hold during an activation that fails holds the next attempt",
        given=(1,),
        steps=(fails(do.ActivateSlot, "device.disk-error"), assigns(2), at("activate"), holds),
        chain=f"{STAGED} prove activate discard serve attest",
        reports=f"{TOLD_ACTIVATED}, resolving(device.held) 1|0",
        ends="- 1|0",
    ),
    Row(
        "a newer assignment while held is what goes on afterwards",
        given=(1,),
        steps=(holds, assigns(2), waits(1_000), assigns(3), waits(1_000), resumes),
        chain=WAY,
        reports=f"idle:confirmed 1|0, resolving(device.held) 1|0, {TOLD_ACTIVATED}, probation 3|1, committing 3|1, "
        "idle:confirmed 3|1",
        ends="confirmed 3|1",
    ),
    Row(
        "an operator rolls back while held",
        given=(1, 2),
        steps=(holds, assigns(3), waits(1_000), rolls_back),
        chain="back attest",
        reports="idle:confirmed 2|1, resolving(device.held) 2|1, rolling_back 2|1, resolving(device.held) 1|0",
        ends="- 1|0",
    ),
    Row(
        "a resume that nobody waits for changes nothing",
        given=(1,),
        steps=(fails(do.ResolveBundle, "network.unreachable"), assigns(2), waits(100), resumes),
        chain=WAY,
        reports="resolving 1|0, resolving(network.unreachable) 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing "
        "1|0, activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "a withdrawn assignment ends while held",
        given=(1,),
        steps=(holds, assigns(2), waits(1_000), withdraws),
        chain="",
        reports="idle:confirmed 1|0, resolving(device.held) 1|0, idle:superseded(device.held) 1|0",
        ends="superseded 1|0",
    ),
)
"""An operator holds updates back."""
