"""Figures beside what was promised of them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What was measured.
        value: The figure; none when it was not measured, and `note` says why.
        must: What it has to reach.
        aim: What it should reach.
        is_more_better: Whether larger figures are better.
        unit: Of all three.
        note: What else there is to say.
    """

    name: str
    value: float | None
    must: float
    aim: float
    is_more_better: bool = False
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """`aim`, `must`, `missed`, or `not measured`."""
        if self.value is None:
            return "not measured"
        for verdict, bound in (("aim", self.aim), ("must", self.must)):
            if self.value >= bound if self.is_more_better else self.value <= bound:
                return verdict
        return "missed"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "figure": self.name,
            "value": None if self.value is None else round(self.value, 4),
            "must": self.must,
            "aim": self.aim,
            "unit": self.unit,
            "verdict": self.verdict,
            "note": self.note,
        }


_COLUMNS = ("figure", "value", "must", "aim", "unit", "verdict", "note")


def table(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table of what `Figure.to_json` gives, and a last one that counts the verdicts."""
    verdicts = [str(figure["verdict"]) for figure in figures]
    counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    return [*columns(figures, _COLUMNS), f"{len(figures)} figures: {counted}"]


def columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> list[str]:
    """Lines of a table with a heading; of the columns `names`, or of all that any row has."""
    names = names or list(dict.fromkeys(name for row in rows for name in row))
    cells = [tuple(names), *(tuple(_cell(row.get(name)) for name in names) for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(names))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Median over the rounds of the ratio within a round; none without rounds.

    A busy neighbour slows both halves of a round, so the ratio of a round says more than the ratio of two medians.
    """
    pairs = [one / other for one, other in zip(ours, theirs, strict=True) if other > 0]
    return median(pairs) if pairs else None


def summary(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum of the rounds."""
    if not values:
        return {}
    return {"min": round(min(values), 3), "median": round(median(values), 3), "max": round(max(values), 3)}
