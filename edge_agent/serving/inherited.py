"""Descriptors that come with a name into a starting agent: from systemd, or from the program it was before.

systemd passes sockets that it listens on for us (`MODULE.unix`, `MODULE.tcp`: socket activation), and those that an
agent before this one left with it (the descriptor store). An agent that re-executes itself passes everything on in the
same way. Source: sd_listen_fds(3), sd_notify(3).
"""

import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from edge_agent.serving.channel import close_fds
from edge_agent.serving.parking import Connection
from edge_agent.serving.sockets import Given, Listeners, listening_socket
from edge_contract.errors import ContractError
from edge_contract.names import model_name

_log = logging.getLogger(__name__)
_KEPT: Final = "kept"
_PARKED: Final = "parked"
_PENDING: Final = "pending"
_FAMILIES: Final = {"unix": socket.AF_UNIX, "tcp": socket.AF_INET}

Named = tuple[str, int]
"""A name and a descriptor."""


class SocketKeeper(Protocol):
    """Keeps descriptors for the next agent, should this one end without a word. Any thread."""

    def keep(self, name: str, fd: int) -> None:
        """Keep a duplicate under this name, beside those that have it already."""
        ...

    def forget(self, name: str) -> None:
        """Close what is kept under this name."""
        ...


@dataclass(slots=True)
class Inherited:
    """What came.

    Attributes:
        given: Listening sockets by module.
        parked: Connections of clients that wait for a worker, by module.
    """

    given: dict[str, Given] = field(default_factory=dict)
    parked: dict[str, list[Connection]] = field(default_factory=dict)


def read_inherited(named: Iterable[Named]) -> Inherited:
    """Sort what came by its names. What nobody here has a use for is told of and closed."""
    found = Inherited()
    pending: dict[tuple[str, str], int] = {}
    parked: dict[tuple[str, str], tuple[str, int]] = {}
    for name, fd in named:
        try:
            if name.startswith((f"{_PARKED}/", f"{_PENDING}/")):
                what, module, number, transport = name.split("/")
                key = (model_name(module), number)
                if what == _PENDING:
                    pending[key] = fd
                else:
                    parked[key] = (transport, fd)
            else:
                _take_listener(found, name, fd)
        except (ContractError, ValueError):
            _log.warning("the descriptor that was passed as %r is of no use here; closed", name)
            close_fds([fd])
    for key, (transport, fd) in parked.items():
        fds = [fd, pending.pop(key)] if key in pending else [fd]
        found.parked.setdefault(key[0], []).append((transport, fds))
    close_fds(list(pending.values()))
    return found


def _take_listener(found: Inherited, name: str, fd: int) -> None:
    """Take a listening socket; one from systemd goes before one that an agent kept.

    Raises:
        ContractError: The name names no module.
        ValueError: It is no such name, or no such socket.
    """
    if is_kept := name.startswith(f"{_KEPT}/"):
        _, module, kind = name.split("/")
    else:
        module, _, kind = name.rpartition(".")
    family = _FAMILIES.get(kind)
    model_name(module)
    if family is None:
        raise ValueError(name)
    given = found.given.get(module, Given())
    old = given.unix if kind == "unix" else given.tcp
    sock = listening_socket(fd, family)
    if sock is None or (old is not None and (is_kept or kind in given.activated)):
        if sock is not None:
            sock.close()
        raise ValueError(name)
    close_fds([fd])
    if old is not None:
        old.close()
    activated = given.activated if is_kept else given.activated | {kind}
    found.given[module] = Given(
        sock if kind == "unix" else given.unix, sock if kind == "tcp" else given.tcp, activated
    )  # fmt: skip


def kept_name(module: str, kind: str) -> str:
    """The name under which a module's own listening socket is kept."""
    return f"{_KEPT}/{module}/{kind}"


def name_listeners(module: str, listeners: Listeners) -> list[Named]:
    """A module's listening sockets for the next program."""
    return [
        (f"{module}.{kind}" if kind in listeners.activated else kept_name(module, kind), sock.fileno())
        for kind, sock in (("unix", listeners.unix), ("tcp", listeners.tcp))
    ]


def name_parked(module: str, connections: Sequence[Connection]) -> list[Named]:
    """A module's waiting connections for the next program."""
    named = []
    for number, (transport, fds) in enumerate(connections):
        named.append((f"{_PARKED}/{module}/{number}/{transport}", fds[0]))
        named += [(f"{_PENDING}/{module}/{number}/-", fd) for fd in fds[1:]]
    return named
