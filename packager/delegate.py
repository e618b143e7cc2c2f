"""Who may sign for which model: delegating a model's bundles to keys of its own, taking that back, withdrawing bundles.

Each is one submission, so that no device ever sees half of it.
"""

from collections.abc import Sequence

from tuf.api.metadata import TargetFile

from cloud_registry.client import RegistryClient
from edge_contract.delegation import CATALOGUE, model_role
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.names import model_name
from packager.keys import check_days
from packager.keystore import KeyRing
from packager.progress import Reporter
from packager.sign import signed_lists
from packager.tufmake import TARGETS, NewTarget, RoleKeys, expiry, following_list, new_list, new_targets, signed
from packager.tufview import ImageReader, View


def delegate(
    client: RegistryClient, ring: KeyRing, model: str, keys: RoleKeys, expires_days: int, reporter: Reporter
) -> JsonObject:
    """Let only these keys sign a model's bundles from here on; `packager keys delegate`.

    Bundles of the model that are listed already move along, which takes signatures of the new keys too.

    Args:
        client: With a token that may publish metadata.
        ring: Keys of the top-level targets; the model's new keys where they are at hand.
        model: Name of the model.
        keys: Its keys and how many of them have to sign.
        expires_days: Life of what gets signed.
        reporter: Shows progress.

    Returns:
        `{model, role, keyids, threshold, moved, is_listed}`; `is_listed` tells whether the new keys have signed.

    Raises:
        EdgeError: `cloud.conflict` when it is delegated already; `trust.*`, `config.*`, `cloud.*`, `network.*`.
    """
    check_days(expires_days)
    role = model_role(model)
    publication = _Publication(client, ring, expires_days)
    view = publication.view
    if model in view.models:
        if set(view.models[model].keyids) == set(keys.keyids) and view.models[model].threshold == keys.threshold:
            return _said(model, keys, 0, role in view.roles)
        raise EdgeError(
            "cloud.conflict", f"{model} has keys of its own already", f"Replace them: keys rotate --role {role}."
        )
    with reporter.task("signing the delegation"):
        files = publication.top(view.models | {model: keys})
        moved = [target for _, target in view.entries() if target.path.partition("/")[0] == model]
        files |= publication.without([target.path for target in moved])
        has_past = role in view.versions
        is_able = _can_sign(ring, keys)
        if is_able:
            content = new_list(view.next_version(role), expiry(expires_days), {item.path: item for item in moved})
            files |= signed_lists(view, ring, {role: content.signed}, expires_days, keys)
        elif moved or has_past:
            raise EdgeError(
                "trust.signature-invalid",
                f"{model} has {len(moved)} signed bundles, and the new keys have to sign them too",
                "Do it where the folder with the new keys is at hand: --keys YOURS --keys THEIRS.",
            )
    publication.submit(files)
    return _said(model, keys, len(moved), is_able)


def undelegate(
    client: RegistryClient, ring: KeyRing, model: str, is_keeping: bool, expires_days: int, reporter: Reporter
) -> JsonObject:
    """Let the catalogue's keys sign a model's bundles again; `packager keys undelegate`.

    Args:
        client: With a token that may publish metadata.
        ring: Keys of the top-level targets.
        model: Name of the model.
        is_keeping: Take its bundles over; otherwise no device can install any of them until they are pushed again,
            which is right when the model's key was stolen.
        expires_days: Life of what gets signed.
        reporter: Shows progress.

    Raises:
        EdgeError: `cloud.not-found` when it has no keys of its own; `trust.*`, `config.*`, `cloud.*`, `network.*`.
    """
    check_days(expires_days)
    publication = _Publication(client, ring, expires_days)
    view = publication.view
    if model not in view.models:
        raise EdgeError("cloud.not-found", f"the model {model!r} has no keys of its own", "See: packager keys bundles.")
    taken = [target for _, target in view.entries() if target.path.partition("/")[0] == model]
    with reporter.task("signing the catalogue"):
        files = publication.top({name: keys for name, keys in view.models.items() if name != model})
        if is_keeping:
            files |= publication.into_catalogue(taken)
    publication.submit(files)
    return {"model": model, "taken_over": len(taken) if is_keeping else 0, "dropped": 0 if is_keeping else len(taken)}


