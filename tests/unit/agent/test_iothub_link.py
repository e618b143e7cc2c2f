"""The link over Azure IoT Hub against a scripted SDK: what the SDK leaves to its caller."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import IotHubConfig, parse_config
from edge_agent.limits import HUB_MESSAGE_BYTES_MAX
from edge_agent.link.iothub import IotHubLink
from edge_contract.errors import EdgeError
from edge_contract.limits import BATCH_BYTES_MAX
from edge_contract.telemetry import Ack, Batch, Sample
from tests.support.fakehub import ConnectionFailedError, CredentialError, FakeHub
from tests.support.net import wait_until

ACK = Ack({"00" * 8: 5})


class Bench:
    """A hub, a link to it, and what the link said."""

    def __init__(self) -> None:
        self.hub = FakeHub()
        self.link = IotHubLink(self.hub, retry_ms_first=5, retry_ms_max=20, open_ms_max=5_000, send_ms_max=200)
        self.nudges: list[int] = []
        self.acks: list[Ack] = []
        self.online: list[bool] = []

    def start(self) -> None:
        self.link.start(self.nudges.append, self.acks.append, self.online.append)
        wait_until(lambda: self.online, 10)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.hub.release.set()
    made.link.stop()


def desired(version: Any, **properties: Any) -> dict[str, Any]:
    return {"$version": version, "lighterman": properties}


def test_the_sdk_is_not_imported_with_the_module() -> None:
    code = "import sys, edge_agent.link.iothub; sys.exit('azure' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("error", [CredentialError(), ConnectionFailedError(), RuntimeError("inner layer")])
def test_no_refusal_is_final(bench: Bench, error: Exception) -> None:
    bench.hub.script = [error, error, error]
    bench.start()
    assert bench.online == [True]
    assert len(bench.hub.clients) == 4
    assert all(client.is_shut_down for client in bench.hub.clients[:3])


def test_why_it_is_refused_can_be_asked(bench: Bench) -> None:
    bench.hub.script = [CredentialError()] * 500
    bench.link.start(bench.nudges.append, bench.acks.append, bench.online.append)
    wait_until(lambda: bench.link.error, 10)
    assert bench.link.error is not None
    assert bench.link.error.code == "network.refused"


def test_the_twin_is_read_again_after_every_connect(bench: Bench) -> None:
    bench.hub.twin = {"desired": desired(3, director_version=7)}
    bench.start()
    wait_until(lambda: bench.nudges == [7], 10)
    bench.hub.twin = {"desired": desired(4, director_version=8)}
    bench.hub.drop()
    wait_until(lambda: bench.nudges == [7, 8], 10)
    assert bench.online == [True, False, True]


@pytest.mark.parametrize(
    "rubbish",
    [None, [], "x", {}, desired(None), desired("x", director_version="9"), desired(9, ack={"upto": [1]}),
     desired(9, director_version=-1), desired(9, director_version=True), {"lighterman": 5}],
)  # fmt: skip
def test_rubbish_in_the_twin_is_passed_over(bench: Bench, rubbish: Any) -> None:
    bench.hub.twin = {"desired": rubbish}
    bench.start()
    bench.hub.patch(rubbish)
    bench.hub.patch({"lighterman": {"director_version": 2, "ack": {"upto": ACK.upto}}})  # without $version
    wait_until(lambda: bench.acks == [ACK], 10)
    assert bench.nudges == [2]
    assert bench.online == [True]


def test_a_patch_older_than_the_document_is_passed_over(bench: Bench) -> None:
    bench.hub.twin = {"desired": desired(5, director_version=50)}
    bench.start()
    bench.hub.patch(desired(4, director_version=40))
    bench.hub.patch(desired(6, director_version=60))
    wait_until(lambda: 60 in bench.nudges, 10)
    assert bench.nudges == [50, 60]


def test_acknowledgements_come_as_messages_and_rubbish_is_passed_over(bench: Bench) -> None:
    bench.start()
    for rubbish in (b"", b"\xff", b"[" * 500, "text", None, 5):
        bench.hub.tell(rubbish, kind="ack")
    bench.hub.tell(ACK.to_bytes(), kind="other")
    bench.hub.tell(ACK.to_bytes(), kind="ack")
    wait_until(lambda: bench.acks, 10)
    assert bench.acks == [ACK]
    assert bench.online == [True]


def test_a_send_without_answer_ends_the_connection_and_blocks_nobody(bench: Bench) -> None:
    bench.start()
    bench.hub.is_mute = True
    assert bench.link.send_batch(b"lost")
    wait_until(lambda: bench.online[:2] == [True, False], 10)
    bench.hub.is_mute = False
    wait_until(lambda: bench.online == [True, False, True], 10)
    assert bench.link.send_report(b"report")
    wait_until(lambda: bench.hub.sent == [("report", b"report")], 10)


def test_calls_that_never_come_back_do_not_end_the_link(bench: Bench) -> None:
    bench.link = IotHubLink(bench.hub, retry_ms_first=5, retry_ms_max=20, open_ms_max=50, patience_ms=50)
    bench.hub.twins_lost = 6
    bench.start()
    assert bench.online == [True]
    assert len(bench.hub.clients) == 7


def test_a_batch_too_long_for_the_hub_goes_in_parts(bench: Bench) -> None:
    samples = tuple(Sample(n, "event", "", "", 0, None, 0, {"text": "x" * 26_000}) for n in range(1, 11))
    whole = Batch("dev-1", "00" * 8, samples).to_bytes()
    assert HUB_MESSAGE_BYTES_MAX < len(whole) <= BATCH_BYTES_MAX
    bench.start()
    assert bench.link.send_batch(whole)
    wait_until(lambda: len(bench.hub.sent) == 2, 10)
    assert [s.seq for _, part in bench.hub.sent for s in Batch.parse(part).samples] == list(range(1, 11))
    assert not bench.link.send_batch(b"x" * (HUB_MESSAGE_BYTES_MAX + 1))


def test_stopping_is_bounded_and_offline_nothing_is_taken(bench: Bench) -> None:
    assert not bench.link.send_report(b"early")
    bench.hub.is_away = True
    bench.link.start(bench.nudges.append, bench.acks.append, bench.online.append)
    assert not bench.link.send_report(b"still away")
    bench.link.stop()
    assert bench.online == []


def test_the_configuration_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "edge-agent.toml"
    text = '[iothub]\nconnection_string_file = "hub"\nca = "ca.pem"\ngateway = "gw"\n'
    assert parse_config(text, file).iothub == IotHubConfig(tmp_path / "hub", tmp_path / "ca.pem", "gw")
    assert parse_config("", file).iothub is None
    for wrong in ("[iothub]\n", '[iothub]\nconnection_string_file = "x"\nport = 1\n'):
        with pytest.raises(EdgeError, match="iothub"):
            parse_config(wrong, file)
