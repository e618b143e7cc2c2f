"""Telemetry: samples in batches from a device, and the collector's cumulative acknowledgement.

A broker's PUBACK is not delivery, so a device keeps every record until the collector says that it is durable. Records
are numbered within a boot; a device sends one batch at a time and repeats it until its last number is acknowledged. The
collector keeps one watermark for each (device, boot) and drops records at or below it, so each record is stored once.
Numbers may be missing: a device over its byte budget drops its oldest records and says how many.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject, dump, is_nested_deeper, parse_object
from edge_contract.limits import (
    BATCH_BYTES_MAX,
    BATCH_SAMPLES_MAX,
    NUDGE_BYTES_MAX,
    SAMPLE_BYTES_MAX,
    SAMPLE_DEPTH_MAX,
)
from edge_contract.names import device_name, model_name

BATCH_SCHEMA: Final = "lighterman.batch/1"
ACK_SCHEMA: Final = "lighterman.ack/1"
KINDS: Final = ("prediction", "metric", "event")
"""What this version writes. Other words are read as well: refusing a newer device's kind would hold up its batches."""
_CODE: Final = "artifact.document-invalid"


@dataclass(frozen=True, slots=True)
class Sample:
    """One record of telemetry.

    Attributes:
        seq: Number within the boot, from 1.
        kind: One of `KINDS`, or a word of a newer device.
        module: Module it belongs to, or empty for the device.
        model: Model name, empty when none.
        version: Model version, 0 when none.
        manifest: Digest of the bundle that computed it, or none.
        taken_ms: Device's wall clock, milliseconds since 1970.
        body: A JSON object; for a prediction `{"inputs": {...}, "outputs": {...}, "latency_us": n, "request_id": s}`.
    """

    seq: int
    kind: str
    module: str
    model: str
    version: int
    manifest: Digest | None
    taken_ms: int
    body: JsonObject

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {
            "seq": self.seq,
            "kind": self.kind,
            "module": self.module,
            "model": self.model,
            "version": self.version,
            "manifest": None if self.manifest is None else str(self.manifest),
            "taken_ms": self.taken_ms,
            "body": self.body,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Sample":
        """Read what `to_json` wrote; unknown fields are ignored.

        Raises:
            ContractError: with an `artifact.` or `cloud.name-invalid` code.
        """
        fields = Fields(value, "sample", _CODE)
        module, manifest, body = fields.text("module"), fields.take("manifest"), fields.take("body")
        if not isinstance(body, dict) or len(data := dump(body)) > SAMPLE_BYTES_MAX:
            raise ContractError(_CODE, f"the body of a sample is a JSON object of at most {SAMPLE_BYTES_MAX} bytes")
        if is_nested_deeper(data, SAMPLE_DEPTH_MAX):
            raise ContractError(_CODE, f"the body of a sample is nested deeper than {SAMPLE_DEPTH_MAX} levels")
        return cls(
            seq=fields.integer("seq", low=1),
            kind=model_name(fields.text("kind", chars_max=32)),
            module=model_name(module) if module else "",
            model=fields.text("model", "", chars_max=64),
            version=fields.integer("version", 0),
            manifest=None if manifest is None else Digest(manifest),
            taken_ms=fields.integer("taken_ms"),
            body=body,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one boot in rising order of number.

    Attributes:
        device: Name of the device.
        boot: The boot that numbered the samples, 16 hexadecimal digits.
        samples: `1..BATCH_SAMPLES_MAX` samples.
        dropped: Records this boot dropped for want of space so far.
    """

    device: str
    boot: str
    samples: tuple[Sample, ...]
    dropped: int = 0

    def to_bytes(self) -> bytes:
        """The message."""
        return dump(
            {
                "schema": BATCH_SCHEMA,
                "device": self.device,
                "boot": self.boot,
                "dropped": self.dropped,
                "samples": [sample.to_json() for sample in self.samples],
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> "Batch":
        """Read a message.

        Raises:
            ContractError: with an `artifact.` or `cloud.name-invalid` code.
        """
        fields = Fields(parse_object(data, "batch", BATCH_BYTES_MAX), "batch", _CODE)
        fields.schema(BATCH_SCHEMA)
        samples = tuple(Sample.from_json(item) for item in fields.items("samples", BATCH_SAMPLES_MAX, required=True))
        numbers = [sample.seq for sample in samples]
        if not numbers or any(a >= b for a, b in pairwise(numbers)):
            raise ContractError(_CODE, "the samples of a batch are numbered in rising order")
        return cls(
            device_name(fields.text("device")), fields.text("boot", chars_max=32), samples, fields.integer("dropped", 0)
        )

    @property
    def last(self) -> int:
        """The highest number in the batch."""
        return self.samples[-1].seq


@dataclass(frozen=True, slots=True)
class Ack:
    """Everything of these boots up to these numbers is durable in the cloud.

    Attributes:
        upto: Highest durable number by boot.
    """

    upto: dict[str, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The message."""
        return dump({"schema": ACK_SCHEMA, "upto": self.upto})

    @classmethod
    def parse(cls, data: bytes) -> "Ack":
        """Read a message.

        Raises:
            ContractError: with an `artifact.` code.
        """
        fields = Fields(parse_object(data, "ack", NUDGE_BYTES_MAX), "ack", _CODE)
        fields.schema(ACK_SCHEMA)
        upto = fields.take("upto")
        if not isinstance(upto, dict) or not all(
            isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in upto.values()
        ):
            raise ContractError(_CODE, "an acknowledgement maps boots to numbers")
        return cls(dict(upto))
