"""What else releases do to weights: pruned, moved, cut, joined, converted; and files that are no model at all.

Trainings are `delta`'s; here every change is made by a line of numpy, so that many can be tried. Ours is beside
`zstd --patch-from`, which is never to be much smaller, whatever the change. docs/benchmarks.md says how to read it.
"""

import io
import json
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Final

import numpy as np

from benchmarks._verdicts import Figure
from edge_delta.decode import decode
from edge_delta.elements import Array
from packager.delta.encode import encode

SUMMARY: Final = (
    "deltas of pruned, moved, cut and converted weights, and of files without tensors, beside zstd's patches"
)
OPTIONS: Final = {"mb": "4.7", "cases": ""}
QUICK: Final = {"mb": "0.3"}

_COLUMNS: Final = 1_152
_LAYERS: Final = 4
_ZSTD: Final = ("zstd", "-19", "--long=27", "-q", "-f")
_SIZE: Final = 0.05

Tensors = dict[str, Array]
Change = Callable[[Array, np.random.Generator], Array]


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Make every pair, and both deltas of it.

    Args:
        options: ``mb``, megabytes of the FP32 weights that are changed; ``cases``, names separated by commas, all
            unless told.

    Returns:
        Figures, and by case the file's length, both deltas and what ours cost.

    Raises:
        ValueError: A delta that makes other bytes.
        subprocess.CalledProcessError: zstd failed.
    """
    chosen = [name for name in options["cases"].split(",") if name]
    rows = []
    with tempfile.TemporaryDirectory(prefix="lighterman-changes-") as text:
        for group, name, base, new in _cases(float(options["mb"])):
            if not chosen or name in chosen:
                rows.append({"group": group, "case": name, **_measured(Path(text), base, new)})
    return {"figures": [figure.to_json() for figure in _figures(rows)], "cases": rows}


def _figures(rows: list[dict[str, Any]]) -> list[Figure]:
    if not rows:
        return [Figure("largest / zstd --patch-from", None, 1.03, 1.0, unit="x", note="no such case")]
    worst = max(rows, key=lambda row: row["ratio"])
    figures = [
        Figure(
            "largest / zstd --patch-from",
            worst["ratio"],
            1.03,
            1.0,
            unit="x",
            note=f"{len(rows)} cases; {worst['case']}",
        )
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        found = [row["ratio"] for row in rows if row["group"] == group]
        mean = geometric_mean(found)
        figures.append(Figure(f"{group} / zstd --patch-from", mean, 1.0, 1.0, unit="x", note=f"{len(found)} cases"))
    share = max(row["ours"] / row["bytes"] for row in rows)
    return [*figures, Figure("largest / file", share, 1.0, 1.0, unit="x")]


def _measured(folder: Path, base: bytes, new: bytes) -> dict[str, Any]:
    paths = [folder / name for name in ("base", "new", "delta", "patch")]
    paths[0].write_bytes(base)
    paths[1].write_bytes(new)
    command = [*_ZSTD, f"--patch-from={paths[0]}", str(paths[1]), "-o", str(paths[3])]
    subprocess.run(command, check=True, timeout=600, stderr=subprocess.DEVNULL)
    started = time.process_time()
    made = encode(*paths[:3])
    seconds = time.process_time() - started
    output = io.BytesIO()
    started = time.process_time()
    with paths[2].open("rb") as delta, paths[0].open("rb") as held:
        for _ in decode(held, delta, output, base_bytes=len(base), new_bytes=len(new)):
            pass
    decoding = time.process_time() - started
    if output.getvalue() != new:
        raise ValueError("a delta makes other bytes than it was made for")
    patch = paths[3].stat().st_size
    return {
        "bytes": len(new),
        "zstd": patch,
        "ours": made.bytes,
        "ratio": round(made.bytes / patch, 4),
        "encode_cpu_s": round(seconds, 2),
        "decode_mb_s": round(len(new) / 1e6 / max(decoding, 1e-3), 1),
    }


# -- cases -----------------------------------------------------------------------------------------------------------


def _cases(megabytes: float) -> Iterator[tuple[str, str, bytes, bytes]]:
    """Group, name, base and new file of every case; each begins with the same weights and its own generator."""
    rows = max(16, int(megabytes * 1e6 / 4 / _LAYERS / _COLUMNS))
    random = np.random.default_rng(5)
    layers = {f"layer.{number}": _weights(random, rows, _COLUMNS) for number in range(_LAYERS)}
    for group, changes in (("pruned", _PRUNED), ("moved", _MOVED), ("made anew", _CHANGED), ("scaled", _SCALED)):
        for name, change in changes.items():
            yield group, name, *_pair(layers, change)
    pruned = {name: _masked(0.5)(layer, random) for name, layer in layers.items()}
    yield "pruned", "trained after pruning", *_pair(pruned, _trained_within)
    yield "pruned", "pruned further", *_pair(pruned, _masked(0.7))
    yield "pruned", "not pruned any more", _file(pruned), _file(layers)
    for name, dtype in (("FP16", np.float16), ("INT8", np.int8)):
        held = {key: _converted(layer, dtype) for key, layer in layers.items()}
        yield "pruned", f"half of the weights, {name}", *_pair(held, _smallest(0.5))
        yield "moved", f"rows in another order, {name}", *_pair(held, _shuffled)
    yield from _kept(layers)
    yield from _tables(random, rows)
    yield from _opaque(random, rows)


def _pair(layers: Tensors, change: Change) -> tuple[bytes, bytes]:
    random = np.random.default_rng(7)
    return _file(layers), _file({name: change(layer, random) for name, layer in layers.items()})


def _weights(random: np.random.Generator, *shape: int) -> Array:
    return (random.standard_normal(shape) * _SIZE).astype(np.float32)


def _file(tensors: Tensors) -> bytes:
    """A safetensors file."""
    names = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.int8): "I8"}
    place, head = 0, {}
    for name, array in tensors.items():
        head[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [place, place + array.nbytes],
        }
        place += array.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in tensors.values())


def _converted(layer: Array, dtype: type) -> Array:
    return np.clip(np.rint(layer / 0.002), -127, 127).astype(np.int8) if dtype is np.int8 else layer.astype(dtype)


def _smallest(share: float) -> Change:
    """The smallest weights become zero."""

    def change(layer: Array, _: np.random.Generator) -> Array:
        size = np.abs(layer.astype(np.float32))
        return np.where(size < np.quantile(size, share), layer.dtype.type(0), layer)

    return change


def _masked(share: float) -> Change:
    """Likewise by a product with a mask, which leaves negative zeros."""
    return lambda layer, _: layer * (np.abs(layer) >= np.quantile(np.abs(layer), share)).astype(np.float32)


def _anywhere(layer: Array, random: np.random.Generator) -> Array:
    return np.where(random.random(layer.shape) < 0.5, np.float32(0), layer)


def _two_of_four(layer: Array, _: np.random.Generator) -> Array:
    groups = layer.copy().reshape(-1, 4)
    np.put_along_axis(groups, np.argsort(np.abs(groups), axis=1)[:, :2], 0, axis=1)
    return groups.reshape(layer.shape)


def _filters(layer: Array, random: np.random.Generator) -> Array:
    return np.where(random.random((len(layer), 1)) < 0.3, np.float32(0), layer)


def _trained(layer: Array, random: np.random.Generator) -> Array:
    return (layer + 1e-4 * random.standard_normal(layer.shape)).astype(np.float32)


def _trained_within(layer: Array, random: np.random.Generator) -> Array:
    return np.where(layer != 0, _trained(layer, random), layer)


def _shuffled(layer: Array, random: np.random.Generator) -> Array:
    return layer[random.permutation(len(layer))]


def _one_row(layer: Array, random: np.random.Generator) -> Array:
    return np.concatenate([layer[:3], _weights(random, 1, layer.shape[1]), layer[4:]])


_PRUNED: Final[dict[str, Change]] = {
    "the smallest fifth": _smallest(0.2),
    "the smallest half": _smallest(0.5),
    "the smallest nineteen of twenty": _smallest(0.95),
    "the smallest half, by a mask": _masked(0.5),
    "half of the weights, wherever": _anywhere,
    "two of four": _two_of_four,
    "three tenths of the filters": _filters,
    "trained, then pruned": lambda layer, random: _smallest(0.5)(_trained(layer, random), random),
}
_MOVED: Final[dict[str, Change]] = {
    "rows by one": lambda layer, _: np.roll(layer, 1, 0),
    "rows in another order": _shuffled,
    "every other row": lambda layer, _: layer[::2],
    "fewer columns": lambda layer, _: np.ascontiguousarray(layer[:, : layer.shape[1] * 7 // 8]),
    "columns in another order": lambda layer, random: np.ascontiguousarray(
        layer[:, random.permutation(layer.shape[1])]
    ),
    "columns backwards": lambda layer, _: np.ascontiguousarray(layer[:, ::-1]),
    "transposed": lambda layer, _: np.ascontiguousarray(layer.T),
}
_CHANGED: Final[dict[str, Change]] = {
    "one row anew": _one_row,
    "a third of the weights anew": lambda layer, random: np.where(
        random.random(layer.shape) < 1 / 3, _weights(random, *layer.shape), layer
    ),
    "all anew": lambda layer, random: _weights(random, *layer.shape),
    "clipped": lambda layer, _: np.clip(layer, -0.08, 0.08),
    "rounded to thousandths": lambda layer, _: (np.rint(layer / 1e-3) * 1e-3).astype(np.float32),
    "trained": _trained,
}
_SCALED: Final[dict[str, Change]] = {
    "negated": lambda layer, _: -layer,
    "halved": lambda layer, _: layer / 2,
    "rows scaled": lambda layer, random: (layer * (1 + 0.1 * random.standard_normal((len(layer), 1)))).astype(
        np.float32
    ),
    "rows scaled, and trained": lambda layer, random: _trained(
        (layer * (1 + 0.1 * random.standard_normal((len(layer), 1)))).astype(np.float32), random
    ),
}


def _kept(layers: Tensors) -> Iterator[tuple[str, str, bytes, bytes]]:
    """Half precision that is kept as FP32, and one type made another."""
    random = np.random.default_rng(9)
    tuned = {name: _trained(layer, random) for name, layer in layers.items()}

    def brain(layer: Array) -> Array:
        bits = layer.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)

    def half(layer: Array) -> Array:
        return layer.astype(np.float16).astype(np.float32)

    def stored(layer: Array) -> Array:
        return layer.astype(np.float16)

    def all_of(weights: Tensors, change: Callable[[Array], Array]) -> bytes:
        return _file({name: change(layer) for name, layer in weights.items()})

    group = "another precision"
    for name, rounding in (("BF16", brain), ("FP16", half)):
        yield group, f"trained in {name}, kept as FP32", all_of(layers, rounding), all_of(tuned, rounding)
        yield group, f"FP32, then trained {name} kept as FP32", _file(layers), all_of(tuned, rounding)
    yield group, "FP32, then FP16 of it", _file(layers), all_of(layers, stored)
    yield group, "FP32, then trained FP16", _file(layers), all_of(tuned, stored)
    yield group, "FP16, then FP32 of it", all_of(layers, stored), all_of(layers, half)


def _tables(random: np.random.Generator, rows: int) -> Iterator[tuple[str, str, bytes, bytes]]:
    """Embeddings, and tensors of other sizes."""
    wide, narrow = _weights(random, rows * 18, 64), _weights(random, rows * 60, 16)
    added = _weights(random, 100, 64)
    for name, new in {
        "words added behind": np.concatenate([wide, added]),
        "words added between": np.concatenate([wide[:777], added, wide[777:]]),
        "a vocabulary in another order, some words gone": wide[random.permutation(len(wide))[: len(wide) * 3 // 4]],
    }.items():
        yield "moved", name, _file({"embedding": wide}), _file({"embedding": new})
    other = narrow[random.permutation(len(narrow))]
    yield "moved", "short rows in another order", _file({"embedding": narrow}), _file({"embedding": other})
    small = {f"block.{number}": _weights(random, 64, 64) for number in range(max(4, rows // 3))}
    rolled = {name: np.roll(layer, 1, 0) for name, layer in small.items()}
    yield "moved", "rows by one, small tensors", _file(small), _file(rolled)
    parts = {name: _weights(random, rows, 512) for name in "qkv"}
    for name, axis in (("joined below each other", 0), ("joined beside each other", 1)):
        yield "moved", name, _file(parts), _file({"qkv": np.concatenate(list(parts.values()), axis)})


def _opaque(random: np.random.Generator, rows: int) -> Iterator[tuple[str, str, bytes, bytes]]:
    """Files without tensors."""
    lines = [
        json.dumps({"id": number, "value": round(float(random.standard_normal()), 6)}) for number in range(rows * 40)
    ]
    edited = [line for line in lines if random.random() > 0.01]
    for number in random.integers(0, len(edited), len(edited) // 50):
        edited[number] = edited[number].replace("value", "reading")
    yield "no tensors", "lines edited", "\n".join(lines).encode(), "\n".join(edited).encode()
    yield "no tensors", "lines sorted", "\n".join(lines).encode(), "\n".join(sorted(lines)).encode()
    members = [
        (f"part-{number}", random.bytes(int(random.integers(100, 40_000)))) for number in range(max(8, rows // 4))
    ]
    other = [members[number] for number in random.permutation(len(members)) if random.random() > 0.1]
    yield "no tensors", "an archive in another order", _tar(members), _tar(other)
    pages = random.integers(0, 256, (rows * 2, 1_024), dtype=np.uint8)
    mixed = pages[random.permutation(len(pages))]
    mixed[random.random(len(pages)) < 0.1, :16] = 0
    yield "no tensors", "pages in another order", pages.tobytes(), mixed.tobytes()
    noise = pages.copy()
    noise[random.random(pages.shape) < 0.01] = 0
    yield "no tensors", "a hundredth of the bytes", pages.tobytes(), noise.tobytes()


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()
