"""Bounds and defaults of deployment files. Sizes in bytes, times in seconds."""

from typing import Final

from edge_contract.limits import KIB, MIB

OWN_BYTES: Final = 64 * MIB
"""Memory of the supervising process beside the worker, with room to spare."""
BODIES_BYTES: Final = 128 * MIB
"""Bodies of requests that a worker takes at once."""
PEAK_GROWTH: Final = (5, 4)
"""The memory limit has the measured load peak so many times: the supervisor refuses to load what would take more than
nine tenths of what is free, and a model's first runs take a little more than its loading."""

STORE_OWN_BYTES: Final = 64 * MIB
PRINTED_BYTES: Final = 64 * MIB
"""What the node keeps of a container's output counts as its disk space too."""
WHEEL_GROWTH: Final = 9
"""A wheel and what it unpacks to, over the wheel; the store of a device plans with the same."""
TAR_GROWTH: Final = 5

CPU_MILLIS_DEFAULT: Final = 500
CPU_MILLIS_MAX: Final = 1_024_000
REPLICAS_MIN_DEFAULT: Final = 2
REPLICAS_MAX_DEFAULT: Final = 10
REPLICAS_MAX: Final = 5_000
UTILIZATION_DEFAULT: Final = 70

START_S_DEFAULT: Final = 300
"""For pulling, loading and proving; a service that has not answered by then is started again."""
LINGER_S_DEFAULT: Final = 5
DRAIN_S_DEFAULT: Final = 30
ENDING_S: Final = 15
"""Beyond lingering and draining, for the processes to end."""
PROBE_S: Final = 2
PROBE_TIMEOUT_S: Final = 5
ALIVE_S: Final = 10
ALIVE_FAILURES: Final = 6
"""A worker that crashed is restarted inside the service; whoever looks from outside gives it a minute."""

PORT_DEFAULT: Final = 8080
USER: Final = 65_532
"""The user and group of the image; any other number does as well."""

NAME_CHARS_MAX: Final = 52
IMAGE_CHARS_MAX: Final = 1 * KIB
TRUST_BYTES_MAX: Final = 400 * KIB
"""Of root metadata and of certificates each: a ConfigMap holds one mebibyte."""
