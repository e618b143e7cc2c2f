"""Commands that run the registry, or work on its own machine."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cloud_registry.cli.options import json_option, read_token
from cloud_registry.cli.output import print_json, print_table
from cloud_registry.limits import QUERY_ROWS_MAX
from edge_contract.errors import EdgeError

if TYPE_CHECKING:
    from cloud_registry.config import RegistryConfig
    from cloud_registry.services import Services

LEVELS: Final = ("debug", "info", "warning", "error")
"""Levels of logging."""
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that override the configuration file and the environment."""
    path = click.Path(path_type=Path)
    for option in (
        click.option("--mqtt-tls-key", type=path, help="Key of the certificate for the broker."),
        click.option("--mqtt-tls-cert", type=path, help="Certificate for the broker."),
        click.option("--mqtt-tls-ca", type=path, help="CA certificate of the broker."),
        click.option("--mqtt-port", type=click.IntRange(1, 65535), help="Port of the MQTT broker."),
        click.option("--mqtt-host", help="Host of the MQTT broker; without it there is no broker."),
        click.option("--database-url", help="sqlite:///PATH or postgresql://…; better in LIGHTERMAN_DATABASE_URL."),
        click.option("--data-dir", type=path, help="Folder of blobs, keys, telemetry; ./lighterman-data unless given."),
        click.option("--config", "config_file", type=path, help="TOML file; ./cloud-registry.toml if it is there."),
    ):
        command = option(command)
    return command


@click.command()
@config_options
@click.option("--host", help="Address to listen on; 127.0.0.1 unless given.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 8400 unless given, 0 for any.")
@click.option("--public-url", help="Base URL as devices see it.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Server certificate (PEM).")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key (PEM).")
@click.option("--mqtt-public-host", help="Host of the broker as devices see it.")
@click.option("--mqtt-public-port", type=click.IntRange(1, 65535), help="Port of the broker as devices see it.")
@click.option(
    "--collector/--no-collector", "is_collecting", default=True, help="Collect telemetry in this process too."
)
@click.option("--admin-token-file", type=click.Path(path_type=Path), help="Where the first admin token goes (0600).")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="What is logged.")
def serve(
    config_file: Path | None, admin_token_file: Path | None, log_level: str, is_collecting: bool, **settings: Any
) -> None:
    """Run the registry until SIGTERM or SIGINT.

    The first start makes an admin token and prints it once; lose it, and `tokens recover` makes another. A line
    `listening on URL` is printed when requests are being answered.
    """
    from cloud_registry.api.app import create_app
    from cloud_registry.assembly import build_services
    from cloud_registry.serving import listen, run_server, url_of

    start_logging(log_level)
    config = read_config(config_file, settings)
    listener = listen(config)
    try:
        url = url_of(config, listener)
        services = build_services(replace(config, public_url=config.public_url or url))
        try:
            _first_admin(services, admin_token_file)
            app = create_app(services)
            with _collecting(services) if is_collecting and config.mqtt.host else contextlib.nullcontext():
                run_server(app, config, listener, lambda: click.echo(f"listening on {url}"))
        finally:
            services.close()
    finally:
        listener.close()
    click.echo("stopped")


@contextlib.contextmanager
def _collecting(services: "Services") -> Iterator[None]:
    """A collector in the background."""
    from cloud_registry.collect.service import Collector

    collector = Collector(services.config, services.fleet, services.clock, services.hub)
    try:
        collector.start()
        yield
    finally:
        collector.close()


@click.command()
@config_options
def migrate(config_file: Path | None, **settings: Any) -> None:
    """Bring the database's schema up to date; `serve` does it too."""
    from cloud_registry.assembly import open_database

    database = open_database(read_config(config_file, settings))
    try:
        click.echo(f"the database has schema {database.migrate()}")
    finally:
        database.close()


@click.command()
@config_options
@click.argument("sql")
@click.option("--rows", type=click.IntRange(1, QUERY_ROWS_MAX), default=1_000, show_default=True, help="Rows at most.")
@click.option("--url", envvar="LIGHTERMAN_URL", default="", help="Ask this registry instead of the local lake.")
@click.option("--token", envvar="LIGHTERMAN_TOKEN", default="", help="Operator token; better in LIGHTERMAN_TOKEN.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File that holds the token.")
@click.option("--ca-file", type=click.Path(path_type=Path), help="CA certificate of an https registry.")
@json_option
def query(
    sql: str,
    rows: int,
    url: str,
    token: str,
    token_file: Path | None,
    ca_file: Path | None,
    config_file: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run one SELECT over `telemetry`, `predictions` and `reports`.

    Without --url it reads the lake of the local data folder, which may be in use.
    """
    if url:
        from cloud_registry.client import RegistryClient

        with RegistryClient(url, read_token(token, token_file), ca_file=ca_file) as client:
            result = client.query(sql)
    else:
        result = _query_locally(read_config(config_file, settings), sql, rows)
    if as_json:
        print_json(result)
        return
    print_table(result["columns"], result["rows"][:rows])
    if result["truncated"] or len(result["rows"]) > rows:
        click.echo("(there are more rows)", err=True)


def _query_locally(config: "RegistryConfig", sql: str, rows: int) -> dict[str, Any]:
    from cloud_registry.adapters.sql.fleet import SqlFleet
    from cloud_registry.assembly import open_database
    from cloud_registry.query import run_query

    if not config.database_url and not (config.data_dir / "registry.db").is_file():
        hint = "Name the registry's data folder with --data-dir, or a running registry with --url."
        raise EdgeError("config.file-missing", f"there is no registry in {config.data_dir}", hint)
    database = open_database(config)
    try:
        return run_query(SqlFleet(database), config.lake_dir, sql, rows).to_json()
    finally:
        database.close()


def read_config(config_file: Path | None, settings: dict[str, Any]) -> "RegistryConfig":
    """The configuration with the options of `config_options` laid over it.

    Raises:
        EdgeError: `config.*`.
    """
    from cloud_registry.config import load_config

    renamed = {
        name.replace("mqtt_public_", "mqtt_public.") if name.startswith("mqtt_public_") else name: value
        for name, value in settings.items()
    }
    overrides = {
        f"mqtt.{name.removeprefix('mqtt_')}" if name.startswith("mqtt_") and "." not in name else name: value
        for name, value in renamed.items()
    }
    return load_config(config_file, overrides=overrides)


def start_logging(level: str) -> None:
    """Log to standard error."""
    logging.basicConfig(level=level.upper(), format=_LOG_FORMAT)
    if level != "debug":
        # httpx and alembic tell of every request and every table at "info".
        for name in ("httpx", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)


def _first_admin(services: "Services", file: Path | None) -> None:
    """Make and show the first admin token. The file is opened before, so that no token is made that nobody can see."""
    if file is None:
        token = services.operators.create_first_admin()
        if token is not None:
            click.echo(f"admin token: {token}")
        return
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EdgeError("config.invalid", f"cannot write the admin token to {file}: {error.strerror}") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as opened:
        token = services.operators.create_first_admin()
        if token is not None:
            os.fchmod(opened.fileno(), 0o600)
            opened.truncate(0)
            opened.write(token + "\n")
            opened.flush()
            os.fsync(opened.fileno())
            click.echo(f"admin token written to {file}")


COMMANDS: Final = (serve, migrate, query)
