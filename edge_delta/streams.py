"""What a decoder reads from and writes to: the body, the glue, and the output with its prefix digests."""

from __future__ import annotations

import hashlib
from typing import IO, BinaryIO, Final, cast

import zstandard

from edge_delta.errors import DeltaError
from edge_delta.limits import GLUE_WINDOW_LOG_MAX, READ_BYTES, UNIT_BYTES, UNIT_DIGEST_BYTES
from edge_delta.wire import Head

_AHEAD: Final = 512 * 1024
"""How much of the body is held; more than a chunk's words."""
_PACKED_BYTES: Final = 16 * 1024
"""How much of the glue's frame is read at once."""


class Body:
    """Reads the body forward, with a look ahead."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        """Begin at `start` of a seekable file."""
        self._file = file
        self._size = file.seek(0, 2)
        self.seek(start)

    @property
    def place(self) -> int:
        """Offset in the file of the next byte."""
        return self._start + self._used

    def seek(self, place: int) -> None:
        """Go on at an offset of the file.

        Raises:
            DeltaError: When it is behind the end.
        """
        if place > self._size:
            raise DeltaError("the delta is cut off")
        self._held, self._start, self._used = b"", place, 0

    def peek(self, count: int) -> memoryview:
        """The next `count` bytes, or an even number of fewer at the end; they stay unread."""
        if len(self._held) - self._used < count:
            self._file.seek(self.place)
            self._held, self._start, self._used = self._file.read(max(count, _AHEAD)), self.place, 0
        found = memoryview(self._held)[self._used : self._used + count]
        return found[: len(found) & ~1]

    def skip(self, count: int) -> None:
        """Read bytes that were peeked at."""
        self._used += count

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            DeltaError: When there are fewer.
        """
        if self._size - self.place < count:
            raise DeltaError("the delta is cut off")
        if len(self._held) - self._used < count:
            self._file.seek(self.place)
            self._held, self._start, self._used = self._file.read(max(count, _AHEAD)), self.place, 0
        found = self._held[self._used : self._used + count]
        if len(found) != count:
            raise DeltaError("the delta is cut off")
        self._used += count
        return found

    def finish(self) -> None:
        """Require that everything was read.

        Raises:
            DeltaError: When bytes are left.
        """
        if self.place != self._size:
            raise DeltaError(f"{self._size - self.place} bytes follow the end of the delta")


