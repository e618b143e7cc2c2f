"""An MQTT broker for one machine: mosquitto where it is installed, else one that pip installs, as a child process.

mosquitto runs with the configuration that `cloud-registry broker-config` writes: TLS, client certificates, rights by
device. The embedded broker (iotcore) knows neither rights nor sessions of MQTT 5; it listens on 127.0.0.1 alone, on its
MQTT 3.1.1 listener, and is for trying things out.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device_sim.processes import LOOPBACK, Child, free_port, is_listening, spawn, wait_until
from edge_contract.errors import EdgeError
from edge_contract.limits import BATCH_BYTES_MAX

KINDS: Final = ("auto", "mosquitto", "embedded")
_START_S: Final = 10.0
_PORT_TRIES: Final = 5
_CONNECTIONS_MAX: Final = 20_000
_INFLIGHT_MAX: Final = 500
# Its default of 20 KB would drop the connection of a device that sends a full batch.
_EMBEDDED_PAYLOAD_BYTES_MAX: Final = 2 * BATCH_BYTES_MAX
# Debian keeps daemons where an ordinary user's PATH does not look.
_DAEMON_FOLDERS: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker that accepts connections on 127.0.0.1.

    Attributes:
        kind: `mosquitto` or `embedded`.
        port: TCP port.
        child: The process; stop it when done.
    """

    kind: str
    port: int
    child: Child


def find_mosquitto() -> str | None:
    """The path of the installed mosquitto, or none."""
    return shutil.which("mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), *_DAEMON_FOLDERS)))


def choose_kind(wish: str) -> str:
    """`mosquitto` or `embedded`, whichever is wished for or, with `auto`, can be had.

    Raises:
        EdgeError: `config.dependency-missing` when the wished one is not installed.
    """
    if wish == "embedded" or (wish == "auto" and find_mosquitto() is None):
        return "embedded"
    if find_mosquitto() is None:
        raise EdgeError(
            "config.dependency-missing", "mosquitto is not installed", "Install it with: apt install mosquitto"
        )
    return "mosquitto"


def start_mosquitto(log: Path, configure: Callable[[int], Path], children: list[Child] | None = None) -> RunningBroker:
    """Start mosquitto on a free port.

    Args:
        log: File for its output.
        configure: Writes the configuration for a port and gives its path; called again with another port when somebody
            else took the first one, because mosquitto cannot choose one itself.
        children: Gets the broker as soon as it was started.

    Raises:
        EdgeError: `config.dependency-missing`, or `network.timeout` when it does not come up.
    """
    program = find_mosquitto()
    if program is None:
        raise EdgeError(
            "config.dependency-missing", "mosquitto is not installed", "Install it with: apt install mosquitto"
        )
    return _start("mosquitto", log, lambda port: [program, "-c", str(configure(port))], children)


def start_embedded(log: Path, children: list[Child] | None = None) -> RunningBroker:
    """Start the broker that came with pip on a free port of 127.0.0.1, without TLS.

    Args:
        log: File for its output.
        children: Gets the broker as soon as it was started.

    Raises:
        EdgeError: `network.timeout` when it does not come up.
    """
    return _start("embedded", log, lambda port: [sys.executable, "-m", "device_sim.broker", str(port)], children)


def _require_mosquitto() -> str:
    program = find_mosquitto()
    if program is None:
        hint = "Install it with: apt install mosquitto"
        raise EdgeError("config.dependency-missing", "mosquitto is not installed", hint)
    return program


def _start(kind: str, log: Path, command: Callable[[int], list[str]], children: list[Child] | None) -> RunningBroker:
    started: list[Child] = [] if children is None else children
    failure: EdgeError | None = None
    for _ in range(_PORT_TRIES):
        port = free_port()
        child = spawn(f"the {kind} broker", command(port), log, None, started)
        try:
            wait_until(lambda port=port: is_listening(port), _START_S, "the MQTT broker", child)  # type: ignore[misc]
        except EdgeError as error:
            failure = error
            child.stop()
            started.remove(child)
            continue
        if child.is_running:
            return RunningBroker(kind, port, child)
    raise failure or EdgeError("network.timeout", f"the {kind} broker did not start; see {log}")


def serve_embedded(port: int) -> None:
    """Run the embedded broker in this process until it is ended; it has no other way to stop.

    Raises:
        EdgeError: `config.dependency-missing`.
    """
    try:
        from iotcore import Broker
    except ImportError:
        raise EdgeError(
            "config.dependency-missing", "the embedded broker is not installed", "pip install iotcore"
        ) from None
    Broker(
        port=port,
        listen=LOOPBACK,
        max_connections=_CONNECTIONS_MAX,
        max_payload_size=_EMBEDDED_PAYLOAD_BYTES_MAX,
        max_inflight_count=_INFLIGHT_MAX,
    ).run_forever()


if __name__ == "__main__":
    serve_embedded(int(sys.argv[1]))
