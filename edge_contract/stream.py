"""Verification of bytes while they stream by, so that nothing unverified is ever called whole."""

import hashlib
from collections.abc import Iterable, Iterator

from edge_contract.digest import Digest
from edge_contract.errors import ContractError


class VerifyingStream:
    """Counts and hashes chunks; refuses the first byte too many, and a wrong digest at the end.

    Feed chunks in order from one thread. To resume after an interruption, feed the bytes already on disk first: a hash
    state is not portable, and re-reading also proves the disk.
    """

    def __init__(self, digest: Digest, size: int) -> None:
        """Expect exactly `size` bytes with this digest."""
        self._digest = digest
        self._size = size
        self._count = 0
        self._hash = hashlib.sha256()

    @property
    def count(self) -> int:
        """Bytes fed so far."""
        return self._count

    @property
    def remaining(self) -> int:
        """Bytes still expected."""
        return self._size - self._count

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next chunk.

        Raises:
            ContractError: `artifact.size-mismatch`, before the chunk is used, if it holds more than is expected.
        """
        count = memoryview(chunk).nbytes
        if count > self.remaining:
            raise ContractError(
                "artifact.size-mismatch", f"{self._digest} was declared with {self._size} bytes, but more came"
            )
        self._count += count
        self._hash.update(chunk)

    def finish(self) -> None:
        """Require that all bytes came and have the digest.

        Raises:
            ContractError: `artifact.size-mismatch` or `artifact.digest-mismatch`.
        """
        if self._count != self._size:
            raise ContractError(
                "artifact.size-mismatch", f"{self._digest} was declared with {self._size} bytes, {self._count} came"
            )
        if self._hash.hexdigest() != self._digest.hex:
            raise ContractError(
                "artifact.digest-mismatch", f"expected {self._digest}, the bytes have sha256:{self._hash.hexdigest()}"
            )


def verified(chunks: Iterable[bytes], digest: Digest, size: int) -> Iterator[bytes]:
    """Pass chunks on while verifying them; the last `next` raises when the whole was not genuine.

    Raises:
        ContractError: `artifact.size-mismatch` or `artifact.digest-mismatch`.
    """
    stream = VerifyingStream(digest, size)
    for chunk in chunks:
        stream.feed(chunk)
        yield chunk
    stream.finish()


def verify_bytes(data: bytes, digest: Digest, size: int) -> bytes:
    """Give the bytes back if they have this digest and size.

    Raises:
        ContractError: `artifact.size-mismatch` or `artifact.digest-mismatch`.
    """
    stream = VerifyingStream(digest, size)
    stream.feed(data)
    stream.finish()
    return data
