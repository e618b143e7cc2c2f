"""The commands `edge-agent module` and `edge-agent healthcheck`, for containers of Azure IoT Edge."""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from edge_agent.config import AgentConfig

_Decorator = Callable[[Any], Any]
_FindConfig = Callable[[Path | None, Path | None, Path | None], "AgentConfig"]
_LOG_FORMAT: Final = "%(levelname)s %(name)s: %(message)s"


def module_command(config_options: _Decorator, find_config: _FindConfig) -> click.Command:
    """Make the command `module`.

    Args:
        config_options: Adds the options of every command that needs the agent's configuration.
        find_config: Reads it, from what those options say.
    """

    @click.command()
    @config_options
    def module(config_file: Path | None, data: Path | None, run_dir: Path | None) -> None:
        """Run the agent as a module of Azure IoT Edge, in the foreground until SIGTERM or SIGINT.

        The entry point of the module's container. It enrols by itself at the first start, takes the module's identity
        from IoT Edge, and then is the agent of `edge-agent run`; messages for the input NAME feed the model that is
        bound to it, or the module of that name, and its predictions go to the output NAME. The data directory has to
        outlive the container.

        \b
        Read from the environment, beside what IoT Edge sets itself:
          LIGHTERMAN_REGISTRY_URL                 base URL of the registry
          LIGHTERMAN_ENROLMENT_TOKEN[_FILE]       one-time token, or a file that holds it
          LIGHTERMAN_REGISTRY_CA[_FILE]           certificates to trust for https: PEM text, or a file
          LIGHTERMAN_HARDWARE_ID, LIGHTERMAN_KEY, LIGHTERMAN_KEY_TYPE     as the options of edge-agent enroll
          LIGHTERMAN_SERVE_HOST, LIGHTERMAN_SERVE_PORTS (digits=8080), LIGHTERMAN_SERVE_TOKEN_FILE
          LIGHTERMAN_AGENT_DATA, LIGHTERMAN_AGENT_RUN, LIGHTERMAN_AGENT_CONFIG, LIGHTERMAN_AGENT_PRELOAD
          LIGHTERMAN_POLL_MS, LIGHTERMAN_REPORT_MS, LIGHTERMAN_LOG_LEVEL
        """  # noqa: D301 (click's mark for a paragraph that keeps its lines)
        from edge_agent.iotedge import configure, require_edge, run_module

        # Process 1 of a container gets no signal that it does not ask for.
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, _leave)
        config = configure(find_config(config_file, data, run_dir), os.environ)
        logging.basicConfig(level=config.log_level.upper(), format=_LOG_FORMAT, stream=sys.stderr)
        require_edge(os.environ)
        click.get_current_context().exit(run_module(config))

    return module


def healthcheck_command(config_options: _Decorator, find_config: _FindConfig) -> click.Command:
    """Make the command `healthcheck`; see `module_command`."""

    @click.command()
    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
    @config_options
    def healthcheck(as_json: bool, config_file: Path | None, data: Path | None, run_dir: Path | None) -> None:
        """Exit with 0 while the agent's loop answers and every live model is served, else with 1; for containers.

        A module that waits for its registry or is offline is healthy: starting it anew would not help.
        """
        from edge_agent.iotedge import check_health

        found = check_health(find_config(config_file, data, run_dir).run)
        words = "healthy" if found["healthy"] else "not healthy"
        click.echo(json.dumps(found) if as_json else f"{words}: {found['why']}" if found["why"] else words)
        click.get_current_context().exit(0 if found["healthy"] else 1)

    return healthcheck


def _leave(_signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
