"""Steady inference load on the real agent: held-out digits, one after the other, every answer checked and counted.

Nothing is repeated and nothing forgiven: a request that is refused, cut or answered with an error is a failed request.
One client keeps its TCP connection for ever, the other opens the unix socket anew for each request, because a swap of
models has to get both right.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from device_sim.digits import CLASSES, INPUT, PIXELS, Digits

RATE_PER_S: Final = 50
"""Requests a second of each client."""

TIMEOUT_S: Final = 20.0
FAILURES_KEPT: Final = 20
_JOIN_S: Final = TIMEOUT_S + 5


@dataclass(slots=True)
class Answers:
    """What a model version answered.

    Attributes:
        requests: Good answers.
        right: Those that named the digit.
        manifest: Digest of the bundle that said so.
    """

    requests: int = 0
    right: int = 0
    manifest: str = ""

    @property
    def accuracy(self) -> float:
        """Share of right answers, `0..1`; 0 when there were none."""
        return self.right / self.requests if self.requests else 0.0


@dataclass(slots=True)
class Tally:
    """Everything counted so far.

    Attributes:
        served: Good answers.
        failed: Requests without one.
        by_version: Answers by model version.
        failures: Why requests failed, with counts; bounded.
        silence_ms: Longest time between two good answers of one client.
    """

    served: int = 0
    failed: int = 0
    by_version: dict[int, Answers] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    silence_ms: float = 0.0


class Load:
    """Two client threads. Start and stop it from one thread; `tally` may be read from any."""

    def __init__(self, model: str, tcp: tuple[str, int], unix: Path, digits: Digits) -> None:
        """Prepare the clients.

        Args:
            model: Name of the model that is asked.
            tcp: Where the module answers HTTP.
            unix: Its unix socket.
            digits: Held-out images and their labels.
        """
        self._path = f"/v2/models/{model}/infer"
        self._labels = [int(label) for label in digits.test_labels]
        self._bodies = [_body(image.tolist(), place) for place, image in enumerate(digits.test_images)]
        self._tally = Tally()
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        kept = http.client.HTTPConnection(*tcp, timeout=TIMEOUT_S)
        self._threads = [
            threading.Thread(target=self._run, args=(lambda: kept, False, 0), name="load-tcp", daemon=True),
            threading.Thread(target=self._run, args=(lambda: _Unix(unix), True, 300), name="load-unix", daemon=True),
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the requests under way and ask no more."""
        self._is_stopping.set()
        for thread in self._threads:
            thread.join(_JOIN_S)

    @property
    def tally(self) -> Tally:
        """A copy of what was counted."""
        with self._lock:
            now = self._tally
            by_version = {
                version: Answers(item.requests, item.right, item.manifest) for version, item in now.by_version.items()
            }
            return Tally(now.served, now.failed, by_version, Counter(now.failures), now.silence_ms)

    def _run(self, connect: Callable[[], http.client.HTTPConnection], is_fresh: bool, offset: int) -> None:
        due = answered = time.monotonic()
        number = offset
        while not self._is_stopping.is_set():
            place = number % len(self._bodies)
            number += 1
            connection = connect()
            try:
                version, manifest, digit = self._ask(connection, self._bodies[place])
            except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, IndexError) as error:
                connection.close()
                self._count_failure(f"{type(error).__name__}: {error}"[:200])
            else:
                now = time.monotonic()
                self._count(version, manifest, digit == self._labels[place], (now - answered) * 1000)
                answered = now
                if is_fresh:
                    connection.close()
            due = max(due + 1 / RATE_PER_S, time.monotonic() - 1)
            self._is_stopping.wait(max(0.0, due - time.monotonic()))
        connect().close()

    def _ask(self, connection: http.client.HTTPConnection, body: bytes) -> tuple[int, str, int]:
        connection.request("POST", self._path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != http.client.OK:
            raise ValueError(f"HTTP status {answer.status}: {data[:120].decode('utf-8', 'replace')}")
        document: dict[str, Any] = json.loads(data)
        scores = document["outputs"][0]["data"]
        if len(scores) != CLASSES:
            raise ValueError(f"{len(scores)} scores instead of {CLASSES}")
        return int(document["model_version"]), answer.headers["Lighterman-Manifest"], scores.index(max(scores))

    def _count(self, version: int, manifest: str, is_right: bool, silence_ms: float) -> None:
        with self._lock:
            self._tally.served += 1
            self._tally.silence_ms = max(self._tally.silence_ms, silence_ms)
            answers = self._tally.by_version.setdefault(version, Answers(manifest=manifest))
            answers.requests += 1
            answers.right += is_right

    def _count_failure(self, why: str) -> None:
        with self._lock:
            self._tally.failed += 1
            if why in self._tally.failures or len(self._tally.failures) < FAILURES_KEPT:
                self._tally.failures[why] += 1


class _Unix(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._unix_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._unix_path))


def _body(pixels: list[float], place: int) -> bytes:
    tensor = {"name": INPUT.name, "datatype": INPUT.datatype, "shape": [1, PIXELS], "data": pixels}
    return json.dumps({"id": f"digit-{place}", "inputs": [tensor]}).encode()
