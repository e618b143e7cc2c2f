"""What a deployment manifest may look like, and how large its parts may be.

The structure is that of deployment manifests with the schema version 1.1 of the agent; the sizes are those of module
twins in IoT Hub. Messages name a field by its path and never show a value, because values may be passwords.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from packager.iotedge.limits import (
    DESIRED_CHARS_MAX,
    DESIRED_DEPTH_MAX,
    DESIRED_KEY_BYTES_MAX,
    DESIRED_TEXT_BYTES_MAX,
    DESIRED_WHOLE_MAX,
    DESIRED_WHOLE_MIN,
    FLAG_CHARS,
    IMAGE_CHARS_MAX,
    MODULE_CHARS_MAX,
    MODULES_MAX,
    NUMBER_CHARS,
    ROUTE_PRIORITY_MAX,
    ROUTE_SECONDS_MAX,
    START_ORDER_MAX,
)

CONTENT: Final = "modulesContent"
AGENT: Final = "$edgeAgent"
HUB: Final = "$edgeHub"
DESIRED: Final = "properties.desired"
RESTART_POLICIES: Final = ("never", "on-failure", "on-unhealthy", "always")
CREATE_OPTIONS_KEY: Final = re.compile(r"create[oO]ptions[0-9]*")
MODULE_NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")
ENV_NAME: Final = re.compile(r"[^+#$\s.]+")
PLAIN_NAME: Final = re.compile(r"[^.$# ]+")
"""Of a route or of a registry's credentials."""
ADDRESS: Final = re.compile(r"\S+")
CONFIGURATION_ID: Final = re.compile(r"[a-z0-9\-:+%_#*?!(),=@;$']+")

_LINE: Final = re.compile(r".+")
_BARRED_IN_KEYS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f.$ ]")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PATH_CHARS_MAX: Final = 200

Check = Callable[[Any, str], None]


def refuse(path: str, need: str, hint: str = "") -> NoReturn:
    """Say which field is wrong.

    Raises:
        EdgeError: `config.invalid`, always.
    """
    shown = path if len(path) <= _PATH_CHARS_MAX else f"{path[:_PATH_CHARS_MAX]}…"
    raise EdgeError("config.invalid", f"deployment manifest, field {shown}: {need}", hint)


def _text(form: re.Pattern[str] | None = None, chars_max: int = DESIRED_TEXT_BYTES_MAX) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, str) or len(value) > chars_max:
            refuse(path, f"has to be a text of at most {chars_max} characters")
        if form is not None and not form.fullmatch(value):
            refuse(path, f"has to match {form.pattern}")

    return check


def _choice(*allowed: str) -> Check:
    def check(value: Any, path: str) -> None:
        if value not in allowed:
            refuse(path, f"has to be one of {', '.join(allowed)}")

    return check


def _whole(low: int, high: int) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            refuse(path, f"has to be a whole number from {low} to {high}")

    return check


def _plain_value(value: Any, path: str) -> None:
    if not isinstance(value, str | int | float):
        refuse(path, "has to be a text, a number, true or false")


def _any_object(value: Any, path: str) -> None:
    if not isinstance(value, dict):
        refuse(path, "has to be an object")


@dataclass(frozen=True, slots=True)
class _Object:
    """The fields of an object: those it must have, those it may have, and those whose name follows a rule."""

    required: Mapping[str, Check] = field(default_factory=dict)
    optional: Mapping[str, Check] = field(default_factory=dict)
    names: re.Pattern[str] | None = None
    each: Check = _any_object
    name_chars_max: int = DESIRED_KEY_BYTES_MAX

    def __call__(self, value: Any, path: str) -> None:
        _any_object(value, path)
        for key in self.required:
            if key not in value:
                refuse(f"{path}.{key}", "is missing")
        for key, item in value.items():
            place = f"{path}.{key}"
            check = self.required.get(key) or self.optional.get(key)
            if check is None and self.names is not None:
                if not self.names.fullmatch(key) or len(key) > self.name_chars_max:
                    need = (
                        f"a name here has to match {self.names.pattern}, with at most {self.name_chars_max} characters"
                    )
                    refuse(place, need)
                check = self.each
            if check is None:
                refuse(place, "is not a field of a deployment manifest")
            check(item, place)


