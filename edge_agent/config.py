"""The agent's configuration: a TOML file, overridden by flags. Every mistake is named with its key and file."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from edge_agent.limits import (
    CONFIG_BYTES_MAX,
    HOOK_MS_DEFAULT,
    HOOK_MS_MAX,
    HOOK_MS_MIN,
    PORT_MAX,
    RESERVE_BYTES_DEFAULT,
    SCRUB_MS_DEFAULT,
    SCRUB_MS_MAX,
    SCRUB_MS_MIN,
    SPOOL_BYTES_DEFAULT,
    SPOOL_BYTES_MIN,
)
from edge_contract.errors import ContractError, EdgeError
from edge_contract.hub import METHODS
from edge_contract.limits import (
    BLOB_BYTES_MAX,
    MODULES_MAX,
    PERIOD_MS_MAX,
    PERIOD_MS_MIN,
    POLL_MS_DEFAULT,
    REPORT_MS_DEFAULT,
)
from edge_contract.names import model_name

SYSTEM_FILE: Final = Path("/etc/lighterman/edge-agent.toml")
"""Read when no file is named and it exists."""

DATA_DEFAULT: Final = Path("/var/lib/lighterman")
_PROVIDER: Final = re.compile(r"[A-Za-z]{1,48}ExecutionProvider")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Where predictions are answered, beside the unix socket that every module has.

    Attributes:
        host: Address to listen on; anything but loopback lets the network ask for predictions.
        ports: TCP port by module; a module that is not named gets any free port.
        providers: Execution providers of onnxruntime that bundles may ask for; the CPU's always may.
        token_file: File with the token that clients over TCP have to present; none lets in whoever can connect.
    """

    host: str = "127.0.0.1"
    ports: Mapping[str, int] = field(default_factory=dict)
    providers: tuple[str, ...] = ()
    token_file: Path | None = None


@dataclass(frozen=True, slots=True)
class MqttConfig:
    """What overrides the broker's address from enrolment; none keeps what enrolment said.

    Attributes:
        host: Host name or address.
        port: TCP port.
        tls: Whether to use TLS.
        ca: Certificates to trust.
        username: For brokers that ask for one; empty for none.
        password_file: File that holds the password, or none.
        persistent: Let the broker keep messages for this device while it is away.
    """

    host: str | None = None
    port: int | None = None
    tls: bool | None = None
    ca: Path | None = None
    username: str = ""
    password_file: Path | None = None
    persistent: bool = False


BINDING_PROTOCOLS: Final = ("auto", "5", "3.1.1")


