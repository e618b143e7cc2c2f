"""The command `edge-agent serve`. Nothing heavy is imported before it runs."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

import json
import logging
import sys
from pathlib import Path
from typing import Any, Final

import click

from edge_agent.web.limits import DRAIN_S_DEFAULT, DRAIN_S_MAX, LINGER_S_MAX, TOKEN_FILE_BYTES_MAX
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

_LOG_FORMAT: Final = "%(levelname)s %(name)s: %(message)s"
_LEVELS: Final = ("debug", "info", "warning", "error")
_PATH: Final = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", required=False, type=_PATH)
@click.option("--registry", default="", metavar="URL", help="Pull the bundle from this registry instead.")
@click.option("--model", default="", metavar="NAME", help="Which model; with a folder, what it has to be.")
@click.option("--version", type=click.IntRange(1), help="Which version of it.")
@click.option("--token-file", type=_PATH, help="File with a token for the registry; LIGHTERMAN_TOKEN does too.")
@click.option(
    "--access-token-file",
    type=_PATH,
    help="File with the token that clients over TCP have to present; LIGHTERMAN_ACCESS_TOKEN does too.",
)
@click.option("--ca", type=_PATH, help="Certificates to trust for https; the system's by default.")
@click.option("--root", type=_PATH, help="Root metadata that you trust: serve what it leads to a signature for.")
@click.option("--metadata", default="", metavar="DIR|URL", help="Signed metadata; the registry's own by default.")
@click.option("--digest", metavar="SHA256:…", help="Serve the bundle whose index or manifest has this digest alone.")
@click.option("--insecure-unsigned", is_flag=True, help="Serve a bundle that nobody vouches for.")
@click.option("--allow-unproved", is_flag=True, help="Serve a bundle that has no golden vectors.")
@click.option("--allow-pickle", is_flag=True, help="Let scripts load pickles, where the bundle's author wants it too.")
@click.option("--hardware-id", default="", help="This machine's, for bundles that are for certain hardware alone.")
@click.option("--host", default="127.0.0.1", show_default=True, help="IPv4 address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, show_default=True, help="0 for any free one.")
@click.option("--unix", type=_PATH, help="Answer on a unix socket at this path as well.")
@click.option("--work-dir", type=_PATH, help="The one folder to write to; the system's for temporary files by default.")
@click.option("--memory", metavar="AMOUNT", help="What the worker may take, such as 512Mi.")
@click.option("--cpus", metavar="NUMBER", help="Processors that the worker may use, such as 1.5.")
@click.option("--provider", "providers", multiple=True, help="Execution provider that the bundle may use; repeat it.")
@click.option(
    "--linger-seconds",
    type=click.IntRange(0, LINGER_S_MAX),
    default=0,
    show_default=True,
    help="Go on answering so long after SIGTERM, while load balancers take this service out.",
)
@click.option(
    "--drain-seconds",
    type=click.IntRange(1, DRAIN_S_MAX),
    default=DRAIN_S_DEFAULT,
    show_default=True,
    help="How long requests that have begun may take then.",
)
@click.option("--log-level", type=click.Choice(_LEVELS), default="info", show_default=True)
@click.option("--json", "as_json", is_flag=True, is_eager=True, help="Print the start line, and errors, as JSON.")
@click.pass_context
def serve(ctx: click.Context, /, as_json: bool, log_level: str, **options: Any) -> None:
    """Serve one bundle as a plain web service (Open Inference Protocol), away from any device.

    BUNDLE is the folder that `packager build --out` wrote. The bundle is verified, unpacked into a private temporary
    folder, proved on its golden vectors, and only then answers. One line on standard output says so; logs go to
    standard error. SIGTERM and SIGINT let what has begun finish; nothing stays behind.

    \b
    Examples:
      edge-agent serve bundle --digest sha256:0123…
      edge-agent serve --registry https://registry.example --model digits --version 3 --root image.root.json
      edge-agent serve bundle --insecure-unsigned --host 0.0.0.0 --port 8080
    """
    # So early because this has to be before there is any thread.
    from edge_agent.web.first import become_a_child_of_init

    become_a_child_of_init()
    ctx.meta["edge_agent.cli.json"] = as_json
    logging.basicConfig(level=log_level.upper(), format=_LOG_FORMAT, stream=sys.stderr)
    from edge_agent.web.life import serve as serve_bundle

    serve_bundle(_asked(options), lambda facts: _announce(facts, as_json))


def _asked(options: dict[str, Any]) -> Any:
    from edge_agent.web.asked import Asked, make_policy
    from edge_contract.digest import Digest

    digest = options["digest"]
    return Asked(
        bundle=options["bundle"],
        registry=options["registry"],
        model=options["model"],
        version=options["version"] or 0,
        token=_token(options["token_file"], options["registry"]),
        access_token=_access_token(options["access_token_file"]),
        ca=options["ca"],
        root=options["root"],
        metadata=options["metadata"],
        digest=None if digest is None else Digest(digest),
        is_unsigned=options["insecure_unsigned"],
        is_unproved=options["allow_unproved"],
        hardware_id=options["hardware_id"],
        host=options["host"],
        port=options["port"],
        unix=options["unix"],
        work_dir=options["work_dir"],
        linger_s=options["linger_seconds"],
        drain_s=options["drain_seconds"],
        providers=options["providers"],
        policy=make_policy(options["allow_pickle"], options["memory"], options["cpus"]),
    ).check()


def _token(file: Path | None, registry: str) -> str:
    """The token from a file or the environment; the environment's counts only where a registry is named."""
    import os

    if file is None:
        return os.environ.get("LIGHTERMAN_TOKEN", "") if registry else ""
    return _read_token(file)


def _access_token(file: Path | None) -> str:
    """The token for clients, from a file or the environment; one that was meant and is empty must not open the door."""
    import os

    told = os.environ.get("LIGHTERMAN_ACCESS_TOKEN")
    if file is None and told is None:
        return ""
    token = (told or "").strip() if file is None else _read_token(file)
    if not token:
        raise EdgeError("config.invalid", "the token for clients is empty", "Write it there, or leave the option out.")
    return token


def _read_token(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as source:
            return source.read(TOKEN_FILE_BYTES_MAX).strip()
    except (OSError, UnicodeError) as error:
        raise EdgeError("config.file-missing", f"the token file {file} cannot be read: {error}") from None


def _announce(facts: JsonObject, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts))
    else:
        where = f"http://{facts['host']}:{facts['port']}" + (f" and {facts['unix']}" if facts["unix"] else "")
        click.echo(f"serving {facts['model']}:{facts['version']} {facts['manifest']} on {where}")
    # Whoever started this waits for the line.
    sys.stdout.flush()
