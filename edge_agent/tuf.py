"""The commands `edge-agent tuf`: the agent's verifier as a plain client of any TUF repository."""

import time
from pathlib import Path
from typing import Any, Final

import click

from edge_contract.errors import EdgeError

_EPILOG: Final = """\b
Example:
  edge-agent tuf --metadata-dir trust init 1.root.json
  edge-agent tuf --metadata-dir trust --metadata-url https://example.org/metadata refresh
  edge-agent tuf --metadata-dir trust --metadata-url https://example.org/metadata \\
    --target-base-url https://example.org/targets --target-dir files \\
    --target-name a.txt --target-name folder/b.txt download

\b
Exit codes: 0 done, 1 anything else; what and why stands on standard error.
"""


class _Group(click.Group):
    """Ends every error with exit code 1, as suites for TUF clients expect."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgeError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Group, epilog=_EPILOG)
@click.option(
    "--metadata-dir",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory of trusted metadata: root.json, timestamp.json, and so on; role names are percent-encoded.",
)
@click.option("--metadata-url", help="Where the repository's timestamp.json is.")
@click.option("--target-name", "target_names", multiple=True, help="Target path to download; may be repeated.")
@click.option("--target-base-url", help="Where target paths begin.")
@click.option(
    "--target-dir",
    type=click.Path(path_type=Path),
    help="Directory for verified files, each named by its percent-encoded target path.",
)
def tuf(**_: object) -> None:
    """Drive the agent's verifier as a plain client of any TUF repository.

    This is for judging the verifier: with it, suites of tests for TUF clients can be run against the code that decides
    what a device trusts. It touches neither the agent nor its data. Options stand before the command.

    Metadata is verified by the TUF specification 1.0 and written as it verifies; the clock is the system's. Downloads
    go on where they were cut. A file that is there already and matches is not fetched again.
    """


@tuf.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.pass_context
def init(ctx: click.Context, root: Path) -> None:
    """Begin to trust a repository by its root metadata, the file ROOT.

    Get ROOT from somebody you trust; it may be old, newer ones are followed. Nothing is asked of the repository.
    """
    from edge_agent.trust.client import begin

    folder = _option(ctx, "metadata_dir")
    click.echo(f"root version {begin(folder, root)} is trusted in {folder}")


@tuf.command()
@click.pass_context
def refresh(ctx: click.Context) -> None:
    """Bring trusted metadata up to date, or say why not.

    What was trusted before stays when the repository's metadata is refused.
    """
    from edge_agent.trust.client import TufClient

    client = TufClient(_option(ctx, "metadata_dir"), _option(ctx, "metadata_url"))
    try:
        versions = client.refresh(_now_ms())
    finally:
        client.close()
    click.echo(", ".join(f"{role} {version}" for role, version in versions.items()))


@tuf.command()
@click.pass_context
def download(ctx: click.Context) -> None:
    """Bring metadata up to date, find each --target-name, and fetch what is not there yet.

    Every target is tried, unless the network is down; one that fails makes the exit code 1.
    """
    from edge_agent.trust.client import TufClient
    from edge_agent.trust.download import TargetFolder
    from edge_agent.trust.remote import RemoteFolder

    names = _option(ctx, "target_names")
    client = TufClient(_option(ctx, "metadata_dir"), _option(ctx, "metadata_url"))
    remote = RemoteFolder(_option(ctx, "target_base_url"))
    targets = TargetFolder(_option(ctx, "target_dir"), remote)
    is_failed = False
    try:
        client.refresh(_now_ms())
        for name in dict.fromkeys(names):
            try:
                path, is_new = client.download(name, targets)
            except EdgeError as error:
                if error.code.startswith(("network.", "device.")):
                    raise
                is_failed = True
                click.echo(f"error: {error}", err=True)
            else:
                click.echo(f"{path}{'' if is_new else '  (was there already)'}")
    finally:
        remote.close()
        client.close()
    ctx.exit(int(is_failed))


def _option(ctx: click.Context, name: str) -> Any:
    """An option of the group, which this command needs."""
    value = (ctx.parent or ctx).params[name]
    if not value:
        option = f"--{'target-name' if name == 'target_names' else name.replace('_', '-')}"
        raise EdgeError("config.invalid", f"{option} is missing", "It stands before the command: see edge-agent tuf -h")
    return value


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
