"""Damaged and hostile deltas: one error, bounded time and memory, and never a wrong output that is taken for right."""

import hashlib
import io
import resource
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_delta.decode import DeltaError, decode, inspect
from edge_delta.elements import F32, I8
from edge_delta.limits import OPERATIONS_MAX, RANGES_MAX, SHORT_DICTIONARY_BYTES, UNIT_BYTES, UNIT_DIGEST_BYTES
from edge_delta.moves import MOVE_BYTES, Runs, read_runs, write_runs
from edge_delta.operations import Again, Copy, Flag, Glue, Moves, Operation, Planes, Predicted, Window
from edge_delta.symbols import ZERO, numbers_of
from edge_delta.wire import Head, Packer, read_head, units_of, varint, write_head
from tests.unit.delta.pairs import KINDS, decoded, encoded

CASES = (
    "low rank",
    "i8",
    "grid",
    "opaque",
    "unrelated",
    "sparse",
    "f16",
    "pruned by a mask",
    "moved rows",
    "rounded to brain",
)
EACH = 120


def _outcome(base: bytes, delta: bytes, new: bytes) -> str:
    """`refused`, `right` (the change did not matter) or `caught` (wrong, and its digest says so)."""
    try:
        made = decoded(base, delta, len(new))
    except DeltaError:
        return "refused"
    return "right" if made == new else "caught"


def mutated(delta: bytes, random: np.random.Generator) -> bytes:
    """A delta with bits turned, bytes replaced, cut off, or parts in other places."""
    changed = bytearray(delta)
    kind = random.integers(6)
    if kind == 0:
        changed[random.integers(len(changed))] ^= 1 << int(random.integers(8))
    elif kind == 1:
        for place in random.integers(len(changed), size=int(random.integers(1, 20))):
            changed[place] = int(random.integers(256))
    elif kind == 2:
        del changed[int(random.integers(len(changed))) :]
    elif kind == 3:
        start = int(random.integers(len(changed)))
        changed[start : start + int(random.integers(1, 64))] = random.bytes(int(random.integers(0, 64)))
    elif kind == 4:
        one, other = sorted(int(place) for place in random.integers(len(changed), size=2))
        changed = changed[:one] + changed[other:] + changed[one:other]
    else:
        # The head alone, where sizes and operations are.
        changed[int(random.integers(min(120, len(changed))))] = int(random.integers(256))
    return bytes(changed)


@pytest.mark.parametrize("kind", CASES)
def test_corrupted_deltas_end_in_one_error_or_are_told_by_the_digest(kind: str, tmp_path: Path) -> None:
    pair = KINDS[kind]()
    delta, _ = encoded(pair, tmp_path)
    random = np.random.default_rng(sum(kind.encode()))
    found = {"refused": 0, "right": 0, "caught": 0}
    for _ in range(EACH):
        found[_outcome(pair.base, mutated(delta, random), pair.new)] += 1
    assert sum(found.values()) == EACH
    assert found["refused"] + found["caught"] > EACH * 0.8


def rewritten(delta: bytes, operations: tuple[Operation, ...], **changes: object) -> bytes:
    """A well-formed delta with other operations, so that what reads the head is satisfied first."""
    head = read_head(io.BytesIO(delta))
    fields = {name: getattr(head, name) for name in head.__slots__} | {"operations": operations} | changes
    made = Head(**fields)
    return write_head(made, Packer()) + delta[head.glue_offset :]


