"""Bounds of the registry alone. Sizes in bytes, times in milliseconds unless the name says otherwise."""

from typing import Final

from edge_contract.limits import GIB, KIB, MIB

# Requests
REQUEST_BYTES_MAX: Final = 1 * MIB  # a JSON document of the API, apart from the two below
METADATA_REQUEST_BYTES_MAX: Final = 96 * MIB  # a publisher's new targets and bins
QUERY_CHARS_MAX: Final = 20_000
QUERY_ROWS_MAX: Final = 10_000
PAGE_ITEMS_MAX: Final = 200
PAGE_ITEMS_DEFAULT: Final = 50
CURSOR_CHARS_MAX: Final = 512

# Models
FILES_MAX: Final = 256
DESCRIPTION_CHARS_MAX: Final = 10_000
PROPERTIES_MAX: Final = 64
PROPERTY_CHARS_MAX: Final = 4_096
ALIASES_MAX: Final = 64
SNIFF_BYTES: Final = 4_096

# Deployments
CONDITION_CHARS_MAX: Final = 4_096
CONDITION_DEPTH_MAX: Final = 32
CONDITION_TERMS_MAX: Final = 256
PRIORITY_MAX: Final = 1_000_000
LABEL_CHARS_MAX: Final = 128

# Devices
ONLINE_MS: Final = 180_000  # a device counts as online for three report periods

DEVICE_CHANGES_MAX: Final = 1_000  # of one device's identity; older ones are forgotten

# Tokens
DEVICE_TOKEN_CHARS_MAX: Final = 1_024
DEVICE_TOKEN_LEEWAY_MS: Final = 60_000  # by which a device's clock may differ from ours
KEYS_HELD_MAX: Final = 4_096  # public keys kept in memory, ready to verify with
TOKENS_MAX: Final = 1_000
TOKEN_CHARS_MAX: Final = 256
ENROLMENT_TTL_S_DEFAULT: Final = 24 * 3_600
ENROLMENT_TTL_S_MAX: Final = 90 * 24 * 3_600

# Database
BUSY_TIMEOUT_MS: Final = 15_000
DATABASE_ATTEMPTS_MAX: Final = 6
STATEMENT_VALUES_MAX: Final = 500  # in one IN (…)
METADATA_BYTES_MAX: Final = 64 * MIB

# Nudges
NUDGES_WAITING_MAX: Final = 200_000

# Serving
STOP_TIMEOUT_S: Final = 10
CONNECTIONS_WAITING_MAX: Final = 1_024
HEADER_BYTES_MAX: Final = 32 * KIB

# The client
CLIENT_ATTEMPTS_MAX: Final = 4
CLIENT_BACKOFF_MS: Final = 200
CLIENT_BACKOFF_MS_MAX: Final = 5_000
CLIENT_ANSWER_BYTES_MAX: Final = 256 * MIB
CLIENT_CHUNK_BYTES: Final = 1 * MIB
TEXT_EXCERPT_CHARS: Final = 300

# OCI content
MANIFEST_REFERENCES_MAX: Final = 4_096  # digests one manifest or index may list
REFERENCE_TAGS_MAX: Final = 16  # tags that may come along with a manifest put by digest
TAGS_PAGE_MAX: Final = 1_000
REFERRERS_PAGE_MAX: Final = 200
REFERRERS_BYTES_MAX: Final = 2 * MIB  # of annotations in one page of referrers
UPLOADS_MAX: Final = 1_024
UPLOAD_IDLE_MS_MAX: Final = 24 * 3_600 * 1_000  # an upload that stands still for longer is forgotten
UPLOAD_SWEEP_MS: Final = 3_600 * 1_000
UPLOAD_CHECKPOINT_BYTES: Final = 64 * MIB  # at most this much of one request is lost when the power fails
UPLOAD_BATCH_BYTES: Final = 1 * MIB
UPLOAD_SILENCE_S_MAX: Final = 60  # how long a request's body may stand still
ORPHAN_AGE_MS: Final = 24 * 3_600 * 1_000
MANIFESTS_HELD_MAX: Final = 256  # of which the blobs are known without reading them again
READERS_MAX: Final = 8  # database connections kept for reading

# Trust
TARGETS_BYTES_MAX: Final = 5_000_000  # what a client of the reference implementation accepts
ROOT_BYTES_MAX: Final = 512_000
METADATA_HISTORY: Final = 8  # former versions kept for clients that are in the middle of a refresh
BINS_MAX: Final = 4_096
SNAPSHOT_LIFE_MS: Final = 7 * 24 * 3_600 * 1_000
TIMESTAMP_LIFE_MS: Final = 24 * 3_600 * 1_000
DIRECTOR_TARGETS_LIFE_MS: Final = 7 * 24 * 3_600 * 1_000
METADATA_ATTEMPTS_MAX: Final = 5
PARSED_BINS_MAX: Final = 64
KEY_GENERATIONS_MAX: Final = 64  # of one online key; each rotation adds one
VERSION_MAX: Final = 2**31 - 1  # of metadata that is signed here; above it numbering starts again, under new keys

