"""The terms of a deployment's policy as people write them on a command line: memory, processors, trials, permits."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import CPUS_MAX, GIB, KIB, MIB
from edge_contract.terms import PERMILLE, PPM, Resources, Trial

_SIZE: Final = re.compile(r"(\d{1,12}(?:\.\d{1,3})?) ?([kmg]i?b?|b)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "b": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000, "ki": KIB, "mi": MIB, "gi": GIB}
_RANGE: Final = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_MS: Final = 1_000


def parse_size(text: str) -> int:
    """Bytes of `200MiB`, `1.5G`, `4096`.

    Raises:
        EdgeError: `config.invalid`.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise EdgeError("config.invalid", f"{text[:40]!r} is no size", "Write for example 200MiB, 1.5GB or 4096.")
    unit = (found[2] or "").lower().removesuffix("b")
    return int(float(found[1]) * _UNITS[unit])


def parse_cpus(text: str) -> list[int]:
    """Processor numbers of `0,2-3`, as taskset(1) and Linux's cpusets write them.

    Raises:
        EdgeError: `config.invalid`.
    """
    cpus: set[int] = set()
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        first = int(found[1]) if found else CPUS_MAX
        last = int(found[2] or first) if found else CPUS_MAX
        if not first <= last < CPUS_MAX:
            raise EdgeError("config.invalid", f"{text[:40]!r} is no list of processors", "Write for example 0,2-3.")
        cpus.update(range(first, last + 1))
    return sorted(cpus)


def terms_of(options: Mapping[str, Any]) -> JsonObject:
    """The part of a policy that the options of `packager.commands.terms` give; what is none overrides nothing.

    Raises:
        EdgeError: `config.invalid`.
    """
    resources: JsonObject = {
        "memory_bytes_max": parse_size(options["memory_max"]) if options.get("memory_max") else None,
        "cpu_permille_max": _scaled(options.get("cpu_max"), PERMILLE),
        "cpus": parse_cpus(options["cpus"]) if options.get("cpus") else None,
        "nice": options.get("nice"),
    }
    policy: JsonObject = {
        "allow_pickle": options.get("allow_pickle") or None,
        "latency_permille_max": _scaled(options.get("latency_ratio_max"), PERMILLE),
        "resources": _checked(Resources, resources),
        "trial": _trial(options),
    }
    return {key: value for key, value in policy.items() if value is not None}


def _trial(options: Mapping[str, Any]) -> JsonObject | None:
    told: JsonObject = {
        "sampling_ppm": _scaled(options.get("trial_share"), PPM),
        "predictions_min": options.get("trial_predictions"),
        "cpu_permille_max": _scaled(options.get("trial_cpu"), PERMILLE),
        "memory_bytes_max": parse_size(options["trial_memory"]) if options.get("trial_memory") else None,
        "top1_ppm_min": _scaled(options.get("trial_top1"), PPM),
        "distance_ppm_max": _scaled(options.get("trial_distance"), PPM),
        "latency_permille_max": _scaled(options.get("trial_latency_ratio"), PERMILLE),
        "gate": options.get("trial_gate") or None,
    }
    if options.get("trial_s") is None:
        if any(value is not None for value in told.values()):
            raise EdgeError("config.invalid", "terms of a trial without its length", "Give --trial-s SECONDS.")
        return None
    return _checked(Trial, {"window_ms": _scaled(options["trial_s"], _MS), **told})


def _checked(kind: type[Resources] | type[Trial], told: JsonObject) -> JsonObject | None:
    """Only what was told, in the form that the contract accepts."""
    given = {key: value for key, value in told.items() if value is not None}
    if not given:
        return None
    try:
        whole = kind.from_json(given).to_json()
    except ContractError as error:
        raise EdgeError("config.invalid", error.detail, error.hint) from None
    known = {field.name for field in fields(kind)}
    return {key: value for key, value in whole.items() if key in known}


def _scaled(value: float | None, scale: int) -> int | None:
    return None if value is None else round(value * scale)
