"""What a delta consists of: operations, each of which makes the next bytes of the output."""

from dataclasses import dataclass
from enum import IntFlag

from edge_delta.elements import F32, Kind


class Flag(IntFlag):
    """What a tensor's prediction is made of."""

    ROW_SCALE = 1
    COLUMN_SCALE = 2
    LOW_RANK = 4
    FINE = 8  # contexts ask how near the prediction lies to the middle
    GRID = 16  # new = base + step of the row x number, rounded; what is predicted is the number
    ROW_CLASSES = 32
    COLUMN_CLASSES = 64
    ZEROS = 128  # elements may have become zero, which is a symbol of its own
    SIGNED_ZEROS = 256  # and keep the sign of the base
    FROM_SINGLE = 512  # elements of the base are float32, rounded to the tensor's type before anything is predicted
    TO_SINGLE = 1024  # elements of the output are float32 that hold nothing more than the tensor's type


@dataclass(frozen=True, slots=True)
class Glue:
    """Bytes from the glue."""

    length: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes of the base."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Window:
    """Bytes of one zstd frame, with a range of the base as its dictionary; stored when `packed` is `length`."""

    offset: int
    dictionary: int
    length: int
    packed: int


@dataclass(frozen=True, slots=True)
class Planes:
    """Elements without a base: their first bytes, then their second ones, ..., each plane a zstd frame or stored.

    Attributes:
        width: Bytes of an element, `1..8`.
        count: Elements.
        is_turned: The sign was moved behind the lowest bit, so that the exponent fills the highest byte.
        packed: Length of each plane in the body.
    """

    width: int
    count: int
    is_turned: bool
    packed: tuple[int, ...]

    @property
    def length(self) -> int:
        """Bytes of output."""
        return self.width * self.count


@dataclass(frozen=True, slots=True)
class Predicted:
    """A tensor made from a range of the base.

    Attributes:
        kind: Type of its elements.
        flags: What the prediction is made of.
        offset: Where the base tensor begins.
        rows: Rows of the matrix it is seen as.
        columns: Its columns.
        center: Class that row classes are counted from.
        rank: Of the low-rank part; 0 without.
        shift: The product of the factors is divided by 2 ** shift.
        scale_bits: A scale is 1 + number / 2 ** scale_bits.
        packed: Length of the side information in the body.
    """

    kind: Kind
    flags: Flag
    offset: int
    rows: int
    columns: int
    center: int
    rank: int = 0
    shift: int = 0
    scale_bits: int = 0
    packed: int = 0

    @property
    def width(self) -> int:
        """Bytes of an element of the output."""
        return F32.bytes if Flag.TO_SINGLE in self.flags else self.kind.bytes

    @property
    def base_width(self) -> int:
        """Bytes of an element of the base."""
        return F32.bytes if Flag.FROM_SINGLE in self.flags else self.kind.bytes

    @property
    def length(self) -> int:
        """Bytes of output."""
        return self.rows * self.columns * self.width

    @property
    def base_length(self) -> int:
        """Bytes of the base that it is made from."""
        return self.rows * self.columns * self.base_width

    @property
    def side_bytes(self) -> int:
        """Length of the side information; computed, not believed."""
        scales = (self.rows if Flag.ROW_SCALE in self.flags else 0) + (
            self.columns if Flag.COLUMN_SCALE in self.flags else 0
        )
        classes = (self.rows if Flag.ROW_CLASSES in self.flags else 0) + (
            self.columns if Flag.COLUMN_CLASSES in self.flags else 0
        )
        steps = self.rows if Flag.GRID in self.flags else 0
        return classes + steps + 4 * scales + 4 * self.rank * (self.rows + self.columns)


@dataclass(frozen=True, slots=True)
class Again:
    """Bytes of the output, from before."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Moves:
    """Many short runs of the base, with bytes between them, in one table.

    Attributes:
        count: Runs.
        length: Bytes of output.
        offset: Where in the base the dictionary of the bytes between begins.
        dictionary: Its length.
        literals: How many bytes lie between, before and behind them.
        packed: Length of the table's frame in the body, and of the frame of the bytes between; a frame that is as long
            as its content is the content.
    """

    count: int
    length: int
    offset: int
    dictionary: int
    literals: int
    packed: tuple[int, int]


Operation = Glue | Copy | Window | Planes | Predicted | Again | Moves
