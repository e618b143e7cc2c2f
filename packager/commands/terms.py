"""Command-line options for the terms of a deployment's policy, read by `packager.terms`."""

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--allow-pickle", is_flag=True, help="Permit the bundle's scripts to load pickles; it asks, too."),
    click.option("--memory-max", metavar="SIZE", help="Memory of the model's worker, for example 300MiB."),
    click.option("--cpu-max", type=click.FloatRange(0.001), metavar="CORES", help="Processor time, for example 0.5."),
    click.option("--cpus", metavar="LIST", help="Processors the worker may run on, for example 0,2-3."),
    click.option("--nice", type=click.IntRange(0, 19), help="How far the worker steps back behind other processes."),
    click.option(
        "--latency-ratio-max",
        type=click.FloatRange(0),
        help="Roll back when it is so many times slower than the model before; 0 never.",
    ),
    click.option("--trial-s", type=click.FloatRange(0.001), help="Compute beside the live model for so long first."),
    click.option("--trial-share", type=click.FloatRange(0.000001, 1), help="Share of the live inputs it is shown."),
    click.option("--trial-predictions", type=click.IntRange(1), help="Compared predictions that are needed."),
    click.option("--trial-cpu", type=click.FloatRange(0.001), metavar="CORES", help="Processor time for the trial."),
    click.option("--trial-memory", metavar="SIZE", help="Memory of the candidate during the trial."),
    click.option("--trial-top1", type=click.FloatRange(0, 1), help="Least share with the same largest output."),
    click.option("--trial-distance", type=click.FloatRange(0), help="Greatest mean distance, of the live magnitude."),
    click.option("--trial-latency-ratio", type=click.FloatRange(0), help="Greatest ratio of the median run times."),
    click.option("--trial-gate", is_flag=True, help="Refuse the candidate when the trial disagrees; else only report."),
)


def term_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, in the order in which `--help` shows them; `packager.terms.terms_of` reads them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
