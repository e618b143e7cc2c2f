"""`edge-agent serve` as a process of its own, and a client that trusts nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_contract.runtime import Member
from edge_contract.tensors import TensorSpec
from tests.support.bundles import Written, write_bundle
from tests.support.net import LOOPBACK, wait_until
from tests.support.processes import Child, child_process
from tests.support.require import REPOSITORY_ROOT

COMMAND = (sys.executable, "-c", "from edge_agent.cli import main; main()", "serve")
START_S = 90.0
END_S = 60.0

SLEEPER = """
import os, time
from pathlib import Path

def init():
    gate = os.environ.get("GATE")
    while gate and not Path(gate).exists():
        time.sleep(0.02)

def run(data):
    x = data["x"]
    if x[0, 1] == 666:
        os._exit(9)
    taken = b"1" * (int(x[0, 2]) * 2**20)
    time.sleep(float(x[0, 0]))
    return {"y": x + 10}
"""


def sleeper_bundle(folder: Path, **options: Any) -> Written:
    """A script `digits` that sleeps for `x[0, 0]` seconds and answers `x + 10`; `x[0, 1] == 666` ends its process, and
    it takes `x[0, 2]` MiB of memory for as long as the request runs.

    With `config={"GATE": path}` it does not finish loading before there is a file at the path.
    """
    x = np.zeros((1, 4), dtype=np.float32)
    signature = {name: (TensorSpec(name, "FP32", (-1, 4)),) for name in ("x", "y")}
    member = Member("digits", "script", "score.py", signature["x"], signature["y"])
    golden = {"digits/input/x": x, "digits/output/y": x + np.float32(10)}
    return write_bundle(folder, [member], {"score.py": SLEEPER.encode()}, golden=golden, **options)


@dataclass
class WebService:
    """A running service.

    Attributes:
        child: Its process.
        facts: Its start line.
        work_dir: The one folder it writes to.
    """

    child: Child
    facts: dict[str, Any]
    work_dir: Path

    @property
    def port(self) -> int:
        """Its TCP port."""
        return int(self.facts["port"])

    def connect(self, timeout_s: float = 30.0) -> http.client.HTTPConnection:
        """A connection of one's own; closed by who asked for it."""
        return http.client.HTTPConnection(LOOPBACK, self.port, timeout=timeout_s)

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, Any]:
        """Status and JSON of one answer, on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET" if body is None else "POST", path, body)
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data.startswith((b"{", b"[")) else data

    def infer(self, *x: float) -> tuple[int, Any]:
        """Status and JSON of one prediction."""
        return self.ask("/v2/models/digits/infer", request_bytes(*x))

    @property
    def workers(self) -> list[int]:
        """Process ids of its worker, or workers, that have not ended."""
        return children_of(self.child.pid)

    def left_overs(self) -> list[str]:
        """What lies in its folder."""
        return sorted(path.name for path in self.work_dir.iterdir())


def request_bytes(*x: float) -> bytes:
    """The body of a prediction for one row of four numbers."""
    data = [*x, *[0.0] * (4 - len(x))]
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": data}]}).encode()


def children_of(pid: int) -> list[int]:
    """Children of every thread of a process that have not ended."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(text) for text in path.read_text().split() if not _is_zombie(int(text))]
    return found


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@contextlib.contextmanager
def web_service(
    *arguments: str | Path,
    command: Sequence[str] = COMMAND,
    environment: Mapping[str, str] | None = None,
    work_dir: Path | None = None,
) -> Iterator[WebService]:
    """A service that answers; ended at the end. The port is any free one unless named.

    Args:
        arguments: Of the command.
        command: What starts it.
        environment: Variables beside those of this process.
        work_dir: Its folder; a new one when none, with a path short enough for a unix socket.
    """
    with tempfile.TemporaryDirectory(prefix="web-") as made:
        log = Path(made) / "log"
        place = work_dir or Path(made) / "work"
        place.mkdir(exist_ok=True)
        argv = [*command, *map(str, arguments), "--json", "--work-dir", str(place)]
        argv += [] if "--port" in arguments else ["--port", "0"]
        with child_process(argv, log_path=log, cwd=REPOSITORY_ROOT, env={**os.environ, **(environment or {})}) as child:
            wait_until(
                lambda: '"event": "serving"' in child.output() or not child.is_running,
                START_S,
                what="the service to answer",
            )
            assert child.is_running, child.tail()
            line = next(line for line in child.output().splitlines() if line.startswith('{"event": "serving"'))
            yield WebService(child, json.loads(line), place)


def refused(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and error code of a service that cannot begin; it leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="web-") as place:
        argv = [*COMMAND, *map(str, arguments), "--json", "--work-dir", place]
        argv += [] if "--port" in arguments else ["--port", "0"]
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_S,
            cwd=REPOSITORY_ROOT,
            env={**os.environ, **(environment or {})},
        )
        assert not os.listdir(place), "something was left behind"
    assert done.stdout.startswith("{"), done.stderr
    return done.returncode, str(json.loads(done.stdout)["error"]["code"])
