"""Bounds of a worker process. Sizes in bytes, times in milliseconds."""

from dataclasses import dataclass
from typing import Final

from edge_contract.limits import KIB, MIB

# HTTP
HEAD_BYTES_MAX: Final = 32 * KIB
HEADERS_MAX: Final = 100
RECEIVE_BYTES: Final = 64 * KIB
CHUNK_LINE_BYTES_MAX: Final = 256
"""The size line of a chunk with its extensions, and one line of a trailer."""
TRAILERS_MAX: Final = 32
CHUNKS_MAX: Final = 65_536
LINGER_BYTES_MAX: Final = 8 * MIB
"""How much of a refused request is still read, so that the refusal is not lost to a reset."""
SEND_PARTS_MAX: Final = 256
ACCEPT_BURST_MAX: Final = 64
HEADS_KEPT: Final = 256
"""Heads of answers that are kept made."""
BUFFERS_KEPT: Final = 4
BUFFER_KEPT_BYTES_MAX: Final = 4 * MIB
"""Places of large requests that are used again: fresh memory for each costs as much as moving its bytes."""
JOIN_BYTES_MAX: Final = 16 * KIB
"""An answer up to this size is sent as one piece: copying it costs less than a list of pieces."""

# Frames
FRAME_BUFFER_BYTES: Final = 64 * KIB
"""What a connection receives at once; a larger payload gets a place of its own."""
SHARED_CORE_US_MAX: Final = 200
"""Threads of a model whose runs are shorter share one core; longer ones gain from all of them."""
FRAME_STACK_BYTES: Final = 1 * MIB
"""Of the thread of a connection. Scripts compute in threads of their own, with the usual stack."""
LEAVE_MS_MAX: Final = 500
"""For the thread of a connection to notice that the worker drains, once its time is up."""

# Open Inference Protocol
REQUEST_ID_CHARS_MAX: Final = 256
KNOWN_MAX: Final = 256
"""Requests and answers whose JSON is kept."""
KNOWN_BYTES_MAX: Final = 4 * KIB
"""The longest JSON of a request that is kept."""
BYTES_ELEMENT_BYTES_MAX: Final = 16 * MIB
TIMEOUT_US_MAX: Final = 3_600_000_000
"""Largest parameter `timeout` of a request; what is longer than `request_run_ms` changes nothing."""

# Running
CORES_USED_MAX: Final = 2
WARM_UP_RUNS: Final = 3
INLINE_US_MAX: Final = 5_000
"""A model that answers faster runs on the event loop (3.5 times the throughput for a tiny model); a slower one in
threads, so that health checks stay quick."""
INLINE_BODY_BYTES_MAX: Final = 256 * KIB
"""A larger request is read and computed in a thread, whatever the model."""
INLINE_GROWTH_MAX: Final = 8
"""A request with so many times the bytes of the warm-up input is taken for slow."""
DRIFT_COLUMNS_MAX: Final = 64
DRIFT_ELEMENTS_MAX: Final = 4_096
"""Of one output that the drift is measured on, in one request."""
DRIFT_ROWS_MIN: Final = 8
"""Rows of golden and of live outputs below which nothing is said of drift."""
DRIFT_INTERVAL_MS: Final = 20
"""One request in this time is looked at for drift."""
SWITCH_INTERVAL_S: Final = 0.002
"""How long a thread may keep the interpreter while another waits for it; Python's own 5 ms would be added to an answer
whenever a sample is being made."""
RERUN_POLL_MS: Final = 5
"""How often a rerun of the golden vectors looks whether requests still wait."""

BEAT_MS: Final = 5_000
"""How often a worker that serves says that it is not stuck, unless the agent wants another time."""

# Trials
TRIAL_WAITING_MAX: Final = 4
"""Requests that wait to be shown to a candidate; more are not shown."""
TRIAL_HEAD_BYTES_MAX: Final = 1 * MIB
TRIAL_FRAME_BYTES_MAX: Final = 128 * MIB
"""Tensors of one shown request."""
TRIAL_TIMES_KEPT: Final = 1_024
"""Run times that the latency ratio of a trial is taken from, the newest."""

# Compiled models
COMPILED_BYTES_MAX: Final = 512 * MIB
"""Of all entries together."""
COMPILED_FREE_BYTES_MIN: Final = 256 * MIB
"""Left free on the disk: bundles come first."""
COMPILED_ENTRIES_MAX: Final = 64
"""Those that only say that there is nothing to compile included."""
COMPILED_FILES_MAX: Final = 16
COMPILED_REASON_CHARS_MAX: Final = 200
COMPILED_NOTE_BYTES_MAX: Final = 64 * KIB
CPU_FEATURES_BYTES_MAX: Final = 16 * KIB
COMPILE_WORTH_MS: Final = 20
"""CPU time of loading below which a compiled form would save too little to keep."""
COMPILE_AFTER_MS: Final = 2_000
"""From the begin of serving: a swap is over by then."""
COMPILE_MS_MAX: Final = 600_000
COMPILED_FILE_BYTES_MIN: Final = 1 * KIB
"""Smaller constants stay inside the compiled graph."""

