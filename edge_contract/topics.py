"""MQTT topics. None starts with `$`, so that any broker carries them; the device's name is the third level for ACLs."""

from typing import Final

from edge_contract.errors import ContractError
from edge_contract.names import device_name

_ROOT: Final = "lighterman/1"

ALL_REPORTS: Final = f"{_ROOT}/+/report"
ALL_TELEMETRY: Final = f"{_ROOT}/+/telemetry"


def nudge(device: str) -> str:
    """Cloud to device: something changed, fetch the director metadata."""
    return f"{_ROOT}/{device_name(device)}/nudge"


def ack(device: str) -> str:
    """Cloud to device: telemetry up to a sequence number is durable."""
    return f"{_ROOT}/{device_name(device)}/ack"


def report(device: str) -> str:
    """Device to cloud: what is installed and what answers."""
    return f"{_ROOT}/{device_name(device)}/report"


def telemetry(device: str) -> str:
    """Device to cloud: one batch of samples."""
    return f"{_ROOT}/{device_name(device)}/telemetry"


def device_of(topic: str) -> str:
    """The device's name in a topic of ours.

    Raises:
        ContractError: `cloud.name-invalid` for any other topic.
    """
    parts = topic.split("/")
    if len(parts) != 4 or "/".join(parts[:2]) != _ROOT:
        raise ContractError("cloud.name-invalid", f"{topic[:200]!r} is not a topic of ours")
    return device_name(parts[2])
