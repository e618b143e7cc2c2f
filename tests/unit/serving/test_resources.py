"""Which bounds are set by which means, on machines that permit more and less."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.serving import cgroups, resources
from edge_agent.serving.cgroups import OWN, CgroupError, CgroupTree
from edge_agent.serving.limits import DATA_SLACK_BYTES, PIDS_MAX
from edge_agent.serving.resources import Limiter
from edge_contract.limits import MIB
from edge_contract.terms import Resources

ALL = "cpuset cpu io memory pids"
WANTED = Resources(memory_bytes_max=100 * MIB, cpu_permille_max=500, cpus=(0,))


@pytest.fixture
def process() -> Iterator[int]:
    """A process to bound, the first of its session."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    yield child.pid
    child.kill()
    child.communicate()


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that hands controllers down takes `+name` and shows `name`, if the group has it."""
    plain = cgroups._write

    def write(path: Path, value: str) -> None:
        if path.name != "cgroup.subtree_control":
            plain(path, value)
            return
        assert value[1:] in (path.parent / "cgroup.controllers").read_text().split()
        shown = {*path.read_text().split(), value[1:]}
        path.write_text(" ".join(sorted(shown)))

    monkeypatch.setattr(cgroups, "_write", write)


class Machine:
    """Folders that look like what the kernel shows; files take what is written and keep it."""

    def __init__(self, folder: Path, own: str, root: str = "/") -> None:
        self.proc, self.mount = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.mount.mkdir()
        (self.proc / "self" / "mountinfo").write_text(
            f"24 1 0:22 / /proc rw - proc proc rw\n30 24 0:26 {root} {self.mount} rw - cgroup2 cgroup2 rw\n"
        )
        (self.proc / "self" / "cgroup").write_text(f"4:memory:/old\n0::{own}\n")

    def group(self, path: str, controllers: str = ALL, handed_down: str = "", procs: str = "") -> Path:
        """Make a group as the kernel would."""
        folder = self.mount / path
        folder.mkdir(parents=True, exist_ok=True)
        if path:
            (folder / "cgroup.type").write_text("domain\n")
        (folder / "cgroup.controllers").write_text(controllers)
        (folder / "cgroup.subtree_control").write_text(handed_down)
        (folder / "cgroup.procs").write_text(procs)
        return folder

    def find(self) -> CgroupTree:
        """As the agent does."""
        return CgroupTree.find(self.proc)


def test_beside_a_group_called_agent_workers_get_groups(tmp_path: Path) -> None:
    machine = Machine(tmp_path, f"/system.slice/edge.service/{OWN}")
    base = machine.group("system.slice/edge.service")
    machine.group(f"system.slice/edge.service/{OWN}")
    tree = machine.find()
    assert tree.controllers == {"memory", "cpu", "cpuset", "pids"}
    assert tree.group("line.7").folder == base / "line.7"


def test_a_service_without_a_group_of_its_own_below_is_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "/system.slice/edge.service")
    machine.group("system.slice/edge.service")
    with pytest.raises(CgroupError, match="DelegateSubgroup=agent"):
        machine.find()
    assert list((machine.mount / "system.slice/edge.service").glob("*/")) == []


def test_in_a_container_the_agent_makes_room_for_groups(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "/", root="/")
    root = machine.group("", procs="17\n")
    (root / "cgroup.type").write_text("domain\n")  # the root of all has none
    machine.group(OWN)
    assert machine.find().controllers == {"memory", "cpu", "cpuset", "pids"}
    assert (root / OWN / "cgroup.procs").read_text().startswith("17")


def test_a_machine_whose_root_we_are_in_keeps_its_own_groups_apart(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "/")
    machine.group("")
    machine.group("lighterman")
    assert machine.find().group("line.7").folder == machine.mount / "lighterman" / "line.7"


@pytest.mark.parametrize("controllers", ["", "hugetlb io"])
def test_without_controllers_nothing_is_made(tmp_path: Path, controllers: str) -> None:
    machine = Machine(tmp_path, "/")
    machine.group("", controllers)
    with pytest.raises(CgroupError, match="none of the controllers"):
        machine.find()
    assert not (machine.mount / "lighterman").exists()


@pytest.mark.parametrize("mountinfo", ["", "24 1 0:22 / /proc rw - proc proc rw\n", "nonsense\n - \n"])
def test_without_version_2_there_are_no_groups(tmp_path: Path, mountinfo: str) -> None:
    machine = Machine(tmp_path, "/")
    (machine.proc / "self" / "mountinfo").write_text(mountinfo)
    with pytest.raises(CgroupError, match="no control groups of version 2"):
        machine.find()


def test_empty_groups_of_a_former_agent_are_removed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, f"/x/{OWN}")
    base = machine.group("x")
    machine.group(f"x/{OWN}")
    (base / "line.1").mkdir()
    (base / "line.2").mkdir()
    (base / "line.2" / "cgroup.procs").write_text("2\n")  # the kernel keeps one with processes
    machine.find().remove_empty()
    assert sorted(path.name for path in base.iterdir() if path.is_dir()) == [OWN, "line.2"]


def _limiter(tmp_path: Path, handed_down: str, files: tuple[str, ...]) -> tuple[Limiter, Path]:
    machine = Machine(tmp_path, f"/x/{OWN}")
    base = machine.group("x", handed_down, handed_down)
    machine.group(f"x/{OWN}")
    limiter = Limiter(machine.find)
    # The kernel makes a group's files with the group; this one is found made.
    (base / f"line.{os.getpid()}").mkdir()
    for name in files:
        (base / f"line.{os.getpid()}" / name).write_text("")
    return limiter, base / f"line.{os.getpid()}"


def test_a_group_holds_everything(tmp_path: Path, process: int) -> None:
    names = ("cgroup.procs", "memory.max", "memory.oom.group", "memory.swap.max", "cpu.max", "cpuset.cpus", "pids.max")
    limiter, group = _limiter(tmp_path, "memory cpu cpuset pids", names)
    folder = group.rename(group.with_name(f"line.{process}"))
    found = limiter.confine("line", process, WANTED)
    assert {name: (folder / name).read_text() for name in names} == {
        "cgroup.procs": str(process),
        "memory.max": str(100 * MIB),
        "memory.oom.group": "1",
        "memory.swap.max": "0",
        "cpu.max": "50000 100000",
        "cpuset.cpus": "0",
        "pids.max": str(PIDS_MAX),
    }
    told = found.to_json()
    assert told["refused"] == {}
    assert {name: bound["by"] for name, bound in told["applied"].items()} == {
        "processes_max": "cgroup",
        "memory_bytes_max": "cgroup",
        "cpu_permille_max": "cgroup",
        "cpus": "cgroup",
    }
    assert resource.prlimit(process, resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
    (folder / "memory.events").write_text("low 0\noom 2\noom_kill 1\n")
    assert found.was_short


def test_without_groups_the_nearest_thing_is_done_and_the_rest_is_told(process: int) -> None:
    found = Limiter(is_dividing=False).confine("line", process, WANTED)
    assert resource.prlimit(process, resource.RLIMIT_DATA)[0] == 100 * MIB + DATA_SLACK_BYTES
    assert os.sched_getaffinity(process) == {0}
    told = found.to_json()
    assert "rlimit" in told["applied"]["memory_bytes_max"]["by"]
    assert told["applied"]["cpus"] == {"value": [0], "by": "affinity"}
    assert told["refused"] == {"cpu_permille_max": "control groups are not used"}
    assert not found.was_short
    assert not found.is_over


def test_other_terms_lift_what_is_not_wanted_any_more(process: int) -> None:
    found = Limiter(is_dividing=False).confine("line", process, WANTED)
    found.change(Resources())
    assert resource.prlimit(process, resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
    assert os.sched_getaffinity(process) == os.sched_getaffinity(0)
    assert found.to_json() == {"process": process, "applied": {}, "refused": {}}


def test_a_process_that_is_gone_is_bounded_by_nothing_and_raises_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    found = Limiter(is_dividing=False).confine("line", child.pid, WANTED)
    found.settle()
    assert set(found.to_json()["refused"]) >= {"memory_bytes_max"}
    found.end()


def test_what_a_session_has_started_is_ended(process: int) -> None:
    found = Limiter(is_dividing=False).confine("line", process, Resources())
    os.kill(process, 0)
    found.end()
    os.kill(process, 0)  # the worker itself is not


def test_a_thread_that_ends_meanwhile_leaves_the_others_bounded(process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    monkeypatch.setattr(resources, "_tasks", lambda pid: iter((gone.pid, pid)))
    found = Limiter(is_dividing=False).confine("line", process, Resources(cpus=(0,), nice=5))
    found.settle()
    assert os.sched_getaffinity(process) == {0}
    assert os.getpriority(os.PRIO_PROCESS, process) == 5
    assert found.to_json()["refused"] == {}


def test_a_helper_gets_the_processor_when_no_worker_wants_it(tmp_path: Path, process: int) -> None:
    machine = Machine(tmp_path, f"/edge.service/{OWN}")
    base = machine.group("edge.service")
    machine.group(f"edge.service/{OWN}")
    machine.group("edge.service/last")
    (base / "last" / "cpu.weight").write_text("7")
    Limiter(machine.find).put_last(process)
    assert (base / "last" / "cpu.weight").read_text() == "1"
    assert (base / "last" / "cgroup.procs").read_text() == str(process)


def test_a_helper_stays_where_groups_have_no_weights(tmp_path: Path, process: int) -> None:
    machine = Machine(tmp_path, f"/edge.service/{OWN}")
    base = machine.group("edge.service", "memory pids")
    machine.group(f"edge.service/{OWN}")
    machine.group("edge.service/last", "memory pids")
    Limiter(machine.find).put_last(process)
    assert (base / "last" / "cgroup.procs").read_text() == ""
    Limiter(is_dividing=False).put_last(process)
