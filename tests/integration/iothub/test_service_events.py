"""The emulator's Event-Hubs-compatible endpoint, with Microsoft's azure-eventhub as judge; messages over AMQP."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import certifi
import pytest
from azure.eventhub import EventData, EventHubConsumerClient, TransportType
from azure.eventhub.exceptions import AuthenticationError, ConnectError, EventHubError
from azure.iot.hub import IoTHubRegistryManager

from device_sim.iothub import eventhub
from device_sim.iothub.running import Emulator
from edge_contract.hub import HubAddress
from tests.integration.iothub.clients import WAIT_S, device, message, module
from tests.support.iothub import SDK_LEAKS, running_hub
from tests.support.net import wait_until

pytestmark = pytest.mark.filterwarnings(SDK_LEAKS)

_START = "-1"
# The beginning of a good connection: SASL's header, sasl-init with ANONYMOUS, the header of AMQP.
_SASL = (
    b"AMQP\x03\x01\x00\x00\x00\x00\x00\x19\x02\x01\x00\x00\x00\x53\x41\xc0\x0c\x01\xa3\x09ANONYMOUSAMQP\x00\x01\x00\x00"
)


@pytest.fixture(scope="module", autouse=True)
def _turns() -> Iterator[None]:
    """The client spins while it has no partition, in the emulator's process: others get their turn sooner."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 50)
    yield
    sys.setswitchinterval(usual)


def _client(hub: Emulator, group: str = "$Default", *, key: str = "", policy: str = "service") -> Any:
    text = eventhub.connection_string(hub.name, {policy: key or hub.hub.policies[policy]}, policy)
    return EventHubConsumerClient.from_connection_string(
        text,
        consumer_group=group,
        custom_endpoint_address=hub.eventhub_address,
        transport_type=TransportType.Amqp,
        connection_verify=str(hub.ca_file),
        retry_total=0,
    )


class Reader:
    """A consumer in a thread of its own; what it hears is in `events`, what goes wrong in `errors`."""

    def __init__(self, client: Any, **options: Any) -> None:
        self.events: queue.Queue[tuple[str, EventData]] = queue.Queue()
        self.errors: queue.Queue[Exception] = queue.Queue()
        self._client = client
        arguments = {"starting_position": _START, **options}
        self._thread = threading.Thread(target=client.receive, args=(self._heard,), kwargs=arguments, daemon=True)
        arguments["on_error"] = lambda _context, error: self.errors.put(error)
        self._thread.start()

    def _heard(self, context: Any, event: EventData | None) -> None:
        if event is not None:
            self.events.put((context.partition_id, event))

    def take(self, count: int) -> list[tuple[str, EventData]]:
        """The next events."""
        return [self.events.get(timeout=WAIT_S) for _ in range(count)]

    def texts(self, count: int) -> list[str]:
        """The bodies of the next events, in order of arrival."""
        return [event.body_as_str() for _partition, event in self.take(count)]

    def close(self) -> None:
        """End it."""
        self._client.close()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def _reading(client: Any, **options: Any) -> Iterator[Reader]:
    reader = Reader(client, **options)
    try:
        yield reader
    finally:
        reader.close()


def _put(hub: Emulator, name: str, *texts: str) -> list[Any]:
    """Telemetry of a device that does not have to be there."""
    return hub.call(
        lambda: [hub.hub.telemetry.append(HubAddress(name), text.encode(), {}, {}, hub.hub.now_ms()) for text in texts]
    )


def _partition(hub: Emulator, name: str) -> str:
    return str(hub.hub.telemetry.partition_of(name))


