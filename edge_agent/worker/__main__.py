"""Entry of a worker process; its command line is for the agent, not for people."""

import argparse
from pathlib import Path

from edge_agent.worker.imports import put_bundle_first


def main() -> None:
    """Read the command line and be a worker."""
    parser = argparse.ArgumentParser(prog="edge_agent.worker", description="Serves one bundle; started by edge-agent.")
    parser.add_argument("--slot", type=Path, required=True, help="folder of the unpacked bundle")
    parser.add_argument("--module", required=True, help="name of the module")
    parser.add_argument("--control-fd", type=int, required=True, help="inherited control socket")
    parser.add_argument("--unix-fd", type=int, required=True, help="inherited listening unix socket")
    parser.add_argument("--tcp-fd", type=int, required=True, help="inherited listening TCP socket")
    parser.add_argument("--output-fd", type=int, help="inherited reading end of the standard output")
    parser.add_argument("--log", type=Path, help="file for the output while there is no agent")
    parser.add_argument("--orphans", type=Path, help="folder in which to wait for the next agent")
    parser.add_argument("--orphan-ms", type=int, default=0, help="how long to wait there")
    arguments = parser.parse_args()
    # Before numpy is: a bundle's own is the one to be used.
    put_bundle_first(arguments.slot.absolute() / "site")
    from edge_agent.worker.process import Arguments, run_worker

    run_worker(
        Arguments(
            arguments.slot.absolute(),
            arguments.module,
            arguments.control_fd,
            arguments.unix_fd,
            arguments.tcp_fd,
            arguments.output_fd,
            arguments.log,
            arguments.orphans,
            arguments.orphan_ms,
        )
    )


if __name__ == "__main__":
    main()
