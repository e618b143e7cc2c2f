"""A device made of a copy of a prepared data directory, whose real agent runs with or without injected faults."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge_agent.audit import audit
from edge_agent.control import ask
from edge_agent.store import durable
from edge_agent.store.journal import FileJournal
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from tests.crash.calls import TRACED, Point
from tests.crash.cloud import MODEL, Shipment
from tests.support.net import LOOPBACK, wait_until
from tests.support.processes import Child, start_process
from tests.support.require import REPOSITORY_ROOT, require_program

WAIT_S = 150.0
_POLL_S = 0.01
_ASK_S = 10.0
_STRING_BYTES_MAX = 1_000_000
_RESERVE_BYTES = 64 * 1024
_TOLERANCE = 1e-5
_MARK = "PYTHON_LIGHTERMAN_CRASH"  # a worker inherits nothing but what Python is told


class BrokenError(Exception):
    """The device did not do what it has to do after any fault."""


@dataclass(frozen=True)
class Answer:
    """A prediction that fits the model which claims to have made it.

    Attributes:
        manifest: What the answer's header names.
        version: What the numbers show.
    """

    manifest: str
    version: int


class CrashDevice:
    """One device. Used by one thread; several devices may run at a time."""

    def __init__(self, folder: Path, data: Path | None = None) -> None:
        """Choose folders; `fill` makes it a device.

        Args:
            folder: For everything of it; a short path, because of the sockets.
            data: The data directory, below `folder` when none.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.data = data or folder / "data"
        self.run = folder / "r"
        self.log = folder / "agent.log"
        self.trace = folder / "trace"
        self._child: Child | None = None
        self._is_traced = False
        self._config = folder / "edge-agent.toml"
        self._config.write_text(
            f'data = "{self.data}"\nrun = "{self.run}"\npoll_ms = 1000\nreport_ms = 3600000\n'
            f"reserve_bytes = {_RESERVE_BYTES}\n",
            encoding="utf-8",
        )

    # -- its disk --------------------------------------------------------------------------------------------------

    def fill(self, source: Path) -> None:
        """Make its disk a copy of a prepared data directory, hard links as links."""
        shutil.rmtree(self.data, ignore_errors=True)
        copy_tree(source, self.data)

    def enrol(self, url: str) -> None:
        """Let the real command line enrol it."""
        token = self.folder / "token"
        token.write_text("once", encoding="ascii")
        argv = ["enroll", "--url", url, "--token-file", str(token), "--data", str(self.data)]
        self._start(argv)
        assert self._child is not None
        code = self._child.wait(WAIT_S)
        assert code == 0, self._child.tail()

    # -- its process -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the agent as an operator does."""
        self._start(["run", "--config", str(self._config)])

    def start_traced(self, inject: str = "", point: Point | None = None) -> None:
        """Start the agent under strace, with temporary names that are the same in every run.

        Args:
            inject: What happens at the point, for example `signal=KILL` or `error=EIO`.
            point: Where; none to let nothing happen and record everything below the data directory.
        """
        chosen = ["-e", f"trace={TRACED}"]
        if point is not None:
            chosen = ["-e", f"trace={point.call}", "-P", os.path.join(self.data, point.path)]
            chosen += ["-e", f"inject={point.call}:{inject}:when={point.number}"]
        names = os.pathsep.join((str(Path(__file__).parent / "names"), str(REPOSITORY_ROOT)))
        self._start_under_strace(chosen, {"PYTHONPATH": names})

    def start_recorded_and_doomed(self, call: str, number: int) -> None:
        """Record everything below the data directory until some thread makes its nth such call, which kills it."""
        self._start_under_strace(["-e", f"trace={TRACED}", "-e", f"inject={call}:signal=KILL:when={number}"])

    def _start_under_strace(self, chosen: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.trace.unlink(missing_ok=True)
        # Never --seccomp-bpf: with it strace injects nothing and says so nowhere.
        argv = [require_program("strace"), "-f", "-qq", "-y", "-o", str(self.trace), "-s", str(_STRING_BYTES_MAX)]
        self._start(["run", "--config", str(self._config)], [*argv, *chosen], env)

    def _start(self, arguments: Sequence[str], prefix: Sequence[str] = (), env: dict[str, str] | None = None) -> None:
        self._is_traced = bool(prefix)
        program = str(Path(sys.executable).with_name("edge-agent"))
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT), _MARK: str(self.folder), **(env or {})}
        self._child = start_process(
            [*prefix, program, *arguments], log_path=self.log, env=variables, cwd=REPOSITORY_ROOT
        )

    @property
    def is_running(self) -> bool:
        """Whether the agent runs."""
        return self._child is not None and self._child.is_running

    def kill(self) -> None:
        """End everything that was started, as a power cut would."""
        if self._child is not None:
            # The group holds strace, the agent and its workers; strace alone would only let go of them.
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.stop()
            self._child = None
            for pid in self._strays():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not self._strays(), WAIT_S, what="the end of all processes of the device")

    def _strays(self) -> list[int]:
        """Processes of this device that are in groups of their own, known by a variable that all of them inherit."""
        mark = f"{_MARK}={self.folder}".encode()
        found = []
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                with suppress(OSError):
                    if mark in (place / "environ").read_bytes().split(b"\0"):
                        found.append(int(place.name))
        return found

    def stop(self) -> None:
        """Ask the agent to end, and see that it does."""
        if self._child is not None:
            self.ask_to_end()
            with suppress(AssertionError):
                self._child.wait(WAIT_S)
            self.kill()

    def ask_to_end(self) -> None:
        """Send SIGTERM to the agent itself, not to strace above it."""
        if self._child is not None:
            pid = self._child.pid
            if self._is_traced:
                try:
                    below = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
                except OSError:
                    return  # it has ended meanwhile
                pid = int(below[0]) if below else pid
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def tail(self) -> str:
        """The end of the agent's log."""
        with suppress(OSError):
            return self.log.read_bytes()[-1500:].decode(errors="replace")
        return ""

    # -- what it says ----------------------------------------------------------------------------------------------

    def status(self) -> JsonObject:
        """Its module as the control socket tells of it; empty while it does not."""
        with suppress(EdgeError, KeyError):
            found: JsonObject = ask(self.run, {"op": "status"})["status"]["modules"][MODEL]
            return found
        return {}

    def wait(self, predicate: Callable[[], bool], what: str, deadline_s: float = WAIT_S) -> None:
        """Wait until something holds.

        Raises:
            BrokenError: It did not in time, or the agent ended.
        """
        end = time.monotonic() + deadline_s
        while not predicate():
            if not self.is_running:
                raise BrokenError(f"the agent ended instead of {what}: {self.tail()}")
            if time.monotonic() > end:
                raise BrokenError(f"no {what} within {deadline_s:g} s: {json.dumps(self.status())} {self.tail()}")
            time.sleep(_POLL_S)

    def is_confirmed(self, shipment: Shipment) -> bool:
        """Whether it says that this version lives, serves and is confirmed."""
        module = self.status()
        deployment = module.get("deployment") or {}
        return bool(
            module.get("live") == str(shipment.manifest)
            and module.get("serving")
            and deployment.get("manifest") == str(shipment.manifest)
            and deployment.get("outcome") == "confirmed"
        )

    def predict(self) -> Answer | None:
        """Ask for a prediction over the module's own socket; none while nobody answers there.

        Raises:
            BrokenError: The answer is not that of the model it names.
        """
        path = self.status().get("unix")
        if not path:
            return None
        value = 7.0
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, value]}
        body = json.dumps({"inputs": [tensor]})
        connection = _UnixConnection(str(path))
        try:
            connection.request("POST", f"/v2/models/{MODEL}/infer", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        if answer.status == http.client.SERVICE_UNAVAILABLE:
            return None
        if answer.status != http.client.OK:
            raise BrokenError(f"a prediction failed with HTTP status {answer.status}: {data[:200]!r}")
        numbers = json.loads(data)["outputs"][0]["data"]
        added = [number - value for number in numbers]
        version = int(answer.headers["Lighterman-Model-Version"])
        if any(abs(number - version) > _TOLERANCE for number in added):
            raise BrokenError(f"version {version} answered with {numbers} to {value}")
        return Answer(str(answer.headers["Lighterman-Manifest"]), version)

    def wait_for_answer(self) -> Answer:
        """The first prediction that it gives."""
        found: list[Answer] = []

        def is_so() -> bool:
            answer = self.predict()
            if answer is not None:
                found.append(answer)
            return bool(found)

        self.wait(is_so, "answer to a prediction")
        return found[0]

    # -- what is on its disk ---------------------------------------------------------------------------------------

    def require_journal(self) -> None:
        """Require a record that can be read.

        Raises:
            BrokenError: There is none; the agent would begin anew.
        """
        try:
            record = FileJournal(self.data / "journal.json").load()
        except EdgeError as error:
            raise BrokenError(str(error)) from None
        if record is None:
            raise BrokenError("the journal is gone")

    def blobs(self) -> set[str]:
        """Names in the blob folder."""
        return {item.name for item in durable.list_folder(self.data / "blobs" / "sha256")}

    def require_tidy(self, *needed: Shipment) -> None:
        """Require that its disk, the agent being down, holds what these versions need, undamaged, and nothing else.

        Raises:
            BrokenError: Something is damaged, missing or left over.
        """
        bad = [f"{item.kind} {item.name}: {item.error}" for item in audit(self.data, True) if item.error is not None]
        if bad:
            raise BrokenError(f"edge-agent verify --all finds: {bad}")
        wanted = {digest.hex for shipment in needed for digest in shipment.blobs}
        if self.blobs() != wanted:
            raise BrokenError(f"blobs too many: {self.blobs() - wanted}, too few: {wanted - self.blobs()}")
        slots = {item.name for item in durable.list_folder(self.data / "slots")}
        if slots != {shipment.manifest.hex for shipment in needed}:
            raise BrokenError(f"slots: {sorted(slots)}")
        stray = [
            str(path.relative_to(self.data))
            for path in durable.walk(self.data)
            if path.name.startswith(durable.TEMPORARY_PREFIX) or path.parent.name == "partial"
        ]
        if stray:
            raise BrokenError(f"left over: {stray}")


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder; files that were one stay one."""
    copies: dict[int, Path] = {}
    target.mkdir(parents=True)
    shutil.copymode(source, target)
    for path in durable.walk(source):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir()
            shutil.copymode(path, place)
        elif (before := copies.get(path.stat().st_ino)) is not None:
            os.link(before, place)
        else:
            shutil.copy(path, place)
            copies[path.stat().st_ino] = place


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__(LOOPBACK, timeout=_ASK_S)
        self._unix = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ASK_S)
        self.sock.connect(self._unix)
