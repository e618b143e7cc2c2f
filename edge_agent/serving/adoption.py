"""Makes workers that outlived an agent those of this one: who keeps which connection, and who listens where."""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.serving.channel import close_fds
from edge_agent.serving.limits import ServingLimits
from edge_agent.serving.logfile import BoundedLog
from edge_agent.serving.orphans import Orphan, find_orphans
from edge_agent.serving.parking import Connection
from edge_agent.serving.samples import OnSample
from edge_agent.serving.shelf import Shelf, tell
from edge_agent.serving.sockets import Given, Listeners
from edge_agent.serving.starting import Running
from edge_agent.serving.worker_process import WorkerProcess
from edge_contract.errors import EdgeError

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Adopted:
    """What was found.

    Attributes:
        live: By module the worker that began to serve last.
        spares: By module those that serve beside it.
    """

    live: dict[str, WorkerProcess] = field(default_factory=dict)
    spares: dict[str, list[WorkerProcess]] = field(default_factory=dict)
    _served: frozenset[int] = frozenset()

    def without_served(self, connections: Iterable[Connection]) -> list[Connection]:
        """Of connections that were passed on those that no worker has got already; the others are closed."""
        left = []
        for connection in connections:
            if _number(connection[1][0]) in self._served:
                close_fds(connection[1])
            else:
                left.append(connection)
        return left


def adopt_orphans(
    folder: Path,
    shelf: Shelf,
    limits: ServingLimits,
    log_of: Callable[[str], BoundedLog],
    on_sample: OnSample,
    on_end: Callable[[WorkerProcess], None],
) -> Adopted:
    """Take over every worker that waits in a folder.

    Where an agent ended in the middle of a swap, several workers of a module are there. A connection that one of them
    gave away stays with the one that got it, and goes back where nobody did.

    Args:
        folder: Where they wait.
        shelf: Gets the sockets on which they listen.
        limits: Bounds.
        log_of: Gives the log of a module.
        on_sample: As of `WorkerProcess`.
        on_end: As of `WorkerProcess`.
    """
    orphans = find_orphans(folder, limits.hello_ms)
    found = Adopted(_served=frozenset().union(*(orphan.adopted for orphan in orphans)))
    newest_first = sorted(orphans, key=lambda orphan: orphan.serving_ms)
    numbers: dict[int, tuple[int, int]] = {}
    for orphan in newest_first:
        sockets = (_number(orphan.unix.fileno()), _number(orphan.tcp.fileno()))
        shelf.offer(orphan.module, Given(orphan.unix, orphan.tcp))
        worker = _take(orphan, orphans, limits, log_of, on_sample, on_end)
        if worker is None:
            continue
        numbers[worker.pid] = sockets
        if orphan.module in found.live:
            found.spares.setdefault(orphan.module, []).append(worker)
        else:
            found.live[orphan.module] = worker
    for module, live in found.live.items():
        _listen(shelf, module, [live, *found.spares.get(module, [])], numbers)
    return found


def _take(
    orphan: Orphan,
    orphans: list[Orphan],
    limits: ServingLimits,
    log_of: Callable[[str], BoundedLog],
    on_sample: OnSample,
    on_end: Callable[[WorkerProcess], None],
) -> WorkerProcess | None:
    others = [other for other in orphans if other is not orphan and other.module == orphan.module]
    gone = orphan.limbo & frozenset().union(*(other.adopted for other in others))
    try:
        if not orphan.speaks_ours:
            orphan.say("retire")
            _log.warning("module %s: a worker of another version finishes what it has begun", orphan.module)
            orphan.close()
            return None
        orphan.say("welcome", gone=sorted(gone))
    except OSError as error:
        _log.warning("module %s: its worker ended when it was adopted: %s", orphan.module, error)
        orphan.close()
        return None
    running = Running(orphan.process, orphan.control, orphan.output)
    worker = WorkerProcess(orphan.module, orphan.manifest, running, log_of(orphan.module), limits, on_sample, on_end)
    worker.golden = orphan.golden
    worker.terms = orphan.terms
    _log.info("module %s: adopted process %d, which serves %s", orphan.module, worker.pid, orphan.manifest)
    return worker


def _listen(shelf: Shelf, module: str, workers: list[WorkerProcess], numbers: dict[int, tuple[int, int]]) -> None:
    """Have the module listen, and every worker of it accept where it does."""
    try:
        listeners: Listeners = shelf.listen(module, lambda: workers)
    except EdgeError as error:
        _log.error("%s", error)  # whoever needs the sockets tries again
        return
    for worker in workers:
        unix, tcp = numbers[worker.pid]
        if unix != _number(listeners.unix.fileno()):
            tell(worker, "unix", listeners)
        if tcp != _number(listeners.tcp.fileno()):
            tell(worker, "tcp", listeners)


def _number(fd: int) -> int:
    """The kernel's number of a socket, the same for every descriptor of it in every process."""
    return os.fstat(fd).st_ino
