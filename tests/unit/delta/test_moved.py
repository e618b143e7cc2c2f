"""Tensors that another name, place or shape hides are found by what stands in them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import zstandard

from edge_delta.elements import Array
from packager.delta.formats import Tensor
from packager.delta.match import match
from tests.unit.delta.pairs import FilePair, decoded, encoded

SIDE = 160
Named = Sequence[tuple[str, Array]]


def layers(seed: int = 3, count: int = 5) -> list[Array]:
    random = np.random.default_rng(seed)
    return [(random.standard_normal((SIDE, SIDE)) * 0.05).astype(np.float32) for _ in range(count)]


def trained(weights: Array, seed: int) -> Array:
    return (weights + 1e-4 * np.random.default_rng(seed).standard_normal(weights.shape)).astype(np.float32)


def laid_out(tensors: Named) -> tuple[bytes, tuple[Tensor, ...]]:
    data, found = b"", []
    for name, array in tensors:
        data += name.encode()
        found.append(Tensor(name, "f32", array.shape, len(data), len(data) + array.nbytes))
        data += array.tobytes()
    return data, tuple(found)


def file_pair(base: Named, new: Named) -> FilePair:
    (before, before_tensors), (after, after_tensors) = laid_out(base), laid_out(new)
    return FilePair(before, after, before_tensors, after_tensors)


def by_zstd(pair: FilePair) -> int:
    """What `zstd --patch-from` makes of it."""
    known = zstandard.ZstdCompressionDict(pair.base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=23, enable_ldm=True)
    return len(zstandard.ZstdCompressor(dict_data=known, compression_params=parameters).compress(pair.new))


def test_names_that_moved_on_by_one_cost_nothing(tmp_path: Path) -> None:
    old = layers()
    new = [trained(layer, number) for number, layer in enumerate(old)]
    right = file_pair([(f"conv_{n}", a) for n, a in enumerate(old)], [(f"conv_{n}", a) for n, a in enumerate(new)])
    moved = file_pair(
        [(f"conv_{n}", a) for n, a in enumerate(old)], [(f"conv_{(n + 1) % 5}", a) for n, a in enumerate(new)]
    )
    assert encoded(moved, tmp_path)[1].bytes < 1.02 * encoded(right, tmp_path)[1].bytes


def test_each_is_paired_with_what_it_comes_from() -> None:
    old = layers()
    order = [3, 0, 4, 1, 2]
    pair = file_pair([("", a) for a in old], [("", trained(old[n], n)) for n in order])
    found = match(pair.base_tensors, pair.new_tensors, *(np.frombuffer(d, np.uint8) for d in (pair.base, pair.new)))
    assert [pair.base_tensors.index(item.base) for item in found] == order
    assert all(item.is_alike for item in found)


def test_strangers_keep_the_name_and_are_told_apart() -> None:
    pair = file_pair([("a", layers(1, 1)[0])], [("a", layers(2, 1)[0])])
    (found,) = match(pair.base_tensors, pair.new_tensors, *(np.frombuffer(d, np.uint8) for d in (pair.base, pair.new)))
    assert found.base is pair.base_tensors[0]
    assert not found.is_alike


def _shuffled(old: list[Array]) -> Named:
    return [(f"x{number}", old[number]) for number in (4, 2, 0, 1, 3)]


def _other_shape(old: list[Array]) -> Named:
    return [(f"l{number}", layer.reshape(SIDE // 4, 4 * SIDE)) for number, layer in enumerate(old)]


def _twice(old: list[Array]) -> Named:
    return [("l0", old[0]), ("head", old[0]), *((f"l{number}", old[number]) for number in range(1, 5))]


def _joined(old: list[Array]) -> Named:
    return [("qkv", np.concatenate(old[:3])), *((f"l{number}", old[number]) for number in (3, 4))]


def _cut(old: list[Array]) -> Named:
    return [(f"l{number}.{part}", layer[part::2]) for number, layer in enumerate(old) for part in (0, 1)]


def _halves(old: list[Array]) -> Named:
    half = SIDE // 2
    return [(f"l{n}.{s}", layer[s : s + half]) for n, layer in enumerate(old) for s in (0, half)]


@pytest.mark.parametrize("change", [_shuffled, _other_shape, _twice, _joined, _halves, _cut])
def test_weights_that_only_moved_are_copied(change: Callable[[list[Array]], Named], tmp_path: Path) -> None:
    old = layers()
    pair = file_pair([(f"l{number}", layer) for number, layer in enumerate(old)], change(old))
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.bytes <= 1.03 * by_zstd(pair) + 64
    assert made.bytes < 0.03 * len(pair.new)
