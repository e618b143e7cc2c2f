"""The life of one service: verify, unpack, prove, serve, restart what crashes, and finish what has begun.

Everything happens on the main thread, which signals interrupt. While something can be given up without harm (a
download, loading a model) a signal ends it there and then; elsewhere it is news like any other.
"""

import contextlib
import errno
import logging
import os
import queue
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from edge_agent.platforms import detect_platform
from edge_agent.serving.limits import UNIX_PATH_BYTES_MAX, ServingLimits
from edge_agent.serving.logfile import BoundedLog
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.slots import FileSlotStore
from edge_agent.web.asked import Asked
from edge_agent.web.folder import private_folder
from edge_agent.web.limits import HURRY_MS, RESTART_MS_FIRST, RESTART_MS_MAX, RESTARTS_MAX, STEADY_MS
from edge_agent.web.sources import Content, LayoutContent, RegistryContent
from edge_agent.web.trusting import Chosen, choose
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import RUNTIME_BYTES_MAX
from edge_contract.manifest import Role
from edge_contract.runtime import Runtime

_OWN_SOCKET: Final = "s"  # of the supervisor's own, in a folder whose path may be long
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last when its terminal is closed
_log = logging.getLogger("edge_agent.serve")


class StoppedError(BaseException):
    """A signal asked for the end where nothing is lost by it. No operating error: nobody handles it on its way."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A bundle that lies in a slot.

    Attributes:
        chosen: What it is.
        runtime: Its runtime descriptor.
        slot: Where it lies.
    """

    chosen: Chosen
    runtime: Runtime
    slot: Path


def serve(asked: Asked, announce: Callable[[JsonObject], None]) -> None:
    """Serve one bundle until SIGTERM, SIGINT or SIGHUP. Called once, from the main thread.

    Args:
        asked: What to serve, and how.
        announce: Told once when clients are answered: `model`, `version`, `manifest`, `host`, `port` and so on.

    Raises:
        EdgeError: Whatever keeps it from serving; `model.worker-crashed` or what else a worker failed with that was
            restarted as often as is sensible.
    """
    news = _News()
    with news.signals():
        try:
            _require_free(asked)
            with private_folder(asked.work_dir) as folder:
                _require_short(folder)
                # What libraries write goes where everything goes that is written.
                os.environ["TMPDIR"] = str(_new_folder(folder, "tmp"))
                with news.interruptible():
                    unpacked = unpack(asked, folder)
                _Service(asked, unpacked, folder, news).run(announce)
        except StoppedError:
            _log.info("stopped by a signal")


# --- before it serves


def unpack(asked: Asked, folder: Path) -> Unpacked:
    """Verify the bundle and unpack it into a slot, with the store, and so the bounds, of a device.

    Args:
        asked: Where the bundle is and who vouches for it.
        folder: Private and empty; gets the slot.

    Raises:
        EdgeError: `trust.*`, `artifact.*`, `config.*`, `network.*`, `cloud.*`, `device.*`.
    """
    content = _content(asked)
    try:
        chosen = choose(asked, content, detect_platform(), folder / "trust")
        blobs = FileBlobStore(folder, reserve_bytes=0)
        for blob in chosen.manifest.blobs:
            content.fetch(blob, blobs)
    finally:
        content.close()
    runtime = Runtime.parse(blobs.read(chosen.manifest.with_role(Role.RUNTIME)[0].digest, RUNTIME_BYTES_MAX))
    if (runtime.model, runtime.version) != (chosen.model, chosen.version):
        raise EdgeError(
            "artifact.runtime-invalid",
            f"the manifest is of {chosen.model}:{chosen.version}, "
            f"its runtime descriptor of {runtime.model}:{runtime.version}",
        )
    golden = tuple(layer.path for layer in chosen.manifest.with_role(Role.GOLDEN))
    if golden != ((runtime.golden.path,) if runtime.golden else ()):
        raise EdgeError("artifact.runtime-invalid", "manifest and runtime descriptor disagree about golden vectors")
    if not golden and not asked.is_unproved:
        raise EdgeError(
            "artifact.golden-invalid",
            f"{chosen.model}:{chosen.version} has no golden vectors, so nothing can show that it computes rightly here",
            "Build it with --golden FILE, or serve it all the same with --allow-unproved.",
        )
    if runtime.bindings:
        _log.warning(
            "%s:%d is bound to MQTT topics; that is for devices, nobody listens to them here",
            chosen.model,
            chosen.version,
        )
    slot = FileSlotStore(folder, blobs).stage(chosen.digest, chosen.manifest)
    # The slot has links to the blobs that it needs; archives are unpacked.
    blobs.collect(frozenset())
    _log.info("%s:%d, %s, is unpacked; vouched for by %s", chosen.model, chosen.version, chosen.digest, chosen.vouched)
    return Unpacked(chosen, runtime, slot)


