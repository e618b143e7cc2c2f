"""Asks the running agent on this machine, over its control socket: one JSON line there, one back."""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Final

from edge_agent.limits import CONTROL_BYTES_MAX, CONTROL_MS_MAX, RELOAD_MS_MAX, RELOAD_POLL_MS
from edge_contract.codes import CODES
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, dump, parse_object

SOCKET: Final = "agent.sock"
_HINT: Final = "Is the agent running (systemctl status lighterman-agent), and is this its run directory?"


def ask(run: Path, request: JsonObject, timeout_ms: int = CONTROL_MS_MAX) -> JsonObject:
    """Send one request and wait for the reply.

    Args:
        run: The agent's run directory.
        request: `{"op": ...}`.
        timeout_ms: Longest wait for each step.

    Returns:
        The reply, whose `ok` is true.

    Raises:
        EdgeError: `network.unreachable`, `network.timeout`, or the error the agent replies with.
    """
    path = run / SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asker:
            asker.settimeout(timeout_ms / 1000)
            asker.connect(os.fspath(path))
            asker.sendall(dump(request) + b"\n")
            line = _read_line(asker)
    except TimeoutError:
        raise EdgeError("network.timeout", f"the agent did not answer on {path} in time", _HINT) from None
    except PermissionError:
        raise EdgeError(
            "config.invalid",
            f"{path} may not be used by this user",
            "Ask as the agent's user or as root: sudo edge-agent …",
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise EdgeError("network.unreachable", f"no agent answers on {path}: {reason}", _HINT) from None
    try:
        reply = parse_object(line, "the agent's reply", CONTROL_BYTES_MAX)
    except ContractError as error:
        raise EdgeError("network.cut", f"the agent's reply on {path} cannot be read: {error.detail}") from None
    if reply.get("ok") is not True:
        raise _error(reply.get("error"))
    return reply


def ask_reload(run: Path) -> JsonObject:
    """Let the agent start anew, and wait until it answers again.

    Args:
        run: The agent's run directory.

    Returns:
        `boot` and `agent_version` of the new run.

    Raises:
        EdgeError: As `ask`; `network.timeout` when the agent does not come back within `RELOAD_MS_MAX`.
    """
    before = ask(run, {"op": "status"})["status"]["boot"]
    ask(run, {"op": "reload"})
    end = time.monotonic() + RELOAD_MS_MAX / 1000
    while time.monotonic() < end:
        with contextlib.suppress(EdgeError):
            status = ask(run, {"op": "status"})["status"]
            if status["boot"] != before:
                return {"boot": status["boot"], "agent_version": status["agent_version"]}
        time.sleep(RELOAD_POLL_MS / 1000)
    raise EdgeError(
        "network.timeout",
        f"the agent did not come back within {RELOAD_MS_MAX} ms",
        "Its log says why. Models go on answering; start it again (systemctl start lighterman-agent).",
    )


def _error(value: object) -> EdgeError:
    error = value if isinstance(value, dict) else {}
    code = str(error.get("code"))
    detail = str(error.get("detail", "the agent gave no reason"))
    return EdgeError(code if code in CODES else "internal.bug", detail, str(error.get("hint", "")))


def _read_line(asker: socket.socket) -> bytes:
    parts: list[bytes] = []
    count = 0
    while count <= CONTROL_BYTES_MAX:
        chunk = asker.recv(65_536)
        parts.append(chunk)
        count += len(chunk)
        if not chunk or chunk.endswith(b"\n"):
            break
    return b"".join(parts)
