"""Stands in for the worker processes of one simulated device."""

from __future__ import annotations

import threading
from pathlib import Path

from device_sim.live.models import ModelRoom, Prediction
from edge_agent.ports import Health
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError


class RoomServer:
    """Implements `edge_agent.ports.ModelServer` with the models of a shared room instead of processes. Any thread."""

    def __init__(self, room: ModelRoom) -> None:
        """Serve from this room."""
        self._room = room
        self._lock = threading.Lock()
        self._live: dict[str, Digest] = {}
        self._candidates: dict[str, Digest] = {}
        self._sampling: dict[str, float] = {}
        self._counts: dict[str, tuple[int, int]] = {}

    def prove(self, module: str, manifest: Digest, slot: Path) -> Digest | None:
        """See `ports.ModelServer.prove`."""
        self.discard(module)
        golden = self._room.prove(manifest, slot)
        with self._lock:
            self._candidates[module] = manifest
        return golden

    def activate(self, module: str, manifest: Digest) -> None:
        """See `ports.ModelServer.activate`."""
        with self._lock:
            if self._candidates.pop(module, None) != manifest:
                raise EdgeError("model.worker-crashed", f"there is no proved candidate {manifest.short} of {module!r}")
            self._live[module], self._counts[module] = manifest, (0, 0)

    def ensure(self, module: str, manifest: Digest, slot: Path) -> Digest | None:
        """See `ports.ModelServer.ensure`."""
        golden = self._room.prove(manifest, slot)
        with self._lock:
            if self._live.get(module) != manifest:
                self._live[module], self._counts[module] = manifest, (0, 0)
        return golden

    def discard(self, module: str) -> None:
        """See `ports.ModelServer.discard`."""
        with self._lock:
            self._candidates.pop(module, None)

    def stop(self, module: str) -> None:
        """See `ports.ModelServer.stop`."""
        with self._lock:
            self._live.pop(module, None)

    def health(self, module: str) -> Health:
        """See `ports.ModelServer.health`."""
        with self._lock:
            requests, failures = self._counts.get(module, (0, 0))
            return Health(module in self._live, requests, failures)

    def set_sampling(self, module: str, ratio: float) -> None:
        """See `ports.ModelServer.set_sampling`."""
        with self._lock:
            self._sampling[module] = ratio

    def close(self) -> None:
        """See `ports.ModelServer.close`."""
        with self._lock:
            self._live.clear()
            self._candidates.clear()

    def ask(self, number: int, chance: float) -> list[Prediction]:
        """Ask every live module about one digit, as this device's own clients would.

        Args:
            number: Which digit.
            chance: `0..1`; a sample is taken of the request when this is below the module's sampling ratio.
        """
        with self._lock:
            live, sampling = dict(self._live), dict(self._sampling)
        answers = []
        for module, manifest in live.items():
            prediction = self._room.predict(module, manifest, number)
            if prediction is None:
                continue
            with self._lock:
                requests, failures = self._counts.get(module, (0, 0))
                self._counts[module] = (requests + 1, failures + (prediction.answer < 0))
            is_sampled = chance < sampling.get(module, 0.0)
            answers.append(prediction if is_sampled else Prediction(prediction.label, prediction.answer, None))
        return answers
