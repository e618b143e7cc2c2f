"""`device-sim`: worlds under virtual time, simulated fleets against a real registry, and the demonstration."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec

import click

from edge_contract import names
from edge_contract.errors import EdgeError
from edge_contract.limits import POLL_MS_DEFAULT, REPORT_MS_DEFAULT

_NEGATIVE: Final = 1
_INTERRUPTED: Final = 130
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

    # Its devices log what they do like any other; here that is in the trace.
    logging.getLogger("edge_agent").addHandler(logging.NullHandler())
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


@cli.command()
@click.option("--devices", type=int, default=20, show_default=True, help="How many devices.")
@click.option("--url", envvar="LIGHTERMAN_URL", required=True, help="Base URL of the registry.  [env: LIGHTERMAN_URL]")
@click.option("--token", envvar="LIGHTERMAN_TOKEN", default="", help="Operator's token.  [env: LIGHTERMAN_TOKEN]")
@click.option("--token-file", type=click.Path(path_type=Path), help="File that holds the token.")
@click.option("--tags", multiple=True, metavar="KEY=VALUE", help="Tag of every device; may be repeated.")
@click.option("--prefix", default="sim", show_default=True, help="Devices are called PREFIX-0001 and so on.")
@click.option("--rate", type=float, default=1.0, show_default=True, help="Requests a second of each device's clients.")
@click.option("--data", type=click.Path(path_type=Path), help="Keep the devices here, and take up those that are.")
@click.option("--ca", type=click.Path(path_type=Path), help="CA certificate of an https registry.")
@click.option("--poll-ms", type=click.IntRange(min=1_000), default=POLL_MS_DEFAULT, show_default=True)
@click.option("--report-ms", type=click.IntRange(min=1_000), default=REPORT_MS_DEFAULT, show_default=True)
@click.option("--deltas/--no-deltas", default=True, show_default=True, help="Let devices use deltas.")
@_SEED
@_AS_JSON
@_reporting
def run(
    token: str, token_file: Path | None, tags: tuple[str, ...], data: Path | None, as_json: bool, **rest: Any
) -> None:
    """Run simulated devices against a real registry and its broker, in one process, until interrupted.

    Each device runs the core, the verification and the storage of the real agent; only its workers are simulated: a
    model is loaded and proved once for the whole fleet. With --json the last line of output says how the fleet stood.
    """
    from device_sim.live.command import run_fleet
    from device_sim.live.fleet import FleetOptions

    with contextlib.ExitStack() as stack:
        folder = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lighterman-fleet-")))
        options = FleetOptions(
            devices=rest["devices"],
            seed=rest["seed"],
            url=rest["url"],
            token=_token(token, token_file),
            data=folder,
            prefix=rest["prefix"],
            tags=_tags(tags),
            rate_per_s=rest["rate"],
            ca=rest["ca"],
            poll_ms=rest["poll_ms"],
            report_ms=rest["report_ms"],
            deltas=rest["deltas"],
        )
        final = run_fleet(options, lambda line: click.echo(line, err=as_json))
    click.echo(json.dumps(final) if as_json else "the fleet has ended")


def _token(token: str, token_file: Path | None) -> str:
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise EdgeError("config.file-missing", f"the token file {token_file} cannot be read: {error}") from None
    if not token:
        raise EdgeError("config.invalid", "no token was given", "Use --token-file, --token or LIGHTERMAN_TOKEN.")
    return token


def _tags(texts: tuple[str, ...]) -> dict[str, str]:
    result = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise EdgeError("config.invalid", f"{text!r} is not a tag", "Write --tags KEY=VALUE.")
        result[key] = value
    return names.tags(result)


@cli.command()
@click.option("--devices", type=int, default=20, show_default=True, help="Simulated devices beside the real one.")
@click.option(
    "--broker",
    type=click.Choice(["auto", "mosquitto", "embedded"]),
    default="auto",
    show_default=True,
    help="MQTT broker; auto takes mosquitto where it is installed.",
)
@click.option("--folder", type=click.Path(path_type=Path), help="Put everything here and keep it.")
@click.option("--keep", "is_kept", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
@_SEED
@_AS_JSON
@_reporting
def demo(devices: int, broker: str, folder: Path | None, is_kept: bool, seed: int, as_json: bool) -> None:
    """See all of Lighterman work on this machine, in about a minute.

    Starts a broker, a registry, one real device and many simulated ones; ships a model step by step, a better one with
    one command under load, and a damaged one that the devices refuse. Exits with 1 when a promise was broken.
    """
    from device_sim.demo.story import DemoOptions, run_demo
    from device_sim.demo.view import SilentView, TerminalView

    def show_and_wait(document: dict[str, Any]) -> None:
        if as_json:
            click.echo(json.dumps(document, indent=2))
            click.echo("everything is left running; Ctrl-C ends it", err=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    options = DemoOptions(devices=devices, seed=seed, broker=broker, is_kept=is_kept, folder=folder)
    try:
        document = run_demo(options, SilentView() if as_json else TerminalView(), show_and_wait)
    except KeyboardInterrupt:
        click.echo("interrupted; everything that was started has ended", err=True)
        sys.exit(_INTERRUPTED)
    if as_json and not is_kept:
        click.echo(json.dumps(document, indent=2))
    if not document["ok"]:
        sys.exit(_NEGATIVE)


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback address of everything.")
@click.option("--name", default="", help="The hub's host name; without it the address. Clients then need a gateway.")
@click.option("--data", type=click.Path(path_type=Path), help="Keep everything here across restarts.")
@click.option("--ca", type=click.Path(path_type=Path), help="Write the certificate that clients have to trust here.")
@click.option("--device", "devices", multiple=True, metavar="DEVICE[/MODULE]", help="Register; may be repeated.")
@click.option(
    "--edge", multiple=True, metavar="DEVICE[=SOCKET]", help="Register an IoT Edge device with a workload API."
)
@click.option(
    "--units", type=click.IntRange(0, 200), default=0, show_default=True, help="Throttle as so many S1 units."
)
@click.option("--mqtt-port", type=click.IntRange(0, 65535), default=8883, show_default=True, help="The SDK dials 8883.")
@click.option("--http-port", type=click.IntRange(0, 65535), default=0, help="Service API and administration; 0: free.")
@click.option("--amqp-port", type=click.IntRange(0, 65535), default=0, help="Telemetry for azure-eventhub; 0: free.")
@_AS_JSON
@_reporting
def iothub(as_json: bool, **rest: Any) -> None:
    """Emulate Azure IoT Hub, its provisioning service and IoT Edge's workload API on this machine, until interrupted.

    Prints the connection strings of the devices that it was asked for, and where the service API, telemetry and the
    administration are. See docs/iothub-emulator.md.
    """
    from device_sim.iothub.command import HubOptions, run_hub

    def show(document: dict[str, Any]) -> None:
        if as_json:
            click.echo(json.dumps(document))
            return
        for key, value in document.items():
            for name, text in value.items() if isinstance(value, dict) else [("", value)]:
                click.echo(f"{f'{key} {name}'.strip():<18} {text}")
        click.echo("running; Ctrl-C ends it")

    run_hub(HubOptions(**rest), show)