def _content(asked: Asked) -> Content:
    if asked.bundle is not None:
        return LayoutContent(asked.bundle, asked.model, asked.version)
    return RegistryContent(asked.registry, asked.model, asked.version, asked.token, asked.ca)


def _require_free(asked: Asked) -> None:
    """Find out before a long download that nobody could be answered.

    Raises:
        EdgeError: `config.invalid`.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((asked.host, asked.port))
            # Two sockets may be bound to one port this way; only one of them can listen.
            probe.listen(1)
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            what = f"cannot listen on {asked.host}:{asked.port}: {why}"
            raise EdgeError("config.invalid", what, "Choose another --host or --port.") from None
    if asked.unix is None:
        return
    if len(os.fsencode(asked.unix)) > UNIX_PATH_BYTES_MAX:
        raise EdgeError("config.invalid", f"--unix {asked.unix} is longer than {UNIX_PATH_BYTES_MAX} bytes")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(asked.unix))
        except OSError as error:
            # Refused: a service that was killed left it. EAGAIN: somebody listens and is busy.
            if error.errno != errno.EAGAIN:
                return
        raise EdgeError("config.invalid", f"another process answers at {asked.unix}", "Choose another --unix.")


def _require_short(folder: Path) -> None:
    if len(os.fsencode(folder / _OWN_SOCKET)) > UNIX_PATH_BYTES_MAX:
        what = f"the path of {folder} is too long: a unix socket in it may have {UNIX_PATH_BYTES_MAX} bytes"
        raise EdgeError("config.invalid", what, "Name a folder with a shorter path: --work-dir DIR.")


def _new_folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir(mode=0o700)
    return folder


# --- while it serves


class _News:
    """What the main thread waits for: signals, and workers that ended. `put` from any thread and from handlers."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Digest | None] = queue.SimpleQueue()
        self._may_interrupt = False
        self._stopping_since = 0.0
        self.is_stopping = False

    def worker_ended(self, _module: str, manifest: Digest) -> None:
        """A worker ended by itself."""
        self._queue.put(manifest)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Listen to signals; whoever listened before does so again afterwards."""

        def handle(_signum: int, _frame: FrameType | None) -> None:
            now = time.monotonic()
            if not self.is_stopping:
                self.is_stopping, self._stopping_since = True, now
            # A second one is from somebody who will not wait, unless one wish came twice: to us, and to our group.
            is_again = (now - self._stopping_since) * 1000 > HURRY_MS
            if self._may_interrupt or is_again:
                raise StoppedError
            self._queue.put(None)

        before = {number: signal.signal(number, handle) for number in _STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """In here a signal ends what is going on there and then; elsewhere `wait` tells of it.

        Raises:
            StoppedError: When a signal came before or comes now.
        """
        self._may_interrupt = True
        try:
            if self.is_stopping:
                raise StoppedError
            yield
        finally:
            self._may_interrupt = False

    def wait(self, timeout_s: float | None = None) -> Digest | None:
        """The next worker that ended; none for a wish to stop, and when time is up."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None


