"""One connection over Azure's device SDK: an SDK object from its making to its end, and what it said meanwhile.

The SDK calls handlers on threads of its own, several at once; what they bring is put into `inbox` and looked at by the
link's thread. Direct methods alone are answered where they come, because they may take their time.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edge_agent.limits import HUB_INBOX_MAX, HUB_METHOD_BYTES_MAX, HUB_METHODS_MAX
from edge_agent.link.iothub_sdk import Sdk
from edge_agent.ports import LinkInput, Operations
from edge_contract.codes import CODES, Category
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, dump

_LOG = logging.getLogger(__name__)
OUTPUT: Final = "output"
_BAD_REQUEST: Final = 400
_TOO_MANY: Final = 429
_FAILED: Final = 500


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that waits for the link.

    Attributes:
        kind: A kind of `edge_contract.hub`, or `OUTPUT`.
        content: Its bytes.
        name: Of the output.
        properties: Of a message for an output.
        content_type: Likewise.
        tries: How often it was tried to send it and the hub did not say that it has it.
    """

    kind: str
    content: bytes
    name: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told at once, on a thread of the SDK: of inputs, and of direct methods that may be called."""

    on_input: Callable[[LinkInput], None] | None = None
    operations: Operations | None = None
    methods: tuple[str, ...] = ()


class HubConnection:
    """One SDK object and what it said; `inbox` and `lost` are guarded by the link's condition."""

    def __init__(self, sdk: Sdk, turn: threading.Condition, listeners: Listeners) -> None:
        """Nothing is connected yet."""
        self._sdk = sdk
        self._turn = turn
        self._listeners = listeners
        self._client: Any = None
        self._is_closed = False
        self._places = threading.BoundedSemaphore(HUB_METHODS_MAX)
        self.inbox: deque[tuple[str, Any]] = deque(maxlen=HUB_INBOX_MAX)
        self.lost = ""
        self.reported: Any = None

    def open(self) -> None:
        """Connect, subscribe, read the twin. Patches that come before the twin are older than it or repeat it.

        A new SDK object subscribes anew, so nothing depends on what the hub remembers of an earlier one.
        """
        client = self._sdk.client()
        with self._turn:
            self._client = client
            is_late = self._is_closed
        if is_late:
            self.close()
            return
        client.on_connection_state_change = self._changed
        client.on_background_exception = self._failed
        self._take_inputs(client)
        client.connect()
        client.on_message_received = self._message
        client.on_twin_desired_properties_patch_received = lambda patch: self._heard("patch", patch)
        if self._listeners.operations is not None and self._listeners.methods:
            client.on_method_request_received = self._method
        self.read_twin()

    def _take_inputs(self, client: Any) -> None:
        """Take a module's inputs where the SDK's pipeline gives them out, before there is a connection.

        A hub that remembers our subscription sends inputs with the first bytes of a connection, and the SDK, which has
        acknowledged them by then, drops what comes before a handler is set. Its handlers also run on four threads, so
        that inputs of a burst change places. Where its inside differs, the handler gets them after all.
        """
        pipeline: Any = getattr(client, "_mqtt_pipeline", None)
        if self._listeners.on_input is not None and hasattr(pipeline, "on_input_message_received"):
            pipeline.on_input_message_received = self._message

    def read_twin(self) -> None:
        """Ask for the whole twin; it comes into the inbox like a patch."""
        twin = self._client.get_twin()
        if isinstance(twin, dict):
            self.reported = twin.get("reported")
            self._heard("twin", twin.get("desired"))

    def send(self, item: Outgoing) -> None:
        """Send one message; returns when the hub has it."""
        if item.kind == OUTPUT:
            message = self._sdk.output(item.content, item.properties, item.content_type)
            self._client.send_message_to_output(message, item.name)
        else:
            self._client.send_message(self._sdk.message(item.kind, item.content))

    def report(self, patch: JsonObject) -> None:
        """Write reported properties; returns when the hub has them."""
        self._client.patch_twin_reported_properties(patch)

    def close(self) -> None:
        """End it, as long as the SDK may take."""
        with self._turn:
            self._is_closed = True
            client = self._client
        if client is None:
            return
        try:
            client.shutdown()
        except Exception as error:  # noqa: BLE001 - they have no common base
            _LOG.debug("the SDK did not shut down in order: %s", type(error).__name__)

    # --- on the SDK's threads

    def _message(self, message: Any) -> None:
        name = getattr(message, "input_name", None)
        if name is None:
            self._heard("message", message)
            return
        if self._listeners.on_input is None:
            return
        content = message.data
        properties = {str(key): str(value) for key, value in (message.custom_properties or {}).items()}
        data = content if isinstance(content, bytes) else str(content).encode()
        self._listeners.on_input(LinkInput(str(name), data, properties, str(message.content_type or "")))

    def _method(self, request: Any) -> None:
        if not self._places.acquire(blocking=False):
            threading.Thread(
                target=self._answer,
                args=(request, _TOO_MANY, _error("device.busy", "too many direct methods at once")),
                daemon=True,
            ).start()
            return
        try:
            status, answer = self._performed(str(request.name), request.payload)
            self._answer(request, status, answer)
        finally:
            self._places.release()

    def _performed(self, name: str, arguments: Any) -> tuple[int, JsonObject]:
        operations = self._listeners.operations
        if operations is None or name not in self._listeners.methods:
            known = ", ".join(self._listeners.methods)
            return _BAD_REQUEST, _error("config.invalid", f"there is no method {name[:80]!r} here", f"Known: {known}.")
        if not isinstance(arguments, dict | None):
            return _BAD_REQUEST, _error("config.invalid", "the arguments of a method are a JSON object, or nothing")
        try:
            answer = operations.perform(name, arguments or {})
        except EdgeError as error:
            is_asker = CODES[error.code].category is Category.CONFIG
            return (_BAD_REQUEST if is_asker else _FAILED), _error(error.code, error.detail, error.hint)
        except TimeoutError:
            return _FAILED, _error("device.busy", "the agent's loop did not answer in time", "Ask again.")
        except Exception:  # noqa: BLE001 - the asker hears that it failed; the log says how
            _LOG.exception("the direct method %s failed", name)
            return _FAILED, _error("internal.bug", "the method failed; the agent's log says how")
        if len(dump(answer)) > HUB_METHOD_BYTES_MAX:
            return _FAILED, _error("device.busy", f"the answer is longer than {HUB_METHOD_BYTES_MAX} bytes")
        return 200, answer

    def _answer(self, request: Any, status: int, answer: JsonObject) -> None:
        try:
            self._client.send_method_response(self._sdk.response(request, status, answer))
        except Exception as error:  # noqa: BLE001 - the asker hears nothing, and asks again
            _LOG.warning("a direct method's answer did not get through: %s", type(error).__name__)

    def _heard(self, kind: str, value: Any) -> None:
        with self._turn:
            self.inbox.append((kind, value))
            self._turn.notify_all()

    def _changed(self) -> None:
        if not self._client.connected:
            self._end("the connection ended")

    def _failed(self, error: Exception) -> None:
        if not self._client.connected:
            self._end(type(error).__name__)

    def _end(self, reason: str) -> None:
        with self._turn:
            self.lost = self.lost or reason
            self._turn.notify_all()


def _error(code: str, detail: str, hint: str = "") -> JsonObject:
    return {"error": {"code": code, "detail": detail, "hint": hint}}