_DOCKER = _choice("docker")
_STATUS = _choice("running", "stopped")
_RESTART = _choice(*RESTART_POLICIES)
_PULL = _choice("never", "on-create")
_START_ORDER = _whole(0, START_ORDER_MAX)
_ENV = _Object(names=ENV_NAME, each=_Object({"value": _plain_value}))
_SETTINGS = _Object({"image": _text(_LINE, IMAGE_CHARS_MAX)}, names=CREATE_OPTIONS_KEY, each=_text())
_RUNS: Final[Mapping[str, Check]] = {
    "type": _DOCKER,
    "settings": _SETTINGS,
    "status": _STATUS,
    "restartPolicy": _RESTART,
}
_MAY: Final[Mapping[str, Check]] = {"env": _ENV, "imagePullPolicy": _PULL, "startupOrder": _START_ORDER}
_MODULE = _Object(_RUNS, {**_MAY, "version": _text()})
_CREDENTIALS = _Object({"username": _text(), "password": _text(), "address": _text(ADDRESS)})
_RUNTIME_SETTINGS = _Object(
    optional={
        "minDockerVersion": _text(),
        "loggingOptions": _text(),
        "registryCredentials": _Object(names=PLAIN_NAME, each=_CREDENTIALS),
    }
)
_AGENT_DESIRED = _Object(
    {
        "schemaVersion": _choice("1.0", "1.1"),
        "runtime": _Object({"type": _DOCKER, "settings": _RUNTIME_SETTINGS}),
        "systemModules": _Object(
            {
                "edgeAgent": _Object({"type": _DOCKER, "settings": _SETTINGS}, {"env": _ENV, "imagePullPolicy": _PULL}),
                "edgeHub": _Object(_RUNS, _MAY),
            }
        ),
        "modules": _Object(names=MODULE_NAME, each=_MODULE, name_chars_max=MODULE_CHARS_MAX),
    }
)
_ROUTE_OBJECT = _Object(
    {"route": _text(_LINE)},
    {"priority": _whole(0, ROUTE_PRIORITY_MAX), "timeToLiveSecs": _whole(0, ROUTE_SECONDS_MAX)},
)


def _route(value: Any, path: str) -> None:
    check = _ROUTE_OBJECT if isinstance(value, dict) else _text(_LINE)
    check(value, path)


_HUB_DESIRED = _Object(
    {"schemaVersion": _choice("1.0", "1.1", "1.2"), "routes": _Object(names=PLAIN_NAME, each=_route)},
    {"storeAndForwardConfiguration": _Object({"timeToLiveSecs": _whole(DESIRED_WHOLE_MIN, DESIRED_WHOLE_MAX)})},
)
_MANIFEST = _Object(
    {AGENT: _Object({DESIRED: _AGENT_DESIRED}), HUB: _Object({DESIRED: _HUB_DESIRED})},
    names=MODULE_NAME,
    each=_Object({DESIRED: _any_object}),
    name_chars_max=MODULE_CHARS_MAX,
)


def require_valid(manifest: JsonObject) -> None:
    """Check the structure of a whole manifest, and every size that IoT Hub would refuse later.

    Args:
        manifest: `{"modulesContent": ...}`.

    Raises:
        EdgeError: `config.invalid`, naming the field.
    """
    if CONTENT not in manifest:
        hint = f"Give the object that has {CONTENT}; where a file wraps it in 'content', what is in there."
        refuse(CONTENT, "is missing", hint)
    for key in manifest:
        if key != CONTENT:
            refuse(key, "is not a field of a deployment manifest")
    content = manifest[CONTENT]
    _any_object(content, CONTENT)
    if layered := is_layered(manifest):
        hint = "Say --layered to put the module into a layered deployment."
        refuse(f"{CONTENT}.{layered}", "belongs to a layered deployment", hint)
    _MANIFEST(content, CONTENT)
    modules = content[AGENT][DESIRED]["modules"]
    if len(modules) > MODULES_MAX:
        refuse(f"{CONTENT}.{AGENT}.{DESIRED}.modules", f"has {len(modules)} modules, at most {MODULES_MAX} are allowed")
    for module, twin in content.items():
        path = f"{CONTENT}.{module}.{DESIRED}"
        chars = desired_chars(twin[DESIRED], path)
        if chars > DESIRED_CHARS_MAX:
            refuse(path, f"counts {chars} characters, IoT Hub takes at most {DESIRED_CHARS_MAX}")


def is_layered(manifest: JsonObject) -> str:
    """The first key that only a layered deployment has, with its module; empty for an ordinary manifest."""
    content = manifest.get(CONTENT)
    for module, twin in content.items() if isinstance(content, dict) else ():
        for key in twin if isinstance(twin, dict) else ():
            if key.startswith(f"{DESIRED}."):
                return f"{module}.{key}"
    return ""


