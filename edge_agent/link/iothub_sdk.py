"""Azure's device SDK, imported here alone and only when a link starts: clients for every kind of identity, messages.

Runs with azure-iot-device 2.15.0rc1 beside paho 2 and with 2.14.0 beside paho 1.6.1 (docs/adr/0032-iot-hub-sdk.md).
"""

import logging
import os
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from edge_agent.config import IotHubConfig, ProvisioningConfig
from edge_agent.limits import (
    HUB_ASSIGNED_BYTES_MAX,
    HUB_SECRET_BYTES_MAX,
    HUB_TOKEN_S_MAX,
    HUB_TOKEN_S_MIN,
    LINK_KEEPALIVE_S,
)
from edge_agent.link.iothub_keys import derived_key
from edge_agent.store.durable import disk_errors, read_file, remove_file, write_file
from edge_contract.errors import ContractError, EdgeError
from edge_contract.hub import KIND_KEY
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object

_ASSIGNED_SCHEMA: Final = "lighterman.iothub-assigned/1"


class Sdk(Protocol):
    """What the link needs of the SDK. Called from short-lived threads, one call at a time but for closing."""

    def client(self) -> Any:
        """A new client that neither connects nor reconnects by itself.

        May ask the provisioning service first, which takes as long as it takes.

        Raises:
            EdgeError: `config.file-missing`, `config.invalid`, `network.refused`, `device.disk-*`.
        """
        ...

    def message(self, kind: str, content: bytes) -> Any:
        """A message for the cloud, with its kind as a property."""
        ...

    def output(self, content: bytes, properties: Mapping[str, str], content_type: str) -> Any:
        """A message for an output of a module of IoT Edge."""
        ...

    def response(self, request: Any, status: int, answer: JsonObject) -> Any:
        """The answer to a direct method."""
        ...

    def refused(self) -> None:
        """The hub refused the last client's credentials: what was derived for it is not to be used again."""
        ...


@dataclass(frozen=True, slots=True)
class _Assigned:
    """Where the provisioning service put this device."""

    hub: str
    device: str


