"""Which base tensor each new tensor is made from."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from packager.delta.formats import Tensor


@dataclass(frozen=True, slots=True)
class Match:
    """A new tensor and the base tensor that it most likely comes from."""

    base: Tensor
    new: Tensor


def match(base: Sequence[Tensor], new: Sequence[Tensor]) -> list[Match]:
    """Pair tensors by name, type and shape; the rest by type and shape in the order of the files.

    Exporters number what has no name, so a name may stand for another tensor after a change of the graph; then the
    shape or the type differs, or the delta of that tensor is no better than none.

    Args:
        base: Tensors of the base.
        new: Tensors of the new file.

    Returns:
        At most one match for each new tensor, in the order of `new`; a base tensor may stand in one match only.
    """
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
    return [Match(found[number], new[number]) for number in sorted(found)]
