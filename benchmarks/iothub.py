"""The hub emulator under many connections at once: each does what Microsoft's SDK does, with less memory.

The emulator is a process of its own. A client connects over TLS with a token, subscribes as the SDK does, reads its
twin, sends telemetry with QoS 1 one message after the other, hears a patch of desired properties and answers a method.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import resource
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks._process import cpu_ms, memory_mb
from device_sim.iothub import sas

SUMMARY: Final = "the hub emulator under many SDK-like connections: connects, telemetry, patches and methods"
OPTIONS: Final = {"clients": "500", "messages": "20", "host": "127.0.0.200", "durable": "no"}
QUICK: Final = {"clients": "20", "messages": "3"}
_PORT: Final = 8883
_WAIT_S: Final = 120.0
_ENDS_S: Final = 30.0
_BODY: Final = b"x" * 500
_EXPIRES_S: Final = 4_000_000_000


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Start an emulator, connect the clients, let them work, and look how it stood.

    Args:
        options: `clients`, how many at once; `messages`, telemetry of each; `host`, a loopback address; `durable`,
            `yes` to make everything durable before it is acknowledged.

    Returns:
        Times in milliseconds, rates a second, memory in MB, and what was lost (nothing, or the figure says so).
    """
    clients, messages = int(options["clients"]), int(options["messages"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, clients * 2 + 200)), hard))
    with tempfile.TemporaryDirectory(prefix="lighterman-bench-") as folder:
        command = [sys.executable, "-m", "device_sim", "iothub", "--json", "--host", options["host"]]
        if options["durable"] == "yes":
            command += ["--data", str(Path(folder) / "data")]
        process = subprocess.Popen([*command, "--ca", str(Path(folder) / "ca.pem")], stdout=subprocess.PIPE, text=True)
        try:
            if process.stdout is None:
                raise RuntimeError("the emulator has no output")
            told = json.loads(process.stdout.readline())
            context = ssl.create_default_context(cafile=told["ca"])
            return asyncio.run(_measure(process.pid, told, context, clients, messages))
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=_ENDS_S)


