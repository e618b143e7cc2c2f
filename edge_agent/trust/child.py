"""Full verification in a process of its own, which ends when it is done.

python-tuf and cryptography cost about ten megabytes that are needed once in hours, and their input is what an
attacker may send. The child gets one JSON object on standard input, secrets included, and answers with one on
standard output.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from edge_agent.keyuri import without_pin
from edge_agent.limits import RECEIPT_BYTES_MAX, VERIFY_MS_MAX
from edge_agent.tokens import FixedToken
from edge_agent.transport import TokenSource
from edge_agent.trust.receipt import Receipt
from edge_agent.trust.timefloor import Times
from edge_contract.codes import CODES
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, dump, parse_object

_COMMAND: Final = (sys.executable, "-P", "-m", "edge_agent.trust")


class ChildVerification:
    """A full verification for `UptaneVerifier(verify=...)`. Used by one thread."""

    def __init__(
        self,
        folder: Path,
        device: str,
        url: str,
        tokens: TokenSource | None,
        ca: Path | None = None,
        command: tuple[str, ...] = _COMMAND,
        timeout_ms: int = VERIFY_MS_MAX,
    ) -> None:
        """Describe the work; no process is started yet.

        Args:
            folder: For example `<data>/trust`.
            device: Name of this device.
            url: Base URL of the registry.
            tokens: Makes the child's bearer token, or none.
            ca: Certificates to trust for https; the system's when none.
            command: The child's program and arguments.
            timeout_ms: When the child is given up and killed.
        """
        self._work: JsonObject = {
            "folder": str(folder.absolute()),
            "device": device,
            "url": url,
            "ca": None if ca is None else str(ca.absolute()),
        }
        self._tokens = tokens
        self._command = command
        self._timeout_ms = timeout_ms

    def __call__(self, times: Times) -> Receipt:
        """Verify in full, judging expiry by these times.

        The child gets a token that was made just now. When the registry finds even that outside its time, the child
        says so, and is run once more with one that is dated by the registry's clock.

        Raises:
            EdgeError: `trust.*`, `network.*`, `cloud.*`, `device.*`; `device.memory-short` when the child was killed,
                `internal.bug` when it failed otherwise.
        """
        answer = self._run(times)
        date = answer.get("refused_at")
        if date and self._tokens is not None and self._tokens.refused(str(date)):
            answer = self._run(times)
        if "error" in answer:
            raise _error(answer["error"])
        try:
            return Receipt.from_json(answer)
        except ContractError as error:
            raise EdgeError("internal.bug", f"verifying metadata gave no receipt: {error.detail}") from None

    def _run(self, times: Times) -> JsonObject:
        token = "" if self._tokens is None else self._tokens.fresh()
        try:
            done = subprocess.run(
                self._command,
                input=dump({**self._work, "token": token, "times": times.to_json()}),
                stdout=subprocess.PIPE,
                timeout=self._timeout_ms / 1000,
                check=False,
                env=without_pin(os.environ),
                start_new_session=True,  # an interrupt typed at the agent is for the agent
            )
        except subprocess.TimeoutExpired:
            raise EdgeError("network.timeout", f"metadata was not verified within {self._timeout_ms} ms") from None
        except OSError as error:
            raise EdgeError("device.memory-short", f"verifying metadata could not begin: {error}") from error
        if done.returncode == -signal.SIGKILL:
            raise EdgeError("device.memory-short", "the process that verifies metadata was killed")
        try:
            return parse_object(done.stdout, "the verified metadata", RECEIPT_BYTES_MAX)
        except ContractError as error:
            detail = f"verifying metadata ended with exit code {done.returncode}: {error.detail}"
            raise EdgeError("internal.bug", detail) from None


def serve() -> None:
    """The child's side: reads the work, verifies, writes a receipt or an error."""
    from edge_agent.trust.full import FullVerification
    from edge_agent.trust.source import IMAGE_PREFIX, HttpMetadataSource, director_prefix

    work = json.load(sys.stdin)
    ca = None if work["ca"] is None else Path(work["ca"])
    token = FixedToken(work["token"])
    try:
        verify = FullVerification(
            Path(work["folder"]),
            work["device"],
            HttpMetadataSource(work["url"], director_prefix(work["device"]), token, ca),
            HttpMetadataSource(work["url"], IMAGE_PREFIX, token, ca),
        )
        answer = verify(Times.from_json(work["times"])).to_json()
    except EdgeError as error:
        answer = {"error": error.to_json(), "refused_at": token.refused_at}
    sys.stdout.buffer.write(dump(answer))


def _error(value: object) -> EdgeError:
    error = value if isinstance(value, dict) else {}
    code = str(error.get("code"))
    return EdgeError(code if code in CODES else "internal.bug", str(error.get("detail")), str(error.get("hint", "")))
