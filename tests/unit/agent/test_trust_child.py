"""Full verification in a process of its own: the same answers, whatever happens to the process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_agent.ports import Desired
from edge_agent.tokens import FixedToken
from edge_agent.trust.child import ChildVerification
from edge_agent.trust.receipt import Receipt
from edge_agent.trust.source import IMAGE_PREFIX, HttpMetadataSource, director_prefix
from edge_agent.trust.timefloor import SignedTime, TimeFloor, Times
from edge_agent.trust.uptane import UptaneVerifier
from edge_contract.deployment import Policy
from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from tests.support.rawhttp import RawServer, answer
from tests.support.tufrepo import DAY_MS, NOW_MS, TwoRepositories
from tests.support.tufserver import tuf_server


@dataclass
class Bench:
    """Repositories behind HTTP, a device's folder, and a verifier that leaves the work to a child."""

    repositories: TwoRepositories
    server: RawServer
    folder: Path

    def __post_init__(self) -> None:
        device, url = self.repositories.device, self.server.url
        self.child = ChildVerification(self.folder, device, url, FixedToken("secret"))
        self.sources = [
            HttpMetadataSource(url, prefix, FixedToken("secret")) for prefix in (director_prefix(device), IMAGE_PREFIX)
        ]
        self.verifier = UptaneVerifier(
            self.folder,
            device,
            self.sources[0],
            self.sources[1],
            dict,
            TimeFloor(self.folder / "time.json"),
            self.child,
        )
        director, image = self.repositories.director, self.repositories.image
        self.verifier.seed(director.files["1.root.json"], image.files["1.root.json"])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    repositories = TwoRepositories()
    with tuf_server(repositories) as server:
        made = Bench(repositories, server, tmp_path / "trust")
        yield made
        for source in made.sources:
            source.close()


def test_a_child_verifies_and_keeps_what_it_verified(bench: Bench) -> None:
    made = bench.repositories.deploy(1, Policy(0.5, 10, True))
    before = set(sys.modules)
    assert bench.verifier.refresh(NOW_MS).assignments == (made,)
    assert not {name for name in set(sys.modules) - before if name.startswith("tuf")}
    assert (bench.folder / "director" / "targets.json").exists()
    assert all(asked.headers["authorization"] == "Bearer secret" for asked in bench.server.asked)


def test_without_a_change_no_child_is_started(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench.repositories.deploy(1)
    bench.verifier.refresh(NOW_MS)
    bench.server.asked.clear()
    with monkeypatch.context() as patched:
        patched.setattr(ChildVerification, "__call__", lambda *_: pytest.fail("a child was started"))
        assert bench.verifier.refresh(NOW_MS + 3_600_000).assignments == (made,)
    assert [asked.path.rpartition("/")[2] for asked in bench.server.asked] == ["timestamp.json"] * 2
    newer = bench.repositories.deploy(2)
    assert bench.verifier.refresh(NOW_MS).assignments == (newer,)


def test_what_expires_is_noticed_although_nothing_changed(bench: Bench) -> None:
    bench.repositories.deploy(1)
    bench.verifier.refresh(NOW_MS)
    with pytest.raises(EdgeError) as caught:
        bench.verifier.refresh(NOW_MS + 2 * DAY_MS)
    assert caught.value.code == "trust.metadata-expired"
    assert "refreshed" in caught.value.hint


def test_after_a_failure_half_way_the_old_answer_is_not_given_again(bench: Bench) -> None:
    director = bench.repositories.director
    bench.repositories.deploy(1)
    bench.verifier.refresh(NOW_MS)
    old = dict(director.files)
    unknown = bench.repositories.release(2)
    bench.repositories.image.targets.clear()
    bench.repositories.image.publish()
    bench.repositories.assign(unknown)
    with pytest.raises(EdgeError) as caught:
        bench.verifier.refresh(NOW_MS)
    assert caught.value.code == "trust.target-unknown"
    director.files = old  # somebody plays back what was trusted before
    with pytest.raises(EdgeError) as caught:
        bench.verifier.refresh(NOW_MS)
    assert caught.value.code == "trust.metadata-rollback"


def test_a_registry_that_is_down_is_told_with_its_code(bench: Bench) -> None:
    bench.server.close()
    for ask in (lambda: bench.child(Times(NOW_MS)), lambda: bench.verifier.refresh(NOW_MS)):
        with pytest.raises(EdgeError) as caught:
            ask()
        assert caught.value.code == "network.unreachable"


def test_a_captive_portal_is_no_attack(bench: Bench) -> None:
    bench.server.script = lambda _: [answer(200, b"<html>Please pay</html>", Content_Type="text/html; charset=utf-8")]
    for ask in (lambda: bench.child(Times(NOW_MS)), lambda: bench.verifier.refresh(NOW_MS)):
        with pytest.raises(EdgeError) as caught:
            ask()
        assert caught.value.code == "cloud.unavailable"


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("import os; os.kill(os.getpid(), 9)", "device.memory-short"),
        ("import time; time.sleep(60)", "network.timeout"),
        ("raise SystemExit(3)", "internal.bug"),
        ("print('{}')", "internal.bug"),
        ('print(\'{"error": {"code": "no.such"}}\')', "internal.bug"),
        ('print(\'{"error": {"code": "trust.wrong-device", "detail": "x"}}\')', "trust.wrong-device"),
        ("print('[' * 1000)", "internal.bug"),
        ("print('x' * 2_000_000)", "internal.bug"),
    ],
)
def test_whatever_happens_to_the_child_has_a_code(tmp_path: Path, program: str, code: str) -> None:
    command = (sys.executable, "-c", program)
    timeout_ms = 1_000 if "sleep" in program else 60_000
    child = ChildVerification(tmp_path, "dev-1", "http://127.0.0.1:1", None, None, command, timeout_ms)
    with pytest.raises(EdgeError) as caught:
        child(Times(NOW_MS))
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


def test_a_program_that_is_not_there_has_a_code(tmp_path: Path) -> None:
    child = ChildVerification(tmp_path, "dev-1", "http://127.0.0.1:1", None, None, (str(tmp_path / "absent"),))
    with pytest.raises(EdgeError) as caught:
        child(Times(NOW_MS))
    assert caught.value.code == "device.memory-short"


def test_a_receipt_passes_between_processes_unchanged() -> None:
    made = TwoRepositories().release(3, hardware_ids=("a", "b"))
    for receipt in (
        Receipt(Desired(7, (made,)), 123, Digest.of(b"d"), Digest.of(b"i"), {"director": SignedTime(5, "key")}),
        Receipt(Desired(1, ()), 0, Digest.of(b"d"), None),
    ):
        assert Receipt.from_json(receipt.to_json()) == receipt
    with pytest.raises(ContractError):
        Receipt.from_json({"assignments": [{}]})
