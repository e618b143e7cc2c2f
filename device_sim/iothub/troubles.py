"""What goes wrong on purpose: faults that a test orders, and the rates at which the service throttles. Pure."""

from dataclasses import dataclass, replace
from typing import Final

from device_sim.iothub.limits import (
    C2D_PER_S,
    CONNECTS_PER_S,
    D2C_PER_S,
    DELAY_MS_MAX,
    FAULT_COUNT_MAX,
    FAULTS_MAX,
    METHODS_PER_S,
    TWIN_READS_PER_S,
    TWIN_WRITES_PER_S,
)
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

CONNECT: Final = "connect"
SUBSCRIBE: Final = "subscribe"
D2C: Final = "d2c"
C2D: Final = "c2d"
INPUT: Final = "input"
TWIN_GET: Final = "twin-get"
REPORTED: Final = "reported"
DESIRED: Final = "desired"
METHOD: Final = "method"
DPS: Final = "dps"
SERVICE: Final = "service"
OPERATIONS: Final = (CONNECT, SUBSCRIBE, D2C, C2D, INPUT, TWIN_GET, REPORTED, DESIRED, METHOD, DPS, SERVICE)

REFUSE: Final = "refuse"
DROP: Final = "drop"
DELAY: Final = "delay"
THROTTLE: Final = "throttle"
LOSE: Final = "lose"
LOSE_PUBACK: Final = "lose-puback"
KINDS: Final = (REFUSE, DROP, DELAY, THROTTLE, LOSE, LOSE_PUBACK)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: `refuse` answers with `code`; `drop` closes the connection instead; `delay` waits `delay_ms` first;
            `throttle` answers as a hub that has too much to do; `lose` does nothing at all; `lose-puback` does what is
            asked and does not say so.
        operation: One of `OPERATIONS`.
        count: How many times.
        device: `device` or `device/module` whom it meets; empty for everybody.
        code: Of a refusal: a CONNACK code or an HTTP status.
        delay_ms: Of a delay.
    """

    kind: str
    operation: str
    count: int = 1
    device: str = ""
    code: int = 0
    delay_ms: int = 0

    def to_json(self) -> JsonObject:
        """As the administration shows it."""
        return {
            "kind": self.kind,
            "operation": self.operation,
            "count": self.count,
            "device": self.device,
            "code": self.code,
            "delay_ms": self.delay_ms,
        }


class Faults:
    """Faults in the order in which they were set. One thread."""

    def __init__(self) -> None:
        """Nothing goes wrong."""
        self._faults: list[Fault] = []
        self.met = 0

    def add(self, fault: Fault) -> None:
        """Let something go wrong.

        Raises:
            EdgeError: `config.invalid`.
        """
        if fault.kind not in KINDS or fault.operation not in OPERATIONS:
            hint = f"Kinds: {', '.join(KINDS)}. Operations: {', '.join(OPERATIONS)}."
            raise EdgeError("config.invalid", f"there is no fault {fault.kind!r} of {fault.operation!r}", hint)
        if not 1 <= fault.count <= FAULT_COUNT_MAX or not 0 <= fault.delay_ms <= DELAY_MS_MAX:
            why = f"count is 1 to {FAULT_COUNT_MAX}, delay_ms 0 to {DELAY_MS_MAX}"
            raise EdgeError("config.invalid", why)
        if len(self._faults) >= FAULTS_MAX:
            raise EdgeError("config.invalid", f"there are {FAULTS_MAX} faults already", "Clear them.")
        self._faults.append(fault)

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self._faults.clear()

    def shown(self) -> list[JsonObject]:
        """What is still to come."""
        return [fault.to_json() for fault in self._faults]

    def take(self, operation: str, device: str) -> Fault | None:
        """The fault that this operation meets, which is one less then; or none."""
        for place, fault in enumerate(self._faults):
            if fault.operation == operation and fault.device in ("", device, device.partition("/")[0]):
                if fault.count == 1:
                    del self._faults[place]
                else:
                    self._faults[place] = replace(fault, count=fault.count - 1)
                self.met += 1
                return fault
        return None


class Bucket:
    """A token bucket: `rate` a second, with room for one second's worth. One thread."""

    def __init__(self, rate: float) -> None:
        """Begin full; a rate of 0 has no bound."""
        self._rate = rate
        self._level = rate
        self._at_ms = 0

    def take(self, now_ms: int) -> bool:
        """Whether there is one more."""
        if not self._rate:
            return True
        self._level = min(self._rate, self._level + (now_ms - self._at_ms) / 1000 * self._rate)
        self._at_ms = now_ms
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Rates:
    """What a hub of so many units of tier S1 takes a second. One thread."""

    def __init__(self, units: int) -> None:
        """Set the rates; 0 units throttle nothing."""
        self._buckets = {
            CONNECT: Bucket(CONNECTS_PER_S * units),
            D2C: Bucket(D2C_PER_S * units),
            C2D: Bucket(C2D_PER_S * units),
            TWIN_GET: Bucket(TWIN_READS_PER_S * units),
            REPORTED: Bucket(TWIN_WRITES_PER_S * units),
            DESIRED: Bucket(TWIN_WRITES_PER_S * units),
            METHOD: Bucket(METHODS_PER_S * units),
        }
        self.refused = dict.fromkeys(self._buckets, 0)

    def take(self, operation: str, now_ms: int) -> bool:
        """Whether an operation is within its rate; operations without one always are."""
        bucket = self._buckets.get(operation)
        if bucket is None or bucket.take(now_ms):
            return True
        self.refused[operation] += 1
        return False