class GlueReader:
    """Reads the bytes between tensors, decompressed as they are needed."""

    def __init__(self, file: BinaryIO, base: BinaryIO, head: Head) -> None:
        """Prepare; nothing is decompressed before the first byte is asked for."""
        self._base = base
        self._head = head
        self._held = b""
        self._packed = _Part(file, head.glue_offset, head.glue_packed)
        self._reader: zstandard.ZstdDecompressionReader | None = None
        self.count = 0

    def read(self, count: int) -> bytes:
        """The next bytes.

        Args:
            count: `1..READ_BYTES`.

        Raises:
            DeltaError: When there are fewer.
        """
        while len(self._held) < count:
            more = self._more()
            if not more:
                raise DeltaError("the glue is shorter than it says")
            self._held += more
        found, self._held = self._held[:count], self._held[count:]
        self.count += count
        return found

    def skip_to(self, count: int) -> None:
        """Read on until `count` bytes were read.

        Raises:
            DeltaError: As `read`.
        """
        while self.count < count:
            self.read(min(READ_BYTES, count - self.count))

    def finish(self) -> None:
        """Require that everything was read.

        Raises:
            DeltaError: When bytes are left.
        """
        if self._held or self.count != self._head.glue_bytes:
            raise DeltaError("the glue is longer than it says")

    def _more(self) -> bytes:
        """Some more bytes; none at the end."""
        if self._head.glue_packed == self._head.glue_bytes:
            return self._packed.read(READ_BYTES)
        if self._reader is None:
            self._reader = self._open()
        # A few bytes may become many megabytes: what is asked for is all that is made at once.
        return self._reader.read(READ_BYTES)

    def _open(self) -> zstandard.ZstdDecompressionReader:
        parameters = zstandard.get_frame_parameters(self._packed.start(), format=zstandard.FORMAT_ZSTD1_MAGICLESS)
        if parameters.content_size != self._head.glue_bytes or parameters.window_size > _window_max(self._head):
            raise DeltaError("the glue is compressed to another length than it says, or with a larger window")
        content = bytearray()
        for offset, length in self._head.ranges:
            self._base.seek(offset)
            content += self._base.read(length)
        dictionary = zstandard.ZstdCompressionDict(bytes(content), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return zstandard.ZstdDecompressor(
            dict_data=dictionary if content else None, format=zstandard.FORMAT_ZSTD1_MAGICLESS
        ).stream_reader(cast("IO[bytes]", self._packed), read_size=_PACKED_BYTES)


class _Part:
    """A part of a file that others read as well, to be read forward."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file = file
        self._place, self._end = start, start + length

    def start(self) -> bytes:
        """Its next bytes, enough for a frame's header; they stay unread."""
        self._file.seek(self._place)
        return self._file.read(min(32, self._end - self._place))

    def read(self, count: int) -> bytes:
        """The next bytes; none at the end."""
        self._file.seek(self._place)
        found = self._file.read(min(count, self._end - self._place))
        self._place += len(found)
        return found


def _window_max(head: Head) -> int:
    """The largest window of the glue's frame; zstd's least one is a kilobyte."""
    return 2**GLUE_WINDOW_LOG_MAX + sum(length for _, length in head.ranges)


class Output:
    """Writes the output and compares each whole unit with its digest."""

    def __init__(self, file: BinaryIO, head: Head) -> None:
        """Write into a seekable, readable file from where it stands."""
        self._file = file
        self._head = head
        self._hash = hashlib.sha256()
        self.count = 0
        self.verified = 0

    def write(self, data: bytes | bytearray) -> None:
        """Append.

        Raises:
            DeltaError: When that is more than the output's length, or a unit differs from its digest.
        """
        if self.count + len(data) > self._head.new_bytes:
            raise DeltaError("the delta makes more bytes than it says")
        self._file.write(data)
        self._digest(data)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes that were written before.

        Raises:
            DeltaError: When they are not there.
        """
        self._file.seek(offset)
        found = self._file.read(count)
        self._file.seek(self.count)
        if len(found) != count:
            raise DeltaError("the output is shorter than what was written")
        return found

    def resume(self, count: int) -> None:
        """Go on behind `count` bytes that an earlier run wrote; the rest of the file is cut off.

        Raises:
            DeltaError: When they are not there, or a unit of them differs from its digest.
        """
        self._file.seek(0)
        while self.count < count:
            data = self._file.read(min(READ_BYTES, count - self.count))
            if not data:
                raise DeltaError("the output is shorter than the checkpoint says")
            self._digest(data)
        self._file.seek(count)
        self._file.truncate(count)

    def _digest(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            room = UNIT_BYTES - self.count % UNIT_BYTES
            part, view = view[:room], view[room:]
            self._hash.update(part)
            self.count += len(part)
            if self.count % UNIT_BYTES == 0:
                self._end_unit()

    def _end_unit(self) -> None:
        number = self.count // UNIT_BYTES - 1
        if number < len(self._head.units):
            if self._hash.digest()[:UNIT_DIGEST_BYTES] != self._head.units[number]:
                raise DeltaError(f"the output differs in its part {number + 1} of {UNIT_BYTES} bytes")
            self.verified = self.count
        self._hash = hashlib.sha256()

    def finish(self) -> None:
        """Require that everything was written.

        Raises:
            DeltaError: When bytes are missing.
        """
        if self.count != self._head.new_bytes:
            raise DeltaError(f"the delta makes {self.count} bytes instead of {self._head.new_bytes}")