async def _measure(
    pid: int, told: dict[str, Any], context: ssl.SSLContext, count: int, messages: int
) -> dict[str, Any]:
    admin = _Admin(told["url"], context)
    names = [f"bench-{number}" for number in range(count)]
    keys = [await asyncio.to_thread(admin.add, name) for name in names]
    idle_mb = memory_mb(pid)[0]
    clients = [_Client(told["host"], name, key) for name, key in zip(names, keys, strict=True)]
    before_ms, start = cpu_ms(pid), time.perf_counter()
    await asyncio.gather(*(client.connect(context) for client in clients))
    connected_ms = _since(start)
    connected = admin.order("GET", "state")["connections"]
    resident_mb = memory_mb(pid)[0]
    start = time.perf_counter()
    await asyncio.gather(*(client.send(messages) for client in clients))
    sent_s = time.perf_counter() - start
    admin.close()  # the emulator does not keep a connection that was silent for so long; the next order opens another
    waits = sorted(wait for client in clients for wait in client.waits)
    start = time.perf_counter()
    patching = asyncio.to_thread(_each, admin, names, "desired", {"desired": {"a": 1}})
    await asyncio.gather(patching, *(asyncio.wait_for(client.patched.wait(), _WAIT_S) for client in clients))
    patched_ms = _since(start)
    start = time.perf_counter()
    answers = await asyncio.to_thread(_each, admin, names, "method", {"name": "ping", "payload": {}})
    methods_ms = _since(start)
    state = admin.order("GET", "state")
    admin.close()
    for client in clients:
        client.close()
    return {
        "connections": connected,
        "connect_all_ms": round(connected_ms),
        "messages": len(waits),
        "messages_lost": count * messages - state["telemetry"],
        "messages_a_second": round(len(waits) / sent_s),
        "puback_ms_median": round(waits[len(waits) // 2] * 1000, 1),
        "puback_ms_99": round(waits[int(len(waits) * 0.99)] * 1000, 1),
        "patch_all_ms": round(patched_ms),
        "method_all_ms": round(methods_ms),
        "methods_failed": sum(answer.get("status") != 200 for answer in answers),
        "closed_by_hub": state["closed_by_hub"],
        "refused": state["refused"],
        "emulator_cpu_ms": round(cpu_ms(pid) - before_ms),
        "emulator_idle_mb": round(idle_mb, 1),
        "emulator_mb": round(resident_mb, 1),
        "kb_a_connection": round((resident_mb - idle_mb) * 1024 / count),
    }


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1000


def _each(admin: _Admin, names: list[str], verb: str, order: dict[str, Any]) -> list[dict[str, Any]]:
    return [admin.order("POST", verb, {"device": name, **order}) for name in names]


class _Admin:
    """The emulator's administration over one kept connection."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        self._connection = http.client.HTTPSConnection(url.removeprefix("https://"), context=context, timeout=_WAIT_S)

    def order(self, verb: str, path: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
        """One verb."""
        body = None if document is None else json.dumps(document)
        self._connection.request(verb, f"/admin/{path}", body)
        answer: dict[str, Any] = json.loads(self._connection.getresponse().read())
        return answer

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def add(self, name: str) -> str:
        """Register a device; gives its key."""
        text: str = self.order("POST", "devices", {"device": name})["connection_string"]
        return text.partition("SharedAccessKey=")[2]


class _Client:
    """One connection, which speaks as the SDK does."""

    def __init__(self, host: str, name: str, key: str) -> None:
        self._host, self._name, self._key = host, name, key
        self.waits: list[float] = []
        self.patched = asyncio.Event()
        self._replies: asyncio.Queue[int] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def connect(self, context: ssl.SSLContext) -> None:
        """CONNECT, the SDK's subscriptions, and the twin."""
        self._reader, self._writer = await asyncio.open_connection(self._host, _PORT, ssl=context)
        token = sas.make(self._key, f"{self._host}/devices/{self._name}", _EXPIRES_S)
        user = f"{self._host}/{self._name}/?api-version=2019-10-01&DeviceClientType=bench"
        head = _text("MQTT") + b"\x04\xc0\x00\x3c"
        self._send(0x10, head + _text(self._name) + _text(user) + _text(token))
        self._task = asyncio.create_task(self._listen())
        await self._expect(0x20)
        topics = ("$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#")
        for topic in (*topics, f"devices/{self._name}/messages/devicebound/#"):
            self._send(0x82, b"\x00\x07" + _text(topic) + b"\x01")
            await self._expect(0x90)
        self._send(0x30, _text("$iothub/twin/GET/?$rid=1") + b" ")
        await self._expect(0x30)

    async def send(self, count: int) -> None:
        """Telemetry, each message after the acknowledgement of the one before."""
        topic = _text(f"devices/{self._name}/messages/events/kind=batch")
        for number in range(count):
            start = time.perf_counter()
            self._send(0x32, topic + (number + 1).to_bytes(2, "big") + _BODY)
            await self._expect(0x40)
            self.waits.append(time.perf_counter() - start)

    def close(self) -> None:
        """Go without a word."""
        if self._task is not None:
            self._task.cancel()
        self._writer.transport.abort()

    async def _expect(self, kind: int) -> None:
        found = await asyncio.wait_for(self._replies.get(), _WAIT_S)
        if found != kind:
            raise RuntimeError(f"{self._name}: expected packet {kind:#x}, got {found:#x}")

    async def _listen(self) -> None:
        while True:
            head = (await self._reader.readexactly(1))[0]
            length, place = 0, 0
            while True:
                byte = (await self._reader.readexactly(1))[0]
                length |= (byte & 0x7F) << place
                place += 7
                if not byte & 0x80:
                    break
            body = await self._reader.readexactly(length)
            if head & 0xF0 == 0x20 and body[1]:
                raise RuntimeError(f"{self._name}: refused with {body[1]}")
            topic = body[2 : 2 + int.from_bytes(body[:2], "big")] if head & 0xF0 == 0x30 else b""
            if topic.startswith(b"$iothub/twin/PATCH/"):
                self.patched.set()
            elif topic.startswith(b"$iothub/methods/POST/"):
                request = topic.partition(b"$rid=")[2].decode()
                self._send(0x30, _text(f"$iothub/methods/res/200/?$rid={request}") + b"{}")
            else:
                self._replies.put_nowait(head & 0xF0)

    def _send(self, head: int, body: bytes) -> None:
        length, value = bytearray(), len(body)
        while True:
            value, byte = value >> 7, value & 0x7F
            length.append(byte | 0x80 if value else byte)
            if not value:
                break
        self._writer.write(bytes((head,)) + bytes(length) + body)


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data
