"""Which base tensor each new tensor is made from."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edge_delta.elements import BY_NAME, Array, values
from packager.delta.formats import Tensor

_SAMPLES: Final = 256
"""Elements that two tensors are compared by."""
_ALIKE: Final = 0.5
"""Correlation of these from which on one tensor comes from the other: trained further, scaled, or quantised anew."""
_ELEMENTS_MIN: Final = 256
"""Tensors with fewer are paired by name and shape alone."""
_CANDIDATES_MAX: Final = 4_096
"""Base tensors of one type and size that a new one is compared with."""


@dataclass(frozen=True, slots=True)
class Match:
    """A new tensor and the base tensor that it most likely comes from.

    Attributes:
        base: Has the number of elements of the new one, mostly its shape and its type as well; floats of different
            types may be paired.
        new: The new one.
        is_alike: Whether their elements are; true where they are too few or of a type that cannot be compared.
    """

    base: Tensor
    new: Tensor
    is_alike: bool = True


def match(base_tensors: Sequence[Tensor], new_tensors: Sequence[Tensor], base: Array, new: Array) -> list[Match]:
    """Pair tensors by name, type and shape, then by type and shape in the order of the files, and look whether it fits.

    Exporters number what has no name, so after a change of the graph a name may stand for another tensor of the same
    shape; or a tensor was given another shape, another place, or stands twice. Whatever is not like what it was paired
    with is given the base tensor that it is most like, if there is one.

    Args:
        base_tensors: Tensors of the base.
        new_tensors: Tensors of the new file.
        base: The bytes of the base, uint8.
        new: The bytes of the new file, uint8.

    Returns:
        At most one match for each new tensor, in the order of `new_tensors`.
    """
    found = _by_name(base_tensors, new_tensors)
    held, wanted = _Samples(base), _Samples(new)
    groups = _Groups(base_tensors, held)
    result = []
    for number, tensor in enumerate(new_tensors):
        other, sample = found.get(number), wanted.of(tensor)
        if sample is None:
            result += [] if other is None else [Match(other, tensor)]
            continue
        if other is not None and _correlation(sample, held.of(other)) >= _ALIKE:
            result.append(Match(other, tensor))
            continue
        likely = groups.most_alike(tensor, sample)
        if likely is not None:
            result.append(Match(likely, tensor))
        elif other is not None:
            result.append(Match(other, tensor, is_alike=False))
    return result


def _by_name(base: Sequence[Tensor], new: Sequence[Tensor]) -> dict[int, Tensor]:
    """By the place of the new tensor; each base tensor once."""
    named = {(tensor.name, tensor.dtype, tensor.shape): tensor for tensor in base}
    found: dict[int, Tensor] = {}
    taken: set[tuple[int, int]] = set()
    for number, tensor in enumerate(new):
        other = named.get((tensor.name, tensor.dtype, tensor.shape))
        if other is not None and (other.start, other.end) not in taken:
            found[number] = other
            taken.add((other.start, other.end))
    shaped: defaultdict[tuple[str, tuple[int, ...]], deque[Tensor]] = defaultdict(deque)
    for tensor in base:
        if (tensor.start, tensor.end) not in taken:
            shaped[tensor.dtype, tensor.shape].append(tensor)
    for number, tensor in enumerate(new):
        waiting = shaped[tensor.dtype, tensor.shape]
        if number not in found and waiting:
            found[number] = waiting.popleft()
    return found


def _correlation(one: Array, other: Array | None) -> float:
    return 0.0 if other is None else abs(float(one @ other))


class _Samples:
    """Some elements of each tensor of a file, centred and of length one, so that products are correlations."""

    def __init__(self, data: Array) -> None:
        self._data = data
        self._found: dict[tuple[int, int, str], Array | None] = {}

    def of(self, tensor: Tensor) -> Array | None:
        """float64, (`_SAMPLES`,); none for a tensor that is not compared, or whose elements are all the same."""
        key = (tensor.start, tensor.end, tensor.dtype)
        if key not in self._found:
            self._found[key] = self._sample(tensor)
        return self._found[key]

    def _sample(self, tensor: Tensor) -> Array | None:
        kind = BY_NAME.get(tensor.dtype)
        if kind is None:
            return None
        bits = self._data[tensor.start : tensor.end].view(kind.unsigned)
        if bits.size < _ELEMENTS_MIN:
            return None
        places = np.arange(_SAMPLES) * bits.size // _SAMPLES
        # A step that is a multiple of the rows' length would see one column alone.
        places = np.minimum(places + np.arange(_SAMPLES) * 37 % max(1, bits.size // _SAMPLES), bits.size - 1)
        sample = values(kind, bits[places])
        sample -= sample.mean()
        length = float(np.sqrt(sample @ sample))
        return sample / length if length > 0 else None


class _Groups:
    """Base tensors of one type and size, to be compared with all at once."""

    def __init__(self, tensors: Sequence[Tensor], samples: _Samples) -> None:
        self._samples = samples
        self._tensors: defaultdict[tuple[str, int], list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            self._tensors[_size(tensor)].append(tensor)
        self._found: dict[tuple[str, int], tuple[Array, list[Tensor]]] = {}

    def most_alike(self, tensor: Tensor, sample: Array) -> Tensor | None:
        """The base tensor of this type and size that correlates best with a sample of `tensor`, if one does."""
        matrix, tensors = self._matrix(_size(tensor))
        if not tensors:
            return None
        correlations = np.abs(matrix @ sample)
        best = int(correlations.argmax())
        return tensors[best] if correlations[best] >= _ALIKE else None

    def _matrix(self, size: tuple[str, int]) -> tuple[Array, list[Tensor]]:
        if size not in self._found:
            sampled = [(self._samples.of(tensor), tensor) for tensor in self._tensors[size][:_CANDIDATES_MAX]]
            rows = [(sample, tensor) for sample, tensor in sampled if sample is not None]
            self._found[size] = np.array([sample for sample, _ in rows]), [tensor for _, tensor in rows]
        return self._found[size]


def _size(tensor: Tensor) -> tuple[str, int]:
    """Tensors that may come from each other: floats of any type, others of the same; of as many elements."""
    kind = BY_NAME.get(tensor.dtype)
    length = tensor.end - tensor.start
    return ("float", length // kind.bytes) if kind is not None and kind.is_float else (tensor.dtype, length)
