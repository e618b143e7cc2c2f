"""What about a device, as a whole, somebody should know or do something about (docs/twin-truth-table.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from cloud_registry.core.records import Device


class Who(StrEnum):
    """Who has to act."""

    NOBODY = "nobody"  # it passes by itself
    OWNER = "device owner"
    OPERATOR = "operator"
    SECURITY = "security"


@dataclass(frozen=True, slots=True)
class Attention:
    """One thing.

    Attributes:
        what: One of `MEANINGS`.
        who: Who has to act.
        detail: Which module, since when, or what was wrong.
    """

    what: str
    who: Who
    detail: str = ""


MEANINGS: Final[Mapping[str, tuple[Who, str]]] = {
    "revoked": (Who.OPERATOR, "Its identity was ended. It comes back when it enrols with a new token."),
    "certificate-ended": (Who.OPERATOR, "It was away for longer than a certificate lives. It has to enrol again."),
    "never-reported": (Who.OWNER, "It enrolled and was not heard of since: is the agent running, can it connect?"),
    "silent": (Who.OWNER, "No report for three minutes. Nothing is known: it may be off, and may be running well."),
    "report-refused": (Who.SECURITY, "The newest message in its name was not believed: a forger, or a lost key."),
    "clock-untrusted": (Who.OWNER, "Its clock is behind a time known to have passed. Updates go on by that time."),
    "behind": (Who.NOBODY, "It has not fetched its newest assignments yet; it will at its next poll, or when nudged."),
    "held": (Who.OWNER, "Somebody at the device holds updates of this module back."),
    "not-serving": (Who.OWNER, "A bundle is live, and its worker does not answer right now."),
}
"""Who acts, and what it means, by what is the matter; in the order in which it is shown."""


def attention_of(
    device: Device, now_ms: int, online_ms: int, director_version: int | None = None
) -> tuple[Attention, ...]:
    """What is the matter with a device; empty when all is well.

    Args:
        device: What is known of it; its report was verified when it was taken.
        now_ms: The time, milliseconds since 1970.
        online_ms: After how long a silence counts.
        director_version: Version of its newest assignments, or none when that was not looked up.
    """
    found: dict[str, str] = {}
    if device.revoked_ms is not None:
        found["revoked"] = ""
    elif device.certificate_until_ms <= now_ms:
        found["certificate-ended"] = ""
    received_ms = device.report_received_ms
    if device.report is None or received_ms is None:
        found["never-reported"] = ""
    elif now_ms - received_ms > online_ms:
        found["silent"] = f"for {(now_ms - received_ms) // 1000} seconds"
    if device.refusal is not None and device.refusal.received_ms >= (received_ms or 0):
        found["report-refused"] = f"{device.refusal.detail} [{device.refusal.code}]"
    if device.report is not None:
        found |= _of_report(device.report, director_version)
    return tuple(Attention(what, who, found[what]) for what, (who, _) in MEANINGS.items() if what in found)


def _of_report(report: Mapping[str, Any], director_version: int | None) -> dict[str, str]:
    found: dict[str, str] = {}
    if not report.get("clock_trusted", True):
        found["clock-untrusted"] = ""
    known = report.get("director_version", 0)
    if director_version is not None and known < director_version:
        found["behind"] = f"it knows version {known} of {director_version}"
    modules: Mapping[str, Any] = report.get("modules", {})
    held = [name for name, module in modules.items() if module.get("held")]
    quiet = [name for name, module in modules.items() if module.get("live") and not module.get("serving")]
    found |= {"held": ", ".join(held)} if held else {}
    return found | ({"not-serving": ", ".join(quiet)} if quiet else {})
