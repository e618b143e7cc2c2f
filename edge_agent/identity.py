"""What enrolment gave this device: its name, key, certificate, token, the broker's address and the roots of trust.

It lies in `<data>/identity`: `device.key` and `enrolment.json` hold secrets and are readable by their owner alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_agent.limits import ENROL_BYTES_MAX, PORT_MAX, ROOT_BYTES_MAX, TOKEN_CHARS_MAX
from edge_agent.store import durable
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object
from edge_contract.names import device_name, platform_name

SCHEMA: Final = "lighterman.enrolment/1"
FOLDER: Final = "identity"
NEW_FOLDER: Final = "identity.new"
OLD_FOLDER: Final = "identity.old"
KEY: Final = "device.key"
CERTIFICATE: Final = "device.crt"
DEVICE_CA: Final = "ca.crt"
BROKER_CA: Final = "broker-ca.crt"
REGISTRY_CA: Final = "registry-ca.crt"
IMAGE_ROOT: Final = "image-root.json"
DIRECTOR_ROOT: Final = "director-root.json"
ENROLMENT: Final = "enrolment.json"
_CODE: Final = "device.disk-corrupt"


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is, as enrolment said.

    Attributes:
        host: Host name or address.
        port: TCP port.
        tls: Whether it speaks TLS.
    """

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """One device's identity. Its text form shows no secret.

    Attributes:
        device: Name of the device.
        url: Base URL of the registry.
        token: Bearer token for the registry.
        platform: As enrolled, `os/architecture[/variant]`.
        hardware_id: As enrolled; empty for none.
        broker: None when the registry told of none.
        folder: Where the files are.
    """

    device: str
    url: str
    token: str
    platform: str
    hardware_id: str
    broker: Broker | None
    folder: Path

    def __repr__(self) -> str:
        """Without the token."""
        return f"DeviceIdentity(device={self.device!r}, url={self.url!r}, platform={self.platform!r})"

    @property
    def key(self) -> Path:
        """File of the private key."""
        return self.folder / KEY

    @property
    def certificate(self) -> Path:
        """File of the certificate."""
        return self.folder / CERTIFICATE

    @property
    def broker_ca(self) -> Path | None:
        """File of the certificates to trust at the broker, or none for the system's."""
        return _existing(self.folder / BROKER_CA)

    @property
    def registry_ca(self) -> Path | None:
        """File of the certificates to trust at the registry, or none for the system's."""
        return _existing(self.folder / REGISTRY_CA)

    def roots(self) -> tuple[bytes, bytes]:
        """The first root metadata of director and image repository.

        Raises:
            EdgeError: `trust.root-unknown`, `device.disk-error`.
        """
        return self._root(DIRECTOR_ROOT), self._root(IMAGE_ROOT)

    def _root(self, name: str) -> bytes:
        path = self.folder / name
        with durable.disk_errors(f"reading {path}"):
            data = durable.read_file(path, ROOT_BYTES_MAX)
        if data is None:
            raise EdgeError("trust.root-unknown", f"{path} is missing", "Enrol it again: edge-agent enroll --force.")
        return data

    def to_bytes(self) -> bytes:
        """The file `enrolment.json`."""
        broker = self.broker
        return dump(
            {
                "schema": SCHEMA,
                "device": self.device,
                "url": self.url,
                "token": self.token,
                "platform": self.platform,
                "hardware_id": self.hardware_id,
                "broker": None if broker is None else {"host": broker.host, "port": broker.port, "tls": broker.tls},
            }
        )


def broker_from(value: Any) -> Broker | None:
    """Read a broker's address, or none.

    Raises:
        ContractError: `artifact.document-invalid`.
    """
    if value is None:
        return None
    fields = Fields(value, "mqtt")
    return Broker(
        fields.text("host", chars_max=255), fields.integer("port", low=1, high=PORT_MAX), fields.flag("tls", False)
    )


def load_identity(data: Path) -> DeviceIdentity:
    """Read the identity in a data directory.

    Args:
        data: The data directory.

    Raises:
        EdgeError: `device.not-enrolled`, `device.disk-corrupt`, `device.disk-error`.
    """
    folder = data / (NEW_FOLDER if is_half_exchanged(data) else FOLDER)
    path = folder / ENROLMENT
    with durable.disk_errors(f"reading {path}"):
        content = durable.read_file(path, ENROL_BYTES_MAX)
    if content is None:
        raise EdgeError(
            "device.not-enrolled",
            f"there is no identity in {folder}",
            "Enrol this device first: edge-agent enroll --url URL --token TOKEN.",
        )
    try:
        fields = Fields(parse_object(content, str(path), ENROL_BYTES_MAX), str(path), _CODE)
        fields.schema(SCHEMA)
        return _from_fields(fields, folder)
    except ContractError as error:
        raise EdgeError(_CODE, error.detail, "Enrol it again: edge-agent enroll --force.") from None


def is_half_exchanged(data: Path) -> bool:
    """Whether power failed when the old identity had lost its name and the new one, complete, did not have it yet."""
    return not (data / FOLDER).exists() and (data / OLD_FOLDER).exists() and (data / NEW_FOLDER / ENROLMENT).exists()


def _from_fields(fields: Fields, folder: Path) -> DeviceIdentity:
    return DeviceIdentity(
        device=device_name(fields.text("device")),
        url=fields.text("url"),
        token=fields.text("token", chars_max=TOKEN_CHARS_MAX),
        platform=platform_name(fields.text("platform")),
        hardware_id=fields.text("hardware_id", ""),
        broker=broker_from(fields.take("broker")),
        folder=folder,
    )


def from_answer(answer: JsonObject, url: str, platform: str, hardware_id: str, folder: Path) -> DeviceIdentity:
    """Make an identity from the registry's answer to an enrolment.

    Args:
        answer: The answer's JSON object.
        url: Base URL of the registry.
        platform: As sent.
        hardware_id: As sent.
        folder: Where its files will be.

    Raises:
        ContractError: `artifact.document-invalid`, `cloud.name-invalid`.
    """
    fields = Fields(answer, "the registry's answer")
    return DeviceIdentity(
        device=device_name(fields.text("device")),
        url=url,
        token=fields.text("token", chars_max=TOKEN_CHARS_MAX),
        platform=platform,
        hardware_id=hardware_id,
        broker=broker_from(fields.take("mqtt")),
        folder=folder,
    )


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
