"""Bounds of the emulator; those of the service are marked with (hub) and are what its documentation says of tier S1."""

from typing import Final

from edge_contract.limits import KIB, MIB

# MQTT
PORT: Final = 8883  # the device SDK dials no other
PACKET_BYTES_MAX: Final = 512 * KIB
TOPIC_BYTES_MAX: Final = 4 * KIB
CLIENTS_MAX: Final = 2_000
UNACKED_MAX: Final = 64  # deliveries that one client has not acknowledged
CONNECT_S_MAX: Final = 10.0
KEEPALIVE_S_MAX: Final = 1_767  # (hub)
KEEPALIVE_FACTOR: Final = 1.5  # (hub)
OUT_BYTES_MAX: Final = 4 * MIB  # waiting for one client that does not read
SUBSCRIPTIONS_MAX: Final = 16  # of one client; (hub) documents five topics

# Messages (hub)
D2C_BYTES_MAX: Final = 256 * KIB
C2D_BYTES_MAX: Final = 64 * KIB
C2D_WAITING_MAX: Final = 50
C2D_DELIVERIES_MAX: Final = 10
C2D_TTL_MS: Final = 3_600_000
C2D_TTL_MS_MAX: Final = 48 * 3_600_000
METHOD_BYTES_MAX: Final = 128 * KIB
METHOD_S_MIN: Final = 5
METHOD_S_MAX: Final = 300
METHOD_S_DEFAULT: Final = 30
TELEMETRY_KEPT_MAX: Final = 200_000
INPUTS_WAITING_MAX: Final = 10_000

# Twins (hub)
TAGS_CHARS_MAX: Final = 8 * KIB
PROPERTIES_CHARS_MAX: Final = 32 * KIB
TWIN_KEY_BYTES_MAX: Final = 1 * KIB
TWIN_TEXT_BYTES_MAX: Final = 4 * KIB
TWIN_DEPTH_MAX: Final = 10
TWIN_WHOLE_MAX: Final = 2**52 - 1
TWIN_WHOLE_MIN: Final = -(2**52)
TWIN_NUMBER_CHARS: Final = 8
TWIN_FLAG_CHARS: Final = 4

# Identities
DEVICES_MAX: Final = 100_000
MODULES_MAX: Final = 50  # (hub) of one device
NAME_CHARS_MAX: Final = 128
KEY_BYTES: Final = 32

# Rates a second of a hub of one unit S1 (hub)
CONNECTS_PER_S: Final = 100
D2C_PER_S: Final = 100
C2D_PER_S: Final = 2
TWIN_READS_PER_S: Final = 100
TWIN_WRITES_PER_S: Final = 50
METHODS_PER_S: Final = 40
UNITS_MAX: Final = 200

# Storms: so many connects of one client within so many milliseconds are told and slowed down
STORM_CONNECTS: Final = 10
STORM_MS: Final = 10_000

# Provisioning
DPS_RETRY_S: Final = 1
ENROLMENTS_MAX: Final = 100_000
OPERATIONS_MAX: Final = 10_000

# Administration
FAULTS_MAX: Final = 100
FAULT_COUNT_MAX: Final = 1_000_000
DELAY_MS_MAX: Final = 600_000
DRAIN_MAX: Final = 10_000
