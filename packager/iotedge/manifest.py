"""Makes a deployment manifest for Azure IoT Edge, or adds a module to one.

Pure: values in, a document out. What a manifest says of a model is a nudge and a note for people: which bundle a device
runs is decided by signed metadata alone, so the twin of the module carries names and a digest, never an instruction.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.hub import TWIN_KEY, HubSettings
from edge_contract.jsonio import JsonObject, dump, parse_object
from edge_contract.names import model_name
from packager.iotedge.limits import CHUNK_BYTES, CHUNKS_MAX, CREATE_OPTIONS_BYTES_MAX, IMAGE_CHARS_MAX
from packager.iotedge.shape import (
    AGENT,
    CONTENT,
    CREATE_OPTIONS_KEY,
    DESIRED,
    ENV_NAME,
    HUB,
    MODULE_NAME,
    PLAIN_NAME,
    refuse,
    require_valid,
)

AGENT_IMAGE: Final = "mcr.microsoft.com/azureiotedge-agent:1.5"
HUB_IMAGE: Final = "mcr.microsoft.com/azureiotedge-hub:1.5"
ROUTE_DEFAULT: Final = {"upstream": "FROM /messages/* INTO $upstream"}
RESTART_POLICY_DEFAULT: Final = "always"
STORE_SECONDS_DEFAULT: Final = 7_200

_HUB_PORTS: Final = ("443/tcp", "5671/tcp", "8883/tcp")
_IMAGE: Final = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_ROUTE: Final = re.compile(
    r"FROM\s+/\S*(?:\s+WHERE\s+\S.*)?\s+INTO\s+"
    r'(?:\$upstream|BrokeredEndpoint\(\s*(["\'])/modules/[A-Za-z0-9_-]+/inputs/[^"\'/\s]+\1\s*\))',
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Release:
    """Which bundle a manifest is about.

    Attributes:
        model: Name of the model.
        version: Its version.
        index: Digest of the bundle's index.
    """

    model: str
    version: int
    index: Digest


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the IoT Edge agent needs to pull an image. The password is a secret: it is in no text of this object."""

    address: str
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RouteTerms:
    """How the hub of the edge treats the messages of a route.

    Attributes:
        priority: 0 to 9, 0 goes first; none for the lowest.
        seconds: How long a message may wait for its sink; none for what holds for all routes.
    """

    priority: int | None = None
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class ModuleRequest:
    """The module that goes into a manifest. What is left out stays as a template has it.

    Attributes:
        image: Reference of the module's OCI image.
        name: Name of the module; empty for the model's.
        env: Environment variables to set.
        create_options: Body of the container engine's create call; none leaves it.
        restart_policy: One of `RESTART_POLICIES`; empty leaves it, or is `always` for a new module.
        startup_order: The lower starts first; none leaves it.
        image_pull_policy: `on-create` or `never`; empty leaves it.
        routes: Routes of the hub to set, by name.
        route_terms: Of those routes, by name.
        credentials: Registries' credentials to set, by name.
        settings: What the module's twin sets on the device (docs/azure.md), or none.
        desired: More desired properties of the module, beside what is Lighterman's.
    """

    image: str
    name: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    create_options: JsonObject | None = None
    restart_policy: str = ""
    startup_order: int | None = None
    image_pull_policy: str = ""
    routes: Mapping[str, str] = field(default_factory=dict)
    route_terms: Mapping[str, RouteTerms] = field(default_factory=dict)
    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    settings: HubSettings | None = None
    desired: JsonObject = field(default_factory=dict)


def make_manifest(release: Release, request: ModuleRequest, template: JsonObject | None = None) -> JsonObject:
    """Make a manifest with the module, or put the module into another manifest.

    Args:
        release: The bundle it is about.
        request: The module.
        template: A whole manifest; is not changed itself. Everything in it that the request does not name stays.

    Returns:
        `{"modulesContent": ...}`, of an allowed structure and size.

    Raises:
        EdgeError: `config.invalid`, naming the field.
    """
    name = require_request(release, request)
    if template is not None:
        require_valid(template)
    manifest = _empty(request) if template is None else copy.deepcopy(template)
    content = manifest[CONTENT]
    agent, hub = content[AGENT][DESIRED], content[HUB][DESIRED]
    if request.startup_order is not None and agent["schemaVersion"] == "1.0":
        refuse(f"{CONTENT}.{AGENT}.{DESIRED}.schemaVersion", "is 1.0, which knows no startup order; 1.1 does")
    if request.route_terms and hub["schemaVersion"] == "1.0":
        refuse(f"{CONTENT}.{HUB}.{DESIRED}.schemaVersion", "is 1.0, which knows no priority of routes; 1.1 does")
    agent["modules"][name] = module_entry(agent["modules"].get(name, {}), release, request)
    hub["routes"].update(route_entries(request))
    if request.credentials:
        known = agent["runtime"]["settings"].setdefault("registryCredentials", {})
        known.update(credential_entries(request))
    twin = content.setdefault(name, {DESIRED: {}})[DESIRED]
    twin.update(request.desired)
    twin[TWIN_KEY] = twin_entry(name, release, request)
    require_valid(manifest)
    return manifest


