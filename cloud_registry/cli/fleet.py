"""Commands about devices, deployments and tokens."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cloud_registry.cli.options import json_option, pairs, remote
from cloud_registry.cli.output import print_fields, print_json, print_table
from cloud_registry.core.roles import Role, parse_role
from edge_contract.deployment import ActivationMode
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, parse_object
from edge_contract.limits import KIB

if TYPE_CHECKING:
    from cloud_registry.client import RegistryClient


POLICY_BYTES_MAX: Final = 64 * KIB


@click.group()
def devices() -> None:
    """Show devices, tag them, make enrolment tokens, revoke."""


@devices.command("list")
@click.option("--condition", default="", help="Only devices that match, for example \"tags.site = 'north'\".")
@click.option("--name", default="", help="Exact name, or with * for any characters.")
@remote
def list_devices(condition: str, name: str, client: "RegistryClient", as_json: bool) -> None:
    """All devices: what they should run and what they run."""
    items = list(client.all_devices(condition, name))
    if as_json:
        print_json(items)
        return
    rows = [
        (
            item["name"],
            item["platform"],
            item["tags"],
            {module: f"{wish['model']}:{wish['version']}" for module, wish in item["desired"].items()},
            _live(item["report"]),
            item["is_online"],
            item["report_received_at"],
        )
        for item in items
    ]
    print_table(("DEVICE", "PLATFORM", "TAGS", "DESIRED", "LIVE", "ONLINE", "LAST REPORT"), rows)


@devices.command("show")
@click.argument("device")
@remote
def show_device(device: str, client: "RegistryClient", as_json: bool) -> None:
    """One device: desired and reported."""
    record = client.device(device)
    if as_json:
        print_json(record)
        return
    report, attention = record.pop("report"), record.pop("attention")
    print_fields(record)
    for item in attention:
        detail = f" ({item['detail']})" if item["detail"] else ""
        click.echo(f"\n{item['what']}{detail}: {item['meaning']} Who acts: {item['who']}.")
    if report is not None:
        click.echo("\nreport")
        print_fields({key: value for key, value in report.items() if key != "modules"})
        for name, module in report["modules"].items():
            click.echo(f"\nmodule {name}")
            print_fields(module)


@devices.command("enrol-token")
@click.argument("device")
@click.option("--tag", "tags", multiple=True, help="key=value, repeatable.")
@click.option("--ttl-s", type=click.IntRange(1), help="Seconds until the token expires; a day unless given.")
@remote
def enrol_token(device: str, tags: tuple[str, ...], ttl_s: int | None, client: "RegistryClient", as_json: bool) -> None:
    """Make a one-time token by which DEVICE enrols, or enrols again: its former identity ends when it is spent."""
    made = client.create_enrolment_token(device, pairs(tags, "tag"), ttl_s)
    if as_json:
        print_json(made)
        return
    click.echo(made["token"])
    click.echo(
        f"expires at {made['expires_at']}; on the device: edge-agent enroll --url {client.url} --token …", err=True
    )


@devices.command("tag")
@click.argument("device")
@click.argument("tags", nargs=-1)
@click.option("--remove", "removed", multiple=True, help="Key of a tag to remove, repeatable.")
@click.option("--replace", is_flag=True, help="Drop every tag that is not given.")
@remote
def tag_device(
    device: str, tags: tuple[str, ...], removed: tuple[str, ...], replace: bool, client: "RegistryClient", as_json: bool
) -> None:
    """Set TAGS (key=value …) of a device; deployments follow at once."""
    kept = {} if replace else dict(client.device(device)["tags"])
    for key in removed:
        kept.pop(key, None)
    record = client.set_tags(device, kept | pairs(tags, "tag"))
    if as_json:
        print_json(record)
    else:
        print_fields({"name": record["name"], "tags": record["tags"], "desired": record["desired"]})


@devices.command("revoke")
@click.argument("device")
@click.option("--yes", is_flag=True, help="Do not ask.")
@remote
def revoke_device(device: str, yes: bool, client: "RegistryClient", as_json: bool) -> None:
    """End the identity of DEVICE at once: its key, certificate and enrolment tokens open nothing any more.

    To let it back in, make it an enrolment token and enrol it again.
    """
    if not yes:
        click.confirm(f"End the identity of {device}?", abort=True, err=True)
    record = client.revoke_device(device)
    if as_json:
        print_json(record)
    else:
        click.echo(f"revoked {device} ({record['identity']}) at {record['revoked_at']}")


@devices.command("history")
@click.argument("device")
@remote
def device_history(device: str, client: "RegistryClient", as_json: bool) -> None:
    """What happened to the identity of DEVICE: enrolled, renewed, revoked."""
    items = client.device_history(device)
    if as_json:
        print_json(items)
        return
    rows = [(line["kind"], line["detail"], line["changed_at"], line["changed_by"]) for line in items]
    print_table(("CHANGE", "DETAIL", "AT", "BY"), rows)


@devices.command("delete")
@click.argument("device")
@click.option("--yes", is_flag=True, help="Do not ask.")
@remote
def delete_device(device: str, yes: bool, client: "RegistryClient", as_json: bool) -> None:
    """Forget a device; its key stops working. Its telemetry stays."""
    if not yes:
        click.confirm(f"Forget {device}?", abort=True, err=True)
    client.delete_device(device)
    if as_json:
        print_json({"deleted": device})
    else:
        click.echo(f"deleted {device}")


@click.group()
def deployments() -> None:
    """Create, show, change and cancel deployments."""


@deployments.command("list")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="Deployments to show.")
@remote
def list_deployments(limit: int, client: "RegistryClient", as_json: bool) -> None:
    """Deployments, newest first."""
    items = client.deployments(limit)["items"]
    if as_json:
        print_json(items)
        return
    rows = [
        (
            item["id"],
            f"{item['model']}:{item['version']}",
            item["module"],
            item["condition"],
            item["state"],
            _counts(item),
            item["created_at"],
        )
        for item in items
    ]
    print_table(("ID", "MODEL", "MODULE", "CONDITION", "STATE", "DEVICES", "CREATED"), rows)


@deployments.command("show")
@click.argument("deployment")
@remote
def show_deployment(deployment: str, client: "RegistryClient", as_json: bool) -> None:
    """One deployment with its history."""
    record = client.deployment(deployment)
    history = client.deployment_history(deployment)
    if as_json:
        print_json(record | {"history": history})
        return
    print_fields(record)
    click.echo()
    rows = [(line["kind"], line["detail"], line["changed_at"], line["changed_by"]) for line in history]
    print_table(("CHANGE", "DETAIL", "AT", "BY"), rows)


@deployments.command("devices")
@click.argument("deployment")
@remote
def deployment_devices(deployment: str, client: "RegistryClient", as_json: bool) -> None:
    """How a deployment stands on each device."""
    items = client.deployment_devices(deployment)
    if as_json:
        print_json(items)
        return
    rows = [
        (
            item["device"],
            item["standing"],
            item["phase"],
            "-" if item["error"] is None else item["error"]["code"],
            "-" if item["error"] is None else item["error"]["detail"],
            item["reported_at"],
        )
        for item in items
    ]
    print_table(("DEVICE", "STANDING", "PHASE", "ERROR", "DETAIL", "REPORTED"), rows)


@deployments.command("create")
@click.argument("model")
@click.argument("version")
@click.option("--condition", required=True, help="Which devices, for example \"tags.site = 'north'\", or * for all.")
@click.option("--module", default="", help="Module on the device; the model's name unless given.")
@click.option("--name", default="", help="A label.")
@click.option("--priority", type=click.IntRange(0), default=0, help="The higher one wins, then the newer one.")
@click.option("--sampling-ratio", type=click.FloatRange(0, 1), help="Share of requests to collect.")
@click.option("--probation-ms", type=click.IntRange(0), help="How long the new model is watched.")
@click.option("--allow-release-rollback", is_flag=True, help="Permit to go back to an older release.")
@click.option("--window", "windows", multiple=True, help="When to activate, UTC: 'mon-fri 02:00-05:00'; repeatable.")
@click.option(
    "--activation",
    type=click.Choice([mode.value for mode in ActivationMode]),
    help="How to change over; auto unless given.",
)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file with more of the policy: resources, trial, allow_pickle, latency_permille_max.",
)
@remote
def create_deployment(
    model: str,
    version: str,
    condition: str,
    module: str,
    name: str,
    priority: int,
    sampling_ratio: float | None,
    probation_ms: int | None,
    allow_release_rollback: bool,
    windows: tuple[str, ...],
    activation: str | None,
    policy_file: Path | None,
    client: "RegistryClient",
    as_json: bool,
) -> None:
    """Assign VERSION (number or alias) of MODEL to every device that matches, now and later."""
    from cloud_registry.client.windows import parse_window

    policy: dict[str, Any] = {"allow_release_rollback": allow_release_rollback}
    policy |= {} if sampling_ratio is None else {"sampling_ratio": sampling_ratio}
    policy |= {} if probation_ms is None else {"probation_ms": probation_ms}
    policy |= {"windows": [parse_window(text).to_json() for text in windows]} if windows else {}
    policy |= {"activation": str(activation)} if activation else {}
    policy |= {} if policy_file is None else _read_policy(policy_file)
    record = client.create_deployment(model, version, condition, module, policy, name, priority)
    if as_json:
        print_json(record)
    else:
        click.echo(f"{record['id']}: {record['model']} version {record['version']} for {record['devices']} devices")


def _read_policy(file: Path) -> JsonObject:
    try:
        return parse_object(file.read_bytes(), str(file), POLICY_BYTES_MAX)
    except OSError as error:
        raise EdgeError("config.file-missing", f"cannot read {file}: {error.strerror}") from None
    except ContractError as error:
        raise EdgeError("config.invalid", error.detail, "Write a JSON object.") from None


@deployments.command("preview")
@click.option("--condition", required=True, help="Which devices, for example \"tags.site = 'north'\", or * for all.")
@remote
def preview(condition: str, client: "RegistryClient", as_json: bool) -> None:
    """Which devices a condition matches now; nothing changes."""
    found = client.preview(condition)
    if as_json:
        print_json(found)
        return
    for name in found["devices"]:
        click.echo(name)
    click.echo(f"{found['count']} devices", err=True)


@deployments.command("cancel")
@click.argument("deployment")
@remote
def cancel_deployment(deployment: str, client: "RegistryClient", as_json: bool) -> None:
    """End a deployment; its devices go back to what the next matching one assigns."""
    record = client.cancel_deployment(deployment)
    if as_json:
        print_json(record)
    else:
        click.echo(f"{record['id']} is {record['state']}")


@click.group()
def tokens() -> None:
    """Create, list and revoke operator tokens."""


@tokens.command("create")
@click.argument("name")
@click.option("--role", required=True, type=click.Choice([str(role) for role in Role]), help="What it may do.")
@remote
def create_token(name: str, role: str, client: "RegistryClient", as_json: bool) -> None:
    """Make a token; it is shown this once."""
    made = client.create_token(name, role)
    if as_json:
        print_json(made)
    else:
        click.echo(made["token"])


@tokens.command("list")
@remote
def list_tokens(client: "RegistryClient", as_json: bool) -> None:
    """All tokens without their secrets."""
    items = client.tokens()
    if as_json:
        print_json(items)
        return
    rows = [(item["name"], item["role"], item["created_at"], item["created_by"]) for item in items]
    print_table(("NAME", "ROLE", "CREATED", "BY"), rows)


@tokens.command("revoke")
@click.argument("name")
@remote
def revoke_token(name: str, client: "RegistryClient", as_json: bool) -> None:
    """Revoke a token; the last one with the role admin stays."""
    client.revoke_token(name)
    if as_json:
        print_json({"revoked": name})
    else:
        click.echo(f"revoked {name}")


@tokens.command("recover")
@click.argument("name")
@click.option("--role", default="admin", type=click.Choice([str(role) for role in Role]), help="What it may do.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Configuration of the registry.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Data folder of the registry.")
@json_option
def recover_token(name: str, role: str, config_file: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Make a token straight in the database, on the registry's machine, when the admin token was lost."""
    from cloud_registry.adapters.sql.tokens import SqlTokens
    from cloud_registry.assembly import SystemClock, open_database
    from cloud_registry.config import load_config

    config = load_config(config_file, overrides={"data_dir": data_dir})
    database = open_database(config)
    try:
        token = SqlTokens(database, SystemClock()).create(name, parse_role(role), "command line")
    finally:
        database.close()
    if as_json:
        print_json({"name": name, "role": role, "token": token})
    else:
        click.echo(token)


def _live(report: dict[str, Any] | None) -> dict[str, str]:
    modules = {} if report is None else report["modules"]
    return {name: f"{item['model']}:{item['version']}" for name, item in modules.items() if item["live"]}


def _counts(item: dict[str, Any]) -> str:
    counts = " ".join(f"{name}={number}" for name, number in item["counts"].items() if number)
    return f"{item['devices']} ({counts})" if counts else str(item["devices"])


COMMANDS: Final = (devices, deployments, tokens)
