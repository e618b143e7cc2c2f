"""Makes a file of a base and a delta: streaming, in little memory, from any checkpoint on.

Whoever calls verifies the delta's digest before, and the output's digest after; the digests in the delta tell damage
early and are no proof. Hostile deltas end in `DeltaError`, whatever they do.
"""

import hashlib
import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np
import zstandard

from edge_delta.bits import packed_bytes, unpack
from edge_delta.blocks import block_at
from edge_delta.elements import F32, I32, Array, Kind, narrowed, ordered, unordered, unzigzag, widened, wrapped
from edge_delta.errors import DeltaError as DeltaError  # what callers of `decode` catch
from edge_delta.limits import (
    CHECKPOINT_BYTES,
    CHECKPOINT_STATE_BYTES_MAX,
    CHUNK_ELEMENTS,
    READ_BYTES,
)
from edge_delta.moves import MOVE_BYTES, read_runs
from edge_delta.operations import Again, Copy, Flag, Glue, Moves, Planes, Predicted, Window
from edge_delta.predict import Prediction, read_side
from edge_delta.rans import Lanes
from edge_delta.streams import Body, GlueReader, Output
from edge_delta.symbols import ESCAPE, Places, numbers_of, places, raw_widths, to_symbols, zero_numbers
from edge_delta.wire import peak_bytes, read_head, unpack_frame

