"""Models of a simulated fleet: each bundle is loaded and proved once in this process, however many devices run it.

The proof is the real one, by the code of the agent's worker: the golden vectors on the real runtime. What a thousand
simulated devices share is the outcome, because they share the machine as well.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

if TYPE_CHECKING:
    from device_sim.digits import Array
    from edge_agent.worker.bundle import LoadedBundle, LoadedMember

# Before any import of onnxruntime: its wheels report home otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@dataclass(frozen=True, slots=True)
class Proved:
    """A bundle that loaded and met its golden vectors, or why it did not.

    Attributes:
        bundle: The loaded bundle, none when it was refused.
        golden: Digest of its outputs on the golden vectors, none when it has none.
        error: Why it was refused.
    """

    bundle: LoadedBundle | None
    golden: Digest | None
    error: EdgeError | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer to a held-out digit.

    Attributes:
        label: The digit that was drawn.
        answer: The digit the model found, -1 when it failed.
        record: The sample for the spool, without number.
    """

    label: int
    answer: int
    record: JsonObject | None


class ModelRoom:
    """Loaded bundles by digest. Any thread; two devices that need the same bundle at once wait for one proof."""

    def __init__(self) -> None:
        """Make an empty room; data and runtime are loaded when the first bundle comes."""
        self._lock = threading.Lock()
        self._proved: dict[Digest, Proved] = {}
        self._digits: Any = None

    def prove(self, manifest: Digest, slot: Path) -> Digest | None:
        """Load and prove a bundle from a slot, or repeat what came of it before.

        Returns:
            Digest of its outputs on the golden vectors, or none when it has none.

        Raises:
            EdgeError: What the worker of a device would have raised.
        """
        with self._lock:
            proved = self._proved.get(manifest)
            if proved is None:
                proved = self._proved[manifest] = _prove(slot)
        if proved.error is not None:
            error = proved.error
            raise EdgeError(error.code, error.detail, error.hint)
        return proved.golden

    def predict(self, module: str, manifest: Digest, number: int) -> Prediction | None:
        """Ask a proved bundle about one held-out digit.

        Args:
            module: The module that is asked, for the sample.
            manifest: Which bundle.
            number: Which digit; any number.

        Returns:
            The answer and its sample; none for a bundle that does not take digits.
        """
        import numpy as np

        from device_sim import digits
        from edge_agent.worker.sampler import Cut, Taken, make_body

        proved = self._proved.get(manifest)
        member = None if proved is None or proved.bundle is None else _digit_member(proved.bundle)
        if proved is None or proved.bundle is None or member is None:
            return None
        if self._digits is None:
            self._digits = digits.load()
        place = number % len(self._digits.test_labels)
        image: Array = self._digits.test_images[place : place + 1]
        label = int(self._digits.test_labels[place])
        begun = time.perf_counter_ns()
        try:
            scores = member.engine.run({digits.INPUT.name: image}, [digits.OUTPUT.name])[digits.OUTPUT.name]
        except EdgeError:
            return Prediction(label, -1, None)
        latency_us = (time.perf_counter_ns() - begun) // 1000
        taken = Taken(
            member.name,
            {digits.INPUT.name: Cut.of(image)},
            {digits.OUTPUT.name: Cut.of(scores)},
            latency_us,
            f"digit-{place}",
        )
        runtime = proved.bundle.runtime
        record: JsonObject = {
            "kind": "prediction",
            "module": module,
            "model": runtime.model,
            "version": runtime.version,
            "manifest": str(manifest),
            "taken_ms": taken.taken_ms,
            "body": make_body(taken),
        }
        return Prediction(label, int(np.argmax(scores)), record)


def _digit_member(bundle: LoadedBundle) -> LoadedMember | None:
    from device_sim import digits

    for member in bundle.members.values():
        inputs = member.engine.inputs
        if len(inputs) == 1 and inputs[0].name == digits.INPUT.name and inputs[0].fits("FP32", (1, digits.PIXELS)):
            return member
    return None


def _prove(slot: Path) -> Proved:
    from edge_agent.worker.bundle import load_bundle, prove_bundle

    try:
        bundle = load_bundle(slot)
        proof = prove_bundle(bundle)
    except EdgeError as error:
        return Proved(None, None, error)
    return Proved(bundle, proof.digest if proof else None, None)
