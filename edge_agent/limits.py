"""Bounds of the agent's adapters, beside those of `edge_contract.limits`. Sizes in bytes, times in milliseconds."""

from typing import Final

from edge_contract.limits import DEVICE_TOKEN_MS_MAX, KIB, MIB

# The disk
RESERVE_BYTES_DEFAULT: Final = 64 * MIB  # emergency reserve that no download may touch
JOURNAL_BYTES_MAX: Final = 1 * MIB
SLOT_MARK_BYTES_MAX: Final = 4 * KIB

# Unpacking
TAR_READ_BYTES_MAX: Final = 1 * MIB  # longest extension header of a tar entry that is read at once
WHEEL_DIRECTORY_BYTES_MAX: Final = 4 * MIB  # central directory of a wheel; zipfile holds all of it in memory
BOMB_FREE_BYTES: Final = 1 * MIB  # output that is never taken for a bomb, however well it was compressed

# The spool
SPOOL_BYTES_DEFAULT: Final = 64 * MIB
SPOOL_BYTES_MIN: Final = 64 * KIB
SPOOL_RECORD_OVERHEAD_BYTES: Final = 32  # what a record costs on disk beside its own bytes, about
SPOOL_BUSY_MS: Final = 5_000

# Transport
CONNECT_MS_MAX: Final = 10_000
STALL_MS_MAX: Final = 20_000  # longest silence in the middle of an answer
WINDOW_MS: Final = 60_000  # within each such window an answer has to bring `WINDOW_BYTES_MIN`
WINDOW_BYTES_MIN: Final = 4 * KIB
FETCH_MS_MAX: Final = 6 * 3600 * 1000  # one attempt at one blob; what came is kept and resumed
DOCUMENT_MS_MAX: Final = 60_000  # one attempt at one small document
REDIRECTS_MAX: Final = 3
RESTARTS_MAX: Final = 1  # fresh starts of one blob after resumed bytes turned out to be wrong
ERROR_BYTES_MAX: Final = 64 * KIB  # of the body of an error

# Deltas
DELTA_FLOOR_BYTES: Final = 40 * MIB  # what an interpreter with numpy and zstandard takes before it decodes anything
DELTA_RECORD_BYTES: Final = 2 * (1 * MIB + 64 * KIB)  # two records of a decoding: the old one, and what replaces it
DELTA_TRIES_MAX: Final = 2  # deltas tried for one blob before it is fetched whole
DELTA_FETCH_FAILURES_MAX: Final = 3  # of the network in a row that bring no byte of a delta, before it is given up
DELTA_STUCK_MAX: Final = 3  # starts of a decoding that come to no further checkpoint and to no end
DELTA_STARTS_MAX: Final = (
    64  # starts of one decoding that come to no end; each checkpoint is progress, but not for ever
)

# Metadata (the sizes python-tuf's own client allows, the top targets smaller because bins hold the list)
ROOT_BYTES_MAX: Final = 512_000
TIMESTAMP_BYTES_MAX: Final = 16_384
SNAPSHOT_BYTES_MAX: Final = 2_000_000
TARGETS_BYTES_MAX: Final = 5_000_000
ROOT_ROTATIONS_MAX: Final = 256  # in one refresh
DELEGATIONS_MAX: Final = 32  # visited in the search for one target
RECEIPT_BYTES_MAX: Final = 1 * MIB  # what the process that verifies answers with
VERIFY_MS_MAX: Final = 600_000  # when it is given up
CLOCK_STEP_BACK_MS_MAX: Final = 24 * 3600 * 1000
CLOCK_SKEW_MS_MAX: Final = 5 * 60_000  # behind the registry's clock, without being called wrong

# Enrolment
ENROL_BYTES_MAX: Final = 4 * MIB
TOKEN_CHARS_MAX: Final = 512
CERTIFICATE_BYTES_MAX: Final = 256 * KIB  # a chain, a key or a file of authorities

# The device's key
KEY_URI_CHARS_MAX: Final = 1024
KEY_CHANGES_MAX: Final = 3  # renewals of the key in the middle of one signature
PIN_BYTES_MAX: Final = 256
TOKEN_MS: Final = 5 * 60_000  # life of a token that the device signs for its requests
TOKEN_SPARE_MS: Final = 60_000  # before its end another one is made
TOKEN_FRESH_MS: Final = DEVICE_TOKEN_MS_MAX  # life of one for a process that cannot make another
TOKEN_CLOCK_MS_MIN: Final = 1_735_689_600_000  # 2025: what a registry says of the time must lie between these two
TOKEN_CLOCK_MS_MAX: Final = 4_102_444_800_000  # 2100
KEYHOLDER_IDLE_MS: Final = 10_000  # the process that holds the key ends when it had nothing to sign for so long
KEYHOLDER_MS_MAX: Final = 30_000  # how long one signature may take, the start of that process included
KEYHOLDER_LINE_BYTES_MAX: Final = 1 * MIB  # of one question to it, or of one answer
KEYHOLDER_TRIES_MAX: Final = 2  # it may just have ended