class _StderrLog(BoundedLog):
    """Passes on what workers print, so that it goes where the service's own log goes."""

    def __init__(self, _path: Path) -> None:
        super().__init__(Path("/dev/stderr"))

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), data)


class _Service:
    """One bundle behind its sockets. Used by the main thread."""

    def __init__(self, asked: Asked, unpacked: Unpacked, folder: Path, news: _News) -> None:
        self._asked = asked
        self._unpacked = unpacked
        self._news = news
        self._module = unpacked.runtime.model
        self._server = WorkerSupervisor(
            _new_folder(folder, "run"),
            on_sample=lambda _module, _record: None,
            on_exit=news.worker_ended,
            ports={self._module: asked.port},
            host=asked.host,
            limits=ServingLimits(drain_ms=asked.drain_s * 1000),
            make_log=_StderrLog,
            providers=asked.providers,
            tcp_token=asked.access_token,
            unix_paths={self._module: asked.unix or folder / _OWN_SOCKET},
        )
        self._failures = 0

    def run(self, announce: Callable[[JsonObject], None]) -> None:
        """Prove and serve until told to stop.

        Raises:
            EdgeError: As `serve`.
        """
        try:
            golden = self._start()
            announce(self._facts(golden))
            while not self._news.is_stopping:
                begun, ended = time.monotonic(), self._news.wait()
                if ended is not None:
                    self._recover((time.monotonic() - begun) * 1000)
            self._finish()
        except StoppedError:
            if (pid := self._server.worker_pid(self._module)) is not None:
                os.kill(pid, signal.SIGKILL)
            raise
        finally:
            self._server.close()

    def _start(self) -> Digest | None:
        chosen, policy = self._unpacked.chosen, self._asked.policy
        with self._news.interruptible():
            golden = self._server.restart(self._module, chosen.digest, self._unpacked.slot, policy)
        self._server.set_sampling(self._module, 0.0)
        return golden

    def _recover(self, served_ms: float) -> None:
        """Start the worker anew: at once, then after longer and longer pauses.

        Raises:
            EdgeError: What the last of too many attempts failed with.
        """
        self._failures = 1 if served_ms > STEADY_MS else self._failures + 1
        while True:
            self._pause()
            if self._news.is_stopping:
                return
            try:
                self._start()
                _log.warning("the worker is back, restart %d in a row", self._failures)
                return
            except EdgeError as error:
                _log.error("the worker cannot be started again: %s", error)
                self._failures += 1
                if self._failures > RESTARTS_MAX:
                    raise

    def _pause(self) -> None:
        if self._failures > RESTARTS_MAX:
            raise EdgeError(
                "model.worker-crashed",
                f"the worker of {self._module!r} ended {RESTARTS_MAX} times in a row",
                "What it printed stands above.",
            )
        if self._failures > 1:
            pause_ms = min(RESTART_MS_MAX, RESTART_MS_FIRST * 2 ** (self._failures - 2))
            self._news.wait(pause_ms / 1000)

    def _finish(self) -> None:
        """Go on for as long as others may still send clients here, then refuse new ones and finish what has begun."""
        end = time.monotonic() + self._asked.linger_s
        _log.info(
            "stopping: %d s of answering, then at most %d s of finishing", self._asked.linger_s, self._asked.drain_s
        )
        while (left_s := end - time.monotonic()) > 0:
            if self._news.wait(left_s) is not None:
                break  # the worker ended: there is nobody left who could answer
        self._server.stop(self._module)

    def _facts(self, golden: Digest | None) -> JsonObject:
        chosen = self._unpacked.chosen
        _unix, host, port = self._server.addresses(self._module)
        return {
            "event": "serving",
            "model": chosen.model,
            "version": chosen.version,
            "manifest": str(chosen.digest),
            "vouched": chosen.vouched,
            "golden": None if golden is None else str(golden),
            "members": [member.name for member in self._unpacked.runtime.members],
            "host": host,
            "port": port,
            "unix": None if self._asked.unix is None else str(self._asked.unix),
            "pid": os.getpid(),
        }
