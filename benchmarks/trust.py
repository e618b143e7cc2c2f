"""What trust costs: verifying on the device, and whatever other measures are listed.

A measure is a module with `measure(options) -> dict`; it takes what it needs of the options.
"""

import importlib
from collections.abc import Mapping
from typing import Any, Final

SUMMARY: Final = "a full verification by number of bundles (time, peak memory, bytes), and director metadata a second"
OPTIONS: Final = {"measures": "", "bundles": "1,1000,100000", "rounds": "5", "devices": "400", "modules": "1"}
MEASURES: Final = {"device": "benchmarks._trust_device", "director": "benchmarks._trust_director"}
"""Measures by name; an empty option `measures` means all of them."""


def run(options: Mapping[str, str]) -> dict[str, Any]:
    """Run the measures that were asked for.

    Args:
        options: `measures`, names with commas between them; the rest is the measures' own.

    Returns:
        Each measure's figures, by name.

    Raises:
        ValueError: A measure that is not there.
    """
    names = [name for name in options["measures"].split(",") if name] or list(MEASURES)
    unknown = sorted(set(names) - set(MEASURES))
    if unknown:
        raise ValueError(f"there is no measure {unknown[0]!r}; there are: {', '.join(MEASURES)}")
    return {name: importlib.import_module(MEASURES[name]).measure(options) for name in names}
