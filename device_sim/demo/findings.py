"""What a demonstration found: figures, and promises with what was seen of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from device_sim.demo.load import Tally
from edge_contract.jsonio import JsonObject
from edge_contract.phases import Outcome

SCHEMA: Final = "lighterman.demo/1"
GOOD_FIRST: Final = 1
GOOD_SECOND: Final = 2
DAMAGED: Final = 3
MISMATCH: Final = "model.golden-mismatch"


@dataclass(frozen=True, slots=True)
class Promise:
    """Something the product promises.

    Attributes:
        text: The promise.
        is_kept: Whether it held.
        seen: What was seen of it.
    """

    text: str
    is_kept: bool
    seen: str


@dataclass(slots=True)
class Shipment:
    """How one version fared.

    Attributes:
        version: Model version.
        seconds: From the command that ships it to the last device's outcome.
        outcomes: Devices by outcome.
        codes: Devices by error code, of those that did not confirm.
        held_out_accuracy: Of the trained model, measured before it was shipped.
    """

    version: int
    seconds: float
    outcomes: dict[str, int]
    codes: dict[str, int]
    held_out_accuracy: float


@dataclass(slots=True)
class Findings:
    """Everything that was found, filled as the story goes."""

    broker: str = ""
    is_tls: bool = False
    url: str = ""
    devices: int = 0
    seconds: float = 0.0
    shipments: dict[int, Shipment] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    fleet: list[JsonObject] = field(default_factory=list)
    predictions: list[JsonObject] = field(default_factory=list)
    records: int = 0
    repeated_records: int = 0
    bytes_pulled: int = 0
    ended_early: list[str] = field(default_factory=list)

    def promises(self) -> list[Promise]:
        """Every promise, judged by what was found."""
        first, second, damaged = (self.shipments.get(number) for number in (GOOD_FIRST, GOOD_SECOND, DAMAGED))
        before, after = (self.tally.by_version.get(number) for number in (GOOD_FIRST, GOOD_SECOND))
        accuracies = (before.accuracy if before else 0.0, after.accuracy if after else 0.0)
        collected = {row["version"]: row["devices"] for row in self.predictions}
        kept_live = sum(row["version"] == GOOD_SECOND and bool(row["is_serving"]) for row in self.fleet)
        return [
            self._confirmed(GOOD_FIRST, first),
            self._confirmed(GOOD_SECOND, second),
            Promise(
                "no inference request failed while models were swapped",
                self.tally.failed == 0 and bool(before and after),
                f"{self.tally.failed} of {self.tally.served + self.tally.failed:,} failed",
            ),
            Promise(
                "the answers got better",
                accuracies[1] > accuracies[0] > 0,
                f"{accuracies[0]:.1%} right before, {accuracies[1]:.1%} after",
            ),
            Promise(
                "every device refused the damaged version and said why",
                damaged is not None
                and damaged.outcomes == {str(Outcome.REFUSED): self.devices}
                and damaged.codes == {MISMATCH: self.devices},
                _counts(damaged.codes if damaged else {}, self.devices),
            ),
            Promise(
                "the damaged version never answered, version 2 goes on",
                DAMAGED not in self.tally.by_version and DAMAGED not in collected and kept_live == self.devices,
                f"version {GOOD_SECOND} live on {kept_live} of {self.devices}",
            ),
            Promise(
                "predictions of every device are in the lake, each once",
                collected.get(GOOD_SECOND) == self.devices and self.repeated_records == 0,
                f"{self.records:,} records of {collected.get(GOOD_SECOND, 0)} devices, {self.repeated_records} twice",
            ),
            Promise(
                "every process ran to the end",
                not self.ended_early,
                "ended early: " + ", ".join(self.ended_early) if self.ended_early else "none ended early",
            ),
        ]

    def _confirmed(self, version: int, shipment: Shipment | None) -> Promise:
        outcomes = shipment.outcomes if shipment else {}
        count = outcomes.get(str(Outcome.CONFIRMED), 0)
        seen = f"{count} of {self.devices}" + (f", {shipment.seconds:.1f} s" if shipment else "")
        return Promise(f"every device confirmed version {version}", 0 < count == self.devices, seen)

    def to_json(self) -> JsonObject:
        """The one document of `device-sim demo --json`."""
        promises = self.promises()
        return {
            "schema": SCHEMA,
            "ok": all(promise.is_kept for promise in promises),
            "broker": {"kind": self.broker, "tls": self.is_tls},
            "registry": self.url,
            "devices": self.devices,
            "seconds": round(self.seconds, 1),
            "versions": [self._version(number) for number in sorted(self.shipments)],
            "load": {
                "served": self.tally.served,
                "failed": self.tally.failed,
                "failures": dict(self.tally.failures),
                "silence_ms_max": round(self.tally.silence_ms, 1),
            },
            "bytes_pulled": self.bytes_pulled,
            "fleet": self.fleet,
            "predictions": self.predictions,
            "records": self.records,
            "repeated_records": self.repeated_records,
            "promises": [{"promise": item.text, "kept": item.is_kept, "seen": item.seen} for item in promises],
        }

    def _version(self, number: int) -> JsonObject:
        shipment = self.shipments[number]
        answers = self.tally.by_version.get(number)
        return {
            "version": number,
            "manifest": answers.manifest if answers else None,
            "held_out_accuracy": round(shipment.held_out_accuracy, 4),
            "answered": answers.requests if answers else 0,
            "answered_accuracy": round(answers.accuracy, 4) if answers else None,
            "seconds_to_last_outcome": round(shipment.seconds, 2),
            "outcomes": shipment.outcomes,
            "codes": shipment.codes,
        }


def fleet_rows(devices: Iterable[Mapping[str, Any]], module: str) -> list[JsonObject]:
    """The fleet as the registry's devices show it, one row a device.

    Args:
        devices: Items of `GET /api/v1/devices`.
        module: The module to look at.
    """
    rows: list[JsonObject] = []
    for device in devices:
        report = device.get("report") or {}
        found = (report.get("modules") or {}).get(module) or {}
        deployment = found.get("deployment") or {}
        error = deployment.get("error") or {}
        rows.append(
            {
                "device": device["name"],
                "model": found.get("model") or "",
                "version": found.get("version") or 0,
                "live": found.get("live"),
                "golden": found.get("golden"),
                "is_serving": bool(found.get("serving")),
                "phase": found.get("phase"),
                "outcome": deployment.get("outcome"),
                "code": error.get("code"),
                "detail": error.get("detail"),
                "bytes_fetched": report.get("bytes_fetched") or 0,
                "reported_at": device.get("report_received_at"),
            }
        )
    return sorted(rows, key=lambda row: str(row["device"]))


def _counts(codes: Mapping[str, int], devices: int) -> str:
    return ", ".join(f"{count} of {devices} said {code}" for code, count in codes.items()) or f"0 of {devices}"
