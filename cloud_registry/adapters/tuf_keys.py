"""The online signing keys of the registry: ed25519, one file each, made at first use and readable by the owner alone.

Image repository: `snapshot` and `timestamp`. Director: `targets`, `snapshot` and `timestamp`. Root keys, and the keys
that sign the image repository's targets, stay with the authors and never come here.
"""

import threading
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from securesystemslib.signer import CryptoSigner

from cloud_registry.adapters.durable import create_file, disk_errors, make_folder
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

IMAGE: Final = "image"
DIRECTOR: Final = "director"
ONLINE_ROLES: Final = {IMAGE: ("snapshot", "timestamp"), DIRECTOR: ("targets", "snapshot", "timestamp")}
KEY_MODE: Final = 0o600


class OnlineKeys:
    """Loads the keys, and makes those that are missing. Any thread; several processes may start at once."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; it is created with its first key.

        Args:
            folder: For example `<data>/keys`, 0700.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._signers: dict[tuple[str, str], CryptoSigner] = {}

    def signer(self, repository: str, role: str) -> CryptoSigner:
        """The signer of one online role.

        Args:
            repository: `image` or `director`.
            role: One of `ONLINE_ROLES[repository]`.

        Raises:
            EdgeError: `config.key-invalid`, `device.disk-error`.
        """
        with self._lock:
            known = self._signers.get((repository, role))
            if known is None:
                known = self._signers[repository, role] = self._load(self._folder / f"{repository}-{role}.pem")
            return known

    def keyid(self, repository: str, role: str) -> str:
        """The identifier of one online role's key."""
        return str(self.signer(repository, role).public_key.keyid)

    def public(self) -> JsonObject:
        """The public keys in the form that TUF root metadata holds, with their identifiers."""
        return {
            repository: {role: self._describe(repository, role) for role in roles}
            for repository, roles in ONLINE_ROLES.items()
        }

    def _describe(self, repository: str, role: str) -> JsonObject:
        key = self.signer(repository, role).public_key
        return {**key.to_dict(), "keyid": key.keyid}

    def _load(self, path: Path) -> CryptoSigner:
        with disk_errors(f"read the key {path.name}"):
            if not path.exists():
                make_folder(self._folder, 0o700)
                fresh = Ed25519PrivateKey.generate()
                create_file(path, fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), KEY_MODE)
            data = path.read_bytes()
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError):
            raise EdgeError("config.key-invalid", f"{path} is not a private key", "Restore it from a backup.") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise EdgeError("config.key-invalid", f"{path} is not an ed25519 key", "Restore it from a backup.")
        return CryptoSigner(key)
