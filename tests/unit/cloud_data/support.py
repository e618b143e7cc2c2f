"""Stand-ins for the parts that others build: a table of documents in memory, a clock that stands still."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from cloud_registry.ports import MetadataRow
from edge_contract.deployment import Assignment
from edge_contract.errors import EdgeError

NOW_MS = 1_790_000_000_000


class SetClock:
    """A clock that moves only when told."""

    def __init__(self, wall_ms: int = NOW_MS) -> None:
        self.now_ms = wall_ms

    def wall_ms(self) -> int:
        return self.now_ms


class MemoryTable:
    """`MetadataTable` in memory, with the same compare-and-set."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._lock = threading.Lock()

    def get(self, repository: str, name: str) -> tuple[int, bytes] | None:
        return self.rows.get((repository, name))

    def versions(self, repository: str) -> dict[str, int]:
        return {name: version for (owner, name), (version, _) in self.rows.items() if owner == repository}

    def put_many(
        self,
        rows: Sequence[MetadataRow],
        expect: Mapping[tuple[str, str], int],
        remove: Sequence[tuple[str, str]] = (),
    ) -> None:
        with self._lock:
            for key, version in expect.items():
                if self.rows.get(key, (0, b""))[0] != version:
                    raise EdgeError("cloud.conflict", f"{key} is not at version {version}")
            for key in remove:
                self.rows.pop(key, None)
            for row in rows:
                self.rows[row.repository, row.name] = (row.version, row.data)

    def remove_repository(self, repository: str) -> None:
        with self._lock:
            for key in [key for key in self.rows if key[0] == repository]:
                del self.rows[key]


class SetAssignments:
    """`AssignmentSource` that says what the test put in."""

    def __init__(self) -> None:
        self.by_device: dict[str, tuple[Assignment, ...]] = {}

    def assignments(self, device: str) -> tuple[Assignment, ...]:
        if device not in self.by_device:
            raise EdgeError("cloud.not-found", f"no device {device}")
        return self.by_device[device]
