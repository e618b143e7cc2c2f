"""The author's keys at the beginning of a registry: making them, setting up trust, and showing what there is.

Every flow may be cut anywhere and run again: what was made is durable before it is sent, the registry takes a document
it already has as done, and each step looks at what is published before it acts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloud_registry.client import RegistryClient
from edge_contract.delegation import CATALOGUE
from edge_contract.errors import EdgeError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object
from packager.files import disk_errors, write_durably
from packager.keystore import (
    CURRENT,
    DIRECTOR_ROOT,
    IMAGE_ROOT,
    IMAGE_TARGETS,
    KEY_ROLES,
    KeyFolder,
    KeyRing,
    Passphrase,
    is_role,
    public_key,
)
from packager.keyuri import Pin, import_public, no_pin
from packager.limits import EXPIRES_DAYS_DEFAULT, EXPIRES_DAYS_MAX, KEYRING_BYTES_MAX, KEYS_PER_ROLE_MAX
from packager.progress import Reporter
from packager.tufmake import (
    ROOT,
    TARGETS,
    RoleKeys,
    expiry,
    new_bins,
    new_list,
    new_root,
    new_targets,
    signed,
)
from packager.tufview import ImageReader, bins_of, read_root, root_file

PUBLIC_SCHEMA: Final = "lighterman.public-keys/1"
_NOTHING_PUBLISHED: Final = ("cloud.not-found", "artifact.not-found")


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """Which keys to make, and for how long their metadata stay valid.

    Attributes:
        counts: Keys to make by role.
        thresholds: Signatures needed by role.
        scheme: One of `packager.keystore.SCHEMES`; for keys in files.
        expires_days: Life of roots, targets and bins.
        uris: Keys on tokens or in key services, by role; they take the place of files.
        online: The same for the registry's own keys: `{repository, role, uri}` each.
    """

    counts: Mapping[str, int]
    thresholds: Mapping[str, int]
    scheme: str = "ed25519"
    expires_days: int = EXPIRES_DAYS_DEFAULT
    uris: Mapping[str, Sequence[str]] = field(default_factory=dict)
    online: Sequence[Mapping[str, str]] = ()

    def count(self, role: str) -> int:
        """How many keys a role gets."""
        return len(self.uris.get(role, ())) or self.counts[role]

    def check(self, roles: Iterable[str] = KEY_ROLES) -> None:
        """Refuse what could never be signed.

        Raises:
            EdgeError: `config.invalid`.
        """
        for role in roles:
            check_threshold(role, self.count(role), self.thresholds[role])
        check_days(self.expires_days)


def check_threshold(role: str, count: int, threshold: int) -> None:
    """Refuse a threshold that no set of keys can reach.

    Raises:
        EdgeError: `config.invalid`.
    """
    if not 1 <= threshold <= count <= KEYS_PER_ROLE_MAX:
        raise EdgeError(
            "config.invalid",
            f"{role}: {threshold} of {count} keys cannot be asked for",
            f"Use 1 to {KEYS_PER_ROLE_MAX} keys and a threshold not above their number.",
        )


def check_days(days: int) -> None:
    """Refuse a life that is none or too long.

    Raises:
        EdgeError: `config.invalid`.
    """
    if not 1 <= days <= EXPIRES_DAYS_MAX:
        raise EdgeError("config.invalid", f"metadata cannot live {days} days", f"Use 1 to {EXPIRES_DAYS_MAX}.")


# --- setting up ---


def set_up(client: RegistryClient, folder: Path, plan: KeyPlan, ring_of: "RingMaker", reporter: Reporter) -> JsonObject:
    """Make keys and both roots, and publish them with empty targets; `packager keys init`.

    Args:
        client: With a token that may set trust up.
        folder: Where the keys go; a folder left by a cut attempt is taken up again.
        plan: How many keys.
        ring_of: Opens the folder for signing.
        reporter: Shows progress.

    Returns:
        What `--json` prints.

    Raises:
        EdgeError: `cloud.conflict` when the registry trusts other keys already; `config.*`, `cloud.*`, `network.*`.
    """
    plan.check()
    trust = client.trust()
    pinned = {name: folder / root_file(name) for name in ("image", "director")}
    if not all(path.is_file() for path in pinned.values()):
        if trust.get("initialised"):
            raise EdgeError(
                "cloud.conflict",
                f"the registry has its roots already, and {folder} did not make them",
                "Use the folder of keys that set it up.",
            )
        _make_keys(folder, plan, ring_of, KEY_ROLES)
        if plan.online:
            trust = client.prepare_online_keys(plan.online)
    ring = ring_of(folder)
    if not all(path.is_file() for path in pinned.values()):
        _make_roots(ring, trust["online_keys"], plan)
    with disk_errors(folder):
        texts = {name: path.read_text(encoding="utf-8") for name, path in pinned.items()}
    if not trust.get("initialised"):
        client.submit_roots(image=texts["image"], director=texts["director"])
    is_new = _publish_empty_targets(client, ring, plan, reporter)
    return describe(ring.home) | {"published": is_new}


class RingMaker:
    """Opens folders of keys with the secrets the author gave. Called by one thread."""

    def __init__(self, ask: Passphrase, pin: Pin = no_pin) -> None:
        """Take the ways to ask for a pass phrase and for a token's PIN; each is asked for once."""
        self._ask = ask
        self._pin = pin

    def __call__(self, *folders: Path) -> KeyRing:
        """The ring of these folders."""
        return KeyRing([KeyFolder.open(folder) for folder in folders], self._ask, self._pin)

    def choose(self) -> str:
        """The pass phrase for new keys; empty for none."""
        return self._ask(True)

    def pin(self, label: str) -> str:
        """The PIN of the token with this label."""
        return self._pin(label)


