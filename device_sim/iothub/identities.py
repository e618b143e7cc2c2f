"""Devices and modules that a hub knows, and how each proves who it is. Pure; time and keys are arguments.

Source: Azure IoT Hub documentation, "Identity registry", and the REST API's Device and Module (2021-04-12).
"""

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Any, Final

from device_sim.iothub.limits import NAME_CHARS_MAX
from device_sim.iothub.twins import instant
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject

SAS: Final = "sas"
SELF_SIGNED: Final = "selfSigned"
AUTHORITY: Final = "certificateAuthority"
NONE: Final = "none"
_KINDS: Final = (SAS, SELF_SIGNED, AUTHORITY, NONE)
_NAME: Final = re.compile(r"[A-Za-z0-9\-:.+%_#*?!(),=@$']{1,128}")
_NEVER: Final = "0001-01-01T00:00:00Z"


class HubError(Exception):
    """A request that the service refuses.

    Attributes:
        status: HTTP status.
        code: The service's own six digits, or 0.
        name: The service's word for it, such as `DeviceNotFound`.
    """

    def __init__(self, status: int, name: str, detail: str, code: int = 0) -> None:
        """Say what happened."""
        super().__init__(detail)
        self.status = status
        self.name = name
        self.detail = detail
        self.code = code or status * 1000


@dataclass(slots=True)
class Authentication:
    """What proves an identity: keys in base64, or thumbprints in hexadecimal (SHA-1 or SHA-256)."""

    kind: str = SAS
    primary: str = ""
    secondary: str = ""
    primary_thumbprint: str = ""
    secondary_thumbprint: str = ""

    def to_json(self) -> JsonObject:
        """As the REST API shows it."""
        return {
            "symmetricKey": {"primaryKey": self.primary or None, "secondaryKey": self.secondary or None},
            "x509Thumbprint": {
                "primaryThumbprint": self.primary_thumbprint or None,
                "secondaryThumbprint": self.secondary_thumbprint or None,
            },
            "type": self.kind,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Authentication":
        """Read the REST API's form; missing parts stay empty.

        Raises:
            HubError: 400.
        """
        given = value if isinstance(value, dict) else {}
        keys, prints = given.get("symmetricKey") or {}, given.get("x509Thumbprint") or {}
        if not isinstance(keys, dict) or not isinstance(prints, dict):
            raise HubError(400, "ArgumentInvalid", "authentication: symmetricKey and x509Thumbprint are objects")
        has_prints = any(prints.get(name) for name in ("primaryThumbprint", "secondaryThumbprint"))
        kind = given.get("type") or (SELF_SIGNED if has_prints else SAS)
        if kind not in _KINDS:
            raise HubError(400, "ArgumentInvalid", f"authentication: type {str(kind)[:40]!r} is unknown")
        result = cls(kind, _key(keys.get("primaryKey")), _key(keys.get("secondaryKey")))
        result.primary_thumbprint = _thumbprint(prints.get("primaryThumbprint"))
        result.secondary_thumbprint = _thumbprint(prints.get("secondaryThumbprint"))
        return result

    @property
    def keys(self) -> tuple[str, ...]:
        """Those that are set."""
        return tuple(key for key in (self.primary, self.secondary) if key)

    def has_thumbprint(self, sha1: str, sha256: str) -> bool:
        """Whether a certificate with these thumbprints, upper case, is the one that was told."""
        known = {self.primary_thumbprint, self.secondary_thumbprint} - {""}
        return bool(known & {sha1, sha256})


@dataclass(slots=True)
class Identity:
    """A device or a module in the registry.

    Attributes:
        address: Who it is.
        authentication: How it proves that.
        is_enabled: A disabled one may not connect.
        status_reason: A note of the operator.
        is_edge: Whether the device runs IoT Edge.
        generation: Tells apart identities of one name in the course of time.
        revision: Counts writes; the entity tag comes from it.
        managed_by: Of modules; `IotEdge` for those that a deployment made.
        connected: Whether it is connected now.
        connected_at: When that changed; empty for never.
        active_at: When it last said something; empty for never.
    """

    address: HubAddress
    authentication: Authentication = field(default_factory=Authentication)
    is_enabled: bool = True
    status_reason: str = ""
    is_edge: bool = False
    generation: str = ""
    revision: int = 1
    managed_by: str = ""
    connected: bool = False
    connected_at: str = ""
    active_at: str = ""

    @property
    def etag(self) -> str:
        """Changes with every write to the registry."""
        return base64.b64encode(f"{self.generation}.{self.revision}".encode()).decode()

    def to_json(self, waiting: int = 0) -> JsonObject:
        """As the REST API shows it; `waiting` counts messages to the device."""
        shown: JsonObject = {
            "deviceId": self.address.device,
            "generationId": self.generation,
            "etag": self.etag,
            "connectionState": "Connected" if self.connected else "Disconnected",
            "connectionStateUpdatedTime": self.connected_at or _NEVER,
            "lastActivityTime": self.active_at or _NEVER,
            "cloudToDeviceMessageCount": waiting,
            "authentication": self.authentication.to_json(),
        }
        if self.address.module:
            return shown | {"moduleId": self.address.module, "managedBy": self.managed_by or None}
        return shown | {
            "status": "enabled" if self.is_enabled else "disabled",
            "statusReason": self.status_reason or None,
            "statusUpdatedTime": _NEVER,
            "capabilities": {"iotEdge": self.is_edge},
        }

    def touch(self, now_ms: int) -> None:
        """It said something."""
        self.active_at = instant(now_ms)

    def set_connected(self, connected: bool, now_ms: int) -> None:
        """It came or went."""
        self.connected = connected
        self.connected_at = instant(now_ms)

    def to_store(self) -> JsonObject:
        """Everything that outlives a restart of the emulator."""
        return {
            "authentication": self.authentication.to_json(),
            "is_enabled": self.is_enabled,
            "status_reason": self.status_reason,
            "is_edge": self.is_edge,
            "generation": self.generation,
            "revision": self.revision,
            "managed_by": self.managed_by,
            "connected_at": self.connected_at,
            "active_at": self.active_at,
        }

    @classmethod
    def from_store(cls, address: HubAddress, stored: JsonObject) -> "Identity":
        """What `to_store` wrote."""
        rest = {key: value for key, value in stored.items() if key != "authentication"}
        return cls(address, Authentication.from_json(stored["authentication"]), **rest)


def checked_name(text: Any, what: str) -> str:
    """An identifier as the service allows it.

    Raises:
        HubError: 400.
    """
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise HubError(400, "ArgumentInvalid", f"{what} has 1 to {NAME_CHARS_MAX} letters, digits or -:.+%_#*?!(),=@$'")
    return text


def _key(value: Any) -> str:
    if not value:
        return ""
    try:
        if not isinstance(value, str) or not 16 <= len(base64.b64decode(value, validate=True)) <= 64:
            raise ValueError(value)
    except (binascii.Error, ValueError):
        raise HubError(400, "ArgumentInvalid", "a symmetric key is base64 of 16 to 64 bytes") from None
    return value


def _thumbprint(value: Any) -> str:
    text = str(value or "").replace(":", "").upper()
    if text and not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", text):
        raise HubError(400, "ArgumentInvalid", "a thumbprint has 40 or 64 hexadecimal digits")
    return text
