"""Reads the newest report of each device from its twin, now and then: what went past the messages is found there.

A hub keeps messages for days and twins for ever. So a registry that was away for longer, or a consumer group that was
read by somebody else, costs no more than a minute. A report counts only with its signature, as any other does.
"""

import logging
import threading
from collections import OrderedDict
from typing import Any, Final

from cloud_registry.adapters.link_iothub import HubService
from cloud_registry.core.reports import REPLAYED
from cloud_registry.hub_directory import HubDirectory
from cloud_registry.limits import HUB_KNOWN_MAX, STOP_TIMEOUT_S
from cloud_registry.metrics import RegistryMetrics
from cloud_registry.ports import Clock, FleetStore, ReportMessage
from edge_contract.codes import Category
from edge_contract.errors import ContractError, EdgeError
from edge_contract.hub import TWIN_KEY, HubAddress, join_report
from edge_contract.jsonio import JsonObject

_log: Final = logging.getLogger(__name__)
_DEVICES: Final = "SELECT * FROM devices WHERE is_defined(properties.reported.lighterman.report)"
_MODULES: Final = "SELECT * FROM devices.modules WHERE is_defined(properties.reported.lighterman.report)"
KIND: Final = "hub-twins"


class TwinReports:
    """A thread that reads. `start` once, `close` at the end; any thread."""

    def __init__(
        self,
        service: HubService,
        directory: HubDirectory,
        fleet: FleetStore,
        clock: Clock,
        metrics: RegistryMetrics,
        every_s: float,
    ) -> None:
        """Prepare.

        Args:
            service: The hub; used by this thread alone.
            directory: Whose twins they are.
            fleet: Takes reports.
            clock: The time.
            metrics: Counted in.
            every_s: Between two readings.
        """
        self._service = service
        self._directory = directory
        self._fleet = fleet
        self._clock = clock
        self._metrics = metrics
        self._every_s = every_s
        self._seen: OrderedDict[HubAddress, tuple[str, int]] = OrderedDict()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hub-twins", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; bounded."""
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            try:
                self.read()
                self._metrics.is_link_up.labels(KIND).set(True)
            except EdgeError as error:
                self._metrics.is_link_up.labels(KIND).set(False)
                _log.warning("reports cannot be read from twins: %s", error)
            except Exception:  # noqa: BLE001 - logged, and the next reading may go better
                self._metrics.is_link_up.labels(KIND).set(False)
                _log.exception("reports cannot be read from twins")
            if self._is_stopping.wait(self._every_s):
                return

    def read(self) -> int:
        """Read all twins once; gives how many reports were new.

        Raises:
            EdgeError: `network.*`, `cloud.*`.
        """
        count = 0
        for query in (_DEVICES, _MODULES):
            for row in self._service.query(query):
                if self._is_stopping.is_set():
                    return count
                count += self._take(row)
        return count

    def _take(self, row: JsonObject) -> bool:
        address = HubAddress(str(row.get("deviceId") or ""), str(row.get("moduleId") or ""))
        said = (row.get("reported") or {}).get(TWIN_KEY)
        mark = _mark(said)
        if said is None or mark is None or self._seen.get(address) == mark:
            return False
        device = self._directory.device(address)
        if device is None:
            return False
        try:
            content = join_report(said["report"].get("parts"))
        except ContractError as error:
            _log.info("the twin of %s has no report: %s", address, error.detail)
            self._note(address, mark)
            return False
        try:
            verdicts = self._fleet.take_reports(device, [ReportMessage(content, self._clock.wall_ms(), is_copy=True)])
        except EdgeError as error:
            if error.category != Category.ARTIFACT and error.code != "internal.bug":
                raise
            _log.warning("the report in the twin of %s is passed over: %s", address, error)
            self._note(address, mark)
            return False
        self._note(address, mark)
        for verdict in verdicts:
            if verdict.code is None:
                self._metrics.messages.labels(KIND, "taken").inc()
            elif verdict.code != REPLAYED:  # it came as a message before, as nearly all do
                self._metrics.reports_refused.labels(verdict.code).inc()
        return any(verdict.code is None for verdict in verdicts)

    def _note(self, address: HubAddress, mark: tuple[str, int]) -> None:
        self._seen[address] = mark
        self._seen.move_to_end(address)
        while len(self._seen) > HUB_KNOWN_MAX:
            self._seen.popitem(last=False)


def _mark(said: Any) -> tuple[str, int] | None:
    """(boot, number) of what a twin says, to tell whether it is new; none where there is no report."""
    if not isinstance(said, dict) or not isinstance(said.get("report"), dict) or not said["report"].get("parts"):
        return None
    boot, number = said.get("boot"), said.get("number")
    return (boot, number) if isinstance(boot, str) and isinstance(number, int) else None
