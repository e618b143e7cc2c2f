"""What a device's twin says, and what it is to say: merged, compared and bounded. Pure; one thread at a time."""

from collections.abc import Mapping
from typing import Any

from edge_contract.errors import ContractError
from edge_contract.hub import TWIN_KEY, HubDesired, HubSettings, report_parts
from edge_contract.jsonio import JsonObject
from edge_contract.signed import Envelope
from edge_contract.twin import Report, ReportedModule


class DesiredTwin:
    """Desired properties as far as they were heard on one connection."""

    def __init__(self) -> None:
        """Nothing was heard yet."""
        self._version = -1
        self._settings: JsonObject = {}

    def is_behind(self, patch: Any) -> bool:
        """Whether a patch shows that one before it was missed: its number is more than one too high."""
        version = _version(patch)
        return version is not None and self._version >= 0 and version > self._version + 1

    def take(self, desired: Any, *, is_whole: bool) -> HubDesired | None:
        """Take desired properties or a patch of them in.

        Args:
            desired: As the SDK gives them: anything that JSON has.
            is_whole: Whether what is not in it is not set.

        Returns:
            What they say, with settings as they are after it; none for what is older than what was heard before, and
            for a patch that was heard. The whole of the same number may say more: a patch before it was missed. A patch
            without number counts as newer.
        """
        if not isinstance(desired, dict):
            return None
        version = _version(desired)
        if version is not None:
            if version < self._version or (version == self._version and not is_whole):
                return None
            self._version = version
        said = desired.get(TWIN_KEY)
        wanted = said.get("settings") if isinstance(said, dict) else None
        # A twin's patch says null for what was taken away, at any depth.
        was_said = isinstance(said, dict) and "settings" in said
        if is_whole or (was_said and wanted is None) or (TWIN_KEY in desired and said is None):
            self._settings = {}
        settings: Any = wanted
        if isinstance(wanted, dict):
            merged = {**self._settings, **wanted}
            self._settings = {key: value for key, value in merged.items() if value is not None}
            settings = self._settings
        elif wanted is None:
            settings = self._settings
        whole = dict(said) if isinstance(said, dict) else {}
        return HubDesired.read({**whole, "settings": settings})


def _version(desired: Any) -> int | None:
    version = desired.get("$version") if isinstance(desired, dict) else None
    return version if isinstance(version, int) and not isinstance(version, bool) else None


def reported_document(envelope: bytes, settings: HubSettings, problem: str) -> JsonObject:
    """What the twin is to say: a summary for people and queries, and the signed report itself where it fits.

    Args:
        envelope: A signed report; one that is none of ours gives a document without it.
        settings: Those in force.
        problem: Why desired properties were passed over, or empty.

    Returns:
        The value of `TWIN_KEY` in reported properties.
    """
    document: JsonObject = {"settings": settings.to_json(), "settings_error": problem or None}
    try:
        report = Report.parse(Envelope.parse(envelope).payload)
    except ContractError:
        return document
    return document | {
        "agent_version": report.agent_version,
        "platform": report.platform,
        "director_version": report.director_version,
        "boot": report.boot,
        "number": report.number,
        "modules": {_key(name): _module(module) for name, module in report.modules.items()},
        "report": {"parts": report_parts(envelope)},
    }


def _key(name: str) -> str:
    """A module's name as a twin's key, which has no dots."""
    return name.replace(".", "_")


def _module(module: ReportedModule) -> JsonObject:
    return {
        "model": module.model,
        "version": module.version,
        "phase": str(module.phase),
        "live": None if module.live is None else str(module.live),
        "outcome": None if module.deployment is None else module.deployment.outcome and str(module.deployment.outcome),
    }


def patch_between(old: Any, new: JsonObject) -> JsonObject:
    """The patch that makes `old` to `new` by a twin's rules: null removes, objects merge, the rest replaces."""
    before: Mapping[str, Any] = old if isinstance(old, dict) else {}
    patch: JsonObject = {}
    for key, value in new.items():
        if isinstance(value, dict):
            was = before.get(key)
            # An empty object is as good as none to who reads a twin, and needs no write.
            if (inner := patch_between(was, value)) or not isinstance(was, dict | None):
                patch[key] = inner
        elif value is None:
            if before.get(key) is not None:
                patch[key] = None
        elif before.get(key) != value:
            patch[key] = value
    patch.update({key: None for key in before if key not in new and not key.startswith("$")})
    return patch
