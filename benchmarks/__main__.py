"""The runner: lists benchmarks, runs one, prints its figures with what they were measured on."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import benchmarks
from benchmarks._verdicts import columns, table

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, found by name.

    Attributes:
        name: The module's name.
        summary: One line about what it measures.
        run: Measures; takes every option of ``options`` with its value.
        options: Option names and their defaults.
        quick: Options of a smoke test.
    """

    name: str
    summary: str
    run: Callable[[Mapping[str, str]], dict[str, Any]]
    options: Mapping[str, str] = field(default_factory=dict)
    quick: Mapping[str, str] = field(default_factory=dict)


def find(name: str) -> Benchmark | None:
    """The benchmark of that name; none when there is no such module, or it is a helper of others."""
    if name not in _module_names():
        return None
    module = importlib.import_module(f"benchmarks.{name}")
    summary, run = getattr(module, "SUMMARY", None), getattr(module, "run", None)
    if not isinstance(summary, str) or not callable(run):
        return None
    return Benchmark(name, summary, run, dict(getattr(module, "OPTIONS", {})), dict(getattr(module, "QUICK", {})))


def find_all() -> list[Benchmark]:
    """Every benchmark, by name."""
    return [found for name in _module_names() if (found := find(name)) is not None]


def _module_names() -> list[str]:
    names = (info.name for info in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name for name in names if not name.startswith("_"))


def measure(benchmark: Benchmark, given: Mapping[str, str], is_quick: bool = False) -> dict[str, Any]:
    """Run one benchmark and put its figures beside what they were measured on.

    Args:
        benchmark: Which.
        given: Options that differ from its defaults.
        is_quick: As a smoke test, where the benchmark has one; what is given still counts.

    Raises:
        click.UsageError: An option that this benchmark does not have.
    """
    unknown = sorted(set(given) - set(benchmark.options))
    if unknown:
        known = ", ".join(sorted(benchmark.options)) or "none"
        raise click.UsageError(f"benchmark {benchmark.name!r} has no option {unknown[0]!r}; it has: {known}")
    options = {**benchmark.options, **(benchmark.quick if is_quick else {}), **given}
    started_at = datetime.now(UTC)
    started = time.perf_counter()
    result = benchmark.run(options)
    return {
        "format": _FORMAT_VERSION,
        "benchmark": benchmark.name,
        "started_at": started_at.isoformat(timespec="seconds"),
        "duration_s": round(time.perf_counter() - started, 3),
        "options": options,
        "machine": describe_machine(),
        "result": result,
    }


def describe_machine() -> dict[str, Any]:
    """What figures depend on: processor, cores, memory, Python, system."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _parse_options(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    options = {}
    for value in values:
        name, sign, text = value.partition("=")
        if not name or not sign:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
        options[name] = text
    return options


def _print_lines(value: Any, indent: int = 0) -> None:
    for name, inner in value.items():
        if isinstance(inner, dict):
            click.echo(f"{' ' * indent}{name}:")
            _print_lines(inner, indent + 2)
        elif name == "figures":
            for line in table(inner):
                click.echo(f"{' ' * indent}{line}")
        elif isinstance(inner, list) and inner and all(isinstance(each, dict) for each in inner):
            click.echo(f"{' ' * indent}{name}:")
            for line in columns(inner):
                click.echo(f"{' ' * (indent + 2)}{line}")
        else:
            click.echo(f"{' ' * indent}{name}: {inner}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the JSON object there too.")
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_parse_options,
    help="An option of the benchmark; may be given again.",
)
@click.option("--quick", "is_quick", is_flag=True, help="A smoke test, where the benchmark has one.")
def main(name: str | None, as_json: bool, output: Path | None, options: dict[str, str], is_quick: bool) -> None:
    """Run the benchmark NAME; without a name, list them."""
    if name is None:
        found = find_all()
        if as_json:
            listed = [{"name": each.name, "summary": each.summary, "options": dict(each.options)} for each in found]
            click.echo(json.dumps(listed, indent=2))
            return
        for each in found:
            defaults = " ".join(f"{option}={default}" for option, default in each.options.items())
            click.echo(f"{each.name:<16} {each.summary}" + (f"  [{defaults}]" if defaults else ""))
        return
    benchmark = find(name)
    if benchmark is None:
        raise click.UsageError(f"there is no benchmark {name!r}: run python -m benchmarks for the list")
    measured = measure(benchmark, options, is_quick)
    text = json.dumps(measured, indent=2, allow_nan=False)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
    if as_json:
        click.echo(text)
    else:
        _print_lines(measured)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
