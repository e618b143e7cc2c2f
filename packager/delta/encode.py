"""Makes a delta between two files: finds tensors, predicts each from its base, codes what is left (ADR 0037)."""

import hashlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from edge_contract.errors import EdgeError
from edge_delta.blocks import block_at
from edge_delta.elements import BY_NAME, I32, Array, ordered, wrapped, zigzag
from edge_delta.errors import DeltaError
from edge_delta.limits import (
    GLUE_BYTES_MAX,
    GLUE_WINDOW_LOG_MAX,
    READ_BYTES,
    UNIT_BYTES,
    UNIT_DIGEST_BYTES,
)
from edge_delta.operations import Again, Copy, Flag, Glue, Operation, Predicted
from edge_delta.predict import Prediction
from edge_delta.symbols import places, zero_numbers
from edge_delta.wire import DIGEST_BYTES, Head, Packer, peak_bytes, read_head, units_of, write_head
from packager.delta.casts import cast_of
from packager.delta.coder import Coded, Coder
from packager.delta.fit import Fit, Pair, fit, grid_numbers
from packager.delta.formats import Tensor, read_tensors
from packager.delta.opaque import LARGEST, Known, Sizes
from packager.delta.plain import Plain, bytes_of, pack_gap, pack_planes, share_as_bytes
from packager.delta.plan import Alone, Changed, Gap, Part, Repeat, Same, make_plan
from packager.delta.pruned import fit_pruned
from packager.files import disk_errors, sync_folder

_GLUE_PART_MAX: Final = 65_536
"""Longer gaps are windows of their own, so that the glue stays small enough to hold."""
_LOOKED_FROM: Final = 0.7
"""Share of the new file from which on a look tells whether a delta of bytes would be shorter."""
_LOOKS: Final = 2
_LOOK_BYTES: Final = 128 * 1024
_LOOK_AROUND: Final = 1024 * 1024
_MUCH_AS_BYTES: Final = 0.3
"""Share of a delta that is tensors taken as bytes, from which on taking all of it so may be shorter."""
_DOUBTFUL: Final = 0.8
"""Estimated share of a tensor from which on its planes are packed too, and the smaller one is taken."""
_POOR: Final = 0.9
"""Share of the new file from which on a delta is no good."""
_ELSEWHERE: Final = 0.2
"""Share of a tensor that stands in the base as it is, from which on it is copied from there instead of predicted."""
_SEARCHED_MAX: Final = 128 * 1024 * 1024
"""Length of a base in which even tensors are looked for that are like theirs: rows may have changed places."""
_REPEATING: Final = 0.7
_DOUBT: Final = 1.5
"""Where zstd finds so much, an estimate has to be so much better to be believed untried, and of floats none is."""
_ELSEWHERE_BYTES_MIN: Final = 16_384
_BESIDE_TENSORS: Final = Sizes(window=1024 * 1024, dictionary=2 * 1024 * 1024)
"""Where a decoder holds its tables for tensors too, so that all of it is within the bound."""
_THRIFTY: Final = Sizes(window=1024 * 1024, dictionary=1024 * 1024)
_GLUE_DICTIONARY: Final = 256 * 1024
_WAITING_MAX: Final = 64 * 1024 * 1024
"""Tensors taken as bytes that are tried as one: what they come to waits in memory."""
_OPAQUE_BYTES: Final = 64 * 1024 * 1024
"""Files up to this length are tried as plain bytes too, where the delta is no good."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A delta that was made.

    Attributes:
        bytes: Its length.
        new_bytes: Length of the file that it makes.
        peak_bytes: Memory that decoding takes at most beside Python, numpy and zstandard.
        seconds: Processor time that making it took.
        kinds: Bytes of output by kind of operation.
    """

    bytes: int
    new_bytes: int
    peak_bytes: int
    seconds: float
    kinds: dict[str, int]


