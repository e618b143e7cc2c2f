"""`cloud-registry trust`: what is left to do on the registry's own machine when keys of authors are gone for good."""

from pathlib import Path
from typing import Any

import click

from cloud_registry.cli.options import json_option
from cloud_registry.cli.output import print_json
from cloud_registry.cli.server import config_options, read_config
from edge_contract.errors import EdgeError


@click.group("trust")
def trust() -> None:
    """Trust metadata, on the registry's own machine."""


@trust.command("reset")
@config_options
@click.option(
    "--yes", "is_sure", is_flag=True, help="Do it: every bundle has to be signed, every device enrolled anew."
)
@json_option
def reset(config_file: Path | None, is_sure: bool, as_json: bool, **settings: Any) -> None:
    """Forget both roots and everything that is signed, because fewer root keys are left than a new root needs.

    Stop the registry first. Afterwards: `packager keys init` with a new folder, `packager push` for every bundle that
    is still wanted, and `edge-agent enroll --force` on every device; until then devices keep what they run. Bundles,
    models, deployments and the list of devices stay.
    """
    from cloud_registry.adapters.sql.documents import SqlDocuments
    from cloud_registry.assembly import open_database

    if not is_sure:
        raise EdgeError(
            "config.invalid",
            "this cannot be taken back: every bundle has to be signed and every device enrolled anew",
            "If that is what you want, add --yes.",
        )
    database = open_database(read_config(config_file, settings))
    try:
        documents = SqlDocuments(database)
        forgotten = sum(len(documents.versions(name)) for name in ("image", "director"))
        for name in ("image", "director"):
            documents.remove_repository(name)
    finally:
        database.close()
    if as_json:
        print_json({"forgotten": forgotten})
    else:
        click.echo(f"forgotten: {forgotten} trust documents; set up trust anew with `packager keys init`")


COMMANDS = (trust,)
"""For the command line."""