def require_valid_layer(layer: JsonObject) -> None:
    """Check a layered deployment: paths, the parts at them, and every size that IoT Hub would refuse later.

    Args:
        layer: `{"modulesContent": ...}`; the parts may be those of several modules and of both system modules.

    Raises:
        EdgeError: `config.invalid`, naming the field.
    """
    content = layer.get(CONTENT)
    if not isinstance(content, dict) or set(layer) != {CONTENT}:
        refuse(CONTENT, "has to be the one field, an object")
    if not content:
        refuse(CONTENT, "is empty")
    count = 0
    for module, parts in content.items():
        if module not in (AGENT, HUB) and (not MODULE_NAME.fullmatch(module) or len(module) > MODULE_CHARS_MAX):
            refuse(f"{CONTENT}.{module}", f"a module's name has to match {MODULE_NAME.pattern}")
        _any_object(parts, f"{CONTENT}.{module}")
        for path, value in parts.items():
            place = f"{CONTENT}.{module}.{path}"
            _layer_part(module, path)(value, place)
            count += module == AGENT and path.startswith(_LAYER_MODULES)
        chars = sum(len(path.removeprefix(DESIRED)) + desired_chars(parts[path], path) for path in parts)
        if chars > DESIRED_CHARS_MAX:
            refuse(f"{CONTENT}.{module}", f"counts {chars} characters, IoT Hub takes at most {DESIRED_CHARS_MAX}")
    if count > MODULES_MAX:
        refuse(f"{CONTENT}.{AGENT}", f"has {count} modules, at most {MODULES_MAX} are allowed")


_LAYER_MODULES: Final = f"{DESIRED}.modules."
_LAYER_ROUTES: Final = f"{DESIRED}.routes."
_LAYER_CREDENTIALS: Final = f"{DESIRED}.runtime.settings.registryCredentials."


def _layer_part(module: str, path: str) -> Check:
    """What stands at a path of a layer."""
    where = f"{CONTENT}.{module}.{path}"
    for system, prefix, names, check in (
        (AGENT, _LAYER_MODULES, MODULE_NAME, _MODULE),
        (AGENT, _LAYER_CREDENTIALS, PLAIN_NAME, _CREDENTIALS),
        (HUB, _LAYER_ROUTES, PLAIN_NAME, _route),
    ):
        if module == system and path.startswith(prefix):
            if not names.fullmatch(path.removeprefix(prefix)):
                refuse(where, f"what follows {prefix} has to match {names.pattern}")
            return check
    if module in (AGENT, HUB):
        refuse(where, "is no part that a layer may have: modules, registry credentials and routes are")
    if path == DESIRED:
        return _any_object
    if not path.startswith(f"{DESIRED}.") or not all(path.split(".")):
        refuse(where, f"has to begin with {DESIRED}.")
    return _anything


def _anything(value: Any, path: str) -> None:
    desired_chars(value, path)


def desired_chars(value: Any, path: str, depth: int = 0) -> int:
    """The size of desired properties as the hub counts it: keys and values, without control characters.

    Args:
        value: A value as JSON has it.
        path: Where it is, for messages.
        depth: How deep it lies.

    Returns:
        Characters; a number counts 8, a flag 4.

    Raises:
        EdgeError: `config.invalid` for a key, a text, a number or a nesting that a twin cannot hold.
    """
    if depth > DESIRED_DEPTH_MAX:
        refuse(path, f"is nested deeper than {DESIRED_DEPTH_MAX} levels")
    if isinstance(value, dict):
        return sum(
            _key_chars(key, path) + desired_chars(item, f"{path}.{key}", depth + 1) for key, item in value.items()
        )
    if isinstance(value, list):
        return sum(desired_chars(item, f"{path}[{place}]", depth + 1) for place, item in enumerate(value))
    if isinstance(value, str):
        if len(value.encode("utf-8", "surrogatepass")) > DESIRED_TEXT_BYTES_MAX:
            refuse(path, f"is a text of more than {DESIRED_TEXT_BYTES_MAX} bytes")
        return len(_CONTROLS.sub("", value))
    if isinstance(value, bool):
        return FLAG_CHARS
    if isinstance(value, int) and not DESIRED_WHOLE_MIN <= value <= DESIRED_WHOLE_MAX:
        refuse(path, f"is not a whole number from {DESIRED_WHOLE_MIN} to {DESIRED_WHOLE_MAX}")
    return 0 if value is None else NUMBER_CHARS


def _key_chars(key: str, path: str) -> int:
    if not key or len(key.encode("utf-8", "surrogatepass")) > DESIRED_KEY_BYTES_MAX or _BARRED_IN_KEYS.search(key):
        need = f"a key has to have 1 to {DESIRED_KEY_BYTES_MAX} bytes, without '.', '$', spaces and control characters"
        refuse(f"{path}.{key}", need)
    return len(key)
