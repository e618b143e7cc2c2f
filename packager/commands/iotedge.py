"""`packager iotedge`: what Azure IoT Edge needs to run a module."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edge_contract.errors import ContractError, EdgeError
from edge_contract.hub import LOG_LEVELS, HubSettings
from edge_contract.jsonio import JsonObject, parse_object
from packager.commands.common import FILE, FOLDER, emit, json_option, pairs
from packager.iotedge.limits import (
    CREATE_OPTIONS_BYTES_MAX,
    PRIORITY_MAX,
    ROUTE_PRIORITY_MAX,
    ROUTE_SECONDS_MAX,
    START_ORDER_MAX,
    TEMPLATE_BYTES_MAX,
)
from packager.iotedge.shape import ADDRESS, AGENT, CONTENT, DESIRED, RESTART_POLICIES

if TYPE_CHECKING:
    from packager.iotedge.manifest import Credentials, ModuleRequest, Release, RouteTerms

_STDOUT: Final = Path("-")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_MODE: Final = 0o600
_MODE: Final = 0o644


@click.group("iotedge")
def iotedge() -> None:
    """Images of modules and deployment manifests for Azure IoT Edge."""


@iotedge.command("manifest")
@click.argument("bundle", metavar="BUNDLE_DIR", type=FOLDER)
@click.option("--image", required=True, metavar="IMAGE_REF", help="OCI image of the module, best with its digest.")
@click.option("--module", default="", metavar="NAME", help="Name of the module; the model's name by default.")
@click.option("--env", multiple=True, metavar="K=V", help="Environment variable of the module; no place for secrets.")
@click.option(
    "--create-option", multiple=True, metavar="K=V", help="One create option: a dotted path, and JSON or text."
)
@click.option("--create-options-file", type=FILE, help="Create options as a JSON object; --create-option wins over it.")
@click.option("--image-pull-policy", type=click.Choice(["on-create", "never"]), help="on-create by default.")
@click.option("--restart-policy", type=click.Choice(RESTART_POLICIES), help="always, for a new module, by default.")
@click.option(
    "--startup-order", type=click.IntRange(0, START_ORDER_MAX), help="The lower starts first; last by default."
)
@click.option("--route", multiple=True, metavar="NAME=ROUTE", help="Route of the hub; all to $upstream by default.")
@click.option("--route-priority", multiple=True, metavar="NAME=0..9", help="Of a route given here; 0 goes first.")
@click.option("--route-ttl", multiple=True, metavar="NAME=SECONDS", help="How long a message of it may wait.")
@click.option(
    "--registry-credentials",
    multiple=True,
    metavar="ID=ADDRESS:USER_ENV:PASSWORD_ENV",
    help="Registry of the image, and the environment variables that hold user and password.",
)
@click.option(
    "--references", is_flag=True, help="Write $USER_ENV and $PASSWORD_ENV, for a tool that fills them in, not values."
)
@click.option("--poll-ms", type=int, help="The module's setting: mean time between looks at signed metadata.")
@click.option("--report-ms", type=int, help="The module's setting: longest time between reports.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="The module's setting.")
@click.option("--desired-file", type=FILE, help="More desired properties of the module, as a JSON object.")
@click.option("--layered", is_flag=True, help="Write a layered deployment: this module, its routes and nothing else.")
@click.option("--base", type=FILE, help="Manifest that a layered deployment goes on top of; the result is checked.")
@click.option("--configuration", default="", metavar="ID", help="Write a deployment at scale with this identifier.")
@click.option("--target-condition", default="", metavar="QUERY", help="Of a deployment at scale: which devices.")
@click.option("--priority", type=click.IntRange(0, PRIORITY_MAX), help="Of a deployment at scale: larger wins.")
@click.option("--label", multiple=True, metavar="K=V", help="Of a deployment at scale, for people.")
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

      packager iotedge manifest bundle --image registry.example/edge/lighterman:1 --layered --base deployment.json \\
        --configuration digits --target-condition "tags.site='north'" --priority 20 --out layer.json

    The module's twin names the model, its version and the digest of the bundle's index. That is a hint: devices install
    what signed metadata say and nothing else. A manifest with passwords goes to a file of its owner alone.
    """
    from packager.files import write_durably
    from packager.iotedge.manifest import ModuleRequest, Release, module_name, option_tree
    from packager.layout import Layout

    layout = Layout(bundle)
    release = Release(layout.model, layout.version, layout.index_digest)
    file, single = options["create_options_file"], pairs(options["create_option"], "--create-option")
    base = None if file is None else _read_object(file, "create-options-file", CREATE_OPTIONS_BYTES_MAX)
    more = options["desired_file"]
    request = ModuleRequest(
        image=options["image"],
        name=options["module"],
        env=pairs(options["env"], "--env"),
        create_options=option_tree(single, base) if single or base is not None else None,
        restart_policy=options["restart_policy"] or "",
        startup_order=options["startup_order"],
        image_pull_policy=options["image_pull_policy"] or "",
        routes=pairs(options["route"], "--route"),
        route_terms=_route_terms(options["route_priority"], options["route_ttl"]),
        credentials=_credentials(options["registry_credentials"], options["references"]),
        settings=_settings(options),
        desired={} if more is None else _read_object(more, "desired-file", TEMPLATE_BYTES_MAX),
    )
    made, has_secrets = _made(release, request, options)
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


