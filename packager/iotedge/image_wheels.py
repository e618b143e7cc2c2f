"""The agent's installation as files of an image: wheels chosen by their tags and requirements, and unpacked by name.

Nothing of a wheel is run, here or while the image is built: a wheel is an archive with a list of its files' digests
(binary distribution format 1.0), and installing one means to put its files where an interpreter looks.
"""

import base64
import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from edge_contract.errors import EdgeError
from packager.files import digest_of
from packager.iotedge.image_limits import (
    GLIBC_MINOR_MAX,
    LOCK_BYTES_MAX,
    WHEEL_DOCUMENT_BYTES_MAX,
    WHEELS_MAX,
)
from packager.limits import COPY_BYTES
from packager.wheels import MACHINES, read_wheel

_PIN: Final = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,127})(?:\[[^\]]{0,200}\])?==")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_MACHINE_BY_PLATFORM: Final = {platform: machine for machine, platform in MACHINES.items()}
_OLD_NAMES: Final = {(2, 5): "manylinux1", (2, 12): "manylinux2010", (2, 17): "manylinux2014"}
PRODUCT: Final = "lighterman"
"""The distribution with the agent."""


@dataclass(frozen=True, slots=True)
class ChosenWheel:
    """A wheel that goes into an image.

    Attributes:
        path: The file.
        name: Normalised name of the distribution.
        version: Its version.
        sha256: Of the file, in hexadecimal.
        requires: What it requires, as its metadata say.
        extras: Normalised names of the extras that it has.
    """

    path: Path
    name: str
    version: Version
    sha256: str
    requires: tuple[Requirement, ...]
    extras: frozenset[str]


@dataclass(frozen=True, slots=True)
class Target:
    """What wheels have to fit.

    Attributes:
        platform: `os/architecture[/variant]`.
        minor: Second number of the version of Python.
    """

    platform: str
    minor: int

    @property
    def ranks(self) -> dict[Tag, int]:
        """Tags that run there, and which are preferred: the lower the number, the more.

        Of two wheels that differ in the C library they ask for, the one that asks for the older runs on more bases.
        """
        machine = _MACHINE_BY_PLATFORM[self.platform]
        least = (2, 17) if machine != "x86_64" else (2, 5)
        places = []
        for minor in range(least[1], GLIBC_MINOR_MAX + 1):
            if older := _OLD_NAMES.get((2, minor)):
                places.append(f"{older}_{machine}")
            places.append(f"manylinux_2_{minor}_{machine}")
        places.append(f"linux_{machine}")
        python = (3, self.minor)
        tags = [*cpython_tags(python, platforms=places), *compatible_tags(python, f"cp3{self.minor}", places)]
        return {tag: rank for rank, tag in reversed(list(enumerate(tags)))}

    @property
    def markers(self) -> dict[str, str]:
        """What requirements' conditions are evaluated with."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"3.{self.minor}.0",
            "os_name": "posix",
            "platform_machine": _MACHINE_BY_PLATFORM[self.platform],
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"3.{self.minor}.0",
            "python_version": f"3.{self.minor}",
            "sys_platform": "linux",
        }


def normal_name(name: str) -> str:
    """A distribution's name in the form in which names are compared."""
    return canonicalize_name(name)


def read_locks(paths: Iterable[Path]) -> dict[str, frozenset[str]]:
    """Digests (sha256, hexadecimal) by distribution from requirements files with hashes.

    Raises:
        EdgeError: `config.file-missing`, `config.invalid` for one that names none.
    """
    found: dict[str, frozenset[str]] = {}
    for path in paths:
        for name, digests in _read_lock(path).items():
            found[name] = found.get(name, frozenset()) | digests
    return found


