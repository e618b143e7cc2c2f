"""What enrolment gave this device: its name, key, certificate, the broker's address and the roots of trust.

It lies in `<data>/identity`. The only secret in it is the key's file `device.key`, and there is none when the key is on
a PKCS#11 token. A renewal replaces the whole folder at once; `LiveIdentity` notices.
"""

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_agent.keyuri import file_name
from edge_agent.limits import ENROL_BYTES_MAX, KEY_URI_CHARS_MAX, PORT_MAX, ROOT_BYTES_MAX
from edge_agent.store import durable
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object
from edge_contract.names import device_name, platform_name

SCHEMA: Final = "lighterman.enrolment/2"
FOLDER: Final = "identity"
NEW_FOLDER: Final = "identity.new"
OLD_FOLDER: Final = "identity.old"
LOCK: Final = "identity.lock"
CERTIFICATE: Final = "device.crt"
LINK_KEY: Final = "link.key"
LINK_CERTIFICATE: Final = "link.crt"
DEVICE_CA: Final = "ca.crt"
BROKER_CA: Final = "broker-ca.crt"
REGISTRY_CA: Final = "registry-ca.crt"
IMAGE_ROOT: Final = "image-root.json"
DIRECTOR_ROOT: Final = "director-root.json"
ENROLMENT: Final = "enrolment.json"
_CODE: Final = "device.disk-corrupt"
_LOG: Final = logging.getLogger(__name__)


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
class KeyPlace:
    """Which key is the device's, and where.

    Attributes:
        uri: See `edge_agent.keyuri`.
        algorithm: `ES256` or `EdDSA`.
        keyid: SHA-256 of the public key (SubjectPublicKeyInfo, DER), hexadecimal.
        folder: The identity's folder, which a `file:` URI is relative to.
    """

    uri: str
    algorithm: str
    keyid: str
    folder: Path

    @property
    def file(self) -> Path | None:
        """The key's file, or none for a key on a token."""
        name = file_name(self.uri)
        return None if name is None else self.folder / name

    @property
    def kind(self) -> str:
        """For people: `file P-256`, for example."""
        place = "file" if self.file is not None else "PKCS#11"
        return f"{place} {'Ed25519' if self.algorithm == 'EdDSA' else 'P-256'}"


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate is valid, milliseconds since 1970.

    Attributes:
        from_ms: First instant.
        until_ms: Last instant.
    """

    from_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """One device's identity.

    Attributes:
        device: Name of the device.
        url: Base URL of the registry.
        key: The device's private key.
        valid: When its certificate is valid.
        platform: As enrolled, `os/architecture[/variant]`.
        hardware_id: As enrolled; empty for none.
        broker: None when the registry told of none.
        folder: Where the files are.
    """

    device: str
    url: str
    key: KeyPlace
    valid: Validity
    platform: str
    hardware_id: str
    broker: Broker | None
    folder: Path

    @property
    def link_certificate(self) -> Path:
        """File of the certificate for TLS."""
        return self.folder / (CERTIFICATE if self.key.file is not None else LINK_CERTIFICATE)

    @property
    def link_key(self) -> Path:
        """File of the private key for TLS: the device's own, or one beside it when that is on a token.

        Python's TLS takes keys from files alone.
        """
        return self.key.file or self.folder / LINK_KEY

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
                "key": {"uri": self.key.uri, "algorithm": self.key.algorithm, "keyid": self.key.keyid},
                "valid": {"from_ms": self.valid.from_ms, "until_ms": self.valid.until_ms},
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
    key, valid = Fields(fields.take("key"), "key", _CODE), Fields(fields.take("valid"), "valid", _CODE)
    return DeviceIdentity(
        device=device_name(fields.text("device")),
        url=fields.text("url"),
        key=KeyPlace(
            uri=key.text("uri", chars_max=KEY_URI_CHARS_MAX),
            algorithm=key.text("algorithm", chars_max=16),
            keyid=key.text("keyid", chars_max=64),
            folder=folder,
        ),
        valid=Validity(valid.integer("from_ms"), valid.integer("until_ms")),
        platform=platform_name(fields.text("platform")),
        hardware_id=fields.text("hardware_id", ""),
        broker=broker_from(fields.take("broker")),
        folder=folder,
    )


def from_answer(
    answer: JsonObject, url: str, key: KeyPlace, valid: Validity, platform: str, hardware_id: str
) -> DeviceIdentity:
    """Make an identity from the registry's answer to an enrolment.

    Args:
        answer: The answer's JSON object.
        url: Base URL of the registry.
        key: The key that the answer is for; its folder is where the identity's files will be.
        valid: When the certificate in the answer is valid.
        platform: As sent.
        hardware_id: As sent.

    Raises:
        ContractError: `artifact.document-invalid`, `cloud.name-invalid`.
    """
    fields = Fields(answer, "the registry's answer")
    return DeviceIdentity(
        device=device_name(fields.text("device")),
        url=url,
        key=key,
        valid=valid,
        platform=platform,
        hardware_id=hardware_id,
        broker=broker_from(fields.take("mqtt")),
        folder=key.folder,
    )


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


class LiveIdentity:
    """The identity as it is on disk now, though somebody may renew it at any time. Any thread."""

    def __init__(self, data: Path) -> None:
        """Read the identity in a data directory.

        Raises:
            EdgeError: As `load_identity`.
        """
        self._data = data
        self._lock = threading.Lock()
        self._seen = self._look()
        self._identity = load_identity(data)

    def current(self) -> DeviceIdentity:
        """The identity; the last one that could be read while the disk or an exchange is in the way."""
        with self._lock:
            found = self._look()
            if found != self._seen:
                try:
                    self._identity = load_identity(self._data)
                    self._seen = found
                except EdgeError as error:
                    _LOG.warning("the identity changed and cannot be read: %s", error)
            return self._identity

    def key(self) -> KeyPlace:
        """Which key the device has now."""
        return self.current().key

    def _look(self) -> tuple[str, int, int] | None:
        for folder in (FOLDER, NEW_FOLDER):
            try:
                seen = os.stat(self._data / folder / ENROLMENT)
            except OSError:
                continue
            return folder, seen.st_ino, seen.st_mtime_ns
        return None