# Certificates
CSR_CHARS_MAX: Final = 16 * KIB
ENROL_REQUEST_BYTES_MAX: Final = 32 * KIB
AUTHORITY_DAYS: Final = 20 * 365
DEVICE_CERTIFICATE_DAYS: Final = 90  # unless the configuration says otherwise
DEVICE_CERTIFICATE_DAYS_MAX: Final = 5 * 365
SERVER_CERTIFICATE_DAYS: Final = 5 * 365
CLOCK_SKEW_MS: Final = 24 * 3_600 * 1_000
SERVER_NAMES_MAX: Final = 32

# The collector
FLUSH_MS: Final = 250  # how long a record waits for company before its file is written
FLUSH_MS_MAX: Final = 60_000
FLUSH_QUIET_MS: Final = 20  # a broker whose window is full falls silent; then waiting longer gains nothing
FLUSH_QUIET_MESSAGES: Final = 16  # below the 20 unacknowledged messages that mosquitto sends by default
FLUSH_ROWS_MAX: Final = 50_000
FLUSH_BYTES_MAX: Final = 32 * MIB
FLUSH_MESSAGES_MAX: Final = 2_048
QUEUE_MESSAGES_MAX: Final = 2_048  # between the connection and the writer
QUEUE_BYTES_MAX: Final = 64 * MIB
STORE_RETRY_MS: Final = 500
STORE_RETRY_MS_MAX: Final = 30_000
WATERMARKS_KEPT_MAX: Final = 100_000
REPORTS_AT_ONCE_MAX: Final = 256
REPORTS_A_DEVICE_MAX: Final = 32  # of one device in one transaction
TOPIC_CHARS_MAX: Final = 256
DROPS_LOGGED_A_MINUTE_MAX: Final = 20

# The lake
LAKE_MEMORY_BYTES: Final = 256 * MIB
ROW_BYTES_MAX: Final = 1 * MIB  # one record as JSON; a body of 64 KiB may double when its quotes are escaped
ORPHAN_GRACE_MS: Final = 120_000  # longer than a query may take
SWEEP_MS: Final = 600_000
COMPACT_MS: Final = 30_000
COMPACT_FILES_MIN: Final = 32  # small files of one day that are worth merging
COMPACT_FILES_MAX: Final = 512
COMPACT_BYTES_MAX: Final = 64 * MIB  # a file of this size is left alone

# Queries
QUERY_ROWS_DEFAULT: Final = 1_000
QUERY_BYTES_MAX: Final = 8 * MIB
QUERY_SECONDS_MAX: Final = 30
QUERY_MEMORY_BYTES: Final = 512 * MIB
QUERY_ADDRESS_BYTES: Final = 2 * GIB  # of address space; most of it is reserved and never touched
QUERIES_AT_ONCE_MAX: Final = 2

# The broker
LINK_RETRY_MS: Final = 250
LINK_RETRY_MS_MAX: Final = 10_000
LINK_DEADLINE_MS: Final = 10_000  # from the first byte to the last granted subscription
LINK_KEEPALIVE_S: Final = 30
LINK_OUT_MAX: Final = 20_000  # messages waiting to be sent
LINK_INFLIGHT_MAX: Final = 200
ROSTER_COMMANDS_MAX: Final = 100  # in one message to the broker
ROSTER_ANSWER_MS: Final = 10_000
ROSTER_SYNC_MS: Final = 300_000
ROSTER_RETRY_MS: Final = 1_000
ROSTER_WAITING_MAX: Final = 200_000
BROKER_INFLIGHT_MAX: Final = 512
BROKER_QUEUED_MAX: Final = 10_000
BROKER_QUEUED_BYTES_MAX: Final = 64 * MIB
BROKER_MESSAGE_BYTES_MAX: Final = 512 * KIB

# Azure IoT Hub
HUB_KNOWN_S: Final = 30.0  # how long an address, or that there is none, is remembered
HUB_KNOWN_MAX: Final = 20_000
HUB_TIMEOUT_S: Final = 20
HUB_RETRY_MS: Final = 1_000
HUB_RETRY_MS_MAX: Final = 120_000
HUB_SECRET_BYTES_MAX: Final = 16 * 1024
HUB_ITEMS_MAX: Final = 100  # rows of one page of a query
HUB_PAGES_MAX: Final = 1_000
HUB_WRITES_PER_S: Final = 40  # S1 takes 50 a second, and others write too
HUB_WRITES_PER_S_MAX: Final = 10_000
HUB_TWINS_S: Final = 60.0  # between two readings of reports in twins
HUB_TWINS_S_MAX: Final = 86_400
HUB_CHECKPOINT_S: Final = 1.0  # between two checkpoints of one partition
HUB_PARTITIONS_MAX: Final = 128
HUB_PREFETCH_MAX: Final = 10_000
