"""`packager keys`: the author's keys."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

from pathlib import Path
from typing import Any

import click

from edge_contract.jsonio import JsonObject
from packager.commands.common import (
    FOLDER,
    emit,
    expires_option,
    json_option,
    key_options,
    make_reporter,
    registry,
    registry_options,
    require_folders,
    ring_maker,
)

_ROLES = ("image-root", "image-targets", "director-root")
_SCHEMES = ("ed25519", "ecdsa-p256")


@click.group("keys")
def keys() -> None:
    """Make, replace, renew and list signing keys.

    Three kinds of keys, none of which ever leaves your side: image-root says who may sign, image-targets signs what is
    genuine, director-root lets the registry assign. Keep the root keys apart and offline when it matters.
    """


@keys.command("init")
@click.argument("folder", type=FOLDER)
@registry_options
@click.option("--root-keys", type=int, default=1, show_default=True, help="Root keys of each repository.")
@click.option("--root-threshold", type=int, default=1, show_default=True, help="Signatures a new root needs.")
@click.option("--targets-keys", type=int, default=1, show_default=True, help="Keys that may sign bundles.")
@click.option("--targets-threshold", type=int, default=1, show_default=True, help="Signatures a bundle needs.")
@click.option("--scheme", type=click.Choice(_SCHEMES), default="ed25519", show_default=True)
@click.option("--passphrase-file", type=click.Path(path_type=Path, dir_okay=False), help="File with the pass phrase.")
@click.option("--insecure-no-passphrase", is_flag=True, help="Write keys unencrypted. For tests and demonstrations.")
@expires_option
@json_option
def init(folder: Path, as_json: bool, insecure_no_passphrase: bool, **options: Any) -> None:
    """Make keys in FOLDER and set up the trust of a new registry with them.

    \b
    Example:
      packager keys init ~/lighterman-keys --url http://127.0.0.1:8400

    Needs an admin's token, once. A run that was cut is taken up by running it again. Keep a copy of FOLDER: nobody
    else can sign for this registry's devices.
    """
    from packager.keys import KeyPlan, set_up

    plan = KeyPlan(
        counts={
            "image-root": options["root_keys"],
            "image-targets": options["targets_keys"],
            "director-root": options["root_keys"],
        },
        thresholds={
            "image-root": options["root_threshold"],
            "image-targets": options["targets_threshold"],
            "director-root": options["root_threshold"],
        },
        scheme=options["scheme"],
        expires_days=options["expires_days"],
    )
    maker = ring_maker(options["passphrase_file"], insecure_no_passphrase)
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        result = set_up(client, folder, plan, maker, make_reporter(as_json))
    said = "trust is set up" if result["published"] else "trust was set up before"
    emit(as_json, result, [said, *_lines(result)])


@keys.command("rotate")
@registry_options
@key_options
@click.option("--role", "roles", type=click.Choice(_ROLES), multiple=True, help="Which keys; all of them by default.")
@click.option("--scheme", type=click.Choice(_SCHEMES), default="ed25519", show_default=True)
@expires_option
@json_option
def rotate(as_json: bool, key_folders: tuple[Path, ...], roles: tuple[str, ...], **options: Any) -> None:
    """Replace keys by new ones, with a chain that old and new keys sign.

    Devices follow by themselves, at every moment of the change. A run that was cut is taken up by running it again.
    The old keys stay in the folder as retired.
    """
    from packager.keys import rotate as run

    maker = ring_maker(options["passphrase_file"])
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        ring = maker(*require_folders(key_folders))
        result = run(client, ring, roles or _ROLES, options["scheme"], options["expires_days"], make_reporter(as_json))
    emit(as_json, result, [f"new keys for {', '.join(result['rotated'])}", *_lines(result)])


@keys.command("renew")
@registry_options
@key_options
@expires_option
@json_option
def renew(as_json: bool, key_folders: tuple[Path, ...], **options: Any) -> None:
    """Sign roots, targets and every list of bundles anew, before they expire (or after)."""
    from packager.keys import renew as run

    maker = ring_maker(options["passphrase_file"])
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        ring = maker(*require_folders(key_folders))
        result = run(client, ring, options["expires_days"], make_reporter(as_json))
    emit(as_json, result, ["metadata renewed", *_lines(result)])


@keys.command("list")
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@json_option
def list_keys(folders: tuple[Path, ...], as_json: bool) -> None:
    """Show the keys in FOLDERS, and when the roots there expire. Reads no private key."""
    from packager.keys import describe
    from packager.keystore import KeyFolder

    found = [describe(KeyFolder.open(folder)) for folder in folders]
    emit(as_json, {"folders": found}, [line for item in found for line in _lines(item)])


def _lines(described: JsonObject) -> list[str]:
    from packager.inspection import table

    rows: list[tuple[str, ...]] = [("role", "use", "key", "scheme", "where")]
    rows += [(key["role"], key["use"], key["keyid"][:12], str(key["scheme"]), key["uri"]) for key in described["keys"]]
    lines = [described["folder"], *table(rows)]
    for name, root in described["roots"].items():
        lines.append(f"  {name} root {root['version']}, expires {root['expires']}")
    return lines
