"""Keeps mosquitto's dynamic-security plugin in step with the enrolled devices (docs/adr/0010-broker.md).

mosquitto 2.0 has no user-name patterns in that plugin, so each enrolment of a device has an entry: a role
`device:<identity>` that names the device's four topics, and a client entry `<identity>` (the common name of its
certificates) that has this role and no password. When a device enrols again, the entry of its former identity goes, and
with it the connection that used it. Only roles of that form are ever changed or removed here; entries that people made
are left alone.
"""

import json
import logging
import queue
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from cloud_registry.adapters.link_mqtt import LinkHandlers, LinkMessage, MqttLink
from cloud_registry.config import MqttConfig
from cloud_registry.limits import (
    ROSTER_ANSWER_MS,
    ROSTER_COMMANDS_MAX,
    ROSTER_RETRY_MS,
    ROSTER_SYNC_MS,
    ROSTER_WAITING_MAX,
    STOP_TIMEOUT_S,
)
from edge_contract import topics
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.names import device_name

CONTROL_TOPIC: Final = "$CONTROL/dynamic-security/v1"
RESPONSE_TOPIC: Final = f"{CONTROL_TOPIC}/response"
ROLE_PREFIX: Final = "device:"

_log: Final = logging.getLogger(__name__)
_HARMLESS: Final = frozenset(
    {"Role already exists", "Client already exists", "Role not found", "Client not found", "Role does not exist"}
)
_NO_ANSWER: Final[JsonObject] = {}