# Telemetry
SAMPLES_WAITING_MAX: Final = 256
SAMPLES_PER_S_MAX: Final = 500
"""Above it samples are dropped and counted: making one costs about as much as a tiny inference."""
SAMPLE_ELEMENTS_MAX: Final = 1_024
"""Elements of a tensor that is kept whole."""
SAMPLE_CUT_ELEMENTS: Final = 256
"""Elements kept of a larger one: the start of an image says little, and its digits cost more than many a model."""
NUMBER_CHARS_MAX: Final = 26
"""A number in JSON and the comma behind it."""
CUT_CHARS_MAX: Final = 512
"""What stands around the numbers of one tensor."""
SAMPLE_CHEAP_ELEMENTS: Final = 256
"""Samples of so few elements are bounded by their number alone."""
SAMPLE_CPU_SHARE_MAX: Final = 0.01
"""Processor time for making larger samples, of one core on average; what would take more is dropped and counted."""
SAMPLE_CPU_BURST_S: Final = 0.02
"""Processor time that may be used at once, in seconds, after a while of using less."""
SAMPLE_TEXT_BYTES_MAX: Final = 1_024
"""Bytes kept of one BYTES element."""
SAMPLE_FLUSH_MS: Final = 20
ORPHAN_LOOK_MS: Final = 1_000
"""How often a worker without an agent looks whether the next one can still find it."""
SUITOR_MS: Final = 1_000
"""For the end of one agent to become known, when the next one was quicker."""
RETIRE_MS: Final = 10_000
"""For a worker that no agent will come for to answer what it has begun."""
ADOPTED_KEPT: Final = 1_024
"""Connections got from other workers that are remembered, the newest: many more than one worker has at a time."""
KEEPS_WAITING_MAX: Final = 512
"""Events that wait for an agent that does not read, from which on it gets no duplicates of connections: each waiting
one holds a descriptor that the next client needs."""
INFLIGHT_RETRY_MS: Final = 50
"""When a user has as many descriptors on their way as the kernel lets it have."""
CONTROL_WAITING_BYTES_MAX: Final = 1 * MIB
"""Samples that wait for the agent to read; newer ones are dropped and counted."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Bounds that tests make smaller.

    Attributes:
        body_bytes_max: One request's body; more is refused with 413.
        receiving_bytes_max: All bodies being received together; more is refused with 503.
        connections_max: Open connections; beyond it the kernel queues new ones.
        frame_connections_max: Of them those that speak frames, each with a thread; one more is refused.
        requests_waiting_max: Requests running or waiting for a thread; more are refused with 503.
        request_read_ms: From the first byte of a request to its last; then 408.
        request_run_ms: From its last byte to the answer; then 504.
        response_write_ms: For the client to take the answer.
        idle_ms: Between two requests.
        crowded_new_ms: For a first request, while others wait for a connection.
        crowded_idle_ms: Between two requests, while others wait for a connection and nobody else can go.
        linger_ms: Reading what a refused client still sends.
        parting_ms: At the end, for clients that have just been answered to ask once more; they are answered then, and
            told that the connection ends.
        sweep_ms: How often these are looked at.
        flush_ms: At the end, for samples to be made.
        rerun_patience_ms: How long one rerun of the golden vectors lets waiting requests go first, all its pieces
            together.
        stuck_ms: A model whose threads are busy and finish nothing for so long is stuck; longer than `request_run_ms`.
        hangup_ms: After the agent is gone, before the process ends itself whatever it does.
    """

    body_bytes_max: int = 64 * MIB
    receiving_bytes_max: int = 128 * MIB
    connections_max: int = 256
    frame_connections_max: int = 128
    requests_waiting_max: int = 64
    request_read_ms: int = 30_000
    request_run_ms: int = 60_000
    response_write_ms: int = 30_000
    idle_ms: int = 600_000
    crowded_new_ms: int = 1_000
    crowded_idle_ms: int = 10_000
    linger_ms: int = 2_000
    parting_ms: int = 500
    sweep_ms: int = 500
    flush_ms: int = 500
    rerun_patience_ms: int = 2_000
    stuck_ms: int = 120_000
    hangup_ms: int = 2_000
