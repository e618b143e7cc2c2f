"""Runs the encoder in a process of its own: `python -m packager.delta.process`, a line of JSON in, an object out.

A process, because a BLAS with many threads spins while it waits, and its variables are read when numpy is first
imported; and because a budget of time has to be able to end it. It ends with whoever started it.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, cast

from edge_contract.errors import EdgeError
from packager.delta.formats import Tensor, apart, read_external
from packager.delta.leash import follow_input
from packager.files import digest_of, disk_errors

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


class Encoding:
    """One file being encoded by a child process with one thread; begins at once. Used by one thread."""

    def __init__(self, request: EncodeRequest) -> None:
        """Start the process."""
        self._request = request
        asking = {key: None if value is None else str(value) for key, value in asdict(request).items()}
        # What is said goes to files: nobody reads a pipe while other encodings are waited for.
        self._said, self._complained = TemporaryFile(), TemporaryFile()  # noqa: SIM115 - `end` closes them
        self._process = subprocess.Popen(
            [sys.executable, "-m", "packager.delta.process"],
            stdin=subprocess.PIPE,
            stdout=self._said,
            stderr=self._complained,
            bufsize=0,
            env=os.environ | dict.fromkeys(_ONE_THREAD, "1"),
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what became of it is seen when it is waited for
            self._process.stdin.write(json.dumps(asking).encode() + b"\n")

    def wait(self, seconds_max: float | None = None) -> EncodedFile | None:
        """What comes of it; may be asked once.

        Args:
            seconds_max: After so many seconds it is ended; none waits.

        Returns:
            None when time was up; `out` of the request is not there then.

        Raises:
            EdgeError: Whatever the encoder raises; `internal.bug` when the process ends in another way.
        """
        try:
            code = self._process.wait(seconds_max)
            return self._answer(code)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.end()

    def end(self) -> None:
        """End the process, if it is there still."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._said.close()
        self._complained.close()

    def _answer(self, code: int) -> EncodedFile:
        self._said.seek(0)
        try:
            answer: dict[str, Any] = json.loads(self._said.read(_ANSWER_BYTES_MAX))
        except ValueError:
            self._complained.seek(max(0, os.fstat(self._complained.fileno()).st_size - _ANSWER_BYTES_MAX))
            words = self._complained.read(_ANSWER_BYTES_MAX).decode(errors="replace")
            why = words.strip().splitlines()[-1:] or [f"exit code {code}"]
            raise EdgeError("internal.bug", f"encoding {self._request.new} ended with: {why[0][:500]}") from None
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
    encoded = encode(base, new, out, base_tensors=tensors[0], new_tensors=tensors[1])
    try:
        require_makes(base, new, out)
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    return asdict(encoded)


def require_makes(base: Path, new: Path, delta: Path) -> None:
    """Decode a delta as a device does, and require that the very file comes out: else a fleet finds out.

    Args:
        base: What it starts from.
        new: What it has to make.
        delta: The delta; beside it there has to be room for the file.

    Raises:
        EdgeError: `internal.bug` where something else comes out, `config.file-missing`, `device.disk-*`.
    """
    from edge_delta.decode import decode
    from edge_delta.errors import DeltaError

    wanted, size = digest_of(new)
    with (
        disk_errors(delta),
        base.open("rb") as base_file,
        delta.open("rb") as source,
        TemporaryFile(dir=delta.absolute().parent) as made,
    ):
        try:
            for _ in decode(base_file, source, made, base_bytes=base.stat().st_size, new_bytes=size):
                pass
        except DeltaError as error:
            raise _makes_something_else(new, error.detail) from error
        made.seek(0)
        found = hashlib.file_digest(cast(BufferedReader, made), "sha256").hexdigest()
    if found != wanted.hex:
        raise _makes_something_else(new, f"sha256:{found} came out")


def _makes_something_else(new: Path, why: str) -> EdgeError:
    hint = "Did a file change meanwhile? If not, please report it, with both files."
    return EdgeError("internal.bug", f"the delta that was made does not make {new}: {why}", hint)


def main() -> None:
    """Read a request from standard input, and write what came of it to standard output."""
    try:
        asked = json.loads(sys.stdin.buffer.readline())
        follow_input()
        answer = _run(asked)
    except EdgeError as error:
        answer = {"error": error.to_json()}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