def _made(release: "Release", request: "ModuleRequest", options: Mapping[str, Any]) -> tuple[JsonObject, bool]:
    """(the document that was asked for, whether it has a secret)."""
    from packager.iotedge.layered import WRAPPER, apply_layer, make_configuration, make_layer, require_sized, unwrap
    from packager.iotedge.manifest import make_manifest

    path, base = options["template"], options["base"]
    if base is not None and not options["layered"]:
        raise EdgeError("config.invalid", "--base is for --layered", "A manifest goes into a --template instead.")
    for flag in ("target_condition", "priority", "label"):
        if options[flag] and not options["configuration"]:
            name = flag.replace("_", "-")
            raise EdgeError("config.invalid", f"--{name} is for --configuration", "Give it an identifier.")
    template, around = (None, None) if path is None else unwrap(_read_object(path, "template", TEMPLATE_BYTES_MAX))
    if options["configuration"] and around is not None and len(around) > 1:
        why = f"--configuration: {path} is a deployment at scale already"
        raise EdgeError(
            "config.invalid", why, "Leave the option out; what the deployment says beside its content stays."
        )
    if options["layered"]:
        made = make_layer(release, request, template)
        if base is not None:
            apply_layer(unwrap(_read_object(base, "base", TEMPLATE_BYTES_MAX))[0], made)
    else:
        made = make_manifest(release, request, template)
    has_secrets = _has_secrets(made)
    if options["configuration"]:
        labels = pairs(options["label"], "--label")
        condition, priority = options["target_condition"], options["priority"]
        made = make_configuration(made, options["configuration"], condition, priority or 0, labels)
    elif around is not None:
        made = {**around, WRAPPER: made}
    require_sized(made)
    return made, has_secrets


def _has_secrets(made: JsonObject) -> bool:
    """Whether there are credentials whose password is no reference."""
    agent = made[CONTENT].get(AGENT, {})
    desired = agent.get(DESIRED)
    if isinstance(desired, dict):
        found = list(desired["runtime"]["settings"].get("registryCredentials", {}).values())
    else:
        found = [entry for place, entry in agent.items() if ".registryCredentials." in place]
    return any(not item["password"].startswith("$") for item in found)


def _route_terms(priorities: Iterable[str], seconds: Iterable[str]) -> "dict[str, RouteTerms]":
    from packager.iotedge.manifest import RouteTerms

    first, second = (
        {name: _whole(text, flag, most) for name, text in pairs(given, flag).items()}
        for given, flag, most in (
            (priorities, "--route-priority", ROUTE_PRIORITY_MAX),
            (seconds, "--route-ttl", ROUTE_SECONDS_MAX),
        )
    )
    return {name: RouteTerms(first.get(name), second.get(name)) for name in {**first, **second}}


def _whole(text: str, flag: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > most:
        raise EdgeError("config.invalid", f"{flag}: {text!r} is no whole number from 0 to {most}")
    return int(text)


def _settings(options: Mapping[str, Any]) -> HubSettings | None:
    given = {name: options[name] for name in ("poll_ms", "report_ms", "log_level") if options[name] is not None}
    try:
        return HubSettings.from_json(given) if given else None
    except ContractError as error:
        raise EdgeError("config.invalid", error.detail, error.hint) from None


def _read_object(path: Path, what: str, bytes_max: int) -> JsonObject:
    from packager.files import disk_errors

    with disk_errors(path), path.open("rb") as file:
        data = file.read(bytes_max + 1)
    try:
        return parse_object(data, f"{what} {path}", bytes_max)
    except ContractError as error:
        raise EdgeError("config.invalid", error.detail, error.hint) from None


def _credentials(values: Iterable[str], are_references: bool) -> "dict[str, Credentials]":
    """Credentials by name, their values taken from the environment, so that no command line shows them.

    References are written as `$NAME` and filled in by whatever tool deploys the manifest.

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
        if are_references:
            if not all(_VARIABLE.fullmatch(variable) for variable in variables):
                raise EdgeError("config.invalid", f"{flag} {name}: not the names of two variables", hint)
            result[name] = Credentials(address, f"${variables[0]}", f"${variables[1]}")
            continue
        found = [os.environ.get(variable, "") for variable in variables]
        for what, value in zip(("user", "password"), found, strict=True):
            # Unsaid which variable: it may be the password itself, given by mistake.
            if not value:
                raise EdgeError("config.invalid", f"{flag} {name}: the variable named for the {what} is not set", hint)
        result[name] = Credentials(address, *found)
    return result