def require_request(release: Release, request: ModuleRequest) -> str:
    """Check what a request says by itself, whatever it goes into; gives the module's name.

    Raises:
        EdgeError: `config.invalid`, naming the option.
    """
    name = module_name(release, request)
    _require_image(request.image)
    _require_routes(request.routes)
    for key, text in request.env.items():
        _require_unicode("env", key, text)
        if not ENV_NAME.fullmatch(key):
            raise EdgeError("config.invalid", f"env: {key!r} is no name of a variable", "Leave out + # $ . and spaces.")
    for key in request.route_terms:
        if key not in request.routes:
            raise EdgeError("config.invalid", f"route: there are terms for {key!r}, which is no route given here")
    for key, item in request.credentials.items():
        _require_unicode("registry-credentials", key, item.address, item.username, item.password)
        if not PLAIN_NAME.fullmatch(key):
            hint = "Leave out . $ # and spaces."
            raise EdgeError("config.invalid", f"registry-credentials: {key!r} is no name", hint)
    if TWIN_KEY in request.desired:
        why = f"desired: the object {TWIN_KEY!r} is written by this command and by the registry alone"
        raise EdgeError("config.invalid", why, "Leave it out; settings have an option of their own.")
    return name


def twin_entry(name: str, release: Release, request: ModuleRequest) -> JsonObject:
    """What the module's twin says of its bundle, and sets on the device."""
    entry: JsonObject = {
        "module": name,
        "model": release.model,
        "version": release.version,
        "index": str(release.index),
    }
    if request.settings is not None and (settings := request.settings.to_json()):
        entry["settings"] = settings
    return entry


def route_entries(request: ModuleRequest) -> JsonObject:
    """Routes as the hub's desired properties have them: a text, or an object where there are terms."""
    entries: JsonObject = {}
    for name, text in request.routes.items():
        terms = request.route_terms.get(name, RouteTerms())
        entry: JsonObject = {"route": text}
        if terms.priority is not None:
            entry["priority"] = terms.priority
        if terms.seconds is not None:
            entry["timeToLiveSecs"] = terms.seconds
        entries[name] = text if len(entry) == 1 else entry
    return entries


def credential_entries(request: ModuleRequest) -> JsonObject:
    """Credentials of registries as the agent's desired properties have them."""
    return {
        key: {"address": item.address, "username": item.username, "password": item.password}
        for key, item in request.credentials.items()
    }


def module_name(release: Release, request: ModuleRequest) -> str:
    """The name of the module: good for IoT Edge and good for Lighterman.

    Raises:
        EdgeError: `config.invalid`.
    """
    name = request.name or release.model
    try:
        model_name(name)
    except ContractError as error:
        raise EdgeError("config.invalid", f"module: {error.detail}", error.hint) from None
    if not MODULE_NAME.fullmatch(name):
        why = f"module: {name!r} is no name of an IoT Edge module, which has letters, digits, '_' and '-' only"
        raise EdgeError("config.invalid", why, "Give another --module NAME.")
    return name


def split_create_options(options: JsonObject) -> dict[str, str]:
    """Create options as the settings of a module hold them: JSON text, cut into parts that the agent joins again.

    Args:
        options: Body of the container engine's create call.

    Returns:
        `createOptions`, `createOptions01`, ..., each of at most `CHUNK_BYTES` bytes.

    Raises:
        EdgeError: `config.invalid` for too many parts.
    """
    data = dump(options)
    parts: list[str] = []
    while data or not parts:
        cut = min(CHUNK_BYTES, len(data))
        while cut < len(data) and data[cut] & 0xC0 == 0x80:  # not within a character
            cut -= 1
        parts.append(data[:cut].decode("utf-8"))
        data = data[cut:]
    if len(parts) > CHUNKS_MAX:
        why = f"create-options: {len(parts)} parts of {CHUNK_BYTES} bytes, at most {CHUNKS_MAX} are allowed"
        raise EdgeError("config.invalid", why)
    return {f"createOptions{place:02}" if place else "createOptions": part for place, part in enumerate(parts)}


