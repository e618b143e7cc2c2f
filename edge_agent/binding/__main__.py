"""Entry of the binding process; the agent starts it and tells it what to do on standard input."""

import logging
import signal
import sys

from edge_agent.binding.limits import COMMAND_BYTES_MAX
from edge_agent.binding.process import BindingProcess
from edge_agent.binding.work import read_work


def main() -> None:
    """Read the work and do it until standard input ends."""
    # The agent ends it by closing its input, so that an interrupt typed at a terminal is the agent's affair.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    BindingProcess(read_work(sys.stdin.buffer.readline(COMMAND_BYTES_MAX + 1))).run(sys.stdin.buffer)


if __name__ == "__main__":
    main()
