"""Thousands of corrupted deltas: none may make a wrong output that is taken for right, none may crash the decoder.

Small pairs of every kind of tensor, so that a damaged byte is likely to matter; each delta is damaged by turned bits,
replaced bytes, cuts, parts in other places, and damage to its head alone. As on a device, an output counts as taken
when its digest is right. docs/benchmarks.md says how to read the figures.
"""

import hashlib
import io
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks._verdicts import Figure
from edge_delta.decode import DeltaError, decode
from edge_delta.elements import Array
from packager.delta.encode import encode
from packager.delta.formats import Tensor

SUMMARY: Final = "10,000 corrupted deltas: how each ended, the slowest, and the memory"
OPTIONS: Final = {"count": "10000", "seed": "1"}
QUICK: Final = {"count": "300"}
_ROWS, _COLUMNS = 128, 96
_HEAD: Final = 150


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Corrupt and decode.

    Args:
        options: `count` of corrupted deltas, `seed` of the damage.

    Returns:
        `figures`, and by pair how many were refused, found out by the digest, or right after all.
    """
    random = np.random.default_rng(int(options["seed"]))
    with tempfile.TemporaryDirectory(prefix="lighterman-corrupt-") as name:
        pairs = _pairs(Path(name))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ended: dict[str, Counter[str]] = {kind: Counter() for kind in pairs}
    slowest = 0.0
    for number in range(int(options["count"])):
        kind = list(pairs)[number % len(pairs)]
        base, new, delta = pairs[kind]
        started = time.process_time()
        ended[kind][_outcome(base, new, damaged(delta, random))] += 1
        slowest = max(slowest, time.process_time() - started)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    total = sum(ended.values(), Counter[str]())
    return {
        "figures": [
            Figure("corrupted deltas that ended in another error than DeltaError", total["crashed"], 0, 0).to_json(),
            Figure("wrong outputs with the right digest", total["accepted"], 0, 0).to_json(),
            Figure("slowest, processor seconds", slowest, 5.0, 1.0, unit="s").to_json(),
            Figure("memory beyond before", grown, 64, 32, unit="MiB").to_json(),
        ],
        "count": int(options["count"]),
        "ended": {kind: dict(sorted(counts.items())) for kind, counts in ended.items()},
    }


def _outcome(base: bytes, new: bytes, delta: bytes) -> str:
    output = io.BytesIO()
    try:
        for _ in decode(io.BytesIO(base), io.BytesIO(delta), output, base_bytes=len(base), new_bytes=len(new)):
            pass
    except DeltaError:
        return "refused"
    except Exception:  # noqa: BLE001 - what else there is, is what is looked for
        return "crashed"
    made = output.getvalue()
    if hashlib.sha256(made).digest() != hashlib.sha256(new).digest():
        return "found out by its digest"
    return "right after all" if made == new else "accepted"


def damaged(delta: bytes, random: np.random.Generator) -> bytes:
    """A delta with damage of one of six kinds."""
    changed = bytearray(delta)
    place = int(random.integers(len(changed)))
    match int(random.integers(6)):
        case 0:
            changed[place] ^= 1 << int(random.integers(8))
        case 1:
            for other in random.integers(len(changed), size=int(random.integers(1, 20))):
                changed[other] = int(random.integers(256))
        case 2:
            del changed[place:]
        case 3:
            changed[place : place + int(random.integers(1, 64))] = random.bytes(int(random.integers(0, 64)))
        case 4:
            one, other = sorted((place, int(random.integers(len(changed)))))
            changed = changed[:one] + changed[other:] + changed[one:other]
        case _:
            changed[int(random.integers(min(_HEAD, len(changed))))] = int(random.integers(256))
    return bytes(changed)


def _pairs(folder: Path) -> dict[str, tuple[bytes, bytes, bytes]]:
    """Base, new file and delta by kind."""
    random = np.random.default_rng(5)
    base = (random.standard_normal((_ROWS, _COLUMNS)) * 0.05).astype(np.float32)
    noise = random.standard_normal(base.shape)
    low_rank = random.standard_normal((_ROWS, 2)) @ random.standard_normal((2, _COLUMNS)) * 1e-3
    small = np.clip(np.rint(base * 500), -127, 127).astype(np.int8)
    made: dict[str, tuple[str, Array, Array]] = {
        "float32, scaled": ("f32", base, (base * (1 + 0.1 * noise[:, :1]) + 1e-4 * noise).astype(np.float32)),
        "float32, low rank": ("f32", base, (base + low_rank).astype(np.float32)),
        "float32, snapped": ("f32", base, (base + np.rint(noise) * 2.0**-13).astype(np.float32)),
        "float16": ("f16", base.astype(np.float16), (base + 1e-4 * noise).astype(np.float16)),
        "int8": ("i8", small, np.clip(small + np.rint(noise * 0.4), -127, 127).astype(np.int8)),
        "float32, pruned": ("f32", base, np.where(np.abs(base) < 0.03, np.float32(0), base)),
        "unrelated": ("f32", base, (noise * 0.05).astype(np.float32)),
        "bytes": ("", np.frombuffer(random.bytes(60_000), np.uint8), np.frombuffer(random.bytes(50_000), np.uint8)),
        "runs": ("", np.frombuffer(random.bytes(90_000), np.uint8), np.zeros(1, np.uint8)),
    }
    found = {}
    for kind, (dtype, one, other) in made.items():
        # A few bytes around the tensor, so that there is glue.
        before, after = b"base" + one.tobytes() + b"end", b"newer" + other.tobytes() + b"end"
        if kind == "bytes":
            after = before[:20_000] + b"something between" + before[21_000:]
        if kind == "runs":
            blocks = [before[place : place + 300] for place in range(0, len(before), 300)]
            after = b"".join(blocks[number] + b"." * (number % 3) for number in random.permutation(len(blocks)))
        (folder / "base").write_bytes(before)
        (folder / "new").write_bytes(after)
        tensors = [
            [Tensor("w", dtype, array.shape, start, start + array.nbytes)] if dtype else []
            for start, array in ((4, one), (5, other))
        ]
        encode(folder / "base", folder / "new", folder / "delta", base_tensors=tensors[0], new_tensors=tensors[1])
        found[kind] = (before, after, (folder / "delta").read_bytes())
    return found
