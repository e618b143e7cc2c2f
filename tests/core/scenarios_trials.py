"""Scenarios of a candidate that has to stand a trial beside the live model first."""

from typing import Final

from edge_agent.core import commands as do
from tests.core.script import (
    STAGED,
    TOLD_STAGED,
    TOLD_TESTED,
    Row,
    agrees,
    assigns,
    at,
    dies,
    fails,
    hangs,
    holds,
    is_given_up,
    loses_power,
    rolls_back,
    runs_short,
    stays_down,
    tries,
    waits,
    withdraws,
)

TRIED: Final = f"{STAGED} prove try look"
TOLD_TRIED: Final = f"{TOLD_TESTED}, trying 1|0"
TOLD_ON: Final = "activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1"

TRIALS: Final = (
    Row(
        "a candidate that agrees is activated",
        given=(1,),
        steps=(tries(2),),
        chain=f"{TRIED} activate observe commit",
        reports=f"{TOLD_TRIED}, {TOLD_ON}",
        ends="confirmed 2|1",
    ),
    Row(
        "a candidate that disagrees is refused and never tried again",
        given=(1,),
        steps=(agrees(30, top1_ppm=500_000), tries(2)),
        chain=f"{TRIED} discard",
        reports=f"{TOLD_TRIED}, idle:refused(model.trial-failed) 1|0",
        ends="refused 1|0",
        quarantined=(2,),
    ),
    Row(
        "a candidate that fails where the live model does not is refused",
        given=(1,),
        steps=(agrees(30, failed=1), tries(2)),
        chain=f"{TRIED} discard",
        reports=f"{TOLD_TRIED}, idle:refused(model.trial-failed) 1|0",
        ends="refused 1|0",
        quarantined=(2,),
    ),
    Row(
        "a trial that does not decide is only reported",
        given=(1,),
        steps=(agrees(30, top1_ppm=0), tries(2, gate=False)),
        chain=f"{TRIED} activate observe commit",
        reports=f"{TOLD_TRIED}, {TOLD_ON}",
        ends="confirmed 2|1",
        rest_ms=20_000,
    ),
    Row(
        "too few predictions say nothing: the trial is repeated after a while",
        given=(1,),
        steps=(agrees(3), tries(2), waits(30_000), agrees(100)),
        chain=f"{TRIED} discard {TRIED} activate observe commit",
        reports=f"{TOLD_TRIED}, resolving(model.trial-inconclusive) 1|0, fetching 1|0, verifying 1|0, staging 1|0, "
        f"testing 1|0, trying 1|0, {TOLD_ON}",
        ends="confirmed 2|1",
        rest_ms=90_000,
    ),
    Row(
        "the first module of a device has nothing to be compared with",
        given=(),
        steps=(tries(2),),
        chain=f"{STAGED} prove activate observe commit",
        reports="resolving 0|0, fetching 0|0, verifying 0|0, staging 0|0, testing 0|0, activating 0|0, probation 2|0, "
        "committing 2|0, idle:confirmed 2|0",
        ends="confirmed 2|0",
    ),
    Row(
        "where memory holds one model only, a trial that decides waits",
        given=(1,),
        steps=(runs_short, tries(2)),
        chain=STAGED,
        reports=f"{TOLD_STAGED}, staging(device.memory-short) 1|0",
        ends="- 1|0",
    ),
    Row(
        "where memory holds one model only, a trial that does not decide is left out",
        given=(1,),
        steps=(runs_short, tries(2, gate=False)),
        chain=f"{STAGED} prove-alone activate observe commit",
        reports=f"{TOLD_STAGED}, testing 1*|0, activating 1*|0, probation 2|1, committing 2|1, idle:confirmed 2|1",
        ends="confirmed 2|1",
    ),
    Row(
        "the candidate ends during its trial",
        given=(1,),
        steps=(fails(do.ObserveTrial, "model.worker-crashed"), tries(2)),
        chain=f"{TRIED} discard",
        reports=f"{TOLD_TRIED}, idle:refused(model.worker-crashed) 1|0",
        ends="refused 1|0",
        quarantined=(2,),
    ),
    Row(
        "the live worker ends during the trial: it comes up first, the candidate is proved and tried again",
        given=(1,),
        steps=(agrees(0), tries(2), at("look"), dies(), waits(100), agrees(100)),
        chain=(
            "resolve ask-download fetch verify stage ask-activate prove try look serve prove try "
            "attest look activate observe commit"
        ),
        reports=(
            "resolving 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing 1|0, trying 1|0, trying "
            "1*|0, testing 1*|0, testing 1|0, trying 1|0, activating 1|0, probation 2|1, committing "
            "2|1, idle:confirmed 2|1"
        ),
        ends="confirmed 2|1",
        rest_ms=20_000,
    ),
    Row(
        "a newer assignment ends the trial",
        given=(1,),
        steps=(agrees(0), tries(2), at("look"), assigns(3), agrees(100)),
        chain=f"{TRIED} cancel discard {STAGED} prove activate observe commit",
        reports=f"{TOLD_TRIED}, {TOLD_TESTED}, activating 1|0, probation 3|1, committing 3|1, idle:confirmed 3|1",
        ends="confirmed 3|1",
    ),
    Row(
        "a withdrawal ends the trial",
        given=(1,),
        steps=(agrees(0), tries(2), at("look"), withdraws),
        chain=f"{TRIED} cancel discard",
        reports=f"{TOLD_TRIED}, idle:superseded 1|0",
        ends="superseded 1|0",
    ),
    Row(
        "an operator holds updates back during the trial",
        given=(1,),
        steps=(agrees(0), tries(2), at("look"), holds),
        chain=f"{TRIED} cancel discard",
        reports=f"{TOLD_TRIED}, resolving(device.held) 1|0",
        ends="- 1|0",
    ),
    Row(
        "an operator goes back during the trial",
        given=(1, 2),
        steps=(agrees(0), tries(3), at("look"), rolls_back, waits(0), agrees(100)),
        chain=(
            "resolve ask-download fetch verify stage ask-activate prove try look cancel discard back "
            "resolve ask-download fetch verify stage ask-activate prove try attest look activate "
            "observe commit"
        ),
        reports=(
            "resolving 2|1, fetching 2|1, verifying 2|1, staging 2|1, testing 2|1, trying 2|1, "
            "rolling_back 2|1, resolving 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing 1|0, "
            "trying 1|0, activating 1|0, probation 3|1, committing 3|1, idle:confirmed 3|1"
        ),
        ends="confirmed 3|1",
    ),
    Row(
        "a power cut during the trial",
        given=(1,),
        steps=(agrees(0), tries(2), at("look"), loses_power, agrees(100)),
        chain=(
            "resolve ask-download fetch verify stage ask-activate prove try look serve resolve "
            "ask-download fetch verify stage ask-activate prove try attest look activate observe "
            "commit"
        ),
        reports=(
            "resolving 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing 1|0, trying 1|0, "
            "resolving 1*|0, resolving 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing 1|0, "
            "trying 1|0, activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1"
        ),
        ends="confirmed 2|1",
    ),
    Row(
        "the live worker does not come up again during the trial",
        given=(1, 2),
        steps=(agrees(0), tries(3), at("look"), dies(), stays_down, agrees(100)),
        chain=(
            "resolve ask-download fetch verify stage ask-activate prove try look serve cancel discard "
            "back resolve ask-download fetch verify stage ask-activate prove try attest look activate "
            "observe commit"
        ),
        reports=(
            "resolving 2|1, fetching 2|1, verifying 2|1, staging 2|1, testing 2|1, trying 2|1, trying "
            "2*|1, rolling_back(model.load-failed) 2*|1, resolving 1|0, fetching 1|0, verifying 1|0, "
            "staging 1|0, testing 1|0, trying 1|0, activating 1|0, probation 3|1, committing 3|1, "
            "idle:confirmed 3|1"
        ),
        ends="confirmed 3|1",
        quarantined=(2,),
    ),
    Row(
        "nobody says how the trial goes",
        given=(1,),
        steps=(hangs(do.ObserveTrial), tries(2), is_given_up),
        chain=(
            "resolve ask-download fetch verify stage ask-activate prove try look cancel discard "
            "resolve ask-download fetch verify stage ask-activate prove try look activate observe "
            "commit"
        ),
        reports=(
            "resolving 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing 1|0, trying 1|0, "
            "resolving(device.step-overdue) 1|0, fetching 1|0, verifying 1|0, staging 1|0, testing "
            "1|0, trying 1|0, activating 1|0, probation 2|1, committing 2|1, idle:confirmed 2|1"
        ),
        ends="confirmed 2|1",
        rest_ms=20_000,
    ),
)
