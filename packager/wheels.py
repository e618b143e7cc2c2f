"""Wheels of a bundle: which platform each is for, whether a device would unpack it, and resolving requirements."""

import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_contract.errors import ContractError, EdgeError
from edge_contract.limits import UNPACK_BYTES_MAX, UNPACK_ENTRIES_MAX, UNPACK_RATIO_MAX
from edge_contract.names import relative_path
from packager.limits import COPY_BYTES, DOWNLOAD_SECONDS_MAX, WHEEL_BYTES_MAX

# Wheel tags (https://packaging.python.org/en/latest/specifications/binary-distribution-format/).
_NAME: Final = re.compile(
    r"(?P<name>[A-Za-z0-9._]+)-(?P<version>[A-Za-z0-9._+!]+)(?:-(?P<build>\d[A-Za-z0-9._]*))?"
    r"-(?P<python>[A-Za-z0-9._]+)-(?P<abi>[A-Za-z0-9._]+)-(?P<platform>[A-Za-z0-9._]+)\.whl"
)
MACHINES: Final = {
    "x86_64": "linux/amd64",
    "aarch64": "linux/arm64",
    "armv7l": "linux/arm/v7",
    "armv6l": "linux/arm/v6",
}
"""Platform by the machine name that Linux and wheel tags use."""
_GLIBCS: Final = ("2_17", "2_24", "2_27", "2_28", "2_31", "2_34", "2_35")
_PYTHON: Final = re.compile(r"3\.\d{1,2}")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel file that was looked through.

    Attributes:
        source: The file.
        distribution: Normalised name.
        platforms: Platforms it runs on; none stands for any.
    """

    source: Path
    distribution: str
    platforms: frozenset[str] | None


def read_wheel(path: Path) -> Wheel:
    """Look at a wheel's name and at every entry of the archive.

    Raises:
        EdgeError: `config.invalid` for a name that is none or a foreign platform; `artifact.archive-invalid`,
            `artifact.path-unsafe`, `artifact.entry-forbidden`, `artifact.archive-bomb` for content a device refuses.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise EdgeError("config.invalid", f"{path.name} is not the name of a wheel", "Keep the name it was built with.")
    tags = match["platform"].split(".")
    platforms: frozenset[str] | None = None
    if tags != ["any"]:
        platforms = frozenset(
            place for tag in tags for machine, place in MACHINES.items() if "linux" in tag and tag.endswith(machine)
        )
        if not platforms:
            raise EdgeError("config.invalid", f"{path.name} is not for Linux on a known architecture")
    _check_entries(path)
    return Wheel(path, re.sub(r"[-_.]+", "-", match["name"]).lower(), platforms)


def for_platform(wheels: Iterable[Wheel], platform: str) -> tuple[Wheel, ...]:
    """Those that run on a platform, by file name.

    Raises:
        EdgeError: `config.invalid` when a distribution has none for the platform, or two.
    """
    chosen: dict[str, Wheel] = {}
    all_wheels = list(wheels)
    for wheel in all_wheels:
        if wheel.platforms is not None and platform not in wheel.platforms:
            continue
        if wheel.distribution in chosen:
            names = f"{chosen[wheel.distribution].source.name} and {wheel.source.name}"
            raise EdgeError("config.invalid", f"{names} are both {wheel.distribution} for {platform}", "Keep one.")
        chosen[wheel.distribution] = wheel
    missing = sorted({wheel.distribution for wheel in all_wheels} - set(chosen))
    if missing:
        hint = "Add the wheel for it, or leave the platform out."
        raise EdgeError("config.invalid", f"there is no wheel of {missing[0]} for {platform}", hint)
    return tuple(sorted(chosen.values(), key=lambda wheel: wheel.source.name))


def _check_entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        if path.stat().st_size > WHEEL_BYTES_MAX:
            raise EdgeError("config.invalid", f"{path.name} is larger than {WHEEL_BYTES_MAX} bytes")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise EdgeError("config.file-missing", f"cannot read {path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise EdgeError("artifact.archive-invalid", f"{path.name} is not a wheel: {error}") from None
    if len(entries) > UNPACK_ENTRIES_MAX:
        raise EdgeError("artifact.archive-bomb", f"{path.name} has {len(entries)} entries")
    total, seen = 0, set[str]()
    for entry in entries:
        name = entry.filename.rstrip("/") if entry.is_dir() else entry.filename
        try:
            relative_path(name)
        except ContractError as error:
            raise EdgeError("artifact.path-unsafe", f"{path.name}: {error.detail}") from None
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise EdgeError("artifact.entry-forbidden", f"{path.name}: {name!r} is neither a file nor a folder")
        if not entry.is_dir() and name in seen:
            raise EdgeError("artifact.archive-invalid", f"{path.name} has two entries {name!r}")
        seen.add(name)
        total += entry.file_size
    if total > min(UNPACK_BYTES_MAX, max(path.stat().st_size, 1) * UNPACK_RATIO_MAX):
        raise EdgeError("artifact.archive-bomb", f"{path.name} claims to unpack to {total} bytes")
    return entries


def unpack_wheel(path: Path, site: Path) -> None:
    """Unpack a wheel so that its modules can be imported from a folder.

    Raises:
        EdgeError: as `read_wheel`.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in _check_entries(path):
            target = site / entry.filename
            if entry.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with archive.open(entry) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, COPY_BYTES)
            except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
                raise EdgeError("artifact.archive-invalid", f"{path.name}: {entry.filename!r}: {error}") from None


def resolve_requirements(requirements: Path, python: str, platforms: Sequence[str], folder: Path) -> tuple[Path, ...]:
    """Download wheels for a requirements file, for each platform, by `pip download --only-binary`.

    Args:
        requirements: A pip requirements file; with hashes in it pip checks them.
        python: Version of Python on the devices.
        platforms: For which platforms.
        folder: Where the wheels go.

    Returns:
        The wheel files, sorted by name.

    Raises:
        EdgeError: `config.invalid` when pip finds no wheels, `config.dependency-missing` without pip.
    """
    if not _PYTHON.fullmatch(python):
        raise EdgeError("config.invalid", f"{python!r} is not a version of Python like 3.11")
    machines = {place: machine for machine, place in MACHINES.items()}
    for platform in platforms:
        machine = machines[platform]
        tags = [f"manylinux_{glibc}_{machine}" for glibc in _GLIBCS] + [f"manylinux2014_{machine}", f"linux_{machine}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        command += [part for tag in tags for part in ("--platform", tag)]
        command += ["--dest", str(folder), "--requirement", str(requirements)]
        _run_pip(command, requirements, platform)
    return tuple(sorted(folder.glob("*.whl")))


def _run_pip(command: list[str], requirements: Path, platform: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired:
        raise EdgeError("network.timeout", f"pip did not resolve {requirements.name} for {platform} in time") from None
    if "No module named pip" in done.stderr:
        raise EdgeError("config.dependency-missing", "this Python has no pip", "Install pip, or list wheel files.")
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        why = lines[-1][:300] if lines else f"pip ended with {done.returncode}"
        hint = "Only wheels are taken; build a wheel where none is published, or leave the platform out."
        raise EdgeError("config.invalid", f"{requirements.name} does not resolve for {platform}: {why}", hint)
