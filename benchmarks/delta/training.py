"""Trains the networks with torch: one thread, everything seeded, so that the same machine makes the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.delta.domains import Split
from benchmarks.delta.networks import Network
from benchmarks.delta.schedules import Schedule

Weights = dict[str, torch.Tensor]

_MOMENTUM = 0.1
_EPSILON = 1e-5
_BATCH = 64


def settle(seed: int) -> None:
    """One thread, and only what gives the same sums each time."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


@dataclass
class TorchOperations:
    """Runs a network; weights that are not there yet are drawn from torch's generator.

    Attributes:
        weights: By name; ``.mean`` and ``.var`` are running statistics.
        is_training: Whether batches are normalised by their own statistics.
        adapters: Factors (down, up) beside the weights of linear layers.
    """

    weights: Weights
    is_training: bool = False
    adapters: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def _weight(self, name: str, shape: tuple[int, ...], fan_in: int) -> torch.Tensor:
        if name not in self.weights:
            self.weights[name] = (torch.rand(shape) * 2 - 1) * math.sqrt(6.0 / fan_in)
        return self.weights[name]

    def _constant(self, name: str, size: tuple[int, ...], value: float) -> torch.Tensor:
        return self.weights.setdefault(name, torch.full(size, value))

    def convolution(self, name: str, x: Any, shape: tuple[int, int, int], stride: int, is_padded: bool = True) -> Any:
        inputs, outputs, kernel = shape
        weight = self._weight(f"{name}.weight", (outputs, inputs, kernel, kernel), inputs * kernel * kernel)
        bias = self._constant(f"{name}.bias", (outputs,), 0.0)
        return functional.conv2d(x, weight, bias, stride, kernel // 2 if is_padded else 0)

    def normalised(self, name: str, x: Any, shape: tuple[int, int, int], stride: int) -> Any:
        inputs, outputs, kernel = shape
        weight = self._weight(f"{name}.weight", (outputs, inputs, kernel, kernel), inputs * kernel * kernel)
        scale, shift = (self._constant(f"{name}.{part}", (outputs,), v) for part, v in (("scale", 1.0), ("shift", 0.0)))
        mean, var = (self._constant(f"{name}.{part}", (outputs,), v) for part, v in (("mean", 0.0), ("var", 1.0)))
        x = functional.conv2d(x, weight, None, stride, kernel // 2)
        return functional.batch_norm(x, mean, var, scale, shift, self.is_training, _MOMENTUM, _EPSILON)

    def linear(self, name: str, x: Any, inputs: int, outputs: int) -> Any:
        weight = self._weight(f"{name}.weight", (outputs, inputs), 6 * inputs)
        y = functional.linear(x, weight, self._constant(f"{name}.bias", (outputs,), 0.0))
        if name in self.adapters:
            down, up = self.adapters[name]
            y = y + functional.linear(functional.linear(x, down), up)
        return y

    def layer_norm(self, name: str, x: Any, width: int) -> Any:
        scale = self._constant(f"{name}.scale", (width,), 1.0)
        return functional.layer_norm(x, (width,), scale, self._constant(f"{name}.shift", (width,), 0.0), _EPSILON)

    def offset(self, name: str, x: Any, shape: tuple[int, ...]) -> Any:
        return x + self._weight(f"{name}.weight", shape, 5_000)

    def relu(self, x: Any) -> Any:
        return functional.relu(x)

    def gelu(self, x: Any) -> Any:
        return functional.gelu(x)

    def softmax(self, x: Any) -> Any:
        return functional.softmax(x, -1)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def matmul(self, x: Any, y: Any, scale: float = 1.0) -> Any:
        return torch.matmul(x, y) * scale

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return x.reshape((len(x), *shape[1:]))

    def transpose(self, x: Any, order: tuple[int, ...]) -> Any:
        return x.permute(order)

    def part(self, x: Any, index: int, of: int) -> Any:
        return x.chunk(of, -1)[index]

    def mean(self, x: Any, axes: tuple[int, ...]) -> Any:
        return x.mean(axes)


def initial(network: Network, classes: int, seed: int) -> Weights:
    """Weights before any training."""
    settle(seed)
    weights: Weights = {}
    with torch.no_grad():
        network.make(TorchOperations(weights), torch.zeros((1, *network.shape)), classes)
    return weights


def train(network: Network, before: Weights, data: Split, classes: int, schedule: Schedule) -> Weights:
    """New weights; ``before`` stays as it is."""
    settle(schedule.seed)
    weights = {name: value.clone() for name, value in before.items()}
    ops = TorchOperations(weights, is_training=not (schedule.only or schedule.rank))
    if schedule.rank:
        ops.adapters = _adapters(weights, schedule.rank)
        trained = [factor for pair in ops.adapters.values() for factor in pair]
    else:
        trained = [
            value
            for name, value in weights.items()
            if name.startswith(schedule.only) and not name.endswith((".mean", ".var"))
        ]
    for value in trained:
        value.requires_grad_(True)
    optimiser = _optimiser(schedule, trained)
    batches = _batches(data, schedule)
    for step in range(schedule.steps):
        x, y = next(batches)
        if schedule.is_decaying:
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
        optimiser.zero_grad(set_to_none=True)
        found = network.make(ops, x, classes)
        loss = functional.cross_entropy(found, y) if y.ndim == 1 else functional.mse_loss(found, y)
        loss.backward()
        optimiser.step()
    return {name: value.detach() for name, value in _merged(weights, ops).items()}


def _adapters(weights: Weights, rank: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    made = {}
    for name, value in weights.items():
        if name.endswith(".weight") and value.ndim == 2:
            outputs, inputs = value.shape
            made[name.removesuffix(".weight")] = (
                torch.randn(rank, inputs) / math.sqrt(inputs),
                torch.zeros(outputs, rank),
            )
    return made


def _merged(weights: Weights, ops: TorchOperations) -> Weights:
    merged = dict(weights)
    with torch.no_grad():
        for name, (down, up) in ops.adapters.items():
            merged[f"{name}.weight"] = weights[f"{name}.weight"] + up @ down
    return merged


def _optimiser(schedule: Schedule, trained: list[torch.Tensor]) -> Any:
    make: dict[str, Callable[..., Any]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    extra: dict[str, Any] = {"adamw": {"weight_decay": 0.01}, "sgd": {"momentum": 0.9}}
    return make[schedule.optimiser](trained, lr=schedule.rate, **extra[schedule.optimiser])


def _batches(data: Split, schedule: Schedule) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    numbers = np.random.default_rng(schedule.seed)
    while True:
        order = numbers.permutation(len(data.x))
        for start in range(0, len(order) - _BATCH + 1, _BATCH):
            chosen = order[start : start + _BATCH]
            yield torch.from_numpy(data.x[chosen]), torch.from_numpy(data.y[chosen])


def accuracy(network: Network, weights: Weights, data: Split, classes: int) -> float:
    """Share of right answers; for windows, the error that is left, as a share of the signal."""
    with torch.no_grad():
        found = network.make(TorchOperations(dict(weights)), torch.from_numpy(data.x), classes).numpy()
    if data.y.ndim == 1:
        return float((found.argmax(1) == data.y).mean())
    return float(((found - data.y) ** 2).mean() / (data.y**2).mean())
