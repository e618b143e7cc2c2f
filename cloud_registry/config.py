"""Configuration of the registry: a TOML file, then `LIGHTERMAN_…` environment variables, then flags; later ones win."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints
from urllib.parse import urlsplit

from cloud_registry.limits import (
    DEVICE_CERTIFICATE_DAYS,
    DEVICE_CERTIFICATE_DAYS_MAX,
    HUB_PREFETCH_MAX,
    HUB_TWINS_S,
    HUB_TWINS_S_MAX,
    HUB_WRITES_PER_S,
    HUB_WRITES_PER_S_MAX,
)
from edge_contract.errors import EdgeError

ENVIRONMENT_PREFIX: Final = "LIGHTERMAN_"
CONFIG_BYTES_MAX: Final = 1024 * 1024
DATA_DIR_DEFAULT: Final = "lighterman-data"


@dataclass(frozen=True, slots=True)
class MqttConfig:
    """How the cloud reaches the broker.

    Attributes:
        host: Name or address; empty means "no broker".
        port: TCP port.
        tls_ca: CA certificate (PEM) that the broker's certificate has to chain to; none for plain TCP.
        tls_cert: Own certificate (PEM), or none.
        tls_key: Its key (PEM), or none.
        username: User name, or empty.
        password_file: File with the password, or none.
        shared_group: Group of the shared subscription `$share/<group>/…`; empty for a plain subscription.
        keeps_roster: Whether the registry keeps the broker's list of devices (mosquitto's dynamic-security plugin).
    """

    host: str = ""
    port: int = 1883
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    username: str = ""
    password_file: Path | None = None
    shared_group: str = ""
    keeps_roster: bool = False


@dataclass(frozen=True, slots=True)
class MqttPublicConfig:
    """What devices are told of the broker at enrolment.

    Attributes:
        host: Name or address as devices see it; empty means "as the cloud reaches it".
        port: TCP port; 0 means "as the cloud reaches it".
        tls: Whether devices speak TLS to it, with their own certificates.
        tls_ca: CA certificate (PEM) for devices; none when the registry's own authority signed the broker's.
    """

    host: str = ""
    port: int = 0
    tls: bool = False
    tls_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class IotHubConfig:
    """How the cloud reaches an Azure IoT hub that carries some of its devices, or all.

    Attributes:
        connection_string_file: File with the connection string of a policy of the hub that may read the registry and
            connect as a service; none means "no hub".
        eventhub_connection_string_file: File with the connection string of its Event-Hubs-compatible endpoint.
        eventhub_address: Another address for that, such as `sb://127.0.0.1:5671`; empty for the one in the string.
        consumer_group: Consumer group there; one that nobody else reads with.
        ca: Certificates to trust instead of the usual ones, or none.
        websockets: Use port 443 for events, where nothing else is let through.
        writes_per_s: Twins that are written at most in a second.
        prefetch: Events that are fetched ahead for each partition.
        twins_s: Seconds between two readings of reports in twins; 0 for never.
    """

    connection_string_file: Path | None = None
    eventhub_connection_string_file: Path | None = None
    eventhub_address: str = ""
    consumer_group: str = "$Default"
    ca: Path | None = None
    websockets: bool = False
    writes_per_s: int = HUB_WRITES_PER_S
    prefetch: int = 300
    twins_s: int = int(HUB_TWINS_S)

    @property
    def is_used(self) -> bool:
        """Whether there is a hub."""
        return self.connection_string_file is not None


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """Everything `cloud-registry` can be told.

    Attributes:
        data_dir: Folder of blobs, keys, telemetry and the default database.
        database_url: SQLAlchemy URL; empty means SQLite in `data_dir`. `postgresql://` is read as psycopg.
        host: Address to listen on.
        port: TCP port to listen on; 0 lets the kernel choose.
        public_url: Base URL as devices see it; empty means "as listened on".
        tls_cert: Server certificate (PEM), or none for plain HTTP.
        tls_key: Its key (PEM), or none.
        device_certificate_days: How long a device's certificate is good; devices renew it when a third is left, and
            one that was away for longer has to enrol again.
        mqtt: How the cloud reaches the broker.
        mqtt_public: What devices are told of it.
        iothub: An Azure IoT hub beside the broker, or in its place.
    """

    data_dir: Path = Path(DATA_DIR_DEFAULT)
    database_url: str = ""
    host: str = "127.0.0.1"
    port: int = 8400
    public_url: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    device_certificate_days: int = DEVICE_CERTIFICATE_DAYS
    mqtt: MqttConfig = field(default_factory=MqttConfig)
    mqtt_public: MqttPublicConfig = field(default_factory=MqttPublicConfig)
    iothub: IotHubConfig = field(default_factory=IotHubConfig)

    @property
    def oci_dir(self) -> Path:
        """The OCI layout."""
        return self.data_dir / "oci"

    @property
    def lake_dir(self) -> Path:
        """The telemetry lake's Parquet files."""
        return self.data_dir / "lake"

    @property
    def keys_dir(self) -> Path:
        """The online TUF keys, each file 0600."""
        return self.data_dir / "keys"

    @property
    def pki_dir(self) -> Path:
        """The devices' certificate authority, key 0600."""
        return self.data_dir / "pki"

    @property
    def sqlalchemy_url(self) -> str:
        """The database URL with its driver."""
        if not self.database_url:
            return f"sqlite:///{(self.data_dir / 'registry.db').absolute()}"
        for scheme in ("postgresql://", "postgres://"):
            if self.database_url.startswith(scheme):
                return "postgresql+psycopg://" + self.database_url.removeprefix(scheme)
        return self.database_url

    def check(self) -> "RegistryConfig":
        """Require values that fit together; gives itself back.

        Raises:
            EdgeError: `config.invalid` or `config.file-missing`.
        """
        for name, port in (
            ("port", self.port),
            ("mqtt.port", self.mqtt.port),
            ("mqtt_public.port", self.mqtt_public.port),
        ):
            if not 0 <= port <= 65535:
                raise EdgeError("config.invalid", f"{name} is {port}", "A port is a number from 0 to 65535.")
        if not 1 <= self.device_certificate_days <= DEVICE_CERTIFICATE_DAYS_MAX:
            raise EdgeError(
                "config.invalid",
                f"device_certificate_days is {self.device_certificate_days}",
                f"Use 1 to {DEVICE_CERTIFICATE_DAYS_MAX}.",
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise EdgeError("config.invalid", "tls_cert and tls_key belong together", "Give both, or neither.")
        if (self.mqtt.tls_cert is None) != (self.mqtt.tls_key is None):
            raise EdgeError(
                "config.invalid", "mqtt.tls_cert and mqtt.tls_key belong together", "Give both, or neither."
            )
        if self.public_url and urlsplit(self.public_url).scheme not in ("http", "https"):
            raise EdgeError("config.invalid", f"public_url is {self.public_url!r}", "Use http://… or https://….")
        if not self.sqlalchemy_url.startswith(("sqlite:", "postgresql+psycopg:")):
            scheme = self.database_url.split(":", 1)[0]
            raise EdgeError(
                "config.invalid", f"database_url has the scheme {scheme!r}", "Use sqlite:/// or postgresql://."
            )
        named = {"tls_cert": self.tls_cert, "tls_key": self.tls_key, "mqtt_public.tls_ca": self.mqtt_public.tls_ca}
        named |= {f"mqtt.{key}": getattr(self.mqtt, key) for key in ("tls_ca", "tls_cert", "tls_key", "password_file")}
        hub = self.iothub
        named |= {
            f"iothub.{key}": getattr(hub, key)
            for key in ("connection_string_file", "eventhub_connection_string_file", "ca")
        }
        if (hub.connection_string_file is None) != (hub.eventhub_connection_string_file is None):
            raise EdgeError(
                "config.invalid",
                "iothub.connection_string_file and iothub.eventhub_connection_string_file belong together",
                "One writes to twins, the other reads what devices send.",
            )
        for name, value, most in (
            ("writes_per_s", hub.writes_per_s, HUB_WRITES_PER_S_MAX),
            ("prefetch", hub.prefetch, HUB_PREFETCH_MAX),
        ):
            if not 1 <= value <= most:
                raise EdgeError("config.invalid", f"iothub.{name} is {value}", f"Use 1 to {most}.")
        if not 0 <= hub.twins_s <= HUB_TWINS_S_MAX:
            raise EdgeError("config.invalid", f"iothub.twins_s is {hub.twins_s}", f"Use 0 to {HUB_TWINS_S_MAX}.")
        for name, path in named.items():
            if path is not None and not path.is_file():
                raise EdgeError("config.file-missing", f"{name}: there is no file {path}")
        return self


def load_config(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RegistryConfig:
    """Read the configuration.

    Args:
        file: A TOML file; none reads `cloud-registry.toml` of the working directory if it is there.
        environ: Environment; `LIGHTERMAN_DATA_DIR`, `LIGHTERMAN_MQTT_HOST`, … Defaults to the process's.
        overrides: Dotted names (`mqtt.host`) to values, from flags; values that are none are left out.

    Raises:
        EdgeError: `config.invalid` (unknown names too) or `config.file-missing`.
    """
    values: dict[str, Any] = {}
    path = file if file is not None else Path("cloud-registry.toml")
    if file is not None or path.is_file():
        values |= _flatten(_read_toml(path))
    names = _names()
    environ = os.environ if environ is None else environ
    for name in names:
        text = environ.get(ENVIRONMENT_PREFIX + name.upper().replace(".", "_"))
        if text is not None:
            values[name] = text
    values |= {name: value for name, value in (overrides or {}).items() if value is not None}
    for name in values:
        if name not in names:
            raise EdgeError("config.invalid", f"unknown setting {name!r}", f"Known: {', '.join(sorted(names))}.")
    return _build(values, names).check()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise EdgeError("config.invalid", f"{path} is longer than {CONFIG_BYTES_MAX} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgeError("config.file-missing", f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeError) as error:
        raise EdgeError("config.invalid", f"{path} is not valid TOML: {error}") from None


def _flatten(table: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            result |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            result[key] = value
    return result


def _names() -> dict[str, Any]:
    """Type of every setting by its dotted name."""
    result: dict[str, Any] = {}
    kinds = ((RegistryConfig, ""), (MqttConfig, "mqtt."), (MqttPublicConfig, "mqtt_public."), (IotHubConfig, "iothub."))
    for kind, prefix in kinds:
        hints = get_type_hints(kind)
        result |= {prefix + item.name: hints[item.name] for item in fields(kind)}
    del result["mqtt"], result["mqtt_public"], result["iothub"]
    return result


def _build(values: Mapping[str, Any], names: Mapping[str, Any]) -> RegistryConfig:
    typed = {name: _convert(name, value, names[name]) for name, value in values.items()}
    config = RegistryConfig(**{name: value for name, value in typed.items() if "." not in name})

    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in typed.items() if name.startswith(prefix)}

    return replace(
        config,
        mqtt=MqttConfig(**part("mqtt.")),
        mqtt_public=MqttPublicConfig(**part("mqtt_public.")),
        iothub=IotHubConfig(**part("iothub.")),
    )


def _convert(name: str, value: Any, kind: Any) -> Any:
    if kind is Path or Path in get_args(kind):
        return Path(_text(name, value)) if value != "" else None
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("1", "true", "yes", "on"):
            return True
        if str(value).lower() in ("0", "false", "no", "off"):
            return False
        raise EdgeError("config.invalid", f"{name} is {value!r}", "Use true or false.")
    if kind is int:
        if isinstance(value, bool) or not str(value).isdecimal():
            raise EdgeError("config.invalid", f"{name} is {value!r}", "Use a whole number.")
        return int(value)
    return _text(name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str | Path):
        raise EdgeError("config.invalid", f"{name} has to be text")
    return str(value)
