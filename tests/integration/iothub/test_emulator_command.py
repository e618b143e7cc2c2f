"""`device-sim iothub` as a process: what it prints is enough to connect, and it ends when it is asked to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.integration.iothub.clients import device
from tests.support.iothub import free_host

_ENDS_S = 20.0


def test_a_device_connects_with_what_the_command_printed(tmp_path: Path) -> None:
    options = ["--host", free_host(), "--device", "pump", "--edge", "gate", "--ca", str(tmp_path / "ca.pem"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "device_sim", "iothub", *options, "--data", str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert Path(told["workload"]["gate"]).is_socket()
        with device(told["devices"]["pump"], (tmp_path / "ca.pem").read_text()) as client:
            client.sdk.send_message("x")
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=_ENDS_S)
    assert process.returncode == 0, rest
    assert (tmp_path / "data" / "hub.sqlite").stat().st_mode & 0o077 == 0


def test_an_address_of_others_is_refused() -> None:
    command = [sys.executable, "-m", "device_sim", "iothub", "--host", "192.0.2.1", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert json.loads(ended.stdout)["error"]["code"] == "config.invalid"
