"""New keys and a later end for a registry that is in use, in steps that devices can follow at any moment.

A run may be cut anywhere and repeated: new keys are durable as `next` before anything is sent, and each step looks at
what is published before it acts. Root and top-level targets keys change in three steps, because roots are not in the
snapshot: a root that trusts old and new keys, everything signed by the new ones, a root without the old ones. Keys of
the registry itself need one root: the registry signs by both until every device can know it. Keys of a model need none,
because its delegation and its list change in one submission.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Targets

from cloud_registry.client import RegistryClient
from edge_contract.delegation import CATALOGUE, delegator_of, model_of, model_role
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from packager.keys import check_days, check_threshold, describe
from packager.keystore import DIRECTOR_ROOT, IMAGE_ROOT, IMAGE_TARGETS, KEY_ROLES, NEXT, ONLINE, KeyRing, public_key
from packager.keyuri import import_public
from packager.limits import EXPIRES_DAYS_DEFAULT
from packager.progress import Reporter
from packager.tufmake import (
    ONLINE_ROLES,
    ROOT,
    TARGETS,
    RoleKeys,
    expiry,
    following_root,
    keys_of,
    new_bins,
    new_list,
    new_targets,
    same_keys,
    signed,
)
from packager.tufview import ImageReader, RootReader, View, bins_of

ALL_ROLES: Final = (*KEY_ROLES, ONLINE)


@dataclass(frozen=True, slots=True)
class Change:
    """What to replace, and by what.

    Attributes:
        roles: Roles of keys: `KEY_ROLES`, `online`, `model.<name>`.
        scheme: Of new keys in files.
        expires_days: Life of what gets signed.
        count: How many new keys a role gets; as many as the folder had when none.
        threshold: Signatures that the roles need from now on; as before when none.
        uris: New keys on tokens or in key services, by role; they take the place of files.
        is_keeping: Trust this folder's own keys further, beside what is added.
        dropped: Identifiers, or their beginnings, of keys to trust no longer.
        public: Keys of other people to trust from now on, by role.
        online: New keys of the registry by URI: `{repository, role, uri}` each.
        is_afresh: New keys of the registry even if unused ones wait.
    """

    roles: Sequence[str]
    scheme: str = "ed25519"
    expires_days: int = EXPIRES_DAYS_DEFAULT
    count: int | None = None
    threshold: int | None = None
    uris: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_keeping: bool = False
    dropped: Sequence[str] = ()
    public: Mapping[str, RoleKeys] = field(default_factory=dict)
    online: Sequence[Mapping[str, str]] = ()
    is_afresh: bool = False


def rotate(client: RegistryClient, ring: KeyRing, change: Change, reporter: Reporter) -> JsonObject:
    """Replace keys; `packager keys rotate`.

    Args:
        client: With a token that may publish metadata; for online keys, an admin's.
        ring: Old keys; the first folder gets the new ones. Keys of other people in a role stay unless dropped.
        change: What to replace.
        reporter: Shows progress.

    Raises:
        EdgeError: `trust.*`, `config.*`, `cloud.*`, `network.*`.
    """
    check_days(change.expires_days)
    home = ring.home
    chosen = tuple(role for role in dict.fromkeys(change.roles) if role != ONLINE)
    for role in chosen:
        if change.threshold is not None:
            home.next_thresholds[role] = change.threshold
            home.save()
        is_adding = change.count is not None or role in change.uris
        if (is_adding or not change.is_keeping) and not home.of_role(role, (NEXT,)):
            _make_next(ring, role, change)
    online = _next_online(client, change) if ONLINE in change.roles else {}
    work = _Publication(client, ring, change, reporter)
    if set(chosen) - {DIRECTOR_ROOT} or "image" in online:
        work.image(chosen, online.get("image", {}))
    if DIRECTOR_ROOT in chosen or "director" in online:
        work.director(chosen, online.get("director", {}))
    home.turn(chosen, is_retiring=not change.is_keeping)
    return describe(home) | {"rotated": list(change.roles)}


def renew(client: RegistryClient, ring: KeyRing, expires_days: int, reporter: Reporter) -> JsonObject:
    """Sign everything anew with a later end that the keys at hand may sign; `packager keys renew`.

    Returns:
        What `--json` prints; `left` names what has keys of others only.

    Raises:
        EdgeError: as `rotate`; `config.invalid` when there is nothing that these keys may sign.
    """
    check_days(expires_days)
    work = _Publication(client, ring, Change((), expires_days=expires_days), reporter)
    work.image((), {}, is_renewal=True)
    work.director((), {}, is_renewal=True)
    if not work.done:
        raise EdgeError("config.invalid", "these keys may sign nothing that is published", "Name other folders.")
    return describe(ring.home) | {"renewed": sorted(work.done), "left": sorted(work.left)}


def _make_next(ring: KeyRing, role: str, change: Change) -> None:
    home = ring.home
    if role in change.uris:
        for uri in change.uris[role]:
            home.adopt(role, NEXT, uri, import_public(uri, ring.pin))
        return
    count = len(home.of_role(role)) if change.count is None else change.count
    if count == 0 and role not in change.public:
        raise EdgeError(
            "config.invalid",
            f"{home.folder} holds no {role} key that could be replaced",
            "Name the folder that does first, or say how many new keys with --count N.",
        )
    home.generate(role, count, NEXT, change.scheme, ring.passphrase_of_home())


def _next_online(client: RegistryClient, change: Change) -> dict[str, dict[str, Key]]:
    summary = client.prepare_online_keys(change.online, change.is_afresh)
    waiting = summary.get("next_online_keys", {})
    found: dict[str, dict[str, Key]] = {}
    for repository, roles in waiting.items():
        for role, described in roles.items():
            if role in ONLINE_ROLES.get(repository, ()):
                key = public_key(described, f"the registry's next {role} key")
                found.setdefault(repository, {})[role] = key
    return found


class _Publication:
    """One run of new metadata."""

    def __init__(self, client: RegistryClient, ring: KeyRing, change: Change, reporter: Reporter) -> None:
        self.done: set[str] = set()
        self.left: set[str] = set()
        self._client = client
        self._ring = ring
        self._home = ring.home
        self._change = change
        self._expires = expiry(change.expires_days)
        self._reporter = reporter
        self._reader = ImageReader(client, self._home.folder)
        self._director = RootReader(client, self._home.folder, "director")

    def _wanted(self, now: RoleKeys, role: str, chosen: Sequence[str]) -> RoleKeys:
        """The keys of a role after the change: this folder's current ones give way to its next ones."""
        if role not in chosen:
            return now
        change = self._change
        own = () if change.is_keeping else self._home.of_role(role)
        leaving = {key.keyid for key in own}
        leaving |= {key.keyid for key in now.keys for start in change.dropped if key.keyid.startswith(start)}
        others = change.public[role].keys if role in change.public else ()
        coming = {key.keyid: key for key in (*(item.key() for item in self._home.of_role(role, (NEXT,))), *others)}
        staying = [key for key in now.keys if key.keyid not in leaving and key.keyid not in coming]
        keys = (*staying, *coming.values())
        threshold = self._home.next_thresholds.get(role, now.threshold)
        check_threshold(role, len(keys), threshold)
        return RoleKeys(keys, threshold)

    # --- roots ---

    def image(self, chosen: Sequence[str], online: Mapping[str, Key], is_renewal: bool = False) -> None:
        """Roots and targets of the image repository."""
        root = self._reader.root()
        is_signer = not is_renewal or self._may_sign(keys_of(root, ROOT), "image root")
        roots = self._wanted(keys_of(root, ROOT), IMAGE_ROOT, chosen)
        targets = self._wanted(keys_of(root, TARGETS), IMAGE_TARGETS, chosen)
        old = keys_of(root, TARGETS)
        both = RoleKeys(tuple({key.keyid: key for key in (*old.keys, *targets.keys)}.values()), targets.threshold)
        if (
            (is_renewal and is_signer)
            or not same_keys(root.roles[ROOT], roots)
            or not set(targets.keyids) <= set(old.keyids)
            or any(not _is_only_key(root, role, key) for role, key in online.items())
        ):
            self._publish_root(self._reader, "image", {ROOT: roots, TARGETS: both}, online)
        self._targets_of_all_levels(targets, chosen, is_renewal)
        if not same_keys(self._reader.root().roles[TARGETS], targets):
            self._publish_root(self._reader, "image", {ROOT: roots, TARGETS: targets}, {})

    def director(self, chosen: Sequence[str], online: Mapping[str, Key], is_renewal: bool = False) -> None:
        """The root of the director repository."""
        if is_renewal and not self._director.is_pinned:
            return  # the folder of somebody who signs bundles alone
        former = self._director.root()
        wanted = self._wanted(keys_of(former, ROOT), DIRECTOR_ROOT, chosen)
        if is_renewal and not self._may_sign(wanted, "director root"):
            return
        is_same = same_keys(former.roles[ROOT], wanted)
        if is_renewal or not is_same or any(not _is_only_key(former, role, key) for role, key in online.items()):
            self._publish_root(self._director, "director", {ROOT: wanted}, online)

    def _publish_root(
        self,
        reader: ImageReader | RootReader,
        repository: str,
        author: Mapping[str, RoleKeys],
        online: Mapping[str, Key],
    ) -> None:
        former = reader.root()
        metadata = following_root(former, self._expires, author, online)
        before = keys_of(former, ROOT)
        needs = [(before.keyids, before.threshold), (author[ROOT].keyids, author[ROOT].threshold)]
        text = signed(metadata, needs, self._ring, f"{repository} root {metadata.signed.version}")
        if repository == "image":
            self._client.submit_roots(image=text)
        else:
            self._client.submit_roots(director=text)
        # Reading it back verifies it as any device will, and pins it.
        reader.root()

    # --- targets ---

    def _targets_of_all_levels(self, targets: RoleKeys, chosen: Sequence[str], is_renewal: bool) -> None:
        view = self._reader.view(is_whole=True, allow_expired=True)
        before = view.keys_of(CATALOGUE)
        models = {model: self._wanted(keys, model_role(model), chosen) for model, keys in view.models.items()}
        unknown = sorted({model_of(role) for role in chosen} - set(models) - {None}, key=str)
        if unknown:
            why = f"the model {unknown[0]!r} has no keys of its own"
            raise EdgeError("config.invalid", why, f"Give it some: packager keys delegate {unknown[0]}.")
        is_whole = not _are_same(before, targets) or (is_renewal and self._may_sign(targets, "targets"))
        changed = {model for model, keys in models.items() if not _are_same(view.models[model], keys)}
        if is_renewal:
            changed |= {model for model, keys in models.items() if self._may_sign(keys, model_role(model))}
        files: dict[str, str] = {}
        with self._reporter.task("signing every list"):
            if is_whole or any(not _are_same(view.models[model], models[model]) for model in changed):
                top = new_targets(view.next_version(TARGETS), self._expires, targets, models)
                files[TARGETS] = signed(top, [(targets.keyids, targets.threshold)], self._ring, TARGETS)
            if is_whole:
                files |= self._signed_below(view, CATALOGUE, targets)
            for model in sorted(changed):
                if model_role(model) in view.roles:
                    files |= self._signed_below(view, model_role(model), models[model])
        if files:
            self._client.submit_metadata(files)
            self._reader.remember({name: view.next_version(name) for name in files})

    def _signed_below(self, view: View, role: str, keys: RoleKeys) -> dict[str, str]:
        """The next version of a role and its bins, with these keys and the same content."""
        needs = [(keys.keyids, keys.threshold)]
        content = view.roles[role]
        bins = bins_of(content)
        following: Metadata[Targets]
        if bins is None:
            following = new_list(view.next_version(role), self._expires, content.targets)
        else:
            following = new_bins(role, view.next_version(role), self._expires, keys, bins.bit_length)
        files = {role: signed(following, needs, self._ring, role)}
        for name, listed in view.roles.items():
            if delegator_of(name) == role:
                metadata = new_list(view.next_version(name), self._expires, listed.targets)
                files[name] = signed(metadata, needs, self._ring, name)
        return files

    def _may_sign(self, keys: RoleKeys, what: str) -> bool:
        is_ours = self._ring.knows(keys.keyids)
        (self.done if is_ours else self.left).add(what)
        return is_ours


def _is_only_key(root: Root, role: str, key: Key) -> bool:
    return list(root.roles[role].keyids) == [key.keyid]


def _are_same(one: RoleKeys, other: RoleKeys) -> bool:
    return set(one.keyids) == set(other.keyids) and one.threshold == other.threshold
