"""`packager ci`: pipeline files."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

from pathlib import Path

import click

from edge_contract.errors import EdgeError
from packager.ci import SYSTEMS, pipeline
from packager.commands.common import FILE, emit, json_option
from packager.files import write_durably
from packager.spec import SPEC_FILE


@click.command("ci")
@click.argument("system", type=click.Choice(sorted(SYSTEMS)))
@click.option("--spec", default=SPEC_FILE, show_default=True, help="Description file in the repository.")
@click.option("--condition", default="*", show_default=True, help="Devices that the pipeline deploys to.")
@click.option("--python", default="3.12", show_default=True, help="Version of Python.")
@click.option("--requirement", default="lighterman[packager]", show_default=True, help="What pip installs.")
@click.option("--out", type=FILE, help="File to write; where the system looks for it by default; - prints it.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@json_option
def ci(
    system: str, spec: str, condition: str, python: str, requirement: str, out: Path | None, force: bool, as_json: bool
) -> None:
    """Write a pipeline file for GitHub Actions or Azure Pipelines that ships the model on every push to main.

    \b
    Example:
      packager ci github --condition "tags.site = 'test'"
    """
    text = pipeline(system, spec, condition, python, requirement)
    if out == Path("-"):
        click.echo(text, nl=False)
        return
    target = out or Path(SYSTEMS[system])
    if target.exists() and not force:
        raise EdgeError("config.invalid", f"{target} exists already", "Replace it with --force.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeError("device.disk-error", f"cannot make {target.parent}: {error.strerror}") from None
    write_durably(target, text.encode("utf-8"))
    emit(as_json, {"file": str(target)}, [f"wrote {target}"])