def _make_keys(folder: Path, plan: KeyPlan, ring_of: RingMaker, roles: Iterable[str]) -> None:
    passphrase: str | None = None
    keys = KeyFolder.open(folder) if KeyFolder.exists(folder) else KeyFolder.create(folder, {})
    for role in roles:
        keys.thresholds.setdefault(role, plan.thresholds[role])
        for uri in plan.uris.get(role, ()):
            if uri not in {key.uri for key in keys.of_role(role)}:
                keys.adopt(role, CURRENT, uri, import_public(uri, ring_of.pin))
        missing = plan.count(role) - len(keys.of_role(role))
        if missing > 0:
            if passphrase is None:
                # One folder, one pass phrase: what is there already is encrypted by it.
                passphrase = ring_of(folder).passphrase_of_home() if keys.keys else ring_of.choose()
            keys.generate(role, missing, CURRENT, plan.scheme, passphrase)


def _author_keys(folder: KeyFolder, role: str) -> RoleKeys:
    return RoleKeys(tuple(key.key() for key in folder.of_role(role)), folder.thresholds[role])


def _make_roots(ring: KeyRing, online: JsonObject, plan: KeyPlan) -> None:
    home, expires = ring.home, expiry(plan.expires_days)
    authors = {
        "image": {ROOT: _author_keys(home, IMAGE_ROOT), TARGETS: _author_keys(home, IMAGE_TARGETS)},
        "director": {ROOT: _author_keys(home, DIRECTOR_ROOT)},
    }
    for name, author in authors.items():
        metadata = new_root(name, 1, expires, author, online.get(name, {}))
        text = signed(metadata, [(author[ROOT].keyids, author[ROOT].threshold)], ring, f"the {name} root")
        write_durably(home.folder / root_file(name), text.encode("utf-8"))


def _publish_empty_targets(client: RegistryClient, ring: KeyRing, plan: KeyPlan, reporter: Reporter) -> bool:
    reader = ImageReader(client, ring.home.folder)
    try:
        reader.view()
    except EdgeError as error:
        if error.code not in _NOTHING_PUBLISHED:
            raise
    else:
        return False
    keys, expires = _author_keys(ring.home, IMAGE_TARGETS), expiry(plan.expires_days)
    needs = [(keys.keyids, keys.threshold)]
    catalogue = new_bins(CATALOGUE, 1, expires, keys)
    files = {
        TARGETS: signed(new_targets(1, expires, keys), needs, ring, TARGETS),
        CATALOGUE: signed(catalogue, needs, ring, CATALOGUE),
    }
    bins = bins_of(catalogue.signed)
    with reporter.task("signing empty hash bins"):
        for name in () if bins is None else bins.get_roles():
            files[name] = signed(new_list(1, expires), needs, ring, name)
    client.submit_metadata(files)
    return True


# --- keys for others to trust ---


def make(folder: Path, role: str, plan: KeyPlan, ring_of: RingMaker) -> JsonObject:
    """Make keys of one role in a folder of their own, for others to introduce; `packager keys make`.

    Returns:
        What the file with the public halves says, and where it is (`public_file`).

    Raises:
        EdgeError: `config.*`, `device.*`.
    """
    plan.check((role,))
    _make_keys(folder, plan, ring_of, (role,))
    home = KeyFolder.open(folder)
    keys = [{"keyid": key.keyid, **key.public} for key in home.of_role(role)]
    document = {"schema": PUBLIC_SCHEMA, "role": role, "threshold": home.thresholds[role], "keys": keys}
    path = folder / f"{role}.public.json"
    write_durably(path, dump(document) + b"\n")
    return document | {"public_file": str(path)}


def read_public(path: Path) -> tuple[str, RoleKeys]:
    """The role and the public halves in a file that `make` wrote.

    Raises:
        EdgeError: `config.file-missing`, `config.key-invalid`.
    """
    if not path.is_file():
        raise EdgeError("config.file-missing", f"there is no file {path}", "Make it with `packager keys make`.")
    with disk_errors(path):
        data = path.read_bytes()
    try:
        fields = Fields(parse_object(data, str(path), KEYRING_BYTES_MAX), str(path), "config.key-invalid")
        fields.schema(PUBLIC_SCHEMA)
        role, threshold = fields.text("role"), fields.integer("threshold", low=1, high=KEYS_PER_ROLE_MAX)
        keys = tuple(public_key(item, str(path)) for item in fields.items("keys", KEYS_PER_ROLE_MAX, required=True))
        fields.close()
    except EdgeError as error:
        raise EdgeError("config.key-invalid", f"{path}: {error.detail}", "Ask for the file again.") from None
    if not is_role(role) or not threshold <= len(keys):
        raise EdgeError("config.key-invalid", f"{path}: {role!r} with {threshold} of {len(keys)} keys")
    return role, RoleKeys(keys, threshold)


# --- showing ---


def describe(folder: KeyFolder) -> JsonObject:
    """What a folder holds, without secrets; `packager keys list --json`."""
    roots: JsonObject = {}
    for name in ("image", "director"):
        path = folder.folder / root_file(name)
        if path.is_file():
            with disk_errors(path):
                root = read_root(path.read_bytes(), str(path))
            roots[name] = {"version": root.version, "expires": root.expires.isoformat()}
    return {
        "folder": str(folder.folder),
        "thresholds": folder.thresholds,
        "keys": [
            {"role": key.role, "keyid": key.keyid, "use": key.use, "uri": key.uri, "scheme": key.public.get("scheme")}
            for key in folder.keys
        ],
        "roots": roots,
    }
