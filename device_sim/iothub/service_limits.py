"""Bounds of the emulator's service side; those of the service are marked with (hub)."""

from typing import Final

from edge_contract.limits import KIB, MIB

# Queries
QUERY_CHARS_MAX: Final = 8 * KIB
QUERY_DEPTH_MAX: Final = 32  # expressions within expressions
QUERY_OPERATORS_MAX: Final = 150  # so that no chain of them makes a tree too deep to follow
QUERY_ITEMS_MAX: Final = 100  # of a list or a selection
QUERY_PAGE_DEFAULT: Final = 100  # (hub)
QUERY_PAGE_MAX: Final = 1_000  # (hub)

# Configurations
CONFIGURATIONS_MAX: Final = 100  # (hub)
CONFIGURATION_METRICS_MAX: Final = 5  # (hub)
CONFIGURATION_LABELS_MAX: Final = 20
CONFIGURATION_ID_CHARS_MAX: Final = 128  # (hub)
PRIORITY_MAX: Final = 2**31 - 1

# Service API
BODY_BYTES_MAX: Final = 1 * MIB
LISTED_MAX: Final = 1_000  # (hub)
BULK_MAX: Final = 100  # (hub)

# Event Hubs endpoint
PARTITIONS_DEFAULT: Final = 4  # (hub)
PARTITIONS_MAX: Final = 32  # (hub)
GROUPS_MAX: Final = 20  # (hub)
READERS_MAX: Final = 5  # (hub) of a partition and a consumer group
AMQP_FRAME_BYTES: Final = 64 * KIB
AMQP_MESSAGE_BYTES_MAX: Final = 1 * MIB
AMQP_CONNECTIONS_MAX: Final = 100
AMQP_START_S: Final = 20.0
AMQP_IDLE_S: Final = 60.0
AMQP_POLL_S: Final = 0.05  # how late an event may reach who waits for it
AMQP_READ_BYTES: Final = 64 * KIB
AMQP_OUT_BYTES_MAX: Final = 1 * MIB  # unread by the peer, before it gets no more events
AMQP_SENT_MAX: Final = 50  # events a link and turn
LINK_CREDIT: Final = 100
ANSWERS_MAX: Final = 20  # of one connection, that wait for credit
TOKENS_MAX: Final = 20  # of one connection
LINKS_MAX: Final = 100  # of one connection

# Workload API
WORKLOAD_BODY_BYTES_MAX: Final = 256 * KIB
WORKLOAD_CERTIFICATE_S: Final = 90 * 24 * 3600
