"""Keeps a worker within what the signed policy lets it use, by the best means the machine permits; see ADR 0023.

A control group bounds the worker and everything it starts. Where none may be made, what resembles it most is done and
the difference is told: an rlimit on data and a look at the resident memory, whole processors instead of processor time.
Nothing here fails a deployment: what could not be had is logged and shown by `edge-agent status`.
"""

import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from edge_agent.serving.cgroups import Cgroup, CgroupError, CgroupTree
from edge_agent.serving.limits import CGROUP_END_MS, DATA_SLACK_BYTES, PIDS_MAX
from edge_agent.serving.memory import process_own_bytes, read_runtime
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.terms import PERMILLE, Resources

_log = logging.getLogger(__name__)

_LAST: Final = "last"
"""Group of helpers that may wait; no module's, whose names end in a process."""
_WEIGHT_MIN: Final = "1"
"""Of `cpu.weight`, where every other group has 100."""
_PERIOD_US: Final = 100_000
_QUOTA_US_MIN: Final = 1_000
"""The kernel takes no less."""
_PROC: Final = Path("/proc")
_ROUNDS_MAX: Final = 3
_SESSION_FIELD: Final = 3
"""Of /proc/<pid>/stat behind the name of the program (proc(5))."""


class _UnavailableError(Exception):
    """This means is not there."""


