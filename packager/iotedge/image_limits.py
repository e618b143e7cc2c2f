"""Bounds of images of modules. Sizes in bytes, times in seconds unless the name says otherwise."""

from typing import Final

from edge_contract.limits import GIB, KIB, MIB

DOCUMENT_BYTES_MAX: Final = 4 * MIB
"""Of a manifest, an index or a configuration of an image."""
LAYERS_MAX: Final = 120
"""Of an image in all: container engines mount at most 127 or 128."""
OWN_LAYERS_MAX: Final = 32
"""Blobs of a bundle that get a layer each; what is beyond shares one."""
OWN_LAYER_BYTES_MIN: Final = 1 * MIB
"""A blob of this size gets a layer of its own, so that the next image with the same blob need not carry it again."""
PLATFORMS_MAX: Final = 16
GZIP_LEVEL: Final = 6

BASE_LAYER_BYTES_MAX: Final = 8 * GIB
BASE_ENTRIES_MAX: Final = 1_000_000
"""Entries of the base's layers that are looked through for an interpreter."""
BASE_UNPACKED_BYTES_MAX: Final = 32 * GIB

WHEELS_MAX: Final = 1_000
WHEEL_DOCUMENT_BYTES_MAX: Final = 8 * MIB
"""Of a wheel's METADATA or RECORD."""
LOCK_BYTES_MAX: Final = 16 * MIB
GLIBC_MINOR_MAX: Final = 60
MEMBERS_SEEN_MAX: Final = 200_000
"""Files that the wheels of one platform hold in all."""

ENV_MAX: Final = 256
ENV_BYTES_MAX: Final = 32 * KIB

AUTH_BYTES_MAX: Final = 1 * MIB
TOKEN_BYTES_MAX: Final = 64 * KIB
HTTP_TIMEOUT_S: Final = 60.0
HTTP_ATTEMPTS_MAX: Final = 3
HTTP_PAUSE_S: Final = 1.0
REDIRECTS_MAX: Final = 5
ERROR_CHARS_MAX: Final = 200
LINK_DEPTH_MAX: Final = 8
"""Links that are followed to an interpreter."""

HEALTH_INTERVAL_S: Final = 30
HEALTH_TIMEOUT_S: Final = 20
HEALTH_START_S: Final = 120
HEALTH_RETRIES: Final = 3
"""What the health check of the image says by default; emulated or small processors take seconds to start Python."""
HEADER_BYTES_MAX: Final = 1 * MIB  # of one header of a layer: a long name, or attributes