def option_tree(options: Mapping[str, str], base: JsonObject | None = None) -> JsonObject:
    """Create options from single ones.

    Args:
        options: Dotted paths with values: JSON where a value is JSON, else a text.
        base: Options to begin with; is not changed itself.

    Returns:
        The tree.

    Raises:
        EdgeError: `config.invalid`.
    """
    tree = copy.deepcopy(base) if base else {}
    for path, text in options.items():
        _require_unicode("create-option", path, text)
        *parents, last = path.split(".")
        place = tree
        for part in parents:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise EdgeError("config.invalid", f"create-option {path!r}: {part!r} is no object that could hold more")
        if not all((*parents, last)):
            raise EdgeError("config.invalid", f"create-option {path!r} has an empty part")
        place[last] = _value(path, text)
    return tree


def _value(path: str, text: str) -> Any:
    try:
        found = parse_object(b'{"value":' + text.encode() + b"}", "a value", CREATE_OPTIONS_BYTES_MAX)
    except ContractError as error:
        if text.startswith(("{", "[")):
            raise EdgeError("config.invalid", f"create-option {path!r}: {error.detail}") from None
        return text
    return found["value"] if set(found) == {"value"} else text


def module_entry(before: JsonObject, release: Release, request: ModuleRequest) -> JsonObject:
    """The module as the agent's desired properties have it; what the request leaves out stays as it was before."""
    new: JsonObject = {"type": "docker", "status": "running", "restartPolicy": RESTART_POLICY_DEFAULT, "settings": {}}
    module: JsonObject = new | before
    module["version"] = str(release.version)
    module["settings"]["image"] = request.image
    if request.restart_policy:
        module["restartPolicy"] = request.restart_policy
    if request.startup_order is not None:
        module["startupOrder"] = request.startup_order
    if request.image_pull_policy:
        module["imagePullPolicy"] = request.image_pull_policy
    if request.env:
        module["env"] = module.get("env", {}) | {key: {"value": text} for key, text in request.env.items()}
    if request.create_options is not None:
        kept = {key: text for key, text in module["settings"].items() if not CREATE_OPTIONS_KEY.fullmatch(key)}
        module["settings"] = kept | split_create_options(request.create_options)
    return module


def _require_unicode(what: str, *texts: str) -> None:
    """A command line may bring bytes that are no text; JSON has no place for them."""
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise EdgeError("config.invalid", f"{what} {texts[0]!r} is not valid Unicode")


def _require_image(image: str) -> None:
    if len(image) > IMAGE_CHARS_MAX or not _IMAGE.fullmatch(image):
        hint = "For example registry.example/edge/lighterman:1, or with @sha256: and a digest."
        raise EdgeError("config.invalid", f"image: {image[:IMAGE_CHARS_MAX]!r} is no reference of an image", hint)


def _require_routes(routes: Mapping[str, str]) -> None:
    for name, route in routes.items():
        _require_unicode("route", name, route)
        if not PLAIN_NAME.fullmatch(name):
            raise EdgeError("config.invalid", f"route: {name!r} is no name", "Leave out . $ # and spaces.")
        if not _ROUTE.fullmatch(route):
            hint = 'For example: FROM /messages/* INTO $upstream, or … INTO BrokeredEndpoint("/modules/m/inputs/i").'
            raise EdgeError("config.invalid", f"route {name!r}: {route!r} is not FROM source [WHERE …] INTO sink", hint)


def _empty(request: ModuleRequest) -> JsonObject:
    """A manifest with the system's own two modules and nothing else."""
    ports = {"HostConfig": {"PortBindings": {port: [{"HostPort": port.partition("/")[0]}] for port in _HUB_PORTS}}}
    agent = {
        "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25", "loggingOptions": ""}},
        "systemModules": {
            "edgeAgent": {"type": "docker", "settings": {"image": AGENT_IMAGE, **split_create_options({})}},
            "edgeHub": {
                "type": "docker",
                "status": "running",
                "restartPolicy": "always",
                "startupOrder": 0,
                "settings": {"image": HUB_IMAGE, **split_create_options(ports)},
            },
        },
        "modules": {},
    }
    hub = {
        "schemaVersion": "1.2",
        "routes": {} if request.routes else dict(ROUTE_DEFAULT),
        "storeAndForwardConfiguration": {"timeToLiveSecs": STORE_SECONDS_DEFAULT},
    }
    return {CONTENT: {AGENT: {DESIRED: agent}, HUB: {DESIRED: hub}}}
