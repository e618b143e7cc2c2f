"""Snaps new weights to a grid around those of a base, so that an update carries few bits of each (ADR 0039).

What training moves a weight by is mostly noise far below what its predictions feel. `new = base + step * k`, with a
step near the deviation of a row's change, keeps what matters of it and takes two bits a weight or less. The model that
comes out is another one than was trained: it is evaluated, registered and signed as itself.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import numpy as np

from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_delta.elements import BY_NAME, Array, Kind, values
from edge_delta.operations import Flag, Predicted
from edge_delta.predict import Prediction, Side
from packager.delta.formats import Tensor, read_tensors
from packager.delta.match import match
from packager.files import disk_errors, sync_folder

KAPPA_MAX: Final = 4.0
"""Above this, accuracy breaks (measured: arg-max agreement of 0.83 and less)."""
_ELEMENTS_MIN: Final = 1_024
_COPY_BYTES: Final = 4 * 1024 * 1024
_BLOCK_ELEMENTS: Final = 2**20
_NUMBERS_MAX: Final = 2**12
_REST_MIN: Final = 2.0**-6
_EXPONENT_MIN: Final = -120
_EXPONENT_MAX: Final = 120


@dataclass(frozen=True, slots=True)
class SnapReport:
    """What was snapped.

    Attributes:
        kappa: Step against the deviation of a row's change.
        tensors: How many tensors were snapped.
        elements: Numbers in them.
        skipped: Names of tensors with a base that were left as they are, because a grid cannot hold them.
        error_ratio: Root of the mean square of what snapping changed, against that of what training changed.
    """

    kappa: float
    tensors: int
    elements: int
    skipped: tuple[str, ...]
    error_ratio: float

    def to_json(self) -> JsonObject:
        """What `--json` prints."""
        return {
            "kappa": self.kappa,
            "tensors": self.tensors,
            "elements": self.elements,
            "skipped": list(self.skipped),
            "error_ratio": round(self.error_ratio, 4),
        }


class Tally:
    """Sums over the tensors of the files of one model."""

    def __init__(self) -> None:
        """Nothing is snapped yet."""
        self.tensors = self.elements = 0
        self.error = self.change = 0.0
        self.skipped: list[str] = []

    def report(self, base: Path, new: Path, kappa: float) -> SnapReport:
        """What was snapped.

        Args:
            base: The model that devices hold.
            new: The model that was trained.
            kappa: As it was snapped.

        Raises:
            EdgeError: `config.invalid` when nothing was.
        """
        if not self.tensors:
            raise EdgeError(
                "config.invalid",
                f"no tensor of {new} could be snapped to the grid around {base}",
                "Snapping needs float weights that have a base of the same shape; quantised models are small already.",
            )
        ratio = float(np.sqrt(self.error / self.change)) if self.change else 0.0
        return SnapReport(kappa, self.tensors, self.elements, tuple(self.skipped), ratio)


def snap_file(
    base: Path,
    new: Path,
    out: Path,
    kappa: float,
    base_tensors: Sequence[Tensor] | None = None,
    new_tensors: Sequence[Tensor] | None = None,
) -> SnapReport:
    """Write the new file with every float tensor that has a base snapped to the grid around it.

    Args:
        base: The model that devices hold.
        new: The model that was trained.
        out: Where the snapped one goes, durably; everything but weights is as in `new`.
        kappa: Step against the deviation of each row's change, above 0, at most `KAPPA_MAX`; steps are powers of two.
        base_tensors: Where tensors lie; none to look.
        new_tensors: Likewise.

    Raises:
        EdgeError: `config.invalid` for another kappa, or when no tensor has a base; `config.file-missing`,
            `device.disk-*`.
    """
    tally = Tally()
    snap_part(base, new, out, kappa, tally, base_tensors, new_tensors)
    return tally.report(base, new, kappa)


def snap_part(
    base: Path,
    new: Path,
    out: Path,
    kappa: float,
    tally: Tally,
    base_tensors: Sequence[Tensor] | None = None,
    new_tensors: Sequence[Tensor] | None = None,
) -> None:
    """Do `snap_file` for one file of a model that has several: none of its tensors need have a base.

    Args:
        base: The file that devices hold.
        new: The one that was trained.
        out: Where the snapped one goes.
        kappa: See there.
        tally: Gets what was snapped.
        base_tensors: See there.
        new_tensors: See there.

    Raises:
        EdgeError: `config.invalid` for another kappa; `config.file-missing`, `device.disk-*`.
    """
    if not 0 < kappa <= KAPPA_MAX:
        raise EdgeError("config.invalid", f"kappa is {kappa}; it is above 0 and at most {KAPPA_MAX}")
    try:
        held, wanted = np.memmap(base, np.uint8, "r"), np.memmap(new, np.uint8, "r")
        known = read_tensors(base) if base_tensors is None else base_tensors
        tensors = read_tensors(new) if new_tensors is None else new_tensors
    except (OSError, ValueError) as error:
        raise EdgeError("config.file-missing", f"{base} and {new} cannot both be read: {error}") from None
    partial = out.with_name(out.name + ".partial")
    with disk_errors(partial), np.errstate(all="ignore"):
        with partial.open("wb") as file:
            for place in range(0, wanted.size, _COPY_BYTES):
                file.write(wanted[place : place + _COPY_BYTES].tobytes())
            for pair in match(known, tensors, held, wanted):
                kind = BY_NAME.get(pair.new.dtype)
                if kind is None or not kind.is_float or len(pair.new.shape) < 2 or prod(pair.new.shape) < _ELEMENTS_MIN:
                    continue
                if (
                    not pair.is_alike or pair.base.dtype != pair.new.dtype
                ):  # a grid as coarse as the difference of two strangers would spoil it
                    tally.skipped.append(pair.new.name)
                    continue
                before = held[pair.base.start : pair.base.end].view(kind.unsigned)
                after = wanted[pair.new.start : pair.new.end].view(kind.unsigned)
                snapped = _snapped(kind, pair.new, before, after, kappa, tally)
                if snapped is not None:
                    file.seek(pair.new.start)
                    file.write(snapped.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, out)
    sync_folder(out.absolute().parent)


def _snapped(kind: Kind, tensor: Tensor, base: Array, new: Array, kappa: float, tally: Tally) -> Array | None:
    """The snapped bit patterns of a tensor; none when it did not change, or a grid cannot hold it."""
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    base, new = base.reshape(rows, -1), new.reshape(rows, -1)
    result = np.empty_like(new)
    error = change = 0.0
    step = max(1, _BLOCK_ELEMENTS // base.shape[1])
    for first in range(0, rows, step):
        part = slice(first, min(rows, first + step))
        before, after = values(kind, base[part]), values(kind, new[part])
        distance = after - before
        numbers, exponents = _numbers(before, distance, kappa)
        if numbers is None or exponents is None:
            tally.skipped.append(tensor.name)
            return None
        grid = Predicted(kind, Flag.GRID, 0, len(exponents), base.shape[1], 0)
        made = Prediction(grid, Side(steps=exponents)).on_grid(base[part], slice(0, len(exponents)), numbers)
        # A grid makes numbers alone.
        if (_is_special(kind, base[part]) | _is_special(kind, new[part]) | _is_special(kind, made)).any():
            tally.skipped.append(tensor.name)
            return None
        result[part] = made
        error += float(((values(kind, made) - after) ** 2).sum())
        change += float((distance**2).sum())
    if not change:
        return None
    tally.tensors += 1
    tally.elements += base.size
    tally.error += error
    tally.change += change
    return result


def _numbers(base: Array, distance: Array, kappa: float) -> tuple[Array | None, Array | None]:
    """How many steps each element moves, int32, and the exponent of each row's step, int8.

    What scales a whole row is no noise, and the encoder knows how to say it: the step is measured against the rest.
    """
    squares = (base * base).sum(axis=1)
    growth = np.divide((base * distance).sum(axis=1), squares, out=np.zeros_like(squares), where=squares > 0)
    rest = distance - base * growth[:, None]
    whole_change, sigma = (np.sqrt((part * part).mean(axis=1)) for part in (distance, rest))
    # A row that was scaled and nothing else has no noise to measure by.
    sigma = np.maximum(sigma, whole_change * _REST_MIN)
    is_still = sigma == 0
    exponents = np.rint(np.log2(np.where(is_still, 1.0, sigma) * kappa))
    if not np.isfinite(exponents).all() or exponents.min() < _EXPONENT_MIN or exponents.max() > _EXPONENT_MAX:
        return None, None
    whole = exponents.astype(np.int32)
    numbers = np.rint(np.ldexp(distance, -whole[:, None]))
    if np.abs(numbers).max(initial=0) > _NUMBERS_MAX:
        return None, None
    return numbers.astype(np.int32), whole.astype(np.int8)


def _is_special(kind: Kind, bits: Array) -> Array:
    """Infinities and NaNs; denormals are zero for a grid, and no model misses them."""
    top = kind.unsigned.type((2**kind.exponent - 1) << kind.mantissa)
    return np.asarray((bits & top) == top)