class AzureSdk:
    """The real SDK."""

    def __init__(self, config: IotHubConfig, device: str, data: Path | None = None) -> None:
        """Describe who connects; files with secrets are read again for each connection.

        Args:
            config: Which identity, and where.
            device: Name of this device, where the configuration names none at the hub.
            data: Folder to remember an assignment of the provisioning service in, or none.
        """
        self._config = config
        self._device = device
        self._file = None if data is None else data / "iothub.json"

    def client(self) -> Any:
        """See `Sdk.client`."""
        _quieten()
        try:
            import azure.iot.device as sdk
        except ImportError as error:
            hint = "Install the extra: pip install 'lighterman[azure]'."
            raise EdgeError("config.invalid", f"[iothub] needs azure-iot-device: {error}", hint) from None
        try:
            return self._made(sdk)
        except (ValueError, KeyError, TypeError, OSError) as error:
            # Without the SDK's words, which may hold the key.
            raise EdgeError("config.invalid", *self._complaint(error)) from None

    def message(self, kind: str, content: bytes) -> Any:
        """See `Sdk.message`."""
        made = self._message(content, "application/json", "utf-8")
        made.custom_properties[KIND_KEY] = kind
        return made

    def output(self, content: bytes, properties: Mapping[str, str], content_type: str) -> Any:
        """See `Sdk.output`."""
        made = self._message(content, content_type or None, "utf-8" if "json" in content_type else None)
        made.custom_properties.update(properties)
        return made

    def response(self, request: Any, status: int, answer: JsonObject) -> Any:
        """See `Sdk.response`."""
        from azure.iot.device import MethodResponse

        create: Callable[..., Any] = MethodResponse.create_from_method_request
        return create(request, status, answer)

    def refused(self) -> None:
        """See `Sdk.refused`: the provisioning service is asked again."""
        if self._file is not None:
            with suppress(EdgeError):
                remove_file(self._file)

    # --- clients

    def _made(self, sdk: Any) -> Any:
        config, options = self._config, self._options()
        if config.is_edge:
            # The environment says where the gateway is and whom to trust.
            for name in ("gateway_hostname", "server_verification_cert"):
                options.pop(name, None)
            return sdk.IoTHubModuleClient.create_from_edge_environment(**options)
        if config.provisioning is not None:
            assigned = self._assigned(sdk, config.provisioning)
            return self._identified(sdk, assigned.hub, assigned.device, "", config.provisioning_key(), options)
        if config.connection_string_file is not None:
            secret = read_secret(config.connection_string_file).strip().rstrip(";")
            return self._from_string(sdk, secret, options)
        return self._identified(
            sdk, config.host, config.device or self._device, config.module, config.key_file, options
        )

    def _identified(
        self, sdk: Any, host: str, device: str, module: str, key_file: Path | None, options: dict[str, Any]
    ) -> Any:
        """A client of one device or module by key or certificate."""
        config = self._config
        if config.certificate is not None:
            kind = sdk.IoTHubModuleClient if module else sdk.IoTHubDeviceClient
            names = {"module_id": module} if module else {}
            return kind.create_from_x509_certificate(self._x509(sdk), host, device, **names, **options)
        key = read_secret(key_file or Path()).strip()
        if config.provisioning is not None and config.provisioning.group_key_file is not None:
            key = derived_key(key, config.provisioning.registration or self._device)
        secret = f"HostName={host};DeviceId={device};SharedAccessKey={key}"
        return self._from_string(sdk, f"{secret};ModuleId={module}" if module else secret, options)

    def _from_string(self, sdk: Any, secret: str, options: dict[str, Any]) -> Any:
        gateway = options.pop("gateway_hostname", "")
        if gateway and "gatewayhostname=" not in secret.lower():
            secret += f";GatewayHostName={gateway}"
        kind = sdk.IoTHubModuleClient if "moduleid=" in secret.lower() else sdk.IoTHubDeviceClient
        return kind.create_from_connection_string(secret, sastoken_ttl=_token_s(), **options)

    def _options(self) -> dict[str, Any]:
        config = self._config
        options: dict[str, Any] = {
            "auto_connect": False,
            "connection_retry": False,
            "ensure_desired_properties": False,
            "keep_alive": LINK_KEEPALIVE_S,
            "websockets": config.websockets,
        }
        if config.gateway:
            options["gateway_hostname"] = config.gateway
        if config.ca is not None:
            options["server_verification_cert"] = read_secret(config.ca)
        return options

    def _x509(self, sdk: Any) -> Any:
        config = self._config
        phrase = None if config.passphrase_file is None else read_secret(config.passphrase_file).strip()
        for file in (config.certificate, config.certificate_key):
            read_secret(file or Path())  # so that one that is missing is told by its name
        return sdk.X509(str(config.certificate), str(config.certificate_key), phrase)

    def _message(self, content: bytes, content_type: str | None, encoding: str | None) -> Any:
        from azure.iot.device import Message

        make: Callable[..., Any] = Message
        return make(content, content_encoding=encoding, content_type=content_type)

    # --- the provisioning service

    def _assigned(self, sdk: Any, asked: ProvisioningConfig) -> _Assigned:
        """The hub this device belongs to: as remembered, else as the service says now."""
        registration = asked.registration or self._device
        who: JsonObject = {"host": asked.host, "scope": asked.scope, "registration": registration}
        if (known := self._remembered(who)) is not None:
            return known
        options: dict[str, Any] = {"websockets": self._config.websockets, "keep_alive": LINK_KEEPALIVE_S}
        if self._config.ca is not None:
            options["server_verification_cert"] = read_secret(self._config.ca)
        if asked.gateway:
            options["gateway_hostname"] = asked.gateway
        names = (asked.host, registration, asked.scope)
        if self._config.certificate is not None:
            asker = sdk.ProvisioningDeviceClient.create_from_x509_certificate(*names, self._x509(sdk), **options)
        else:
            key = read_secret(self._config.provisioning_key() or Path()).strip()
            if asked.group_key_file is not None:
                key = derived_key(key, registration)
            asker = sdk.ProvisioningDeviceClient.create_from_symmetric_key(*names, key, **options)
        result = asker.register()
        status, state = str(result.status), result.registration_state
        if status != "assigned" or state is None:
            detail = f"the provisioning service gave {registration!r} no hub: {status}"
            hint = "Is the enrolment enabled, and does its allocation name a hub? It is tried again."
            raise EdgeError("network.refused", detail, hint)
        found = _Assigned(str(state.assigned_hub), str(state.device_id))
        if self._file is not None:
            document = {"schema": _ASSIGNED_SCHEMA, **who, "hub": found.hub, "device": found.device}
            with disk_errors(f"writing {self._file}"):
                write_file(self._file, dump(document))
        return found

    def _remembered(self, who: JsonObject) -> _Assigned | None:
        if self._file is None:
            return None
        with disk_errors(f"reading {self._file}"):
            data = read_file(self._file, HUB_ASSIGNED_BYTES_MAX)
        try:
            if data is None:
                return None
            document = parse_object(data, "the hub's assignment", HUB_ASSIGNED_BYTES_MAX)
            fields = Fields(document, "the hub's assignment")
            fields.schema(_ASSIGNED_SCHEMA)
            if any(document.get(key) != value for key, value in who.items()):
                return None
            return _Assigned(fields.text("hub"), fields.text("device"))
        except ContractError:
            return None  # it costs one question

    def _complaint(self, error: Exception) -> tuple[str, str]:
        config = self._config
        if config.is_edge:
            return (
                f"this process was not started by IoT Edge: {type(error).__name__}",
                "IoT Edge sets IOTEDGE_WORKLOADURI and its like for modules. Elsewhere give the device an identity.",
            )
        if config.connection_string_file is not None:
            return (
                f"{config.connection_string_file} holds no connection string with a symmetric key",
                "HostName=…;DeviceId=…;SharedAccessKey=…",
            )
        if config.certificate is not None:
            return (
                f"{config.certificate} and {config.certificate_key} are no certificate and key that go together",
                "PEM files; a passphrase goes into a file of its own.",
            )
        return ("[iothub] names no identity that the SDK can use", "Keys are base64, as the hub shows them.")


