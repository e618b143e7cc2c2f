"""Writes the configuration of a mosquitto broker for one installation (docs/adr/0010-broker.md).

What comes out, in one folder: `mosquitto.conf`, the certificates of broker and cloud, the first entries of the
dynamic-security plugin, and the `[mqtt]` part of the registry's own configuration.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final, Protocol

from cloud_registry.adapters.broker_roster import CONTROL_TOPIC, RESPONSE_TOPIC, device_entry, device_role
from cloud_registry.adapters.durable import disk_errors, make_folder, write_file
from cloud_registry.limits import (
    BROKER_INFLIGHT_MAX,
    BROKER_MESSAGE_BYTES_MAX,
    BROKER_QUEUED_BYTES_MAX,
    BROKER_QUEUED_MAX,
)
from edge_contract import topics
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

REGISTRY_IDENTITY: Final = "cloud:registry"
COLLECTOR_IDENTITY: Final = "cloud:collector"
DEVICE_PORT: Final = 8883
CLOUD_PORT: Final = 8884

_PLUGIN: Final = "mosquitto_dynamic_security.so"
_PLUGIN_FOLDERS: Final = (
    "/usr/lib/*-linux-gnu*",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/opt/homebrew/lib",
)
_COLLECTOR_ROLE: Final = "cloud:collector"
_ADMINISTRATOR_ROLE: Final = "cloud:administrator"


class BrokerAuthority(Protocol):
    """Signs the certificates of broker and cloud with the authority of the devices."""

    def issue_server(self, names: Sequence[str]) -> tuple[str, str]:
        """Key and certificate (PEM) of a server with these names."""
        ...

    def issue_service(self, name: str) -> tuple[str, str]:
        """Key and certificate (PEM) of a part of the cloud."""
        ...

    def ca_pem(self) -> str:
        """The authority's certificate (PEM)."""
        ...


@dataclass(frozen=True, slots=True)
class BrokerPlan:
    """What an installation decides.

    Attributes:
        names: Host names and addresses by which devices and the cloud reach the broker; the first is the main one.
        device_port: Where devices connect, on every interface unless `device_bind` says otherwise.
        device_bind: Address to listen on for devices; empty for all.
        cloud_port: Where the cloud connects.
        cloud_bind: Address to listen on for the cloud; devices need not reach it.
        user: User the broker drops to when started as root, and who gets the files when this command runs as root.
        plugin: The dynamic-security plugin; none looks where distributions put it.
    """

    names: Sequence[str]
    device_port: int = DEVICE_PORT
    device_bind: str = ""
    cloud_port: int = CLOUD_PORT
    cloud_bind: str = "127.0.0.1"
    user: str = "mosquitto"
    plugin: Path | None = None


@dataclass(frozen=True, slots=True)
class BrokerFiles:
    """Where things are.

    Attributes:
        config: For `mosquitto -c`.
        registry_config: The `[mqtt]` and `[mqtt_public]` tables for `cloud-registry.toml`.
        ca: Certificate of the authority.
        roster: Entries of the dynamic-security plugin; the broker rewrites it.
        is_new: Whether the roster was made now; an existing one is never touched.
    """

    config: Path
    registry_config: Path
    ca: Path
    roster: Path
    is_new: bool


def write_broker_config(
    out_dir: Path, authority: BrokerAuthority, plan: BrokerPlan, identities: Mapping[str, str] | None = None
) -> BrokerFiles:
    """Write or renew everything a broker needs.

    Certificates are issued anew each time. The roster of devices is written once: from then on the broker owns the
    file, and the registry keeps its content in step (`adapters.broker_roster`).

    Args:
        out_dir: Folder; made if need be.
        authority: Signs, for example `adapters.pki.LocalAuthority`.
        plan: What to write.
        identities: Devices that are enrolled already, by the identity of their enrolment.

    Raises:
        EdgeError: `config.invalid`, `config.dependency-missing` without the plugin, `device.*`.
    """
    if plan.device_port == plan.cloud_port:
        raise EdgeError("config.invalid", "devices and cloud need a port each", "Choose two ports.")
    plugin = _plugin(plan)
    out_dir = out_dir.absolute()
    if any(character.isspace() for character in str(out_dir)) or '"' in str(out_dir):
        raise EdgeError("config.invalid", f"mosquitto cannot read paths with blanks: {out_dir}", "Choose another.")
    roster = out_dir / "state" / "dynamic-security.json"
    with disk_errors(f"write the broker's configuration to {out_dir}"):
        for folder in (out_dir, out_dir / "broker", out_dir / "cloud", out_dir / "state"):
            make_folder(folder, 0o750)
        write_file(out_dir / "ca.crt", authority.ca_pem().encode())
        _write_pair(out_dir / "broker" / "server", authority.issue_server(plan.names))
        _write_pair(out_dir / "cloud" / "registry", authority.issue_service(REGISTRY_IDENTITY))
        _write_pair(out_dir / "cloud" / "collector", authority.issue_service(COLLECTOR_IDENTITY))
        is_new = not roster.exists()
        if is_new:
            write_file(roster, json.dumps(first_roster(identities or {}), indent=1).encode(), 0o600)
        write_file(out_dir / "mosquitto.conf", _conf(out_dir, plan, plugin).encode())
        write_file(out_dir / "cloud-registry.toml", _registry_toml(out_dir, plan).encode())
        _give(out_dir, plan.user)
    return BrokerFiles(out_dir / "mosquitto.conf", out_dir / "cloud-registry.toml", out_dir / "ca.crt", roster, is_new)