def _read_lock(path: Path) -> dict[str, frozenset[str]]:
    try:
        with path.open("rb") as file:
            data = file.read(LOCK_BYTES_MAX + 1)
        text = data.decode("utf-8") if len(data) <= LOCK_BYTES_MAX else ""
    except (OSError, UnicodeError) as error:
        raise EdgeError("config.file-missing", f"cannot read {path}: {error}") from None
    found: dict[str, frozenset[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        match = _PIN.match(line)
        if match is not None and (hashes := _HASH.findall(line)):
            name = canonicalize_name(match["name"])
            found[name] = found.get(name, frozenset()) | frozenset(hashes)
    if not found:
        raise EdgeError("config.invalid", f"{path} names no distribution with its hashes")
    return found


class WheelHouse:
    """The wheels of some folders. Read once, asked for each platform."""

    def __init__(self, folders: Iterable[Path]) -> None:
        """Look at the names of all wheels.

        Raises:
            EdgeError: `config.invalid` for names that are none, too many wheels or none at all.
        """
        self._files: dict[str, list[tuple[Version, frozenset[Tag], Path]]] = {}
        paths = sorted({path.resolve() for folder in folders for path in folder.glob("*.whl")})
        if not 0 < len(paths) <= WHEELS_MAX:
            raise EdgeError("config.invalid", f"{len(paths)} wheels were found, 1 to {WHEELS_MAX} are needed")
        for path in paths:
            try:
                name, version, _, tags = parse_wheel_filename(path.name)
            except InvalidWheelFilename as error:
                raise EdgeError("config.invalid", f"{path.name}: {error}", "Keep the name it was built with.") from None
            self._files.setdefault(name, []).append((version, tags, path))
        self._read: dict[Path, ChosenWheel] = {}

    def choose(
        self,
        wanted: Iterable[str],
        target: Target,
        provided: frozenset[str],
        lock: Mapping[str, frozenset[str]] | None,
    ) -> tuple[ChosenWheel, ...]:
        """What is wanted with all that it requires, a wheel for each distribution.

        Args:
            wanted: Requirements.
            target: Where they have to run.
            provided: Normalised names of distributions that the base has; a wheel that fits goes before.
            lock: Digests that wheels may have, all but the product's own; none to take them as they are.

        Returns:
            Wheels in order of name.

        Raises:
            EdgeError: `config.invalid` where a distribution has no wheel that fits, or two versions;
                `artifact.digest-mismatch` for one that the lock does not know; `artifact.*` for what is no wheel.
        """
        ranks, chosen, seen = target.ranks, dict[str, ChosenWheel](), set[tuple[str, str]]()
        waiting = [(Requirement(text), "what the image needs") for text in wanted]
        while waiting:
            requirement, by = waiting.pop()
            name = canonicalize_name(requirement.name)
            if name in provided and not self._fitting(name, ranks):
                continue
            wheel = chosen.get(name)
            if wheel is None:
                wheel = chosen[name] = self._one(name, ranks, target, by, lock)
            if not requirement.specifier.contains(wheel.version, prereleases=True):
                why = f"{by} needs {requirement}, and the wheel there is {wheel.path.name}"
                raise EdgeError("config.invalid", why, "Download wheels that fit together, with one lock.")
            extras = sorted(canonicalize_name(extra) for extra in requirement.extras)
            if missing := [extra for extra in extras if name == PRODUCT and extra not in wheel.extras]:
                known = ", ".join(sorted(wheel.extras))
                raise EdgeError("config.invalid", f"{wheel.path.name} has no extra {missing[0]!r}", f"It has: {known}.")
            for extra in ("", *extras):
                if (name, extra) in seen:
                    continue
                seen.add((name, extra))
                waiting += [
                    (item, name)
                    for item in wheel.requires
                    if item.marker is None or item.marker.evaluate({**target.markers, "extra": extra})
                ]
        return tuple(chosen[name] for name in sorted(chosen))

    def _fitting(self, name: str, ranks: Mapping[Tag, int]) -> list[tuple[Version, int, Path]]:
        """The wheels of a distribution that run there, with their rank."""
        return [
            (version, min(ranks[tag] for tag in tags if tag in ranks), path)
            for version, tags, path in self._files.get(name, [])
            if not ranks.keys().isdisjoint(tags)
        ]

    def _one(
        self, name: str, ranks: Mapping[Tag, int], target: Target, by: str, lock: Mapping[str, frozenset[str]] | None
    ) -> ChosenWheel:
        where = f"{target.platform} and Python 3.{target.minor}"
        fitting = self._fitting(name, ranks)
        if not fitting:
            hint = "Download one, or say --base-provides where the base has it, or leave the platform out."
            raise EdgeError("config.invalid", f"there is no wheel of {name} for {where}, which {by} requires", hint)
        if len({version for version, _, _ in fitting}) > 1:
            names = ", ".join(sorted(path.name for _, _, path in fitting))
            raise EdgeError("config.invalid", f"there are several versions for {where}: {names}", "Keep one.")
        path = min(fitting, key=lambda item: (item[1], item[2].name))[2]
        if path not in self._read:
            self._read[path] = _read(path, name, fitting[0][0])
        wheel = self._read[path]
        if lock is not None and name != PRODUCT and wheel.sha256 not in lock.get(name, frozenset()):
            why = f"{path.name} has sha256:{wheel.sha256}, which the lock does not know for {name}"
            raise EdgeError("artifact.digest-mismatch", why, "Download it again with the lock: pip --require-hashes.")
        return wheel


def _read(path: Path, name: str, version: Version) -> ChosenWheel:
    read_wheel(path)  # refuses what leaves its folder, links, bombs
    digest, _ = digest_of(path)
    with zipfile.ZipFile(path) as archive:
        message = BytesHeaderParser().parsebytes(_document(archive, path, "METADATA"))
    try:
        requires = tuple(Requirement(str(text)) for text in message.get_all("Requires-Dist", []))
    except InvalidRequirement as error:
        raise EdgeError("artifact.archive-invalid", f"{path.name} requires what cannot be read: {error}") from None
    extras = frozenset(canonicalize_name(str(text)) for text in message.get_all("Provides-Extra", []))
    return ChosenWheel(path, name, version, digest.hex, requires, extras)


def _document(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    """A file of the folder `*.dist-info`, of which a wheel has one."""
    found = [item for item in archive.infolist() if re.fullmatch(rf"[^/]+\.dist-info/{name}", item.filename)]
    if len(found) != 1 or found[0].file_size > WHEEL_DOCUMENT_BYTES_MAX:
        raise EdgeError("artifact.archive-invalid", f"{path.name} has no {name} that can be read")
    try:
        return archive.read(found[0])
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise EdgeError("artifact.archive-invalid", f"{path.name}: {error}") from None


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A file of a wheel.

    Attributes:
        path: Where it is imported from, below the folder of packages.
        size: In bytes.
        sha256: In hexadecimal, as the wheel's own list says; of the list itself, what it has.
        is_program: Whether it may be run.
        archive: The wheel, open.
        member: Its name there.
    """

    path: str
    size: int
    sha256: str
    is_program: bool
    archive: zipfile.ZipFile
    member: str

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, compared with the digest.

        Raises:
            EdgeError: `artifact.digest-mismatch`, `artifact.archive-invalid`.
        """
        state = hashlib.sha256()
        try:
            with self.archive.open(self.member) as file:
                while chunk := file.read(COPY_BYTES):
                    state.update(chunk)
                    yield chunk
        except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
            raise EdgeError("artifact.archive-invalid", f"{self._name}: {self.member}: {error}") from None
        if state.hexdigest() != self.sha256:
            why = f"{self._name}: {self.member} is not what its RECORD says"
            raise EdgeError("artifact.digest-mismatch", why, "Download the wheel again.")

    @property
    def _name(self) -> str:
        return Path(str(self.archive.filename)).name


def files_of(archive: zipfile.ZipFile) -> list[WheelFile]:
    """The files of a wheel that are imported; programs, headers and data that it would put elsewhere stay out.

    Args:
        archive: The wheel, which stays open while its files are read.

    Raises:
        EdgeError: `artifact.archive-invalid` for a file that the wheel's list does not name.
    """
    path = Path(str(archive.filename))
    record = _document(archive, path, "RECORD")
    digests = _digests(record, path)
    result = []
    for item in archive.infolist():
        name = item.filename
        folder = re.match(r"[^/]+\.data/([^/]+)/", name)
        if item.is_dir() or (folder is not None and folder[1] not in ("purelib", "platlib")):
            continue
        if re.fullmatch(r"[^/]+\.dist-info/RECORD\.(jws|p7s)", name):
            continue  # signatures that nobody checks any more
        digest = digests.get(name)
        if re.fullmatch(r"[^/]+\.dist-info/RECORD", name):
            digest = hashlib.sha256(record).hexdigest()
        if digest is None:
            raise EdgeError("artifact.archive-invalid", f"{path.name}: its RECORD does not name {name!r}")
        place = name[folder.end() :] if folder is not None else name
        is_program = bool((item.external_attr >> 16) & 0o111)
        result.append(WheelFile(place, item.file_size, digest, is_program, archive, name))
    return result


def _digests(record: bytes, path: Path) -> dict[str, str]:
    """Digests by name, from a RECORD."""
    found = {}
    try:
        for row in csv.reader(io.StringIO(record.decode("utf-8"))):
            if len(row) == 3 and row[1]:
                kind, _, text = row[1].partition("=")
                if kind != "sha256":
                    raise ValueError(f"a digest of the kind {kind!r}")
                found[row[0]] = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()
    except (ValueError, csv.Error) as error:
        raise EdgeError("artifact.archive-invalid", f"{path.name}: its RECORD cannot be read: {error}") from None
    return found
