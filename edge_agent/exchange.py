"""A whole new identity in place of the old one: built beside it, in `<data>/identity.new`, it takes its name when it is
complete. Power may fail between any two steps; what is found then is the old identity or the new one.
"""

from pathlib import Path

from edge_agent import identity as ids
from edge_agent.store import durable
from edge_agent.store.lock import DataLock
from edge_contract.errors import EdgeError


def begin(data: Path) -> Path:
    """The folder of the new identity, in which nothing is complete yet.

    Raises:
        EdgeError: `device.disk-full`, `device.disk-error`.
    """
    folder = data / ids.NEW_FOLDER
    with durable.disk_errors(f"making {folder}"):
        durable.make_folder(folder)
        durable.remove_file(folder / ids.ENROLMENT)
    return folder


def complete(data: Path, files: dict[str, bytes]) -> None:
    """Write the new identity's files, `enrolment.json` last, and let it take the place of the old one.

    Raises:
        EdgeError: `device.disk-full`, `device.disk-error`.
    """
    with durable.disk_errors(f"storing the identity in {data}"):
        for name in sorted(files, key=lambda name: name == ids.ENROLMENT):
            durable.write_file(data / ids.NEW_FOLDER / name, files[name], 0o600)


def exchange(data: Path) -> None:
    """Give the complete new identity its name.

    Raises:
        EdgeError: `device.disk-full`, `device.disk-error`.
    """
    current, old = data / ids.FOLDER, data / ids.OLD_FOLDER
    with durable.disk_errors(f"exchanging the identity in {data}"):
        durable.remove_tree(old)
        if current.exists():
            durable.rename(current, old)
        durable.rename(data / ids.NEW_FOLDER, current)
        durable.remove_tree(old)


def finish_interrupted(data: Path) -> None:
    """Finish an exchange that a power cut stopped between its renames; a complete new identity wins.

    Raises:
        EdgeError: `device.disk-full`, `device.disk-error`.
    """
    if ids.is_half_exchanged(data):
        exchange(data)
    with durable.disk_errors(f"looking into {data}"):
        if (data / ids.FOLDER).exists():
            durable.remove_tree(data / ids.OLD_FOLDER)


def settle(data: Path) -> None:
    """Finish an interrupted exchange, unless somebody is renewing this moment, who does it.

    Raises:
        EdgeError: `device.disk-full`, `device.disk-error`.
    """
    try:
        with DataLock(data / ids.LOCK):
            finish_interrupted(data)
    except EdgeError as error:
        if error.code != "device.busy":
            raise
