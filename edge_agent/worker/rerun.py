"""Computes the golden vectors of a bundle again while it serves: does what answers now still compute what was proved?

The same vectors in the same pieces as when it was proved, so that the digest of the outputs is comparable bit by bit.
A piece waits its turn like a request, behind those that wait already, and no two runs go on at once.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from edge_agent.worker.arrays import Array
from edge_agent.worker.bundle import LoadedBundle
from edge_agent.worker.engines import Engine
from edge_agent.worker.golden import Proof, parse_vectors, prove_members, read_golden
from edge_agent.worker.limits import RERUN_POLL_MS, WorkerLimits
from edge_agent.worker.service import Service
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError


class _Turns:
    """An engine whose every run waits for its turn among the requests. Used by the thread of a rerun."""

    def __init__(
        self, engine: Engine, run: Callable[[Mapping[str, Array], Sequence[str]], Coroutine[Any, Any, dict[str, Array]]]
    ) -> None:
        self.platform, self.inputs, self.outputs = engine.platform, engine.inputs, engine.outputs
        self.is_concurrent, self.is_quick = engine.is_concurrent, engine.is_quick
        self._run = run
        self._loop = asyncio.get_running_loop()

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Compute on the event loop's terms; see `Engine`."""
        return asyncio.run_coroutine_threadsafe(self._run(inputs, wanted), self._loop).result()


class GoldenRerun:
    """Reruns the golden vectors of one served bundle. Used on the event loop."""

    def __init__(self, bundle: LoadedBundle, service: Service, limits: WorkerLimits) -> None:
        """Rerun what this service serves."""
        self._bundle = bundle
        self._service = service
        self._limits = limits
        self._patience_ms = 0.0

    async def prove(self) -> Proof | None:
        """Compute and compare them once; not to be called again before it is done.

        Returns:
            What they showed, or none when the bundle has none.

        Raises:
            EdgeError: `model.golden-mismatch`, `model.output-invalid`, `model.inference-failed`,
                `device.disk-corrupt`, `device.memory-short`.
        """
        if self._bundle.runtime.golden is None:
            return None
        self._patience_ms = float(self._limits.rerun_patience_ms)
        engines = {name: _Turns(member.engine, self._take_turn(name)) for name, member in self._bundle.members.items()}
        return await asyncio.get_running_loop().run_in_executor(None, self._prove, engines)

    def _take_turn(
        self, name: str
    ) -> Callable[[Mapping[str, Array], Sequence[str]], Coroutine[Any, Any, dict[str, Array]]]:
        async def run(inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
            while self._service.waiting and self._patience_ms > 0:
                await asyncio.sleep(RERUN_POLL_MS / 1000)
                self._patience_ms -= RERUN_POLL_MS
            return await self._service.run_aside(name, inputs, wanted)

        return run

    def _prove(self, engines: Mapping[str, Engine]) -> Proof:
        golden = self._bundle.runtime.golden
        assert golden is not None
        try:
            # Read again and not kept: they may be larger than the model.
            data = read_golden(self._bundle.files / golden.path)
            if Digest.of(data) != self._bundle.golden_file:
                raise EdgeError("artifact.golden-invalid", "the golden file has changed")
        except EdgeError as error:
            # It was whole when the bundle was proved, so it is the disk, not the bundle and not the model.
            raise EdgeError("device.disk-corrupt", f"the slot of a live model: {error.detail}") from error
        try:
            return prove_members(engines, parse_vectors(data), golden)
        except MemoryError as error:
            raise EdgeError("device.memory-short", "the golden vectors do not fit in memory") from error
