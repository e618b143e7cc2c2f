"""Peers that are Python packages, one run a process, in the benchmark's own environment.

    python -m benchmarks.delta.python_peers METHOD encode|decode BASE INPUT OUTPUT DTYPE

INPUT is the new file or the delta. DTYPE is what most of the file is made of, for codecs that want to be told.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def _bsdiff4(step: str, base: Path, source: Path, out: Path, _dtype: str) -> None:
    import bsdiff4

    if step == "encode":
        bsdiff4.file_diff(str(base), str(source), str(out))
    else:
        bsdiff4.file_patch(str(base), str(out), str(source))


def _hdiffpatch(step: str, base: Path, source: Path, out: Path, _dtype: str) -> None:
    import detools

    with base.open("rb") as held, source.open("rb") as read, out.open("wb") as written:
        if step == "encode":
            detools.create_patch(
                held, read, written, compression="lzma", patch_type="hdiffpatch", algorithm="hdiffpatch"
            )
        else:
            detools.apply_patch(held, read, written)


def _zipnn(step: str, _base: Path, source: Path, out: Path, dtype: str) -> None:
    import zipnn

    codec = zipnn.ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)
    work = codec.compress if step == "encode" else codec.decompress
    out.write_bytes(bytes(work(source.read_bytes())))


def _z4ai(step: str, base: Path, source: Path, out: Path, dtype: str) -> None:
    import z4ai
    from z4ai import model_delta

    held, given = base.read_bytes(), source.read_bytes()
    is_safetensors = base.suffix == ".safetensors"
    if step == "encode":
        if is_safetensors:
            made = model_delta.compress(given, held)
        else:
            made = z4ai.compress_delta(given, held, dtype=dtype, threads=1)
    elif is_safetensors:
        made = model_delta.decompress(given, held)
    else:
        made = z4ai.decompress_delta(given, held)
    out.write_bytes(bytes(made))


def _planes(method: str) -> Callable[[str, Path, Path, Path, str], None]:
    def work(step: str, base: Path, source: Path, out: Path, _dtype: str) -> None:
        from benchmarks.delta import planes

        (planes.encode if step == "encode" else planes.decode)(base, source, out, method)

    return work


METHODS = {
    "bsdiff4": _bsdiff4,
    "hdiffpatch": _hdiffpatch,
    "zipnn": _zipnn,
    "z4ai": _z4ai,
    "bitx": _planes("bitx"),
    "fm-delta": _planes("fm-delta"),
}


if __name__ == "__main__":
    method, step, base, source, out, dtype = sys.argv[1:]
    METHODS[method](step, Path(base), Path(source), Path(out), dtype)
