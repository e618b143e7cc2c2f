"""The author's keys: a folder with `keys.json` (public halves, what each is for) and one file for each private half.

A private key is named by a URI and used through securesystemslib, so that a file may give way to a PKCS#11 token or a
cloud's key service without a change here: `pem:NAME` is a PKCS#8 file in the folder, encrypted unless its owner
insisted otherwise; every other scheme is `packager.keyuri`'s. Private keys are read here and nowhere else, and never
leave this process.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from edge_contract.delegation import model_of
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object
from packager.files import disk_errors, sync_folder, write_durably
from packager.keyuri import Pin, no_pin, open_signer
from packager.limits import KEY_FILE_BYTES_MAX, KEYRING_BYTES_MAX, KEYS_MAX, KEYS_PER_ROLE_MAX

SCHEMA: Final = "lighterman.keys/1"
KEYS_FILE: Final = "keys.json"
IMAGE_ROOT: Final = "image-root"
IMAGE_TARGETS: Final = "image-targets"
DIRECTOR_ROOT: Final = "director-root"
KEY_ROLES: Final = (IMAGE_ROOT, IMAGE_TARGETS, DIRECTOR_ROOT)
ONLINE: Final = "online"
"""Stands for the registry's own keys, which no folder holds."""
SCHEMES: Final = ("ed25519", "ecdsa-p256")
CURRENT, NEXT, RETIRED = "current", "next", "retired"
_USES: Final = (CURRENT, NEXT, RETIRED)

Passphrase = Callable[[bool], str]
"""Gives the pass phrase; the flag says that a new one is being chosen. Empty for none."""


@dataclass(frozen=True, slots=True)
class AuthorKey:
    """One key of an author.

    Attributes:
        role: One of `KEY_ROLES`, or `model.<name>` for a key that signs the bundles of one model.
        keyid: Identifier in TUF metadata.
        public: Public half as TUF writes it.
        uri: Where the private half is.
        use: `current`, `next` (being introduced) or `retired`.
    """

    role: str
    keyid: str
    public: JsonObject
    uri: str
    use: str

    def key(self) -> Key:
        """The public half for the library."""
        return _public(self.keyid, self.public)

    def to_json(self) -> JsonObject:
        """The form in `keys.json`."""
        return {"role": self.role, "keyid": self.keyid, "public": self.public, "uri": self.uri, "use": self.use}


