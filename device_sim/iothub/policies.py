"""Shared access policies of a hub: who may use its service side, and for what. Pure.

Source: Azure IoT Hub documentation, "Control access to IoT Hub by using shared access signatures".
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Final

from device_sim.iothub import sas

REGISTRY_READ: Final = "RegistryRead"
REGISTRY_WRITE: Final = "RegistryWrite"
SERVICE: Final = "ServiceConnect"
DEVICE: Final = "DeviceConnect"
_BUILT_IN: Final = {
    "iothubowner": (REGISTRY_READ, REGISTRY_WRITE, SERVICE, DEVICE),
    "service": (SERVICE,),
    "device": (DEVICE,),
    "registryRead": (REGISTRY_READ,),
    "registryReadWrite": (REGISTRY_READ, REGISTRY_WRITE),
}


def rights_of(policy: str) -> frozenset[str]:
    """What a policy allows; nothing for one that no hub has."""
    return frozenset(_BUILT_IN.get(policy, ()))


def connection_string(host: str, keys: Mapping[str, str], policy: str = "iothubowner") -> str:
    """What the service SDK takes; `host` with its port where that is not 443."""
    return f"HostName={host};SharedAccessKeyName={policy};SharedAccessKey={keys[policy]}"


def judge(keys: Mapping[str, str], text: str, resources: Iterable[str], now_ms: int) -> tuple[frozenset[str], int]:
    """What a token allows over one of some resources.

    Args:
        keys: Keys in base64 by the name of the policy.
        text: The token.
        resources: What the token has to be about, or something in it; without a scheme, and case does not matter.
        now_ms: The time, milliseconds since 1970.

    Returns:
        (rights, seconds since 1970 when they end); no rights for a token that is worth nothing.
    """
    nothing: tuple[frozenset[str], int] = (frozenset(), 0)
    token = sas.parse(text)
    key = None if token is None else keys.get(token.policy)
    if token is None or key is None or token.expires_s * 1000 <= now_ms:
        return nothing
    about = (token.plain_resource.partition("://")[2] or token.plain_resource).rstrip("/").casefold()
    if not any(about == item.casefold() or about.startswith(f"{item.casefold()}/") for item in resources):
        return nothing
    # Clients of Event Hubs sign with the key's text, those of IoT Hub with the bytes that it stands for.
    plain = base64.b64encode(key.encode()).decode()
    is_signed = token.is_signed_with(key) or token.is_signed_with(plain)
    return (rights_of(token.policy), token.expires_s) if is_signed else nothing
