"""Asks a module on its unix socket, like any other client of it. Standard library only; one thread at a time."""

import contextlib
import http.client
import json
import os
import select
import socket
from pathlib import Path
from typing import Any, Final

from edge_agent.binding.answers import Reply
from edge_agent.binding.limits import ANSWER_BYTES_MAX, ASK_MS, LOOK_MS
from edge_agent.binding.questions import Question
from edge_contract.bindings import Signature
from edge_contract.codes import CODES
from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.limits import TENSORS_MAX
from edge_contract.tensors import TensorSpec

_LENGTH: Final = "Inference-Header-Content-Length"
_MANIFEST: Final = "Lighterman-Manifest"
_VERSION: Final = "Lighterman-Model-Version"
_CUT: Final = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, http.client.BadStatusLine)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(os.fspath(self._path))
        except OSError:
            self.sock.close()
            self.sock = None
            raise


class Asker:
    """One kept-alive connection to a module."""

    def __init__(self, path: Path, timeout_ms: int = ASK_MS) -> None:
        """Connect with the first question.

        Args:
            path: Of the module's unix socket.
            timeout_ms: Longest silence of the module.
        """
        self._path = path
        self._connection = _UnixConnection(path, timeout_ms / 1000)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def interrupt(self) -> None:
        """End the question that is being asked, from another thread."""
        sock = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def signature(self, member: str) -> tuple[Digest, Signature]:
        """The model's tensors, and the bundle that says so.

        Raises:
            EdgeError: `model.not-serving`, `network.*`.
        """
        answer, content = self._exchange("GET", f"/v2/models/{member}", None, {})
        try:
            document = json.loads(content)
            sides = [document.get(side) or [] for side in ("inputs", "outputs")]
            inputs, outputs = (tuple(TensorSpec.from_json(item) for item in side[:TENSORS_MAX]) for side in sides)
        except (ContractError, ValueError, AttributeError, TypeError) as error:
            raise EdgeError("network.cut", f"{self._path} does not say what its models take: {error}") from None
        return _manifest(answer), (inputs, outputs)

    def manifest(self) -> Digest:
        """Which bundle answers.

        Raises:
            EdgeError: `network.*`.
        """
        return _manifest(self._exchange("GET", "/v2/health/live", None, {})[0])

    def infer(self, member: str, question: Question) -> Reply:
        """Have a model compute.

        Raises:
            EdgeError: `model.*` as the worker answers, `network.*`.
        """
        headers = {"Content-Type": "application/json"}
        if question.json_bytes is not None:
            headers = {"Content-Type": "application/octet-stream", _LENGTH: str(question.json_bytes)}
        answer, content = self._exchange("POST", f"/v2/models/{member}/infer", question.body, headers)
        length = answer.headers.get(_LENGTH)
        if length is not None and not (length.isascii() and length.isdigit() and int(length) <= len(content)):
            raise EdgeError("network.cut", f"{self._path} gives a length that its answer does not have")
        return Reply(
            _manifest(answer), answer.headers.get(_VERSION, ""), content, None if length is None else int(length)
        )

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            if self._is_over():
                self._connection.close()  # a worker closes connections that were idle for long; that is no crash
            return self._once(method, path, body, headers)
        except TimeoutError as error:
            self._connection.close()
            raise EdgeError("network.timeout", f"no answer from {self._path} in time") from error
        except _CUT as error:
            self._connection.close()
            raise EdgeError("network.cut", f"the connection to {self._path} was cut: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise EdgeError("network.unreachable", f"nothing answers at {self._path}: {error}") from error

    def _is_over(self) -> bool:
        """Whether the other side has ended the connection that was kept."""
        sock = self._connection.sock
        if sock is None:
            return False
        look = select.poll()
        look.register(sock, select.POLLIN)
        return bool(look.poll(0))  # its end, or bytes that nobody asked for

    def _once(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read(ANSWER_BYTES_MAX + 1)
        if len(content) > ANSWER_BYTES_MAX:
            self._connection.close()
            raise EdgeError("model.output-invalid", f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
        if answer.status >= http.client.BAD_REQUEST:
            raise _error(answer.status, content)
        return answer, content


def live_manifest(path: Path) -> Digest:
    """Which bundle answers new connections to a module's socket.

    Raises:
        EdgeError: `network.*`.
    """
    asker = Asker(path, LOOK_MS)
    try:
        return asker.manifest()
    finally:
        asker.close()


def _manifest(answer: http.client.HTTPResponse) -> Digest:
    try:
        return Digest(answer.headers.get(_MANIFEST, ""))
    except ContractError:
        raise EdgeError("network.cut", "the module does not say which bundle answered") from None


def _error(status: int, content: bytes) -> EdgeError:
    try:
        document: Any = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        document = {}
    code = str(document.get("code"))
    text = str(document.get("error") or f"the worker answered with HTTP status {status}")
    return EdgeError(code if code in CODES else "model.inference-failed", text)
