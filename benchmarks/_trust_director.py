"""How fast one core of the registry signs and serves the director's metadata of devices."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Snapshot, Timestamp

from cloud_registry.adapters.director import TufDirector
from cloud_registry.adapters.image_repo import TufImageRepository
from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.documents import SqlDocuments
from cloud_registry.adapters.tuf_keys import OnlineKeys
from cloud_registry.assembly import SystemClock
from cloud_registry.ports import MetadataTable
from edge_contract.deployment import Artifact, Assignment, bundle_repository
from edge_contract.digest import Digest
from tests.support.author import Author
from tests.unit.cloud_data.support import MemoryTable


def measure(options: Mapping[str, str]) -> dict[str, Any]:
    """Devices a second whose director metadata one thread brings up to date.

    Args:
        options: `devices`, how many; `modules`, assignments of each.

    Returns:
        `sqlite`, over the database that the registry uses, and `memory`, without one, which is what signing itself
        costs. In each, by what was to do: `first` (targets, snapshot and timestamp are made), `changed` (the same after
        another deployment), `renewed` (a timestamp alone), `nothing_new` (a poll), in devices a second of processor
        time and of the clock on the wall. `bytes` is what a device downloads.
    """
    devices, modules = int(options.get("devices", "400")), int(options.get("modules", "1"))
    result: dict[str, Any] = {"devices": devices, "modules": modules}
    with tempfile.TemporaryDirectory(prefix="lighterman-bench-") as name:
        folder = Path(name)
        keys = OnlineKeys(folder / "keys", {})
        database = Database(f"sqlite:///{folder / 'registry.db'}")
        try:
            database.migrate()
            tables: dict[str, MetadataTable] = {"memory": MemoryTable(), "sqlite": SqlDocuments(database)}
            for kind, table in tables.items():
                result |= {kind: _rates(table, keys, devices, modules)}
            result["bytes"] = _sizes(TufDirector(tables["memory"], keys, _Source(modules), _Clock()), "device-000000")
        finally:
            database.close()
    return result


def _rates(table: MetadataTable, keys: OnlineKeys, devices: int, modules: int) -> dict[str, Any]:
    images = TufImageRepository(table, keys, SystemClock())
    images.submit_roots(None, Author(images.trust_summary()["online_keys"]).signed_root("director"))
    source, clock = _Source(modules), _Clock()
    director = TufDirector(table, keys, source, clock)
    names = [f"device-{number:06d}" for number in range(devices)]
    return {
        "first": _rate(director, names, lambda: None),
        "changed": _rate(director, names, source.change),
        "renewed": _rate(director, names, clock.pass_half_a_day),
        "nothing_new": _rate(director, names, lambda: None),
    }


class _Source:
    """Assignments that can all change at once."""

    def __init__(self, modules: int) -> None:
        self._modules = modules
        self._version = 1

    def change(self) -> None:
        """As after a deployment to everybody."""
        self._version += 1

    def assignments(self, device: str) -> tuple[Assignment, ...]:
        """One assignment a module."""
        return tuple(self._assignment(f"model-{number}", device) for number in range(self._modules))

    def _assignment(self, model: str, device: str) -> Assignment:
        # A bundle of its own for every device, so that nothing can be answered for many at once.
        digest = Digest.of(f"{model} {self._version} {device}".encode())
        artifact = Artifact(model, self._version, "linux/arm64", self._version, bundle_repository(model))
        return Assignment(model, f"d-{self._version}", digest, 2_000, artifact)


class _Clock(SystemClock):
    """The system's time, and more."""

    ahead_ms = 0

    def pass_half_a_day(self) -> None:
        """So that every timestamp is past half of its life."""
        self.ahead_ms += 13 * 3_600_000

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        return super().wall_ms() + self.ahead_ms


def _rate(director: TufDirector, names: list[str], prepare: Callable[[], None]) -> dict[str, float]:
    prepare()
    wall, processor = time.perf_counter(), time.process_time()
    for name in names:
        director.metadata(name, "timestamp.json")
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {
        "devices_a_second_and_core": round(len(names) / processor, 1),
        "devices_a_second": round(len(names) / wall, 1),
    }


def _sizes(director: TufDirector, device: str) -> dict[str, int]:
    timestamp = director.metadata(device, "timestamp.json")
    number = Metadata[Timestamp].from_bytes(timestamp).signed.snapshot_meta.version
    snapshot = director.metadata(device, f"{number}.snapshot.json")
    version = Metadata[Snapshot].from_bytes(snapshot).signed.meta["targets.json"].version
    targets = director.metadata(device, f"{version}.targets.json")
    return {"timestamp": len(timestamp), "snapshot": len(snapshot), "targets": len(targets)}
