"""The listening sockets of all modules: made or taken over when first needed, mended, kept for the next agent."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edge_agent.serving.channel import close_fds
from edge_agent.serving.inherited import Inherited, Named, SocketKeeper, kept_name, name_listeners
from edge_agent.serving.parking import Connection
from edge_agent.serving.sockets import Given, Listeners
from edge_agent.serving.worker_process import WorkerProcess
from edge_contract.errors import EdgeError
from edge_contract.names import model_name

_log = logging.getLogger(__name__)


class Shelf:
    """Implements no port; used by the one thread that calls the supervisor, `get` by any."""

    def __init__(
        self,
        run_dir: Path,
        host: str,
        ports: Mapping[str, int],
        unix_paths: Mapping[str, Path],
        inherited: Inherited,
        keeper: SocketKeeper | None,
    ) -> None:
        """Have no sockets open yet.

        Args:
            run_dir: Folder of the unix sockets.
            host: Address the TCP sockets listen on.
            ports: TCP port by module; any free one for modules that are not named.
            unix_paths: Path of the unix socket by module; in `run_dir` for modules that are not named.
            inherited: What this agent was started with; owned from now on.
            keeper: Keeps sockets for the next agent, or none.
        """
        self._run_dir = run_dir
        self._host = host
        self._ports = dict(ports)
        self._unix_paths = dict(unix_paths)
        self._given = dict(inherited.given)
        self._parked = dict(inherited.parked)
        self._keeper = keeper
        self._listeners: dict[str, Listeners] = {}

    def get(self, module: str) -> Listeners | None:
        """A module's sockets, or none before it listens."""
        return self._listeners.get(module)

    @property
    def modules(self) -> list[str]:
        """Modules that listen; any thread."""
        return list(self._listeners)

    def take_parked(self, module: str) -> list[Connection]:
        """Connections of clients that an agent before left to this one; the caller owns them."""
        return self._parked.pop(module, [])

    @property
    def parked_modules(self) -> list[str]:
        """Modules for which there are any."""
        return list(self._parked)

    def offer(self, module: str, given: Given) -> None:
        """Sockets on which a worker listens that outlived its agent; they are taken where nothing better came."""
        have = self._given.get(module, Given())
        merged = Given(have.unix or given.unix, have.tcp or given.tcp, have.activated)
        Given(
            given.unix if merged.unix is not given.unix else None, given.tcp if merged.tcp is not given.tcp else None
        ).close()
        self._given[module] = merged

    def listen(self, module: str, workers: Callable[[], Iterable[WorkerProcess]]) -> Listeners:
        """Have a module listen, and mend what was taken away: a unix socket whose file is gone is made anew.

        Args:
            module: Its name.
            workers: Who accepts on its sockets and has to be told of a new one.

        Raises:
            EdgeError: As `Listeners.open`.
        """
        listeners = self._listeners.get(module)
        if listeners is None:
            model_name(module)  # it becomes a file name
            port, path = self._ports.get(module, 0), self._unix_paths.get(module)
            given = self._given.pop(module, None)
            listeners = Listeners.open(module, self._run_dir, self._host, port, path, given)
            self._listeners[module] = listeners
            for kind, sock in (("unix", listeners.unix), ("tcp", listeners.tcp)):
                if self._keeper is not None and kind not in listeners.activated:
                    self._keeper.forget(kept_name(module, kind))
                    self._keeper.keep(kept_name(module, kind), sock.fileno())
        if not listeners.is_in_place:
            _log.error("module %s: %s is not the agent's socket any more; made anew", module, listeners.unix_path)
            self._listeners[module] = listeners = listeners.with_new_unix()
            if self._keeper is not None:
                self._keeper.forget(kept_name(module, "unix"))
                self._keeper.keep(kept_name(module, "unix"), listeners.unix.fileno())
            for worker in workers():
                tell(worker, "unix", listeners)
        return listeners

    def close(self, module: str) -> None:
        """Stop listening for a module: clients are refused."""
        if (listeners := self._listeners.pop(module, None)) is not None:
            listeners.close()
            for kind in ("unix", "tcp"):
                if self._keeper is not None and kind not in listeners.activated:
                    self._keeper.forget(kept_name(module, kind))
        if (given := self._given.pop(module, None)) is not None:
            given.close()
        for _transport, fds in self._parked.pop(module, []):
            close_fds(fds)

    def close_all(self) -> None:
        """Stop listening."""
        for module in {*self._listeners, *self._given, *self._parked}:
            self.close(module)

    def name_all(self) -> list[Named]:
        """Every socket for the next program in this process."""
        return [named for module, listeners in self._listeners.items() for named in name_listeners(module, listeners)]


def tell(worker: WorkerProcess, kind: str, listeners: Listeners) -> None:
    """Let a worker accept on another socket from now on."""
    sock = listeners.unix if kind == "unix" else listeners.tcp
    with contextlib.suppress(EdgeError):  # it crashed this moment; the next worker inherits the socket
        worker.command("listen", [sock.fileno()], kind=kind)