class Confinement:
    """What bounds one worker. Used by one thread at a time, but for what `was_short` and `is_over` read: any.

    Attributes:
        resources: What was asked for.
    """

    def __init__(self, module: str, pid: int, resources: Resources, group: Cgroup | None, why_none: str) -> None:
        """Bound a process.

        Args:
            module: Name of the module, for logs.
            pid: The worker's process, the first of its session; it has loaded nothing yet, or serves already.
            resources: What it may use.
            group: A control group of its own; none where none may be made.
            why_none: Why not.
        """
        self.resources = resources
        self._module = module
        self._pid = pid
        self._group = group
        self._why_none = why_none
        self._applied: JsonObject = {}
        self._refused: dict[str, str] = {}
        self._is_looked_at = False
        self._nice = 0
        if group is not None:
            try:
                group.add(pid)
            except CgroupError as error:
                self._group, self._why_none = None, str(error)
                group.remove(0)
        self._apply(Resources())

    def change(self, resources: Resources) -> None:
        """Bound a worker that runs by other terms from now on."""
        before, self.resources = self.resources, resources
        self._applied, self._refused = {}, {}
        self._apply(before)

    def _apply(self, before: Resources) -> None:
        """Set every bound that is wanted, and lift those of before that are not."""
        wanted = self.resources
        if self._group is not None:
            with contextlib.suppress(CgroupError):  # nobody asked for it: it keeps a fork bomb within bounds
                self._group.write("pids.max", str(PIDS_MAX))
                self._applied["processes_max"] = {"value": PIDS_MAX, "by": "cgroup"}
        if before.cpus or before.cpu_permille_max:
            ours = os.sched_getaffinity(0)
            with contextlib.suppress(OSError):
                # First: the kernel takes no affinity beyond it. By name: it empties no group with processes.
                self._in_group(("cpuset.cpus", ",".join(map(str, sorted(ours)))))
                self._run_on(ours)
        bounds: tuple[tuple[str, object, object, Callable[[], str]], ...] = (
            ("memory_bytes_max", wanted.memory_bytes_max, before.memory_bytes_max, self._bound_memory),
            ("cpu_permille_max", wanted.cpu_permille_max, before.cpu_permille_max, self._bound_time),
            ("cpus", list(wanted.cpus), None, self._bound_cpus),
        )
        for name, value, was, bound in bounds:
            if not value and not was:
                continue
            try:
                means = bound()
            except (_UnavailableError, OSError, ValueError) as error:
                self._refuse(name, str(error))
            else:
                if value:
                    self._applied[name] = {"value": value, "by": means}

    def _refuse(self, name: str, reason: str) -> None:
        self._refused[name] = reason
        _log.warning(
            "module %s: its worker (process %d) is not bounded by %s: %s", self._module, self._pid, name, reason
        )

    def settle(self) -> None:
        """Have it step back behind other processes, once it serves: while loading it has a priority of its own."""
        if self.resources.nice == self._nice:
            return
        try:
            for task in _tasks(self._pid):
                with contextlib.suppress(ProcessLookupError):  # this thread ended meanwhile
                    os.setpriority(os.PRIO_PROCESS, task, self.resources.nice)
        except OSError as error:
            self._refuse("nice", error.strerror or str(error))
        else:
            self._nice = self.resources.nice
            self._applied["nice"] = {"value": self.resources.nice, "by": "priority"}

    # --- by which means

    def _in_group(self, *values: tuple[str, str]) -> bool:
        if self._group is None:
            return False
        try:
            for name, value in values:
                self._group.write(name, value)
        except CgroupError as error:
            _log.info("module %s: %s", self._module, error)
            self._why_none = str(error)
            return False
        return True

    def _bound_memory(self) -> str:
        bytes_max = self.resources.memory_bytes_max
        if self._in_group(("memory.max", str(bytes_max or "max")), ("memory.oom.group", "1")):
            # Without swap the bound is the bound; a kernel without swap accounting has no such file.
            self._in_group(("memory.swap.max", "0"))
            return "cgroup"
        # Not RLIMIT_AS: every thread reserves tens of megabytes that are never touched, and mapped files count.
        limit = bytes_max + DATA_SLACK_BYTES if bytes_max else resource.RLIM_INFINITY
        _soft, hard = resource.prlimit(self._pid, resource.RLIMIT_DATA)
        resource.prlimit(self._pid, resource.RLIMIT_DATA, (limit, hard))  # the soft one, so that it can be lifted again
        self._is_looked_at = bytes_max > 0
        return f"rlimit on data of {limit} bytes for each process, and a look at what is resident now and then"

    def _bound_time(self) -> str:
        permille = self.resources.cpu_permille_max
        quota = str(max(_QUOTA_US_MIN, _PERIOD_US * permille // PERMILLE)) if permille else "max"
        if self._in_group(("cpu.max", f"{quota} {_PERIOD_US}")):
            return "cgroup"
        if not permille:
            return ""
        allowed = sorted(os.sched_getaffinity(0))
        count = -(-permille // PERMILLE)
        if self.resources.cpus or count >= len(allowed):
            raise _UnavailableError(self._why_none)
        self._run_on(set(allowed[-count:]))  # the first ones are those that everything else begins with
        return f"affinity to {count} of {len(allowed)} processors ({self._why_none})"

    def _bound_cpus(self) -> str:
        wanted = set(self.resources.cpus)
        there = wanted & os.sched_getaffinity(0)
        if not there:
            raise _UnavailableError(f"none of them is there for the agent: {sorted(os.sched_getaffinity(0))}")
        missing = f" (not there: {sorted(wanted - there)})" if wanted - there else ""
        is_grouped = self._in_group(("cpuset.cpus", ",".join(map(str, sorted(there)))))
        self._run_on(there)  # in a group as well: libraries size their thread pools by it
        return ("cgroup" if is_grouped else "affinity") + missing

    def _run_on(self, cpus: set[int]) -> None:
        for task in _tasks(self._pid):
            with contextlib.suppress(ProcessLookupError):  # this thread ended meanwhile
                os.sched_setaffinity(task, cpus)

    # --- while it runs

    @property
    def is_over(self) -> bool:
        """Whether it has more memory resident than it may, where only a look can tell."""
        if not self._is_looked_at:
            return False
        return sum(process_own_bytes(pid) for pid in _session(self._pid)) > self.resources.memory_bytes_max

    @property
    def was_short(self) -> bool:
        """Whether the kernel ended a process because the bound on memory was reached."""
        return self._group is not None and self._group.memory_kills() > 0

    def to_json(self) -> JsonObject:
        """What is in force and what could not be had, for `edge-agent status`."""
        return {
            "process": self._pid,
            "applied": {name: dict(value) for name, value in list(self._applied.items())},
            "refused": dict(self._refused),
        }

    # --- at the end

    def end(self) -> None:
        """End what the worker has started and left behind. Once the worker itself is gone or about to be."""
        if self._group is not None:
            self._group.remove(CGROUP_END_MS)
            self._group = None
        # A process of the session keeps the worker's number from being used again. The whole process group goes in one
        # step, so that nothing in it starts another while the rest is looked for.
        for _ in range(_ROUNDS_MAX):
            left = [pid for pid in _session(self._pid) if pid != self._pid]
            if not left:
                return
            for end, number in ((os.killpg, self._pid), *((os.kill, pid) for pid in left)):
                with contextlib.suppress(OSError):
                    end(number, signal.SIGKILL)


def require_within(resources: Resources, slot: Path) -> None:
    """Refuse a bundle that was measured to need more memory than the policy lets its worker have.

    Raises:
        EdgeError: `device.memory-short`, `artifact.*`, `model.load-failed`.
    """
    if not resources.memory_bytes_max:
        return
    runtime = read_runtime(slot)
    if runtime.load_peak_bytes > resources.memory_bytes_max:
        raise EdgeError(
            "device.memory-short",
            f"loading {runtime.model!r} version {runtime.version} needs {runtime.load_peak_bytes} bytes of memory, the "
            f"policy lets its worker have {resources.memory_bytes_max}",
            "Raise memory_bytes_max of the deployment, or deploy a smaller model.",
        )


class Limiter:
    """Bounds workers. Used by one thread at a time."""

    def __init__(self, find: Callable[[], CgroupTree] = CgroupTree.find, *, is_dividing: bool = True) -> None:
        """Find out what this machine permits.

        Args:
            find: Finds where control groups may be made.
            is_dividing: Whether to look for that at all.
        """
        self._tree: CgroupTree | None = None
        self._why_none = "control groups are not used"
        if not is_dividing:
            return
        try:
            self._tree = find()
            self._tree.remove_empty()
            _log.info("workers get control groups with %s", ", ".join(sorted(self._tree.controllers)))
        except CgroupError as error:
            self._why_none = str(error)
            _log.info("workers get no control groups: %s", error)

    def confine(self, module: str, pid: int, resources: Resources) -> Confinement:
        """Bound a worker that has just been started, or one that serves already by what another agent gave it.

        Never fails: what could not be had is in `Confinement.to_json`.
        """
        group, why = None, self._why_none
        if self._tree is not None:
            try:
                group = self._tree.group(f"{module}.{pid}")
            except CgroupError as error:
                why = str(error)
        return Confinement(module, pid, resources, group, why)

    def put_last(self, pid: int) -> None:
        """Let a helper of the agent's have the processor when no worker wants it. Any thread; never fails.

        A low priority alone says nothing there: it counts among the processes of one group, and workers are in others.
        """
        if self._tree is None:
            return
        try:
            group = self._tree.group(_LAST)
            group.write("cpu.weight", _WEIGHT_MIN)
            group.add(pid)
        except CgroupError as error:
            _log.info("process %d competes with the workers as equal: %s", pid, error)


def _tasks(pid: int) -> Iterator[int]:
    """The threads of a process; those that it starts meanwhile take after the one that starts them."""
    with contextlib.suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            yield int(task.name)


def _session(session: int) -> Iterator[int]:
    """The processes of a session, which are a worker and what it has started, unless that made one of its own."""
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = (folder / "stat").read_text(encoding="ascii", errors="replace")
                if int(stat.rpartition(")")[2].split()[_SESSION_FIELD]) == session:
                    yield int(folder.name)
