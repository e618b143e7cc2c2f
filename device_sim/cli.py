"""`device-sim`: worlds under virtual time, simulated fleets against a real registry, and the demonstration."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, ParamSpec

import click

from edge_contract.errors import EdgeError

_NEGATIVE: Final = 1
_P = ParamSpec("_P")


def main() -> None:
    """Entry point of the console script."""
    cli.main(prog_name="device-sim")


def _reporting(command: Callable[_P, None]) -> Callable[_P, None]:
    """Print an operating error as people or programs want it, and exit with its category's code."""

    @wraps(command)
    def run(*args: _P.args, **options: _P.kwargs) -> None:
        try:
            command(*args, **options)
        except EdgeError as error:
            if options.get("as_json"):
                click.echo(json.dumps({"error": error.to_json()}))
            else:
                click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)

    return run


_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
_SEED = click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Draws everything.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Simulated devices for Lighterman, and a demonstration of the whole of it."""


@cli.command()
@click.option("--devices", type=int, default=20, show_default=True, help="How many devices.")
@click.option("--steps", type=int, default=10_000, show_default=True, help="Events before the faults stop.")
@click.option("--worlds", type=click.IntRange(min=1), default=1, show_default=True, help="How many worlds.")
@_SEED
@_AS_JSON
@_reporting
def world(devices: int, steps: int, worlds: int, seed: int, as_json: bool) -> None:
    """Run the agent's core on many devices under virtual time, with faults drawn from a seed.

    Exits with 1 when a rule broke, and tells what led there and how to see it again.
    """
    from device_sim.world import World, WorldError

    results: list[dict[str, Any]] = []
    for number in range(seed, seed + worlds):
        try:
            result = World(devices, number, steps).run()
        except WorldError as error:
            if as_json:
                click.echo(json.dumps({"error": error.to_json() | {"rule": error.rule}, "trace": error.lines}))
            else:
                click.echo("\n".join(error.lines))
                click.echo(f"error: {error}", err=True)
            sys.exit(_NEGATIVE)
        results.append(
            {
                "seed": result.seed,
                "devices": result.devices,
                "steps": result.steps,
                "virtual_ms": result.virtual_ms,
                "calm_ms": result.calm_ms,
                "deployments": result.deployments,
                "restarts": result.restarts,
                "trace": str(result.trace),
            }
        )
        if not as_json:
            click.echo(
                f"seed {result.seed}: every rule held for {result.devices} devices, {result.steps} events, "
                f"{result.deployments} deployments and {result.restarts} restarts in {result.virtual_ms / 60_000:.0f} "
                f"virtual minutes; all converged {result.calm_ms / 1000:.0f} s after the faults stopped "
                f"(trace {result.trace.short})"
            )
    if as_json:
        click.echo(json.dumps({"worlds": results}))
