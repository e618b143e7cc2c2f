"""Automatic configurations: deployments of IoT Edge, whole and layered, and configurations of devices and modules.

The service looks at target conditions every few minutes; this emulator does it whenever something that counts was
written, so that tests need not wait. Everything else is by its rules. On the hub's thread.
Source: Azure IoT Hub documentation, "Understand IoT Edge automatic deployments" and "Automatic device management".
"""

import copy
import re
from collections.abc import Iterator
from typing import Any, Final

from device_sim.iothub.configuration_content import (
    DEVICE,
    EDGE,
    MODULE,
    checked_content,
    composed,
    difference,
    is_layered,
    kind_of,
    modules_of,
    with_paths,
)
from device_sim.iothub.hub import Hub, require_etag
from device_sim.iothub.identities import HubError
from device_sim.iothub.query import matches, run
from device_sim.iothub.query_parse import Expression, QueryError, parse_condition, parse_query
from device_sim.iothub.service_limits import (
    CONFIGURATION_ID_CHARS_MAX,
    CONFIGURATION_LABELS_MAX,
    CONFIGURATION_METRICS_MAX,
    CONFIGURATIONS_MAX,
    PRIORITY_MAX,
)
from device_sim.iothub.twins import instant
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject

_KIND: Final = "configuration"
_ID: Final = re.compile(rf"[a-z0-9\-:+%_#*?!(),=@;$']{{1,{CONFIGURATION_ID_CHARS_MAX}}}")
_MODULES_FORM: Final = re.compile(r"\s*from\s+devices\.modules\s+where\s+", re.IGNORECASE)
_RETELL: Final = ("created", "updated", "twin", "reported")
_OK: Final = 200


