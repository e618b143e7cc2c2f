"""A running emulator: one thread with one event loop that serves MQTT and HTTP. For tests and `device-sim iothub`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import secrets
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from device_sim.iothub import eventhub, tls, troubles
from device_sim.iothub.admin import Admin
from device_sim.iothub.configurations import Configurations
from device_sim.iothub.dps import GROUP, Provisioning
from device_sim.iothub.http_server import HttpServer
from device_sim.iothub.hub import Hub
from device_sim.iothub.limits import KEY_BYTES, PORT
from device_sim.iothub.methods import Methods
from device_sim.iothub.mqtt import Server
from device_sim.iothub.store import Store
from edge_contract.errors import EdgeError
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject

if TYPE_CHECKING:
    from device_sim.iothub.amqp import AmqpServer

_START_S: Final = 30.0
_STOP_S: Final = 15.0
_CALL_S: Final = 330.0  # longer than a method may take
_T = TypeVar("_T")


class Emulator:
    """An IoT Hub with its provisioning service on one loopback address. Methods may be called from any thread.

    Attributes:
        host: The loopback address.
        name: The hub's host name in tokens and user names; the address where nothing else was asked for.
        hub: State; only on the loop (`call`).
        methods: Direct methods; only on the loop.
        dps: The provisioning service; only on the loop.
        faults: What goes wrong on purpose; only on the loop.
        rates: What the hub takes a second.
        verbs: The administration; only on the loop. `admin` is the same for other threads.
        authority: Makes certificates.
        configurations: Automatic configurations; only on the loop.
        mqtt_port: Of MQTT.
        http_port: Of the service API and of the administration, over TLS.
        amqp_port: Of the Event-Hubs-compatible endpoint, over TLS; 0 where python-qpid-proton is not installed.
    """

    def __init__(
        self,
        host: str,
        *,
        name: str = "",
        data: Path | None = None,
        units: int = 0,
        mqtt_port: int = PORT,
        http_port: int = 0,
        amqp_port: int = 0,
    ) -> None:
        """Nothing runs yet.

        Args:
            host: A loopback address, such as 127.0.0.2.
            name: The hub's host name; a client with another name than `host` needs `GatewayHostName`.
            data: A folder in which everything outlives a restart; without it everything ends with the emulator.
            units: Throttle as so many units of tier S1; 0 throttles nothing.
            mqtt_port: Of MQTT; Microsoft's SDK dials no other than 8883.
            http_port: Of HTTP; 0 for a free one.
            amqp_port: Of AMQP; 0 for a free one, 5671 for clients that dial no other.

        Raises:
            EdgeError: `config.invalid` for an address that is none of loopback.
        """
        try:
            is_loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            is_loopback = False
        if not is_loopback:
            why = f"{host[:60]!r} is no loopback address"
            raise EdgeError(
                "config.invalid", why, "The emulator is for one machine; take 127.0.0.1 to 127.255.255.254."
            )
        self.host, self.name = host, name or host
        self.mqtt_port, self._http_wanted, self.http_port = mqtt_port, http_port, 0
        self._amqp_wanted, self.amqp_port = amqp_port, 0
        self._amqp: AmqpServer | None = None
        self._temporary = None if data else Path(tempfile.mkdtemp(prefix="lighterman-hub-"))
        self._folder = data or self._temporary or Path()
        self.authority = tls.Authority(self._folder)
        self.hub = Hub(self.name, _now_ms, _new_key)
        self._store = Store(self._folder / "hub.sqlite", self.hub) if data else None
        self.methods = Methods(self.hub)
        self.dps = Provisioning(self.hub)
        self.faults, self.rates = troubles.Faults(), troubles.Rates(units)
        self.mqtt = Server(self.hub, self.methods, self.dps, self.faults, self.rates, self.commit)
        self.configurations = Configurations(self.hub)
        self.verbs = Admin(self)
        self.admin = AdminCalls(self)
        files = self.authority.server(host, (self.name,))
        self._files = files
        self.context = tls.server_context(*files, self.authority.ca_file)
        for pem in [*self.dps.trusted(), *(str(doc["pem"]) for _name, doc in self.hub.documents_of("trusted"))]:
            tls.trust(self.context, pem)
        self.loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._http = HttpServer()

    # Life

    def __enter__(self) -> Emulator:
        """Start."""
        return self.start()

    def __exit__(self, *_error: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> Emulator:
        """Listen; returns when clients can connect.

        Raises:
            OSError: an address is in use.
        """
        self._thread = threading.Thread(target=self._run, name=f"iothub-{self.host}", daemon=True)
        self._thread.start()
        try:
            self.run(self._start(), _START_S)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Close everything; harmless when it was stopped already."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with contextlib.suppress(TimeoutError):
            self.run(self._stop(), _STOP_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        thread.join(_STOP_S)
        if self._store is not None:
            self._store.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    async def _start(self) -> None:
        self.mqtt_port = await self.mqtt.start(self.host, self.mqtt_port, self.context)
        # With the protocol named asyncio switches Nagle's algorithm off: no answer waits 40 ms for its second part.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, self._http_wanted))
        except OSError:
            listener.close()
            raise
        self.http_port = listener.getsockname()[1]
        from device_sim.iothub.web import make_app

        await self._http.start(make_app(self), listener, self._files)
        try:
            from device_sim.iothub.amqp import AmqpServer
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "proton":
                raise
            if self._amqp_wanted:
                hint = "Install lighterman[sim,iothub], which takes a C compiler."
                raise EdgeError("config.dependency-missing", "AMQP needs python-qpid-proton", hint) from None
            return  # devices and the service API need none of it

        hosts = (self.host, f"{self.host}:{self.http_port}")
        self._amqp = AmqpServer(eventhub.HubSink(self.hub, hosts, self.commit))
        await self._amqp.start(self.host, self._amqp_wanted, self.context)
        self.amqp_port = self._amqp.port

    async def _stop(self) -> None:
        await self.mqtt.stop()
        if self._amqp is not None:
            await self._amqp.stop()
        await self._http.stop()

    # Work on the loop

    def call(self, work: Callable[[], _T]) -> _T:
        """Do something on the loop, make it durable, and give what it gave."""

        async def do() -> _T:
            result = work()
            self.commit()
            return result

        return self.run(do())

    def run(self, work: Coroutine[Any, Any, _T], timeout_s: float = _CALL_S) -> _T:
        """Run a coroutine on the loop and wait for it.

        Raises:
            TimeoutError: it took longer.
        """
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def commit(self) -> None:
        """Make everything durable that happened. On the loop."""
        if self._store is not None:
            self._store.flush()
        else:
            self.hub.changed.clear()
            self.hub.new_events.clear()

    # What tests need

    @property
    def ca_pem(self) -> str:
        """The certificate that clients have to trust: `server_verification_cert` of the SDK."""
        return self.authority.ca_pem

    @property
    def ca_file(self) -> Path:
        """The same as a file."""
        return self.authority.ca_file

    @property
    def url(self) -> str:
        """Of the service API and the administration."""
        return f"https://{self.host}:{self.http_port}"

    @property
    def service_connection_string(self) -> str:
        """For the service API, with all rights."""
        key = self.hub.policies["iothubowner"]
        return f"HostName={self.host}:{self.http_port};SharedAccessKeyName=iothubowner;SharedAccessKey={key}"

    @property
    def amqp_readers(self) -> int:
        """How many links take telemetry from the Event-Hubs-compatible endpoint. On the loop."""
        return self._amqp.readers if self._amqp else 0

    @property
    def eventhub_connection_string(self) -> str:
        """For azure-eventhub, with the right to read telemetry; dial `eventhub_address` (`custom_endpoint_address`)."""
        return eventhub.connection_string(self.name, self.hub.policies)

    @property
    def eventhub_address(self) -> str:
        """Where the Event-Hubs-compatible endpoint listens; empty where there is none (`lighterman[iothub]`)."""
        return f"sb://{self.host}:{self.amqp_port}" if self.amqp_port else ""

    def add_device(self, device: str, **order: Any) -> str:
        """Register a device; gives its connection string. `order` is that of the verb `add`."""
        return str(self.admin.add(device=device, **order)["connection_string"])

    def add_module(self, device: str, module: str, **order: Any) -> str:
        """Register a module of a device; gives its connection string."""
        return str(self.admin.add(device=device, module=module, **order)["connection_string"])

    def key(self, device: str, module: str = "") -> str:
        """The primary key of a device or module, in base64."""
        return self.call(lambda: self.hub.identity(HubAddress(device, module)).authentication.primary)

    def add_enrolment(self, name: str, document: JsonObject, *, kind: str = "single") -> JsonObject:
        """Write an enrolment (`single`) or a group of them (`group`); gives it with its keys."""
        return self.admin.enrol(name=name, document=document, kind=kind)

    def group_key(self, name: str) -> str:
        """The primary key of a group of enrolments."""
        group = self.call(lambda: self.dps.get(GROUP, name))
        return str(group["attestation"]["symmetricKey"]["primaryKey"])

    def trust(self, pem: str) -> None:
        """Let devices show a certificate. On the loop.

        Raises:
            ValueError: it is none in PEM.
        """
        tls.trust(self.context, pem)
        self.hub.put_document("trusted", tls.thumbprint(pem), {"pem": pem})

    def set_units(self, units: int) -> None:
        """Throttle otherwise from now on. On the loop."""
        self.rates = self.mqtt.rates = troubles.Rates(units)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """The MQTT endpoint is gone, with every connection, until the end of the block."""
        self.run(self.mqtt.stop())
        try:
            yield
        finally:
            self.run(self._listen())

    async def _listen(self) -> None:
        await self.mqtt.start(self.host, self.mqtt_port, self.context)


class AdminCalls:
    """The verbs of `Admin` for other threads: `admin.desired(device="a", desired={…})`."""

    def __init__(self, emulator: Emulator) -> None:
        """Speak to an emulator of this process."""
        self._emulator = emulator

    def _do(self, verb: Callable[[JsonObject], Awaitable[JsonObject]], order: JsonObject) -> JsonObject:
        async def do() -> JsonObject:
            result = await verb(order)
            self._emulator.commit()
            return result

        return self._emulator.run(do())

    def add(self, **order: Any) -> JsonObject:
        """See `Admin.add`."""
        return self._do(self._emulator.verbs.add, order)

    def remove(self, **order: Any) -> JsonObject:
        """See `Admin.remove`."""
        return self._do(self._emulator.verbs.remove, order)

    def trust(self, **order: Any) -> JsonObject:
        """See `Admin.trust`."""
        return self._do(self._emulator.verbs.trust, order)

    def twin(self, **order: Any) -> JsonObject:
        """See `Admin.twin`."""
        return self._do(self._emulator.verbs.twin, order)

    def desired(self, **order: Any) -> JsonObject:
        """See `Admin.desired`."""
        return self._do(self._emulator.verbs.desired, order)

    def method(self, **order: Any) -> JsonObject:
        """See `Admin.method`."""
        return self._do(self._emulator.verbs.method, order)

    def c2d(self, **order: Any) -> JsonObject:
        """See `Admin.c2d`."""
        return self._do(self._emulator.verbs.c2d, order)

    def input(self, **order: Any) -> JsonObject:
        """See `Admin.input`."""
        return self._do(self._emulator.verbs.input, order)

    def drain_telemetry(self, **order: Any) -> list[JsonObject]:
        """See `Admin.drain_telemetry`."""
        return list(self._do(self._emulator.verbs.drain_telemetry, order)["messages"])

    def drain_reported(self, **order: Any) -> list[JsonObject]:
        """See `Admin.drain_reported`."""
        return list(self._do(self._emulator.verbs.drain_reported, order)["patches"])

    def fault(self, **order: Any) -> JsonObject:
        """See `Admin.fault`."""
        return self._do(self._emulator.verbs.fault, order)

    def clear_faults(self) -> JsonObject:
        """See `Admin.clear_faults`."""
        return self._do(self._emulator.verbs.clear_faults, {})

    def disconnect(self, **order: Any) -> int:
        """See `Admin.disconnect`."""
        return int(self._do(self._emulator.verbs.disconnect, order)["dropped"])

    def rates(self, **order: Any) -> JsonObject:
        """See `Admin.rates`."""
        return self._do(self._emulator.verbs.rates, order)

    def enrol(self, **order: Any) -> JsonObject:
        """See `Admin.enrol`."""
        return self._do(self._emulator.verbs.enrol, order)

    def state(self) -> JsonObject:
        """See `Admin.state`."""
        return self._do(self._emulator.verbs.state, {})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _new_key() -> str:
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def client_context(ca_file: Path) -> ssl.SSLContext:
    """TLS for a client that trusts the emulator."""
    return ssl.create_default_context(cafile=ca_file)
