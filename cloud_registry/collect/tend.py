"""Tends the lake beside the collector: merges small files, removes orphans, measures. One thread."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from cloud_registry.limits import (
    COMPACT_BYTES_MAX,
    COMPACT_FILES_MAX,
    COMPACT_FILES_MIN,
    COMPACT_MS,
    STOP_TIMEOUT_S,
    SWEEP_MS,
)
from cloud_registry.metrics import RegistryMetrics
from cloud_registry.ports import FleetStore, LakeFile, LakeWriter
from edge_contract.errors import EdgeError

_log: Final = logging.getLogger(__name__)


def files_to_merge(catalogue: Sequence[LakeFile]) -> list[LakeFile]:
    """Small files of one day that are worth one file together, or none.

    The oldest day first; at most `COMPACT_FILES_MAX` files and `COMPACT_BYTES_MAX` bytes.
    """
    days: defaultdict[str, list[LakeFile]] = defaultdict(list)
    for file in catalogue:
        if file.size < COMPACT_BYTES_MAX // COMPACT_FILES_MIN:
            days[file.path.partition("/")[0]].append(file)
    for day in sorted(days):
        chosen: list[LakeFile] = []
        size = 0
        for file in days[day][:COMPACT_FILES_MAX]:
            size += file.size
            if size > COMPACT_BYTES_MAX:
                break
            chosen.append(file)
        if len(chosen) >= COMPACT_FILES_MIN:
            return chosen
    return []


def compact(fleet: FleetStore, lake: LakeWriter, catalogue: Sequence[LakeFile]) -> int:
    """Merge once, if it is worth it; how many files became one.

    Records stay visible exactly once throughout: the catalogue changes in one transaction, and a query that began
    before keeps its files for a grace.

    Raises:
        EdgeError: `device.*`, `cloud.unavailable`.
    """
    old = files_to_merge(catalogue)
    if not old:
        return 0
    new = lake.merge(old)
    try:
        fleet.replace_files([file.path for file in old], [new])
    except EdgeError as error:
        if error.code != "cloud.conflict":
            raise
        lake.retire([new])  # another collector merged some of them meanwhile
        return 0
    lake.retire(old)
    _log.info("merged %d files of the telemetry lake into %s", len(old), new.path)
    return len(old)


class LakeTender:
    """A thread that tends the lake until it is closed."""

    def __init__(self, fleet: FleetStore, lake: LakeWriter, metrics: RegistryMetrics) -> None:
        """Prepare.

        Args:
            fleet: The catalogue.
            lake: The files.
            metrics: Counted in.
        """
        self._fleet = fleet
        self._lake = lake
        self._metrics = metrics
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lake-tender", daemon=True)

    def start(self) -> None:
        """Begin with a sweep."""
        self._thread.start()

    def close(self) -> None:
        """End; bounded."""
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        swept = -float("inf")
        while not self._is_stopping.is_set():
            try:
                if (time.monotonic() - swept) * 1000 >= SWEEP_MS:
                    self._sweep()
                    swept = time.monotonic()
                self._compact()
            except EdgeError as error:
                _log.warning("the telemetry lake could not be tended: %s", error)
            self._is_stopping.wait(COMPACT_MS / 1000)

    def _sweep(self) -> None:
        removed = self._lake.sweep(self._fleet.lake_files)
        self._metrics.swept_files.inc(removed)
        if removed:
            _log.info("removed %d files of the telemetry lake that were never entered or are merged", removed)

    def _compact(self) -> None:
        while not self._is_stopping.is_set():
            catalogue = self._fleet.lake_files()
            self._metrics.lake_files.set(len(catalogue))
            self._metrics.lake_bytes.set(sum(file.size for file in catalogue))
            if not compact(self._fleet, self._lake, catalogue):
                return
