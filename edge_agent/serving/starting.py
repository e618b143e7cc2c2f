"""Starts the process of a worker: what it inherits, and what the agent keeps of it."""

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edge_agent.serving.environment import worker_command, worker_environment
from edge_agent.serving.handle import Process, StartedProcess
from edge_agent.serving.sockets import Listeners
from edge_contract.errors import EdgeError


@dataclass(frozen=True, slots=True)
class Outliving:
    """How a worker that serves gets on without its agent.

    Attributes:
        folder: Where it waits for the next agent: a folder that the agent's user alone may enter.
        log: The file that gets its output meanwhile.
        orphan_ms: How long it waits.
    """

    folder: Path
    log: Path
    orphan_ms: int


@dataclass(frozen=True, slots=True)
class Running:
    """A worker's process and the agent's ends of what connects both.

    Attributes:
        process: The process.
        control: The agent's end of the control channel.
        output: Reads what the worker prints; does not block.
    """

    process: Process
    control: socket.socket
    output: int


def start_worker(module: str, slot: Path, listeners: Listeners, outliving: Outliving | None) -> Running:
    """Start a worker.

    Args:
        module: Name of the module.
        slot: The bundle's slot.
        listeners: Sockets it inherits.
        outliving: How it gets on without its agent, or none when it ends with it.

    Raises:
        EdgeError: `device.memory-short` when the system cannot start a process.
    """
    try:
        control, theirs = socket.socketpair()
        try:
            output, output_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            control.close()
            theirs.close()
            raise
    except OSError as error:  # no descriptor left
        raise EdgeError("device.memory-short", f"no worker could be started: {error.strerror or error}") from error
    os.set_blocking(output_in, True)
    fds = [theirs.fileno(), listeners.unix.fileno(), listeners.tcp.fileno()]
    command = worker_command(module, slot, *fds)
    if outliving is not None:
        # With both ends of the pipe it can neither break nor fill up when the agent is gone.
        fds.append(output)
        command += ["--output-fd", str(output), "--log", str(outliving.log), "--orphans", str(outliving.folder)]
        command += ["--orphan-ms", str(outliving.orphan_ms)]
    try:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output_in,
            stderr=output_in,
            env=worker_environment(os.environ),
            cwd=slot / "files",
            pass_fds=fds,
            start_new_session=True,  # a Ctrl-C at the agent's terminal is the agent's to handle
        )
    except OSError as error:
        control.close()
        os.close(output)
        raise EdgeError("device.memory-short", f"no worker could be started: {error.strerror or error}") from error
    finally:
        theirs.close()
        os.close(output_in)
    return Running(StartedProcess(popen), control, output)
