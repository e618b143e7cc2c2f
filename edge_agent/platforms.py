"""Which platform this process runs on, in the words of OCI: `os/architecture[/variant]`."""

import platform
import sys
from typing import Final

from edge_contract.errors import EdgeError

_IS_64_BIT: Final = sys.maxsize > 2**32
_MACHINES: Final = {
    ("x86_64", True): "linux/amd64",
    ("amd64", True): "linux/amd64",
    ("aarch64", True): "linux/arm64",
    ("arm64", True): "linux/arm64",
    # A 32-bit Python on a 64-bit kernel runs what a 32-bit system runs.
    ("aarch64", False): "linux/arm/v7",
    ("armv8l", False): "linux/arm/v7",
    ("armv7l", False): "linux/arm/v7",
    ("armv6l", False): "linux/arm/v6",
}


def detect_platform(machine: str | None = None, system: str | None = None, is_64_bit: bool = _IS_64_BIT) -> str:
    """The platform whose bundles run here.

    Args:
        machine: As `uname -m` says; asked from the system when none.
        system: As `uname -s` says; asked from the system when none.
        is_64_bit: Whether this interpreter is a 64-bit program.

    Raises:
        EdgeError: `config.invalid` on a machine that no bundle can be built for.
    """
    machine = (machine or platform.machine()).lower()
    system = (system or platform.system()).lower()
    found = _MACHINES.get((machine, is_64_bit)) if system == "linux" else None
    if found is None:
        known = ", ".join(sorted(set(_MACHINES.values())))
        bits = 64 if is_64_bit else 32
        raise EdgeError(
            "config.invalid", f"{system}/{machine} with {bits} bits is not supported", f"Supported: {known}."
        )
    return found
