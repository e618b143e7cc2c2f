"""Lists a bundle's manifests in the signed targets of the image repository, under the role of its model."""

import random
import time
from collections.abc import Mapping, Sequence

from tuf.api.metadata import Metadata, TargetFile, Targets

from cloud_registry.client import RegistryClient
from edge_contract.delegation import delegator_of
from edge_contract.deployment import Artifact, bundle_repository
from edge_contract.errors import EdgeError
from packager.bundle import BundleSet
from packager.keystore import KeyRing
from packager.limits import BIN_BITS, BIN_BITS_MAX, LIST_MAX, SIGN_ATTEMPTS_MAX, SIGN_BACKOFF_S, SIGN_BACKOFF_S_MAX
from packager.progress import Reporter
from packager.tufmake import NewTarget, RoleKeys, expiry, following_list, new_bins, new_list, signed
from packager.tufview import ImageReader, View, bins_of

_REPEATED = ("cloud.conflict", "cloud.unavailable", "network.timeout", "network.cut", "network.unreachable")


def targets_of(bundles: BundleSet) -> list[NewTarget]:
    """The targets that stand for a bundle's manifests."""
    return [
        NewTarget(
            item.descriptor.digest,
            item.descriptor.size,
            Artifact(
                model=bundles.model,
                version=bundles.version,
                platform=item.platform,
                release_counter=bundles.release_counter,
                repository=bundle_repository(bundles.model),
                hardware_ids=bundles.hardware_ids,
            ),
        )
        for item in bundles.bundles
    ]


def sign_targets(
    client: RegistryClient, ring: KeyRing, targets: Sequence[NewTarget], expires_days: int, reporter: Reporter
) -> int:
    """List targets in the image repository, all at once; safe to repeat.

    The metadata of this moment is fetched and verified from the pinned root down, gets the targets, is signed and
    submitted. When somebody else published meanwhile, it starts again from theirs, a bounded number of times.

    Returns:
        How many lists were signed; 0 when everything was listed already.

    Raises:
        EdgeError: `trust.*`, `cloud.*`, `network.*`, `config.key-invalid`.
    """
    reader = _reader(client, ring)
    for attempt in range(SIGN_ATTEMPTS_MAX):
        try:
            with reporter.task("signing"):
                view = reader.view(target.path for target in targets)
                try:
                    files = _signed_with(view, ring, targets, expires_days)
                except _IncompleteError:
                    view = reader.view(is_whole=True)
                    files = _signed_with(view, ring, targets, expires_days)
                if files:
                    client.submit_metadata(files)
                    reader.remember({name: view.next_version(name) for name in files})
                return len(files)
        except _OutpacedError:
            raise
        except EdgeError as error:
            # Another process that uses this folder may have seen newer metadata in the very moment of ours.
            is_late = error.code == "trust.metadata-rollback" and attempt == 0
            if (error.code not in _REPEATED and not is_late) or attempt == SIGN_ATTEMPTS_MAX - 1:
                raise
        time.sleep(random.uniform(0.5, 1.0) * min(SIGN_BACKOFF_S * 2**attempt, SIGN_BACKOFF_S_MAX))
    raise EdgeError("internal.bug", "signing ended without an outcome")


def require_signer(client: RegistryClient, ring: KeyRing, model: str) -> None:
    """Require keys that may sign a model's bundles, before anything is registered or sent; no private key is touched.

    Raises:
        EdgeError: `trust.*`, `cloud.*`, `network.*`.
    """
    view = _reader(client, ring).view()
    role = view.first_of(f"{model}/")
    keys = view.keys_of(role)
    ring.require(keys.keyids, keys.threshold, f"a bundle of {model}")


def _reader(client: RegistryClient, ring: KeyRing) -> ImageReader:
    reader = ImageReader(client, ring.home.folder)
    if not reader.is_pinned:
        raise EdgeError(
            "trust.root-unknown",
            f"{ring.home.folder} has no root to verify the registry by",
            "Set it up with `packager keys init`, or copy image.root.json from the folder that did.",
        )
    return reader


class _OutpacedError(EdgeError):
    """A conflict that no repetition can solve."""


class _IncompleteError(Exception):
    """Lists have to be distributed anew, and not all of them are at hand."""


def _signed_with(view: View, ring: KeyRing, targets: Sequence[NewTarget], expires_days: int) -> dict[str, str]:
    groups: dict[str, list[NewTarget]] = {}
    for target in targets:
        groups.setdefault(view.holder_of(target.path), []).append(target)
    changed: dict[str, Targets] = {}
    for name, group in groups.items():
        try:
            metadata = following_list(view.roles.get(name), view.next_version(name), expiry(expires_days), group)
        except EdgeError as error:
            raise _OutpacedError(error.code, error.detail, error.hint) from None
        if metadata is not None:
            changed[name] = metadata.signed
    return signed_lists(view, ring, changed, expires_days)


def signed_lists(
    view: View, ring: KeyRing, changed: Mapping[str, Targets], expires_days: int, keys: RoleKeys | None = None
) -> dict[str, str]:
    """Sign lists of bundles; where one has grown too long, all of its role are split into more hash bins.

    Args:
        view: What is published.
        ring: Where the private halves are.
        changed: The next version of some lists.
        expires_days: Life of what gets signed.
        keys: Who has to sign; as the published delegations say when none.

    Returns:
        Signed metadata by role.

    Raises:
        EdgeError: `trust.signature-invalid` when keys are missing, `config.*`.
    """
    files: dict[str, str] = {}
    for first in sorted({delegator_of(name) or name for name in changed}):
        lists = {name: content for name, content in changed.items() if (delegator_of(name) or name) == first}
        bins = bins_of(view.roles.get(first))
        bits = 0 if bins is None else bins.bit_length
        if bits < BIN_BITS_MAX and any(len(content.targets) > LIST_MAX for content in lists.values()):
            names = [first] if bins is None else list(bins.get_roles())
            if not all(name in lists or name in view.roles for name in names):
                raise _IncompleteError
            entries: dict[str, TargetFile] = {}
            for name in names:
                entries |= (lists.get(name) or view.roles[name]).targets
            owner = keys or view.keys_of(first)
            files |= _split(view, ring, first, entries, owner, BIN_BITS_MAX if bits else BIN_BITS, expires_days)
            continue
        for name, content in lists.items():
            owner = keys or view.keys_of(name)
            files[name] = signed(Metadata(content), [(owner.keyids, owner.threshold)], ring, name)
    return files


def _split(
    view: View,
    ring: KeyRing,
    role: str,
    entries: Mapping[str, TargetFile],
    keys: RoleKeys,
    bits: int,
    expires_days: int,
) -> dict[str, str]:
    """A role with so many bins, and every bin."""
    needs = [(keys.keyids, keys.threshold)]
    parent = new_bins(role, view.next_version(role), expiry(expires_days), keys, bits)
    bins = bins_of(parent.signed)
    if bins is None:
        raise EdgeError("internal.bug", f"{role} was split into no bins")
    files = {role: signed(parent, needs, ring, role)}
    groups: dict[str, dict[str, TargetFile]] = {name: {} for name in bins.get_roles()}
    for path, target in entries.items():
        groups[bins.get_role_for_target(path)][path] = target
    for name, group in groups.items():
        metadata = new_list(view.next_version(name), expiry(expires_days), group)
        files[name] = signed(metadata, needs, ring, name)
    return files
