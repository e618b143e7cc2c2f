"""The online signing keys of the registry, in generations: which of them counts is what the current roots say.

Image repository: `snapshot` and `timestamp`. Director: `targets`, `snapshot` and `timestamp`. Root keys, and the keys
that sign the image repository's targets, stay with the authors and never come here.

A key is a PKCS#8 file that was made here (`image-snapshot.pem`, the next one `image-snapshot.1.pem`; encrypted where a
pass phrase is given), or a description `image-snapshot.1.json` of a key on a token or in a key service. A new
generation signs nothing until an author's root trusts it, and then signs at once, in every server process: nobody has
to switch anything over, so nothing can be half switched over.
"""

import fcntl
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, Signer

from cloud_registry.adapters.durable import create_file, disk_errors, make_folder
from cloud_registry.adapters.key_uri import REMOTE_SCHEMES, open_remote, public_of, secret
from cloud_registry.limits import KEY_GENERATIONS_MAX
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object
from edge_contract.limits import MIB

IMAGE: Final = "image"
DIRECTOR: Final = "director"
ONLINE_ROLES: Final = {IMAGE: ("snapshot", "timestamp"), DIRECTOR: ("targets", "snapshot", "timestamp")}
KEY_MODE: Final = 0o600
SCHEMA: Final = "lighterman.online-key/1"
_PASSPHRASE: Final = "ONLINE_PASSPHRASE"
_FILE: Final = re.compile(r"(?P<name>[a-z]+-[a-z]+)(?:\.(?P<number>[1-9][0-9]{0,5}))?\.(?P<form>pem|json)")


@dataclass(frozen=True, slots=True)
class OnlineKey:
    """One generation of one role's key.

    Attributes:
        public: Public half.
        signer: Signs; for a key on a token or in a key service it speaks to that.
    """

    public: Key
    signer: Signer

    def describe(self) -> JsonObject:
        """The public half as root metadata writes it, with its identifier."""
        return {**self.public.to_dict(), "keyid": self.public.keyid}