@dataclass(frozen=True, slots=True)
class BindingConfig:
    """The broker whose topics bundles may bind to their models. Without the table, no binding runs.

    Attributes:
        host: Host name or address.
        port: TCP port.
        tls: Whether to use TLS.
        ca: Certificates to trust; the system's when none.
        certificate: Certificate chain to show, or none.
        key: Its private key.
        username: For brokers that ask for one; empty for none.
        password_file: File that holds the password, or none.
        protocol: One of `BINDING_PROTOCOLS`; `auto` is 5, and 3.1.1 where the broker refuses that.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    username: str = ""
    password_file: Path | None = None
    protocol: str = "auto"


PROVISIONING_HOST: Final = "global.azure-devices-provisioning.net"


@dataclass(frozen=True, slots=True)
class ProvisioningConfig:
    """How Azure's device provisioning service finds this device its hub.

    Attributes:
        scope: Identifier of the service's scope, such as `0ne00000000`.
        registration: Identifier of this device's registration; empty for the device's name.
        host: Of the service.
        group_key_file: File with the key of an enrolment group, from which this device's is derived, or none.
        gateway: Host to dial instead; empty for none.
    """

    scope: str
    registration: str = ""
    host: str = PROVISIONING_HOST
    group_key_file: Path | None = None
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class IotHubConfig:
    """How to reach Azure IoT Hub, which takes the broker's place. Exactly one kind of identity is given.

    Attributes:
        connection_string_file: File that holds a connection string of a device or a module; mode 0600 is advised.
        ca: Certificates to trust instead of the system's, or none.
        gateway: Host to dial instead of the hub; empty for none.
        host: Host name of the hub, for an identity by key or certificate.
        device: Identifier of the device there; empty for this device's name.
        module: Identifier of the module; empty for the device itself.
        key_file: File that holds the symmetric key in base64, or none.
        certificate: Certificate chain that the device shows, or none.
        certificate_key: Its private key.
        passphrase_file: File with the passphrase of that, or none.
        provisioning: Ask the provisioning service for the hub, or none.
        is_edge: Take the identity from the environment that IoT Edge gives a module.
        websockets: Use port 443, where nothing else is let through.
        methods: Direct methods that the hub may call.
    """

    connection_string_file: Path | None = None
    ca: Path | None = None
    gateway: str = ""
    host: str = ""
    device: str = ""
    module: str = ""
    key_file: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    passphrase_file: Path | None = None
    provisioning: ProvisioningConfig | None = None
    is_edge: bool = False
    websockets: bool = False
    methods: tuple[str, ...] = METHODS

    def secret_files(self) -> list[Path]:
        """Files that hold secrets."""
        group = None if self.provisioning is None else self.provisioning.group_key_file
        files = (self.connection_string_file, self.key_file, self.certificate_key, self.passphrase_file, group)
        return [file for file in files if file is not None]

    def provisioning_key(self) -> Path | None:
        """The file with the key that proves a registration and the device it makes; none for a certificate."""
        group = None if self.provisioning is None else self.provisioning.group_key_file
        return group or self.key_file


@dataclass(frozen=True, slots=True)
class UpdateConfig:
    """The device owner's say in how updates go.

    Attributes:
        hook: Program that is asked before a download and before an activation, or none; see `edge_agent.hook`.
        hook_timeout_ms: How long it may run.
        scrub_ms: How often the files of what is live are read again and compared with their signed digests.
        deltas: Make blobs out of others where the registry has a delta for it, and this device can decode it.
    """

    hook: Path | None = None
    hook_timeout_ms: int = HOOK_MS_DEFAULT
    scrub_ms: int = SCRUB_MS_DEFAULT
    deltas: bool = True


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything an agent process is told.

    Attributes:
        data: Data directory; all durable state lies below it.
        run: Directory of the sockets.
        poll_ms: How often metadata is refreshed without being nudged.
        report_ms: How often a report is sent without a change.
        spool_bytes_max: Byte budget of telemetry that waits.
        reserve_bytes: Free space that no download may touch.
        serve: Where predictions are answered.
        mqtt: Overrides of the broker's address.
        iothub: Azure IoT Hub instead of a broker, or none.
        binding: The broker of the bundles' MQTT bindings, or none.
        update: How updates go.
        preload: OCI layout with content that need not come over the network, or none; nothing in it is believed.
        log_level: One of `LOG_LEVELS`.
    """

    data: Path = DATA_DEFAULT
    run: Path = DATA_DEFAULT / "run"
    poll_ms: int = POLL_MS_DEFAULT
    report_ms: int = REPORT_MS_DEFAULT
    spool_bytes_max: int = SPOOL_BYTES_DEFAULT
    reserve_bytes: int = RESERVE_BYTES_DEFAULT
    serve: ServeConfig = field(default_factory=ServeConfig)
    mqtt: MqttConfig = field(default_factory=MqttConfig)
    iothub: IotHubConfig | None = None
    binding: BindingConfig | None = None
    update: UpdateConfig = field(default_factory=UpdateConfig)
    preload: Path | None = None
    log_level: str = "info"


def load_config(file: Path | None = None, data: Path | None = None, run: Path | None = None) -> AgentConfig:
    """Read a configuration file, if there is one, and let flags override it.

    Args:
        file: The file; `SYSTEM_FILE` when none and that exists, else defaults.
        data: Overrides the data directory.
        run: Overrides the run directory; `<data>/run` when neither file nor flag names one.

    Returns:
        The configuration; paths from the file are relative to its folder.

    Raises:
        EdgeError: `config.file-missing`, `config.invalid`.
    """
    if file is None and SYSTEM_FILE.is_file():
        file = SYSTEM_FILE
    config = AgentConfig(run=Path()) if file is None else parse_config(_read(file), file)
    if data is not None:
        config = replace(config, data=data.absolute())
    if run is not None:
        config = replace(config, run=run.absolute())
    return replace(config, run=config.data / "run") if config.run == Path() else config


