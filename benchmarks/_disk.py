"""The yardstick of the `loop` benchmark: one sha256 pass over a file and one synced write of the same bytes.

    python -m benchmarks._disk FILE COPY

Prints the seconds of both as JSON. Read, hashed and written in the chunks that Lighterman itself uses.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from edge_contract.limits import CHUNK_BYTES


def main(source: str, copy: str) -> None:
    """Measure; see the module."""
    started = time.perf_counter()
    state = hashlib.sha256()
    with Path(source).open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
    hashed = time.perf_counter()
    with Path(source).open("rb", buffering=0) as file, Path(copy).open("wb", buffering=0) as sink:
        while chunk := file.read(CHUNK_BYTES):
            sink.write(chunk)
        os.fsync(sink.fileno())
    written = time.perf_counter()
    Path(copy).unlink()
    sys.stdout.write(
        json.dumps({"sha256_s": hashed - started, "write_s": written - hashed, "digest": state.hexdigest()})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
