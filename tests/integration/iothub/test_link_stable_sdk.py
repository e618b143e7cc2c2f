"""The link runs with the newest stable SDK as well, which wants a paho of before 2: in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from device_sim.iothub.running import Emulator
from edge_contract.hub import HubDesired
from tests.support.environments import require_environment
from tests.support.net import wait_until
from tests.support.require import REPOSITORY_ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]
LOCK = REPOSITORY_ROOT / "tests" / "support" / "azure_sdk_stable.lock"
_WAIT_S = 60.0


def test_the_link_runs_with_the_stable_sdk_and_paho_1(hub: Emulator, name: str, tmp_path: Path) -> None:
    python = require_environment(".venv-azure-stable", LOCK, "azure-iot-device 2.14.0", built=("paho-mqtt",))
    secret, ca = tmp_path / "hub", tmp_path / "ca.pem"
    secret.write_text(hub.add_device(name))
    ca.write_text(hub.ca_pem)
    lines: list[dict[str, Any]] = []
    # The SDK's own warnings, about paho among others, are not this test's.
    argv = [str(python), "-W", "ignore", "-m", "tests.integration.iothub.stable_sdk", str(secret), str(ca)]
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=REPOSITORY_ROOT
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stdin is not None
        out = child.stdout
        reader = threading.Thread(target=lambda: lines.extend(json.loads(line) for line in out), daemon=True)
        reader.start()

        def heard(**facts: Any) -> None:
            wait_until(lambda: facts in lines or child.poll() is not None, _WAIT_S, what=str(facts))
            assert facts in lines, (tmp_path / "errors").read_text()[-2000:]

        try:
            heard(sdk="2.14.0", paho="1.6.1")
            heard(online=True)
            came: list[str] = []

            def sent() -> bool:
                came.extend(event["text"] for event in hub.admin.drain_telemetry() if event["device"] == name)
                return {"a batch", "a report"} <= set(came)

            wait_until(sent, _WAIT_S)
            hub.admin.desired(device=name, desired=HubDesired.nudge_patch(7))
            heard(nudge=7)
            hub.admin.desired(device=name, desired=HubDesired.ack_patch({"00" * 8: 3}))
            heard(ack={"00" * 8: 3})
            hub.admin.desired(device=name, desired={"lighterman": {"settings": {"report_ms": 5_000}}})
            heard(settings={"report_ms": 5_000})
            answer = hub.admin.method(device=name, name="ping", payload={"a": 1})
            assert (answer["status"], answer["payload"]) == (200, {"method": "ping", "a": 1})
            hub.admin.fault(kind="refuse", operation="connect", device=name, code=5, count=2)
            hub.admin.disconnect(device=name)
            heard(online=False)
            hub.admin.desired(device=name, desired=HubDesired.nudge_patch(8))
            heard(nudge=8)
        finally:
            child.stdin.close()
            child.wait(30)
            reader.join(10)