def test_telemetry_of_the_device_sdk_reaches_the_consumer_with_its_properties(hub: Emulator, name: str) -> None:
    hub.add_device(name, edge=True)
    with _reading(_client(hub)) as reader:
        with device(hub.add_device(f"{name}-plain"), hub.ca_pem) as client:
            sent = message('{"n": 1}', kind="batch", empty="")
            sent.message_id, sent.correlation_id = "m-1", "c-1"
            sent.content_type, sent.content_encoding = "application/json", "utf-8"
            client.sdk.send_message(sent)
        ((partition, event),) = reader.take(1)
        with module(hub.add_module(name, "reader"), hub.ca_pem) as client:
            client.sdk.send_message_to_output("seen", "scores")
        ((_other, of_module),) = reader.take(1)
    assert (event.body_as_str(), event.properties) == ('{"n": 1}', {b"kind": b"batch", b"empty": b""})
    system = event.system_properties
    assert partition == _partition(hub, f"{name}-plain")
    assert system[b"iothub-connection-device-id"] == f"{name}-plain".encode()
    assert b"iothub-connection-module-id" not in system
    assert json.loads(system[b"iothub-connection-auth-method"])["type"] == "sas"
    assert (system[b"message-id"], system[b"correlation-id"]) == (b"m-1", b"c-1")
    assert (event.content_type, system[b"content-encoding"]) == ("application/json", b"utf-8")
    assert system[b"iothub-message-source"] == b"Telemetry"
    assert event.enqueued_time is not None
    assert system[b"iothub-enqueuedtime"] == int(event.enqueued_time.timestamp() * 1000)
    assert of_module.system_properties[b"iothub-connection-module-id"] == b"reader"
    assert of_module.system_properties[b"iothub-output-name"] == b"scores"


def test_the_endpoint_tells_of_itself_and_its_partitions(hub: Emulator, name: str) -> None:
    with _client(hub) as client:
        told = client.get_eventhub_properties()
        assert (told["eventhub_name"], told["partition_ids"]) == (eventhub.EVENT_HUB, ["0", "1", "2", "3"])
        assert abs(told["created_at"] - datetime.now(UTC)) < timedelta(minutes=10)
        last = _put(hub, name, "a", "b")[-1]
        part = client.get_partition_properties(_partition(hub, name))
        assert (part["last_enqueued_sequence_number"], part["is_empty"]) == (last.sequence, False)
        assert part["last_enqueued_offset"] == str(last.offset)
        with pytest.raises(EventHubError):
            client.get_partition_properties("9")


def test_each_position_begins_where_it_says(hub: Emulator, name: str) -> None:
    events = _put(hub, name, *(f"{name} {number}" for number in range(5)))
    second, partition = events[1], _partition(hub, name)
    when = datetime.fromtimestamp(events[0].enqueued_ms / 1000, UTC) - timedelta(milliseconds=1)

    wanted: list[tuple[Any, bool, str]] = [
        (second.sequence, False, f"{name} 2"),
        (str(second.offset), True, f"{name} 1"),
        (when, False, f"{name} 0"),
    ]
    with contextlib.ExitStack() as stack:
        readers = []
        for position, inclusive, _text in wanted:
            where = {"starting_position": position, "starting_position_inclusive": inclusive}
            readers.append(stack.enter_context(_reading(_client(hub), partition_id=partition, **where)))
        assert [reader.texts(1)[0] for reader in readers] == [text for _position, _inclusive, text in wanted]


def test_groups_read_beside_each_other_all_and_in_order(hub: Emulator, name: str) -> None:
    texts = [f"{name} {number}" for number in range(300)] + ["x" * 250_000, f"{name} last"]
    start = _put(hub, name, f"{name} start")[0]
    partition = _partition(hub, name)
    wait_until(lambda: _links(hub) == 0, WAIT_S, what="the end of earlier readers")
    with (
        _reading(_client(hub), partition_id=partition, starting_position=start.sequence) as one,
        _reading(_client(hub, "lighterman"), partition_id=partition, starting_position=str(start.offset)) as two,
        _reading(_client(hub, "test"), partition_id=partition, starting_position="@latest") as late,
    ):
        wait_until(lambda: _links(hub) == 3, WAIT_S, what="three readers")
        _put(hub, name, *texts)
        for reader in (one, two, late):
            assert reader.texts(len(texts)) == texts


