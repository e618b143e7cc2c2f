"""What a delta looks like in bytes: fixed part, head, glue, body. Everything is checked before anything is allocated.

    "LMD1" | base length | new length | 16 bytes of each digest | head, glue, glue frame and head frame lengths |
    unit digests | head frame | glue frame | body

Numbers are unsigned LEB128 of at most six bytes. The head is one zstd frame: lanes, rANS states, the ranges of the base
that make the glue's dictionary, and the operations in the order of the output. The body has, in that order, what each
operation reads: a tensor's side information, then for each chunk its rANS words and its raw bits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import numpy as np
import zstandard

from edge_delta.elements import BF16, BY_NUMBER, F16, Array
from edge_delta.errors import DeltaError
from edge_delta.limits import (
    DICTIONARY_BYTES_MAX,
    DICTIONARY_TIMES_MAX,
    GLUE_BYTES_MAX,
    GLUE_DICTIONARY_BYTES_MAX,
    GLUE_WINDOW_LOG_MAX,
    HEAD_BYTES_MAX,
    LANES_MAX,
    MOVE_BYTES_MIN,
    MOVES_MAX,
    OPERATIONS_MAX,
    PEAK_BYTES_MAX,
    RANGES_MAX,
    RANK_MAX,
    SHIFT_MAX,
    SHORT_DICTIONARY_BYTES,
    SIDE_BYTES_MAX,
    TENSOR_BYTES_MIN,
    UNIT_BYTES,
    UNIT_DIGEST_BYTES,
    WINDOW_BYTES_MAX,
    ZSTD_WINDOW_LOG_MAX,
)
from edge_delta.moves import MOVE_BYTES
from edge_delta.operations import Again, Copy, Flag, Glue, Moves, Operation, Planes, Predicted, Window

MAGIC: Final = b"LMD1"
DIGEST_BYTES: Final = 16
_VARINT_BYTES_MAX: Final = 6
_FIXED_BYTES_MAX: Final = len(MAGIC) + 6 * _VARINT_BYTES_MAX + 2 * DIGEST_BYTES
_OUTPUT_BYTES_MAX: Final = 2**40
_PIECES_MAX: Final = 8
_TURNED_WIDTHS: Final = (1, 2, 4, 8)
_LEAST: Final = 5 * 512 * 1024
_CHUNK_PEAK: Final = 4 * 1024 * 1024
_LOOKUP_PEAK: Final = 4 * 1024 * 1024
_MOVE_PEAK: Final = 120
_OPERATION_PEAK: Final = 250
_RANGE_PEAK: Final = 140
_UNIT_PEAK: Final = 64


@dataclass(frozen=True, slots=True)
class Head:
    """Everything of a delta but its body.

    Attributes:
        base_bytes: Length of the base.
        new_bytes: Length of the output.
        base: First `DIGEST_BYTES` of the base's sha256.
        new: First `DIGEST_BYTES` of the output's sha256.
        states: rANS states, uint32.
        ranges: (offset, length) in the base of what makes the glue's dictionary.
        glue_bytes: Length of the glue once decompressed.
        glue_packed: Length of its frame.
        operations: In the order of the output.
        units: First `UNIT_DIGEST_BYTES` of the sha256 of every whole `UNIT_BYTES` of output.
        glue_offset: Where the glue's frame begins; set by `read_head`.
        digest: Of everything before, which tells this delta from others of the same two files; set by `read_head`.
    """

    base_bytes: int
    new_bytes: int
    base: bytes
    new: bytes
    states: Array = field(compare=False)
    ranges: tuple[tuple[int, int], ...]
    glue_bytes: int
    glue_packed: int
    operations: tuple[Operation, ...]
    units: tuple[bytes, ...]
    glue_offset: int = 0
    digest: str = ""

    @property
    def body_offset(self) -> int:
        """Where the body begins."""
        return self.glue_offset + self.glue_packed


def varint(number: int) -> bytes:
    """A number in unsigned LEB128."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Numbers:
    """Reads numbers one after another."""

    def __init__(self, data: bytes, what: str) -> None:
        """Read from the beginning of `data`; `what` is for messages."""
        self._data = data
        self._what = what
        self.place = 0

    def take(self, high: int, low: int = 0) -> int:
        """The next number.

        Raises:
            DeltaError: When there is none, or it is not within `low..high`.
        """
        value = shift = 0
        for _ in range(_VARINT_BYTES_MAX):
            if self.place >= len(self._data):
                raise DeltaError(f"{self._what} is cut off")
            byte = self._data[self.place]
            self.place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        else:
            raise DeltaError(f"{self._what} has a number that is too long")
        if not low <= value <= high:
            raise DeltaError(f"{self._what} has {value} where {low} to {high} is possible")
        return value

    def bytes(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            DeltaError: When there are fewer.
        """
        found = self._data[self.place : self.place + count]
        if len(found) != count:
            raise DeltaError(f"{self._what} is cut off")
        self.place += count
        return found

    def finish(self) -> None:
        """Require that nothing is left.

        Raises:
            DeltaError: When something is.
        """
        if self.place != len(self._data):
            raise DeltaError(f"{self._what} is longer than it says")


def unpack_frame(frame: bytes | memoryview, length: int, what: str, dictionary: bytes = b"") -> bytes:
    """Decompress a zstd frame of known length.

    Args:
        frame: Without zstd's magic number; when it has `length` bytes it is the content itself.
        length: Of the content; already compared with its bound.
        what: For messages.
        dictionary: Raw content that it may refer to.

    Raises:
        DeltaError: When it is anything else.
    """
    if len(frame) == length:
        return bytes(frame)
    # The window first: a frame that asks for more memory is refused before any is taken.
    try:
        parameters = zstandard.get_frame_parameters(bytes(frame[:32]), format=zstandard.FORMAT_ZSTD1_MAGICLESS)
        if parameters.content_size != length or parameters.window_size > 2**ZSTD_WINDOW_LOG_MAX:
            raise DeltaError(f"{what} is compressed to another length than {length} bytes, or with a larger window")
        content = zstandard.ZstdDecompressor(
            dict_data=_dictionary(dictionary), format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=0
        ).decompress(bytes(frame), max_output_size=length)
    except (zstandard.ZstdError, ValueError) as error:
        raise DeltaError(f"{what} cannot be decompressed: {error}") from None
    if len(content) != length:
        raise DeltaError(f"{what} has {len(content)} bytes instead of {length}")
    return content


def _dictionary(content: bytes) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if content else None


def units_of(new_bytes: int) -> int:
    """How many prefix digests an output of this length has: the last unit, whole or not, has the output's own."""
    return max(0, new_bytes - 1) // UNIT_BYTES


def read_head(delta: BinaryIO) -> Head:
    """Read everything but the body.

    Args:
        delta: A seekable file.

    Raises:
        DeltaError: When it is no delta, or one that breaks its bounds.
    """
    delta.seek(0, 2)
    size = delta.tell()
    delta.seek(0)
    start = delta.read(_FIXED_BYTES_MAX)
    if not start.startswith(MAGIC):
        raise DeltaError("this is no delta of the format LMD1")
    fixed = Numbers(start, "the fixed part")
    fixed.place = len(MAGIC)
    base_bytes, new_bytes = (fixed.take(_OUTPUT_BYTES_MAX) for _ in range(2))
    base, new = fixed.bytes(DIGEST_BYTES), fixed.bytes(DIGEST_BYTES)
    head_bytes, head_packed = fixed.take(HEAD_BYTES_MAX), fixed.take(HEAD_BYTES_MAX)
    glue_bytes, glue_packed = fixed.take(GLUE_BYTES_MAX), fixed.take(GLUE_BYTES_MAX)
    units = units_of(new_bytes)
    if fixed.place + units * UNIT_DIGEST_BYTES + head_packed + glue_packed > size:
        raise DeltaError(f"the delta is cut off: it has {size} bytes")
    delta.seek(fixed.place)
    digests = delta.read(units * UNIT_DIGEST_BYTES)
    frame = delta.read(head_packed)
    glue_offset = delta.tell()
    head = Numbers(unpack_frame(frame, head_bytes, "the head"), "the head")
    states = _read_states(head)
    ranges = _read_ranges(head, base_bytes)
    operations = _read_operations(head, base_bytes, size)
    head.finish()
    made = sum(operation.length for operation in operations)
    glue = sum(operation.length for operation in operations if isinstance(operation, Glue))
    delta.seek(0)
    digest = hashlib.sha256(delta.read(glue_offset)).hexdigest()[: 2 * DIGEST_BYTES]
    if made != new_bytes or glue != glue_bytes:
        raise DeltaError(f"the operations make {made} bytes, {glue} of glue, instead of {new_bytes} and {glue_bytes}")
    found = Head(
        base_bytes,
        new_bytes,
        base,
        new,
        states,
        ranges,
        glue_bytes,
        glue_packed,
        operations,
        tuple(digests[place : place + UNIT_DIGEST_BYTES] for place in range(0, len(digests), UNIT_DIGEST_BYTES)),
        glue_offset,
        digest,
    )
    if peak_bytes(found) > PEAK_BYTES_MAX:
        raise DeltaError(f"the delta takes {peak_bytes(found)} bytes of memory, more than {PEAK_BYTES_MAX}")
    return found


def _read_states(head: Numbers) -> Array:
    lanes = head.take(LANES_MAX)
    return np.frombuffer(head.bytes(4 * lanes), "<u4").astype(np.uint32)


def _read_ranges(head: Numbers, base_bytes: int) -> tuple[tuple[int, int], ...]:
    ranges = []
    place = total = 0
    for _ in range(head.take(RANGES_MAX)):
        place += head.take(base_bytes)
        length = head.take(GLUE_DICTIONARY_BYTES_MAX, 1)
        ranges.append((place, length))
        place, total = place + length, total + length
        if place > base_bytes or total > GLUE_DICTIONARY_BYTES_MAX:
            raise DeltaError("the glue's dictionary is larger than it may be, or reaches behind the base")
    return tuple(ranges)


def _read_operations(head: Numbers, base_bytes: int, size: int) -> tuple[Operation, ...]:
    operations: list[Operation] = []
    made = 0
    for _ in range(head.take(OPERATIONS_MAX)):
        operation = _READERS[head.take(len(_READERS) - 1)](head, size)
        if isinstance(operation, Copy):
            begin, length = operation.offset, operation.length
        elif isinstance(operation, Window | Moves):
            begin, length = operation.offset, operation.dictionary
        elif isinstance(operation, Predicted):
            begin, length = operation.offset, operation.base_length
        else:
            begin = length = 0
        if begin + length > base_bytes:
            raise DeltaError(f"an operation reads {length} bytes at {begin} of a base of {base_bytes}")
        if isinstance(operation, Again) and operation.offset + operation.length > made:
            raise DeltaError(f"an operation reads output behind {made}, where there is none yet")
        made += operation.length
        operations.append(operation)
    return tuple(operations)


def _read_glue(head: Numbers, _size: int) -> Operation:
    return Glue(head.take(GLUE_BYTES_MAX, 1))


def _read_copy(head: Numbers, _size: int) -> Operation:
    return Copy(head.take(_OUTPUT_BYTES_MAX), head.take(_OUTPUT_BYTES_MAX, 1))


def _read_window(head: Numbers, size: int) -> Operation:
    offset, dictionary, length = _read_dictionary(head, 1)
    return Window(offset, dictionary, length, head.take(min(size, length), 1))


def _read_dictionary(head: Numbers, shortest: int) -> tuple[int, int, int]:
    """Offset and length of a dictionary, and how many bytes refer to it."""
    offset, dictionary = head.take(_OUTPUT_BYTES_MAX), head.take(DICTIONARY_BYTES_MAX)
    length = head.take(WINDOW_BYTES_MAX, shortest)
    if dictionary > max(SHORT_DICTIONARY_BYTES, DICTIONARY_TIMES_MAX * length):
        raise DeltaError(f"a window of {length} bytes has a dictionary of {dictionary}")
    return offset, dictionary, length


def _read_moves(head: Numbers, size: int) -> Operation:
    count = head.take(MOVES_MAX, 1)
    length = head.take(WINDOW_BYTES_MAX, MOVE_BYTES_MIN * count)
    offset, dictionary, literals = _read_dictionary(head, 0)
    if literals > length - MOVE_BYTES_MIN * count:
        raise DeltaError(f"{literals} bytes between {count} runs are more than {length} bytes have room for")
    table = head.take(min(size, MOVE_BYTES * count), 1)
    between = head.take(min(size, literals), 1) if literals else 0
    return Moves(count, length, offset, dictionary, literals, (table, between))


def _read_planes(head: Numbers, size: int) -> Operation:
    width = head.take(_PIECES_MAX, 1)
    count = head.take(WINDOW_BYTES_MAX // width, 1)
    is_turned = bool(head.take(1 if width in _TURNED_WIDTHS else 0))
    return Planes(width, count, is_turned, tuple(head.take(min(size, count), 1) for _ in range(width)))


def _read_predicted(head: Numbers, size: int) -> Operation:
    number = head.take(max(BY_NUMBER))
    flags = Flag(head.take(sum(Flag)))
    offset = head.take(_OUTPUT_BYTES_MAX)
    rows, columns = head.take(_OUTPUT_BYTES_MAX, 1), head.take(_OUTPUT_BYTES_MAX, 1)
    center = head.take(2**15) - 2**14
    rank = head.take(RANK_MAX, 1) if Flag.LOW_RANK in flags else 0
    shift = head.take(SHIFT_MAX) if Flag.LOW_RANK in flags else 0
    scaled = Flag.ROW_SCALE in flags or Flag.COLUMN_SCALE in flags
    scale_bits = head.take(52) if scaled else 0
    bare = Predicted(BY_NUMBER[number], flags, offset, rows, columns, center, rank, shift, scale_bits)
    if bare.length > _OUTPUT_BYTES_MAX or bare.side_bytes > SIDE_BYTES_MAX:
        raise DeltaError("a tensor's side information is larger than it may be")
    if (Flag.FROM_SINGLE | Flag.TO_SINGLE) & flags and BY_NUMBER[number] not in (F16, BF16):
        raise DeltaError(f"elements of the type {number} are not kept as float32")
    if Flag.GRID in flags and (Flag.ZEROS | Flag.SIGNED_ZEROS) & flags:
        raise DeltaError("a tensor on a grid has no symbol for zeros")
    if bare.length < TENSOR_BYTES_MIN:
        raise DeltaError(f"a tensor of {bare.length} bytes is not worth a prediction")
    if not bare.side_bytes:
        return bare
    packed = head.take(min(size, bare.side_bytes), 1)
    return Predicted(BY_NUMBER[number], flags, offset, rows, columns, center, rank, shift, scale_bits, packed)


def _read_again(head: Numbers, _size: int) -> Operation:
    return Again(head.take(_OUTPUT_BYTES_MAX), head.take(_OUTPUT_BYTES_MAX, 1))


_READERS: Final = (_read_glue, _read_copy, _read_window, _read_planes, _read_predicted, _read_again, _read_moves)


def peak_bytes(head: Head) -> int:
    """Memory that decoding takes at most beside Python, numpy and zstandard, from what the operations are.

    Bounded by `edge_contract.limits.DELTA_PEAK_BYTES_MAX` for every delta whose parts are within their limits; measured
    in tests/integration/test_delta_memory.py.
    """
    glue = sum(length for _, length in head.ranges) * 2 + min(head.glue_bytes, 2**GLUE_WINDOW_LOG_MAX)
    part = 0
    # Made with the first tensor, and kept.
    lookup = _LOOKUP_PEAK if any(isinstance(operation, Predicted) for operation in head.operations) else 0
    for operation in head.operations:
        match operation:
            case Window():
                part = max(part, 2 * operation.dictionary + 2 * operation.length + operation.packed)
            case Moves():
                held = 2 * (operation.dictionary + operation.literals) + operation.length + sum(operation.packed)
                part = max(part, held + _MOVE_PEAK * operation.count)
            case Planes():
                part = max(part, 6 * operation.length)
            case Predicted():
                part = max(part, _CHUNK_PEAK + 5 * operation.side_bytes)
    lists = _OPERATION_PEAK * len(head.operations) + _RANGE_PEAK * len(head.ranges) + _UNIT_PEAK * len(head.units)
    return _LEAST + glue + lookup + part + lists


def write_head(head: Head, pack: "Packer") -> bytes:
    """The bytes of everything before the glue's frame.

    Args:
        head: What to write.
        pack: Compresses the head, or gives it back as it is where that is shorter.
    """
    body = bytearray(varint(head.states.size) + head.states.astype("<u4").tobytes() + varint(len(head.ranges)))
    place = 0
    for offset, length in head.ranges:
        body += varint(offset - place) + varint(length)
        place = offset + length
    body += varint(len(head.operations))
    for operation in head.operations:
        body += _written(operation)
    frame = pack(bytes(body))
    lengths = (len(body), len(frame), head.glue_bytes, head.glue_packed)
    return b"".join(
        [
            MAGIC,
            varint(head.base_bytes),
            varint(head.new_bytes),
            head.base,
            head.new,
            *(varint(length) for length in lengths),
            *head.units,
            frame,
        ]
    )


def _written(operation: Operation) -> bytes:
    numbers: Sequence[int]
    match operation:
        case Glue(length):
            numbers = (0, length)
        case Copy(offset, length):
            numbers = (1, offset, length)
        case Window(offset, dictionary, length, packed):
            numbers = (2, offset, dictionary, length, packed)
        case Planes(width, count, is_turned, pieces):
            numbers = (3, width, count, int(is_turned), *pieces)
        case Predicted() as tensor:
            numbers = [4, tensor.kind.number, int(tensor.flags), tensor.offset, tensor.rows, tensor.columns]
            numbers += [tensor.center + 2**14]
            numbers += [tensor.rank, tensor.shift] if Flag.LOW_RANK in tensor.flags else []
            scaled = Flag.ROW_SCALE in tensor.flags or Flag.COLUMN_SCALE in tensor.flags
            numbers += [tensor.scale_bits] if scaled else []
            numbers += [tensor.packed] if tensor.side_bytes else []
        case Again(offset, length):
            numbers = (5, offset, length)
        case Moves(count, length, offset, dictionary, literals, (table, between)):
            numbers = (6, count, length, offset, dictionary, literals, table)
            numbers += (between,) if literals else ()
    return b"".join(varint(number) for number in numbers)


class Packer:
    """Compresses as `unpack_frame` expects it."""

    def __init__(self, level: int = 19, window_log: int = 20) -> None:
        """Compress at a level of zstd, with a window of 2 ** window_log bytes at most."""
        self._level = level
        self._window_log = window_log

    def __call__(self, content: bytes, dictionary: bytes = b"") -> bytes:
        """A frame, or the content itself where no frame is shorter.

        Args:
            content: At least one byte for a frame to be of use.
            dictionary: Raw content to refer to.
        """
        reach = len(content) + len(dictionary)
        log = min(self._window_log, max(10, (reach - 1).bit_length())) if reach else 10
        parameters = zstandard.ZstdCompressionParameters.from_level(
            self._level,
            source_size=len(content),
            dict_size=len(dictionary),
            window_log=log,
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=1,
            write_checksum=0,
            write_dict_id=0,
        )
        packed = zstandard.ZstdCompressor(dict_data=_dictionary(dictionary), compression_params=parameters).compress(
            content
        )
        return packed if len(packed) < len(content) else content
