"""A broker, a module with real workers, the binding process between them, and a sensor that listens too."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_agent.binding.keeper import BindingKeeper, ask_report
from edge_agent.config import BindingConfig
from edge_agent.serving.limits import ServingLimits
from edge_contract.bindings import Binding, read_binding
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from tests.integration.serving import MODULE, PATIENT, Serving, serving
from tests.support.net import LOOPBACK, wait_until

DEVICE = "cam-7"
_WAIT_S = 30.0


def bind(**changes: Any) -> Binding:
    """A binding of the member `digits`, with these changes."""
    plain = {
        "name": "b",
        "member": "digits",
        "input_topic": "in/{device}",
        "output_topic": "out/{device}",
        "error_topic": "errors/{module}",
    }
    return read_binding({**plain, **changes})


@dataclass(frozen=True)
class Heard:
    """One message that the sensor's listener got."""

    topic: str
    content: bytes
    is_retained: bool
    correlation: bytes | None
    facts: dict[str, str]

    @property
    def document(self) -> Any:
        """Its JSON."""
        return json.loads(self.content)


class Sensor:
    """Publishes inputs and hears predictions and errors; MQTT 5 or 3.1.1."""

    def __init__(self, port: int, topics: Sequence[str], *, is_v5: bool = True, name: str = "sensor") -> None:
        self.heard: list[Heard] = []
        self._lock = threading.Lock()
        self._is_ready = threading.Event()
        self._is_v5 = is_v5
        protocol = paho.MQTTv5 if is_v5 else paho.MQTTv311
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=protocol)
        client.on_connect = lambda client, *_: client.subscribe([(topic, 1) for topic in topics])
        client.on_subscribe = lambda *_: self._is_ready.set()
        client.on_disconnect = lambda *_: self._is_ready.clear()
        client.on_message = self._keep
        client.reconnect_delay_set(1, 1)
        client.max_inflight_messages_set(2_000)
        client.connect(LOOPBACK, port)
        client.loop_start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Block until it is connected (again) and hears everything."""
        assert self._is_ready.wait(_WAIT_S)

    def publish(
        self,
        topic: str,
        content: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        response_topic: str = "",
        correlation: bytes = b"",
        hops: str = "",
    ) -> None:
        """Send a message and wait until the broker has it."""
        self.begin(topic, content, qos, retain, response_topic, correlation, hops).wait_for_publish(_WAIT_S)

    def begin(
        self,
        topic: str,
        content: bytes,
        qos: int = 1,
        retain: bool = False,
        response_topic: str = "",
        correlation: bytes = b"",
        hops: str = "",
    ) -> paho.MQTTMessageInfo:
        """Send a message."""
        properties: Any = Properties(PacketTypes.PUBLISH) if self._is_v5 else None  # type: ignore[no-untyped-call]
        if response_topic:
            properties.ResponseTopic = response_topic
        if correlation:
            properties.CorrelationData = correlation
        if hops:
            properties.UserProperty = ("lighterman-hops", hops)
        return self._client.publish(topic, content, qos, retain, properties)

    def wait(self, is_meant: Callable[[Heard], bool], what: str, count: int = 1) -> list[Heard]:
        """Wait for so many messages of a kind; gives them."""

        def found() -> list[Heard]:
            with self._lock:
                matching = [heard for heard in self.heard if is_meant(heard)]
            return matching if len(matching) >= count else []

        return wait_until(found, _WAIT_S, what=what)

    def on(self, topic: str, count: int = 1) -> list[Heard]:
        """Wait for so many messages on a topic."""
        return self.wait(lambda heard: heard.topic == topic, f"{count} messages on {topic}", count)

    def count(self, topic: str) -> int:
        """Messages heard on a topic so far."""
        with self._lock:
            return sum(heard.topic == topic for heard in self.heard)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _keep(self, _: Any, __: Any, message: paho.MQTTMessage) -> None:
        properties: Any = message.properties
        heard = Heard(
            message.topic,
            bytes(message.payload),
            bool(message.retain),
            getattr(properties, "CorrelationData", None),
            dict(getattr(properties, "UserProperty", ())),
        )
        with self._lock:
            self.heard.append(heard)


@dataclass
class Ground:
    """What a test works with.

    Attributes:
        serving: The supervisor and its slots.
        keeper: Keeps the binding process.
        run_dir: Of both.
    """

    serving: Serving
    keeper: BindingKeeper
    run_dir: Path
    sensors: list[Sensor] = field(default_factory=list)

    def live(self, bundle: tuple[Digest, Path], module: str = MODULE) -> None:
        """Make a bundle live."""
        self.serving.supervisor.ensure(module, *bundle)

    def report(self) -> JsonObject:
        """What the binding process says; empty while it does not answer."""
        try:
            return ask_report(self.run_dir)
        except EdgeError:
            return {}

    def wait_bound(self, *names: str, module: str = MODULE) -> None:
        """Wait until a module is connected and has exactly these bindings."""

        def is_so() -> bool:
            found = self.report().get("modules", {}).get(module)
            return bool(found and found["online"] and set(found["bindings"]) == set(names))

        wait_until(is_so, _WAIT_S, what=f"{module} to be bound; it says {self.log()}")

    def counts(self, name: str = "b", module: str = MODULE) -> JsonObject:
        """What a binding counted."""
        counts: JsonObject = self.report()["modules"][module]["bindings"][name]["counts"]
        return counts

    def wait_count(self, word: str, least: int, name: str = "b") -> None:
        """Wait until a count is reached."""
        wait_until(
            lambda: (
                (
                    self.report().get("modules", {}).get(MODULE, {}).get("bindings", {}).get(name, {}).get("counts", {})
                ).get(word, 0)
                >= least
            ),
            _WAIT_S,
            what=f"{least} {word}",
        )

    def log(self) -> str:
        """What the binding process has printed."""
        path = self.run_dir / "binding.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""


@contextlib.contextmanager
def ground(
    folder: Path, port: int, *, protocol: str = "auto", limits: ServingLimits = PATIENT, **config: Any
) -> Iterator[Ground]:
    """A supervisor and a keeper, both ended afterwards."""
    with serving(folder, limits) as state:
        keeper = BindingKeeper(
            BindingConfig(port=port, protocol=protocol, **config),
            DEVICE,
            state.run_dir,
            state.slots,
            state.supervisor.live_manifests,
        )
        keeper.start()
        try:
            yield Ground(state, keeper, state.run_dir)
        finally:
            keeper.stop()


@contextlib.contextmanager
def sensor(port: int, *topics: str, is_v5: bool = True, name: str = "sensor") -> Iterator[Sensor]:
    """A sensor, disconnected afterwards."""
    one = Sensor(port, topics or ("out/#", "errors/#"), is_v5=is_v5, name=name)
    try:
        yield one
    finally:
        one.close()


def row(*values: float) -> bytes:
    """A row of FP32 numbers as a sensor sends it."""
    return np.array(values, dtype="<f4").tobytes()
