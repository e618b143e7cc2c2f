"""Compiled models: what a runtime made of a model on this very device, kept to load faster next time (ADR 26).

One folder an entry, named by a digest over everything that it depends on: bundle, file, runtime and its version,
processor, options. It can be dropped at any moment and is never needed: whatever is wrong with an entry, the plain
model is loaded instead. Files only; what is in them is the engines' business. Used by any one thread of a process;
several processes may use one folder.
"""

import contextlib
import hashlib
import logging
import mmap
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from edge_agent.store import durable
from edge_agent.worker.limits import (
    COMPILED_BYTES_MAX,
    COMPILED_ENTRIES_MAX,
    COMPILED_FILES_MAX,
    COMPILED_FREE_BYTES_MIN,
    COMPILED_NOTE_BYTES_MAX,
    COMPILED_REASON_CHARS_MAX,
    CPU_FEATURES_BYTES_MAX,
)
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject, dump, parse_object

_log = logging.getLogger(__name__)

FORMAT: Final = "lighterman.compiled/1"
_NOTE: Final = "entry.json"
_SEEN: Final = "seen.json"
_TRYING: Final = "trying."
_MAKING: Final = ".making."


def key_of(facts: Mapping[str, Any]) -> str:
    """The name of an entry: a digest over what it depends on, this device's processor included."""
    everything = {"format": FORMAT, "machine": platform.machine(), "processor": processor_features(), **facts}
    return hashlib.sha256(dump(everything)).hexdigest()


