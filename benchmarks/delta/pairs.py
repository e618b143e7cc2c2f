"""Makes the pairs: trains what is not there yet and writes both files of each.

    python -m benchmarks.delta.pairs FOLDER [PAIR ...]

Runs in the benchmark's own environment, which has torch. The same machine makes the same files each time.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.delta import containers, domains, exports, training
from benchmarks.delta.recipes import PAIRS, RECIPES, Pair

_TREES = 40
_FIRST_ROWS = 1_400
_NOTES = {"label": "bearing", "release": "2024.1", "commit": "3f1c9d2e7b"}
_LATER_NOTES = {"label": "bearing, second shift", "release": "2024.2", "commit": "a07be4415c"}


class Workshop:
    """Trains recipes once and keeps their weights in a folder."""

    def __init__(self, folder: Path) -> None:
        """Keep weights in ``folder``."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def weights(self, name: str) -> dict[str, NDArray[Any]]:
        """The weights of a recipe."""
        kept = self._folder / f"{name}.npz"
        if not kept.exists():
            made = {key: value.numpy() for key, value in self._trained(name).items()}
            partial = kept.with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez(file, **made)
            partial.replace(kept)
        with np.load(kept) as loaded:
            return {key: loaded[key] for key in loaded.files}

    def _trained(self, name: str) -> training.Weights:
        recipe = RECIPES[name]
        if recipe.after:
            before = {key: torch.from_numpy(value) for key, value in self.weights(recipe.after).items()}
            before = self._widened(before, recipe.classes)
        else:
            before = training.initial(recipe.network, recipe.classes, recipe.seed)
        after = training.train(recipe.network, before, _split(name), recipe.classes, recipe.schedule)
        return after if recipe.share is None else _scaled(before, after, recipe.share)

    @staticmethod
    def _widened(weights: training.Weights, classes: int) -> training.Weights:
        """With rows of the head for classes that are new."""
        missing = classes - len(weights["head.bias"]) if "head.bias" in weights else 0
        if missing <= 0:
            return weights
        training.settle(3)
        head = weights["head.weight"]
        rows = torch.randn(missing, head.shape[1]) * head.std()
        widened = {
            "head.weight": torch.cat([head, rows]),
            "head.bias": torch.cat([weights["head.bias"], torch.zeros(missing)]),
        }
        return {**weights, **widened}


def _split(name: str) -> domains.Split:
    recipe = RECIPES[name]
    domain = domains.digits() if recipe.classes else domains.waves()
    if recipe.data == "more":
        return domains.more_classes(domain.field, 31)
    if recipe.data == "both":
        x, y = (np.concatenate([getattr(domain.factory, part), getattr(domain.field, part)]) for part in ("x", "y"))
        return domains.Split(x, y)
    return {"factory": domain.factory, "lab": domain.lab, "field": domain.field}[recipe.data]


def _scaled(before: training.Weights, after: training.Weights, share: float) -> training.Weights:
    """Along the way that training went, as far as makes the update this large beside the weights."""
    names = [name for name in before if before[name].ndim > 1]
    moved = sum(float(((after[name] - before[name]).double() ** 2).sum()) for name in names) ** 0.5
    held = sum(float((before[name].double() ** 2).sum()) for name in names) ** 0.5
    factor = share * held / moved
    return {name: (before[name].double() + factor * (after[name] - before[name]).double()).float() for name in before}


def _write(pair: Pair, weights: str, is_new: bool, workshop: Workshop, path: Path) -> None:
    writers: dict[str, Callable[[], None]] = {
        "tflite": lambda: containers.write_tflite(path, _plain(workshop.weights(weights)), is_quantised=False),
        "tflite8": lambda: containers.write_tflite(path, _plain(workshop.weights(weights)), is_quantised=True),
        "bf16": lambda: containers.write_safetensors_bf16(path, _plain(workshop.weights(weights))),
        "bf16raw": lambda: containers.write_safetensors_bf16(path, workshop.weights(weights)),
        "forest": lambda: _write_forest(path, is_new),
    }
    if pair.form in writers:
        writers[pair.form]()
        return
    recipe = RECIPES[weights]
    model = exports.onnx_model(recipe.network, workshop.weights(weights), recipe.classes)
    if pair.form == "f16":
        exports.write_onnx(path, exports.halved(model))
    elif pair.form == "meta":
        exports.write_onnx(path, model, _LATER_NOTES if is_new else _NOTES)
    elif pair.form == "onnx":
        exports.write_onnx(path, model)
    else:
        _write_quantised(pair, model, is_new, path)


def _write_quantised(pair: Pair, model: Any, is_new: bool, path: Path) -> None:
    domain = domains.digits()
    samples = (domain.field if is_new else domain.factory).x
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        exports.write_onnx(source, model)
        if pair.form == "i8dyn":
            exports.quantised_dynamically(source, path)
        else:
            exports.quantised(source, path, samples, is_per_channel=pair.form == "i8pc")


def _plain(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Weights as they are deployed: normalisation folded in."""
    plain: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        stem, _, part = name.rpartition(".")
        if f"{stem}.mean" not in arrays:
            plain[name] = array
        elif part == "weight":
            plain[name], plain[f"{stem}.bias"] = exports.folded(array, arrays, stem)
    return plain


def _write_forest(path: Path, is_new: bool) -> None:
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier

    loaded = load_digits()
    rows = len(loaded.target) if is_new else _FIRST_ROWS
    forest = RandomForestClassifier(n_estimators=_TREES, random_state=4, n_jobs=1)
    forest.fit(loaded.data[:rows], loaded.target[:rows])
    path.write_bytes(pickle.dumps(forest, protocol=4))


def make(pair: Pair, folder: Path) -> None:
    """Both files of a pair, in a folder of its name; nothing where they are there."""
    place = folder / pair.name
    place.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(folder / ".weights")
    for name, weights, is_new in (("base", pair.base, False), ("new", pair.new, True)):
        path = place / f"{name}{pair.suffix}"
        if not path.exists():
            partial = place / f".{name}{pair.suffix}"
            _write(pair, weights, is_new, workshop, partial)
            partial.replace(path)


def main(arguments: list[str]) -> None:
    """Make the pairs told, or all."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    folder, wanted = Path(arguments[0]), arguments[1:]
    for pair in PAIRS:
        if not wanted or pair.name in wanted:
            make(pair, folder)
            sys.stdout.write(f"{pair.name}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
