"""How fast one core of the registry signs and serves the director's metadata of devices."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cloud_registry.adapters.director import TufDirector
from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.documents import SqlDocuments
from cloud_registry.adapters.tuf_keys import OnlineKeys
from cloud_registry.assembly import SystemClock
from cloud_registry.ports import MetadataTable
from edge_contract.deployment import Artifact, Assignment, bundle_repository
from edge_contract.digest import Digest

SUMMARY = "director metadata a second and core: first, changed, renewed, and nothing new"
OPTIONS = {"devices": "400", "modules": "1"}


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Measure; see `director_rates`."""
    return director_rates(int(options["devices"]), int(options["modules"]))


def director_rates(devices: int, modules: int = 1) -> dict[str, Any]:
    """Devices a second whose metadata one thread brings up to date, over SQLite as the registry uses it.

    Args:
        devices: How many devices.
        modules: Assignments of each.

    Returns:
        By what was to do: `first` (targets, snapshot and timestamp are made), `changed` (the same after another
        deployment), `renewed` (a timestamp alone), `nothing_new` (a poll), in devices a second of processor time and of
        the clock on the wall; and the bytes that a device downloads.
    """
    from tests.support.author import Author

    with tempfile.TemporaryDirectory(prefix="lighterman-bench-") as name:
        folder = Path(name)
        database = Database(f"sqlite:///{folder / 'registry.db'}")
        try:
            database.migrate()
            keys = OnlineKeys(folder / "keys", {})
            table, source, clock = SqlDocuments(database), _Source(modules), _Clock()
            _introduce(table, keys, Author)
            director = TufDirector(table, keys, source, clock)
            names = [f"device-{number:06d}" for number in range(devices)]
            result: dict[str, Any] = {"devices": devices, "modules": modules}
            result["first"] = _rate(director, names, lambda: None)
            result["changed"] = _rate(director, names, source.change)
            result["renewed"] = _rate(director, names, clock.pass_half_a_day)
            result["nothing_new"] = _rate(director, names, lambda: None)
            result["bytes"] = _sizes(director, names[0])
            return result
        finally:
            database.close()


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


def _introduce(table: MetadataTable, keys: OnlineKeys, author: Any) -> None:
    from cloud_registry.adapters.image_repo import TufImageRepository

    images = TufImageRepository(table, keys, SystemClock())
    images.submit_roots(None, author(images.trust_summary()["online_keys"]).signed_root("director"))


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
    from tuf.api.metadata import Metadata, Snapshot, Timestamp

    timestamp = director.metadata(device, "timestamp.json")
    number = Metadata[Timestamp].from_bytes(timestamp).signed.snapshot_meta.version
    snapshot = director.metadata(device, f"{number}.snapshot.json")
    version = Metadata[Snapshot].from_bytes(snapshot).signed.meta["targets.json"].version
    targets = director.metadata(device, f"{version}.targets.json")
    return {"timestamp": len(timestamp), "snapshot": len(snapshot), "targets": len(targets)}
