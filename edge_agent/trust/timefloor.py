"""The floor under the clock: the latest time this device knows to have passed.

A device without a battery-backed clock wakes up in 1970, where all expired metadata looks fresh. Two facts need no
clock: the software was released at some time, and a clock that once agreed with fresh signed metadata was about
right. Nothing else is guessed; a clock earlier than the floor is reported, and metadata is not judged by it.
"""

import logging
from pathlib import Path
from typing import Final

from edge_agent.limits import CLOCK_STEP_BACK_MS_MAX
from edge_agent.store import durable
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, dump, parse_object

RELEASED_MS: Final = 1_735_689_600_000
"""A time before which this software did not exist: 2025-01-01T00:00:00Z. A later release may raise it."""

_FILE_BYTES_MAX: Final = 1024
_SCHEMA: Final = "lighterman.timefloor/1"
_RAISE_MS_MIN: Final = 3_600_000  # for the sake of flash memory, the floor is written about once an hour
_LOG: Final = logging.getLogger(__name__)


class TimeFloor:
    """Keeps and checks the floor. Used by one thread."""

    def __init__(self, path: Path, released_ms: int = RELEASED_MS) -> None:
        """Read the floor; a missing or damaged file means that only the release is known.

        Args:
            path: For example `<data>/trust/time.json`; its folder is made on the first write.
            released_ms: The floor of a new device, milliseconds since 1970.
        """
        self._path = path
        self._floor_ms = max(released_ms, _read(path))

    @property
    def floor_ms(self) -> int:
        """The latest time known to have passed, milliseconds since 1970."""
        return self._floor_ms

    def check(self, wall_ms: int) -> None:
        """Refuse a clock that is behind the floor.

        Raises:
            EdgeError: `device.clock-untrusted`.
        """
        if wall_ms < self._floor_ms:
            raise EdgeError(
                "device.clock-untrusted",
                f"the clock says {wall_ms} ms since 1970, but {self._floor_ms} ms have certainly passed",
                "Set the device's clock (chrony, systemd-timesyncd or a battery-backed clock); the next try follows.",
            )

    def confirm(self, wall_ms: int) -> None:
        """Remember that a clock agreed with fresh signed metadata, so that less than a day before it has passed.

        The margin of `CLOCK_STEP_BACK_MS_MAX` lets a clock that ran in a wrong time zone be put right. The floor can
        not be pushed beyond the expiry of signed metadata, because a clock beyond it does not agree with that.

        Args:
            wall_ms: The time at which everything verified and nothing was expired.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`.
        """
        floor_ms = wall_ms - CLOCK_STEP_BACK_MS_MAX
        if floor_ms < self._floor_ms + _RAISE_MS_MIN:
            return
        with durable.disk_errors(f"writing {self._path}"):
            durable.make_folder(self._path.parent)
            durable.write_file(self._path, dump({"schema": _SCHEMA, "floor_ms": floor_ms}))
        self._floor_ms = floor_ms


def _read(path: Path) -> int:
    try:
        data = durable.read_file(path, _FILE_BYTES_MAX)
        if data is None:
            return 0
        fields = Fields(parse_object(data, str(path), _FILE_BYTES_MAX), str(path))
        fields.schema(_SCHEMA)
        return fields.integer("floor_ms")
    except (OSError, ContractError) as error:
        _LOG.warning("the floor under the clock cannot be read and starts anew: %s", error)
        return 0