def device_role(identity: str, device: str) -> JsonObject:
    """The role of one enrolment: what it may publish, subscribe to and receive. Everything else is refused.

    Args:
        identity: Name of the enrolment.
        device: Name of the device, whose topics they are.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    sends = (topics.report(device), topics.telemetry(device))
    hears = (topics.nudge(device), topics.ack(device))
    rules = [("publishClientSend", topic) for topic in sends]
    rules += [(kind, topic) for topic in hears for kind in ("subscribeLiteral", "publishClientReceive")]
    return {
        "rolename": ROLE_PREFIX + device_name(identity),
        "acls": [{"acltype": kind, "topic": topic, "priority": 0, "allow": True} for kind, topic in rules],
    }


def device_entry(identity: str) -> JsonObject:
    """The client entry of one enrolment. It has no password, so that only a certificate opens it."""
    return {"username": identity, "roles": [{"rolename": ROLE_PREFIX + identity, "priority": 0}]}


class MosquittoRoster:
    """The `BrokerRoster` port: a connection with the cloud's own identity and one thread.

    Changes are sent as they come; at every connection, and every `ROSTER_SYNC_MS`, the broker's list is compared with
    the enrolled devices, so nothing stays wrong for want of a connection at the right moment.
    """

    def __init__(self, config: MqttConfig, identities: Callable[[], Mapping[str, str]]) -> None:
        """Start in the background.

        Args:
            config: The broker, with an identity that may administer it.
            identities: Devices by the identity of their current enrolment, as the database says at this moment.

        Raises:
            EdgeError: as `MqttLink`.
        """
        self._identities = identities
        self._changes: dict[str, str | None] = {}
        self._changed = threading.Condition()
        self._is_closing = threading.Event()
        self._answers: queue.SimpleQueue[JsonObject] = queue.SimpleQueue()
        handlers = LinkHandlers(on_message=self._on_message, on_lost=self._on_lost)
        self._link = MqttLink(
            replace(config, shared_group=""), "roster", subscriptions=[RESPONSE_TOPIC], handlers=handlers
        )
        self._is_synced = False
        self._thread = threading.Thread(target=self._run, name="broker-roster", daemon=True)
        self._link.start()
        self._thread.start()

    @property
    def is_synced(self) -> bool:
        """Whether the broker's list has been compared since the connection was made, and no change waits."""
        with self._changed:
            return self._is_synced and not self._changes

    def admit(self, identity: str, device: str) -> None:
        """See `BrokerRoster.admit`."""
        self._change(identity, device)

    def remove(self, identity: str) -> None:
        """See `BrokerRoster.remove`."""
        self._change(identity, None)

    def close(self) -> None:
        """End thread and connection; bounded."""
        with self._changed:
            self._is_closing.set()
            self._changed.notify()
        self._link.close()
        self._thread.join(STOP_TIMEOUT_S)

    # --- inside ---

    def _change(self, identity: str, device: str | None) -> None:
        with self._changed:
            # Beyond the bound the next comparison finds it.
            if identity in self._changes or len(self._changes) < ROSTER_WAITING_MAX:
                self._changes[identity] = device
            self._changed.notify()

    def _on_message(self, message: LinkMessage) -> bool:
        if message.topic == RESPONSE_TOPIC:
            try:
                answer = json.loads(message.content)
            except ValueError:
                return True
            if isinstance(answer, dict):
                self._answers.put(answer)
        if message.token is not None:
            self._link.acknowledge(message.token)
        return True

    def _on_lost(self) -> None:
        self._answers.put(_NO_ANSWER)
        with self._changed:
            self._is_synced = False

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._is_synced and not self._changes:
                    self._changed.wait(ROSTER_SYNC_MS / 1000)
                    # Nothing happened for that long: compare again.
                    self._is_synced = bool(self._changes)
                if self._is_closing.is_set():
                    return
            if not self._link.wait_ready(1.0):
                continue
            try:
                self._work_off()
                if not self.is_synced:
                    self._compare()
            except EdgeError as error:
                with self._changed:
                    if self._is_closing.is_set():
                        return
                    self._is_synced = False
                    _log.warning("the broker's list of devices could not be kept: %s", error)
                    self._changed.wait(ROSTER_RETRY_MS / 1000)

    def _work_off(self) -> None:
        with self._changed:
            changes, self._changes = self._changes, {}
        try:
            self._apply(changes.items())
        except EdgeError:
            with self._changed:
                self._changes = changes | self._changes
            raise

    def _compare(self) -> None:
        # The broker first: a device that enrols in between is then missing here, never taken for one that was deleted.
        found: dict[str, set[str]] = {"clients": set(), "roles": set()}
        for kind, command in (("clients", "listClients"), ("roles", "listRoles")):
            (response,) = self._ask([{"command": command, "count": -1, "offset": 0}])
            found[kind] = {str(name) for name in response.get("data", {}).get(kind, [])}
        ours = {name.removeprefix(ROLE_PREFIX) for name in found["roles"] if name.startswith(ROLE_PREFIX)}
        enrolled = self._identities()
        missing, extra = enrolled.keys() - (ours & found["clients"]), ours - enrolled.keys()
        self._apply([*((name, None) for name in sorted(extra)), *((name, enrolled[name]) for name in sorted(missing))])
        with self._changed:
            self._is_synced = True
        if missing or extra:
            _log.info("the broker's list of devices: %d added, %d removed", len(missing), len(extra))

    def _apply(self, changes: Iterable[tuple[str, str | None]]) -> None:
        commands: list[JsonObject] = []
        for identity, device in changes:
            commands += _commands(identity, device)
        for part in _parts(commands):
            for command, response in zip(part, self._ask(part), strict=True):
                error = response.get("error")
                if error is not None and error not in _HARMLESS:
                    name = command.get("username") or command.get("rolename")
                    _log.error("the broker refused %s for %s: %s", command["command"], name, error)

    def _ask(self, commands: Sequence[JsonObject]) -> list[JsonObject]:
        """Send commands and wait for their responses, which every administrator of the broker gets to see."""
        marks = [secrets.token_hex(8) for _ in commands]
        while not self._answers.empty():
            self._answers.get()
        marked = [command | {"correlationData": mark} for command, mark in zip(commands, marks, strict=True)]
        self._link.publish(CONTROL_TOPIC, json.dumps({"commands": marked}).encode())
        while True:
            try:
                answer = self._answers.get(timeout=ROSTER_ANSWER_MS / 1000)
            except queue.Empty:
                raise EdgeError(
                    "network.timeout",
                    f"the broker did not answer on {CONTROL_TOPIC}",
                    "Is its dynamic-security plugin loaded, and may this identity administer it?",
                ) from None
            if answer is _NO_ANSWER:
                raise EdgeError("network.cut", "the connection to the broker ended")
            responses: list[Any] = answer.get("responses", [])
            found = {item.get("correlationData"): item for item in responses if isinstance(item, dict)}
            if all(mark in found for mark in marks):
                return [found[mark] for mark in marks]


def _commands(identity: str, device: str | None) -> list[JsonObject]:
    if device is not None:
        return [
            {"command": "createRole", **device_role(identity, device)},
            {"command": "createClient", **device_entry(identity)},
        ]
    return [
        {"command": "deleteClient", "username": identity},
        {"command": "deleteRole", "rolename": ROLE_PREFIX + identity},
    ]


def _parts(commands: Sequence[JsonObject]) -> Iterator[Sequence[JsonObject]]:
    for start in range(0, len(commands), ROSTER_COMMANDS_MAX):
        yield commands[start : start + ROSTER_COMMANDS_MAX]
