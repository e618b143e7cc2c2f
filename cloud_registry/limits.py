"""Bounds of the registry alone. Sizes in bytes, times in milliseconds unless the name says otherwise."""

from typing import Final

from edge_contract.limits import KIB, MIB

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
NUMBERING_ATTEMPTS_MAX: Final = 20

# Deployments
CONDITION_CHARS_MAX: Final = 4_096
CONDITION_DEPTH_MAX: Final = 32
CONDITION_TERMS_MAX: Final = 256
PRIORITY_MAX: Final = 1_000_000
LABEL_CHARS_MAX: Final = 128

# Tokens
TOKENS_MAX: Final = 1_000
TOKEN_CHARS_MAX: Final = 256
ENROLMENT_TTL_S_DEFAULT: Final = 24 * 3_600
ENROLMENT_TTL_S_MAX: Final = 90 * 24 * 3_600

# Database
BUSY_TIMEOUT_MS: Final = 15_000
DATABASE_ATTEMPTS_MAX: Final = 6
METADATA_BYTES_MAX: Final = 64 * MIB

# Nudges
NUDGES_WAITING_MAX: Final = 200_000

# Serving
STOP_TIMEOUT_S: Final = 10

# The client
CLIENT_ATTEMPTS_MAX: Final = 4
CLIENT_BACKOFF_MS: Final = 200
CLIENT_BACKOFF_MS_MAX: Final = 5_000
CLIENT_ANSWER_BYTES_MAX: Final = 256 * MIB
CLIENT_CHUNK_BYTES: Final = 1 * MIB
TEXT_EXCERPT_CHARS: Final = 300
BLOB_READ_BYTES_MAX: Final = 64 * KIB * KIB