def withdraw(
    client: RegistryClient, ring: KeyRing, model: str, version: int, expires_days: int, reporter: Reporter
) -> JsonObject:
    """List a model version's bundles no longer, so that no device takes them; `packager keys withdraw`.

    Devices that run it go on running it: assign them another version.

    Raises:
        EdgeError: `cloud.not-found` when nothing of it is listed; `trust.*`, `config.*`, `cloud.*`, `network.*`.
    """
    check_days(expires_days)
    publication = _Publication(client, ring, expires_days)
    prefix = f"{model_name(model)}/{version}/"
    paths = [target.path for _, target in publication.view.entries() if target.path.startswith(prefix)]
    if not paths:
        raise EdgeError("cloud.not-found", f"no bundle of {model}:{version} is signed", "See: packager keys bundles.")
    with reporter.task("signing without them"):
        files = publication.without(paths)
    publication.submit(files)
    return {"model": model, "version": version, "withdrawn": paths}


def bundles(client: RegistryClient, ring: KeyRing) -> JsonObject:
    """Everything that is signed, by role, verified from the pinned root down; `packager keys bundles`."""
    view = ImageReader(client, ring.home.folder).view(is_whole=True)
    return {
        "roles": [
            {"role": role, "keyids": view.keys_of(role).keyids, "threshold": view.keys_of(role).threshold}
            for role in (CATALOGUE, *(model_role(model) for model in view.models))
        ],
        "bundles": [_bundle(role, target) for role, target in view.entries()],
    }


def _bundle(role: str, target: TargetFile) -> JsonObject:
    custom = target.custom or {}
    return {
        "role": role,
        "path": target.path,
        "model": custom.get("model"),
        "version": custom.get("version"),
        "platform": custom.get("platform"),
        "release_counter": custom.get("release_counter"),
        "digest": f"sha256:{target.hashes.get('sha256')}",
    }


class _Publication:
    """What is published, and pieces of what comes next."""

    def __init__(self, client: RegistryClient, ring: KeyRing, expires_days: int) -> None:
        self._client = client
        self._ring = ring
        self._days = expires_days
        self._reader = ImageReader(client, ring.home.folder)
        if not self._reader.is_pinned:
            raise EdgeError(
                "trust.root-unknown",
                f"{ring.home.folder} has no root to verify the registry by",
                "Copy image.root.json from the folder that set it up.",
            )
        self.view: View = self._reader.view(is_whole=True)

    def top(self, models: dict[str, RoleKeys]) -> dict[str, str]:
        """Top-level targets that delegate these models."""
        keys = self.view.keys_of(CATALOGUE)
        metadata = new_targets(self.view.next_version(TARGETS), expiry(self._days), keys, models)
        entry = self.view.root.roles[TARGETS]
        return {TARGETS: signed(metadata, [(entry.keyids, entry.threshold)], self._ring, TARGETS)}

    def without(self, paths: Sequence[str]) -> dict[str, str]:
        """The lists that hold these paths, without them."""
        by_list: dict[str, list[str]] = {}
        for path in paths:
            by_list.setdefault(self.view.holder_of(path), []).append(path)
        return self._lists({name: ((), dropped) for name, dropped in by_list.items()})

    def into_catalogue(self, targets: Sequence[TargetFile]) -> dict[str, str]:
        """The catalogue's bins with these entries of another role."""
        catalogue = self.view.roles[CATALOGUE].delegations
        if catalogue is None or catalogue.succinct_roles is None:
            raise EdgeError("trust.metadata-invalid", "the catalogue has no bins")
        by_list: dict[str, list[NewTarget]] = {}
        for target in targets:
            name = catalogue.succinct_roles.get_role_for_target(target.path)
            by_list.setdefault(name, []).append(NewTarget.of(target))
        return self._lists({name: (added, ()) for name, added in by_list.items()})

    def _lists(self, changes: dict[str, tuple[Sequence[NewTarget], Sequence[str]]]) -> dict[str, str]:
        files = {}
        for name, (added, dropped) in sorted(changes.items()):
            version, keys = self.view.next_version(name), self.view.keys_of(name)
            metadata = following_list(self.view.roles.get(name), version, expiry(self._days), added, dropped)
            if metadata is not None:
                files[name] = signed(metadata, [(keys.keyids, keys.threshold)], self._ring, name)
        return files

    def submit(self, files: dict[str, str]) -> None:
        """Publish, and remember."""
        self._client.submit_metadata(files)
        self._reader.remember({name: self.view.next_version(name) for name in files})


def _can_sign(ring: KeyRing, keys: RoleKeys) -> bool:
    if not ring.knows(keys.keyids):
        return False
    ring.signers(keys.keyids, keys.threshold, "the model's list")
    return True


def _said(model: str, keys: RoleKeys, moved: int, is_listed: bool) -> JsonObject:
    return {
        "model": model,
        "role": model_role(model),
        "keyids": keys.keyids,
        "threshold": keys.threshold,
        "moved": moved,
        "is_listed": is_listed,
    }
