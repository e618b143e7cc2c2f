"""What is remembered of the deltas of one blob: which failed, how often each was begun, how far the last one came.

One file, replaced as a whole and durable before what follows from it: the digest of the rest, the length of a JSON
object, that object, and the decoder's own state as it came.
"""

import hashlib
import os
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from edge_agent.delta.limits import RECORD_BYTES_MAX, STATE_BYTES_MAX
from edge_agent.limits import DELTA_STARTS_MAX, DELTA_STUCK_MAX
from edge_agent.store import durable
from edge_contract.codes import CODES
from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object
from edge_contract.limits import BLOB_BYTES_MAX, DELTAS_MAX

SCHEMA: Final = "lighterman.decoding/1"
_CODE: Final = "internal.record-invalid"
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tried:
    """How one delta fared on this device.

    Attributes:
        starts: Times its decoding was begun and came to no end of its own.
        stuck: Those of them since the last checkpoint.
        failed: Code of the error it ended with, empty when it never failed.
    """

    starts: int = 0
    stuck: int = 0
    failed: str = ""

    @property
    def is_hopeless(self) -> bool:
        """Whether it is not to be tried again: it failed, or whoever decodes it does not live to tell."""
        return bool(self.failed) or self.stuck >= DELTA_STUCK_MAX or self.starts >= DELTA_STARTS_MAX


@dataclass(frozen=True, slots=True)
class Point:
    """A checkpoint.

    Attributes:
        delta: Which delta is decoded.
        output_bytes: How much of the blob is on disk and durable.
        verified_bytes: How much of that, from the start, the delta's own digests vouch for.
        state: For the decoder to go on from.
    """

    delta: Digest
    output_bytes: int
    verified_bytes: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """The deltas of one blob.

    Attributes:
        tried: How each fared, by its digest.
        point: Where the newest decoding can go on, or none.
    """

    tried: dict[Digest, Tried] = field(default_factory=dict)
    point: Point | None = None

    def of(self, delta: Digest) -> Tried:
        """How a delta fared."""
        return self.tried.get(delta, Tried())

    def point_of(self, delta: Digest) -> Point | None:
        """Where the decoding of this delta can go on, or none."""
        return self.point if self.point is not None and self.point.delta == delta else None

    def begun(self, delta: Digest) -> "Record":
        """A decoding begins; the point of another one is of no use any more."""
        before = self.of(delta)
        now = replace(before, starts=before.starts + 1, stuck=before.stuck + 1)
        return Record(self._with(delta, now), self.point_of(delta))

    def came_to(self, point: Point) -> "Record":
        """It made progress."""
        return Record(self._with(point.delta, replace(self.of(point.delta), stuck=0)), point)

    def interrupted(self, delta: Digest) -> "Record":
        """It was interrupted by the agent itself, which says nothing about the delta."""
        before = self.of(delta)
        now = replace(before, starts=max(0, before.starts - 1), stuck=max(0, before.stuck - 1))
        return Record(self._with(delta, now), self.point)

    def failed(self, delta: Digest, code: str) -> "Record":
        """It is not to be tried again."""
        return Record(self._with(delta, replace(self.of(delta), failed=code)), self.point)

    def _with(self, delta: Digest, tried: Tried) -> dict[Digest, Tried]:
        """The newest last, and no more than metadata can list."""
        others = [(digest, item) for digest, item in self.tried.items() if digest != delta]
        return dict([*others, (delta, tried)][-DELTAS_MAX:])

    def to_bytes(self) -> bytes:
        """As it is written."""
        point = self.point
        text = dump(
            {
                "schema": SCHEMA,
                "tried": [
                    {"delta": str(digest), "starts": item.starts, "stuck": item.stuck, "failed": item.failed}
                    for digest, item in self.tried.items()
                ],
                "point": None if point is None else _written(point),
            }
        )
        rest = _LENGTH.pack(len(text)) + text + (b"" if point is None else point.state)
        return hashlib.sha256(rest).digest() + rest

    @classmethod
    def parse(cls, data: bytes) -> "Record":
        """Read what `to_bytes` wrote.

        Raises:
            ContractError: `internal.record-invalid`, or a code of its parts.
        """
        seal, rest = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if len(rest) < _LENGTH.size or hashlib.sha256(rest).digest() != seal:
            raise ContractError(_CODE, "the record of a decoding is damaged")
        (length,) = _LENGTH.unpack_from(rest)
        text, state = rest[_LENGTH.size : _LENGTH.size + length], rest[_LENGTH.size + length :]
        fields = Fields(parse_object(text, "decoding", RECORD_BYTES_MAX), "decoding", _CODE)
        fields.schema(SCHEMA)
        tried = [_read_tried(item) for item in fields.items("tried", DELTAS_MAX, required=True)]
        return cls(dict(tried), _read_point(fields.take("point"), state))


def load_record(path: Path) -> Record:
    """The record at a path; an empty one when there is none that can be read."""
    try:
        data = durable.read_file(path, RECORD_BYTES_MAX)
        return Record() if data is None else Record.parse(data)
    except (OSError, ContractError):
        return Record()


def save_record(path: Path, record: Record) -> None:
    """Write a record; durable on return.

    Raises:
        EdgeError: `device.disk-full`, `device.disk-error`.
    """
    with durable.disk_errors(f"writing {os.fspath(path)}"):
        durable.make_folder(path.parent)
        durable.write_file(path, record.to_bytes())


def _written(point: Point) -> JsonObject:
    return {
        "delta": str(point.delta),
        "output_bytes": point.output_bytes,
        "verified_bytes": point.verified_bytes,
        "state_bytes": len(point.state),
    }


def _read_point(value: object, state: bytes) -> Point | None:
    if value is None:
        return None
    fields = Fields(value, "point", _CODE)
    point = Point(
        Digest(fields.text("delta")),
        fields.integer("output_bytes", high=BLOB_BYTES_MAX),
        fields.integer("verified_bytes", high=BLOB_BYTES_MAX),
        state,
    )
    if fields.integer("state_bytes", high=STATE_BYTES_MAX) != len(state):
        raise ContractError(_CODE, "the state of a decoding is cut off")
    return point


def _read_tried(value: object) -> tuple[Digest, Tried]:
    fields = Fields(value, "tried delta", _CODE)
    failed = fields.text("failed", "")
    if failed and failed not in CODES:
        raise ContractError(_CODE, f"no error has the code {failed[:64]!r}")
    counts = (fields.integer("starts", high=DELTA_STARTS_MAX), fields.integer("stuck", high=DELTA_STARTS_MAX))
    return Digest(fields.text("delta")), Tried(*counts, failed)
