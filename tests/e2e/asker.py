"""A client that asks a model without end over one kept connection and forgives nothing."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from tests.e2e.models import WIDTH
from tests.support.net import LOOPBACK, wait_until

_PERIOD_S = 0.02
_TIMEOUT_S = 20.0
_JOIN_S = 30.0
_WAIT_S = 40.0
_TOLERANCE = 1e-4


@dataclass
class Tally:
    """What was answered.

    Attributes:
        answered: Version by request id, in the order of asking.
        failed: What went wrong, request by request.
        while_down: Requests without an answer while that was expected.
    """

    answered: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    while_down: int = 0


class Asker:
    """One thread with one connection. Model version n is expected to add n to its input."""

    def __init__(self, model: str, port: int, prefix: str) -> None:
        """Prepare to ask; use it as a context manager.

        Args:
            model: Name of the model.
            port: Where it answers on 127.0.0.1.
            prefix: Begins the id of every request, so that telemetry can be told apart.
        """
        self._path = f"/v2/models/{model}/infer"
        self._port = port
        self._prefix = prefix
        self._tally = Tally()
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._is_down_expected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asker", daemon=True)

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Finish the request under way and ask no more."""
        self._is_stopping.set()
        self._thread.join(_JOIN_S)

    @contextmanager
    def expecting_silence(self) -> Iterator[None]:
        """Within the block requests without an answer are no failures; wrong answers are."""
        self._is_down_expected.set()
        try:
            yield
        finally:
            self._is_down_expected.clear()

    @property
    def answered(self) -> dict[str, int]:
        """Version by id of every request that was answered."""
        with self._lock:
            return dict(self._tally.answered)

    @property
    def failed(self) -> list[str]:
        """Every request that got no answer or a wrong one."""
        with self._lock:
            return list(self._tally.failed)

    def newest(self) -> int:
        """The version that answered last, 0 when none has."""
        with self._lock:
            return next(reversed(self._tally.answered.values()), 0)

    def wait_for(self, version: int, more: int = 3) -> None:
        """Wait until this version has answered some requests from now on, the newest of them too."""
        before = len(self.answered)

        def is_so() -> bool:
            return list(self.answered.values())[before:][-more:] == [version] * more

        wait_until(is_so, _WAIT_S, what=f"{more} answers of version {version}; failures so far: {self.failed[:3]}")

    def go_on(self, more: int = 15) -> None:
        """Wait until some more requests were answered."""
        before = len(self.answered)
        wait_until(
            lambda: len(self.answered) >= before + more, _WAIT_S, what=f"{more} more answers, beside {self.failed[:3]}"
        )

    def require_flawless(self) -> None:
        """Require that everything that was asked was answered, rightly."""
        assert self.answered, "nothing was answered at all"
        assert self.failed == []

    def _run(self) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=_TIMEOUT_S)
        number = 0
        while not self._is_stopping.wait(_PERIOD_S):
            number += 1
            name = f"{self._prefix}-{number}"
            try:
                version = self._ask(connection, name, float(number % 100))
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._fail(f"{name}: {type(error).__name__}: {error}", is_silence=True)
            except (ValueError, KeyError) as error:
                connection.close()
                self._fail(f"{name}: {error}", is_silence=False)
            else:
                with self._lock:
                    self._tally.answered[name] = version
        connection.close()

    def _fail(self, text: str, is_silence: bool) -> None:
        with self._lock:
            if is_silence and self._is_down_expected.is_set():
                self._tally.while_down += 1
            else:
                self._tally.failed.append(text)

    def _ask(self, connection: http.client.HTTPConnection, name: str, value: float) -> int:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [value] * WIDTH}
        body = json.dumps({"id": name, "inputs": [tensor]})
        connection.request("POST", self._path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        if answer.status == http.client.SERVICE_UNAVAILABLE and self._is_down_expected.is_set():
            raise http.client.HTTPException("the model is not up yet")
        if answer.status != http.client.OK:
            raise ValueError(f"HTTP status {answer.status}: {data[:200]!r}")
        document = json.loads(data)
        version = int(document["model_version"])
        numbers = document["outputs"][0]["data"]
        if document["id"] != name or any(abs(number - value - version) > _TOLERANCE for number in numbers):
            raise ValueError(f"a wrong answer to {value}: {data[:200]!r}")
        return version