def first_roster(identities: Mapping[str, str]) -> JsonObject:
    """Entries of the dynamic-security plugin: nobody may do anything but the cloud its work and devices theirs."""
    nothing = {"publishClientSend": False, "publishClientReceive": False, "subscribe": False, "unsubscribe": True}
    everyone = ((topics.ALL_REPORTS, topics.ALL_TELEMETRY), ("lighterman/1/+/nudge", "lighterman/1/+/ack"))
    collector = [("publishClientSend", topic) for topic in everyone[1]]
    for topic in everyone[0]:
        collector += [
            ("publishClientReceive", topic),
            ("subscribePattern", topic),
            ("subscribePattern", f"$share/+/{topic}"),
        ]
    administrator = [
        ("publishClientSend", CONTROL_TOPIC),
        ("publishClientReceive", RESPONSE_TOPIC),
        ("subscribeLiteral", RESPONSE_TOPIC),
    ]
    return {
        "defaultACLAccess": nothing,
        "clients": [
            {
                "username": REGISTRY_IDENTITY,
                "textname": "Registry: collects, nudges, and keeps the list of devices",
                "roles": [{"rolename": _COLLECTOR_ROLE}, {"rolename": _ADMINISTRATOR_ROLE}],
            },
            {
                "username": COLLECTOR_IDENTITY,
                "textname": "A collector by itself: may not change the list of devices",
                "roles": [{"rolename": _COLLECTOR_ROLE}],
            },
            *(device_entry(identity) for identity in sorted(identities)),
        ],
        "groups": [],
        "roles": [
            {"rolename": _COLLECTOR_ROLE, "acls": _acls(collector)},
            {"rolename": _ADMINISTRATOR_ROLE, "acls": _acls(administrator)},
            *(device_role(identity, identities[identity]) for identity in sorted(identities)),
        ],
    }


def _acls(rules: Sequence[tuple[str, str]]) -> list[JsonObject]:
    return [{"acltype": kind, "topic": topic, "priority": 0, "allow": True} for kind, topic in rules]


def _plugin(plan: BrokerPlan) -> Path:
    if plan.plugin is not None:
        if not plan.plugin.is_file():
            raise EdgeError("config.file-missing", f"there is no plugin {plan.plugin}")
        return plan.plugin.absolute()
    for pattern in _PLUGIN_FOLDERS:
        found = sorted(Path("/").glob(f"{pattern.removeprefix('/')}/{_PLUGIN}"))
        if found:
            return found[0]
    raise EdgeError(
        "config.dependency-missing",
        f"mosquitto's plugin {_PLUGIN} was not found on this machine",
        "Install mosquitto 2.0 or later, or name the plugin as it is called on the broker's machine.",
    )


def _write_pair(path: Path, pair: tuple[str, str]) -> None:
    key, certificate = pair
    write_file(path.with_suffix(".key"), key.encode(), 0o600)
    write_file(path.with_suffix(".crt"), certificate.encode())


def _conf(out_dir: Path, plan: BrokerPlan, plugin: Path) -> str:
    template = files("cloud_registry").joinpath("templates/mosquitto.conf.txt").read_text(encoding="utf-8")
    return Template(template).substitute(
        out_dir=out_dir,
        plugin=plugin,
        user=plan.user,
        device_listener=f"{plan.device_port} {plan.device_bind}".strip(),
        cloud_listener=f"{plan.cloud_port} {plan.cloud_bind}".strip(),
        message_bytes_max=BROKER_MESSAGE_BYTES_MAX,
        queued_max=BROKER_QUEUED_MAX,
        queued_bytes_max=BROKER_QUEUED_BYTES_MAX,
        inflight_max=BROKER_INFLIGHT_MAX,
    )


def _registry_toml(out_dir: Path, plan: BrokerPlan) -> str:
    cloud_host = plan.cloud_bind if plan.cloud_bind in plan.names else plan.names[0]
    values: dict[str, dict[str, str | int | bool]] = {
        "mqtt": {
            "host": cloud_host,
            "port": plan.cloud_port,
            "tls_ca": str(out_dir / "ca.crt"),
            "tls_cert": str(out_dir / "cloud" / "registry.crt"),
            "tls_key": str(out_dir / "cloud" / "registry.key"),
            "keeps_roster": True,
        },
        "mqtt_public": {"host": plan.names[0], "port": plan.device_port, "tls": True},
    }
    lines = ["# Copy these tables into the registry's cloud-registry.toml."]
    for table, settings in values.items():
        lines += ["", f"[{table}]", *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]
    return "\n".join(lines) + "\n"


def _give(out_dir: Path, user: str) -> None:
    """Hand the broker's own files to the user it runs as; only root can, and needs to."""
    if os.geteuid() != 0:
        return
    try:
        for path in (out_dir, *(out_dir / "broker").rglob("*"), out_dir / "broker", out_dir / "state"):
            shutil.chown(path, group=user)
        for path in (out_dir / "broker" / "server.key", out_dir / "state", *(out_dir / "state").iterdir()):
            shutil.chown(path, user=user, group=user)
    except LookupError:
        raise EdgeError(
            "config.invalid", f"there is no user {user!r} here", "Install mosquitto, or name the user it runs as."
        ) from None
