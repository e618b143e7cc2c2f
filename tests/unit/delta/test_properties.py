"""Whatever two files are, and wherever their tensors are said to lie, what is decoded is the new file."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_delta import bits
from edge_delta import decode as decoding
from edge_delta.decode import inspect
from edge_delta.elements import (
    BF16,
    BY_NAME,
    F16,
    F32,
    KINDS,
    Array,
    Kind,
    narrowed,
    ordered,
    rounded,
    unordered,
    unzigzag,
    values,
    widened,
    wrapped,
    zigzag,
)
from edge_delta.rans import Lanes
from edge_delta.symbols import ESCAPE, PRUNED, numbers_of, raw_widths, to_symbols
from packager.delta.coder import Coder
from packager.delta.encode import encode
from packager.delta.formats import Tensor
from tests.unit.delta.pairs import checkpoints, decoded

ELEMENTS_MAX = 3_000
MEMORY_MAX = 16 * 1024 * 1024


def special_bits(kind: Kind) -> list[int]:
    """Zeros, the smallest, the largest, infinities and several NaNs."""
    top = 1 << (kind.bits - 1)
    if not kind.is_float:
        return [0, 1, top, top - 1, 2 * top - 1]
    infinity = (2**kind.exponent - 1) << kind.mantissa
    found = [0, 1, (1 << kind.mantissa) - 1, 1 << kind.mantissa, infinity - 1, infinity, infinity + 1, top - 1]
    return found + [number | top for number in found]


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Kind, Array, Array]:
    """A base and a new tensor as bit patterns: alike, or not at all, with strange numbers among them."""
    kind = draw(st.sampled_from(KINDS))
    shape = tuple(draw(st.lists(st.integers(1, 60), min_size=1, max_size=3)))
    while np.prod(shape) > ELEMENTS_MAX:
        shape = shape[1:]
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = 2.0 ** draw(st.integers(-120, 60))
    with np.errstate(all="ignore"):
        base, new = _drawn(draw, kind, shape, random, spread)
    for array in (base, new):
        places = random.random(shape) < draw(st.sampled_from([0.0, 0.0, 0.01, 0.5]))
        array[places] = random.choice(special_bits(kind), int(places.sum())).astype(kind.unsigned)
    return kind, base, new


def _drawn(
    draw: st.DrawFn, kind: Kind, shape: tuple[int, ...], random: np.random.Generator, spread: float
) -> tuple[Array, Array]:
    base = rounded(kind, random.standard_normal(shape) * (spread if kind.is_float else 40.0))
    exact = values(kind, base)
    change = draw(
        st.sampled_from(["none", "noise", "scale", "rank", "sparse", "grid", "pruned", "masked", "rolled", "other"])
    )
    if change == "noise":
        exact = exact * (1 + 2.0 ** -draw(st.integers(1, 24)) * random.standard_normal(shape))
    elif change == "scale":
        exact = exact * (1 + 0.3 * random.standard_normal((shape[0],) + (1,) * (len(shape) - 1)))
    elif change == "rank":
        flat = exact.reshape(shape[0], -1)
        size = np.abs(flat).mean() * 0.01
        exact = (flat + size * np.outer(*(random.standard_normal(n) for n in flat.shape))).reshape(shape)
    elif change == "sparse":
        exact = np.where(random.random(shape) < 0.02, -exact, exact)
    elif change in {"pruned", "masked"}:
        small = np.abs(exact) < np.quantile(np.abs(exact), 0.4)
        zero = np.zeros(1) if change == "pruned" else exact * 0.0  # which keeps the sign
        exact = np.where(small, zero, exact)
        exact = exact * (1 + 2.0**-16 * random.standard_normal(shape) * draw(st.booleans()))
    elif change == "rolled":
        exact = np.roll(exact, 1, 0)
    elif change == "grid":
        exact = exact + spread * 2.0**-9 * random.integers(-3, 4, shape)
    elif change == "other":
        exact = random.standard_normal(shape) * spread
    return base, base.copy() if change == "none" else rounded(kind, exact)


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, bytes, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Two files of some tensors with bytes around them; names and order may differ."""
    made = draw(st.lists(tensors(), min_size=1, max_size=3))
    sides = []
    for side in (0, 1):
        data, found = draw(st.binary(max_size=80)), []
        for number in draw(st.permutations(range(len(made)))) if draw(st.booleans()) else range(len(made)):
            kind, array = made[number][0], made[number][1:][side]
            name = draw(st.sampled_from(["", "w", f"w{number}"]))
            found.append(Tensor(name, kind.name, array.shape, len(data), len(data) + array.nbytes))
            data += array.tobytes() + draw(st.binary(max_size=40))
        sides.append((data, tuple(found)))
    (base, base_tensors), (new, new_tensors) = sides
    return base, new, base_tensors, new_tensors


