"""Run by another environment's Python: the agent's link with azure-iot-device 2.14.0 and paho 1.6.1, told by JSON.

    python -m tests.integration.iothub.stable_sdk CONNECTION_STRING_FILE CA_FILE

Prints the versions, then a line for everything the link hears; sends a batch and a report when it comes up; ends when
its input ends.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_agent.config import IotHubConfig
from edge_agent.link.iothub import IotHubLink
from edge_agent.link.iothub_sdk import AzureSdk
from edge_contract.hub import HubSettings
from edge_contract.jsonio import JsonObject
from edge_contract.telemetry import Ack


def say(**facts: Any) -> None:
    """One line for the test."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Operations:
    """Answers every method with what it was asked."""

    def perform(self, method: str, arguments: JsonObject) -> JsonObject:
        """Give it back."""
        return {"method": method, **arguments}

    def set(self, settings: HubSettings) -> None:
        """Tell the test."""
        say(settings=settings.to_json())


def main(secret: Path, ca: Path) -> None:
    """Run the link until the input ends."""
    say(sdk=version("azure-iot-device"), paho=version("paho-mqtt"))
    link = IotHubLink(
        AzureSdk(IotHubConfig(secret, ca), "dev-1"), retry_ms_first=50, retry_ms_max=200, operations=Operations()
    )

    def acked(ack: Ack) -> None:
        say(ack=ack.upto)

    def online(is_online: bool) -> None:
        say(online=is_online)
        if is_online:
            link.send_batch(b"a batch")
            link.send_report(b"a report")

    link.start(lambda number: say(nudge=number), acked, online)
    sys.stdin.read()
    link.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