class OnlineKeys:
    """Loads the keys, and makes those that are missing. Any thread; several processes may share the folder."""

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        """Name the folder; it is created with its first key.

        Args:
            folder: For example `<data>/keys`, 0700.
            environ: Where `LIGHTERMAN_ONLINE_PASSPHRASE`, `LIGHTERMAN_ONLINE_PIN` and the same with `_FILE` are looked
                up; the process's environment by default.
        """
        self._folder = folder
        self._environ = os.environ if environ is None else environ
        self._lock = threading.Lock()
        self._keys: dict[str, OnlineKey] = {}  # by file name

    def signer(self, repository: str, role: str) -> Signer:
        """The signer of the newest generation of one role, trusted by a root or not.

        Args:
            repository: `image` or `director`.
            role: One of `ONLINE_ROLES[repository]`.

        Raises:
            EdgeError: `config.key-invalid`, `config.dependency-missing`, `device.disk-error`.
        """
        return self.generations(repository, role)[-1].signer

    def generations(self, repository: str, role: str) -> list[OnlineKey]:
        """Every generation of a role's key, the newest last; the first is made when there is none.

        Raises:
            EdgeError: as `signer`.
        """
        with self._lock:
            names = self._names(repository, role)
            if not names:
                self._create(repository, role, 0)
                names = self._names(repository, role)
            return [self._known(name) for name in names]

    def trusted(self, repository: str, role: str, keyids: Collection[str]) -> list[OnlineKey]:
        """The generations that are among these identifiers, the newest last.

        Raises:
            EdgeError: as `signer`.
        """
        return [key for key in self.generations(repository, role) if key.public.keyid in keyids]

    def own_keyids(self) -> frozenset[str]:
        """The identifiers of all keys of this server.

        Raises:
            EdgeError: as `signer`.
        """
        return frozenset(
            key.public.keyid for repository, role in every_role() for key in self.generations(repository, role)
        )

    def public(self) -> JsonObject:
        """The newest public keys in the form that TUF root metadata holds, with their identifiers."""
        return {
            repository: {role: self.generations(repository, role)[-1].describe() for role in roles}
            for repository, roles in ONLINE_ROLES.items()
        }

    def prepare(self, repository: str, role: str, is_used: Collection[str], uri: str, is_afresh: bool) -> OnlineKey:
        """The generation that the next root is to trust; made now, unless an unused one waits already.

        Args:
            repository: `image` or `director`.
            role: One of `ONLINE_ROLES[repository]`.
            is_used: Identifiers that a root trusts; a newest generation among them is not the next.
            uri: Of a key on a token or in a key service; empty for a new file.
            is_afresh: Make one even if an unused one waits: that may have been stolen too.

        Raises:
            EdgeError: `config.invalid` for a URI of another kind or too many generations, and as `signer`.
        """
        newest = self.generations(repository, role)[-1]
        with self._lock, self._exclusive():
            names = self._names(repository, role)
            newest = self._known(names[-1])
            is_waiting = newest.public.keyid not in is_used
            if is_waiting and not is_afresh and (not uri or self._uri(names[-1]) == uri):
                return newest
            if len(names) >= KEY_GENERATIONS_MAX:
                why = f"{self._folder} holds {len(names)} generations of {repository}-{role}"
                raise EdgeError("config.invalid", why, "Move the oldest files away; no root trusts them any more.")
            self._create(repository, role, _number(names[-1]) + 1, uri)
            return self._known(self._names(repository, role)[-1])

    # --- inside; the lock is held ---

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keeps other processes from making the same generation."""
        with disk_errors("lock the folder of keys"):
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _names(self, repository: str, role: str) -> list[str]:
        if not self._folder.is_dir():
            return []
        with disk_errors("list the keys"):
            matches = [_FILE.fullmatch(name) for name in os.listdir(self._folder)]
        own = [match[0] for match in matches if match is not None and match["name"] == f"{repository}-{role}"]
        return sorted(own, key=_number)

    def _create(self, repository: str, role: str, number: int, uri: str = "") -> None:
        stem = f"{repository}-{role}" + (f".{number}" if number else "")
        if uri:
            public = public_of(uri, self._environ)
            document = {"schema": SCHEMA, "uri": uri, "keyid": public.keyid, "public": public.to_dict()}
            name, data = f"{stem}.json", dump(document)
        else:
            name, data = f"{stem}.pem", _new_private(secret(self._environ, _PASSPHRASE))
        with disk_errors(f"write the key {name}"):
            make_folder(self._folder, 0o700)
            create_file(self._folder / name, data, KEY_MODE)

    def _known(self, name: str) -> OnlineKey:
        if name not in self._keys:
            path = self._folder / name
            with disk_errors(f"read the key {name}"):
                data = path.read_bytes()
            self._keys[name] = _remote(path, data, self._environ) if path.suffix == ".json" else self._file(path, data)
        return self._keys[name]

    def _file(self, path: Path, data: bytes) -> OnlineKey:
        is_encrypted = b"ENCRYPTED" in data
        passphrase = secret(self._environ, _PASSPHRASE) if is_encrypted else ""
        if is_encrypted and not passphrase:
            hint = "Set LIGHTERMAN_ONLINE_PASSPHRASE, or LIGHTERMAN_ONLINE_PASSPHRASE_FILE."
            raise EdgeError("config.key-invalid", f"{path} is encrypted and no pass phrase was given", hint)
        try:
            key = load_pem_private_key(data, passphrase.encode() or None)
        except (ValueError, TypeError):
            why = "is not a private key" + (", or its pass phrase is another one" if is_encrypted else "")
            raise EdgeError("config.key-invalid", f"{path} {why}", "Restore it from a backup.") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise EdgeError("config.key-invalid", f"{path} is not an ed25519 key", "Restore it from a backup.")
        signer = CryptoSigner(key)
        return OnlineKey(signer.public_key, signer)

    def _uri(self, name: str) -> str:
        if not name.endswith(".json"):
            return ""
        content = parse_object((self._folder / name).read_bytes(), name, MIB)
        return str(content.get("uri"))


def every_role() -> Iterator[tuple[str, str]]:
    """Every online role with its repository."""
    for repository, roles in ONLINE_ROLES.items():
        for role in roles:
            yield repository, role


def _remote(path: Path, data: bytes, environ: Mapping[str, str]) -> OnlineKey:
    try:
        fields = Fields(parse_object(data, str(path), MIB), str(path), "config.key-invalid")
        fields.schema(SCHEMA)
        uri, keyid, public = fields.text("uri"), fields.text("keyid"), fields.take("public")
        fields.close()
        key = Key.from_dict(keyid, deepcopy(public))  # it takes the dictionary apart
    except (ContractError, KeyError, TypeError, ValueError) as error:
        raise EdgeError("config.key-invalid", f"{path}: {error}", "Restore it from a backup.") from None
    if uri.partition(":")[0] not in REMOTE_SCHEMES:
        raise EdgeError("config.key-invalid", f"{path}: the URI {uri!r} is of no kind that a server may use")
    return OnlineKey(key, open_remote(uri, key, environ))


def _new_private(passphrase: str) -> bytes:
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase:
        encryption = BestAvailableEncryption(passphrase.encode())
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _number(name: str) -> int:
    match = _FILE.fullmatch(name)
    return int(match["number"] or 0) if match is not None else 0
