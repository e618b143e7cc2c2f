"""Engines and their options: what a bundle may ask of each, and what stands when it asks for nothing (ADR 25).

Authors' tools refuse what a device would refuse, so both read this one table.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edge_contract.errors import ContractError

ENGINES: Final = ("onnx", "litert", "script", "pipeline")
ENTRIES: Final = ("onnx", "litert", "script")
"""Engines whose members have a file; a pipeline has steps instead."""

ALLOW_NONFINITE: Final = "allow_nonfinite"
THREADS_MAX: Final = 64
SPIN_US_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Option:
    """One option of an engine.

    Attributes:
        form: What its value has to match, whole.
        says: The same in words.
        default: Its value when the bundle says nothing; empty where it depends on the device.
        summary: What it does.
    """

    form: re.Pattern[str]
    says: str
    default: str
    summary: str


def _choice(default: str, *others: str, summary: str) -> Option:
    words = (default, *others)
    return Option(re.compile("|".join(map(re.escape, words))), f"one of {', '.join(words)}", default, summary)


_THREADS: Final = Option(
    re.compile(r"[1-9]|[1-5][0-9]|6[0-4]"), f"a number from 1 to {THREADS_MAX}", "", "Threads of one run."
)
_NONFINITE: Final = _choice("false", "true", summary="Whether NaN and infinities in outputs are meant.")

OPTIONS: Final[dict[str, dict[str, Option]]] = {
    "onnx": {
        ALLOW_NONFINITE: _NONFINITE,
        "arena": _choice("on", "off", summary="Whether memory of a run is kept for the next one."),
        "graph_level": _choice("all", "extended", "basic", "off", summary="How far the graph is optimised at load."),
        "memory_pattern": _choice("on", "off", summary="Whether memory is planned from the first run of a shape."),
        "providers": Option(
            re.compile(r"[A-Za-z]{1,48}ExecutionProvider(?:,[A-Za-z]{1,48}ExecutionProvider){0,7}"),
            "names of execution providers, comma-separated",
            "CPUExecutionProvider",
            "Execution providers, the preferred one first; the device has to allow each.",
        ),
        "spin_us": Option(
            re.compile(r"0|[1-9][0-9]{0,3}|10000"),
            f"microseconds from 0 to {SPIN_US_MAX}",
            "",
            "With spinning: how long a thread spins before it sleeps.",
        ),
        "spinning": _choice("off", "on", summary="Whether threads spin while they wait: CPU for latency."),
        "threads": _THREADS,
    },
    "litert": {
        ALLOW_NONFINITE: _NONFINITE,
        "threads": _THREADS,
        "xnnpack": _choice("on", "off", summary="Whether XNNPACK computes what it can."),
    },
    "script": {
        ALLOW_NONFINITE: _NONFINITE,
        "imports": _choice(
            "bundle", "device", summary="Whose Python packages it may import: the bundle's, or the device's as well."
        ),
    },
    "pipeline": {ALLOW_NONFINITE: _NONFINITE},
}
"""Options by engine and name."""


def check_options(engine: str, options: Mapping[str, str], code: str, where: str) -> None:
    """Refuse options that an engine does not have, or whose values it does not understand.

    Args:
        engine: One of `ENGINES`.
        options: Values by name.
        code: Of the error.
        where: Whose they are, for messages.

    Raises:
        ContractError: `code`.
    """
    known = OPTIONS[engine]
    for name, value in options.items():
        option = known.get(name)
        if option is None:
            hint = f"Its options: {', '.join(sorted(known))}."
            raise ContractError(code, f"{where}: the {engine} engine has no option {name!r}", hint)
        if not option.form.fullmatch(value):
            raise ContractError(code, f"{where}: the option {name!r} is {option.says}, not {value!r}")
    if "spin_us" in options and options.get("spinning") != "on":
        raise ContractError(code, f"{where}: spin_us says how long to spin, and spinning is off", "Set spinning = on.")


def option_of(engine: str, options: Mapping[str, str], name: str) -> str:
    """The value of a checked option, or its default."""
    return options.get(name, OPTIONS[engine][name].default)
