"""`packager keys`: the author's keys."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
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
    stacked,
)
from packager.commands.delegating import bundles, delegate, undelegate, withdraw

if TYPE_CHECKING:
    from packager.tufmake import RoleKeys

_ROLES: Final = ("image-root", "image-targets", "director-root")
_SCHEMES: Final = ("ed25519", "ecdsa-p256")

scheme_option = click.option("--scheme", type=click.Choice(_SCHEMES), default="ed25519", show_default=True)
uri_option = click.option(
    "--key",
    "uris",
    multiple=True,
    metavar="ROLE=URI",
    help="A key on a token or in a key service instead of a file: hsm:2?label=NAME, awskms:…, azurekms:…, gcpkms:….",
)
online_option = click.option(
    "--online-key",
    "online",
    multiple=True,
    metavar="REPOSITORY/ROLE=URI",
    help="A key that the registry itself uses, as it reaches it: image/timestamp=hsm:3?label=NAME.",
)
new_files_options = stacked(
    click.option(
        "--insecure-no-passphrase", is_flag=True, help="Write keys unencrypted. For tests and demonstrations."
    ),
)


@click.group("keys")
def keys() -> None:
    """Make, replace, renew, delegate and list signing keys.

    Three kinds of keys, none of which ever leaves your side: image-root says who may sign, image-targets signs what is
    genuine, director-root lets the registry assign. A model may get keys of its own. Keep the root keys apart and
    offline when it matters.
    """


keys.add_command(delegate)
keys.add_command(undelegate)
keys.add_command(withdraw)
keys.add_command(bundles)


@keys.command("init")
@click.argument("folder", type=FOLDER)
@registry_options
@click.option("--root-keys", type=int, default=1, show_default=True, help="Root keys of each repository.")
@click.option("--root-threshold", type=int, default=1, show_default=True, help="Signatures a new root needs.")
@click.option("--targets-keys", type=int, default=1, show_default=True, help="Keys that may sign bundles.")
@click.option("--targets-threshold", type=int, default=1, show_default=True, help="Signatures a bundle needs.")
@uri_option
@online_option
@scheme_option
@click.option("--passphrase-file", type=FILE, help="File with the pass phrase.")
@new_files_options
@expires_option
@json_option
def init(folder: Path, as_json: bool, insecure_no_passphrase: bool, **options: Any) -> None:
    """Make keys in FOLDER and set up the trust of a new registry with them.

    \b
    Examples:
      packager keys init ~/lighterman-keys --url http://127.0.0.1:8400
      packager keys init ~/lighterman-keys --key "image-root=hsm:1?label=vault" --key "director-root=hsm:2?label=vault"

    Needs an admin's token, once. A run that was cut is taken up by running it again. Keep a copy of FOLDER: nobody
    else can sign for this registry's devices. A token's PIN comes from LIGHTERMAN_KEY_PIN, LIGHTERMAN_KEY_PIN_FILE or a
    prompt.
    """
    from packager.keys import KeyPlan, set_up

    root = options["root_keys"], options["root_threshold"]
    targets = options["targets_keys"], options["targets_threshold"]
    numbers = {"image-root": root, "image-targets": targets, "director-root": root}
    plan = KeyPlan(
        counts={role: count for role, (count, _) in numbers.items()},
        thresholds={role: threshold for role, (_, threshold) in numbers.items()},
        scheme=options["scheme"],
        expires_days=options["expires_days"],
        uris=_uris(options["uris"], _ROLES),
        online=_online(options["online"]),
    )
    maker = ring_maker(options["passphrase_file"], insecure_no_passphrase)
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        result = set_up(client, folder, plan, maker, make_reporter(as_json))
    said = "trust is set up" if result["published"] else "trust was set up before"
    emit(as_json, result, [said, *_lines(result)])


@keys.command("make")
@click.argument("folder", type=FOLDER)
@click.option("--role", required=True, help="image-root, image-targets, director-root or model.NAME.")
@click.option("--count", type=int, default=1, show_default=True, help="How many keys.")
@click.option("--threshold", type=int, default=1, show_default=True, help="How many of them have to sign.")
@uri_option
@scheme_option
@click.option("--passphrase-file", type=FILE, help="File with the pass phrase.")
@new_files_options
@json_option
def make(folder: Path, role: str, as_json: bool, insecure_no_passphrase: bool, **options: Any) -> None:
    """Make keys in FOLDER that somebody else is to introduce, and a file with their public halves.

    \b
    Example, by the team that builds the model, then by whoever holds image-targets:
      packager keys make ~/digits-keys --role model.digits
      packager keys delegate digits --public model.digits.public.json --keys ~/lighterman-keys

    Only ROLE.public.json goes to the other side; what comes back is image.root.json, to put into FOLDER.
    """
    from packager.keys import KeyPlan
    from packager.keys import make as run

    require_roles([role])
    plan = KeyPlan(
        counts={role: options["count"]},
        thresholds={role: options["threshold"]},
        scheme=options["scheme"],
        uris=_uris(options["uris"], (role,)),
    )
    result = run(folder, role, plan, ring_maker(options["passphrase_file"], insecure_no_passphrase))
    emit(as_json, result, [f"{len(result['keys'])} keys for {role}; hand over {result['public_file']}"])


@keys.command("rotate")
@registry_options
@key_options
@click.option(
    "--role",
    "roles",
    multiple=True,
    help="image-root, image-targets, director-root, model.NAME, or online for the registry's own; the first three by "
    "default.",
)
@click.option("--count", type=click.IntRange(1), help="How many new keys; as many as there were by default.")
@click.option("--threshold", type=click.IntRange(1), help="How many signatures the role needs from now on.")
@click.option("--keep", "is_keeping", is_flag=True, help="Go on trusting this folder's own keys; only add and drop.")
@click.option("--drop", "dropped", multiple=True, metavar="KEYID", help="Trust this key no longer (its beginning).")
@click.option("--public", "public_files", type=FILE, multiple=True, help="Trust somebody else's keys (keys make).")
@uri_option
@online_option
@click.option("--afresh", "is_afresh", is_flag=True, help="With online: new keys even if unused ones wait.")
@scheme_option
@expires_option
@json_option
def rotate(as_json: bool, key_folders: tuple[Path, ...], roles: tuple[str, ...], **options: Any) -> None:
    """Replace keys by new ones, with a chain that old and new keys sign.

    \b
    Examples:
      packager keys rotate --role image-targets --keys ~/lighterman-keys
      packager keys rotate --role image-root --count 3 --threshold 2 --keys ~/lighterman-keys
      packager keys rotate --role online --keys ~/lighterman-keys            (an admin's token)

    Devices follow by themselves, at every moment of the change. A run that was cut is taken up by running it again.
    The old keys stay in the folder as retired. docs/trust.md says which to replace after which accident.
    """
    from packager.keychange import Change
    from packager.keychange import rotate as run

    chosen = require_roles(roles or _ROLES)
    dropped = options["dropped"]
    if any(len(start) < 8 for start in dropped):
        raise EdgeError("config.invalid", "--drop needs at least 8 characters of a key's identifier")
    change = Change(
        roles=chosen,
        scheme=options["scheme"],
        expires_days=options["expires_days"],
        count=options["count"],
        threshold=options["threshold"],
        uris=_uris(options["uris"], chosen),
        is_keeping=options["is_keeping"],
        dropped=dropped,
        public=_public(options["public_files"], chosen),
        online=_online(options["online"]),
        is_afresh=options["is_afresh"],
    )
    maker = ring_maker(options["passphrase_file"])
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        result = run(client, maker(*require_folders(key_folders)), change, make_reporter(as_json))
    emit(as_json, result, [f"new keys for {', '.join(result['rotated'])}", *_lines(result)])


@keys.command("renew")
@registry_options
@key_options
@expires_option
@json_option
def renew(as_json: bool, key_folders: tuple[Path, ...], **options: Any) -> None:
    """Sign roots, targets and every list of bundles anew, before they expire (or after).

    What has keys of other people only is left to them, and named.
    """
    from packager.keychange import renew as run

    maker = ring_maker(options["passphrase_file"])
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        ring = maker(*require_folders(key_folders))
        result = run(client, ring, options["expires_days"], make_reporter(as_json))
    said = ["metadata renewed: " + ", ".join(result["renewed"])]
    said += [f"left to others: {', '.join(result['left'])}"] if result["left"] else []
    emit(as_json, result, [*said, *_lines(result)])


@keys.command("list")
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@json_option
def list_keys(folders: tuple[Path, ...], as_json: bool) -> None:
    """Show the keys in FOLDERS, and when the roots there expire. Reads no private key."""
    from packager.keys import describe
    from packager.keystore import KeyFolder

    found = [describe(KeyFolder.open(folder)) for folder in folders]
    emit(as_json, {"folders": found}, [line for item in found for line in _lines(item)])


def require_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """Names of roles as they were given.

    Raises:
        EdgeError: `config.invalid` for an unknown one.
    """
    from packager.keystore import ONLINE, is_role

    chosen = tuple(roles)
    for role in chosen:
        if role != ONLINE and not is_role(role):
            known = f"Known: {', '.join(_ROLES)}, {ONLINE}, model.NAME."
            raise EdgeError("config.invalid", f"there is no role {role!r}", known)
    return chosen


def _uris(values: Iterable[str], roles: Iterable[str]) -> dict[str, tuple[str, ...]]:
    result: dict[str, tuple[str, ...]] = {}
    known = tuple(roles)
    for value in values:
        role, mark, uri = value.partition("=")
        if not mark or role not in known or not uri:
            raise EdgeError("config.invalid", f"--key {value!r} is not of the form ROLE=URI", f"ROLE: {known}.")
        result[role] = (*result.get(role, ()), uri)
    return result


def _online(values: Iterable[str]) -> tuple[dict[str, str], ...]:
    result = []
    for value in values:
        name, mark, uri = value.partition("=")
        repository, slash, role = name.partition("/")
        if not mark or not slash or not uri:
            raise EdgeError("config.invalid", f"--online-key {value!r} is not of the form REPOSITORY/ROLE=URI")
        result.append({"repository": repository, "role": role, "uri": uri})
    return tuple(result)


def _public(paths: Iterable[Path], roles: Iterable[str]) -> "dict[str, RoleKeys]":
    from packager.keys import read_public

    result = {}
    for path in paths:
        role, public = read_public(path)
        if role not in roles:
            raise EdgeError("config.invalid", f"{path} has keys for {role}, which is not to be changed")
        result[role] = public
    return result


def _lines(described: JsonObject) -> list[str]:
    from packager.inspection import table

    shown = [key for key in described["keys"] if key["use"] != "retired"]
    rows: list[tuple[str, ...]] = [("role", "use", "key", "scheme", "where")]
    rows += [(key["role"], key["use"], key["keyid"][:12], str(key["scheme"]), key["uri"]) for key in shown]
    lines = [described["folder"], *table(rows)]
    retired = len(described["keys"]) - len(shown)
    if retired:
        lines.append(f"  and {retired} retired")
    for name, root in described["roots"].items():
        lines.append(f"  {name} root {root['version']}, expires {root['expires']}")
    return lines
