"""Power cuts at every prefix of a recorded run, with everything lost that was not synced.

The run is a real agent's, as strace saw it. Each state that a cut may leave is put on a disk, and the agent's own code
for starting is let loose on it: lock, journal, record, store, spool. Some of the states get a whole agent.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.audit import audit
from edge_agent.core.record import Record
from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.journal import FileJournal
from edge_agent.store.lock import DataLock
from edge_agent.store.slots import FileSlotStore
from edge_agent.store.spool import SqliteSpool
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import parse_object
from edge_contract.limits import MANIFEST_BYTES_MAX
from edge_contract.manifest import Manifest
from tests.crash.calls import Call, describe, read_calls
from tests.crash.cloud import DEVICE, MODEL
from tests.crash.device import BrokenError, CrashDevice
from tests.crash.disk import DRAWN, ForgetfulDisk, Loss, Shelf, Tree, contents, fingerprint, tree_of
from tests.crash.faults import is_killed, require_recovery, wait_for_fault
from tests.crash.sweep import Bench, Tally, is_tidied, sample

_DOCUMENT_BYTES_MAX = 5_000_000
_MAPPED = "spool.db-shm"  # SQLite writes it through memory, and makes it anew after a crash
_SPOOL_BYTES = 1_000_000
_SHM = Path("/dev/shm")  # memory: the cuts leave thousands of small disks


@dataclass(frozen=True)
class State:
    """What one power cut may leave.

    Attributes:
        what: When power failed and what was lost, for people.
        tree: The disk.
    """

    what: str
    tree: Tree


def states(
    base: Path, before: Sequence[Call], calls: Sequence[Call], draws: int, step: int = 1
) -> tuple[list[State], int]:
    """Every state that a power cut may leave between two calls.

    Args:
        base: The synced disk before the first call.
        before: Calls of a run that was killed, with no loss; the cut comes later.
        calls: Calls of the run that the power cut ends.
        draws: How many times each policy that draws lots does so, at each prefix.
        step: Look at every so manieth prefix alone.

    Returns:
        The different states, and how many cuts were tried to get them.
    """
    disk = ForgetfulDisk(base)
    for call in before:
        disk.apply(call)
    found: dict[bytes, State] = {}
    tried = 0
    for number in range(len(calls) + 1):
        if number:
            disk.apply(calls[number - 1])
        if number % step:
            continue
        where = describe(calls[number]) if number < len(calls) else "the end"
        for loss in Loss:
            for drawn in range(draws if loss in DRAWN else 1):
                tried += 1
                tree = disk.after(loss, random.Random(f"{number} {loss} {drawn}"))
                found.setdefault(fingerprint(tree), State(f"before call {number} ({where}), losing {loss}", tree))
    return list(found.values()), tried


def require_faithful(base: Path, calls: Sequence[Call], data: Path) -> None:
    """Require that the model of the disk, fed with all calls of a run, shows what that run really left.

    Raises:
        BrokenError: A call was not recorded, or is modelled wrongly.
    """
    disk = ForgetfulDisk(base)
    for call in calls:
        disk.apply(call)
    model = contents(disk.after(Loss.NOTHING, random.Random(0)))
    real = contents(tree_of(data))
    for tree in (model, real):
        tree.pop(_MAPPED, None)
    differing = {path for path in model.keys() | real.keys() if model.get(path, b"-") != real.get(path, b"-")}
    if differing:
        raise BrokenError(f"the recorded calls do not make the disk that was left: {sorted(differing)}")


def require_startable(found: Bench, data: Path) -> int:
    """Let everything that an agent reads at its start read this disk, and collect the garbage.

    Returns:
        The version that lives there.

    Raises:
        BrokenError: The record cannot be read, what lives is not whole and verified, or something leaks.
        EdgeError: The same, as the agent's own code says it.
    """
    with DataLock(data / "lock"):
        saved = FileJournal(data / "journal.json").load()
        if saved is None:
            raise BrokenError("the journal is gone")
        module = Record.from_json(saved).modules[MODEL]
        if module.live is None:
            raise BrokenError("the record names no live bundle")
        version = {found.old.manifest: 2, found.new.manifest: 3}.get(module.live.manifest)
        if version is None:
            raise BrokenError(f"{module.live.manifest} lives")
        blobs = FileBlobStore(data, 0)
        slots = FileSlotStore(data, blobs)
        slots.verify(module.live.manifest, lambda: False)
        kept = {item.manifest for item in (module.live, module.fallback, module.deployment) if item is not None}
        bad = [f"{item.kind} {item.name}: {item.error}" for item in audit(data, True) if item.error is not None]
        if bad:
            raise BrokenError(f"edge-agent verify --all finds: {bad}")
        for path in (data / "trust").rglob("*.json"):
            parse_object(path.read_bytes(), str(path), _DOCUMENT_BYTES_MAX)
        SqliteSpool(data / "spool.db", DEVICE, _SPOOL_BYTES).close()
        if (data / "spool.db.bad").exists():
            raise BrokenError("the spool was damaged")
        _require_no_leak(blobs, slots, kept)
    return version


def _require_no_leak(blobs: FileBlobStore, slots: FileSlotStore, kept: set[Digest]) -> None:
    """Collect garbage as the agent does, and require that nothing else is left."""
    wanted = set(kept)
    for digest in kept:
        if blobs.has(digest):
            wanted |= {blob.digest for blob in Manifest.parse(blobs.read(digest, MANIFEST_BYTES_MAX)).blobs}
    slots.collect(frozenset(kept))
    blobs.collect(frozenset(wanted))
    if not set(blobs.digests()) <= wanted or not set(slots.complete()) <= kept:
        raise BrokenError("garbage is left behind its collection")


def cut_everywhere(found: Bench, kind: str, all_states: Sequence[State], tried: int) -> Tally:
    """Let the agent's own code start on every state.

    Args:
        found: The bench.
        kind: Name for the table.
        all_states: Different states.
        tried: How many cuts they stand for.
    """
    tally = Tally(f"{kind}")
    started = time.monotonic()
    scratch = (_SHM if os.access(_SHM, os.W_OK) else found.folder) / f"{found.folder.name}-cuts"
    shutil.rmtree(scratch, ignore_errors=True)
    shelf = Shelf(scratch)
    data = scratch / "data"
    for state in all_states:
        shelf.put(state.tree, data)
        try:
            version = require_startable(found, data)
            tally.old += version == found.old.version
            tally.new += version == found.new.version
        except (BrokenError, EdgeError) as error:
            tally.broken.append(f"{kind} {state.what}: {error}")
        finally:
            shutil.rmtree(data)
        tally.tried += 1
    shutil.rmtree(scratch, ignore_errors=True)
    tally.seconds = time.monotonic() - started
    tally.note = f"{tried} cuts"
    return tally


def start_on(found: Bench, device: CrashDevice, state: State) -> int:
    """Put a state on a device's disk and start a whole agent on it.

    Returns:
        The version that answered first.

    Raises:
        BrokenError: See `require_recovery`.
    """
    shutil.rmtree(device.data, ignore_errors=True)
    pool = device.folder / "shelf"
    shutil.rmtree(pool, ignore_errors=True)
    Shelf(pool).put(state.tree, device.data)
    return require_recovery(found, device).version


def ways_to_end(calls: Sequence[Call], count: int) -> list[tuple[str, int]]:
    """Where to kill a first run, for `record_two_runs`: at syncs, spread evenly over a run.

    There something has been done that is seen and not safe yet, which the next run must not rely on.
    """
    made = Counter(call.thread for call in calls if call.name == "fsync")
    return [("fsync", number) for number in sample(range(1, max(made.values(), default=0) + 1), count)]


def record_two_runs(found: Bench, device: CrashDevice, call: str, number: int) -> tuple[list[Call], list[Call]]:
    """Kill an agent somewhere and record the run after it, which is not killed.

    Args:
        found: The bench.
        device: A device.
        call: The first run ends when a thread makes this system call,
        number: for the so manieth time, files elsewhere included.

    Returns:
        The calls of both runs.

    Raises:
        BrokenError: The kill did not happen, or the second run did not end well.
    """
    device.fill(found.base)
    device.start_recorded_and_doomed(call, number)
    try:
        wait_for_fault(found, device, is_killed)
    finally:
        device.kill()
    if not is_killed(device):
        raise BrokenError(f"no thread came to its {call} number {number}")
    first = read_calls(device.trace, device.data)
    device.start_traced()
    try:
        device.wait(lambda: device.is_confirmed(found.new) and is_tidied(found, device), "update after the kill")
    finally:
        device.stop()
    return first, read_calls(device.trace, device.data)