def processor_features() -> str:
    """What the first processor says of its model and features; empty where the system does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            text = file.read(CPU_FEATURES_BYTES_MAX)
    except OSError:
        return ""
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant", "vendor_id", "stepping")
    lines = (line for line in text.partition("\n\n")[0].splitlines() if line.partition(":")[0].strip() in wanted)
    return "\n".join(" ".join(line.split()) for line in lines)


class CompiledModels:
    """The folder of compiled models."""

    def __init__(self, folder: Path, bytes_max: int = COMPILED_BYTES_MAX) -> None:
        """Use a folder of the agent's; it is made when the first entry is written.

        Args:
            folder: Where entries are.
            bytes_max: Bound of all entries together; the ones that were not used for longest go first.
        """
        self._folder = folder
        self._bytes_max = bytes_max

    def find(self, key: str) -> Path | None:
        """The folder of an entry whose every file has its digest; none when there is none.

        The caller is taken to load it now: until it calls `confirm`, the death of its process drops the entry.
        """
        folder = self._folder / key
        note = self._note(folder)
        if note is None or "refused" in note:
            return None
        try:
            if (process := self._victim(folder)) is not None:
                raise ValueError(f"process {process} died of it")
            self._verify(folder, note)
            (folder / f"{_TRYING}{os.getpid()}").touch()
            os.utime(folder / _NOTE)
        except (OSError, ValueError) as error:
            _log.warning("the compiled model %s is dropped: %s", key, error)
            self.drop(key)
            return None
        return folder

    def confirm(self, key: str) -> None:
        """Say that an entry that was found did its work."""
        with contextlib.suppress(OSError):
            (self._folder / key / f"{_TRYING}{os.getpid()}").unlink()

    def is_wanted(self, key: str) -> bool:
        """Whether there is neither an entry nor a refusal to make one."""
        return self._note(self._folder / key) is None

    def drop(self, key: str) -> None:
        """Remove an entry; who has loaded it goes on with it."""
        shutil.rmtree(self._folder / key, ignore_errors=True)

    @contextlib.contextmanager
    def making(self) -> Iterator[Path]:
        """An empty folder to make an entry in; gone at the end of the block, unless it became one.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`.
        """
        folder = self._folder / f"{_MAKING}{os.getpid()}.{secrets.token_hex(4)}"
        with durable.disk_errors(f"compiling into {self._folder}"):
            durable.make_folder(self._folder)
            self._remove_leftovers()
            folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def require_space(self, bytes_needed: int) -> None:
        """Leave the disk to models.

        Raises:
            EdgeError: `device.disk-full`.
        """
        free = shutil.disk_usage(self._folder).free
        if free < bytes_needed + COMPILED_FREE_BYTES_MIN:
            raise EdgeError("device.disk-full", f"{free} bytes are free: too few for a compiled model beside the rest")

    def keep(self, key: str, making: Path) -> None:
        """Make what lies in a folder from `making` an entry, durably, and drop others until all fit.

        Raises:
            EdgeError: `device.disk-full`, also for an entry larger than all may be; `device.disk-error`.
        """
        with durable.disk_errors(f"keeping {key} in {self._folder}"):
            files = {path.name: _facts(path) for path in sorted(making.iterdir())}
            size = sum(int(facts["bytes"]) for facts in files.values())
            if size > self._bytes_max or len(files) > COMPILED_FILES_MAX:
                raise EdgeError("device.disk-full", f"a compiled model of {size} bytes is larger than all may be")
            self._write(key, making, {"format": FORMAT, "files": files})
            self._shrink(key)

    def refuse(self, key: str, reason: str) -> None:
        """Remember that there is nothing to compile, so that it is not tried at every start.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`.
        """
        with self.making() as making, durable.disk_errors(f"keeping {key} in {self._folder}"):
            self._write(key, making, {"format": FORMAT, "files": {}, "refused": reason[:COMPILED_REASON_CHARS_MAX]})
            self._shrink(key)

    # --- the inside

    def _write(self, key: str, making: Path, note: JsonObject) -> None:
        durable.write_file(making / _NOTE, dump(note))
        durable.sync_tree(making)
        self.drop(key)
        durable.rename(making, self._folder / key)

    def _note(self, folder: Path) -> JsonObject | None:
        try:
            with (folder / _NOTE).open("rb") as file:
                note = parse_object(file.read(COMPILED_NOTE_BYTES_MAX + 1), _NOTE, COMPILED_NOTE_BYTES_MAX)
        except (OSError, EdgeError):
            return None
        return note if note.get("format") == FORMAT and isinstance(note.get("files"), dict) else None

    def _verify(self, folder: Path, note: JsonObject) -> None:
        """Compare every file with its digest; within one boot, a file nobody has touched since is not read again."""
        files = note["files"]
        now = {"boot": _boot_id(), "files": {name: _identity(folder / name) for name in sorted(files)}}
        if not files or any("/" in name for name in files):
            raise ValueError("it has no files")
        try:
            seen = parse_object((folder / _SEEN).read_bytes(), _SEEN, COMPILED_NOTE_BYTES_MAX)
        except (OSError, EdgeError):
            seen = {}
        if seen == now and now["boot"]:
            return
        for name, facts in files.items():
            if _facts(folder / name) != facts:
                raise ValueError(f"{name} is not what was written")
        making = folder / f"{_SEEN}.{os.getpid()}"
        making.write_bytes(dump(now))
        making.rename(folder / _SEEN)

    def _victim(self, folder: Path) -> int | None:
        """A process that began to load the entry and died before it could say that all is well."""
        for path in folder.glob(f"{_TRYING}*"):
            number = path.name.removeprefix(_TRYING)
            if number.isdecimal() and not _is_alive(int(number)):
                return int(number)
        return None

    def _remove_leftovers(self) -> None:
        for path in self._folder.glob(f"{_MAKING}*"):
            number = path.name.removeprefix(_MAKING).partition(".")[0]
            if not number.isdecimal() or not _is_alive(int(number)):
                shutil.rmtree(path, ignore_errors=True)

    def _shrink(self, newest: str) -> None:
        entries = []
        for folder in durable.list_folder(self._folder):
            note = self._note(folder)
            if note is None and not folder.name.startswith("."):
                self.drop(folder.name)  # nobody can use it
            if note is not None:
                size = sum(int(facts["bytes"]) for facts in note["files"].values())
                entries.append(((folder.name == newest, (folder / _NOTE).stat().st_mtime_ns), size, folder.name))
        total, count = sum(size for _age, size, _name in entries), len(entries)
        for _age, size, name in sorted(entries):
            if total <= self._bytes_max and count <= COMPILED_ENTRIES_MAX:
                return
            self.drop(name)
            total, count = total - size, count - 1


def _facts(path: Path) -> JsonObject:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return {"bytes": 0, "digest": f"sha256:{hashlib.sha256().hexdigest()}"}
        # Mapped, because that is how the runtime reads it a moment later.
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return {"bytes": size, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}"}


def _identity(path: Path) -> list[int]:
    """Changes with every write to the file: nobody but the kernel sets the last of these times."""
    facts = path.stat()
    return [facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
