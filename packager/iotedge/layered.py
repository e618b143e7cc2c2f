"""Layered deployments of Azure IoT Edge: one module on top of whatever else a device runs. Pure.

A layered deployment names parts of desired properties by their path (`properties.desired.modules.<name>`) and leaves
the rest to a base deployment and to other layers. Of two layers that name the same part the one of higher priority
wins; a layer that names the whole of a module's desired properties replaces those of every layer below. So ours names
single objects alone. Source: Azure IoT Edge documentation, "Understand IoT Edge automatic deployments".
"""

import copy
from typing import Final

from edge_contract.errors import EdgeError
from edge_contract.hub import TWIN_KEY
from edge_contract.jsonio import JsonObject, dump
from packager.iotedge.limits import CONFIGURATION_ID_CHARS_MAX, LABELS_MAX, MANIFEST_BYTES_MAX, PRIORITY_MAX
from packager.iotedge.manifest import (
    ModuleRequest,
    Release,
    credential_entries,
    module_entry,
    require_request,
    route_entries,
    twin_entry,
)
from packager.iotedge.shape import (
    AGENT,
    CONFIGURATION_ID,
    CONTENT,
    DESIRED,
    HUB,
    refuse,
    require_valid,
    require_valid_layer,
)

WRAPPER: Final = "content"


def make_layer(release: Release, request: ModuleRequest, template: JsonObject | None = None) -> JsonObject:
    """Make a layered deployment with the module, or put the module into another one.

    Args:
        release: The bundle it is about.
        request: The module.
        template: Another layered deployment; is not changed itself. What the request does not name stays.

    Returns:
        `{"modulesContent": ...}` whose keys are all paths into desired properties.

    Raises:
        EdgeError: `config.invalid`, naming the field.
    """
    name = require_request(release, request)
    if template is not None:
        require_valid_layer(template)
    layer: JsonObject = {CONTENT: {}} if template is None else copy.deepcopy(template)
    content = layer[CONTENT]
    agent = content.setdefault(AGENT, {})
    place = f"{DESIRED}.modules.{name}"
    agent[place] = module_entry(agent.get(place, {}), release, request)
    for key, entry in credential_entries(request).items():
        agent[f"{DESIRED}.runtime.settings.registryCredentials.{key}"] = entry
    if routes := route_entries(request):
        hub = content.setdefault(HUB, {})
        hub.update({f"{DESIRED}.routes.{key}": entry for key, entry in routes.items()})
    twin = content.setdefault(name, {})
    twin.update({f"{DESIRED}.{key}": value for key, value in request.desired.items()})
    twin[f"{DESIRED}.{TWIN_KEY}"] = twin_entry(name, release, request)
    require_valid_layer(layer)
    return layer


def apply_layer(base: JsonObject, layer: JsonObject) -> JsonObject:
    """What a device gets from a base deployment with a layer on top; neither is changed.

    Raises:
        EdgeError: `config.invalid` when either is none, or the result is no manifest.
    """
    require_valid(base)
    require_valid_layer(layer)
    whole = copy.deepcopy(base)
    for module, parts in layer[CONTENT].items():
        twin = whole[CONTENT].setdefault(module, {DESIRED: {}})
        for path, value in parts.items():
            if path == DESIRED:
                twin[DESIRED] = copy.deepcopy(value)
                continue
            *parents, last = path.removeprefix(f"{DESIRED}.").split(".")
            target = twin[DESIRED]
            for parent in parents:
                target = target.setdefault(parent, {})
                if not isinstance(target, dict):
                    refuse(
                        f"{CONTENT}.{module}.{path}", f"goes into {parent!r}, which is no object in the base deployment"
                    )
            target[last] = copy.deepcopy(value)
    require_valid(whole)
    return whole


def make_configuration(
    manifest: JsonObject, identifier: str, condition: str, priority: int, labels: dict[str, str]
) -> JsonObject:
    """A deployment at scale as IoT Hub's service API and `az iot edge deployment` know it.

    Args:
        manifest: A whole manifest or a layer.
        identifier: Of the configuration: lower-case letters, digits and some signs.
        condition: Which devices, in the hub's query language; `*` for all.
        priority: The larger wins; that of a layer has to be larger than that of its base.
        labels: For people.

    Returns:
        The body of `PUT /configurations/<identifier>`.

    Raises:
        EdgeError: `config.invalid`.
    """
    if len(identifier) > CONFIGURATION_ID_CHARS_MAX or not CONFIGURATION_ID.fullmatch(identifier):
        why = f"configuration: {identifier[:CONFIGURATION_ID_CHARS_MAX]!r} is no identifier"
        hint = f"At most {CONFIGURATION_ID_CHARS_MAX} lower-case letters, digits and - : + % _ # * ? ! ( ) , = @ ; $ '"
        raise EdgeError("config.invalid", why, hint)
    if not condition.strip():
        raise EdgeError("config.invalid", "target-condition: is empty", "Give a condition on devices, or * for all.")
    if not 0 <= priority <= PRIORITY_MAX:
        raise EdgeError("config.invalid", f"priority: {priority} is not within 0 and {PRIORITY_MAX}")
    if len(labels) > LABELS_MAX:
        raise EdgeError("config.invalid", f"label: {len(labels)} labels, at most {LABELS_MAX} are allowed")
    return {
        "id": identifier,
        "schemaVersion": "1.0",
        "labels": dict(labels),
        "content": copy.deepcopy(manifest),
        "targetCondition": condition,
        "priority": priority,
        "metrics": {"queries": {}},
    }


def unwrap(document: JsonObject) -> tuple[JsonObject, JsonObject | None]:
    """A manifest out of what some tools write around it: the value of `content`, alone or in a deployment at scale.

    Args:
        document: With a manifest, or one itself.

    Returns:
        The manifest, and the document that it was in; none where it is the document.
    """
    inner = document.get(WRAPPER)
    if CONTENT not in document and isinstance(inner, dict) and CONTENT in inner:
        return inner, document
    return document, None


def require_sized(document: JsonObject) -> None:
    """Refuse a document that is too long for the service whatever its parts are.

    Raises:
        EdgeError: `config.invalid`.
    """
    size = len(dump(document))
    if size > MANIFEST_BYTES_MAX:
        refuse(CONTENT, f"the whole document has {size} bytes, at most {MANIFEST_BYTES_MAX} are allowed")
