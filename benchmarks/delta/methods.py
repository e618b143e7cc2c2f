"""What is measured: other tools for deltas, the same files packed whole, and ours; each as two programs to run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.delta.recipes import Pair

REPOSITORY = Path(__file__).resolve().parents[2]
# Long enough a window for both files of a pair of a gigabyte each.
_WINDOW = "--long=31"
_SOURCE_BYTES_MIN = 2**26


@dataclass(frozen=True)
class Job:
    """One method at one pair.

    Attributes:
        pair: Which.
        base: The file that a device has.
        new: The file that it wants.
        folder: For whatever the method writes; empty at first.
        peers_python: Interpreter of the benchmark's own environment.
    """

    pair: Pair
    base: Path
    new: Path
    folder: Path
    peers_python: str

    @property
    def delta(self) -> Path:
        """What encoding makes."""
        return self.folder / "delta"

    @property
    def output(self) -> Path:
        """What decoding makes."""
        return self.folder / "output"


Command = Callable[[Job], list[str]]


@dataclass(frozen=True)
class Method:
    """One way to bring the new file to a device.

    Attributes:
        name: In tables.
        family: ``whole`` needs no base, ``generic`` knows nothing of tensors, ``blocks`` shares blocks by hash,
            ``tensors`` are published ideas for weights, ``ours``.
        encode: Program that makes the delta.
        decode: Program that makes the output from it.
        prepare: Programs to run before, which are not measured.
        size: Bytes on the wire; the delta's length unless told.
        program: Debian's program that it needs.
    """

    name: str
    family: str
    encode: Command
    decode: Command
    prepare: Command | None = None
    size: Callable[[Job], int] = lambda job: job.delta.stat().st_size
    program: str = ""

    @property
    def is_here(self) -> bool:
        """Whether what it needs is installed."""
        return not self.program or shutil.which(self.program) is not None

    def paths(self, command: Sequence[str]) -> list[str]:
        """The command with the whole path of its program."""
        found = command[0] if "/" in command[0] else shutil.which(command[0])
        return [found or command[0], *command[1:]]


def _zstd_whole() -> Method:
    return Method(
        "zstd -19",
        "whole",
        lambda job: ["zstd", "-19", _WINDOW, "-T1", "-q", "-f", str(job.new), "-o", str(job.delta)],
        lambda job: ["zstd", "-d", _WINDOW, "-q", "-f", str(job.delta), "-o", str(job.output)],
        program="zstd",
    )


def _xz_whole() -> Method:
    script = '"$0" "$@" >"$OUT"'
    return Method(
        "xz -9e",
        "whole",
        lambda job: ["env", f"OUT={job.delta}", "sh", "-c", script, "xz", "-9e", "-T1", "-k", "-c", str(job.new)],
        lambda job: ["env", f"OUT={job.output}", "sh", "-c", script, "xz", "-d", "-c", "--format=xz", str(job.delta)],
        program="xz",
    )


def _xdelta3() -> Method:
    def common(job: Job) -> list[str]:
        # The whole base, as a power of two; its own default is the least.
        source_bytes = max(_SOURCE_BYTES_MIN, 1 << job.base.stat().st_size.bit_length())
        return ["-f", "-q", "-B", str(source_bytes), "-W", "16777216", "-s", str(job.base)]

    return Method(
        "xdelta3 -9",
        "generic",
        lambda job: ["xdelta3", "-e", "-9", "-S", "lzma", *common(job), str(job.new), str(job.delta)],
        lambda job: ["xdelta3", "-d", *common(job), str(job.delta), str(job.output)],
        program="xdelta3",
    )


def _zstd_patch() -> Method:
    def words(job: Job) -> list[str]:
        return [_WINDOW, f"--patch-from={job.base}", "-q", "-f"]

    return Method(
        "zstd --patch-from",
        "generic",
        lambda job: ["zstd", "-19", "-T1", *words(job), str(job.new), "-o", str(job.delta)],
        lambda job: ["zstd", "-d", *words(job), str(job.delta), "-o", str(job.output)],
        program="zstd",
    )


def _casync() -> Method:
    """Chunks of 64 KiB on average; what counts is the index and the chunks that the base does not have."""

    def make(job: Job, store: str, index: Path, source: Path) -> list[str]:
        chunks = ["--chunk-size=65536", "--compression=zstd", f"--store={job.folder / store}.castr"]
        return ["casync", "--log-level=err", *chunks, "make", f"{index}.caibx", str(source)]

    def size(job: Job) -> int:
        held = {chunk.name for chunk in (job.folder / "held.castr").glob("*/*.cacnk")}
        sent = (chunk for chunk in (job.folder / "sent.castr").glob("*/*.cacnk") if chunk.name not in held)
        return Path(f"{job.delta}.caibx").stat().st_size + sum(chunk.stat().st_size for chunk in sent)

    def extract(job: Job) -> list[str]:
        places = [f"--store={job.folder / 'sent'}.castr", f"--seed={job.base}", "--seed-output=no"]
        return ["casync", "--log-level=err", *places, "extract", f"{job.delta}.caibx", str(job.output)]

    return Method(
        "casync 64k",
        "blocks",
        lambda job: make(job, "sent", job.delta, job.new),
        extract,
        prepare=lambda job: make(job, "held", job.folder / "held", job.base),
        size=size,
        program="casync",
    )


_DTYPES = {"f16": "float16", "bf16": "bfloat16", "i8pc": "int8", "i8pt": "int8", "i8dyn": "int8", "tflite8": "int8"}
# ZipNN knows no bytes; it is given what suits them best.
_ZIPNN_DTYPES = {"f16": "float16", "bf16": "bfloat16"}


def _python(name: str, method: str, family: str, dtypes: dict[str, str]) -> Method:
    def command(job: Job, step: str, source: Path, out: Path) -> list[str]:
        dtype = dtypes.get(job.pair.form, "float32")
        module = [job.peers_python, "-W", "ignore", "-m", "benchmarks.delta.python_peers", method, step]
        return [*module, str(job.base), str(source), str(out), dtype]

    return Method(
        name,
        family,
        lambda job: command(job, "encode", job.new, job.delta),
        lambda job: command(job, "decode", job.delta, job.output),
    )


def _ours() -> Method:
    module = [sys.executable, "-m", "benchmarks.delta.ours"]
    return Method(
        "ours",
        "ours",
        lambda job: [*module, "encode", str(job.base), str(job.new), str(job.delta)],
        lambda job: [*module, "decode", str(job.base), str(job.delta), str(job.output)],
    )


OURS = _ours()
PEERS = (
    _zstd_whole(),
    _xz_whole(),
    _xdelta3(),
    _python("bsdiff4", "bsdiff4", "generic", {}),
    _zstd_patch(),
    _python("hdiffpatch", "hdiffpatch", "generic", {}),
    _casync(),
    _python("ZipNN", "zipnn", "tensors", _ZIPNN_DTYPES),
    _python("z4ai", "z4ai", "tensors", _DTYPES),
    _python("BitX-like", "bitx", "tensors", {}),
    _python("FM-Delta-like", "fm-delta", "tensors", {}),
)
