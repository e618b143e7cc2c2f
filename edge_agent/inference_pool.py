"""Inference clients that several threads share."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from edge_agent.inference import TIMEOUT_S_DEFAULT, InferenceClient, Prediction, Tensor

if TYPE_CHECKING:
    from edge_agent.inference_arrays import Outputs

CONNECTIONS_DEFAULT: Final = 4


class InferencePool:
    """Clients for several threads: each call borrows one, and waits when all are lent."""

    def __init__(
        self,
        address: Path | tuple[str, int],
        timeout_s: float = TIMEOUT_S_DEFAULT,
        connections_max: int = CONNECTIONS_DEFAULT,
    ) -> None:
        """Make a pool; it connects as it is asked.

        Args:
            address: As `InferenceClient`.
            timeout_s: As `InferenceClient`.
            connections_max: Clients at most, from 1.
        """
        self._make = partial(InferenceClient, address, timeout_s)
        self._places = threading.BoundedSemaphore(connections_max)
        self._idle: list[InferenceClient] = []  # the one used last at the end, because it is warm; append is atomic

    def __enter__(self) -> "InferencePool":
        """Use it in a block that closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connections that are not lent; those that are close when they come back and nobody asks again."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def borrow(self) -> Iterator[InferenceClient]:
        """Have a client for a block."""
        with self._places:
            try:
                client = self._idle.pop()
            except IndexError:
                client = self._make()
            try:
                yield client
            finally:
                self._idle.append(client)

    def infer_arrays(
        self,
        inputs: Mapping[str, Any],
        model: str,
        outputs: Sequence[str] = (),
        request_id: str = "",
        deadline_ms: int = 0,
    ) -> "Outputs":
        """See `InferenceClient.infer_arrays`. Any thread."""
        with self.borrow() as client:
            return client.infer_arrays(inputs, model, outputs, request_id, deadline_ms)

    def infer(
        self,
        model: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[str] = (),
        is_binary: bool = False,
        request_id: str = "",
    ) -> Prediction:
        """See `InferenceClient.infer`. Any thread."""
        with self.borrow() as client:
            return client.infer(model, inputs, outputs, is_binary, request_id)
