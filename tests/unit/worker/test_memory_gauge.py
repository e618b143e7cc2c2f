"""How much memory the device can still give: the smallest room of the machine and of the cgroups it runs in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_agent.serving.memory import SystemMemory, process_own_bytes

KIB = 1024
MIB = 1024 * KIB


class Machine:
    """Files as the kernel shows them."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()
        self.gauge = SystemMemory(self.proc, self.cgroups)

    def has_free(self, free_bytes: int) -> None:
        """Set the machine's own figure."""
        text = f"MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: {free_bytes // KIB} kB\n"
        (self.proc / "meminfo").write_text(text)

    def runs_in(self, path: str) -> None:
        """Set the cgroup of this process."""
        (self.proc / "self" / "cgroup").write_text(f"12:cpu:/elsewhere\n0::{path}\n")

    def limit(
        self, path: str, *, used: int, maximum: int | str = "max", high: int | str = "max", idle: int = 0
    ) -> None:
        """Set the figures of one cgroup."""
        folder = self.cgroups / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{maximum}\n")
        (folder / "memory.high").write_text(f"{high}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\nfile 2\ninactive_file {idle}\nactive_file 3\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_limits_it_is_what_the_machine_has(machine: Machine) -> None:
    machine.has_free(500 * MIB)
    assert machine.gauge.available_bytes() == 500 * MIB
    machine.runs_in("/system.slice/agent.service")
    machine.limit("system.slice/agent.service", used=10 * MIB)
    assert machine.gauge.available_bytes() == 500 * MIB


@pytest.mark.parametrize("limit", ["maximum", "high"])
def test_a_limit_of_the_service_counts(machine: Machine, limit: str) -> None:
    machine.has_free(500 * MIB)
    machine.runs_in("/system.slice/agent.service")
    machine.limit("system.slice/agent.service", used=60 * MIB, **{limit: 100 * MIB})
    assert machine.gauge.available_bytes() == 40 * MIB


def test_a_limit_above_the_service_counts_as_well(machine: Machine) -> None:
    machine.has_free(500 * MIB)
    machine.runs_in("/a/b/c")
    machine.limit("a/b/c", used=10 * MIB, maximum=200 * MIB)
    machine.limit("a/b", used=10 * MIB)
    machine.limit("a", used=150 * MIB, maximum=160 * MIB)
    assert machine.gauge.available_bytes() == 10 * MIB


def test_a_container_sees_its_own_limit_at_the_root(machine: Machine) -> None:
    machine.has_free(500 * MIB)
    machine.runs_in("/")
    machine.limit("", used=30 * MIB, maximum=64 * MIB)
    assert machine.gauge.available_bytes() == 34 * MIB


def test_file_pages_that_nobody_uses_are_free(machine: Machine) -> None:
    machine.has_free(500 * MIB)
    machine.runs_in("/agent")
    machine.limit("agent", used=90 * MIB, maximum=100 * MIB, idle=50 * MIB)
    assert machine.gauge.available_bytes() == 60 * MIB


def test_the_machine_may_be_shorter_than_the_limit(machine: Machine) -> None:
    machine.has_free(20 * MIB)
    machine.runs_in("/agent")
    machine.limit("agent", used=MIB, maximum=100 * MIB)
    assert machine.gauge.available_bytes() == 20 * MIB


def test_more_used_than_allowed_is_nothing_left(machine: Machine) -> None:
    machine.has_free(20 * MIB)
    machine.runs_in("/agent")
    machine.limit("agent", used=120 * MIB, maximum=100 * MIB)
    assert machine.gauge.available_bytes() == 0


@pytest.mark.parametrize("path", ["/../../above", "no line of version 2", "/gone"])
def test_a_cgroup_that_cannot_be_read_limits_nothing(machine: Machine, path: str) -> None:
    machine.has_free(20 * MIB)
    if path.startswith("/"):
        machine.runs_in(path)
    else:
        (machine.proc / "self" / "cgroup").write_text("3:memory:/agent\n")
    assert machine.gauge.available_bytes() == 20 * MIB


def test_nobody_can_tell_where_the_kernel_does_not_say(machine: Machine) -> None:
    assert machine.gauge.available_bytes() is None
    (machine.proc / "meminfo").write_text("MemTotal: 1 kB\nMemAvailable: many kB\n")
    assert machine.gauge.available_bytes() is None


def test_this_machine_says_something_plausible() -> None:
    available = SystemMemory().available_bytes()
    assert available is not None
    assert available > 0
    own = process_own_bytes(os.getpid())
    assert 5 * MIB < own < 100_000 * MIB


def test_a_process_that_is_gone_has_nothing(machine: Machine) -> None:
    assert process_own_bytes(12345, machine.proc) == 0
