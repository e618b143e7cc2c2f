"""Batches, reports and rows for these tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cloud_registry.ports import LakeFile, LakeRow
from edge_contract.phases import Phase
from edge_contract.telemetry import Batch, Sample
from edge_contract.twin import Report, ReportedModule

BOOT = "00000000000000aa"
T0_MS = 1_795_000_000_000  # some day in November 2026


def sample(seq: int, **changes: Any) -> Sample:
    """A prediction."""
    values: dict[str, Any] = {
        "seq": seq,
        "kind": "prediction",
        "module": "digits",
        "model": "digits",
        "version": 1,
        "manifest": None,
        "taken_ms": T0_MS + seq,
        "body": {
            "inputs": {"x": [seq]},
            "outputs": {"y": [seq % 10]},
            "latency_us": 120 + seq,
            "request_id": f"r{seq}",
        },
    }
    return Sample(**(values | changes))


def batch(device: str, first: int, last: int, boot: str = BOOT) -> Batch:
    """Samples `first..last` of one boot."""
    return Batch(device, boot, tuple(sample(seq) for seq in range(first, last + 1)))


def rows(device: str, numbers: Iterable[int], boot: str = BOOT, received_ms: int = T0_MS) -> list[LakeRow]:
    """Rows of one boot for the lake."""
    return [LakeRow(device, boot, received_ms, sample(seq)) for seq in numbers]


def report(device: str, number: int, boot: str = BOOT, director_version: int = 0) -> Report:
    """A report of a device with one idle module."""
    return Report(
        device,
        boot,
        number,
        T0_MS,
        "linux/amd64",
        "0.1.0",
        director_version,
        {"digits": ReportedModule(Phase.IDLE, model="digits", version=1, serving=True)},
    )


class Catalogue:
    """The catalogue alone, in memory."""

    def __init__(self, files: Sequence[LakeFile] = (), reports: Sequence[dict[str, Any]] = ()) -> None:
        """Start with some files."""
        self.files = list(files)
        self.reports = list(reports)

    def lake_files(self) -> list[LakeFile]:
        """See `FleetStore.lake_files`."""
        return list(self.files)

    def report_rows(self) -> Iterator[dict[str, Any]]:
        """See `QuerySource.report_rows`."""
        return iter(self.reports)
