"""Runs one method at one pair: makes the delta, makes the file from it, compares the file, counts bytes and time."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.delta.methods import REPOSITORY, Job, Method
from benchmarks.delta.processes import Cost, FailedError, run
from benchmarks.delta.recipes import Pair
from edge_agent.delta.process import DECODER_ENVIRONMENT

_ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Result:
    """What one method made of one pair.

    Attributes:
        new_bytes: Length of the new file.
        wire_bytes: What a device that has the base downloads; none when the method failed.
        encode_cpu_s: Processor seconds of making it, with the program's start.
        decode_cpu_s: Processor seconds of applying it, with the program's start.
        encode_peak_bytes: Peak of resident memory while making it.
        decode_peak_bytes: Peak of resident memory while applying it.
        inner: What our own processes measured of themselves: ``encode`` and ``decode``.
        failure: Why there are no figures.
    """

    new_bytes: int
    wire_bytes: int | None = None
    encode_cpu_s: float = 0.0
    decode_cpu_s: float = 0.0
    encode_peak_bytes: int = 0
    decode_peak_bytes: int = 0
    inner: Mapping[str, Any] | None = None
    failure: str = ""

    @property
    def share(self) -> float | None:
        """Bytes on the wire as a share of the file."""
        return None if self.wire_bytes is None else self.wire_bytes / self.new_bytes

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def digest(path: Path) -> str:
    """SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(pair: Pair, pairs: Path) -> tuple[Path, Path]:
    """Base and new file of a pair."""
    folder = pairs / pair.name
    return folder / f"base{pair.suffix}", folder / f"new{pair.suffix}"


def measure(method: Method, pair: Pair, base: Path, new: Path, peers_python: str) -> Result:
    """Measure one method at one pair; its output has to have the new file's digest."""
    new_bytes = new.stat().st_size
    with tempfile.TemporaryDirectory(prefix="delta-") as folder:
        job = Job(pair, base, new, Path(folder), peers_python)
        try:
            if method.prepare:
                _run(method, method.prepare(job))
            encoding = _run(method, method.encode(job))
            # Ours decodes as on a device.
            decoding = _run(method, method.decode(job), DECODER_ENVIRONMENT if method.family == "ours" else {})
            wire_bytes = method.size(job)
        except (FailedError, OSError) as error:
            return Result(new_bytes, failure=str(error))
        if digest(job.output) != digest(new):
            return Result(new_bytes, failure="the output is not the new file")
    inner = None
    if method.family == "ours":
        inner = {"encode": json.loads(encoding.stdout), "decode": json.loads(decoding.stdout)}
    return Result(
        new_bytes,
        wire_bytes,
        encoding.cpu_s,
        decoding.cpu_s,
        encoding.peak_bytes,
        decoding.peak_bytes,
        inner,
    )


def _run(method: Method, command: list[str], more: Mapping[str, str] = MappingProxyType({})) -> Cost:
    return run(method.paths(command), {**_ENVIRONMENT, **more})


class Kept:
    """Results of earlier runs over the very same files, so that a run that was stopped goes on."""

    def __init__(self, folder: Path) -> None:
        """Keep them in ``folder``."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, method: Method, pair: Pair, base: Path, new: Path) -> Path:
        said = f"{method.name} {pair.form} {digest(base)} {digest(new)}"
        return self._folder / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"

    def get(self, method: Method, pair: Pair, base: Path, new: Path) -> Result | None:
        """The result, if there is one."""
        path = self._path(method, pair, base, new)
        return Result(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def put(self, method: Method, pair: Pair, base: Path, new: Path, result: Result) -> None:
        """Keep it, unless the method failed."""
        if not result.failure:
            path = self._path(method, pair, base, new)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(result.to_json()), encoding="utf-8")
            partial.replace(path)

    def forget(self) -> None:
        """Drop all of them."""
        shutil.rmtree(self._folder)
        self._folder.mkdir()