def encode(
    base: Path,
    new: Path,
    out: Path,
    *,
    base_tensors: Sequence[Tensor] | None = None,
    new_tensors: Sequence[Tensor] | None = None,
    effort: int = 1,
) -> Encoded:
    """Make the delta from one file to another.

    Args:
        base: What a device holds; at least one byte.
        new: What it is to make; at least one byte.
        out: Where the delta goes; written beside it, synced and renamed.
        base_tensors: Where tensors lie in the base; none to look for them.
        new_tensors: Likewise.
        effort: 0 is fast, 1 looks for low-rank parts, 2 looks longer.

    Returns:
        What was made. It may be longer than the new file, when the two have nothing in common.

    Raises:
        EdgeError: `config.file-missing`, `device.disk-full`, `device.disk-error`.
    """
    began = time.process_time()
    base_bytes, new_bytes = _mapped(base), _mapped(new)
    with disk_errors(base):
        known = read_tensors(base) if base_tensors is None else tuple(base_tensors)
    with disk_errors(new):
        wanted = read_tensors(new) if new_tensors is None else tuple(new_tensors)
    with disk_errors(out), tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".delta-") as name:
        folder = Path(name)
        found, best = Known(base_bytes), folder / "best"
        plan = make_plan(base_bytes, new_bytes, known, wanted).parts
        # What breaks a bound of the decoder's is made anew in less memory, then in fewer pieces.
        attempt = _attempt(found, new_bytes, plan, effort, best)
        attempt = attempt or _attempt(found, new_bytes, plan, effort, best, _THRIFTY)
        is_doubtful = attempt is not None and known and wanted and new_bytes.size <= _OPAQUE_BYTES
        if attempt is None or (is_doubtful and _is_poor(attempt, base_bytes, new_bytes)):
            plan = make_plan(base_bytes, new_bytes, (), ()).parts
            sizes = _THRIFTY if attempt is None else LARGEST
            plain = _attempt(found, new_bytes, plan, effort, folder / "plain", sizes)
            if plain is not None and (attempt is None or plain.made.bytes < attempt.made.bytes):
                os.replace(folder / "plain", best)
                attempt = plain
        made = None if attempt is None else attempt.made
        if made is None:
            raise EdgeError("internal.bug", f"no delta from {base} to {new} keeps within the bounds of a decoder")
        os.replace(best, out)
        sync_folder(out.absolute().parent)
    return replace(made, seconds=time.process_time() - began)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A delta, and how much of it is tensors that were taken as bytes."""

    made: Encoded
    as_bytes: int


def _attempt(
    known: Known, new: Array, plan: Sequence[Part], effort: int, out: Path, sizes: Sizes = LARGEST
) -> _Attempt | None:
    """Make a delta by a plan, synced; none when a decoder would refuse it."""
    with tempfile.TemporaryFile(dir=out.parent) as spill, np.errstate(all="ignore"):
        writer = _Writer(known, new, spill, sizes, out.parent)
        writer.write(plan, effort)
        writer.finish(out)
    try:
        with out.open("rb") as file:
            peak = peak_bytes(read_head(file))
    except DeltaError:
        return None
    return _Attempt(Encoded(out.stat().st_size, new.size, peak, 0.0, dict(writer.kinds)), writer.as_bytes)


def _is_poor(attempt: _Attempt, base: Array, new: Array) -> bool:
    """Whether the whole file taken as bytes may make a shorter delta."""
    size = attempt.made.bytes
    if new.size < _GLUE_PART_MAX or size > _POOR * new.size or attempt.as_bytes > _MUCH_AS_BYTES * size:
        return True
    if size < _LOOKED_FROM * new.size:
        return False
    packed = length = 0
    pack = Packer(19, 22)
    for number in range(_LOOKS):
        place = (2 * number + 1) * new.size // (2 * _LOOKS)
        some = new[place : place + _LOOK_BYTES].tobytes()
        around = base[max(0, place - _LOOK_AROUND) : place + _LOOK_BYTES + _LOOK_AROUND].tobytes()
        packed, length = packed + len(pack(some, around)), length + len(some)
    return packed * new.size < size * length


def _mapped(path: Path) -> Array:
    try:
        if not path.stat().st_size:
            raise EdgeError("config.invalid", f"{path} is empty", "A delta needs two files with something in them.")
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise EdgeError("config.file-missing", f"{path} cannot be read: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class _AsBytes:
    """A tensor taken as bytes, where in the base similar ones are likely, and what that came to."""

    start: int
    end: int
    near: int
    found: tuple[tuple[Plain, bytes], ...]


class _Writer:
    """Collects operations and what each reads of the body."""

    def __init__(self, known: Known, new: Array, spill: BinaryIO, sizes: Sizes, folder: Path) -> None:
        self._base = known.base
        self._known = known
        self.as_bytes = 0
        self._waiting: list[_AsBytes] = []
        self._new = new
        self._spill = spill
        self._coder = Coder(spill)
        self._operations: list[Operation] = []
        self._body: list[tuple[int, int] | int] = []  # a range of the spill, or a chunk's number
        self._glue = bytearray()
        self._sizes = sizes
        self._folder = folder
        self.kinds: Counter[str] = Counter()

    def write(self, parts: Sequence[Part], effort: int) -> None:
        """Take every part in order."""
        if any(isinstance(part, Changed) for part in parts):
            self._sizes = Sizes(*map(min, astuple(self._sizes), astuple(_BESIDE_TENSORS)))
        for part in parts:
            match part:
                case Same(start, end, base):
                    self._add(Copy(base, end - start))
                case Repeat(start, end, first):
                    self._add(Again(first, end - start))
                case Gap(start, end) if end - start <= _GLUE_PART_MAX and len(self._glue) < GLUE_BYTES_MAX // 2:
                    self._add(Glue(end - start))
                    self._glue += self._new[start:end].tobytes()
                case Gap(start, end, near):
                    self._gap(start, end, near)
                case Alone() | Changed(is_alike=False) if self._is_elsewhere(part):
                    self._as_bytes(part.start, part.end, part.start)
                case Alone(start, end, tensor):
                    self._alone(tensor)
                case Changed() as changed:
                    self._changed(changed, effort)

    def _add(self, operation: Operation, frame: bytes = b"") -> None:
        if self._waiting:
            self._settle()
        self.kinds[type(operation).__name__.lower()] += operation.length
        last = self._operations[-1] if self._operations else None
        if isinstance(operation, Glue) and isinstance(last, Glue):
            self._operations[-1] = Glue(last.length + operation.length)
            return
        self._operations.append(operation)
        if frame:
            self._keep(frame)

    def _keep(self, data: bytes) -> None:
        place = self._spill.seek(0, 2)
        self._spill.write(data)
        self._body.append((place, len(data)))

    def _gap(self, start: int, end: int, near: int) -> None:
        for operation, frame in self._packed(start, end, near):
            self._add(operation, frame)

    def _packed(self, start: int, end: int, near: int) -> Iterator[tuple[Plain, bytes]]:
        return pack_gap(self._known, self._new[start:end], start, near, self._sizes)

    def _as_bytes(self, start: int, end: int, near: int, found: Sequence[tuple[Plain, bytes]] = ()) -> None:
        """Take a tensor as bytes; those that follow each other wait, to be tried as one."""
        if self._waiting and (self._waiting[-1].end != start or end - self._waiting[0].start > _WAITING_MAX):
            self._settle()
        self._waiting.append(_AsBytes(start, end, near, tuple(found or self._packed(start, end, near))))

    def _settle(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        found = [item for part in waiting for item in part.found]
        if len(waiting) > 1:
            joint = list(self._packed(waiting[0].start, waiting[-1].end, waiting[0].near))
            found = min(joint, found, key=bytes_of)
        self.as_bytes += bytes_of(found)
        for operation, frame in found:
            self._add(operation, frame)

    def _is_elsewhere(self, part: Alone | Changed) -> bool:
        """Whether much of a tensor stands in the base already: cut, joined, or among other bytes."""
        is_long = part.end - part.start >= _ELSEWHERE_BYTES_MIN
        return is_long and self._known.share(self._new[part.start : part.end]) >= _ELSEWHERE

    # -- tensors ---------------------------------------------------------------------------------------------------

    def _alone(self, tensor: Tensor) -> None:
        kind = BY_NAME[tensor.dtype]
        for operation, frame in pack_planes(kind, self._new[tensor.start : tensor.end].view(kind.unsigned)):
            self._add(operation, frame)

    def _changed(self, part: Changed, effort: int) -> None:
        found = cast_of(part, self._base, self._new)
        if found is None:
            self._alone(part.new)
            return
        pair, casts = found
        kind = BY_NAME[part.new.dtype]
        best = self._fitted(pair, part.base.start, effort)
        best = replace(best, tensor=replace(best.tensor, flags=best.tensor.flags | casts))
        # Pruned or moved weights repeat bytes and are far from every prediction.
        as_bytes = share_as_bytes(self._base[part.base.start : part.base.end], self._new[part.start : part.end])
        estimate = best.bits / 8 / (part.end - part.start)
        is_repeating = as_bytes < _REPEATING and (kind.is_float or as_bytes < _DOUBT * estimate)
        if as_bytes < estimate or is_repeating or (self._base.size <= _SEARCHED_MAX and self._is_elsewhere(part)):
            packed = list(
                pack_gap(self._known, self._new[part.start : part.end], part.start, part.base.start, self._sizes)
            )
            if bytes_of(packed) < self._tried(best, pair):
                self._as_bytes(part.start, part.end, part.base.start, packed)
                return
        if kind.is_float and best.bits > _DOUBTFUL * 8 * (part.end - part.start):
            planes = list(pack_planes(kind, self._new[part.start : part.end].view(kind.unsigned)))
            if sum(len(frame) for _, frame in planes) * 8 < best.bits:
                for operation, frame in planes:
                    self._add(operation, frame)
                return
        self._predicted(best, pair)

    def _fitted(self, pair: Pair, offset: int, effort: int) -> Fit:
        pruned = fit_pruned(pair, offset, effort)
        if pruned is not None and pair.kind.is_float:
            return pruned
        best = fit(pair, offset, effort)
        # Small integers become zero by training too.
        return best if pruned is None or self._tried(best, pair) <= self._tried(pruned, pair) else pruned

    def _tried(self, found: Fit, pair: Pair) -> int:
        """How long a prediction really comes out; estimates say little of tensors in which much stays what it was."""
        with tempfile.TemporaryFile(dir=self._folder) as spill:
            trial = _Writer(self._known, self._new, spill, self._sizes, self._folder)
            trial._predicted(found, pair)
            return trial._coder.bytes + sum(item[1] for item in trial._body if isinstance(item, tuple))

    def _predicted(self, found: Fit, pair: Pair) -> None:
        tensor, side = found.tensor, found.side
        data = side.to_bytes()
        if len(data) != tensor.side_bytes:
            raise AssertionError(f"side information of {len(data)} bytes where {tensor.side_bytes} are read")
        frame = Packer(19, 22)(data) if data else b""
        tensor = replace(tensor, packed=len(frame))
        self._add(tensor, frame)
        prediction = Prediction(tensor, side)
        element, total = 0, tensor.rows * tensor.columns
        while element < total:
            rows, columns = block_at(tensor, element, self._coder.chunk_elements())
            base, new = pair.base[rows, columns], pair.new[rows, columns]
            classes = prediction.classes(rows, columns)
            is_fine, zeros = Flag.FINE in tensor.flags, None
            if Flag.GRID in tensor.flags:
                kind = I32
                number, exact = prediction.steps_of(base, rows, columns)
                found_places = places(kind, number.view(np.uint32), exact if is_fine else None, *classes)
                difference = grid_numbers(pair, side, rows)[:, columns] - number
            else:
                kind, is_pruned = pair.kind, Flag.ZEROS in tensor.flags
                guess, exact = prediction.block(base, rows, columns)
                found_places = places(kind, guess, exact if is_fine else None, *classes, is_pruned=is_pruned)
                difference = wrapped(kind, ordered(kind, new) - ordered(kind, guess))
                if is_pruned:
                    is_signed = Flag.SIGNED_ZEROS in tensor.flags
                    zeros = zero_numbers(kind, guess, base, found_places, is_signed=is_signed)
            if found_places.is_turned is not None:
                difference = wrapped(kind, np.where(found_places.is_turned, -difference, difference))
            chunk = self._coder.add(kind, found_places.contexts.ravel(), zigzag(difference).ravel(), zeros)
            self._body.append(chunk)
            element += base.size

    # -- the end ---------------------------------------------------------------------------------------------------

    def finish(self, out: Path) -> None:
        """Write the delta, synced."""
        self._settle()
        states, coded = self._coder.finish()
        ranges, dictionary = self._dictionary()
        glue = Packer(19, GLUE_WINDOW_LOG_MAX)(bytes(self._glue), dictionary) if self._glue else b""
        if len(glue) == len(self._glue):
            ranges = ()
        head = Head(
            base_bytes=self._base.size,
            new_bytes=self._new.size,
            base=_sha256(self._base)[:DIGEST_BYTES],
            new=_sha256(self._new)[:DIGEST_BYTES],
            states=states,
            ranges=ranges,
            glue_bytes=len(self._glue),
            glue_packed=len(glue),
            operations=tuple(self._operations),
            units=tuple(
                _sha256(self._new[number * UNIT_BYTES : (number + 1) * UNIT_BYTES])[:UNIT_DIGEST_BYTES]
                for number in range(units_of(self._new.size))
            ),
        )
        with out.open("wb") as file:
            file.write(write_head(head, Packer(19, 22)))
            file.write(glue)
            for item in self._body:
                self._copy(coded, item, file)
            file.flush()
            os.fsync(file.fileno())

    def _copy(self, coded: list[Coded], item: tuple[int, int] | int, file: BinaryIO) -> None:
        for place, length in (coded[item].words, coded[item].raw) if isinstance(item, int) else (item,):
            self._spill.seek(place)
            for start in range(0, length, READ_BYTES):
                file.write(self._spill.read(min(READ_BYTES, length - start)))

    def _dictionary(self) -> tuple[tuple[tuple[int, int], ...], bytes]:
        """Bytes of the base that no operation reads, for the glue to refer to."""
        used = sorted(
            (operation.offset, operation.offset + _base_length(operation))
            for operation in self._operations
            if isinstance(operation, Copy | Predicted)
        )
        ranges = []
        place, room = 0, _GLUE_DICTIONARY
        for start, end in [*used, (self._base.size, self._base.size)]:
            length = min(start - place, room)
            if length > 0 and self._glue:
                ranges.append((place, length))
                room -= length
            place = max(place, end)
        content = b"".join(self._base[start : start + length].tobytes() for start, length in ranges)
        return tuple(ranges), content


def _base_length(operation: Copy | Predicted) -> int:
    return operation.base_length if isinstance(operation, Predicted) else operation.length


def _sha256(data: Array) -> bytes:
    digest = hashlib.sha256()
    for place in range(0, data.size, UNIT_BYTES):
        digest.update(data[place : place + UNIT_BYTES].tobytes())
    return digest.digest()