def parse_config(text: str, file: Path) -> AgentConfig:
    """Read the text of a configuration file.

    Args:
        text: TOML.
        file: Where it is from, for messages and relative paths.

    Returns:
        The configuration; `run` is the empty path when the file names none.

    Raises:
        EdgeError: `config.invalid`.
    """
    try:
        table = _Table(tomllib.loads(text), file, "")
    except tomllib.TOMLDecodeError as error:
        raise EdgeError("config.invalid", f"{file} is not valid TOML: {error}") from None
    serve = table.table("serve")
    mqtt = table.table("mqtt")
    update = table.table("update")
    config = AgentConfig(
        data=table.path("data") or DATA_DEFAULT,
        run=table.path("run") or Path(),
        poll_ms=table.integer("poll_ms", PERIOD_MS_MIN, PERIOD_MS_MAX, POLL_MS_DEFAULT),
        report_ms=table.integer("report_ms", PERIOD_MS_MIN, PERIOD_MS_MAX, REPORT_MS_DEFAULT),
        spool_bytes_max=table.integer("spool_bytes_max", SPOOL_BYTES_MIN, BLOB_BYTES_MAX, SPOOL_BYTES_DEFAULT),
        reserve_bytes=table.integer("reserve_bytes", 0, BLOB_BYTES_MAX, RESERVE_BYTES_DEFAULT),
        serve=ServeConfig(
            serve.text("host", "127.0.0.1"), _ports(serve.table("ports")), _providers(serve), serve.path("token_file")
        ),
        mqtt=MqttConfig(
            host=mqtt.text("host", "") or None,
            port=mqtt.integer("port", 1, PORT_MAX, 0) or None,
            tls=mqtt.flag("tls"),
            ca=mqtt.path("ca"),
            username=mqtt.text("username", ""),
            password_file=mqtt.path("password_file"),
            persistent=mqtt.flag("persistent") or False,
        ),
        iothub=_iothub(table),
        binding=_binding(table),
        update=UpdateConfig(
            hook=update.path("hook"),
            hook_timeout_ms=update.integer("hook_timeout_ms", HOOK_MS_MIN, HOOK_MS_MAX, HOOK_MS_DEFAULT),
            scrub_ms=update.integer("scrub_ms", SCRUB_MS_MIN, SCRUB_MS_MAX, SCRUB_MS_DEFAULT),
            deltas=update.flag("deltas") is not False,
        ),
        preload=table.path("preload"),
        log_level=table.choice("log_level", LOG_LEVELS, "info"),
    )
    for part in (table, serve, mqtt, update):
        part.close()
    return config


def _iothub(root: "_Table") -> IotHubConfig | None:
    if root.take("iothub") is None:
        return None
    table = root.table("iothub")
    config = IotHubConfig(
        connection_string_file=table.path("connection_string_file"),
        ca=table.path("ca"),
        gateway=table.text("gateway", ""),
        host=table.text("host", ""),
        device=table.text("device", ""),
        module=table.text("module", ""),
        key_file=table.path("key_file"),
        certificate=table.path("certificate"),
        certificate_key=table.path("certificate_key"),
        passphrase_file=table.path("passphrase_file"),
        provisioning=_provisioning(table),
        is_edge=table.flag("edge") or False,
        websockets=table.flag("websockets") or False,
        methods=_methods(table),
    )
    table.close()
    _require_one_identity(config, table)
    return config


def _provisioning(hub: "_Table") -> ProvisioningConfig | None:
    if hub.take("provisioning") is None:
        return None
    table = hub.table("provisioning")
    if not table.text("scope", ""):
        raise table.error("scope", "is needed: the ID scope of the provisioning service")
    config = ProvisioningConfig(
        table.text("scope", ""),
        table.text("registration", ""),
        table.text("host", PROVISIONING_HOST),
        table.path("group_key_file"),
        table.text("gateway", ""),
    )
    table.close()
    return config


def _methods(table: "_Table") -> tuple[str, ...]:
    value = table.take("methods")
    names = list(METHODS) if value is None else value
    if not isinstance(names, list) or not all(name in METHODS for name in names):
        raise table.error("methods", f"has to be an array of some of: {', '.join(METHODS)}")
    return tuple(names)


def _require_one_identity(config: IotHubConfig, table: "_Table") -> None:
    group = config.provisioning is not None and config.provisioning.group_key_file is not None
    kinds = {
        "edge": config.is_edge,
        "connection_string_file": config.connection_string_file is not None,
        "key_file": config.key_file is not None,
        "certificate": config.certificate is not None,
        "provisioning.group_key_file": group,
    }
    given = [name for name, is_given in kinds.items() if is_given]
    if not given:
        known = "connection_string_file, key_file, certificate or edge = true"
        raise table.error("connection_string_file", f"is needed, or another identity: {known}")
    if len(given) > 1:
        raise table.error(given[1], f"and {given[0]} are two identities; give one")
    if (config.certificate is None) != (config.certificate_key is None):
        raise table.error("certificate_key", "and certificate belong together")
    if config.passphrase_file is not None and config.certificate_key is None:
        raise table.error("passphrase_file", "is for certificate_key")
    is_named = config.key_file is not None or config.certificate is not None
    if is_named and config.provisioning is None and not config.host:
        raise table.error("host", "is needed: the hub's host name, such as myhub.azure-devices.net")
    if config.provisioning is not None and not (is_named or group):
        raise table.error("provisioning", "needs key_file, certificate or provisioning.group_key_file")
    for name, value in (("host", config.host), ("device", config.device), ("module", config.module)):
        if value and (not is_named or config.provisioning is not None):
            raise table.error(name, "is said by the identity itself; leave it out")


