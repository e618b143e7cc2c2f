"""Decoding takes little memory beside Python, numpy and zstandard, whatever is decoded; measured in its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_contract.limits import DELTA_PEAK_BYTES_MAX
from packager.delta.encode import Encoded, encode
from packager.delta.formats import Tensor

_PROBE = """
import sys
import hashlib, json, struct, zlib
import numpy, zstandard
numpy.zeros((8, 8)) @ numpy.zeros((8, 8))

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

import edge_delta.decode
floor = peak()
base, delta, output = sys.argv[1:4]
with open(delta, "rb") as read:
    info = edge_delta.decode.inspect(read)
    with open(base, "rb") as held, open(output, "w+b") as written:
        for _ in edge_delta.decode.decode(held, read, written, base_bytes=info.base_bytes, new_bytes=info.new_bytes):
            pass
print(peak() - floor)
"""


def _own_bytes(folder: Path) -> int:
    command = [sys.executable, "-c", _PROBE, str(folder / "base"), str(folder / "delta"), str(folder / "made")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env={"OPENBLAS_NUM_THREADS": "1"}
    )
    return int(done.stdout)


def _tensor(array: np.ndarray, dtype: str, start: int) -> Tensor:
    return Tensor("w", dtype, array.shape, start, start + array.nbytes)


def _made(folder: Path, kind: str) -> Encoded:
    random = np.random.default_rng(4)
    if kind == "opaque":
        one = random.bytes(3_000_000)
        (folder / "base").write_bytes(one)
        (folder / "new").write_bytes(b"".join(one[place : place + 900] + b"!" for place in range(0, 3_000_000, 1_000)))
        return encode(folder / "base", folder / "new", folder / "delta")
    rows, columns = {"tall": (90_000, 16), "wide": (12, 90_000), "large": (2_000, 2_000)}[kind]
    base = (random.standard_normal((rows, columns)) * 0.05).astype(np.float32)
    scales = 1 + 0.1 * random.standard_normal((rows, 1) if kind != "wide" else (1, columns))
    low_rank = random.standard_normal((rows, 3)) @ random.standard_normal((3, columns)) * 1e-3
    new = (base * scales + low_rank + 1e-4 * random.standard_normal(base.shape)).astype(np.float32)
    alone = (random.standard_normal((1_100, 1_000)) * 0.05).astype(np.float32)
    # Bytes around the tensors that the glue's dictionary is full of.
    words = random.bytes(1_200_000)
    head, other = words + b"base", b"".join(words[place : place + 60_000] + b"?" for place in range(0, 900_000, 70_000))
    (folder / "base").write_bytes(head + base.tobytes())
    (folder / "new").write_bytes(other + new.tobytes() + alone.tobytes())
    return encode(
        folder / "base",
        folder / "new",
        folder / "delta",
        base_tensors=[_tensor(base, "f32", len(head))],
        new_tensors=[_tensor(new, "f32", len(other)), _tensor(alone, "f32", len(other) + new.nbytes)],
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tall", "wide", "large", "opaque"])
def test_a_decoder_stays_below_what_the_delta_says_and_below_sixteen_mebibytes(kind: str, tmp_path: Path) -> None:
    made = _made(tmp_path, kind)
    own = _own_bytes(tmp_path)
    assert (tmp_path / "made").read_bytes() == (tmp_path / "new").read_bytes()
    assert own <= made.peak_bytes <= DELTA_PEAK_BYTES_MAX
