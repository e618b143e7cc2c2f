"""Runs the encoder in a process of its own: `python -m packager.delta.process`, a JSON object in, another one out.

A process, because a BLAS with many threads spins while it waits, and its variables are read when numpy is first
imported; and because a budget of time has to be able to end it.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from edge_contract.errors import EdgeError
from packager.delta.formats import Tensor, apart, read_external

_ONE_THREAD: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_ANSWER_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """What to encode.

    Attributes:
        base: The file that devices hold.
        new: The file that they are to make.
        out: Where the delta goes.
        base_onnx: The ONNX file whose external data `base` is, or none.
        new_onnx: Likewise of `new`.
        location: By which location those ONNX files name them.
    """

    base: Path
    new: Path
    out: Path
    base_onnx: Path | None = None
    new_onnx: Path | None = None
    location: str = ""


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """What came of it: see `packager.delta.encode.Encoded`."""

    bytes: int
    new_bytes: int
    peak_bytes: int
    seconds: float
    kinds: dict[str, int]


def encode_apart(request: EncodeRequest, seconds_max: float | None = None) -> EncodedFile | None:
    """Encode in a child process with one thread.

    Args:
        request: What to encode.
        seconds_max: After so many seconds it is ended; none waits.

    Returns:
        None when time was up; `request.out` is not there then.

    Raises:
        EdgeError: Whatever the encoder raises; `internal.bug` when the process ends in another way.
    """
    environment = os.environ | dict.fromkeys(_ONE_THREAD, "1")
    text = json.dumps({key: None if value is None else str(value) for key, value in asdict(request).items()})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "packager.delta.process"],
            input=text,
            capture_output=True,
            text=True,
            env=environment,
            timeout=seconds_max,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    try:
        answer: dict[str, Any] = json.loads(done.stdout[:_ANSWER_BYTES_MAX])
    except ValueError:
        why = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise EdgeError("internal.bug", f"encoding {request.new} ended with: {why[0][:500]}") from None
    if "error" in answer:
        error = answer["error"]
        raise EdgeError(error["code"], error["detail"], error.get("hint", ""))
    return EncodedFile(**answer)


def external_tensors(onnx: Path, location: str, file: Path) -> tuple[Tensor, ...]:
    """The tensors that an ONNX file keeps in another one.

    Args:
        onnx: The ONNX file.
        location: How it names the other file.
        file: The other file.
    """
    return apart(read_external(onnx).get(location, ()), file.stat().st_size)


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    from packager.delta.encode import encode

    base, new, out = Path(asked["base"]), Path(asked["new"]), Path(asked["out"])
    tensors = [
        None if onnx is None else external_tensors(Path(onnx), asked["location"], file)
        for onnx, file in ((asked["base_onnx"], base), (asked["new_onnx"], new))
    ]
    return asdict(encode(base, new, out, base_tensors=tensors[0], new_tensors=tensors[1]))


def main() -> None:
    """Read a request from standard input, and write what came of it to standard output."""
    try:
        answer = _run(json.load(sys.stdin))
    except EdgeError as error:
        answer = {"error": error.to_json()}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
