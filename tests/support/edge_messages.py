"""The hub's side of an IoT Edge module, in memory: tests put inputs in and read outputs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent.ports import LinkInput
from tests.support.net import wait_until

_WAIT_S = 60.0


@dataclass(frozen=True)
class Output:
    """One message that a module sent to an output."""

    name: str
    content: bytes
    properties: dict[str, str]
    content_type: str

    @property
    def document(self) -> Any:
        """Its JSON."""
        return json.loads(self.content)


class EdgeMessages:
    """Implements `ports.ModuleMessages`. Any thread."""

    def __init__(self) -> None:
        """Begin online, with nothing sent."""
        self._lock = threading.Lock()
        self._outputs: list[Output] = []
        self._on_input: Callable[[LinkInput], None] | None = None
        self.is_online = True

    def listen(self, on_input: Callable[[LinkInput], None]) -> None:
        """See `ports.ModuleMessages.listen`."""
        assert self._on_input is None
        self._on_input = on_input

    def send_output(self, name: str, content: bytes, properties: Mapping[str, str], content_type: str) -> bool:
        """See `ports.ModuleMessages.send_output`."""
        if not self.is_online:
            return False
        with self._lock:
            self._outputs.append(Output(name, content, dict(properties), content_type))
        return True

    def put(self, name: str, content: bytes, **properties: str) -> None:
        """Deliver a message to an input; `_` in names of properties stands for `-`."""
        assert self._on_input is not None
        named = {key.replace("_", "-"): value for key, value in properties.items()}
        self._on_input(LinkInput(name, content, named, "application/json"))

    def on(self, name: str) -> list[Output]:
        """What was sent to an output so far."""
        with self._lock:
            return [output for output in self._outputs if output.name == name]

    def wait(self, name: str, count: int = 1) -> list[Output]:
        """Wait for so many messages on an output."""
        wait_until(lambda: len(self.on(name)) >= count, _WAIT_S, what=f"{count} messages on the output {name}")
        return self.on(name)
