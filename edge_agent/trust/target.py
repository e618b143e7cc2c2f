"""What verified metadata says of one target file. Pure."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """One target.

    Attributes:
        path: Its target path.
        length: Bytes.
        hashes: Lower-case hexadecimal, by algorithm; at least one.
        custom: Whatever its publisher added.
    """

    path: str
    length: int
    hashes: Mapping[str, str]
    custom: Mapping[str, Any] | None = field(default=None)

    @property
    def prefixed_path(self) -> str:
        """Where a repository with consistent snapshots keeps the file: a hash stands in front of its name."""
        folder, slash, name = self.path.rpartition("/")
        return f"{folder}{slash}{next(iter(self.hashes.values()))}.{name}"

    def is_content(self, file: BinaryIO) -> bool:
        """Whether a file has this length and every one of the hashes; an algorithm nobody here knows fits nothing.

        Raises:
            OSError: It cannot be read.
        """
        try:
            # The names that follow the TUF specification are those of hashlib.
            digests = {name: hashlib.new(name) for name in self.hashes}
        except ValueError:
            return False
        count = 0
        while count <= self.length and (chunk := file.read(_CHUNK_BYTES)):
            count += len(chunk)
            for digest in digests.values():
                digest.update(chunk)
        if count != self.length or not digests:
            return False
        return all(digest.digest_size and digest.hexdigest() == self.hashes[name] for name, digest in digests.items())
