"""Stands in for the worker processes of one simulated device."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final

from device_sim.live.models import ModelRoom, Prediction
from edge_agent.ports import Attestation, Health
from edge_contract.deployment import Policy
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import MIB
from edge_contract.terms import PPM, Agreement, Trial

_NO_POLICY: Final = Policy()
_TRIAL_DIGITS: Final = 50
_WORKER_BYTES: Final = 64 * MIB
"""About what a worker with a small ONNX model has resident."""


class RoomServer:
    """Implements `edge_agent.ports.ModelServer` with the models of a shared room instead of processes. Any thread."""

    def __init__(self, room: ModelRoom) -> None:
        """Serve from this room."""
        self._room = room
        self._lock = threading.Lock()
        self._live: dict[str, tuple[Digest, Digest | None]] = {}  # manifest and golden digest
        self._candidates: dict[str, tuple[Digest, Digest | None]] = {}
        self._silent_since_ns: dict[str, int] = {}
        self._sampling: dict[str, float] = {}
        self._counts: dict[str, tuple[int, int]] = {}

    def prove(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:  # noqa: ARG002
        """See `ports.ModelServer.prove`; a room has one process for all, so no terms of a policy apply to it."""
        self.discard(module)
        golden = self._room.prove(manifest, slot)
        with self._lock:
            self._candidates[module] = manifest, golden
        return golden

    def activate(self, module: str, manifest: Digest) -> int:
        """See `ports.ModelServer.activate`; workers of a room overlap except after `pause`."""
        with self._lock:
            candidate = self._candidates.get(module)
            if candidate is None or candidate[0] != manifest:
                if self._live.get(module, (None, None))[0] == manifest:
                    return 0
                raise EdgeError("model.worker-crashed", f"there is no proved candidate {manifest.short} of {module!r}")
            del self._candidates[module]
            self._live[module], self._counts[module] = candidate, (0, 0)
            silent_since_ns = self._silent_since_ns.pop(module, None)
            return 0 if silent_since_ns is None else (time.monotonic_ns() - silent_since_ns) // 1_000_000

    def ensure(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """See `ports.ModelServer.ensure`."""
        with self._lock:
            live = self._live.get(module)
        return live[1] if live is not None and live[0] == manifest else self.restart(module, manifest, slot, policy)

    def attest(self, module: str) -> Attestation:
        """See `ports.ModelServer.attest`; what a room computed for a bundle once holds for all its devices."""
        with self._lock:
            live = self._live.get(module)
        if live is None:
            raise EdgeError("model.not-serving", f"module {module!r} serves nothing")
        return Attestation(*live)

    def restart(self, module: str, manifest: Digest, slot: Path, policy: Policy = _NO_POLICY) -> Digest | None:
        """See `ports.ModelServer.restart`."""
        golden = self.prove(module, manifest, slot, policy)
        self.activate(module, manifest)
        return golden

    def begin_trial(self, module: str, trial: Trial) -> None:  # noqa: ARG002
        """See `ports.ModelServer.begin_trial`; what was asked before already tells enough, whatever its terms."""
        with self._lock:
            if module not in self._live or module not in self._candidates:
                raise EdgeError("model.worker-crashed", "a trial needs a live worker and a proved candidate")

    def trial(self, module: str) -> Agreement:
        """See `ports.ModelServer.trial`; the candidate is asked about the digits that were asked of the live model."""
        with self._lock:
            live, candidate = self._live.get(module), self._candidates.get(module)
            count = self._counts.get(module, (0, 0))[0]
        if live is None or candidate is None:
            raise EdgeError("model.worker-crashed", "the candidate is gone")
        same = failed = 0
        compared = min(count, _TRIAL_DIGITS)
        for number in range(compared):
            ours, theirs = (self._room.predict(module, manifest, number) for manifest, _golden in (live, candidate))
            failed += theirs is None or theirs.answer < 0
            same += ours is not None and theirs is not None and ours.answer == theirs.answer
        return Agreement(compared - failed, failed=failed, top1_ppm=PPM * same // max(1, compared - failed))

    def pause(self, module: str) -> None:
        """See `ports.ModelServer.pause`."""
        with self._lock:
            if self._live.pop(module, None) is not None:
                self._silent_since_ns[module] = time.monotonic_ns()

    def memory_bytes(self, module: str) -> int:
        """See `ports.ModelServer.memory_bytes`; devices share the room, so this is what a worker usually has."""
        with self._lock:
            return _WORKER_BYTES if module in self._live else 0

    def discard(self, module: str) -> None:
        """See `ports.ModelServer.discard`."""
        with self._lock:
            self._candidates.pop(module, None)

    def stop(self, module: str) -> None:
        """See `ports.ModelServer.stop`."""
        with self._lock:
            self._candidates.pop(module, None)
            self._live.pop(module, None)
            self._silent_since_ns.pop(module, None)

    def health(self, module: str) -> Health:
        """See `ports.ModelServer.health`."""
        with self._lock:
            if module not in self._live:
                return Health(is_alive=False, requests=0, failures=0)
            requests, failures = self._counts.get(module, (0, 0))
            return Health(is_alive=True, requests=requests, failures=failures)

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
        for module, (manifest, _golden) in live.items():
            prediction = self._room.predict(module, manifest, number)
            if prediction is None:
                continue
            with self._lock:
                requests, failures = self._counts.get(module, (0, 0))
                self._counts[module] = (requests + 1, failures + (prediction.answer < 0))
            is_sampled = chance < sampling.get(module, 0.0)
            answers.append(prediction if is_sampled else Prediction(prediction.label, prediction.answer, None))
        return answers