def _quieten() -> None:
    """The SDK tells three lines a message, and a page for each connection that ends; the link says what matters."""
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger("azure").setLevel(logging.ERROR)


def _token_s() -> int:
    """How long a token lives: never short, which would make a storm of renewals, and not for all devices the same."""
    return random.randint(HUB_TOKEN_S_MIN, HUB_TOKEN_S_MAX)


def read_secret(file: Path) -> str:
    """The text of a file with a secret or certificates.

    Raises:
        EdgeError: `config.file-missing`, `config.invalid`.
    """
    try:
        with file.open("rb") as source:
            data = source.read(HUB_SECRET_BYTES_MAX + 1)
        if len(data) > HUB_SECRET_BYTES_MAX:
            raise EdgeError("config.invalid", f"{file} is longer than {HUB_SECRET_BYTES_MAX} bytes")
        return data.decode("utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise EdgeError("config.file-missing", f"{file} cannot be read: {reason}") from None


def is_edge_environment(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether IoT Edge started this process as a module, or a developer's tool pretends so."""
    names = ("IOTEDGE_WORKLOADURI", "IOTEDGE_MODULEID"), ("EdgeHubConnectionString", "EdgeModuleCACertificateFile")
    return any(all(environment.get(name) for name in group) for group in names)
