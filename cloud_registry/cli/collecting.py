"""Commands around telemetry: the collector as a process of its own, and the broker's configuration."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click

from cloud_registry.cli.options import json_option
from cloud_registry.cli.output import print_json
from cloud_registry.cli.server import LEVELS, config_options, read_config, start_logging
from cloud_registry.limits import FLUSH_MS, FLUSH_MS_MAX

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@click.command()
@config_options
@click.option("--mqtt-shared-group", help="Share the work with other collectors of this group.")
@click.option(
    "--flush-ms",
    type=click.IntRange(1, FLUSH_MS_MAX),
    default=FLUSH_MS,
    show_default=True,
    help="How long a record waits for company before its file is written.",
)
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Show metrics on this port of 127.0.0.1.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="What is logged.")
def collect(config_file: Path | None, flush_ms: int, metrics_port: int | None, log_level: str, **settings: Any) -> None:
    """Collect telemetry and reports until SIGTERM or SIGINT, apart from the server.

    Several may run at once, with --mqtt-shared-group or without; each record is stored once. Start the server with
    --no-collector then.
    """
    from cloud_registry.adapters.sql.fleet import SqlFleet
    from cloud_registry.assembly import SystemClock, collector_hub, open_database
    from cloud_registry.collect.service import run_collector
    from cloud_registry.metrics import METRICS

    start_logging(log_level)
    config = read_config(config_file, settings)
    database = open_database(config)
    try:
        shown = METRICS.served(metrics_port) if metrics_port else contextlib.nullcontext()
        with _stop_event() as stop, shown:
            hub = collector_hub(config, database)
            try:
                run_collector(config, SqlFleet(database), SystemClock(), stop, hub, flush_ms=flush_ms)
            finally:
                if hub is not None:
                    hub.writer.close()
    finally:
        database.close()


@click.command("broker-config")
@config_options
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option(
    "--name", "names", multiple=True, required=True, help="Host name or address of the broker; the main one first."
)
@click.option("--device-port", type=click.IntRange(1, 65535), default=8883, show_default=True, help="For devices.")
@click.option("--device-bind", default="", help="Address to listen on for devices; all unless given.")
@click.option("--cloud-port", type=click.IntRange(1, 65535), default=8884, show_default=True, help="For the cloud.")
@click.option(
    "--cloud-bind", default="127.0.0.1", show_default=True, help="Address to listen on for the cloud; not for devices."
)
@click.option("--user", default="mosquitto", show_default=True, help="User the broker runs as.")
@click.option("--plugin", type=click.Path(path_type=Path), help="mosquitto_dynamic_security.so; searched unless given.")
@json_option
def broker_config(
    out_dir: Path, names: tuple[str, ...], as_json: bool, config_file: Path | None, **options: Any
) -> None:
    """Write the configuration of a mosquitto broker for this registry into OUT_DIR.

    TLS with client certificates of this registry's own authority; every device may use its own topics and nothing
    else. Run it again to renew the certificates.
    """
    from cloud_registry.adapters.pki import LocalAuthority
    from cloud_registry.adapters.sql.enrolments import SqlEnrolments
    from cloud_registry.assembly import SystemClock, open_database
    from cloud_registry.broker import BrokerPlan, write_broker_config

    plan_fields = ("device_port", "device_bind", "cloud_port", "cloud_bind", "user", "plugin")
    plan = BrokerPlan(names, **{name: options.pop(name) for name in plan_fields})
    config = read_config(config_file, options)
    clock = SystemClock()
    database = open_database(config)
    try:
        identities = SqlEnrolments(database, clock).identities()
    finally:
        database.close()
    written = write_broker_config(out_dir, LocalAuthority(config.pki_dir, clock), plan, identities)
    if as_json:
        print_json({name: str(getattr(written, name)) for name in ("config", "registry_config", "ca", "roster")})
        return
    click.echo(f"mosquitto -c {written.config}")
    click.echo(f"registry: copy the tables of {written.registry_config} into its configuration")
    if not written.is_new:
        click.echo(f"kept {written.roster}, which the broker owns")


@contextlib.contextmanager
def _stop_event() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    former = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


COMMANDS: Final = (collect, broker_config)
