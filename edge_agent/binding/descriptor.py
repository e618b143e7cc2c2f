"""Which bindings a bundle on this device has: its descriptor, read from its slot."""

from pathlib import Path

from edge_contract.bindings import Binding
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import RUNTIME_BYTES_MAX
from edge_contract.runtime import RUNTIME_PATH, Runtime


def read_bindings(slots: Path, manifest: Digest) -> tuple[Binding, ...]:
    """The bindings of a bundle.

    Args:
        slots: Folder of the slots.
        manifest: The bundle's.

    Raises:
        EdgeError: `device.disk-error`, `artifact.*`.
    """
    path = slots / manifest.hex / "files" / RUNTIME_PATH
    try:
        with path.open("rb") as file:
            data = file.read(RUNTIME_BYTES_MAX + 1)
    except OSError as error:
        raise EdgeError("device.disk-error", f"{path} cannot be read: {error.strerror}") from None
    return Runtime.parse(data).bindings
