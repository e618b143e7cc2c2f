"""Private keys in the wrong hands: those of the author and of the registry, found by their public halves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Key, Signature, SSlibKey
from tuf.api.metadata import Metadata


class StolenKeys:
    """Reads every key file there is. Used by one thread."""

    def __init__(self, folders: Callable[[], Iterable[Path]], passphrase: Callable[[], str]) -> None:
        """Name the folders to search, and the pass phrase that opens what is encrypted."""
        self._folders = folders
        self._passphrase = passphrase
        self._signers: dict[Path, CryptoSigner] = {}

    def signer(self, key: Key) -> CryptoSigner:
        """The private half of a key of this installation."""
        for _ in range(2):
            for signer in self._signers.values():
                if signer.public_key.keyval == key.keyval:
                    return signer
            self._search()
        raise AssertionError(f"nobody here has the key {key.keyid}")

    def _search(self) -> None:
        for folder in self._folders():
            for path in sorted(folder.rglob("*.pem")):
                if path not in self._signers:
                    with suppress(ValueError):  # a certificate, or another kind of file
                        self._signers[path] = CryptoSigner(self._load(path.read_bytes()))

    def _load(self, data: bytes) -> Any:
        passphrase = self._passphrase().encode() if b"ENCRYPTED" in data else None
        return load_pem_private_key(data, passphrase)


STRANGER = CryptoSigner.generate_ed25519()
"""A key that nobody trusts, unless a root that was forged says so."""


def sign(metadata: Metadata[Any], keys: Sequence[Key], stolen: StolenKeys | None) -> bytes:
    """Sign metadata as the holders of these keys, or in their names only.

    Args:
        metadata: Its signatures are replaced.
        keys: Whose signatures are asked for.
        stolen: The private halves; without them a stranger's signatures are put under the names of the keys.
    """
    metadata.signatures.clear()
    for key in keys:
        if key.keyid == STRANGER.public_key.keyid:
            metadata.sign(STRANGER, append=True)
        elif stolen is not None:
            private = stolen.signer(key)
            metadata.sign(CryptoSigner(private._private_key, cast(SSlibKey, key)), append=True)
        else:
            wrong = STRANGER.sign(metadata.signed_bytes)
            metadata.signatures[key.keyid] = Signature(key.keyid, wrong.signature)
    return metadata.to_bytes()
