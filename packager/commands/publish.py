"""`packager register`, `push`, `deploy` and `ship`: what changes the registry."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from edge_contract.deployment import ActivationMode
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
    source_date_epoch,
    stacked,
)
from packager.commands.delta import (
    budget_options,
    build_before,
    built_lines,
    check_unused,
    deploy_options,
    forecast_lines,
    forecast_link,
)
from packager.commands.describe import about_options, bundle_options, flags_from, spec_from, spec_options
from packager.commands.terms import term_options
from packager.limits import WAIT_SECONDS_DEFAULT

_NOT_CONFIRMED = 1

deployment_options = stacked(
    click.option("--module", default="", help="Module on the device; the model's name by default."),
    click.option("--deployment-name", default="", help="Name of the deployment, for people."),
    click.option("--priority", type=int, default=0, show_default=True, help="The higher wins where conditions meet."),
    click.option("--allow-release-rollback", is_flag=True, help="Permit devices to take a lower release counter."),
    click.option(
        "--window",
        "windows",
        multiple=True,
        help="When devices may activate it, in UTC: 'mon-fri 02:00-05:00', 'sat,sun 22:00-04:00'; repeatable.",
    ),
    click.option(
        "--activation",
        type=click.Choice([mode.value for mode in ActivationMode]),
        help="Whether the live model answers until the new one is proved (overlap), or ends before (stop_first).",
    ),
    term_options,
    click.option("--timeout-s", type=click.FloatRange(0), default=WAIT_SECONDS_DEFAULT, show_default=True),
)


@click.command("register")
@click.argument("files", nargs=-1, metavar="[NAME=]FILE...")
@click.option("--name", default="", help="Name of the model.")
@click.option("--engine", default="", help="onnx, litert or script, where the file's ending does not say.")
@spec_options
@about_options
@registry_options
@json_option
def register(files: tuple[str, ...], name: str, as_json: bool, **options: Any) -> None:
    """Register model files as the next version of a model.

    \b
    Examples:
      packager register model.onnx --name digits --tag team=vision --git-commit "$(git rev-parse HEAD)"
      packager register score.py weights.npz --name grader

    The first file is the model or the entry script. The registry gives the number. External data of an ONNX file are
    found and uploaded too.
    """
    from packager.register import register as run

    spec = spec_from(options, flags_from(options, name, 0, files))
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        version = run(client, spec, make_reporter(as_json))
    emit(as_json, version, [f"registered {version['name']}:{version['version']}"])


@click.command("push")
@click.argument("layout", type=FOLDER)
@registry_options
@key_options
@expires_option
@json_option
def push(layout: Path, as_json: bool, key_folders: tuple[Path, ...], expires_days: int, **options: Any) -> None:
    """Upload a built bundle, sign it with your keys, and tell the registry.

    \b
    Example:
      packager push bundle --keys ~/lighterman-keys

    What is there already is not sent again; a push that was cut goes on where it stopped.
    """
    from packager.layout import Layout
    from packager.push import push as run

    bundle = Layout(layout)
    ring = ring_maker(options["passphrase_file"])(*require_folders(key_folders))
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        result = run(client, bundle, ring, expires_days, make_reporter(as_json))
    lines = [f"pushed {result['model']}:{result['version']}, {result['bytes_sent']} bytes sent"]
    lines += [f"  {platform:14} {digest}" for platform, digest in result["manifests"].items()]
    emit(as_json, result, lines)


@click.command("deploy")
@click.argument("reference", metavar="MODEL:VERSION")
@click.option("--condition", required=True, help="Which devices, for example \"tags.site = 'north'\"; * for all.")
@click.option("--wait", "is_waiting", is_flag=True, help="Wait until every device has an outcome.")
@click.option("--probation-ms", type=click.IntRange(0), help="How long devices watch it; else as the bundle says.")
@click.option("--sampling-ratio", type=click.FloatRange(0, 1), help="Share collected; else as the bundle says.")
@deployment_options
@deploy_options
@registry_options
@json_option
def deploy(reference: str, condition: str, is_waiting: bool, as_json: bool, **options: Any) -> None:
    """Deploy a model version (number or alias) to the devices that a condition matches.

    \b
    Examples:
      packager deploy digits:3 --condition "tags.site = 'north'" --wait
      packager deploy digits:production --condition "*" --window "mon-fri 02:00-05:00"
      packager deploy digits:3 --condition "*" --dry-run --link-kbps 128

    Devices that match later get it too. With --wait the exit code is 0 if every device confirmed, else 1. Before that,
    deltas are made for the versions that the devices hold, within a budget; without one a device fetches whole files.
    """
    from packager.deploy import parse_reference, policy_of, wait

    model, version = parse_reference(reference)
    policy = policy_of(
        options["sampling_ratio"],
        options["probation_ms"],
        options["allow_release_rollback"],
        options["windows"],
        options["activation"],
        options,
    )
    link_kbps = forecast_link(options["dry_run"], is_waiting, options["link_kbps"])
    if options["dry_run"]:
        check_unused("with --dry-run", "with_deltas")
    elif not options["with_deltas"]:
        check_unused("with --no-deltas")
    reporter = make_reporter(as_json)
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        number = int(client.get_version(model, version)["version"])
        if options["dry_run"]:
            from packager.delta.asking import ask_forecast

            found = ask_forecast(client, model, number, condition, options["module"], link_kbps)
            emit(as_json, found, forecast_lines(found))
            return
        built = build_before(client, model, number, condition, options, reporter) if options["with_deltas"] else None
        record = client.create_deployment(
            model, number, condition, options["module"], policy, options["deployment_name"], options["priority"]
        )
        outcome = wait(client, str(record["id"]), options["timeout_s"], reporter) if is_waiting else None
    lines = [f"deployment {record['id']}: {model}:{record['version']} to {record['devices']} devices"]
    lines += [] if built is None else built_lines(built)
    _finish(as_json, {"deployment": record, "deltas": built, "wait": outcome}, lines, outcome)


@click.command("ship")
@click.argument("files", nargs=-1, metavar="[NAME=]FILE...")
@click.option("--name", default="", help="Name of the model.")
@click.option("--version", type=click.IntRange(1), help="Take this registered version instead of registering.")
@click.option("--condition", default="", help="Which devices get it; without one it is only published.")
@click.option("--wait", "is_waiting", is_flag=True, help="Wait until every device has an outcome.")
@click.option("--out", type=FOLDER, help="Keep the built bundle in this folder.")
@spec_options
@bundle_options
@about_options
@deployment_options
@click.option("--deltas/--no-deltas", "with_deltas", default=True, show_default=True, help="As of `deploy`.")
@budget_options
@registry_options
@key_options
@expires_option
@json_option
def ship(
    files: tuple[str, ...],
    name: str,
    version: int | None,
    condition: str,
    is_waiting: bool,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Register, build, push and deploy in one go.

    \b
    Example:
      packager ship model.onnx --name digits --golden golden.npz --keys ~/lighterman-keys \\
        --condition "tags.site = 'north'" --wait

    The model is proved before it gets a version. A shipment that was cut goes on with --version. With --wait the exit
    code is 0 if every device confirmed, else 1.
    """
    from packager.deploy import policy_of
    from packager.ship import Voyage
    from packager.ship import ship as run

    if not condition:
        check_unused("without --condition", "with_deltas")
    elif not options["with_deltas"]:
        check_unused("with --no-deltas")
    key_folders = options.pop("key_folders")
    flags = flags_from(options, name, 0, files)
    spec = replace(spec_from(options, flags), version=version or 0)
    voyage = Voyage(
        condition=condition,
        module=options["module"],
        # Probation and sampling are in the bundle; the deployment has nothing to override.
        policy=policy_of(
            None, None, options["allow_release_rollback"], options["windows"], options["activation"], options
        ),
        name=options["deployment_name"],
        priority=options["priority"],
        wait_s=options["timeout_s"] if is_waiting else None,
        expires_days=options["expires_days"],
        out=out,
        created_s=source_date_epoch(),
        before=partial(build_before, options=options) if options["with_deltas"] else None,
    )
    ring = ring_maker(options["passphrase_file"])(*require_folders(key_folders))
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        result = run(client, spec, ring, voyage, make_reporter(as_json))
    lines = [f"shipped {result['model']}:{result['version']}"]
    lines += [f"  {platform:14} {digest}" for platform, digest in result["push"]["manifests"].items()]
    lines += [f"  warning: {text}" for text in result["build"]["warnings"]]
    if result["deployment"]:
        lines.append(f"  deployment {result['deployment']['id']} to {result['deployment']['devices']} devices")
    if result["deltas"]:
        lines += built_lines(result["deltas"])
    _finish(as_json, result, lines, result["wait"])


def _finish(as_json: bool, document: JsonObject, lines: list[str], outcome: JsonObject | None) -> None:
    """Print, and end with the code that the devices' outcomes ask for."""
    if outcome is not None:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(outcome["counts"].items()) if count)
        lines.append(f"  after {outcome['seconds']:.1f} s: {counts or 'no device matches the condition'}")
        for item in outcome["failed"]:
            error = item["error"] or {}
            why = f"{error.get('detail', '')} [{error['code']}]" if error.get("code") else item["phase"] or "no report"
            lines.append(f"  {item['device']}: {item['standing'] or 'no outcome'}: {why}")
    emit(as_json, document, lines)
    if outcome is not None and not outcome["is_confirmed"]:
        raise click.exceptions.Exit(_NOT_CONFIRMED)