@pytest.mark.parametrize("seed", range(60))
def test_well_formed_deltas_with_other_operations_end_in_one_error(seed: int, tmp_path: Path) -> None:
    pair = KINDS["i8"]()
    delta, _ = encoded(pair, tmp_path)
    random = np.random.default_rng(seed)
    head = read_head(io.BytesIO(delta))

    def some(high: int) -> int:
        return int(random.integers(0, high)) if random.random() < 0.7 else int(2 ** random.integers(0, 40))

    def operation() -> Operation:
        kind = random.integers(7)
        if kind == 0:
            return Glue(some(64) or 1)
        if kind == 6:
            packed = (some(200) or 1, some(500))
            return Moves(some(20) or 1, some(4_000) or 1, some(4_000), some(4_000), some(2_000), packed)
        if kind == 5:
            return Again(some(4_000), some(4_000) or 1)
        if kind == 1:
            return Copy(some(4_000), some(4_000) or 1)
        if kind == 2:
            return Window(some(4_000), some(4_000), some(4_000) or 1, some(500) or 1)
        if kind == 3:
            width = int(random.integers(1, 9))
            return Planes(width, some(500) or 1, bool(random.integers(2)), tuple(some(400) or 1 for _ in range(width)))
        flags = Flag(int(random.integers(sum(Flag) + 1)))
        rank, shift = (some(8) or 1, some(60)) if Flag.LOW_RANK in flags else (0, 0)
        return Predicted(
            (F32, I8)[int(random.integers(2))], flags, some(4_000), some(90) or 1, some(90) or 1,
            int(random.integers(-80, 80)), rank, shift, some(40), some(300) or 1,
        )  # fmt: skip

    operations = list(head.operations)
    operations[int(random.integers(len(operations)))] = operation()
    made = sum(item.length for item in operations)
    glue = sum(item.length for item in operations if isinstance(item, Glue))
    forged = rewritten(delta, tuple(operations), new_bytes=made, glue_bytes=glue, units=())
    started = time.process_time()
    try:
        output = decoded(pair.base, forged, made)
        assert hashlib.sha256(output).digest() != hashlib.sha256(pair.new).digest() or output == pair.new
    except DeltaError:
        pass
    assert time.process_time() - started < 20  # an endless loop, not a benchmark


def test_sizes_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    pair = KINDS["i8"]()
    delta, _ = encoded(pair, tmp_path)
    head = read_head(io.BytesIO(delta))
    large: tuple[Operation, ...] = (
        Predicted(I8, Flag.ROW_SCALE, 0, 2**39, 1, 0, packed=100),
        Predicted(I8, Flag.LOW_RANK, 0, 2**18, 2**18, 0, rank=64, packed=100),
        Predicted(F32, Flag(0), 0, 2**40, 2**40, 0),
        Planes(4, 2**30, True, (1, 1, 1, 1)),
        Window(0, 2**30, 100, 10),
        Window(0, 0, 2**30, 10),
        Copy(2**39, 2**39),
        Again(0, 2**39),
        Again(2**39, 1),
        Glue(2**30),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for operation in large:
        with pytest.raises(DeltaError):
            inspect(io.BytesIO(rewritten(delta, (*head.operations, operation))))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_a_frame_that_unpacks_to_more_than_it_may_is_refused(tmp_path: Path) -> None:
    pair = KINDS["opaque"]()
    delta, _ = encoded(pair, tmp_path)
    head = read_head(io.BytesIO(delta))
    bomb = Packer(3, 20)(bytes(50_000_000))
    alone = {"ranges": (), "units": (), "states": np.zeros(0, np.uint32), "operations": ()}
    fields = {name: getattr(head, name) for name in head.__slots__} | alone | {"glue_bytes": 0, "glue_packed": 0}
    window = fields | {"operations": (Window(0, 0, 1_000_000, len(bomb)),), "new_bytes": 1_000_000}
    with pytest.raises(DeltaError, match="compressed to another length"):
        decoded(pair.base, write_head(Head(**window), Packer()) + bomb, 1_000_000)
    glue = fields | {
        "operations": (Glue(1_000),),
        "new_bytes": 1_000,
        "glue_bytes": 1_000,
        "glue_packed": len(bomb),
    }
    with pytest.raises(DeltaError, match="glue is compressed"):
        decoded(pair.base, write_head(Head(**glue), Packer()) + bomb, 1_000)


def test_glue_that_unpacks_to_megabytes_does_so_a_little_at_a_time(tmp_path: Path) -> None:
    length = 48_000_000
    packed = Packer(3, 20)(bytes(length))
    head = Head(0, length, bytes(16), bytes(16), np.zeros(0, np.uint32), (), length, len(packed), (Glue(length),), ())
    unit = hashlib.sha256(bytes(UNIT_BYTES)).digest()[:UNIT_DIGEST_BYTES]
    head = replace(head, units=(unit,) * units_of(length))
    tracemalloc.start()
    try:
        with (tmp_path / "new").open("w+b") as output:
            delta, base = io.BytesIO(write_head(head, Packer()) + packed), io.BytesIO()
            assert [*decode(base, delta, output, base_bytes=0, new_bytes=length)][-1].output_bytes == length
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


@pytest.mark.parametrize("width", [3, 5, 6, 7])
def test_elements_of_odd_widths_have_no_sign_to_move(width: int) -> None:
    planes = Planes(width, 2, True, (2,) * width)
    head = Head(0, 2 * width, bytes(16), bytes(16), np.zeros(0, np.uint32), (), 0, 0, (planes,), ())
    with pytest.raises(DeltaError, match="is possible"):
        decoded(b"", write_head(head, Packer()) + bytes(2 * width), 2 * width)


def test_output_is_read_where_there_is_some_and_nowhere_else(tmp_path: Path) -> None:
    pair = KINDS["i8"]()
    delta, _ = encoded(pair, tmp_path)
    held = read_head(io.BytesIO(delta))
    length = len(pair.new)
    twice = rewritten(delta, (*held.operations, Again(length - 100, 100)), new_bytes=length + 100)
    assert decoded(pair.base, twice, length + 100) == pair.new + pair.new[-100:]
    for operations in ((*held.operations, Again(length - 99, 100)), (Again(0, 100), *held.operations)):
        with pytest.raises(DeltaError, match="where there is none yet"):
            decoded(pair.base, rewritten(delta, operations, new_bytes=length + 100), length + 100)


def _of_runs(runs: Runs, literals: bytes, base: bytes, length: int) -> bytes:
    """What a delta of one operation makes of a base."""
    table = write_runs(runs)
    operation = Moves(len(runs.lengths), length, 0, 0, len(literals), (len(table), len(literals)))
    head = Head(len(base), length, bytes(16), bytes(16), np.zeros(0, np.uint32), (), 0, 0, (operation,), ())
    return decoded(base, write_head(head, Packer()) + table + literals, length)


def test_runs_are_gathered_from_wherever_they_stand() -> None:
    base = bytes(range(256))
    runs = Runs(*np.array([[3, 0, 2], [20, 16, 30], [200, 0, 226]], np.int64))
    made = _of_runs(runs, b"abcdefgh", base, 74)
    assert made == b"abc" + base[200:220] + base[:16] + b"de" + base[226:256] + b"fgh"


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ([[0], [20], [237]], "beyond the base"),
        ([[0], [20], [-1]], "beyond the base"),
        ([[0], [15], [0]], "too short"),
        ([[6], [20], [0]], "more between them"),
        ([[0], [21], [0]], "do not make"),
        ([[0], [20], [2**46]], "beyond the base"),
    ],
)
def test_runs_that_are_not_there_are_refused(runs: list[list[int]], why: str) -> None:
    with pytest.raises(DeltaError, match=why):
        _of_runs(Runs(*np.array(runs, np.int64)), b"abcde", bytes(256), 25)