class KeyFolder:
    """One folder of keys. Used by one thread."""

    def __init__(
        self,
        folder: Path,
        keys: Sequence[AuthorKey],
        thresholds: Mapping[str, int],
        next_thresholds: Mapping[str, int] | None = None,
    ) -> None:
        """Hold what `keys.json` says; use `open` or `create`."""
        self.folder = folder
        self.keys = tuple(keys)
        self.thresholds = dict(thresholds)
        self.next_thresholds = dict(next_thresholds or {})

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Whether a folder has keys."""
        return (folder / KEYS_FILE).is_file()

    @classmethod
    def open(cls, folder: Path) -> "KeyFolder":
        """Read a folder of keys; no private key is touched.

        Raises:
            EdgeError: `config.file-missing`, `config.key-invalid`.
        """
        path = folder / KEYS_FILE
        if not path.is_file():
            raise EdgeError("config.file-missing", f"{folder} holds no keys", "Make some with `packager keys init`.")
        with disk_errors(path):
            data = path.read_bytes()
        try:
            fields = Fields(parse_object(data, str(path), KEYRING_BYTES_MAX), str(path), "config.key-invalid")
            fields.schema(SCHEMA)
            keys = [_key_from_json(item) for item in fields.items("keys", KEYS_MAX)]
            thresholds = _thresholds(fields.take("thresholds"))
            next_thresholds = _thresholds(fields.take("next_thresholds", {}))
            fields.close()
        except ContractError as error:
            raise EdgeError("config.key-invalid", f"{path}: {error.detail}", "Restore it from a backup.") from None
        return cls(folder, keys, thresholds, next_thresholds)

    @classmethod
    def create(cls, folder: Path, thresholds: Mapping[str, int]) -> "KeyFolder":
        """Make an empty folder of keys, readable by its owner alone.

        Raises:
            EdgeError: `cloud.conflict` when it has keys, `device.*`.
        """
        if cls.exists(folder):
            raise EdgeError("cloud.conflict", f"{folder} holds keys already", "Use them, or name another folder.")
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        return cls(folder, (), thresholds)

    def save(self) -> None:
        """Write `keys.json` durably."""
        document = {
            "schema": SCHEMA,
            "thresholds": self.thresholds,
            "next_thresholds": self.next_thresholds,
            "keys": [key.to_json() for key in self.keys],
        }
        write_durably(self.folder / KEYS_FILE, dump(document) + b"\n", 0o600)

    def of_role(self, role: str, uses: Iterable[str] = (CURRENT,)) -> tuple[AuthorKey, ...]:
        """Keys of a role, in the order they were made."""
        wanted = frozenset(uses)
        return tuple(key for key in self.keys if key.role == role and key.use in wanted)

    def generate(self, role: str, count: int, use: str, scheme: str, passphrase: str) -> None:
        """Make new keys; their files are durable before `keys.json` names them.

        Args:
            role: As in `AuthorKey`.
            count: How many.
            use: `current` or `next`.
            scheme: One of `SCHEMES`.
            passphrase: Encrypts the files; empty writes them as they are.

        Raises:
            EdgeError: `config.invalid`, `device.*`.
        """
        if scheme not in SCHEMES:
            raise EdgeError("config.invalid", f"{scheme!r} is no scheme for keys", f"Known: {', '.join(SCHEMES)}.")
        made = []
        for _ in range(count):
            signer = CryptoSigner.generate_ed25519() if scheme == "ed25519" else CryptoSigner.generate_ecdsa()
            public = signer.public_key
            name = f"{role}-{public.keyid[:8]}.pem"
            self._write_private(name, signer, passphrase)
            made.append(AuthorKey(role, public.keyid, public.to_dict(), f"pem:{name}", use))
        sync_folder(self.folder)
        self.keys = (*self.keys, *made)
        self.save()

    def adopt(self, role: str, use: str, uri: str, public: Key) -> None:
        """Note a key that is on a token or in a key service."""
        if any(key.keyid == public.keyid for key in self.keys):
            why = f"{self.folder} has the key {public.keyid[:12]} already"
            raise EdgeError("config.invalid", why, "A key has one role; make another one.")
        self.keys = (*self.keys, AuthorKey(role, public.keyid, public.to_dict(), uri, use))
        self.save()

    def _write_private(self, name: str, signer: CryptoSigner, passphrase: str) -> None:
        encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
        key = load_pem_private_key(signer.private_bytes, None)
        write_durably(self.folder / name, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), 0o600)

    def turn(self, roles: Iterable[str], is_retiring: bool = True) -> None:
        """Make the next keys and thresholds of these roles current; the current keys retire unless told otherwise."""
        wanted = frozenset(roles)
        follow = {CURRENT: RETIRED if is_retiring else CURRENT, NEXT: CURRENT}
        self.thresholds |= {role: self.next_thresholds.pop(role) for role in wanted & set(self.next_thresholds)}
        self.keys = tuple(
            replace(key, use=follow.get(key.use, key.use)) if key.role in wanted else key for key in self.keys
        )
        self.save()


class KeyRing:
    """Finds signers for key identifiers among several folders. Used by one thread; holds private keys in memory."""

    def __init__(self, folders: Sequence[KeyFolder], passphrase: Passphrase, pin: Pin = no_pin) -> None:
        """Use these folders; secrets are asked for when the first key needs them.

        Args:
            folders: One or more; the first also keeps what was verified.
            passphrase: Of encrypted files; asked for once.
            pin: Of tokens; asked for once a token.
        """
        self.folders = tuple(folders)
        self._ask = passphrase
        self._ask_pin = pin
        self._passphrase: str | None = None
        self._pins: dict[str, str] = {}
        self._signers: dict[str, Signer] = {}

    @property
    def home(self) -> KeyFolder:
        """The first folder."""
        return self.folders[0]

    def knows(self, keyids: Iterable[str]) -> bool:
        """Whether a folder has one of these keys."""
        return not {key.keyid for folder in self.folders for key in folder.keys}.isdisjoint(keyids)

    def signers(self, keyids: Iterable[str], threshold: int, what: str) -> list[Signer]:
        """A signer for every identifier that a folder has a usable key for.

        Raises:
            EdgeError: `trust.signature-invalid` when the folders know fewer than the threshold; `config.*` when so many
                of those they know cannot be used.
        """
        known = {key.keyid: (folder, key) for folder in self.folders for key in folder.keys}
        found = [known[keyid] for keyid in keyids if keyid in known]
        usable: list[Signer] = []
        troubles: list[EdgeError] = []
        for folder, key in found:
            try:
                usable.append(self._signer(folder, key))
            except EdgeError as error:
                troubles.append(error)
        if len(usable) >= threshold:
            return usable
        if troubles:
            raise troubles[0]
        raise too_few_keys(what, threshold, len(found))

    def require(self, keyids: Iterable[str], threshold: int, what: str) -> None:
        """Require that the folders know enough of these keys, without touching any.

        Raises:
            EdgeError: `trust.signature-invalid`.
        """
        known = {key.keyid for folder in self.folders for key in folder.keys} & set(keyids)
        if len(known) < threshold:
            raise too_few_keys(what, threshold, len(known))

    def _signer(self, folder: KeyFolder, key: AuthorKey) -> Signer:
        if key.keyid not in self._signers:
            scheme, _, rest = key.uri.partition(":")
            if scheme == "pem":
                self._signers[key.keyid] = self._from_file(folder.folder / rest, key)
            else:
                self._signers[key.keyid] = open_signer(key.uri, key.key(), self.pin)
        return self._signers[key.keyid]

    def pin(self, label: str) -> str:
        """The PIN of the token with this label."""
        if label not in self._pins:
            self._pins[label] = self._ask_pin(label)
        return self._pins[label]

    def _from_file(self, path: Path, key: AuthorKey) -> Signer:
        if path.parent.resolve() != path.resolve().parent:
            raise EdgeError("config.key-invalid", f"{path} is not in its folder")
        with disk_errors(path), path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o077
            data = file.read(KEY_FILE_BYTES_MAX)
        if mode:
            raise EdgeError("config.key-invalid", f"{path} can be read by others", f"Run: chmod 600 {path}")
        is_encrypted = b"ENCRYPTED" in data
        passphrase = self._secret().encode() if is_encrypted else None
        try:
            private = load_pem_private_key(data, passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            why = "the pass phrase is wrong, or the file is damaged" if is_encrypted else "the file is damaged"
            raise EdgeError("config.key-invalid", f"{path} cannot be read: {why}") from None
        public = key.key()
        if not isinstance(public, SSlibKey):
            raise EdgeError("config.key-invalid", f"{path} is of a kind that a file cannot hold")
        return CryptoSigner(private, public)

    def passphrase_of_home(self) -> str:
        """The pass phrase for new keys in the first folder: that of its files, none where they have none.

        A folder without files gets a new one.
        """
        files = [key for key in self.home.keys if key.use == CURRENT and key.uri.startswith("pem:")]
        for key in files:
            path = self.home.folder / key.uri.removeprefix("pem:")
            if path.is_file() and b"ENCRYPTED" in path.read_bytes()[:KEY_FILE_BYTES_MAX]:
                self._signer(self.home, key)  # a mistyped pass phrase shows itself here, before it encrypts anything
                return self._secret()
        return "" if files else self._ask(True)

    def _secret(self) -> str:
        if self._passphrase is None:
            self._passphrase = self._ask(False)
        return self._passphrase


def too_few_keys(what: str, threshold: int, count: int) -> EdgeError:
    """The error of a document that cannot be signed."""
    return EdgeError(
        "trust.signature-invalid",
        f"{what} needs {threshold} signatures, and the keys at hand can give {count}",
        "Name every folder of keys: --keys DIR --keys DIR.",
    )


def is_role(role: str) -> bool:
    """Whether a folder may hold keys of a role."""
    return role in KEY_ROLES or model_of(role) is not None


def _thresholds(value: Any) -> dict[str, int]:
    numbers = Fields(value, "thresholds", "config.key-invalid")
    names = [name for name in value if is_role(name)]
    thresholds = {name: numbers.integer(name, low=1, high=KEYS_PER_ROLE_MAX) for name in names}
    numbers.close()
    return thresholds


def _key_from_json(value: Any) -> AuthorKey:
    fields = Fields(value, "key", "config.key-invalid")
    role, use, uri = fields.text("role"), fields.text("use"), fields.text("uri")
    keyid, public = fields.text("keyid", chars_max=256), fields.take("public")
    fields.close()
    if not is_role(role) or use not in _USES or not isinstance(public, dict):
        raise ContractError("config.key-invalid", f"the key {keyid[:16]} has an unknown role, use or form")
    if uri.startswith("pem:") and ("/" in uri or not uri.endswith(".pem")):
        raise ContractError("config.key-invalid", f"{uri!r} is not a file in the folder")
    _public(keyid, public)
    return AuthorKey(role, keyid, public, uri, use)


def _public(keyid: str, public: JsonObject) -> Key:
    try:
        return Key.from_dict(keyid, deepcopy(public))  # it takes the dictionary apart
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError("config.key-invalid", f"the public half of {keyid[:16]} cannot be read: {error}") from None


def public_key(described: JsonObject, what: str) -> Key:
    """A key from its description with `keyid`, as the registry lists its own.

    Raises:
        EdgeError: `trust.metadata-invalid`.
    """
    content = dict(described)
    keyid = content.pop("keyid", None)
    try:
        if not isinstance(keyid, str):
            raise ContractError("config.key-invalid", "it has no identifier")
        return _public(keyid, content)
    except ContractError as error:
        raise EdgeError("trust.metadata-invalid", f"{what}: {error.detail}") from None
