"""Command line `cloud-registry`. Exit codes: 0 done, else that of the error's category (`edge_contract.codes`)."""

import sys
from collections.abc import Sequence
from typing import Final

import click

from cloud_registry.cli import collecting, fleet, models, server, trust
from cloud_registry.cli.output import print_error
from edge_contract.errors import EdgeError

_INTERRUPTED: Final = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lighterman", prog_name="cloud-registry")
def cli() -> None:
    """The cloud side of Lighterman: models, deployments, devices, trust metadata and telemetry.

    `serve` runs the registry. The other commands talk to one: with --url and --token, or LIGHTERMAN_URL and
    LIGHTERMAN_TOKEN in the environment. With --json they print JSON, errors too.
    """


for command in (*server.COMMANDS, *collecting.COMMANDS, *fleet.COMMANDS, *models.COMMANDS, *trust.COMMANDS):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run a command; its exit code."""
    try:
        code = cli.main(args=list(arguments), prog_name="cloud-registry", standalone_mode=False)
    except EdgeError as error:
        print_error(error, "--json" in arguments)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return _INTERRUPTED
    return code if isinstance(code, int) else 0