def test_any_table_of_runs_is_read_or_refused() -> None:
    random = np.random.default_rng(1)
    found = 0
    for number in range(2_000):
        count = int(random.integers(1, 9))
        columns = random.integers(0, 256, (MOVE_BYTES, count), dtype=np.uint8)
        columns[[1, 2, 4, 5, *range(8, MOVE_BYTES)]] *= number % 3 == 0  # sometimes numbers of any size
        length = int(columns[3].sum() + columns[0].sum())
        try:
            literals = int(columns[0].sum())
            runs = read_runs(columns.tobytes(), count, literals=literals, length=length, base_bytes=2**17)
        except DeltaError:
            continue
        found += 1
        assert (runs.offsets >= 0).all()
        assert (runs.offsets + runs.lengths <= 2**17).all()
        assert write_runs(runs) == columns.tobytes()
    assert found > 100


def test_zeros_are_a_symbol_of_pruned_tensors_alone(tmp_path: Path) -> None:
    pair = KINDS["pruned"]()
    delta, _ = encoded(pair, tmp_path)
    head = read_head(io.BytesIO(delta))
    (tensor,) = [item for item in head.operations if isinstance(item, Predicted)]
    assert Flag.ZEROS in tensor.flags
    others = tuple(replace(item, flags=Flag.GRID | Flag.ZEROS) if item is tensor else item for item in head.operations)
    with pytest.raises(DeltaError, match="on a grid"):
        decoded(pair.base, rewritten(delta, others), len(pair.new))
    symbols = np.array([ZERO], np.uint8)
    with pytest.raises(DeltaError, match="is not pruned"):
        numbers_of(symbols, np.zeros(1, np.uint32))
    assert numbers_of(symbols, np.zeros(1, np.uint32), np.array([7], np.uint32)) == 7


