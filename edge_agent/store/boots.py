"""Identifiers of runs of the agent, each greater than all before it: reports have an order that nobody can undo.

An identifier is ten hexadecimal digits that count and six that are random. What counts is at least the clock in
seconds, so that a device whose file got lost still goes up once its clock is right; and it is more than the last one,
so that a clock that was set back changes nothing.
"""

import logging
import secrets
from pathlib import Path
from typing import Final

from edge_agent.store import durable
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, dump, parse_object

_SCHEMA: Final = "lighterman.boots/1"
_FILE_BYTES_MAX: Final = 1024
_COUNT_MAX: Final = 2**40 - 1
_RANDOM_BITS: Final = 23
_WRITTEN: Final = 1 << _RANDOM_BITS  # of two runs with one count, the one that was written down is the greater
_LOG: Final = logging.getLogger(__name__)


def next_boot(path: Path, wall_ms: int) -> str:
    """Begin a run: an identifier greater than that of every run before, durable on return.

    A disk that refuses keeps no model from being served: then the run begins all the same, and the next one that can
    be written down is greater than it.

    Args:
        path: For example `<data>/boots.json`; its folder is there. Nobody else writes it meanwhile.
        wall_ms: The system's claim of the time, milliseconds since 1970; may be wrong.

    Returns:
        16 lower-case hexadecimal digits, to be compared as text.
    """
    now_s = wall_ms // 1000
    # A clock beyond what ten digits hold is wrong, and must not use the numbers up.
    count = min(_COUNT_MAX, max(_last(path) + 1, now_s if 0 <= now_s < _COUNT_MAX else 0))
    mark = secrets.randbits(_RANDOM_BITS)
    try:
        durable.write_file(path, dump({"schema": _SCHEMA, "last": count}))
        mark |= _WRITTEN
    except OSError as error:
        _LOG.warning("this run is not counted: %s", durable.disk_error(error, f"writing {path}"))
    return f"{count:010x}{mark:06x}"


def _last(path: Path) -> int:
    try:
        data = durable.read_file(path, _FILE_BYTES_MAX)
        if data is None:
            return -1
        fields = Fields(parse_object(data, str(path), _FILE_BYTES_MAX), str(path))
        fields.schema(_SCHEMA)
        return fields.integer("last", low=0, high=_COUNT_MAX)
    except (OSError, ContractError) as error:
        _LOG.warning("%s cannot be read, runs are counted by the clock from now on: %s", path, error)
        return -1
