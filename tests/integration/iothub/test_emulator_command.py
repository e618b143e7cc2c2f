"""`device-sim iothub` as a process: what it prints is enough to connect, and it ends when it is asked to."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_sim.iothub.running import client_context
from edge_contract.jsonio import JsonObject
from tests.integration.iothub.clients import device
from tests.support.iothub import SDK_LEAKS, free_host

pytestmark = pytest.mark.filterwarnings(SDK_LEAKS)

_ENDS_S = 20.0


@contextlib.contextmanager
def _running(folder: Path, host: str, *options: str, ends_by: signal.Signals = signal.SIGTERM) -> Iterator[JsonObject]:
    """The command until the end of the block; gives what it printed."""
    command = [sys.executable, "-m", "device_sim", "iothub", "--host", host, "--ca", str(folder / "ca.pem"), "--json"]
    with subprocess.Popen(
        [*command, "--data", str(folder / "data"), *options], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(ends_by)
            process.wait(_ENDS_S)
    assert process.returncode == (0 if ends_by == signal.SIGTERM else -ends_by)


def test_a_device_connects_with_what_the_command_printed(tmp_path: Path) -> None:
    with _running(tmp_path, free_host(), "--device", "pump", "--edge", "gate") as told:
        assert Path(told["workload"]["gate"]).is_socket()
        with device(told["devices"]["pump"], (tmp_path / "ca.pem").read_text()) as client:
            client.sdk.send_message("x")
    assert (tmp_path / "data" / "hub.sqlite").stat().st_mode & 0o077 == 0


def test_what_was_acknowledged_is_there_after_the_process_was_killed(tmp_path: Path) -> None:
    host = free_host()
    with (
        _running(tmp_path, host, "--device", "pump", ends_by=signal.SIGKILL) as told,
        device(told["devices"]["pump"], (tmp_path / "ca.pem").read_text(), connection_retry=False) as client,
    ):
        for number in range(20):
            client.sdk.send_message(str(number))
        client.sdk.patch_twin_reported_properties({"last": 19})
    with _running(tmp_path, host, "--device", "pump") as told_again:
        assert told_again["devices"] == told["devices"]
        assert _asked(told_again, "state")["telemetry"] == 20
        reported = _asked(told_again, "twin?device=pump")["properties"]["reported"]
        assert (reported["last"], reported["$version"]) == (19, 2)


def _asked(told: JsonObject, path: str) -> JsonObject:
    with urllib.request.urlopen(
        f"{told['url']}/admin/{path}", timeout=_ENDS_S, context=client_context(Path(told["ca"]))
    ) as answer:
        document: JsonObject = json.load(answer)
        return document


def test_an_address_of_others_is_refused() -> None:
    command = [sys.executable, "-m", "device_sim", "iothub", "--host", "192.0.2.1", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert json.loads(ended.stdout)["error"]["code"] == "config.invalid"
