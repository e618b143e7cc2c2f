"""The agent with a clock that a test can set: `python -m tests.e2e.clocked_agent CLOCK_FILE CONFIG_FILE`.

The file holds `{"wall_ms": n or null, "passed_ms": n}`: the time of day (the machine's own when null), and how much
more time has passed than on this machine.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from edge_agent.config import load_config
from edge_agent.shell.clock import SystemClock
from edge_agent.shell.main import run


class FileClock:
    """`edge_agent.ports.Clock` over the machine's clocks and a file that is replaced as a whole. Any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._clock = SystemClock()

    def monotonic_ms(self) -> int:
        return self._clock.monotonic_ms() + int(self._said()["passed_ms"])

    def wall_ms(self) -> int:
        wall_ms = self._said()["wall_ms"]
        return self._clock.wall_ms() if wall_ms is None else int(wall_ms)

    def _said(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self._path.read_bytes())
        return said


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    sys.exit(run(load_config(Path(sys.argv[2])), FileClock(Path(sys.argv[1]))))
