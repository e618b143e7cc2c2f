"""Decodes the golden deltas of a folder and compares digests: `python golden_decode.py FOLDER`.

It imports nothing of the tests, so that it runs wherever the decoder does: under other versions of numpy, on other
processors.
"""

import hashlib
import io
import json
import platform
import sys
from pathlib import Path

import numpy
import zstandard

from edge_delta.decode import decode


def check(folder: Path) -> dict[str, str]:
    """Digest of what each golden delta makes, by name."""
    found = {}
    for delta in sorted(folder.glob("*.lmd1")):
        base = (folder / f"{delta.stem}.base").read_bytes()
        expected = json.loads((folder / "digests.json").read_text())[delta.stem]
        output = io.BytesIO()
        for _ in decode(
            io.BytesIO(base),
            io.BytesIO(delta.read_bytes()),
            output,
            base_bytes=len(base),
            new_bytes=expected["bytes"],
        ):
            pass
        found[delta.stem] = hashlib.sha256(output.getvalue()).hexdigest()
        if found[delta.stem] != expected["sha256"]:
            raise SystemExit(f"{delta.name} makes other bytes here than it did where it was made")
    return found


if __name__ == "__main__":
    done = check(Path(sys.argv[1]))
    facts = {"machine": platform.machine(), "numpy": numpy.__version__, "zstandard": zstandard.__version__}
    print(json.dumps(facts | {"decoded": len(done)}))  # noqa: T201  # its one line of output