_SEAL: Final = 16
_EXPECTED: Final = (
    zstandard.ZstdError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far decoding came, and all it takes to go on from there.

    Attributes:
        output_bytes: Output written so far.
        verified_bytes: How much of it, from the start, agrees with the prefix digests in the delta.
        data: For `decode`'s `resume`; at most `CHECKPOINT_STATE_BYTES_MAX` bytes, empty at the end.
    """

    output_bytes: int
    verified_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class DeltaInfo:
    """What a delta says of itself.

    Attributes:
        base_bytes: Length of the base.
        new_bytes: Length of the output.
        base_prefix: First 32 hexadecimal digits of the base's sha256.
        new_prefix: First 32 hexadecimal digits of the output's.
        peak_bytes: Memory that decoding takes at most beside Python, numpy and zstandard.
        operations: Bytes of output by kind of operation.
    """

    base_bytes: int
    new_bytes: int
    base_prefix: str
    new_prefix: str
    peak_bytes: int
    operations: dict[str, int]


def inspect(delta: BinaryIO) -> DeltaInfo:
    """Read what a delta says of itself; its body is not looked at.

    Args:
        delta: Seekable.

    Raises:
        DeltaError: When it is none.
    """
    try:
        head = read_head(delta)
    except _EXPECTED as error:
        raise DeltaError(f"the delta cannot be read: {error}") from error
    kinds: Counter[str] = Counter()
    for operation in head.operations:
        kinds[type(operation).__name__.lower()] += operation.length
    return DeltaInfo(head.base_bytes, head.new_bytes, head.base.hex(), head.new.hex(), peak_bytes(head), dict(kinds))


def decode(
    base: BinaryIO,
    delta: BinaryIO,
    output: BinaryIO,
    *,
    base_bytes: int,
    new_bytes: int,
    resume: bytes | None = None,
    between: Callable[[], None] = lambda: None,
) -> Iterator[Checkpoint]:
    """Decode a delta.

    Args:
        base: Seekable; the very descriptor whose bytes the caller verified.
        delta: Seekable; likewise.
        output: Seekable and readable; it holds what was made before when resuming. What follows is cut off.
        base_bytes: Length that the base must have.
        new_bytes: Length that the output must get.
        resume: `Checkpoint.data` of an earlier run over the same base and delta.
        between: Called before each piece of output, of at most some hundred KiB or a window's length, for whoever
            wants to rest there.

    Yields:
        A checkpoint about every `CHECKPOINT_BYTES` of output, and one at the end. What it covers has been written to
        `output` but neither flushed nor synced.

    Raises:
        DeltaError: For a delta that is damaged or does not fit.
        MemoryError: When there is less memory than the delta says.
        OSError: Of the files.
    """
    steps: Iterator[Checkpoint] | None = None
    while True:
        # Step by step, so that numpy's warnings stay as they were for whoever is told of a checkpoint.
        try:
            with np.errstate(all="ignore"):
                if steps is None:
                    decoder = _Decoder(base, delta, output, base_bytes, new_bytes, between)
                    if resume is not None:
                        decoder.restore(resume)
                    steps = decoder.run()
                point = next(steps, None)
        except _EXPECTED as error:
            raise DeltaError(f"the delta cannot be decoded: {error}") from error
        if point is None:
            return
        yield point


class _Decoder:
    """One run. Its position is (operation, place within it), and what each reader has used."""

    def __init__(
        self,
        base: BinaryIO,
        delta: BinaryIO,
        output: BinaryIO,
        base_bytes: int,
        new_bytes: int,
        between: Callable[[], None],
    ) -> None:
        self._head = head = read_head(delta)
        if (head.base_bytes, head.new_bytes) != (base_bytes, new_bytes):
            raise DeltaError(
                f"the delta is from {head.base_bytes} to {head.new_bytes} bytes, not from {base_bytes} to {new_bytes}"
            )
        base.seek(0, 2)
        if base.tell() != base_bytes:
            raise DeltaError(f"the base has {base.tell()} bytes instead of {base_bytes}")
        self._base = base
        self._between = between
        self._output = Output(output, head)
        self._body = Body(delta, head.body_offset)
        self._glue = GlueReader(delta, base, head)
        self._lanes: Lanes | None = None
        self._operation = 0
        self._place = 0  # bytes of the operation's output that are made
        self._start = 0  # where the operation's part of the body begins
        self._chunks: int | None = None  # where a tensor's chunks go on, when resuming within it
        self._saved_at = 0

    # -- going on --------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Checkpoint]:
        """Every operation from where it stands."""
        operations = self._head.operations
        while self._operation < len(operations):
            operation = operations[self._operation]
            if self._chunks is None:
                self._start = self._body.place
            match operation:
                case Glue():
                    yield from self._copy(operation, self._glue.read)
                case Copy():
                    yield from self._copy(operation, self._from_base(operation))
                case Again():
                    yield from self._copy(operation, self._from_output(operation))
                case Window():
                    self._between()
                    self._output.write(self._window(operation))
                case Moves():
                    self._between()
                    self._output.write(self._moves(operation))
                case Planes():
                    self._between()
                    self._output.write(self._planes(operation))
                case Predicted():
                    yield from self._tensor(operation)
            self._operation, self._place = self._operation + 1, 0
            yield from self._maybe_checkpoint()
        self._body.finish()
        self._glue.finish()
        if self._lanes is not None:
            self._lanes.finish()
        elif self._head.states.size:
            raise DeltaError("the delta has rANS states and no tensors")
        self._output.finish()
        yield Checkpoint(self._output.count, self._output.verified, b"")

    def _copy(self, operation: Glue | Copy | Again, read: Any) -> Iterator[Checkpoint]:
        while self._place < operation.length:
            self._between()
            chunk = read(min(READ_BYTES, operation.length - self._place))
            self._output.write(chunk)
            self._place += len(chunk)
            if self._place < operation.length:
                yield from self._maybe_checkpoint()

    def _from_base(self, operation: Copy) -> Any:
        return lambda count: self._read_base(operation.offset + self._place, count)

    def _from_output(self, operation: Again) -> Any:
        return lambda count: self._output.read(operation.offset + self._place, count)

    def _read_base(self, offset: int, count: int) -> bytes:
        self._base.seek(offset)
        data = self._base.read(count)
        if len(data) != count:
            raise DeltaError(f"the base ends before {offset + count}")
        return data

    def _window(self, operation: Window) -> bytes:
        return self._unpacked(operation, operation.packed, operation.length)

    def _unpacked(self, operation: Window | Moves, packed: int, length: int) -> bytes:
        if packed == length:
            return self._body.take(length)
        dictionary = self._read_base(operation.offset, operation.dictionary)
        return unpack_frame(self._body.take(packed), length, "a window", dictionary)

    def _moves(self, operation: Moves) -> bytearray:
        table, between = operation.packed
        data = unpack_frame(self._body.take(table), MOVE_BYTES * operation.count, "a table of runs")
        runs = read_runs(
            data,
            operation.count,
            literals=operation.literals,
            length=operation.length,
            base_bytes=self._head.base_bytes,
        )
        literals = self._unpacked(operation, between, operation.literals)
        made = bytearray(operation.length)
        used = place = 0
        for literal, length, offset in zip(
            runs.literals.tolist(), runs.lengths.tolist(), runs.offsets.tolist(), strict=True
        ):
            made[place : place + literal] = literals[used : used + literal]
            used, place = used + literal, place + literal
            made[place : place + length] = self._read_base(offset, length)
            place += length
        made[place:] = literals[used:]
        return made

    def _planes(self, operation: Planes) -> bytes:
        planes = [
            np.frombuffer(unpack_frame(self._body.take(packed), operation.count, "a plane"), np.uint8)
            for packed in operation.packed
        ]
        elements = np.stack(planes, axis=1)
        if operation.is_turned:
            wide = elements.view(f"<u{operation.width}").ravel()
            top = wide.dtype.type(8 * operation.width - 1)
            elements = (wide >> wide.dtype.type(1)) | (wide << top)
        return bytes(elements.tobytes())

    # -- tensors ---------------------------------------------------------------------------------------------------

    def _tensor(self, tensor: Predicted) -> Iterator[Checkpoint]:
        side_bytes = tensor.side_bytes
        data = unpack_frame(self._body.take(tensor.packed), side_bytes, "side information") if side_bytes else b""
        if self._chunks is not None:
            self._body.seek(self._chunks)
            self._chunks = None
        if self._lanes is None:
            self._lanes = Lanes(self._head.states)
        prediction = Prediction(tensor, read_side(tensor, data))
        while self._place < tensor.length:
            self._between()
            self._chunk(tensor, prediction, self._lanes)
            if self._place < tensor.length:
                yield from self._maybe_checkpoint()

    def _chunk(self, tensor: Predicted, prediction: Prediction, lanes: Lanes) -> None:
        kind = tensor.kind
        element = self._place // tensor.width
        rows, columns = block_at(tensor, element, lanes.tables.chunk_elements(CHUNK_ELEMENTS))
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        width, is_single = tensor.base_width, Flag.FROM_SINGLE in tensor.flags
        data = self._read_base(tensor.offset + element * width, shape[0] * shape[1] * width)
        bits = np.frombuffer(data, F32.unsigned if is_single else kind.unsigned).reshape(shape)
        bits = narrowed(kind, bits) if is_single else bits
        classes = prediction.classes(rows, columns)
        is_fine = Flag.FINE in tensor.flags
        if Flag.GRID in tensor.flags:
            number, exact = prediction.steps_of(bits, rows, columns)
            found = places(I32, number.view(np.uint32), exact if is_fine else None, *classes)
            new = prediction.on_grid(bits, rows, number + self._differences(I32, found, lanes))
        else:
            is_pruned = Flag.ZEROS in tensor.flags
            guess, exact = prediction.block(bits, rows, columns)
            found = places(kind, guess, exact if is_fine else None, *classes, is_pruned=is_pruned)
            is_signed = Flag.SIGNED_ZEROS in tensor.flags
            zeros = zero_numbers(kind, guess, bits, found, is_signed=is_signed) if is_pruned else None
            new = unordered(kind, ordered(kind, guess) + wrapped(kind, self._differences(kind, found, lanes, zeros)))
        made = (widened(kind, new) if Flag.TO_SINGLE in tensor.flags else new).tobytes()
        self._output.write(made)
        self._place += len(made)

    def _differences(self, kind: Kind, found: Places, lanes: Lanes, zeros: Array | None = None) -> Array:
        """What the predictions of a chunk miss by, in its shape."""
        difference = self._residuals(kind, found.contexts.ravel(), lanes, zeros).reshape(found.contexts.shape)
        return difference if found.is_turned is None else np.where(found.is_turned, -difference, difference)

    def _residuals(self, kind: Kind, contexts: Array, lanes: Lanes, zeros: Array | None) -> Array:
        words = np.frombuffer(self._body.peek(2 * contexts.size), "<u2")
        symbols, used = lanes.decode(contexts, words)
        self._body.skip(2 * used)
        widths = raw_widths(kind, symbols)
        raw = unpack(self._body.take(packed_bytes(widths)), widths)
        escaped = np.flatnonzero(symbols == ESCAPE)
        numbers = numbers_of(symbols, raw, zeros)
        if escaped.size:
            symbols[escaped] = to_symbols(numbers[escaped], None if zeros is None else zeros[escaped])
        lanes.learn(contexts, symbols)
        return unzigzag(numbers)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _maybe_checkpoint(self) -> Iterator[Checkpoint]:
        if self._output.count - self._saved_at >= CHECKPOINT_BYTES and self._output.count < self._head.new_bytes:
            self._saved_at = self._output.count
            yield Checkpoint(self._output.count, self._output.verified, self._save())

    def _save(self) -> bytes:
        lanes = self._lanes
        arrays = [] if lanes is None else [("states", lanes.states), *lanes.tables.save()]
        record = {
            "delta": self._head.digest,
            "operation": self._operation,
            "place": self._place,
            "output": self._output.count,
            "body": self._body.place,
            "glue": self._glue.count,
            "start": self._start,
            "arrays": [[name, str(array.dtype), array.size] for name, array in arrays],
        }
        text = json.dumps(record).encode()
        data = zlib.compress(struct.pack("<I", len(text)) + text + b"".join(array.tobytes() for _, array in arrays), 1)
        return hashlib.sha256(data).digest()[:_SEAL] + data

    def restore(self, data: bytes) -> None:
        """Go on from a checkpoint.

        Raises:
            DeltaError: When it is damaged, or of another delta.
        """
        seal, packed = data[:_SEAL], data[_SEAL:]
        if len(data) > CHECKPOINT_STATE_BYTES_MAX or hashlib.sha256(packed).digest()[:_SEAL] != seal:
            raise DeltaError("the checkpoint is damaged")
        plain = zlib.decompressobj().decompress(packed, CHECKPOINT_STATE_BYTES_MAX)
        (length,) = struct.unpack_from("<I", plain)
        record, place = json.loads(plain[4 : 4 + length]), 4 + length
        if record["delta"] != self._head.digest:
            raise DeltaError("the checkpoint is of another delta")
        arrays = {}
        for name, kind, count in record["arrays"]:
            arrays[name] = np.frombuffer(plain, kind, count, place)
            place += arrays[name].nbytes
        self._operation, self._place = int(record["operation"]), int(record["place"])
        self._output.resume(int(record["output"]))
        self._saved_at = self._output.count
        self._glue.skip_to(int(record["glue"]))
        if arrays:
            self._lanes = Lanes(arrays.pop("states"))
            self._lanes.tables.load(**arrays)
        if self._place and isinstance(self._head.operations[self._operation], Predicted):
            self._start, self._chunks = int(record["start"]), int(record["body"])
            self._body.seek(self._start)
        else:
            self._body.seek(int(record["body"]))