# Renewal of the certificate
RENEW_AFTER: Final = (2, 3)  # of its life, and
RENEW_SPREAD: Final = (1, 12)  # of its life later at most, so that a fleet does not come all at once
RENEW_MS_MAX: Final = 180_000  # one attempt
RENEW_RETRY_MS_FIRST: Final = 60_000
RENEW_RETRY_MS_MAX: Final = 6 * 3600 * 1000
RENEW_GAP_MS: Final = (
    3600 * 1000
)  # between two that went well; a clock that is far ahead would have one after the other
RENEW_ANSWER_BYTES_MAX: Final = 64 * KIB

# Reports
REPORTING_STOP_MS_MAX: Final = 5_000  # how long the last report may take to be signed when the agent ends

# The link
LINK_RETRY_MS_FIRST: Final = 1_000
LINK_RETRY_MS_MAX: Final = 120_000
LINK_KEEPALIVE_S: Final = 60
LINK_STOP_MS_MAX: Final = 5_000
LINK_TICK_MS: Final = 1_000  # how often paho looks at its timers
LINK_OUTBOX_MAX: Final = 16  # messages handed over and not yet given to paho
LINK_INFLIGHT_MAX: Final = 32  # messages given to paho and not yet acknowledged by the broker

# The link over Azure IoT Hub
HUB_MESSAGE_BYTES_MAX: Final = 255 * KIB  # the hub takes 256 KiB, properties included
HUB_OUTPUTS_MAX: Final = 64  # messages for outputs that the link has taken and the hub has not
HUB_OUTPUT_TRIES_MAX: Final = 8  # connections that may end with the same one underway before it is given up
HUB_INBOX_MAX: Final = 64  # heard and not yet looked at; beyond, the oldest go
HUB_OPEN_MS_MAX: Final = 30_000
HUB_SEND_MS_MAX: Final = 30_000
HUB_ABANDONED_MAX: Final = 4  # calls of the SDK that never came back; with more, the next wait is
HUB_PATIENCE_MS: Final = 3_600_000  # this long, so that a mute hub costs one thread an hour at most
HUB_TWIN_MS: Final = 10 * 60 * 1000  # a twin is read again, because patches can be lost on their way
HUB_REPORTED_MS_MIN: Final = 5_000  # between two writes of reported properties
HUB_REPORTED_MS_MAX: Final = 5 * 60 * 1000  # after refusals, which double the wait
HUB_METHODS_MAX: Final = 4  # direct methods under way at once
HUB_METHOD_BYTES_MAX: Final = 96 * KIB  # of an answer; the hub takes 128 KiB
HUB_TOKEN_S_MIN: Final = 3_600  # life of a token; the SDK renews it two minutes before, by connecting anew
HUB_TOKEN_S_MAX: Final = 5_400
HUB_ASSIGNED_BYTES_MAX: Final = 4 * KIB
HUB_SECRET_BYTES_MAX: Final = 256 * KIB  # a connection string or a file of authorities

# The device owner's say in updates
SCRUB_MS_DEFAULT: Final = 24 * 3600 * 1000  # between two readings of everything that is live
SCRUB_MS_MIN: Final = 60_000
SCRUB_MS_MAX: Final = 90 * 24 * 3600 * 1000
HOOK_MS_DEFAULT: Final = 60_000  # how long a hook may run
HOOK_MS_MIN: Final = 100
HOOK_MS_MAX: Final = 3600 * 1000
HOOK_WAIT_MS_DEFAULT: Final = 300_000  # a hook that asks to wait and does not say how long
HOOK_WAIT_MS_MIN: Final = 1_000
HOOK_WAIT_MS_MAX: Final = 24 * 3600 * 1000
HOOK_OUTPUT_BYTES_MAX: Final = 64 * KIB  # of what a hook says
HOOK_DETAIL_CHARS_MAX: Final = 200  # of what it says that goes into an error

# A module of IoT Edge
ENROL_RETRY_MS_FIRST: Final = 1_000  # until the registry can be reached at the first start
ENROL_RETRY_MS_MAX: Final = 60_000
ENROL_TRIES_MAX: Final = 20  # about a quarter of an hour; IoT Edge starts the container anew then
HEALTH_MS_MAX: Final = 5_000  # each step of a health check; the container engine's own bound is above it

# The control socket
CONTROL_BYTES_MAX: Final = 1 * MIB
CONTROL_MS_MAX: Final = 30_000
RELOAD_MS_MAX: Final = 60_000  # from one program of the agent to the next
RELOAD_POLL_MS: Final = 100

# Configuration
CONFIG_BYTES_MAX: Final = 256 * KIB
PORT_MAX: Final = 65_535
