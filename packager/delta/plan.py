"""Cuts the new file into what is copied, what is predicted, what is coded without a base, and the bytes between."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from edge_delta.elements import BY_NAME, Array
from packager.delta.formats import Tensor
from packager.delta.match import Match, match

_TENSOR_BYTES_MIN: Final = 256
"""Smaller tensors are no dearer among the bytes between."""
_ALONE_BYTES_MIN: Final = 16_384
_EQUAL_PART: Final = 2**22


@dataclass(frozen=True, slots=True)
class Same:
    """Bytes of the base as they are."""

    start: int
    end: int
    base: int


@dataclass(frozen=True, slots=True)
class Changed:
    """A tensor to predict from its base.

    Attributes:
        start: Where it lies in the new file.
        end: Behind its last byte.
        base: The tensor of the base.
        new: The new one.
        is_alike: Whether the two have anything in common, see `match`.
    """

    start: int
    end: int
    base: Tensor
    new: Tensor
    is_alike: bool = True


@dataclass(frozen=True, slots=True)
class Repeat:
    """Bytes that stand in the new file before, and not in the base."""

    start: int
    end: int
    first: int


@dataclass(frozen=True, slots=True)
class Alone:
    """A tensor without a base."""

    start: int
    end: int
    new: Tensor


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes between, and where in the base similar ones are likely."""

    start: int
    end: int
    near: int


Part = Same | Changed | Repeat | Alone | Gap


@dataclass(frozen=True, slots=True)
class Plan:
    """Parts that follow each other and cover the new file, and the base's bytes that none of them uses."""

    parts: tuple[Part, ...]
    spare: tuple[tuple[int, int], ...]


def make_plan(base: Array, new: Array, base_tensors: Sequence[Tensor], new_tensors: Sequence[Tensor]) -> Plan:
    """Plan a delta.

    Args:
        base: The base, uint8.
        new: The new file, uint8.
        base_tensors: See `packager.delta.formats.read_tensors`.
        new_tensors: Likewise.
    """
    found: dict[tuple[int, int], Match] = {
        (item.new.start, item.new.end): item for item in match(base_tensors, new_tensors, base, new)
    }
    parts: list[Part] = []
    place = near = 0
    repeats = _repeats(new, new_tensors)
    for tensor in new_tensors:
        size = tensor.end - tensor.start
        item = found.get((tensor.start, tensor.end))
        part: Part | None = None
        if item is not None and size >= _TENSOR_BYTES_MIN:
            if _is_equal(base[item.base.start : item.base.end], new[tensor.start : tensor.end]):
                part = Same(tensor.start, tensor.end, item.base.start)
            elif tensor.start in repeats:
                part = Repeat(tensor.start, tensor.end, repeats[tensor.start])
            elif tensor.dtype in BY_NAME:
                part = Changed(tensor.start, tensor.end, item.base, tensor, item.is_alike)
        if part is None and tensor.start in repeats:
            part = Repeat(tensor.start, tensor.end, repeats[tensor.start])
        if part is None and size >= _ALONE_BYTES_MIN and tensor.dtype in BY_NAME and BY_NAME[tensor.dtype].is_float:
            part = Alone(tensor.start, tensor.end, tensor)
        if part is None:
            continue
        if place < tensor.start:
            parts.append(Gap(place, tensor.start, near))
        parts.append(part)
        place = tensor.end
        near = near if item is None else item.base.end
    if place < new.size:
        parts.append(Gap(place, new.size, near))
    parts = _widened(base, new, parts)
    return Plan(tuple(parts), _spare(base.size, parts))


def _repeats(new: Array, tensors: Sequence[Tensor]) -> dict[int, int]:
    """Where tensors begin whose bytes stand in the file before, and where: tied weights, averages kept beside them."""
    sized: defaultdict[int, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.end - tensor.start >= _TENSOR_BYTES_MIN:
            sized[tensor.end - tensor.start].append(tensor)
    found: dict[int, int] = {}
    for group in (group for group in sized.values() if len(group) > 1):
        first: dict[bytes, int] = {}
        for tensor in group:
            digest = blake2b(new[tensor.start : tensor.end].data, digest_size=32).digest()
            if digest in first:
                found[tensor.start] = first[digest]
            else:
                first[digest] = tensor.start
    return found


def _is_equal(one: Array, other: Array) -> bool:
    return one.size == other.size and all(
        bool((one[place : place + _EQUAL_PART] == other[place : place + _EQUAL_PART]).all())
        for place in range(0, one.size, _EQUAL_PART)
    )


def _widened(base: Array, new: Array, parts: Sequence[Part]) -> list[Part]:
    """Copies take in the equal bytes around them; copies that then follow each other in both files become one."""
    result: list[Part] = []
    for number, part in enumerate(parts):
        if isinstance(part, Gap):
            start, end = part.start, part.end
            before = result[-1] if result else Same(0, 0, 0)
            if isinstance(before, Same):
                count = _common(base, before.base + before.end - before.start, new, start, end)
                if count and result:
                    result[-1] = Same(before.start, before.end + count, before.base)
                elif count:
                    result.append(Same(0, count, 0))
                start += count
            following = parts[number + 1] if number + 1 < len(parts) else Same(new.size, new.size, base.size)
            if isinstance(following, Same) and start < end:
                count = _common_back(base, following.base, new, start, end)
                if start < end - count:
                    result.append(Gap(start, end - count, part.near))
                if count:
                    result.append(Same(end - count, end, following.base - count))
            elif start < end:
                result.append(Gap(start, end, part.near))
            continue
        last = result[-1] if result else None
        is_run = isinstance(part, Same) and isinstance(last, Same) and part.base - part.start == last.base - last.start
        if is_run and isinstance(last, Same) and isinstance(part, Same):
            result[-1] = Same(last.start, part.end, last.base)
        else:
            result.append(part)
    return result


def _common(base: Array, at: int, new: Array, start: int, end: int) -> int:
    """How many bytes from both places on are the same."""
    count = min(end - start, base.size - at)
    for done in range(0, count, _EQUAL_PART):
        part = min(_EQUAL_PART, count - done)
        differs = base[at + done : at + done + part] != new[start + done : start + done + part]
        if differs.any():
            return done + int(differs.argmax())
    return count


def _common_back(base: Array, at: int, new: Array, start: int, end: int) -> int:
    """How many bytes before both places are the same."""
    count = min(end - start, at)
    for done in range(0, count, _EQUAL_PART):
        part = min(_EQUAL_PART, count - done)
        differs = base[at - done - part : at - done] != new[end - done - part : end - done]
        if differs.any():
            return done + int(differs[::-1].argmax())
    return count


def _spare(base_bytes: int, parts: Sequence[Part]) -> tuple[tuple[int, int], ...]:
    """Ranges (offset, length) of the base that no part reads."""
    used = []
    for part in parts:
        if isinstance(part, Same):
            used.append((part.base, part.base + part.end - part.start))
        elif isinstance(part, Changed):
            used.append((part.base.start, part.base.end))
    ranges = []
    place = 0
    for start, end in sorted(used):
        if start > place:
            ranges.append((place, start - place))
        place = max(place, end)
    if place < base_bytes:
        ranges.append((place, base_bytes - place))
    return tuple(ranges)
