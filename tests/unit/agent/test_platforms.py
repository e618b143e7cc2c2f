"""Which bundles run on which machine."""

from __future__ import annotations

import pytest

from edge_agent.platforms import detect_platform
from edge_contract.errors import EdgeError
from edge_contract.names import PLATFORMS


@pytest.mark.parametrize(
    ("machine", "is_64_bit", "expected"),
    [
        ("x86_64", True, "linux/amd64"),
        ("AMD64", True, "linux/amd64"),
        ("aarch64", True, "linux/arm64"),
        ("aarch64", False, "linux/arm/v7"),
        ("armv8l", False, "linux/arm/v7"),
        ("armv7l", False, "linux/arm/v7"),
        ("armv6l", False, "linux/arm/v6"),
    ],
)
def test_machines_have_a_platform(machine: str, is_64_bit: bool, expected: str) -> None:
    assert detect_platform(machine, "Linux", is_64_bit) == expected
    assert expected in PLATFORMS


@pytest.mark.parametrize(
    ("machine", "system", "is_64_bit"),
    [("riscv64", "Linux", True), ("x86_64", "Darwin", True), ("x86_64", "Linux", False), ("i686", "Linux", False)],
)
def test_other_machines_are_told_so(machine: str, system: str, is_64_bit: bool) -> None:
    with pytest.raises(EdgeError, match=machine.lower()) as caught:
        detect_platform(machine, system, is_64_bit)
    assert caught.value.code == "config.invalid"


def test_this_machine_has_one() -> None:
    assert detect_platform() in PLATFORMS
