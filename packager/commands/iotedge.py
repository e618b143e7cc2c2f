"""`packager iotedge`: what Azure IoT Edge needs to run a module."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, parse_object
from packager.commands.common import FILE, FOLDER, emit, json_option, pairs
from packager.iotedge.limits import CREATE_OPTIONS_BYTES_MAX, START_ORDER_MAX, TEMPLATE_BYTES_MAX
from packager.iotedge.shape import ADDRESS, AGENT, CONTENT, DESIRED, RESTART_POLICIES

if TYPE_CHECKING:
    from packager.iotedge.manifest import Credentials

_STDOUT: Final = Path("-")
_SECRET_MODE: Final = 0o600
_MODE: Final = 0o644


@click.group("iotedge")
def iotedge() -> None:
    """Deployment manifests for Azure IoT Edge."""


@iotedge.command("manifest")
@click.argument("bundle", metavar="BUNDLE_DIR", type=FOLDER)
@click.option("--image", required=True, metavar="IMAGE_REF", help="OCI image of the module, best with its digest.")
@click.option("--module", default="", metavar="NAME", help="Name of the module; the model's name by default.")
@click.option("--env", multiple=True, metavar="K=V", help="Environment variable of the module; no place for secrets.")
@click.option(
    "--create-option", multiple=True, metavar="K=V", help="One create option: a dotted path, and JSON or text."
)
@click.option("--create-options-file", type=FILE, help="Create options as a JSON object; --create-option wins over it.")
@click.option("--restart-policy", type=click.Choice(RESTART_POLICIES), help="always, for a new module, by default.")
@click.option(
    "--startup-order", type=click.IntRange(0, START_ORDER_MAX), help="The lower starts first; last by default."
)
@click.option("--route", multiple=True, metavar="NAME=ROUTE", help="Route of the hub; all to $upstream by default.")
@click.option(
    "--registry-credentials",
    multiple=True,
    metavar="ID=ADDRESS:USER_ENV:PASSWORD_ENV",
    help="Registry of the image, and the environment variables that hold user and password.",
)
@click.option("--template", type=FILE, help="Manifest to put the module into; what is not named here stays.")
@click.option("--out", type=FILE, default=_STDOUT, show_default=True, help="File to write; - prints it.")
@json_option
def manifest(bundle: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Write a deployment manifest that has the IoT Edge runtime run a module for a bundle.

    \b
    Examples:
      packager iotedge manifest bundle --image registry.example/edge/lighterman:1 --out deployment.json
      packager iotedge manifest bundle --image registry.example/edge/lighterman:1 --template deployment.json \\
        --create-option HostConfig.Memory=268435456 --out deployment.json

    The module's twin names the model, its version and the digest of the bundle's index. That is a hint: devices install
    what signed metadata say and nothing else. A manifest with passwords goes to a file of its owner alone.
    """
    from packager.files import write_durably
    from packager.iotedge.manifest import ModuleRequest, Release, make_manifest, module_name, option_tree
    from packager.layout import Layout

    layout = Layout(bundle)
    release = Release(layout.model, layout.version, layout.index_digest)
    file, single = options["create_options_file"], pairs(options["create_option"], "--create-option")
    base = None if file is None else _read_object(file, "create-options-file", CREATE_OPTIONS_BYTES_MAX)
    request = ModuleRequest(
        image=options["image"],
        name=options["module"],
        env=pairs(options["env"], "--env"),
        create_options=option_tree(single, base) if single or base is not None else None,
        restart_policy=options["restart_policy"] or "",
        startup_order=options["startup_order"],
        routes=pairs(options["route"], "--route"),
        credentials=_credentials(options["registry_credentials"]),
    )
    path = options["template"]
    template = None if path is None else _read_object(path, "template", TEMPLATE_BYTES_MAX)
    made = make_manifest(release, request, template)
    has_secrets = bool(made[CONTENT][AGENT][DESIRED]["runtime"]["settings"].get("registryCredentials"))
    text = json.dumps(made, indent=2, ensure_ascii=False)
    facts: JsonObject = {
        "module": module_name(release, request),
        "model": release.model,
        "version": release.version,
        "index": str(release.index),
        "image": request.image,
        "file": None if out == _STDOUT else str(out),
    }
    if out == _STDOUT:
        if has_secrets:
            why = "the manifest has credentials of a registry, which are not printed"
            raise EdgeError("config.invalid", why, "Give --out FILE; only its owner may read it.")
        emit(as_json, {**facts, "manifest": made}, [text])
        return
    write_durably(out, f"{text}\n".encode(), _SECRET_MODE if has_secrets else _MODE)
    emit(as_json, facts, [f"wrote {out}: module {facts['module']} for {release.model}:{release.version}"])


def _read_object(path: Path, what: str, bytes_max: int) -> JsonObject:
    from packager.files import disk_errors

    with disk_errors(path), path.open("rb") as file:
        data = file.read(bytes_max + 1)
    try:
        return parse_object(data, f"{what} {path}", bytes_max)
    except ContractError as error:
        raise EdgeError("config.invalid", error.detail, error.hint) from None


def _credentials(values: Iterable[str]) -> "dict[str, Credentials]":
    """Credentials by name, their values taken from the environment, so that no command line shows them.

    Raises:
        EdgeError: `config.invalid`; its text has the names of variables and never their values.
    """
    from packager.iotedge.manifest import Credentials

    flag = "--registry-credentials"
    hint = "Give ID=ADDRESS:USER_ENV:PASSWORD_ENV, with the names of environment variables, not what they hold."
    result: dict[str, Credentials] = {}
    for given in values:
        name, _, text = given.partition("=")
        # From the right, because an address may have a port.
        address, *variables = text.rsplit(":", 2)
        if not name or len(variables) != 2 or not all(variables) or not ADDRESS.fullmatch(address):
            raise EdgeError("config.invalid", f"{flag} is not of the form it has to have", hint)
        if name in result:
            raise EdgeError("config.invalid", f"{flag} names {name!r} twice")
        found = [os.environ.get(variable, "") for variable in variables]
        for what, value in zip(("user", "password"), found, strict=True):
            # Unsaid which variable: it may be the password itself, given by mistake.
            if not value:
                raise EdgeError("config.invalid", f"{flag} {name}: the variable named for the {what} is not set", hint)
        result[name] = Credentials(address, *found)
    return result
