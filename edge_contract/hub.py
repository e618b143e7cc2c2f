"""What Lighterman says through Azure IoT Hub: names of properties, methods and kinds, and the documents in them.

The hub is one of two ways between a device and its cloud and is trusted no more than a broker: what it carries towards
the device are hints and settings that change no trust, what it carries from the device is signed inside. One object
under the key `lighterman` in the desired and in the reported properties of a device's or a module's twin holds it all,
so that it lives beside whatever else a team keeps there. See docs/adr/0014-iot-hub-link.md.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Final

from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, JsonObject, dump
from edge_contract.limits import (
    ENVELOPE_BYTES_MAX,
    HUB_ACK_BOOTS_MAX,
    HUB_PART_CHARS,
    HUB_REPORT_CHARS_MAX,
    PERIOD_MS_MAX,
    PERIOD_MS_MIN,
)
from edge_contract.names import device_name
from edge_contract.telemetry import ACK_SCHEMA, Ack

TWIN_KEY: Final = "lighterman"
"""Of our object in desired and in reported properties."""

KIND_KEY: Final = "kind"
"""Application property of every message: one of the kinds below."""
KIND_REPORT: Final = "report"
KIND_BATCH: Final = "batch"
KIND_ACK: Final = "ack"

METHODS: Final = ("ping", "report", "rollback", "hold", "resume", "collect-logs")
"""Direct methods that a device answers."""

ADDRESS_TAG: Final = "iothub"
"""Tag of a device in the registry that holds its address at the hub, where that is not its own name."""

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_NUMBER_MAX: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class HubAddress:
    """Whom a hub knows.

    Attributes:
        device: Identifier of the device at the hub.
        module: Identifier of its module; empty for the device itself.
    """

    device: str
    module: str = ""

    def __str__(self) -> str:
        """`device` or `device/module`."""
        return f"{self.device}/{self.module}" if self.module else self.device

    @classmethod
    def parse(cls, text: str) -> "HubAddress":
        """Read `device` or `device/module`.

        Raises:
            ContractError: `cloud.name-invalid`.
        """
        device, has_module, module = text.partition("/")
        return cls(device_name(device), device_name(module) if has_module else "")


@dataclass(frozen=True, slots=True)
class HubSettings:
    """What the cloud may set on a device without a signature, because nothing that is trusted depends on it.

    Attributes:
        poll_ms: Mean time between refreshes of metadata, or none to leave the device's own configuration.
        report_ms: Longest time between reports, or none.
        log_level: One of `LOG_LEVELS`, or empty.
    """

    poll_ms: int | None = None
    report_ms: int | None = None
    log_level: str = ""

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        document: JsonObject = {}
        if self.poll_ms is not None:
            document["poll_ms"] = self.poll_ms
        if self.report_ms is not None:
            document["report_ms"] = self.report_ms
        if self.log_level:
            document["log_level"] = self.log_level
        return document

    @classmethod
    def from_json(cls, value: Any) -> "HubSettings":
        """Read settings; null stands for "not set", as in a twin's patch.

        Raises:
            ContractError: `config.invalid`, naming the setting.
        """
        if not isinstance(value, dict):
            raise ContractError("config.invalid", "settings are no object", "Set poll_ms, report_ms and log_level.")
        given = {key: item for key, item in value.items() if item is not None and not key.startswith("$")}
        fields = Fields(given, "settings", "config.invalid")
        result = cls(
            fields.integer("poll_ms", None, PERIOD_MS_MIN, PERIOD_MS_MAX) if "poll_ms" in given else None,
            fields.integer("report_ms", None, PERIOD_MS_MIN, PERIOD_MS_MAX) if "report_ms" in given else None,
            fields.text("log_level", "", chars_max=16),
        )
        if unknown := sorted(set(given) - {"poll_ms", "report_ms", "log_level"}):
            raise ContractError("config.invalid", f"settings: {unknown[0][:40]!r} is not one", "See docs/azure.md.")
        if result.log_level and result.log_level not in LOG_LEVELS:
            known = ", ".join(LOG_LEVELS)
            raise ContractError("config.invalid", f"settings: log_level is not one of {known}")
        return result


@dataclass(frozen=True, slots=True)
class HubDesired:
    """What the object in desired properties, or in a patch of them, says. Each part may be missing.

    Attributes:
        director_version: A nudge.
        ack: An acknowledgement of telemetry.
        settings: Settings as they are now (a patch has to be merged before).
        problem: Why a part of it was passed over; empty when all of it was good.
    """

    director_version: int | None = None
    ack: Ack | None = None
    settings: HubSettings | None = None
    problem: str = ""

    @classmethod
    def read(cls, value: Any) -> "HubDesired":
        """Read what can be read: anybody with rights on the hub may have written it, so one bad part spoils no other.

        Args:
            value: The value of `TWIN_KEY`; anything else than an object says nothing.
        """
        if not isinstance(value, dict):
            return cls(problem="" if value is None else f"{TWIN_KEY} is no object")
        problems: list[str] = []
        version, ack, settings = value.get("director_version"), value.get("ack"), value.get("settings")
        if version is not None and not _is_whole(version):
            problems.append("director_version is no whole number")
            version = None
        found: Ack | None = None
        if ack is not None:
            try:
                upto = ack.get("upto") if isinstance(ack, dict) else None
                marks = upto
                if isinstance(upto, dict):
                    marks = {boot: mark for boot, mark in upto.items() if mark is not None}
                found = Ack.parse(dump({"schema": ACK_SCHEMA, "upto": marks})) if marks != {} else None
            except (EdgeError, ValueError, TypeError) as error:
                problems.append(f"ack: {error}")
        wanted: HubSettings | None = None
        if settings is not None:
            try:
                wanted = HubSettings.from_json(settings)
            except EdgeError as error:
                problems.append(error.detail)
        return cls(version, found, wanted, "; ".join(problems)[:400])

    @staticmethod
    def nudge_patch(director_version: int) -> JsonObject:
        """A patch of desired properties that nudges."""
        return {TWIN_KEY: {"director_version": director_version}}

    @staticmethod
    def ack_patch(marks: dict[str, int], known: tuple[str, ...] = ()) -> JsonObject:
        """A patch that acknowledges, and takes out of the twin the boots of long ago.

        Args:
            marks: Highest durable number by boot; the last `HUB_ACK_BOOTS_MAX` are kept.
            known: Boots that the twin holds.
        """
        kept = dict(list(marks.items())[-HUB_ACK_BOOTS_MAX:])
        upto: JsonObject = {boot: None for boot in known if boot not in kept}
        return {TWIN_KEY: {"ack": {"upto": upto | kept}}}


def report_parts(envelope: bytes) -> list[str] | None:
    """A signed report as a twin can hold it: base64 in texts of at most `HUB_PART_CHARS`.

    Returns:
        The parts, or none when it is longer than a twin has room for; then it travels as a message alone.
    """
    text = base64.b64encode(envelope).decode()
    if len(text) > HUB_REPORT_CHARS_MAX:
        return None
    return [text[at : at + HUB_PART_CHARS] for at in range(0, len(text), HUB_PART_CHARS)]


def join_report(parts: Any) -> bytes:
    """The signed report that `report_parts` divided. Nothing of it is verified yet.

    Raises:
        ContractError: `artifact.document-invalid`, `artifact.document-too-large`.
    """
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ContractError("artifact.document-invalid", "a report in a twin is no array of texts")
    text = "".join(parts)
    if len(text) > ENVELOPE_BYTES_MAX:
        raise ContractError("artifact.document-too-large", f"a report in a twin has {len(text)} characters")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ContractError("artifact.document-invalid", "a report in a twin is not base64") from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _NUMBER_MAX
