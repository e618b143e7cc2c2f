"""Small pairs of files, one for every way in which a tensor is coded, and a decoder that takes bytes."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_delta.decode import Checkpoint, decode
from packager.delta.encode import Encoded, encode
from packager.delta.formats import Tensor

Array = NDArray[Any]
ROWS, COLUMNS = 96, 64


@dataclass(frozen=True)
class FilePair:
    """Two files and where their tensors lie."""

    base: bytes
    new: bytes
    base_tensors: tuple[Tensor, ...] = ()
    new_tensors: tuple[Tensor, ...] = ()


def one_tensor(dtype: str, base: Array, new: Array, head: bytes = b"head", tail: bytes = b"tail") -> FilePair:
    """Two files of one tensor each, with a few bytes around it."""

    def tensors(array: Array) -> tuple[Tensor, ...]:
        return (Tensor("w", dtype, array.shape, len(head), len(head) + array.nbytes),)

    return FilePair(head + base.tobytes() + tail, head[::-1] + new.tobytes() + tail, tensors(base), tensors(new))


def weights(rows: int = ROWS, columns: int = COLUMNS, seed: int = 1) -> Array:
    """float32 like those of a layer."""
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 0.05).astype(np.float32)


def _bf16(value: Array) -> Array:
    return (value.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def _scaled() -> FilePair:
    base, random = weights(), np.random.default_rng(2)
    scale = 1 + 0.1 * random.standard_normal((ROWS, 1))
    return one_tensor("f32", base, (base * scale + 1e-4 * random.standard_normal(base.shape)).astype(np.float32))


def _columns() -> FilePair:
    base, random = weights(), np.random.default_rng(3)
    scale = 1 + 0.1 * random.standard_normal((1, COLUMNS))
    return one_tensor("f32", base, (base * scale + 1e-5 * random.standard_normal(base.shape)).astype(np.float32))


def _low_rank() -> FilePair:
    base, random = weights(192, 160), np.random.default_rng(4)
    change = random.standard_normal((192, 2)) @ random.standard_normal((2, 160)) * 1e-3
    return one_tensor("f32", base, (base.astype(np.float64) + change).astype(np.float32))


def _grid() -> FilePair:
    base, random = weights(), np.random.default_rng(5)
    steps = 2.0 ** random.integers(-14, -10, (ROWS, 1))
    new = (base.astype(np.float64) + steps * np.rint(random.standard_normal(base.shape))).astype(np.float32)
    return one_tensor("f32", base, new)


def _f16() -> FilePair:
    base = weights().astype(np.float16)
    change = 1e-4 * np.random.default_rng(6).standard_normal(base.shape)
    return one_tensor("f16", base, (base.astype(np.float64) + change).astype(np.float16))


def _brain() -> FilePair:
    base, change = weights(), 1e-3 * np.random.default_rng(7).standard_normal((ROWS, COLUMNS))
    return one_tensor("bf16", _bf16(base), _bf16(base + change))


def _i8() -> FilePair:
    base, random = np.clip(np.rint(weights() * 500), -128, 127), np.random.default_rng(8)
    new = base * (1 + 0.05 * random.standard_normal((ROWS, 1))) + 0.4 * random.standard_normal(base.shape)
    return one_tensor("i8", base.astype(np.int8), np.clip(np.rint(new), -128, 127).astype(np.int8))


def _u8() -> FilePair:
    base, random = np.rint(weights() * 400) + 128, np.random.default_rng(9)
    new = base + np.rint(0.5 * random.standard_normal(base.shape))
    return one_tensor("u8", np.clip(base, 0, 255).astype(np.uint8), np.clip(new, 0, 255).astype(np.uint8))


def _integers(dtype: str, kind: str) -> Callable[[], FilePair]:
    def make() -> FilePair:
        random, info = np.random.default_rng(10), np.iinfo(kind)
        base = random.integers(info.min, info.max, (ROWS, COLUMNS), dtype=kind, endpoint=True)
        step = random.integers(-300, 300, base.shape)
        new = np.clip(base.astype(np.int64) + step, info.min, info.max).astype(kind)
        return one_tensor(dtype, base, new)

    return make


def _sparse() -> FilePair:
    base, random = np.clip(np.rint(weights() * 500), -128, 127).astype(np.int8), np.random.default_rng(11)
    new = base.copy()
    new[::7][random.random(new[::7].shape) < 0.1] ^= 1
    return one_tensor("i8", base, new)


def _strange() -> FilePair:
    base, new = weights(), weights(seed=12)
    for array, value in ((base, np.nan), (new, np.inf), (base, -0.0), (new, 1e-42), (new, -np.inf), (base, 3e38)):
        array.ravel()[np.random.default_rng(13).integers(0, array.size, 40)] = value
    bits = new.view(np.uint32).ravel()
    bits[:50] = 0x7FC00000 + np.arange(50)  # NaNs that carry something
    near = base.copy()
    near.ravel()[::3] = new.ravel()[::3]
    return one_tensor("f32", base, near)


def _unrelated() -> FilePair:
    return one_tensor("f32", weights(), weights(seed=14))


def _long_rows() -> FilePair:
    base = weights(2, 70_000)
    change = 1e-4 * np.random.default_rng(15).standard_normal(base.shape)
    return one_tensor("f32", base, (base + change).astype(np.float32))


def _opaque() -> FilePair:
    base = np.random.default_rng(16).bytes(150_000)
    words = b"the same words again and again, " * 400
    return FilePair(base + words, base[:40_000] + b"something new" + base[41_000:] + words[:5_000])


def _nothing_alike() -> FilePair:
    random = np.random.default_rng(17)
    return FilePair(random.bytes(5_000), random.bytes(7_000))


def _pruned() -> FilePair:
    base = weights()
    return one_tensor("f32", base, np.where(np.abs(base) < 0.03, np.float32(0), base))


def _pruned_by_a_mask() -> FilePair:
    """Negative weights become -0.0, and what stays was trained on."""
    base, change = weights(), 1e-4 * np.random.default_rng(18).standard_normal((ROWS, COLUMNS))
    return one_tensor("f32", base, ((base + change) * (np.abs(base) > 0.04)).astype(np.float32))


def _pruned_integers() -> FilePair:
    pair = _i8()
    (tensor,) = pair.new_tensors
    new = np.frombuffer(pair.new, np.int8, tensor.end - tensor.start, tensor.start)
    kept = np.where(np.abs(new.astype(np.int32)) < 20, np.int8(0), new)
    return replace(pair, new=pair.new[: tensor.start] + kept.tobytes() + pair.new[tensor.end :])


def made_from(base: Array, new: Array, names: tuple[str, str]) -> FilePair:
    """One tensor, of a type in the base and of maybe another in the new file."""
    sides = [(Tensor("w", name, array.shape, 0, array.nbytes),) for name, array in zip(names, (base, new), strict=True)]
    return FilePair(base.tobytes(), new.tobytes(), sides[0], sides[1])


def _half_kept_as_single() -> FilePair:
    pair = _f16()
    base, new = (np.frombuffer(side[4:-4], np.float16).astype(np.float32) for side in (pair.base, pair.new))
    return made_from(base.reshape(ROWS, COLUMNS), new.reshape(ROWS, COLUMNS), ("f32", "f32"))


def _rounded_to_brain() -> FilePair:
    base, change = weights(), 1e-3 * np.random.default_rng(25).standard_normal((ROWS, COLUMNS))
    new = (_bf16(base + change).astype(np.uint32) << 16).view(np.float32)
    return made_from(base, new, ("f32", "f32"))


def _single_to_half() -> FilePair:
    base, change = weights(), 1e-4 * np.random.default_rng(26).standard_normal((ROWS, COLUMNS))
    return made_from(base, (base + change).astype(np.float16), ("f32", "f16"))


def _half_to_single() -> FilePair:
    base = weights().astype(np.float16)
    return made_from(base, base.astype(np.float32), ("f16", "f32"))


def _moved_rows() -> FilePair:
    """Two tables of one file whose rows changed places, with a few new ones; and in three places not a whole row."""
    base, random = weights(1_500, 40), np.random.default_rng(19)
    new = np.vstack([base[random.permutation(1_500)], weights(9, 40, seed=20)])
    data = bytearray(new.tobytes())
    for place in (70_001, 100_000, 180_003):
        del data[place : place + 50]
    return FilePair(base.tobytes(), bytes(data))


def _same() -> FilePair:
    return one_tensor("f32", weights(), weights())


KINDS: dict[str, Callable[[], FilePair]] = {
    "row scale": _scaled,
    "column scale": _columns,
    "low rank": _low_rank,
    "grid": _grid,
    "f16": _f16,
    "bf16": _brain,
    "i8": _i8,
    "u8": _u8,
    "i16": _integers("i16", "int16"),
    "i32": _integers("i32", "int32"),
    "sparse": _sparse,
    "strange numbers": _strange,
    "unrelated": _unrelated,
    "long rows": _long_rows,
    "opaque": _opaque,
    "nothing alike": _nothing_alike,
    "same": _same,
    "pruned": _pruned,
    "pruned by a mask": _pruned_by_a_mask,
    "pruned integers": _pruned_integers,
    "moved rows": _moved_rows,
    "half kept as single": _half_kept_as_single,
    "rounded to brain": _rounded_to_brain,
    "single to half": _single_to_half,
    "half to single": _half_to_single,
}


def encoded(pair: FilePair, folder: Path) -> tuple[bytes, Encoded]:
    """The delta of a pair."""
    (folder / "base").write_bytes(pair.base)
    (folder / "new").write_bytes(pair.new)
    result = encode(
        folder / "base",
        folder / "new",
        folder / "delta",
        base_tensors=pair.base_tensors,
        new_tensors=pair.new_tensors,
    )
    return (folder / "delta").read_bytes(), result


def decoded(
    base: bytes, delta: bytes, new_bytes: int, output: io.BytesIO | None = None, resume: bytes | None = None
) -> bytes:
    """What a delta makes of a base."""
    made = io.BytesIO() if output is None else output
    for _ in decode(
        io.BytesIO(base), io.BytesIO(delta), made, base_bytes=len(base), new_bytes=new_bytes, resume=resume
    ):
        pass
    return made.getvalue()


def checkpoints(base: bytes, delta: bytes, new_bytes: int) -> tuple[bytes, list[Checkpoint]]:
    """What a delta makes, and every checkpoint on the way."""
    made = io.BytesIO()
    found = list(decode(io.BytesIO(base), io.BytesIO(delta), made, base_bytes=len(base), new_bytes=new_bytes))
    return made.getvalue(), found