def test_integers_are_not_kept_as_floats(tmp_path: Path) -> None:
    pair = KINDS["i8"]()
    delta, _ = encoded(pair, tmp_path)
    head = read_head(io.BytesIO(delta))
    for flag in (Flag.FROM_SINGLE, Flag.TO_SINGLE):
        forged = tuple(
            replace(item, flags=item.flags | flag) if isinstance(item, Predicted) else item for item in head.operations
        )
        made = sum(item.length for item in forged)
        with pytest.raises(DeltaError, match="not kept as float32"):
            inspect(io.BytesIO(rewritten(delta, forged, new_bytes=made)))


def test_a_base_that_is_read_as_single_has_to_be_that_long(tmp_path: Path) -> None:
    pair = KINDS["f16"]()
    delta, _ = encoded(pair, tmp_path)
    head = read_head(io.BytesIO(delta))
    forged = tuple(
        replace(item, flags=item.flags | Flag.FROM_SINGLE) if isinstance(item, Predicted) else item
        for item in head.operations
    )
    with pytest.raises(DeltaError, match="of a base of"):
        decoded(pair.base, rewritten(delta, forged), len(pair.new))


def test_heads_that_would_take_much_memory_or_work_for_little_are_refused(tmp_path: Path) -> None:
    pair = KINDS["i8"]()
    delta, _ = encoded(pair, tmp_path)
    many = (
        ((Copy(0, 1),) * OPERATIONS_MAX, ()),
        ((Predicted(I8, Flag(0), 0, 1, 255, 0),), ()),
        ((Window(0, SHORT_DICTIONARY_BYTES + 1, 1, 1),), ()),
        ((Moves(1, 20, 0, SHORT_DICTIONARY_BYTES + 1, 1, (1, 1)),), ()),
        ((Copy(0, 1),) * (OPERATIONS_MAX // 2), tuple((2 * n, 1) for n in range(RANGES_MAX))),
    )
    bases = 10 * 2**20
    for operations, ranges in many:
        made = sum(item.length for item in operations)
        fields = {"new_bytes": made, "base_bytes": bases, "glue_bytes": 0, "units": (), "ranges": ranges}
        forged = rewritten(delta, operations, glue_packed=0, **fields)
        if len(operations) < 2:
            with pytest.raises(DeltaError, match=r"not worth|has a dictionary"):
                inspect(io.BytesIO(forged))
        else:
            assert inspect(io.BytesIO(forged)).peak_bytes >= 4 * 2**20, "lists of them count"
    with pytest.raises(DeltaError, match="is possible"):
        inspect(io.BytesIO(rewritten(delta, (Copy(0, 1),) * (OPERATIONS_MAX + 1), new_bytes=OPERATIONS_MAX + 1)))
    large = (*((Copy(0, 1),) * OPERATIONS_MAX), Predicted(I8, Flag.ROW_SCALE, 0, 190_000, 40, 0, packed=1))[1:]
    made = sum(item.length for item in large)
    fields = {"new_bytes": made, "base_bytes": bases, "glue_bytes": 0, "units": (bytes(8),) * units_of(made)}
    forged = rewritten(delta, large, **fields)
    with pytest.raises(DeltaError, match="of memory"):
        inspect(io.BytesIO(forged))


def test_numbers_that_are_too_long_or_out_of_bounds_are_refused() -> None:
    start = b"LMD1" + varint(10) + varint(10) + bytes(32)
    for rest, why in (
        (b"\xff" * 10, "too long"),
        (varint(2**34), "is possible"),
        (varint(10) + varint(10) + varint(0) + varint(0), "cut off"),
        (b"", "cut off"),
    ):
        with pytest.raises(DeltaError, match=why):
            inspect(io.BytesIO(start + rest))
    many = varint(0) + varint(RANGES_MAX + 1)
    with pytest.raises(DeltaError, match="is possible"):
        inspect(io.BytesIO(start + varint(len(many)) + varint(len(many)) + varint(0) + varint(0) + many))


def test_a_delta_that_goes_on_behind_its_end_is_refused(tmp_path: Path) -> None:
    pair = KINDS["i8"]()
    delta, _ = encoded(pair, tmp_path)
    with pytest.raises(DeltaError, match="follow the end"):
        decoded(pair.base, delta + b"x", len(pair.new))
