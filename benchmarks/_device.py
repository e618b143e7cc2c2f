"""The device's half of the `loop` benchmark, in a process of its own: pulls, verifies twice and stages one bundle.

    python -m benchmarks._device URL REPOSITORY DIGEST BYTES FOLDER < token

Uses the agent's own fetcher, store and slots. Prints the seconds of each step as JSON.
"""

import json
import sys
import time
from pathlib import Path

from edge_agent.fetch import HttpBundleFetcher
from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.slots import FileSlotStore
from edge_agent.tokens import FixedToken
from edge_contract.digest import Digest
from edge_contract.limits import MANIFEST_BYTES_MAX
from edge_contract.manifest import MANIFEST_TYPE, Descriptor, Manifest


def main(url: str, repository: str, digest_text: str, size: str, folder: str) -> None:
    """Pull one bundle; see the module."""
    digest = Digest(digest_text)
    blobs = FileBlobStore(Path(folder), reserve_bytes=0)
    slots = FileSlotStore(Path(folder), blobs)
    fetcher = HttpBundleFetcher(url, FixedToken(sys.stdin.readline().strip()), blobs)
    started = time.perf_counter()
    fetcher.fetch(repository, Descriptor(MANIFEST_TYPE, digest, int(size)), lambda: False)
    manifest = Manifest.parse(blobs.read(digest, MANIFEST_BYTES_MAX))
    count = sum(fetcher.fetch(repository, blob, lambda: False) for blob in manifest.blobs)
    pulled = time.perf_counter()
    for blob in manifest.blobs:
        blobs.verify(blob.digest, blob.size)
    verified = time.perf_counter()
    slots.stage(digest, manifest)
    staged = time.perf_counter()
    sys.stdout.write(
        json.dumps(
            {"bytes": count, "pull_s": pulled - started, "verify_s": verified - pulled, "stage_s": staged - verified}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
