"""The content of a configuration, and what several of them make together. Pure.

Source: Azure IoT Hub documentation, "Understand IoT Edge automatic deployments", section on layered deployments.
"""

import copy
from collections.abc import Iterable
from typing import Any, Final

from device_sim.iothub.identities import HubError
from edge_contract.jsonio import JsonObject

EDGE: Final = "modulesContent"
DEVICE: Final = "deviceContent"
MODULE: Final = "moduleContent"
DESIRED: Final = "properties.desired"
_KINDS: Final = (EDGE, DEVICE, MODULE)
_RUNTIME: Final = ("$edgeAgent", "$edgeHub")


def checked_content(value: Any) -> JsonObject:
    """Content of one kind, without the parts that are null.

    Raises:
        HubError: 400.
    """
    given = {kind: part for kind, part in value.items() if part} if isinstance(value, dict) else {}
    if len(given) != 1 or next(iter(given)) not in _KINDS or not isinstance(next(iter(given.values())), dict):
        raise HubError(400, "ArgumentInvalid", f"content has exactly one of {', '.join(_KINDS)}, an object")
    kind, part = next(iter(given.items()))
    for name, item in part.items() if kind == EDGE else (("", part),):
        if not isinstance(item, dict) or not all(_is_place(key) for key in item):
            raise HubError(400, "ArgumentInvalid", f"{kind} {name}: keys are {DESIRED!r} or begin with '{DESIRED}.'")
        if not isinstance(item.get(DESIRED, {}), dict):
            raise HubError(400, "ArgumentInvalid", f"{kind} {name}: {DESIRED!r} is an object")
    if kind == EDGE and not is_layered(given) and not all(DESIRED in part.get(name, {}) for name in _RUNTIME):
        raise HubError(400, "ArgumentInvalid", "a deployment that is no layer has $edgeAgent and $edgeHub")
    return copy.deepcopy(given)


def kind_of(content: JsonObject) -> str:
    """Which of the three kinds it is."""
    return next(kind for kind in _KINDS if kind in content)


def is_layered(content: JsonObject) -> bool:
    """Whether content of IoT Edge needs a deployment below it: it has keys that go into one."""
    parts = content.get(EDGE, {}).values()
    return any(key != DESIRED for part in parts for key in part)


def composed(contents: Iterable[JsonObject]) -> dict[str, JsonObject]:
    """Desired properties by module of a deployment and its layers, the lowest first."""
    result: dict[str, JsonObject] = {}
    for content in contents:
        for name, part in content[EDGE].items():
            result[name] = with_paths(result.get(name, {}), part)
    return result


def with_paths(values: JsonObject, paths: JsonObject) -> JsonObject:
    """Values with others at some places; the whole is a place too and comes first."""
    result: JsonObject = copy.deepcopy(paths.get(DESIRED, values))
    for key in sorted(key for key in paths if key != DESIRED):
        *way, last = key.removeprefix(f"{DESIRED}.").split(".")
        inner = result
        for name in way:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        inner[last] = copy.deepcopy(paths[key])
    return result


def modules_of(wanted: dict[str, JsonObject]) -> list[str]:
    """Names of the modules that the desired properties of `$edgeAgent` have."""
    modules = wanted.get("$edgeAgent", {}).get("modules")
    return sorted(modules) if isinstance(modules, dict) else []


def difference(old: JsonObject, new: JsonObject) -> JsonObject:
    """The patch (RFC 7396) that makes one of the other; empty where they are equal."""
    patch: JsonObject = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := difference(before, value):
                patch[key] = inner
        elif key not in old or before != value or type(before) is not type(value):
            patch[key] = copy.deepcopy(value)
    return patch


def _is_place(key: str) -> bool:
    return key == DESIRED or (key.startswith(f"{DESIRED}.") and all(key.removeprefix(f"{DESIRED}.").split(".")))
