"""The spool as a file: restarts, kills, damage, a full disk."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

from edge_agent.store.spool import SqliteSpool, new_boot
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import KIB
from edge_contract.telemetry import Ack


def record(value: object = 0) -> JsonObject:
    return {"kind": "metric", "module": "", "manifest": None, "taken_ms": 1, "body": {"value": value}}


def test_each_start_is_a_boot_of_its_own_and_the_oldest_is_sent_first(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    boots = []
    for n in range(3):
        spool = SqliteSpool(path, "dev")
        boots.append(spool.boot)
        spool.append([record(n)])
        spool.close()
    assert len(set(boots)) == 3
    spool = SqliteSpool(path, "dev")
    for n, boot in enumerate(boots):
        batch = spool.next_batch()
        assert batch is not None
        assert (batch.boot, batch.samples[0].seq, batch.samples[0].body) == (boot, 1, {"value": n})
        spool.acknowledge(Ack({boot: 1}))
    assert spool.next_batch() is None
    spool.close()


def test_an_acknowledgement_that_comes_after_a_restart_counts(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "spool.db", "dev")
    spool.append([record(), record()])
    old = spool.boot
    spool.close()
    spool = SqliteSpool(tmp_path / "spool.db", "dev")
    spool.append([record()])
    assert spool.acknowledge(Ack({old: 2, spool.boot: 0})) == 2
    assert spool.backlog()[0] == 1
    spool.close()


def test_drops_are_counted_over_restarts_and_for_the_boot_that_lost_them(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = SqliteSpool(path, "dev", 64 * KIB)
    for n in range(100):
        spool.append([record(f"{n}" + "y" * 1000)])
    first, (_, _, dropped) = spool.boot, spool.backlog()
    assert dropped > 30
    spool.close()
    spool = SqliteSpool(path, "dev", 64 * KIB)
    assert spool.backlog()[2] == dropped
    batch = spool.next_batch()
    assert batch is not None
    assert (batch.boot, batch.dropped) == (first, dropped)
    spool.append([{"no": "sample"}])
    assert spool.backlog()[2] == dropped + 1
    spool.close()


def test_the_file_stays_near_its_budget(tmp_path: Path) -> None:
    spool = SqliteSpool(tmp_path / "spool.db", "dev", 512 * KIB)
    for n in range(300):
        spool.append([record(f"{n}" + "y" * 5000)] * 5)
    spool.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 512 * KIB
    assert stat.S_IMODE((tmp_path / "spool.db").stat().st_mode) == 0o600


def test_what_was_appended_survives_a_kill(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from edge_agent.store.spool import SqliteSpool
spool = SqliteSpool(Path({str(tmp_path / "spool.db")!r}), "dev", boot="0123456789abcdef")
for n in range(10):
    spool.append([{record()!r}])
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == -9
    spool = SqliteSpool(tmp_path / "spool.db", "dev")
    batch = spool.next_batch()
    assert batch is not None
    assert (batch.boot, batch.last) == ("0123456789abcdef", 10)
    spool.close()


def test_a_damaged_file_is_set_aside_and_the_device_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(b"\x00not a database" * 1000)
    spool = SqliteSpool(path, "dev")
    spool.append([record()])
    assert spool.backlog()[0] == 1
    assert path.with_name("spool.db.bad").exists()
    spool.close()


def test_damage_that_shows_later_costs_one_call(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = SqliteSpool(path, "dev")
    for n in range(200):
        spool.append([record(f"{n}" + "y" * 2000)])
    spool.close()
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    path.write_bytes(data)
    spool = SqliteSpool(path, "dev")
    with contextlib.suppress(EdgeError):
        spool.next_batch()
    spool.append([record("new")])
    batch = spool.next_batch()
    assert batch is not None
    assert batch.samples[-1].body == {"value": "new"}
    spool.close()


def test_a_spoiled_record_does_not_hold_up_the_others(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = SqliteSpool(path, "dev")
    spool.append([record(n) for n in range(5)])
    spool.close()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE records SET sample = ? WHERE seq IN (1, 3)", (b"\x00rubbish",))
    spool = SqliteSpool(path, "dev")
    batch = spool.next_batch()
    assert batch is not None
    assert [sample.seq for sample in batch.samples] == [2, 4, 5]
    assert spool.backlog()[0] == 3
    assert spool.backlog()[2] == 2
    spool.close()


def test_a_boot_of_spoiled_records_alone_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = SqliteSpool(path, "dev")
    spool.append([record()])
    spool.close()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE records SET sample = ?", (b"{}",))
    spool = SqliteSpool(path, "dev")
    spool.append([record("new")])
    batch = spool.next_batch()
    assert batch is not None
    assert batch.boot == spool.boot
    spool.close()


def test_a_full_disk_refuses_records_with_a_code_and_keeps_the_old_ones(tmp_path: Path) -> None:
    program = f"""
import resource
from pathlib import Path
from edge_agent.store.spool import SqliteSpool
from edge_contract.errors import EdgeError
spool = SqliteSpool(Path({str(tmp_path / "spool.db")!r}), "dev", boot="0123456789abcdef")
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
kept, code = 0, ""
for n in range(200):
    try:
        spool.append([{{**{record()!r}, "body": {{"pad": "y" * 5000}}}}])
        kept += 1
    except EdgeError as error:
        code = error.code
print(kept, code, spool.backlog()[0])
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    kept, code, waiting = done.stdout.split()
    assert code in ("device.disk-full", "device.disk-error")
    assert 0 < int(kept) == int(waiting) < 200
    spool = SqliteSpool(tmp_path / "spool.db", "dev")
    batch = spool.next_batch()
    assert batch is not None
    assert batch.samples[0].seq == 1
    spool.close()


def test_on_a_full_disk_a_spool_begins_and_is_of_use_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = SqliteSpool(path, "dev")
    spool.append([record()])
    spool.close()
    program = f"""
import resource
from pathlib import Path
from edge_agent.store.spool import SqliteSpool
from edge_contract.errors import EdgeError
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
spool = SqliteSpool(Path({str(path)!r}), "dev", boot="0123456789abcdef")
codes = set()
for use in (spool.next_batch, spool.backlog, lambda: spool.append([{record()!r}])):
    try:
        use()
    except EdgeError as error:
        codes.add(error.code)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
spool.append([{record()!r}])
print(*codes, spool.backlog()[0], len(spool.next_batch().samples))
spool.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["device.disk-error", "2", "1"]


def test_boots_are_sixteen_hexadecimal_digits_and_differ() -> None:
    boots = {new_boot() for _ in range(100)}
    assert len(boots) == 100
    assert all(len(boot) == 16 and int(boot, 16) >= 0 for boot in boots)
