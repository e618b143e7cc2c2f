"""Lists a bundle's manifests in the signed targets of the image repository."""

import random
import time
from collections.abc import Sequence

from cloud_registry.client import RegistryClient
from edge_contract.deployment import Artifact, bundle_repository
from edge_contract.errors import EdgeError
from packager.bundle import BundleSet
from packager.keystore import KeyRing
from packager.limits import SIGN_ATTEMPTS_MAX, SIGN_BACKOFF_S, SIGN_BACKOFF_S_MAX
from packager.progress import Reporter
from packager.tufmake import NewTarget, expiry, following_bin, signed
from packager.tufview import ImageReader, View

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
        How many bins were signed; 0 when everything was listed already.

    Raises:
        EdgeError: `trust.*`, `cloud.*`, `network.*`, `config.key-invalid`.
    """
    reader = ImageReader(client, ring.home.folder)
    if not reader.is_pinned:
        raise EdgeError(
            "trust.root-unknown",
            f"{ring.home.folder} has no root to verify the registry by",
            "Set it up with `packager keys init`, or copy image.root.json from the folder that did.",
        )
    for attempt in range(SIGN_ATTEMPTS_MAX):
        try:
            with reporter.task("signing"):
                view = reader.view(target.path for target in targets)
                files = _signed_bins(view, ring, targets, expires_days)
                if files:
                    client.submit_metadata(files)
                    reader.remember({name: view.versions[name] + 1 for name in files})
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


class _OutpacedError(EdgeError):
    """A conflict that no repetition can solve."""


def _signed_bins(view: View, ring: KeyRing, targets: Sequence[NewTarget], expires_days: int) -> dict[str, str]:
    groups: dict[str, list[NewTarget]] = {}
    for target in targets:
        groups.setdefault(view.bin_of(target.path), []).append(target)
    needs = [(view.succinct.keyids, view.succinct.threshold)]
    files = {}
    for name, group in groups.items():
        try:
            metadata = following_bin(view.bins[name], expiry(expires_days), group)
        except EdgeError as error:
            raise _OutpacedError(error.code, error.detail, error.hint) from None
        if metadata.signed.version != view.bins[name].version:
            files[name] = signed(metadata, needs, ring, name)
    return files
