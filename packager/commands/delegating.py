"""`packager keys delegate`, `undelegate`, `withdraw` and `bundles`: who may sign for which model, and what is."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_contract.errors import EdgeError
from packager.commands.common import (
    FILE,
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

if TYPE_CHECKING:
    from packager.keys import RingMaker
    from packager.tufmake import RoleKeys


@click.command("delegate")
@click.argument("model")
@registry_options
@key_options
@click.option("--public", "public_file", type=FILE, help="Somebody else's keys: the file that `keys make` wrote.")
@click.option("--into", type=FOLDER, help="Make the keys in this folder, to hand to others; else in the first --keys.")
@click.option("--count", type=int, default=1, show_default=True, help="How many keys to make.")
@click.option("--threshold", type=int, default=1, show_default=True, help="How many of them have to sign a bundle.")
@click.option("--key", "uris", multiple=True, metavar="URI", help="A key on a token or in a key service instead.")
@click.option("--scheme", type=click.Choice(("ed25519", "ecdsa-p256")), default="ed25519", show_default=True)
@click.option("--insecure-no-passphrase", is_flag=True, help="Write keys unencrypted. For tests and demonstrations.")
@expires_option
@json_option
def delegate(model: str, as_json: bool, key_folders: tuple[Path, ...], **options: Any) -> None:
    """Give MODEL keys of its own: from here on they alone sign its bundles, and can sign nothing else.

    \b
    Examples:
      packager keys delegate digits --keys ~/lighterman-keys --into ~/digits-keys
      packager keys delegate digits --keys ~/lighterman-keys --public model.digits.public.json

    Needs the image-targets keys. Bundles that are signed already move along; then the new keys have to be at hand too.
    """
    from packager.delegate import delegate as run
    from packager.keys import read_public

    folders = list(require_folders(key_folders))
    maker = ring_maker(options["passphrase_file"], options["insecure_no_passphrase"])
    role = f"model.{model}"
    if options["public_file"] is not None:
        named, keys = read_public(options["public_file"])
        if named != role:
            raise EdgeError("config.invalid", f"{options['public_file']} has keys for {named}, not for {role}")
    else:
        into = options["into"] or folders[0]
        keys = _made(into, role, maker, options)
        folders += [into] if into != folders[0] else []
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        result = run(client, maker(*folders), model, keys, options["expires_days"], make_reporter(as_json))
    if options["into"] is not None:
        _hand_over_root(folders[0], options["into"])
    lines = [f"{result['threshold']} of {len(result['keyids'])} keys sign {model} now; {result['moved']} bundles moved"]
    if not result["is_listed"]:
        lines.append("  nothing of it can be installed until they sign its first bundle")
    emit(as_json, result, lines)


def _made(into: Path, role: str, maker: "RingMaker", options: dict[str, Any]) -> "RoleKeys":
    from packager.keys import KeyPlan, make, read_public

    plan = KeyPlan(
        counts={role: options["count"]},
        thresholds={role: options["threshold"]},
        scheme=options["scheme"],
        uris={role: options["uris"]} if options["uris"] else {},
    )
    made = make(into, role, plan, maker)
    return read_public(Path(made["public_file"]))[1]


def _hand_over_root(home: Path, into: Path) -> None:
    from packager.files import disk_errors, write_durably
    from packager.tufview import root_file

    name = root_file("image")
    with disk_errors(home / name):
        data = (home / name).read_bytes()
    write_durably(into / name, data)


@click.command("undelegate")
@click.argument("model")
@registry_options
@key_options
@click.option("--drop-bundles", is_flag=True, help="Do not take its bundles over: right when its key was stolen.")
@expires_option
@json_option
def undelegate(model: str, as_json: bool, key_folders: tuple[Path, ...], drop_bundles: bool, **options: Any) -> None:
    """Take MODEL's own keys away: image-targets signs its bundles again.

    What is signed for it is taken over, unless --drop-bundles: then push again what is good.
    """
    from packager.delegate import undelegate as run

    maker = ring_maker(options["passphrase_file"])
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        ring = maker(*require_folders(key_folders))
        result = run(client, ring, model, not drop_bundles, options["expires_days"], make_reporter(as_json))
    line = (
        f"{model} has no keys of its own any more: {result['taken_over']} bundles taken over, {result['dropped']} not"
    )
    emit(as_json, result, [line])


@click.command("withdraw")
@click.argument("reference", metavar="MODEL:VERSION")
@registry_options
@key_options
@expires_option
@json_option
def withdraw(reference: str, as_json: bool, key_folders: tuple[Path, ...], **options: Any) -> None:
    """List a model version no longer, so that no device installs it; needs the keys that sign its model.

    Devices that run it go on running it until another version is assigned.
    """
    from packager.delegate import withdraw as run

    model, mark, number = reference.partition(":")
    if not mark or not number.isascii() or not number.isdecimal():
        raise EdgeError("config.invalid", f"{reference!r} is not of the form MODEL:VERSION")
    maker = ring_maker(options["passphrase_file"])
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        ring = maker(*require_folders(key_folders))
        result = run(client, ring, model, int(number), options["expires_days"], make_reporter(as_json))
    emit(as_json, result, ["withdrawn:", *(f"  {path}" for path in result["withdrawn"])])


@click.command("bundles")
@registry_options
@key_options
@json_option
def bundles(as_json: bool, key_folders: tuple[Path, ...], **options: Any) -> None:
    """List everything that is signed and who may sign it, verified from the pinned root in --keys."""
    from packager.delegate import bundles as run
    from packager.inspection import table

    maker = ring_maker(options["passphrase_file"])
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        result = run(client, maker(*require_folders(key_folders)))
    rows: list[tuple[str, ...]] = [("model", "version", "platform", "digest", "listed in")]
    rows += [
        (item["model"], str(item["version"]), item["platform"], item["digest"][:19], item["role"])
        for item in result["bundles"]
    ]
    lines = [
        f"{role['role']}: {role['threshold']} of {', '.join(keyid[:12] for keyid in role['keyids'])}"
        for role in result["roles"]
    ]
    emit(as_json, result, [*lines, *table(rows)])