def test_a_reader_of_a_higher_epoch_takes_the_partition(hub: Emulator, name: str) -> None:
    _put(hub, name, "x")
    options = {"partition_id": _partition(hub, name)}
    with _reading(_client(hub), owner_level=1, **options) as old:
        old.take(1)
        with _reading(_client(hub), owner_level=2, **options) as new:
            new.take(1)
            assert "epoch 2 took the partition" in str(old.errors.get(timeout=WAIT_S))
            old.close()
            with _reading(_client(hub), owner_level=1, **options) as late:
                assert "epoch 2 has partition" in str(late.errors.get(timeout=WAIT_S))


@pytest.mark.parametrize("wrong", [{"key": "d3Jvbmc="}, {"policy": "registryRead"}], ids=["key", "right"])
def test_who_may_not_read_is_refused(hub: Emulator, wrong: dict[str, str]) -> None:
    with _client(hub, **wrong) as client, pytest.raises((AuthenticationError, ConnectError)):
        client.get_eventhub_properties()


def test_what_is_not_there_is_refused(hub: Emulator) -> None:
    with _reading(_client(hub, "nobodys-group"), partition_id="0") as reader:
        assert "nobodys-group" in str(reader.errors.get(timeout=WAIT_S))


def test_offsets_stay_good_over_a_restart(tmp_path: Path) -> None:
    with running_hub(tmp_path) as emulator:
        with device(emulator.add_device("kept"), emulator.ca_pem) as client:
            for text in ("one", "two", "three"):
                client.sdk.send_message(text)
        partition = _partition(emulator, "kept")
        with _reading(_client(emulator), partition_id=partition) as reader:
            offset = reader.take(2)[-1][1].offset
        emulator.stop()
        again = Emulator(emulator.host, data=tmp_path).start()
        try:
            with _reading(_client(again), partition_id=partition, starting_position=offset) as reader:
                assert reader.texts(1) == ["three"]
                again.call(lambda: again.hub.take(HubAddress("kept"), b"four", {}, {}, "sas"))
                assert reader.texts(1) == ["four"]
        finally:
            again.stop()


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\n\r\n", b"AMQP\x00\x01\x00\x00", _SASL[:8] + b"\xff" * 40, _SASL + b"\xff" * 40],
    ids=["http", "no-sasl", "noise", "noise-later"],
)
def test_who_speaks_something_else_is_hung_up_on(hub: Emulator, said: bytes) -> None:
    context = ssl.create_default_context(cafile=hub.ca_file)
    with (
        socket.create_connection((hub.host, hub.amqp_port), timeout=WAIT_S) as plain,
        context.wrap_socket(plain, server_hostname=hub.host) as peer,
    ):
        peer.sendall(said)
        while peer.recv(4096):
            pass


def test_messages_to_devices_by_the_service_sdk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with contextlib.ExitStack() as stack:
        try:
            emulator = stack.enter_context(running_hub(amqp_port=5671))
        except RuntimeError as error:
            pytest.skip(f"port 5671, the one that the SDK dials: {error}")
        monkeypatch.setattr(certifi, "where", lambda: str(emulator.ca_file))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(emulator.ca_file))
        key = emulator.hub.policies["iothubowner"]
        text = f"HostName={emulator.host};SharedAccessKeyName=iothubowner;SharedAccessKey={key}"
        registry = IoTHubRegistryManager.from_connection_string(text)
        client = stack.enter_context(device(emulator.add_device(name), emulator.ca_pem))
        client.hear_messages()
        registry.send_c2d_message(name, "hello", properties={"kind": "ack", "messageId": "m-7"})
        heard = client.heard(client.messages)
        assert (heard.data, heard.message_id, heard.custom_properties) == (b"hello", "m-7", {"kind": "ack"})
        with pytest.raises(Exception, match="C2D message send failure"):
            registry.send_c2d_message("nobody", "hello")
        registry.amqp_svc_client.disconnect_sync()


def _links(hub: Emulator) -> int:
    return hub.call(lambda: hub.amqp_readers)
