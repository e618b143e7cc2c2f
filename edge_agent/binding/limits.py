"""Bounds of the MQTT binding. Sizes in bytes, times in milliseconds unless a name says otherwise."""

from typing import Final

from edge_contract.limits import KIB, MIB

# Messages
MESSAGE_BYTES_MAX: Final = 16 * MIB
"""A longer message is answered with an error; a broker that speaks MQTT 5 does not even send it."""
PACKET_BYTES_MAX: Final = MESSAGE_BYTES_MAX + 64 * KIB
CORRELATION_BYTES_MAX: Final = 4 * KIB
HOPS_MAX: Final = 8
"""Predictions that led to one message (MQTT 5): beyond it, something goes round through other devices or programs."""

# Waiting
WAITING_BYTES_MAX: Final = 32 * MIB
"""Of all messages that wait for one binding, beside their count."""
UNCONFIRMED_MAX: Final = 16
"""Answers of one binding that the broker has not confirmed; its model waits then."""
INFLIGHT_MAX: Final = 64
"""Answers of one module that were sent and are not confirmed."""

# Asking the module
ASK_MS: Final = 60_000
"""Longest silence of a module that was asked; also how long one message is tried again."""
LOOK_MS: Final = 5_000
"""For the question which bundle answers."""
RETRY_MS_FIRST: Final = 20
RETRY_MS_MAX: Final = 1_000
CRASHES_MAX: Final = 2
"""How often a message may find its worker crash; then it is taken for the cause and answered with an error."""
ANSWER_BYTES_MAX: Final = 256 * MIB

# The broker
CONNECT_MS_MAX: Final = 10_000
KEEPALIVE_S: Final = 30
SESSION_S: Final = 3_600
"""How long a broker that speaks MQTT 5 keeps messages for a binding that is away."""
RECONNECT_MS_FIRST: Final = 200
RECONNECT_MS_MAX: Final = 30_000
TICK_MS: Final = 1_000
DRAIN_MS: Final = 2_000
"""At the end, for answers that were computed to be confirmed."""
OVERLOAD_REPORT_MS: Final = 1_000
"""Dropped messages are told of on the error topic no more often than this, with their number."""

# The process
COMMAND_BYTES_MAX: Final = 64 * KIB
EXIT_MS: Final = 8_000
"""For the process to end by itself; then it is killed."""
WATCH_MS: Final = 500
"""How often the agent looks what is live."""
RESTART_MS_FIRST: Final = 500
RESTART_MS_MAX: Final = 60_000
BUNDLES_KNOWN_MAX: Final = 64
"""Of which the agent remembers whether they have bindings."""
STEADY_MS: Final = 60_000
"""A process that ran so long is restarted at once the next time."""
REPORT_MS: Final = 1_000
"""For the process to tell its counters."""
REPORT_BYTES_MAX: Final = 1 * MIB
ASKERS_MAX: Final = 4
"""Who may ask for counters at the same time."""

# The relay between the agent, which holds an IoT Edge module's one connection, and the process
RELAY_INPUTS_MAX: Final = 2_048
"""Messages for inputs that nobody has answered yet, in the agent's memory."""
RELAY_BYTES_MAX: Final = 48 * MIB
"""Of all of them."""
RELAY_PARKED_MS_MAX: Final = 900_000
"""How long a message waits for a model that is bound to its input."""
RELAY_OUTPUTS_MAX: Final = 1_024
"""Answers that wait for the hub."""
RELAY_ANSWER_BYTES_MAX: Final = 250 * KIB
"""Hubs take 256 KiB, properties included."""
RELAY_HEAD_BYTES_MAX: Final = 256 * KIB
RELAY_RETRY_MS: Final = 50
"""Between two tries to hand an answer to a link that is down or full."""
RELAY_DRAIN_MS: Final = 4_000
"""At the agent's end, for inputs that came to be answered; a container is killed after 10 s."""
RELAY_REPORT_MS: Final = 10_000
"""Inputs that are dropped are told of in the log no more often than this."""