@settings(max_examples=150, deadline=None)
@given(pair=files(), effort=st.integers(0, 2), data=st.data())
def test_what_is_decoded_is_the_new_file_from_the_start_and_from_any_checkpoint(
    pair: tuple[bytes, bytes, tuple[Tensor, ...], tuple[Tensor, ...]], effort: int, data: st.DataObject
) -> None:
    base, new, base_tensors, new_tensors = pair
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "CHECKPOINT_BYTES", 2_000)
        paths = [Path(name, part) for part in ("base", "new", "delta")]
        paths[0].write_bytes(base)
        paths[1].write_bytes(new)
        encode(*paths, base_tensors=base_tensors, new_tensors=new_tensors, effort=effort)
        delta = paths[2].read_bytes()
        whole, found = checkpoints(base, delta, len(new))
        assert whole == new
        assert inspect(io.BytesIO(delta)).peak_bytes <= MEMORY_MAX
        point = data.draw(st.sampled_from(found))
        if point.data:
            begun = io.BytesIO(new[: point.output_bytes])
            assert decoded(base, delta, len(new), begun, point.data) == new


@settings(max_examples=100, deadline=None)
@given(base=st.binary(min_size=1, max_size=5_000), new=st.binary(min_size=1, max_size=5_000), cut=st.integers(0, 5_000))
def test_bytes_of_no_format_come_out_as_they_are(base: bytes, new: bytes, cut: int) -> None:
    new = base[cut:] + new + base[:cut]
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name, part) for part in ("base", "new", "delta")]
        paths[0].write_bytes(base)
        paths[1].write_bytes(new)
        made = encode(*paths, base_tensors=(), new_tensors=())
        assert decoded(base, paths[2].read_bytes(), len(new)) == new
        assert made.bytes <= len(new) + 200


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
def test_order_and_zigzag_go_back_and_forth(kind: Kind, seed: int) -> None:
    random = np.random.default_rng(seed)
    one, other = (random.integers(0, 2**kind.bits, 500, dtype=np.uint64).astype(kind.unsigned) for _ in range(2))
    one[: len(special_bits(kind))] = special_bits(kind)
    assert (unordered(kind, ordered(kind, one)) == one).all()
    difference = wrapped(kind, ordered(kind, other) - ordered(kind, one))
    assert (unzigzag(zigzag(difference)) == difference).all()
    assert (unordered(kind, ordered(kind, one) + difference) == other).all()


@given(kind=st.sampled_from([kind for kind in KINDS if kind.is_float]), seed=st.integers(0, 2**32))
def test_the_order_of_floats_is_that_of_their_bit_patterns(kind: Kind, seed: int) -> None:
    some = np.random.default_rng(seed).integers(0, 2**kind.bits, 500, dtype=np.uint64).astype(kind.unsigned)
    order, value = ordered(kind, some), values(kind, some)
    is_number = (value != 0) | ((some & kind.unsigned.type(2 ** (kind.bits - 1) - 1)) == 0)
    order, value = order[is_number], value[is_number]
    by_order = np.argsort(order, kind="stable")
    assert (np.diff(value[by_order]) >= 0).all()


def test_narrowing_is_that_of_numpy_and_widening_is_exact() -> None:
    random = np.random.default_rng(2)
    exponent = random.integers(95, 145, 400_000).astype(np.uint32) << np.uint32(23)  # around the range of halves
    near = exponent | random.integers(0, 2**23, exponent.size).astype(np.uint32)
    some = np.concatenate([near, near | np.uint32(2**31), random.integers(0, 2**32, 400_000, dtype=np.uint32)])
    every = np.arange(2**16, dtype=np.uint16)
    middles = widened(F16, every) + np.uint32(0x1000)  # rounded to even
    some = np.concatenate([some, middles])
    is_number = ~np.isnan(some.view(np.float32))
    with np.errstate(all="ignore"):
        halves = some[is_number].view(np.float32).astype(np.float16).view(np.uint16)
    assert (narrowed(F16, some[is_number]) == halves).all()
    for kind in (F16, BF16):
        assert (narrowed(kind, widened(kind, every)) == every).all()
    is_half = ~np.isnan(every.view(np.float16))
    assert (widened(F16, every)[is_half] == every.view(np.float16).astype(np.float32).view(np.uint32)[is_half]).all()


