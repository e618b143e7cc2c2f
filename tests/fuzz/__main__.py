"""`python -m tests.fuzz --minutes 10`: fuzz every target in turn; ends with 1 and says how when something is found."""

from __future__ import annotations

import base64
import logging
import random
import time
import traceback

import click

from tests.fuzz.fuzzer import Finding, Fuzzer, read_corpus, write_corpus
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS, run_on_loop

_TURN_S = 2.0


def _told(finding: Finding) -> None:
    click.echo(f"found by {finding.target}: {base64.b64encode(finding.data).decode()}")
    click.echo("".join(traceback.format_exception(finding.error)))


@click.command()
@click.option("--minutes", type=click.FloatRange(0, 24 * 60), default=10.0, show_default=True, help="How long.")
@click.option("--target", "names", type=click.Choice(sorted(TARGETS)), multiple=True, help="Only this; repeatable.")
@click.option("--seed", type=int, default=None, help="Of the random numbers; the time by default.")
@click.option("--keep", is_flag=True, help="Write what leads somewhere new into the corpus.")
def main(minutes: float, names: tuple[str, ...], seed: int | None, keep: bool) -> None:
    """Fuzz what reads requests, for so many minutes, all targets together."""
    logging.disable(logging.CRITICAL)
    seed = time.time_ns() % 2**32 if seed is None else seed
    click.echo(f"seed {seed}")
    fuzzers = [Fuzzer(name, TARGETS[name], random.Random(f"{seed} {name}")) for name in names or TARGETS]
    findings: list[Finding] = []

    def work() -> None:
        end = time.monotonic() + minutes * 60
        for fuzzer in fuzzers:
            findings.extend(filter(None, [fuzzer.start([*SEEDS[fuzzer.name], *read_corpus(fuzzer.name)])]))
        while time.monotonic() < end and not findings:
            for fuzzer in fuzzers:
                turn = min(end, time.monotonic() + _TURN_S)
                while time.monotonic() < turn and not findings:
                    findings.extend(filter(None, [fuzzer.step()]))
        if keep and not findings:
            for fuzzer in fuzzers:
                write_corpus(fuzzer.name, fuzzer.smallest())

    run_on_loop(work)
    for fuzzer in fuzzers:
        click.echo(f"{fuzzer.name}: {fuzzer.calls} inputs, {len(fuzzer.corpus)} of them led somewhere new")
    for finding in findings:
        _told(finding)
    raise SystemExit(1 if findings else 0)


if __name__ == "__main__":
    main()
