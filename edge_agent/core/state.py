"""What every part of a module's update machine works on, and the few things that all of them do with it. Pure."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from edge_agent.core import commands as do
from edge_agent.core.limits import OBSERVE_MS, STEP_MS_MAX
from edge_agent.core.probation import Bounds
from edge_agent.core.record import ModuleRecord
from edge_agent.core.serving import LiveWatch
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.twin import ReportedDeployment, ReportedError, ReportedHealth

Commands = list[do.Command]


class ModuleState(ABC):
    """The state of one module's update machine, shared by its parts.

    `keeping.Keeping` builds on it, then `steps.Steps`, `judging.Judging` and, with the choice of what to do at all,
    `module.ModuleMachine`. Each may use what is below it; upwards there is only `on_event`.

    Attributes:
        name: Name of the module.
        record: What is persisted.
        refused: What verified metadata assigned and this device must not take, or none.
        damaged: The live assignment, when its slot turned out to be damaged and nobody is healing it yet.
    """

    def __init__(
        self,
        device: str,
        name: str,
        record: ModuleRecord,
        new_op: Callable[[], int],
        is_device_held: Callable[[], bool] = lambda: False,
    ) -> None:
        """Drive `record`.

        Args:
            device: Name of the device.
            name: Name of the module.
            record: What is persisted of it.
            new_op: Gives operation identifiers that were never used before in this process.
            is_device_held: Whether an operator holds all updates of the device back.
        """
        self.name = name
        self.record = record
        self.refused: ReportedDeployment | None = None
        self.damaged: Assignment | None = None
        self._device = device
        self._new_op = new_op
        self._is_device_held = is_device_held
        self._op: int | None = None
        self._overdue_at: int | None = None
        self._retry_at: int | None = None
        self._observe_at: int | None = None
        self._ends_at: int | None = None
        self._watch = LiveWatch(device, name, new_op)
        self._next_sampling = 1.0
        self._next_probation_ms = 0
        self._next_bounds = Bounds()
        self._health: ReportedHealth | None = None
        self._looks = 0
        self._next_golden: Digest | None = None
        self._is_candidate_lost = False
        self._is_paused = False  # the live worker was stopped, so that the candidate has its memory
        self._gap_ms = 0

    @abstractmethod
    def on_event(self, event: object, now: int) -> Commands:
        """Take one event that concerns this module, as its table says."""

    @property
    def is_held(self) -> bool:
        """Whether an operator holds updates of this module back."""
        return self.record.held or self._is_device_held()

    # -- operations ------------------------------------------------------------------------------------------------

    def _begin_operation(self, now: int) -> int:
        self._op, self._overdue_at = self._new_op(), now + STEP_MS_MAX[self.record.phase]
        return self._op

    def _give_up_operation(self) -> Commands:
        op, self._op, self._overdue_at = self._op, None, None
        return [] if op is None else [do.CancelOperation(op)]

    def _begin_window(self, now: int) -> None:
        self._looks = 0
        self._ends_at = now + self.record.probation_ms
        self._observe_at = now + min(OBSERVE_MS, self.record.probation_ms)

    # -- small helpers ---------------------------------------------------------------------------------------------

    def _deployment(self) -> Assignment:
        if self.record.deployment is None:
            raise AssertionError(f"phase {self.record.phase} without a deployment")
        return self.record.deployment

    def _error(self, code: str, detail: str) -> ReportedError:
        return ReportedError.of(code, detail, self.record.phase, self.record.attempt)
