"""Command line of the packager. Exit codes: 0 done, 1 devices did not confirm, others by category of the error."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

import json
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

import click

from edge_contract.codes import EXIT_BY_CATEGORY, Category
from edge_contract.errors import EdgeError
from packager.commands.azureml import azureml
from packager.commands.bundle import build, inspect, verify
from packager.commands.delta import delta
from packager.commands.image import module
from packager.commands.iotedge import iotedge
from packager.commands.keys import keys
from packager.commands.pipeline import ci
from packager.commands.publish import deploy, push, register, ship
from packager.commands.service import service

_INTERRUPTED = 130
_TERMINATED = 143


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lighterman", prog_name="packager")
def cli() -> None:
    """Build, sign, publish and ship models to devices.

    \b
    The way of a model:
      packager keys init KEYS      once for a registry: your keys, and the trust of its devices
      packager register            model files become the next version
      packager build               a reproducible bundle, proved on its golden vectors
      packager push                upload, and sign with your keys
      packager deploy              to the devices that a condition matches
      packager ship                all of these in one go
      packager delta               small updates for what the devices hold already

    \b
    Settings from the environment:
      LIGHTERMAN_URL, LIGHTERMAN_TOKEN            the registry
      LIGHTERMAN_KEYS                             folder of keys
      LIGHTERMAN_KEY_PASSPHRASE (or …_FILE)       pass phrase of the keys

    \b
    Exit codes: 0 done; 1 devices refused or did not answer in time; 2 configuration; 3 trust; 4 artifact;
    5 model; 6 disk or memory; 7 network; 8 registry; 70 a bug; 130 interrupted; 143 terminated.
    """


iotedge.add_command(module)
for _command in (keys, register, build, inspect, verify, push, deploy, ship, delta, ci, iotedge, service, azureml):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; those of the process when none.

    Returns:
        The exit code.
    """
    if arguments is None:
        signal.signal(signal.SIGTERM, _end)
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        result = cli.main(args=given, prog_name="packager", standalone_mode=False)
    except EdgeError as error:
        _complain(error, as_json)
        return error.exit_code
    except click.ClickException as error:
        if as_json:
            _complain(EdgeError("config.invalid", error.format_message(), "See packager --help."), True)
        else:
            error.show()
        return EXIT_BY_CATEGORY[Category.CONFIG]
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return _INTERRUPTED
    # Exit code 1 says something about devices, so a bug must not end with it.
    except Exception as error:  # noqa: BLE001
        click.echo(traceback.format_exc(), err=True)
        bug = EdgeError("internal.bug", f"{type(error).__name__}: {error}", "Please report the traceback above.")
        _complain(bug, as_json)
        return bug.exit_code
    return result if isinstance(result, int) else 0


def _end(_signum: int, _frame: FrameType | None) -> None:
    """End as after an interrupt: temporary folders, which may hold whole models, are removed on the way."""
    raise SystemExit(_TERMINATED)


def _complain(error: EdgeError, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": error.to_json()}, ensure_ascii=False))
        return
    click.echo(f"error: {error.detail} [{error.code}]", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)


if __name__ == "__main__":
    sys.exit(main())
