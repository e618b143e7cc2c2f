"""The author's keys in the life of a registry: setting up trust, introducing new keys, renewing what expires.

Every flow may be cut anywhere and run again: what was made is durable before it is sent, the registry takes a document
it already has as done, and each step looks at what is published before it acts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloud_registry.client import RegistryClient
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from packager.files import disk_errors, write_durably
from packager.keystore import (
    CURRENT,
    DIRECTOR_ROOT,
    IMAGE_ROOT,
    IMAGE_TARGETS,
    KEY_ROLES,
    NEXT,
    KeyFolder,
    KeyRing,
    Passphrase,
)
from packager.limits import EXPIRES_DAYS_DEFAULT, EXPIRES_DAYS_MAX, KEYS_PER_ROLE_MAX
from packager.progress import Reporter
from packager.tufmake import (
    ROOT,
    TARGETS,
    RoleKeys,
    expiry,
    following_bin,
    following_root,
    keys_of,
    new_bin,
    new_root,
    new_targets,
    same_keys,
    signed,
)
from packager.tufview import ImageReader, View, read_root, root_file

_NOTHING_PUBLISHED: Final = ("cloud.not-found", "artifact.not-found")


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """How many keys of each kind, and for how long their metadata stay valid.

    Attributes:
        counts: Keys to make by role.
        thresholds: Signatures needed by role.
        scheme: One of `packager.keystore.SCHEMES`.
        expires_days: Life of roots, targets and bins.
    """

    counts: Mapping[str, int]
    thresholds: Mapping[str, int]
    scheme: str = "ed25519"
    expires_days: int = EXPIRES_DAYS_DEFAULT

    def check(self) -> None:
        """Refuse what could never be signed.

        Raises:
            EdgeError: `config.invalid`.
        """
        for role in KEY_ROLES:
            count, threshold = self.counts[role], self.thresholds[role]
            if not 1 <= threshold <= count <= KEYS_PER_ROLE_MAX:
                raise EdgeError(
                    "config.invalid",
                    f"{role}: {threshold} of {count} keys cannot be asked for",
                    f"Use 1 to {KEYS_PER_ROLE_MAX} keys and a threshold not above their number.",
                )
        check_days(self.expires_days)


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
        _make_keys(folder, plan, ring_of)
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
    """Opens folders of keys with the pass phrase the author gave. Called by one thread."""

    def __init__(self, ask: Passphrase) -> None:
        """Take the way to ask for a pass phrase; it is asked once."""
        self._ask = ask

    def __call__(self, *folders: Path) -> KeyRing:
        """The ring of these folders."""
        return KeyRing([KeyFolder.open(folder) for folder in folders], self._ask)

    def choose(self) -> str:
        """The pass phrase for new keys; empty for none."""
        return self._ask(True)


def _make_keys(folder: Path, plan: KeyPlan, ring_of: RingMaker) -> None:
    passphrase: str | None = None
    keys = KeyFolder.open(folder) if KeyFolder.exists(folder) else KeyFolder.create(folder, dict(plan.thresholds))
    for role in KEY_ROLES:
        missing = plan.counts[role] - len(keys.of_role(role))
        if missing > 0:
            passphrase = ring_of.choose() if passphrase is None else passphrase
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
    top = new_targets(1, expires, keys)
    files = {TARGETS: signed(top, needs, ring, TARGETS)}
    with reporter.task("signing empty hash bins"):
        for name in bin_names(keys):
            files[name] = signed(new_bin(expires), needs, ring, name)
    client.submit_metadata(files)
    return True


def bin_names(keys: RoleKeys) -> list[str]:
    """The names of all bins."""
    delegations = new_targets(1, expiry(1), keys).signed.delegations
    if delegations is None or delegations.succinct_roles is None:
        raise EdgeError("internal.bug", "new targets delegate to no bins")
    return list(delegations.succinct_roles.get_roles())


# --- new keys, and new life ---


def rotate(
    client: RegistryClient, ring: KeyRing, roles: Iterable[str], scheme: str, expires_days: int, reporter: Reporter
) -> JsonObject:
    """Replace the first folder's keys of some roles; `packager keys rotate`.

    Devices that look at any moment find metadata they can verify: a root that trusts old and new targets keys comes
    first, then everything signed by the new ones, then the root without the old ones.

    Args:
        client: With a token that may publish metadata.
        ring: Old keys; the first folder gets the new ones. Keys of other people in a role stay as they are.
        roles: Which of `KEY_ROLES`.
        scheme: Of the new keys.
        expires_days: Life of the new metadata.
        reporter: Shows progress.

    Raises:
        EdgeError: `trust.*`, `config.*`, `cloud.*`, `network.*`.
    """
    check_days(expires_days)
    home, chosen = ring.home, tuple(role for role in KEY_ROLES if role in set(roles))
    for role in chosen:
        if not home.of_role(role, (NEXT,)):
            home.generate(role, len(home.of_role(role)), NEXT, scheme, ring.passphrase_of_home())
    work = _Publication(client, ring, expires_days, reporter)
    if IMAGE_ROOT in chosen or IMAGE_TARGETS in chosen:
        work.image(frozenset(chosen))
    if DIRECTOR_ROOT in chosen:
        work.director(frozenset(chosen))
    home.turn(chosen)
    return describe(home) | {"rotated": list(chosen)}


def renew(client: RegistryClient, ring: KeyRing, expires_days: int, reporter: Reporter) -> JsonObject:
    """Sign roots, targets and every bin anew with a later expiry; `packager keys renew`.

    Raises:
        EdgeError: as `rotate`.
    """
    check_days(expires_days)
    work = _Publication(client, ring, expires_days, reporter)
    work.image(frozenset(), is_renewal=True)
    work.director(frozenset(), is_renewal=True)
    return describe(ring.home) | {"renewed": True}


class _Publication:
    """One run of new metadata."""

    def __init__(self, client: RegistryClient, ring: KeyRing, expires_days: int, reporter: Reporter) -> None:
        self._client = client
        self._ring = ring
        self._home = ring.home
        self._expires = expiry(expires_days)
        self._reporter = reporter
        self._reader = ImageReader(client, self._home.folder)

    def _wanted(self, now: RoleKeys, role: str, chosen: frozenset[str]) -> RoleKeys:
        """The keys of a role after the change: this folder's current ones give way to its next ones."""
        if role not in chosen:
            return now
        leaving = {key.keyid for key in self._home.of_role(role)}
        coming = tuple(key.key() for key in self._home.of_role(role, (NEXT,)))
        known = {key.keyid for key in coming}
        staying = tuple(key for key in now.keys if key.keyid not in leaving | known)
        return RoleKeys((*staying, *coming), now.threshold)

    def image(self, chosen: frozenset[str], is_renewal: bool = False) -> None:
        """Roots and targets of the image repository."""
        root = self._reader.root()
        roots = self._wanted(keys_of(root, ROOT), IMAGE_ROOT, chosen)
        targets = self._wanted(keys_of(root, TARGETS), IMAGE_TARGETS, chosen)
        old = keys_of(root, TARGETS)
        both = RoleKeys(tuple({key.keyid: key for key in (*old.keys, *targets.keys)}.values()), targets.threshold)
        if is_renewal or not same_keys(root.roles[ROOT], roots) or not set(targets.keyids) <= set(old.keyids):
            self._publish_root({ROOT: roots, TARGETS: both})
        view = self._reader.view(every_bin=True, allow_expired=True)
        if is_renewal or not same_keys(view.succinct, targets):
            self._publish_targets(view, targets)
        if not same_keys(self._reader.root().roles[TARGETS], targets):
            self._publish_root({ROOT: roots, TARGETS: targets})

    def _publish_root(self, author: Mapping[str, RoleKeys]) -> None:
        former = self._reader.root()
        metadata = following_root(former, self._expires, author)
        before = keys_of(former, ROOT)
        needs = [(before.keyids, before.threshold), (author[ROOT].keyids, author[ROOT].threshold)]
        self._client.submit_roots(image=signed(metadata, needs, self._ring, f"root {metadata.signed.version}"))
        # Reading it back verifies it as any device will, and pins it.
        self._reader.root()

    def _publish_targets(self, view: View, keys: RoleKeys) -> None:
        needs = [(keys.keyids, keys.threshold)]
        top = new_targets(view.targets.version + 1, self._expires, keys)
        files = {TARGETS: signed(top, needs, self._ring, TARGETS)}
        with self._reporter.task("signing all hash bins"):
            for name, content in view.bins.items():
                metadata = following_bin(content, self._expires)
                files[name] = signed(metadata, needs, self._ring, name)
        self._client.submit_metadata(files)
        self._reader.remember({name: view.versions[name] + 1 for name in files})

    def director(self, chosen: frozenset[str], is_renewal: bool = False) -> None:
        """The root of the director repository, which the author keeps a copy of."""
        path = self._home.folder / root_file("director")
        with disk_errors(path):
            former = read_root(path.read_bytes(), str(path))
        before = keys_of(former, ROOT)
        wanted = self._wanted(before, DIRECTOR_ROOT, chosen)
        draft = path.with_name(path.name + ".next")
        if not draft.is_file():
            if not is_renewal and same_keys(former.roles[ROOT], wanted):
                return
            metadata = following_root(former, self._expires, {ROOT: wanted})
            needs = [(before.keyids, before.threshold), (wanted.keyids, wanted.threshold)]
            text = signed(metadata, needs, self._ring, "the director root")
            write_durably(draft, text.encode("utf-8"))
        with disk_errors(draft):
            data = draft.read_bytes()
        self._client.submit_roots(director=data.decode("utf-8"))
        write_durably(path, data)
        draft.unlink()


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
