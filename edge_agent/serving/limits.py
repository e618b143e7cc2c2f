"""Bounds of the agent's side of serving. Sizes in bytes, times in milliseconds."""

from dataclasses import dataclass
from typing import Final

from edge_contract.limits import KIB, MIB, MODULES_MAX, SAMPLE_BYTES_MAX

CONTROL_LINE_BYTES_MAX: Final = SAMPLE_BYTES_MAX + 32 * KIB
"""One message between agent and worker. The largest is a sample: its body and the names around it."""

CONTROL_FDS_MAX: Final = 3
"""Descriptors beside one message: a connection and what was received on it; or what an orphan serves with."""

RECEIVE_BYTES: Final = 64 * KIB
RECEIVE_FDS_MAX: Final = 32
"""Descriptors taken by one receive call. The kernel never gives those of more than one message at once."""

SAMPLES_WAITING_MAX: Final = 1_024
"""Samples of all modules that wait for the agent's callback; newer ones are dropped and counted."""

UNIX_PATH_BYTES_MAX: Final = 107
"""`sun_path` without the closing zero (unix(7))."""

EVENTS_WAITING_MAX: Final = 256
"""A worker's answers that nobody has taken yet; one that says more has lost its mind and is ended."""

OUTPUT_REST_READS_MAX: Final = 32
"""Reads of `RECEIVE_BYTES` from the pipe of a worker that is gone: more than a pipe holds."""

LISTEN_BACKLOG: Final = 512

DESCRIPTORS_WANTED: Final = 4_096
"""What the agent asks of the system: copies of clients' connections, parked ones, and its own. Systems give 1,024
unless asked."""

CONNECTIONS_PARKED_MAX: Final = 256
"""Connections of all modules that the agent holds between two workers: as many as a worker takes. Each is a descriptor
or two, and the agent needs some for its own work."""

CONNECTIONS_KEPT_MAX: Final = 512
"""Duplicates of clients' connections of all modules, against a crash of their workers; more are cut by one. A whole
module's twice, for the moment of a swap."""

FAREWELL_MS: Final = 2_000
"""For clients whose request failed with their worker to close their side."""

PIDS_MAX: Final = 512
"""Processes and threads of one worker, where it has a control group: frames take 128, engines a few."""

DATA_SLACK_BYTES: Final = 192 * MIB
"""Added to a bound on memory where only an rlimit on data holds it: stacks of threads count in full there, touched or
not (128 threads of frames, 1 MiB each), and what the allocator has in stock."""

CGROUP_END_MS: Final = 2_000
"""For the kernel to end what a worker's control group still holds."""

ASK_ANSWER_BYTES_MAX: Final = 16 * KIB
"""Head of the answer of whoever answers a module's socket."""

LOG_BYTES_MAX: Final = 256 * KIB
"""A worker's log file; at the bound it becomes `<name>.log.1` and a new one begins, so a module keeps twice as much."""

TRIAL_MS: Final = 10_000
"""A question to a candidate on trial; it computes in a thread of its own and answers beside it."""

ORPHAN_FOLDER: Final = "orphan"
"""Folder in the run directory where workers without an agent wait for the next one."""

ORPHAN_MS: Final = 3_600_000
"""A worker without an agent ends after this time: nobody would ever replace it."""

ORPHANS_MAX: Final = 4 * MODULES_MAX
"""Sockets in that folder that a starting agent looks at: a live worker a module, and some from the middle of a swap."""

HELLO_PROTOCOL: Final = 1
"""Version of what agent and worker say to each other; a worker that speaks another one is replaced, not adopted."""

MEMORY_SHARE_MAX: Final = 0.9
"""Share of the memory that is free now which a candidate may need for loading beside the live worker."""


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """How long the agent waits for a worker.

    Attributes:
        load_ms: From the start of the process until the model is loaded.
        prove_ms: Golden vectors and warm-up.
        serve_ms: Until a proved worker accepts connections.
        drain_ms: Until the worker that is replaced has answered what it had begun; what is still running then is
            answered by the new one.
        answer_ms: A question about counters; a worker that does not answer it is taken for stuck.
        ask_ms: The question which bundle answers, asked at the module's own socket.
        golden_ms: Until a live worker has computed its golden vectors again, between requests.
        exit_ms: Until a worker that was told to end is gone; then it is killed.
        send_ms: One message to a worker that does not read.
        stuck_ms: A worker that serves and whose event loop stands still for so long is ended; its stacks go to its log.
        hello_ms: For all workers that outlived the agent before to answer this one, together.
        orphan_ms: How long a worker that serves waits for another agent.
    """

    load_ms: int = 120_000
    prove_ms: int = 60_000
    serve_ms: int = 5_000
    drain_ms: int = 10_000
    answer_ms: int = 2_000
    ask_ms: int = 5_000
    golden_ms: int = 60_000
    exit_ms: int = 3_000
    send_ms: int = 5_000
    stuck_ms: int = 30_000
    hello_ms: int = 5_000
    orphan_ms: int = ORPHAN_MS

    @property
    def drained_ms(self) -> int:
        """Until a draining worker has said that it is done: its own bound and time to say it."""
        return self.drain_ms + 2_000
