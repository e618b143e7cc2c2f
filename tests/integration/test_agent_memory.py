"""What the agent's control process costs at rest, every adapter having worked once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge_agent.keys import provide_key
from tests.support.tufrepo import NOW_MS, TwoRepositories
from tests.support.tufserver import tuf_server

ROOT = Path(__file__).resolve().parents[2]
RSS_KB_MAX = 50 * 1024  # with everything imported that the process could import, were nothing given to children
RSS_KB_AS_WIRED_MAX = 38 * 1024  # metadata being verified in a process of its own
NEVER = ("numpy", "onnxruntime", "ai_edge_litert", "requests", "urllib3", "asyncio", "tuf.ngclient", "multiprocessing")

PROGRAM = """
import json, sys
from pathlib import Path

# The signing library imports what it finds for tokens; a control process has no use for it, and devices rarely have it.
sys.modules["pkcs11"] = None

folder, url, wall_ms, is_isolated = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "isolated"

import edge_agent.cli
import edge_agent.shell.main
from edge_agent.config import load_config
from edge_agent.control import ask
from edge_agent.fetch import HttpBundleFetcher
from edge_agent.identity import KeyPlace
from edge_agent.keyholder import KeyHolder
from edge_agent.link.mqtt import MqttAddress, MqttLink, MqttTls
from edge_agent.reporting import SignedReports
from edge_agent.shell.clock import SystemClock
from edge_agent.store.blobs import FileBlobStore
from edge_agent.store.journal import FileJournal
from edge_agent.store.slots import FileSlotStore
from edge_agent.store.spool import SqliteSpool
from edge_agent.systemd import SystemdSupervisor
from edge_agent.tokens import DeviceTokens
from edge_agent.transport import tls_context
from edge_agent.trust.child import ChildVerification
from edge_agent.trust.source import IMAGE_PREFIX, HttpMetadataSource, director_prefix
from edge_agent.trust.timefloor import TimeFloor
from edge_agent.trust.uptane import UptaneVerifier

blobs = FileBlobStore(folder)
slots = FileSlotStore(folder, blobs)
FileJournal(folder / "journal.json").save({"n": 1})
spool = SqliteSpool(folder / "spool.db", "dev-1")
spool.append([{"kind": "metric", "module": "", "manifest": None, "taken_ms": 1, "body": {}}] * 500)
spool.next_batch()
identity = KeyPlace("file:device.key", "ES256", sys.argv[5], folder)
key = KeyHolder(lambda: identity)
tokens = DeviceTokens("dev-1", key, SystemClock())
fetcher = HttpBundleFetcher(url, tokens, blobs)
verifier = UptaneVerifier(
    folder / "trust",
    "dev-1",
    HttpMetadataSource(url, director_prefix("dev-1"), tokens),
    HttpMetadataSource(url, IMAGE_PREFIX, tokens),
    dict,
    TimeFloor(folder / "trust" / "time.json"),
    ChildVerification(folder / "trust", "dev-1", url, tokens) if is_isolated else None,
)
roots = [(folder / f"{name}.json").read_bytes() for name in ("director", "image")]
verifier.seed(*roots)
for _ in range(3):
    desired = verifier.refresh(wall_ms)
context = tls_context(None)
link = MqttLink(MqttAddress("127.0.0.1", 9), "dev-1")
link.start(lambda _: None, lambda _: None, lambda _: None)
reports = SignedReports(key, link)
reports.send(b"{}" * 1000)
reports.stop()
link.stop()
key.close()

fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "rss_kb": int(fields["VmRSS"].split()[0]),
    "assignments": len(desired.assignments),
    "modules": sorted(sys.modules),
}))
"""


def measure(folder: Path, how: str) -> dict[str, Any]:
    """Run the program twice and give what the second run says."""
    repositories = TwoRepositories(bits=8)  # as many bins as the registry has
    repositories.deploy(1)
    for name, repository in (("director", repositories.director), ("image", repositories.image)):
        (folder / f"{name}.json").write_bytes(repository.files["1.root.json"])
    # As installed: compiled modules lie beside their sources, so nothing is compiled in the process that is measured.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "pycache")
    found: dict[str, Any] = {}
    with tuf_server(repositories) as server:
        keyid = provide_key("file:device.key", folder).keyid
        command = [sys.executable, "-c", PROGRAM, str(folder), server.url, str(NOW_MS), how, keyid]
        for _ in range(2):
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
            )
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
    assert found["assignments"] == 1
    assert not [name for name in NEVER if name in found["modules"]]
    print(f"{how}: {found['rss_kb']} kB resident")  # noqa: T201
    return found


def test_the_control_process_stays_small_with_everything_imported(tmp_path: Path) -> None:
    found = measure(tmp_path, "together")
    assert {"tuf.api.metadata", "paho.mqtt.client", "sqlite3", "ssl", "click"} <= set(found["modules"])
    assert found["rss_kb"] <= RSS_KB_MAX


def test_verifying_in_a_process_of_its_own_leaves_nothing_behind(tmp_path: Path) -> None:
    found = measure(tmp_path, "isolated")
    assert not [name for name in ("tuf", "securesystemslib", "cryptography") if name in found["modules"]]
    assert found["rss_kb"] <= RSS_KB_AS_WIRED_MAX