@settings(max_examples=60, deadline=None)
@given(
    names=st.sampled_from([(one, other) for one in ("f32", "f16", "bf16") for other in ("f32", "f16", "bf16")]),
    held=st.sampled_from([None, "f16", "bf16"]),
    spread=st.integers(-40, 20),
    change=st.sampled_from([0.0, 1e-6, 1e-3]),
    seed=st.integers(0, 2**32),
)
def test_floats_of_one_type_are_made_from_those_of_another(
    names: tuple[str, str], held: str | None, spread: int, change: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    exact = random.standard_normal((int(random.integers(4, 40)), 40)) * 2.0**spread
    sides = []
    for name, noise in zip(names, (0.0, change), strict=True):
        with np.errstate(all="ignore"):
            single = (exact * (1 + noise * random.standard_normal(exact.shape))).astype(np.float32).view(np.uint32)
        kind = BY_NAME[name]
        if kind is F32:
            array = single if held is None else widened(BY_NAME[held], narrowed(BY_NAME[held], single))
        else:
            array = narrowed(kind, single)
        places = random.random(array.shape) < 0.02
        array[places] = random.choice(special_bits(kind), int(places.sum())).astype(kind.unsigned)
        sides.append((array, (Tensor("w", name, array.shape, 0, array.nbytes),)))
    (base, base_tensors), (new, new_tensors) = sides
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, part) for part in ("base", "new", "delta")]
        paths[0].write_bytes(base.tobytes())
        paths[1].write_bytes(new.tobytes())
        encode(*paths, base_tensors=base_tensors, new_tensors=new_tensors)
        assert decoded(base.tobytes(), paths[2].read_bytes(), new.nbytes) == new.tobytes()


@given(widths=st.lists(st.integers(0, 32), max_size=300), seed=st.integers(0, 2**32))
def test_packed_bits_are_unpacked(widths: list[int], seed: int) -> None:
    wide = np.array(widths, np.uint8)
    numbers = np.random.default_rng(seed).integers(0, 2**32, wide.size, dtype=np.uint64)
    numbers &= (np.uint64(1) << wide.astype(np.uint64)) - np.uint64(1)
    data = bits.pack(numbers.astype(np.uint32), wide)
    assert len(data) == bits.packed_bytes(wide)
    assert (bits.unpack(data, wide) == numbers).all()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4_000), min_size=1, max_size=5),
    contexts=st.integers(1, PRUNED),
    first=st.sampled_from([0, PRUNED]),
    scale=st.integers(0, 33),
    seed=st.integers(0, 2**32),
)
def test_symbols_come_back_in_order_and_both_sides_have_learnt_the_same(
    sizes: list[int], contexts: int, first: int, scale: int, seed: int
) -> None:
    random, kind = np.random.default_rng(seed), KINDS[0]
    with tempfile.TemporaryFile() as spill:
        coder, chunks = Coder(spill), []
        for size in sizes:
            numbers = np.minimum(random.exponential(2.0**scale, size), 2.0**32 - 1).astype(np.uint32)
            given_contexts = random.integers(first, first + contexts, size).astype(np.uint16)
            chunks.append((given_contexts, numbers, coder.add(kind, given_contexts, numbers)))
        states, coded = coder.finish()
        lanes = Lanes(states)
        for given_contexts, numbers, number in chunks:
            parts = []
            for place, length in (coded[number].words, coded[number].raw):
                spill.seek(place)
                parts.append(spill.read(length))
            symbols, used = lanes.decode(given_contexts, np.frombuffer(parts[0] + bytes(64), "<u2"))
            assert 2 * used == len(parts[0])
            found = numbers_of(symbols, bits.unpack(parts[1], raw_widths(kind, symbols)))
            assert (found == numbers).all()
            symbols[symbols == ESCAPE] = to_symbols(found[symbols == ESCAPE])
            lanes.learn(given_contexts, symbols)
        lanes.finish()
