"""What the agent tells the binding process on its standard input: first what to be, then what is live, a line each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.binding.limits import COMMAND_BYTES_MAX
from edge_contract.digest import Digest
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object
from edge_contract.limits import MODULES_MAX
from edge_contract.names import device_name, model_name

_CODE: Final = "internal.bug"

SOCKET: Final = "binding.sock"
"""In the run directory: counters over HTTP, `/metrics` as Prometheus text, `/report` as JSON."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Which broker, and as whom.

    Attributes:
        host: Host name or address; with TLS the name that the broker's certificate has to bear.
        port: TCP port.
        is_tls: Whether to use TLS.
        ca: Certificates to trust; the system's when none.
        certificate: Our certificate chain, or none for a broker that asks for none.
        key: Its private key.
        username: Empty for none.
        password: Empty for none.
        protocol: `5`, `3.1.1`, or `auto`: 5, and 3.1.1 where the broker refuses that.
    """

    host: str
    port: int
    is_tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    username: str = ""
    password: str = ""
    protocol: str = "auto"


@dataclass(frozen=True, slots=True)
class Work:
    """What the agent tells the process first.

    Attributes:
        device: Name of the device.
        run: Run directory; modules' sockets lie in it, and ours.
        slots: Folder of the slots.
        address: Of the broker; none where there is no broker for bindings.
        relay_fd: Descriptor of the socket over which inputs of an IoT Edge module come, or -1 for none.
    """

    device: str
    run: Path
    slots: Path
    address: BrokerAddress | None
    relay_fd: int = -1

    def to_json(self) -> JsonObject:
        """The JSON form that `read_work` reads; holds the broker's password."""
        document: JsonObject = {"device": self.device, "run": str(self.run), "slots": str(self.slots)}
        if self.relay_fd >= 0:
            document["relay_fd"] = self.relay_fd
        address = self.address
        if address is None:
            return document
        return document | {
            "host": address.host,
            "port": address.port,
            "is_tls": address.is_tls,
            "ca": "" if address.ca is None else str(address.ca),
            "certificate": "" if address.certificate is None else str(address.certificate),
            "key": "" if address.key is None else str(address.key),
            "username": address.username,
            "password": address.password,
            "protocol": address.protocol,
        }


def read_work(line: bytes) -> Work:
    """Read what the agent tells first.

    Raises:
        EdgeError: `internal.bug` or another code of the contract.
    """
    fields = Fields(parse_object(line, "the work", COMMAND_BYTES_MAX), "the work", _CODE)

    def path(key: str) -> Path | None:
        return Path(text) if (text := fields.text(key)) else None

    address = None
    if fields.text("host", ""):
        address = BrokerAddress(
            host=fields.text("host"),
            port=fields.integer("port"),
            is_tls=fields.flag("is_tls"),
            ca=path("ca"),
            certificate=path("certificate"),
            key=path("key"),
            username=fields.text("username"),
            password=fields.text("password"),
            protocol=fields.text("protocol"),
        )
    relay_fd = fields.integer("relay_fd") if fields.take("relay_fd") is not None else -1
    device, run, slots = (fields.text(key) for key in ("device", "run", "slots"))
    work = Work(device_name(device), Path(run), Path(slots), address, relay_fd)
    fields.close()
    return work


def read_modules(line: bytes) -> dict[str, Digest]:
    """Read which bundle each module serves.

    Raises:
        EdgeError: As `read_work`.
    """
    fields = Fields(parse_object(line, "the modules", COMMAND_BYTES_MAX), "the modules", _CODE)
    modules = fields.mapping("modules", MODULES_MAX)
    fields.close()
    return {model_name(name): Digest(text) for name, text in modules.items()}


def modules_line(modules: Mapping[str, Digest]) -> bytes:
    """The line that `read_modules` reads."""
    return dump({"modules": {module: str(manifest) for module, manifest in modules.items()}}) + b"\n"
