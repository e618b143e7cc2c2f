"""Creates deployments, and waits until devices have taken them."""

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from cloud_registry.client import RegistryClient
from cloud_registry.client.windows import parse_window
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import WINDOWS_MAX
from edge_contract.names import alias_name, model_name
from edge_contract.phases import Outcome
from packager.limits import WAIT_FAILURES_MAX, WAIT_POLL_S
from packager.progress import Reporter
from packager.terms import terms_of

_OPEN: Final = ("pending", "in_progress")
_PASSING: Final = ("network.unreachable", "network.timeout", "network.cut", "cloud.unavailable")
_VERSION_DIGITS_MAX: Final = 15
_NO_TERMS: Final[Mapping[str, Any]] = MappingProxyType({})


def parse_reference(reference: str) -> tuple[str, int | str]:
    """Split `digits:3` or `digits:production` into the model and a version or alias.

    Raises:
        EdgeError: `config.invalid`, `cloud.name-invalid`.
    """
    name, colon, version = reference.partition(":")
    if not colon or not version:
        raise EdgeError("config.invalid", f"{reference!r} names no version", "Write MODEL:VERSION or MODEL:ALIAS.")
    if version.isascii() and version.isdigit() and len(version) <= _VERSION_DIGITS_MAX:
        return model_name(name), int(version)
    return model_name(name), alias_name(version)


def policy_of(
    sampling_ratio: float | None,
    probation_ms: int | None,
    allow_release_rollback: bool,
    windows: Sequence[str] = (),
    activation: str | None = None,
    terms: Mapping[str, Any] = _NO_TERMS,
) -> Mapping[str, Any]:
    """The policy of a deployment; what is none is left to the bundle.

    Args:
        sampling_ratio: Share of requests to collect, `0..1`.
        probation_ms: How long the new model is watched.
        allow_release_rollback: Permit to go back to an older release.
        windows: Maintenance windows as `cloud_registry.client.windows.parse_window` reads them.
        activation: A value of `ActivationMode`.
        terms: Options of `packager.commands.terms` by name.

    Raises:
        EdgeError: `config.invalid` for what is no window, or too many.
    """
    if len(windows) > WINDOWS_MAX:
        raise EdgeError("config.invalid", f"a deployment has at most {WINDOWS_MAX} maintenance windows")
    policy: dict[str, Any] = {
        "sampling_ratio": sampling_ratio,
        "probation_ms": probation_ms,
        "allow_release_rollback": allow_release_rollback or None,
        "windows": [parse_window(text).to_json() for text in windows] or None,
        "activation": None if activation is None else str(activation),
    }
    return {key: value for key, value in policy.items() if value is not None} | terms_of(terms)


def wait(client: RegistryClient, deployment: str, timeout_s: float, reporter: Reporter) -> JsonObject:
    """Wait until every device of a deployment has an outcome, or time is up; shows how many have.

    Args:
        client: With a viewer's token at least.
        deployment: Its identifier.
        timeout_s: Longest wait; 0 looks once.
        reporter: Shows progress.

    Returns:
        `{deployment, devices, counts, is_confirmed, seconds, failed: [{device, standing, outcome, phase, error}]}`. A
        device on which the deployment was confirmed and then reverted has failed.

    Raises:
        EdgeError: `cloud.*`; `network.*` when the registry stays away.
    """
    began = time.monotonic()
    record = client.deployment(deployment)
    failures = done = 0
    with reporter.task(f"deployment {deployment}: devices", int(record["devices"]), unit="devices") as advance:
        while True:
            counts: dict[str, int] = record["counts"]
            total = int(record["devices"])
            finished = total - sum(counts.get(key, 0) for key in _OPEN)
            advance(max(finished - done, 0))
            done = max(done, finished)
            if finished >= total or time.monotonic() - began >= timeout_s or record["state"] != "active":
                break
            time.sleep(WAIT_POLL_S)
            try:
                record, failures = client.deployment(deployment), 0
            except EdgeError as error:
                failures += 1
                if error.code not in _PASSING or failures >= WAIT_FAILURES_MAX:
                    raise
    return _outcome(client, record, time.monotonic() - began)


def _outcome(client: RegistryClient, record: JsonObject, seconds: float) -> JsonObject:
    counts: dict[str, int] = record["counts"]
    total = int(record["devices"])
    is_confirmed = total > 0 and counts.get(str(Outcome.CONFIRMED), 0) == total
    failed = []
    if not is_confirmed:
        failed = [
            {key: item.get(key) for key in ("device", "standing", "outcome", "phase", "error")}
            for item in client.deployment_devices(record["id"])
            if item.get("standing") != Outcome.CONFIRMED
        ]
    return {
        "deployment": record["id"],
        "devices": total,
        "counts": counts,
        "is_confirmed": is_confirmed,
        "seconds": round(seconds, 3),
        "failed": failed,
    }
