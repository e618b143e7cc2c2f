"""Named bounds of the packager. Sizes in bytes, times in seconds unless the name says otherwise."""

from typing import Final

from edge_contract.limits import GIB, KIB, MIB

COPY_BYTES: Final = 1 * MIB
"""Chunk in which files are copied and hashed."""

# Specification files
SPEC_BYTES_MAX: Final = 1 * MIB
CODE_FILES_MAX: Final = 5_000
DOC_BYTES_MAX: Final = 64 * MIB
GLOB_FILES_MAX: Final = 256

# Reading ONNX files
PROTO_DEPTH_MAX: Final = 64
PROTO_KEPT_BYTES_MAX: Final = 64 * MIB
"""What is left of a model when the numbers of its tensors are skipped."""
PROTO_FIELD_KEPT_BYTES_MAX: Final = 64 * KIB
PROTO_VARINT_BYTES_MAX: Final = 10
SCRIPT_BYTES_MAX: Final = 4 * MIB

# Running a model here
PROBE_SECONDS_DEFAULT: Final = 600.0
PROBE_OUTPUT_BYTES_MAX: Final = 64 * KIB
PROBE_RESULT_BYTES_MAX: Final = 4 * MIB
GOLDEN_ROWS_MAX: Final = 100_000
PEAK_STEP_BYTES: Final = 16 * MIB
"""A measured load peak is rounded up to a multiple of this."""
WHEEL_BYTES_MAX: Final = 2 * GIB
DOWNLOAD_SECONDS_MAX: Final = 1_800.0

# Keys and metadata
KEY_FILE_BYTES_MAX: Final = 64 * KIB
KEYRING_BYTES_MAX: Final = 1 * MIB
KEYS_PER_ROLE_MAX: Final = 16
KEYS_MAX: Final = 2_000
"""Keys in one folder, retired ones and those of many models included."""
PASSPHRASE_CHARS_MIN: Final = 8
METADATA_BYTES_MAX: Final = 16 * MIB
ROOT_STEPS_MAX: Final = 256
"""New roots accepted in one go (python-tuf uses the same bound)."""
BIN_BITS: Final = 4
"""Hash bins at first, as a power of two: a snapshot lists each of them, and devices read snapshots."""
BIN_BITS_MAX: Final = 8
LIST_MAX: Final = 512
"""Bundles in one list before it is split: a model's own into bins, few bins into many."""
EXPIRES_DAYS_DEFAULT: Final = 365
EXPIRES_DAYS_MAX: Final = 3_650
SIGN_ATTEMPTS_MAX: Final = 8
SIGN_BACKOFF_S: Final = 0.05
SIGN_BACKOFF_S_MAX: Final = 2.0

# The registry
HTTP_TIMEOUT_S: Final = 30.0
WAIT_SECONDS_DEFAULT: Final = 600.0
WAIT_POLL_S: Final = 0.25
WAIT_FAILURES_MAX: Final = 20
"""Polls in a row that may fail for want of a network before waiting is given up."""

# Model registries of others (MLflow, Azure ML)
MLFLOW_BYTES_DEFAULT: Final = 8 * GIB
MLFLOW_FILES_MAX: Final = 1_000
MLFLOW_DOCUMENT_BYTES_MAX: Final = 1 * MIB
MLFLOW_OVERRUN_BYTES_MAX: Final = 64 * MIB
"""How far a download may grow past its announced size before writing fails; then it is refused for its size."""
MLFLOW_VERSIONS_MAX: Final = 10_000
"""Versions looked through for the newest one."""
MLFLOW_PROPERTIES_MAX: Final = 56
"""Properties of an imported version; what the model file says of itself needs the rest of 64."""
MLFLOW_RETRIES_MAX: Final = 2
MLFLOW_TIMEOUT_S: Final = 30
IMPORTED_PAGES_MAX: Final = 100
"""Pages of versions looked through for one that was imported before."""

# Deltas
DELTA_BUDGET_S_DEFAULT: Final = 300.0
DELTA_BUDGET_BYTES_DEFAULT: Final = 8 * GIB
DELTA_JOBS_MAX: Final = 64
"""Files encoded at once at most."""
LINK_KBPS_DEFAULT: Final = 1_000.0
"""Speed of a device's link that a forecast assumes: 1 Mbit/s."""
EVALUATION_S_MAX: Final = 3_600.0
"""How long an author's evaluation of one model may take."""
SNAP_DROP_DEFAULT: Final = 0.005
"""How far a metric of a snapped model may fall below the trained one's."""
