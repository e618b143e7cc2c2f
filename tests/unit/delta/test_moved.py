"""Tensors that another name, place or shape hides are found by what stands in them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard

from edge_contract.limits import DELTA_PEAK_BYTES_MAX
from edge_delta.elements import Array
from packager.delta.formats import Tensor
from packager.delta.match import match
from tests.unit.delta.pairs import KINDS, FilePair, decoded, encoded

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


def _pruned(layer: Array, share: float) -> Array:
    return np.where(np.random.default_rng(8).random(layer.shape) < share, np.float32(0), layer)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_weights_that_were_pruned_anywhere_cost_their_mask(share: float, tmp_path: Path) -> None:
    (layer,) = layers(4, 1)
    large = np.tile(layer, (3, 3)) + np.random.default_rng(9).standard_normal((3 * SIDE, 3 * SIDE)).astype(np.float32)
    pair = file_pair([("w", large)], [("w", _pruned(large, share))])
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    mask = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    assert made.bytes < 1.05 * mask * large.size / 8 + 300
    assert made.bytes < 0.5 * by_zstd(pair)


@pytest.mark.parametrize("name", ["f32", "f16"])
@pytest.mark.parametrize("is_mask", [False, True])
def test_small_weights_that_were_pruned_cost_little(name: str, is_mask: bool, tmp_path: Path) -> None:
    """By assignment or by a product with a mask, which leaves negative zeros."""
    old = [layer.astype({"f32": np.float32, "f16": np.float16}[name]) for layer in layers(5, 3)]
    kept = [np.abs(layer) > 0.04 for layer in old]
    new = [a * b if is_mask else np.where(b, a, a.dtype.type(0)) for a, b in zip(old, kept, strict=True)]
    sides = []
    for arrays in (old, new):
        each = arrays[0].nbytes
        held = tuple(Tensor(f"l{n}", name, a.shape, n * each, (n + 1) * each) for n, a in enumerate(arrays))
        sides.append((b"".join(a.tobytes() for a in arrays), held))
    pair = FilePair(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.bytes < 0.2 * by_zstd(pair)


def test_integers_that_were_pruned_and_trained_cost_little(tmp_path: Path) -> None:
    random = np.random.default_rng(21)
    old = np.clip(np.rint(random.standard_normal((300, 400)) * 30), -127, 127).astype(np.int8)
    trained_on = np.clip(old + (random.random(old.shape) < 0.02), -127, 127)
    new = np.where(np.abs(old.astype(np.int32)) < 15, 0, trained_on).astype(np.int8)
    sides = [(data.tobytes(), (Tensor("w", "i8", data.shape, 0, data.nbytes),)) for data in (old, new)]
    pair = FilePair(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.bytes < 0.15 * by_zstd(pair)


def _rolled(old: list[Array]) -> Named:
    return [(f"l{number}", np.roll(layer, 1, 0)) for number, layer in enumerate(old)]


def _some_zeroed(old: list[Array]) -> Named:
    random = np.random.default_rng(22)
    return [(f"l{n}", np.where(random.random((SIDE, 1)) < 0.3, np.float32(0), layer)) for n, layer in enumerate(old)]


def _every_other_row(old: list[Array]) -> Named:
    return [(f"l{number}", layer[::2]) for number, layer in enumerate(old)]


def _transposed(old: list[Array]) -> Named:
    return [(f"l{number}", np.ascontiguousarray(layer.T)) for number, layer in enumerate(old)]


def _negated(old: list[Array]) -> Named:
    return [(f"l{number}", -layer) for number, layer in enumerate(old)]


@pytest.mark.parametrize("change", [_rolled, _some_zeroed, _every_other_row, _transposed, _negated])
def test_what_zstd_finds_is_found(change: Callable[[list[Array]], Named], tmp_path: Path) -> None:
    old = layers(6, 24)
    pair = file_pair([(f"l{number}", layer) for number, layer in enumerate(old)], change(old))
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.bytes <= 1.03 * by_zstd(pair)


@pytest.mark.parametrize("kind", ["half kept as single", "rounded to brain", "single to half", "half to single"])
def test_half_precision_is_told_from_what_it_is_kept_as(kind: str, tmp_path: Path) -> None:
    pair = KINDS[kind]()
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.kinds == {"predicted": len(pair.new)}
    assert made.bytes < (0.1 if kind == "half to single" else 0.6) * by_zstd(pair)


def test_blocks_longer_than_a_window_change_places(tmp_path: Path) -> None:
    random = np.random.default_rng(27)
    base = random.bytes(9_000_000)
    new = base[3_000_000:8_000_000] + b"a few words" + base[:2_900_000] + base[8_000_000:]
    for tensors in ((), (Tensor("w", "f32", (2_000_000,), 0, 8_000_000),)):
        pair = FilePair(base, new, tensors, tuple(replace(item, end=7_600_000, shape=(1_900_000,)) for item in tensors))
        delta, made = encoded(pair, tmp_path)
        assert decoded(pair.base, delta, len(pair.new)) == pair.new
        assert made.bytes < 500


def test_more_short_rows_than_one_operation_gathers(tmp_path: Path) -> None:
    table = np.random.default_rng(23).standard_normal((40_000, 12)).astype(np.float32)
    moved = table[np.random.default_rng(24).permutation(len(table))]
    pair = file_pair([("table", table)], [("table", moved)])
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.kinds["moves"] > 0.9 * table.nbytes
    assert made.bytes < by_zstd(pair)
    assert made.peak_bytes <= DELTA_PEAK_BYTES_MAX


def test_training_within_what_was_pruned_is_predicted(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    sparse = _pruned((random.standard_normal((600, 500)) * 0.05).astype(np.float32), 0.8)
    new = (sparse * (1 + 1e-3 * random.standard_normal(sparse.shape))).astype(np.float32)
    pair = file_pair([("w", sparse)], [("w", new)])
    assert encoded(pair, tmp_path)[1].bytes < 0.8 * by_zstd(pair)


def test_rows_that_moved_on_by_one_are_copied(tmp_path: Path) -> None:
    table = np.cumsum(np.random.default_rng(3).standard_normal((2_000, 32)), axis=0).astype(np.float32)
    pair = file_pair([("table", table)], [("table", np.vstack([table[1:], table[:1] + 1]))])
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.bytes < 2_000


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_rows_in_another_order_are_copied(offset: float, tmp_path: Path) -> None:
    """With an offset a column, whatever row is compared with whatever row, they correlate."""
    random = np.random.default_rng(14)
    table = (random.standard_normal((2_000, 256)) + offset * random.standard_normal(256)).astype(np.float32)
    pair = file_pair([("table", table)], [("table", table[random.permutation(len(table))])])
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.bytes <= by_zstd(pair)


def test_elements_that_were_replaced_take_no_more_than_with_zstd(tmp_path: Path) -> None:
    random = np.random.default_rng(15)
    old, other = (random.standard_normal((2, 400, 500)) * 0.05).astype(np.float32)
    pair = file_pair([("w", old)], [("w", np.where(random.random(old.shape) < 0.3, other, old))])
    assert encoded(pair, tmp_path)[1].bytes <= 1.05 * by_zstd(pair)


def test_more_tensors_than_a_delta_may_have_operations(tmp_path: Path) -> None:
    count, random = 40_000, np.random.default_rng(16)
    data = random.integers(0, 256, (count, 260), dtype=np.uint8)
    order = random.permutation(count)
    sides = []
    for rows in (range(count), order):
        held = tuple(Tensor(f"t{row}", "u8", (256,), 260 * n, 260 * n + 256) for n, row in enumerate(rows))
        sides.append((data[list(rows)].tobytes(), held))
    pair = FilePair(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.peak_bytes <= DELTA_PEAK_BYTES_MAX
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta", "new"]


def test_what_stands_twice_in_the_new_file_travels_once(tmp_path: Path) -> None:
    (layer,) = layers(6, 1)
    new = trained(layer, 7)
    once = encoded(file_pair([("a", layer)], [("a", new)]), tmp_path)[1]
    pair = file_pair([("a", layer), ("b", layer)], [("a", new), ("b", new), ("c", new)])
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.kinds["again"] == 2 * new.nbytes
    assert made.bytes < once.bytes + 200


def test_blocks_of_a_file_of_no_format_in_another_order_are_copied(tmp_path: Path) -> None:
    random = np.random.default_rng(10)
    base = random.bytes(6 * 2**20)
    blocks = [base[place : place + 8_192] for place in range(0, len(base), 8_192)]
    pair = FilePair(base, b"".join(blocks[number] for number in random.permutation(len(blocks))))
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.bytes < 20_000


def test_bytes_of_no_format_that_stand_twice_far_apart_travel_once(tmp_path: Path) -> None:
    random = np.random.default_rng(13)
    base, once = random.bytes(200_000), random.bytes(2_400_000)
    pair = FilePair(base, base[:90_000] + once + base[90_000:] + once[1_000:] + b"end")
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.kinds["again"] == len(once) - 1_000
    assert made.bytes < len(once) + 2_000


def test_large_tables_beside_weights_keep_the_decoder_within_its_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(12)
    base, new = random.integers(0, 2**40, (2, 300_000))
    new = np.where(np.arange(new.size) % 5 == 0, new, base)
    (layer,) = layers(6, 1)
    sides = []
    for weights, table in ((layer, base), (trained(layer, 1), new)):
        data = weights.tobytes() + table.tobytes()
        of_table = Tensor("t", "i64", table.shape, weights.nbytes, len(data))
        sides.append((data, (Tensor("w", "f32", weights.shape, 0, weights.nbytes), of_table)))
    pair = FilePair(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.kinds.keys() >= {"window", "predicted"}
    assert made.peak_bytes <= DELTA_PEAK_BYTES_MAX


@pytest.mark.parametrize("strange", [-0.0, 1e-42, np.nan, np.inf])
def test_a_grid_keeps_strange_numbers_where_nothing_moved(strange: float, tmp_path: Path) -> None:
    (layer,) = layers(6, 1)
    layer[SIDE - 1, 5] = layer[2, 7] = strange
    steps = np.zeros(layer.shape)
    steps[:40] = 2.0**-12 * np.random.default_rng(1).integers(-3, 4, (40, SIDE))
    steps[2, 7] = 0
    new = np.where(steps == 0, layer, (layer.astype(np.float64) + steps).astype(np.float32))
    pair = file_pair([("w", layer)], [("w", new)])
    delta, made = encoded(pair, tmp_path)
    assert decoded(pair.base, delta, len(pair.new)) == pair.new
    assert made.bytes < 0.04 * len(pair.new)


@pytest.mark.parametrize("strange", [-0.0, 1e-42])
def test_another_zero_in_a_row_that_did_not_move_is_no_grid(strange: float, tmp_path: Path) -> None:
    (layer,) = layers(6, 1)
    layer[SIDE - 1, 5] = 0.0
    new = layer + np.float32(2.0**-12)
    new[SIDE - 1] = layer[SIDE - 1]
    new[SIDE - 1, 5] = strange
    pair = file_pair([("w", layer)], [("w", new)])
    assert decoded(pair.base, encoded(pair, tmp_path)[0], len(pair.new)) == pair.new


def test_large_scales_travel_within_their_numbers(tmp_path: Path) -> None:
    (layer,) = layers(6, 1)
    scale = 7.5 * (1 + 0.01 * np.random.default_rng(2).standard_normal((SIDE, 1)))
    pair = file_pair([("w", layer)], [("w", (layer * scale).astype(np.float32))])
    assert encoded(pair, tmp_path)[1].bytes < 0.03 * len(pair.new)
