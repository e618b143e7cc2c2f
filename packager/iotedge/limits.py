"""Bounds that IoT Hub and the IoT Edge agent set. Sizes in bytes or characters as named."""

from typing import Final

from edge_contract.limits import KIB, MIB

TEMPLATE_BYTES_MAX: Final = 1 * MIB
CREATE_OPTIONS_BYTES_MAX: Final = 64 * KIB
"""Of a file with create options; what goes into a manifest has the bound of a module's desired properties besides."""

MANIFEST_BYTES_MAX: Final = 1 * MIB
"""Of a whole document; each of its parts has a bound that is met much earlier."""
CONFIGURATION_ID_CHARS_MAX: Final = 128
PRIORITY_MAX: Final = 2**31 - 1
LABELS_MAX: Final = 10
MODULES_MAX: Final = 50
MODULE_CHARS_MAX: Final = 128
IMAGE_CHARS_MAX: Final = 1 * KIB
START_ORDER_MAX: Final = 2**32 - 1
ROUTE_PRIORITY_MAX: Final = 9
ROUTE_SECONDS_MAX: Final = 2**32 - 1

DESIRED_CHARS_MAX: Final = 32 * KIB
"""Of the desired properties of one module, counted as the hub counts them."""
DESIRED_KEY_BYTES_MAX: Final = 1 * KIB
DESIRED_TEXT_BYTES_MAX: Final = 4 * KIB
DESIRED_DEPTH_MAX: Final = 10
DESIRED_WHOLE_MAX: Final = 2**52 - 1
DESIRED_WHOLE_MIN: Final = -(2**52)
NUMBER_CHARS: Final = 8
FLAG_CHARS: Final = 4
"""What a number and a flag count in desired properties."""

CHUNK_BYTES: Final = 512
"""The agent reads create options in parts of this length."""
CHUNKS_MAX: Final = 100