class Configurations:
    """All configurations of a hub."""

    def __init__(self, hub: Hub) -> None:
        """Take those that the hub holds, and follow what is written to it."""
        self._hub = hub
        self._conditions: dict[str, Expression | None] = {}
        self._is_applying = False
        for name, document in hub.documents_of(_KIND):
            self._conditions[name] = _condition(document)
        hub.observers.append(self._observe)

    # --- the service API

    def first(self, top: int) -> list[JsonObject]:
        """The first ones by name."""
        return [self.get(name) for name, _document in list(self._hub.documents_of(_KIND))[:top]]

    def get(self, name: str) -> JsonObject:
        """One configuration with its metrics as they are now.

        Raises:
            HubError: 404.
        """
        document = copy.deepcopy(self._stored(name))
        revision = document.pop("revision")
        queries = document["metrics"].get("queries") or {}
        results = {metric: len(self.query(text)[1]) for metric, text in queries.items()}
        document["metrics"] = {"queries": queries, "results": results}
        document["systemMetrics"] = {"queries": {}, "results": self._system_metrics(name, document)}
        return document | {"etag": f"{revision}"}

    def put(self, name: str, body: JsonObject, etag: str | None) -> tuple[JsonObject, bool]:
        """Make a configuration, or change all but its content.

        Args:
            name: Its identifier.
            body: The REST API's form.
            etag: If-Match; none makes a new one.

        Returns:
            (the configuration, whether it is new).

        Raises:
            HubError: 400, 403 (too many), 404, 409 (it exists), 412.
        """
        known = self._hub.documents.get((_KIND, name))
        if known is None and etag is not None:
            raise HubError(404, "ConfigurationNotFound", f"configuration {name} does not exist", 404013)
        if known is not None and etag is None:
            raise HubError(409, "ConfigurationAlreadyExists", f"configuration {name} exists", 409009)
        if known is not None:
            require_etag(etag or "*", str(known["revision"]))
        elif len(self._conditions) >= CONFIGURATIONS_MAX:
            raise HubError(403, "TooManyConfigurations", f"a hub has at most {CONFIGURATIONS_MAX} configurations")
        document = self._checked(name, body)
        now = instant(self._hub.now_ms())
        if known is not None and known["content"] != document["content"]:
            why = "the content of a configuration cannot be changed: make a new one with a higher priority"
            raise HubError(400, "ArgumentInvalid", why)
        document["createdTimeUtc"] = known["createdTimeUtc"] if known else now
        document["lastUpdatedTimeUtc"] = now
        document["revision"] = known["revision"] + 1 if known else 1
        self._conditions[name] = _condition(document)
        self._hub.put_document(_KIND, name, document)
        self._apply_all()
        return self.get(name), known is None

    def delete(self, name: str, etag: str) -> None:
        """Take a configuration out; devices fall to the next lower one.

        Raises:
            HubError: 404, 412.
        """
        require_etag(etag, str(self._stored(name)["revision"]))
        del self._conditions[name]
        self._hub.put_document(_KIND, name, None)
        self._apply_all()

    def test(self, body: JsonObject) -> JsonObject:
        """What is wrong with a target condition and with queries; null where nothing is."""
        problem: str | None = None
        condition = body.get("targetCondition")
        if condition is not None:
            try:
                _condition({"targetCondition": str(condition)})
            except QueryError as error:
                problem = str(error)
        problems: JsonObject = {}
        queries = body.get("customMetricQueries")
        for metric, text in queries.items() if isinstance(queries, dict) else ():
            try:
                parse_query(str(text))
            except QueryError as error:
                problems[metric] = str(error)
        return {"targetConditionError": problem, "customMetricQueryErrors": problems}

    def apply_content(self, device: str, body: JsonObject) -> None:
        """Put content on one device at once, without a configuration.

        Raises:
            HubError: 400, 404, 413.
        """
        content = checked_content(body)
        identity = self._hub.identity(HubAddress(device))
        kind = kind_of(content)
        if kind == MODULE:
            raise HubError(400, "ArgumentInvalid", "moduleContent needs a configuration: it names no module")
        if kind == EDGE:
            if not identity.is_edge:
                raise HubError(400, "ArgumentInvalid", f"{device} runs no IoT Edge: capabilities.iotEdge is not set")
            self._write_modules(device, composed([content]))
        else:
            self._write_paths(HubAddress(device), content[DEVICE])

    def query(self, text: str) -> tuple[str, list[JsonObject]]:
        """Run a query over the hub.

        Returns:
            (`twin`, or `raw` where results are no whole twins; the results).

        Raises:
            HubError: 400.
        """
        try:
            query = parse_query(text)
        except QueryError as error:
            raise HubError(400, "ArgumentInvalid", f"BadQuery: {error}", 400000) from None
        if query.source == "devices.jobs":
            return "jobResponse", []
        results = run(query, self._twins(of_modules=query.source == "devices.modules"))
        return ("raw" if query.columns else "twin"), results

    def _twins(self, *, of_modules: bool) -> Iterator[JsonObject]:
        for address in sorted(self._hub.identities, key=str):
            if bool(address.module) == of_modules:
                yield self._hub.twin_document(address)

    # --- rules

    def _checked(self, name: str, body: JsonObject) -> JsonObject:
        if not _ID.fullmatch(name):
            raise HubError(
                400, "ArgumentInvalid", f"{name[:80]!r} is no identifier: lower case letters, digits, -:+%_#*"
            )
        if body.get("id", name) != name:
            raise HubError(400, "ArgumentInvalid", "the identifier in the body is another one than in the path")
        priority = body.get("priority", 0)
        if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= PRIORITY_MAX:
            raise HubError(400, "ArgumentInvalid", "priority is a whole number, 0 or more")
        labels, metrics = body.get("labels") or {}, body.get("metrics") or {}
        queries = metrics.get("queries") or {} if isinstance(metrics, dict) else None
        if not isinstance(labels, dict) or len(labels) > CONFIGURATION_LABELS_MAX:
            raise HubError(400, "ArgumentInvalid", f"labels is an object of at most {CONFIGURATION_LABELS_MAX}")
        if not isinstance(queries, dict) or len(queries) > CONFIGURATION_METRICS_MAX:
            raise HubError(400, "ArgumentInvalid", f"metrics has at most {CONFIGURATION_METRICS_MAX} queries")
        document: JsonObject = {
            "id": name,
            "schemaVersion": body.get("schemaVersion") or "1.0",
            "labels": labels,
            "content": checked_content(body.get("content")),
            "targetCondition": str(body.get("targetCondition") or ""),
            "priority": priority,
            "metrics": {"queries": queries},
        }
        problems = self.test({"targetCondition": document["targetCondition"], "customMetricQueries": queries})
        if problems["targetConditionError"] or problems["customMetricQueryErrors"]:
            raise HubError(400, "ConfigurationInvalid", str(problems))
        is_of_modules = bool(_MODULES_FORM.match(document["targetCondition"]))
        if document["targetCondition"] and is_of_modules != (kind_of(document["content"]) == MODULE):
            raise HubError(400, "ConfigurationInvalid", "FROM devices.modules WHERE … belongs to moduleContent alone")
        return document

    def _stored(self, name: str) -> JsonObject:
        found = self._hub.documents.get((_KIND, name))
        if found is None:
            raise HubError(404, "ConfigurationNotFound", f"configuration {name} does not exist", 404013)
        return found

    def _observe(self, what: str, address: HubAddress) -> None:
        if self._is_applying or not self._conditions or what not in _RETELL:
            return
        self._apply([address])

    def _apply_all(self) -> None:
        self._apply(list(self._hub.identities))

    def _apply(self, addresses: list[HubAddress]) -> None:
        self._is_applying = True  # what is written here is no reason to begin again
        try:
            for address in addresses:
                if address in self._hub.identities:
                    self._apply_to(address)
        finally:
            self._is_applying = False

    def _apply_to(self, address: HubAddress) -> None:
        found = self._matching(address)
        states: JsonObject = {document["id"]: {"status": "Targeted"} for document in found}
        chosen = self._chosen(found)
        if chosen:
            try:
                self._write(address, chosen)
            except HubError:
                pass  # too large together with what is there: it stays at Targeted, as the service shows it
            else:
                states |= {document["id"]: {"status": "Applied"} for document in chosen}
        twin = self._hub.twin(address)
        if twin.configurations != states:
            twin.configurations = states
            self._hub.note("twin", address)

    def _matching(self, address: HubAddress) -> list[JsonObject]:
        """Configurations that mean a device or module, the strongest first."""
        shown = self._hub.twin_document(address)
        found = []
        for _name, document in self._hub.documents_of(_KIND):
            kind = kind_of(document["content"])
            is_of_it = (
                (kind == MODULE) == bool(address.module)
                and (kind == EDGE) <= bool(self._hub.identities[address].is_edge)
                and bool(document["targetCondition"])
            )
            if is_of_it and matches(self._conditions[document["id"]], shown):
                found.append(document)
        return sorted(found, key=lambda item: (item["priority"], item["createdTimeUtc"]), reverse=True)

    @staticmethod
    def _chosen(found: list[JsonObject]) -> list[JsonObject]:
        """Those that apply: one, or the layers above the strongest whole deployment and it, the strongest first."""
        base = next((item for item in found if not is_layered(item["content"])), None)
        if base is None or kind_of(base["content"]) != EDGE:
            return [] if base is None else [base]
        layers = [item for item in found if is_layered(item["content"]) and item["priority"] > base["priority"]]
        return [*layers, base]

    def _write(self, address: HubAddress, chosen: list[JsonObject]) -> None:
        content = chosen[0]["content"]
        kind = kind_of(content)
        if kind == EDGE:
            self._write_modules(address.device, composed([item["content"] for item in reversed(chosen)]))
        else:
            self._write_paths(address, content[MODULE if kind == MODULE else DEVICE])

    def _write_modules(self, device: str, wanted: dict[str, JsonObject]) -> None:
        """Set the desired properties of modules; those that are missing are made, as the runtime would."""
        names = [*wanted, *modules_of(wanted)]
        for name in dict.fromkeys(names):
            address = HubAddress(device, name)
            if address not in self._hub.identities:
                self._hub.create(address, {"managedBy": "IotEdge"})
            if name in wanted:
                self._write_desired(address, wanted[name])

    def _write_paths(self, address: HubAddress, paths: JsonObject) -> None:
        self._write_desired(address, with_paths(self._hub.twin(address).desired.values, paths))

    def _write_desired(self, address: HubAddress, values: JsonObject) -> None:
        patch = difference(self._hub.twin(address).desired.values, values)
        if patch:
            self._hub.write_twin(address, {"properties": {"desired": patch}}, is_patch=True)

    def _system_metrics(self, name: str, document: JsonObject) -> JsonObject:
        states = [
            (address, state["status"])
            for address, twin in self._hub.twins.items()
            if (state := twin.configurations.get(name)) is not None
        ]
        results = {
            "targetedCount": len(states),
            "appliedCount": sum(status == "Applied" for _address, status in states),
        }
        if kind_of(document["content"]) == EDGE:
            told = [self._reported_code(address.device) for address, status in states if status == "Applied"]
            results["reportedSuccessfulCount"] = sum(code == _OK for code in told)
            results["reportedFailedCount"] = sum(code not in (None, _OK) for code in told)
        return results

    def _reported_code(self, device: str) -> Any:
        """What IoT Edge says about its newest deployment, or none before it says anything."""
        twin = self._hub.twins.get(HubAddress(device, "$edgeAgent"))
        if twin is None or twin.reported.values.get("lastDesiredVersion") != twin.desired.version:
            return None
        status = twin.reported.values.get("lastDesiredStatus")
        return status.get("code") if isinstance(status, dict) else None


def _condition(document: JsonObject) -> Expression | None:
    text = document["targetCondition"]
    return parse_condition(_MODULES_FORM.sub("", text, count=1)) if text else None
