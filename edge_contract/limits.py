"""Named bounds that more than one part of Lighterman has to agree on. Sizes in bytes, times in milliseconds."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# Documents
JSON_DEPTH_MAX: Final = 32
TEXT_CHARS_MAX: Final = 4096  # of a text that says no tighter bound of its own
MANIFEST_BYTES_MAX: Final = 4 * MIB  # the size a distribution-spec registry has to accept
MANIFEST_LAYERS_MAX: Final = 512
INDEX_MANIFESTS_MAX: Final = 64
RUNTIME_BYTES_MAX: Final = 256 * KIB
MEMBERS_MAX: Final = 16
TENSORS_MAX: Final = 64
STEPS_MAX: Final = 16  # of one pipeline
BATCH_ROWS_MAX: Final = 1_024
BATCH_WAIT_US_MAX: Final = 1_000_000
TENSOR_RANK_MAX: Final = 16
BINDINGS_MAX: Final = 16  # of one bundle
TOPIC_CHARS_MAX: Final = 256
TOPIC_LEVELS_MAX: Final = 16
WAITING_DEFAULT: Final = 64  # messages of one binding that wait for its model
WAITING_MAX: Final = 1_024
GOLDEN_BYTES_MAX: Final = 64 * MIB
GOLDEN_HEADER_BYTES_MAX: Final = 1 * MIB
ANNOTATIONS_MAX: Final = 64
ANNOTATION_BYTES_MAX: Final = 16 * KIB

# Blobs
BLOB_BYTES_MAX: Final = 64 * GIB
CHUNK_BYTES: Final = 256 * KIB

# Names
NAME_CHARS_MAX: Final = 64
REPOSITORY_CHARS_MAX: Final = 255
PATH_CHARS_MAX: Final = 255
PATH_DEPTH_MAX: Final = 16
TAGS_MAX: Final = 64
TAG_CHARS_MAX: Final = 256

# Unpacking (tar layers and wheels)
UNPACK_ENTRIES_MAX: Final = 20_000
UNPACK_RATIO_MAX: Final = 200  # uncompressed over compressed bytes; above it an archive is taken for a bomb
UNPACK_BYTES_MAX: Final = 8 * GIB

# Messages
REPORT_BYTES_MAX: Final = 176 * KIB
ENVELOPE_BYTES_MAX: Final = 240 * KIB  # a report in base64, with its signature
NUDGE_BYTES_MAX: Final = 1 * KIB
BATCH_BYTES_MAX: Final = 256 * KIB
BATCH_SAMPLES_MAX: Final = 2_000
SAMPLE_BYTES_MAX: Final = 64 * KIB
SAMPLE_DEPTH_MAX: Final = 24  # of a sample's body; a batch around it stays within `JSON_DEPTH_MAX`
DETAIL_CHARS_MAX: Final = 500
MODULES_MAX: Final = 16
WINDOWS_MAX: Final = 14  # maintenance windows of a policy

# Azure IoT Hub (docs/adr/0014-iot-hub-link.md)
HUB_PART_CHARS: Final = 3 * KIB  # of one text in a twin, which may have 4 KiB
HUB_REPORT_CHARS_MAX: Final = 24 * KIB  # of a signed report in reported properties, which have 32 KiB in all
HUB_ACK_BOOTS_MAX: Final = 4  # that acknowledgements in a twin name

# Terms of a policy
CPUS_MAX: Final = 1_024  # logical processors of a device
NICE_MAX: Final = 19
WORKER_BYTES_MAX: Final = 4 * 1_024 * GIB
RATIO_MAX: Final = 1_000.0  # of latencies, and of drifts in deviations, that a policy may name
PREDICTIONS_MAX: Final = 1_000_000  # compared in one trial
TRIAL_MS_MAX: Final = 24 * 3600 * 1000

# Times that both ends of a wire count on
PROBATION_MS_DEFAULT: Final = 2_000
PROBATION_MS_MAX: Final = 7 * 24 * 3600 * 1000
PERIOD_MS_MIN: Final = 1_000  # of polls and of reports
PERIOD_MS_MAX: Final = 24 * 3600 * 1000
POLL_MS_DEFAULT: Final = 60_000
REPORT_MS_DEFAULT: Final = 60_000
DEVICE_TOKEN_MS_MAX: Final = 10 * 60 * 1000  # longest life of a token that a device signs for itself

DELTAS_MAX: Final = 64
"""Deltas that signed metadata list for one bundle."""

DELTA_PEAK_BYTES_MAX: Final = 16 * 1024 * 1024
"""Memory that decoding any delta may take beside Python, numpy and zstandard."""