def _binding(root: "_Table") -> BindingConfig | None:
    if root.take("binding") is None:
        return None
    table = root.table("binding")
    is_enabled = table.flag("enabled")
    tls = table.flag("tls") or False
    config = BindingConfig(
        host=table.text("host", "127.0.0.1"),
        port=table.integer("port", 1, PORT_MAX, 8883 if tls else 1883),
        tls=tls,
        ca=table.path("ca"),
        certificate=table.path("certificate"),
        key=table.path("key"),
        username=table.text("username", ""),
        password_file=table.path("password_file"),
        protocol=table.choice("protocol", BINDING_PROTOCOLS, "auto"),
    )
    table.close()
    for key, value in (("ca", config.ca), ("certificate", config.certificate), ("key", config.key)):
        if value is not None and not config.tls:
            raise table.error(key, "is for TLS, and tls is not true")
    if (config.certificate is None) != (config.key is None):
        raise table.error("key", "and certificate belong together")
    if config.password_file is not None and not config.username:
        raise table.error("password_file", "needs a username")
    return None if is_enabled is False else config


def _read(file: Path) -> str:
    try:
        with file.open("rb") as source:
            data = source.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EdgeError("config.file-missing", f"the configuration {file} cannot be read: {reason}") from None
    if len(data) > CONFIG_BYTES_MAX:
        raise EdgeError("config.invalid", f"{file} is longer than {CONFIG_BYTES_MAX} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise EdgeError("config.invalid", f"{file} is not UTF-8 text") from None


def _ports(table: "_Table") -> dict[str, int]:
    result: dict[str, int] = {}
    for name in table.keys()[: MODULES_MAX + 1]:
        try:
            model_name(name)
        except ContractError as error:
            raise table.error(name, f"is no name of a module. {error.hint}") from None
        result[name] = table.integer(name, 1, PORT_MAX, 0)
    if len(result) > MODULES_MAX:
        raise table.error(next(iter(result)), f"is one of more than {MODULES_MAX} modules")
    if len(set(result.values())) != len(result):
        raise table.error(next(reversed(result)), "has the same port as another module")
    return result


def _providers(serve: "_Table") -> tuple[str, ...]:
    value = serve.take("providers")
    names = [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) and _PROVIDER.fullmatch(name) for name in names):
        raise serve.error("providers", "has to be an array of names like 'CUDAExecutionProvider'")
    return tuple(names)


class _Table:
    """Typed access to one table of the file; `close` refuses keys that nobody asked for."""

    def __init__(self, value: Any, file: Path, prefix: str) -> None:
        self._value: dict[str, Any] = value
        self._file = file
        self._prefix = prefix
        self._known: set[str] = set()

    def keys(self) -> list[str]:
        return list(self._value)

    def error(self, key: str, problem: str) -> EdgeError:
        return EdgeError("config.invalid", f"{self._file}: {self._prefix}{key} {problem}")

    def take(self, key: str) -> Any:
        self._known.add(key)
        return self._value.get(key)

    def table(self, key: str) -> "_Table":
        value = self.take(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.error(key, f"has to be a table: [{self._prefix}{key}]")
        return _Table(value, self._file, f"{self._prefix}{key}.")

    def text(self, key: str, default: str) -> str:
        value = self.take(key)
        if value is None:
            return default
        if not isinstance(value, str) or not value:
            raise self.error(key, "has to be a string that is not empty")
        return value

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise self.error(key, f"is {value!r}, it has to be one of: {', '.join(allowed)}")
        return value

    def path(self, key: str) -> Path | None:
        value = self.text(key, "")
        return (self._file.parent / value).absolute() if value else None

    def flag(self, key: str) -> bool | None:
        value = self.take(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "has to be true or false")
        return value

    def integer(self, key: str, low: int, high: int, default: int) -> int:
        value = self.take(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, f"is {value!r}, it has to be a whole number from {low} to {high}")
        return value

    def close(self) -> None:
        for key in self._value:
            if key not in self._known:
                import difflib  # only a mistyped key needs it; the process that runs for months does not

                near = difflib.get_close_matches(key, self._known, 1)
                hint = f" Did you mean {self._prefix}{near[0]}?" if near else ""
                raise self.error(key, f"is not a key of this file.{hint}")
