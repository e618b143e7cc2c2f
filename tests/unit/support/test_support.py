"""Ports, waiting, child processes, brokers and databases as the other tests rely on them."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import sqlalchemy

from tests.support import require
from tests.support.mosquitto import MosquittoBroker, mosquitto
from tests.support.net import free_low_port, free_port, is_listening, wait_until
from tests.support.processes import child_process


def test_free_ports_can_be_bound() -> None:
    for port in (free_port(), free_low_port()):
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
            server.listen()
            assert is_listening(port)
        assert not is_listening(port)


def test_a_low_port_is_outside_the_range_of_outgoing_connections() -> None:
    assert 1_024 <= free_low_port() < 32_768


def test_waiting_returns_the_first_true_value() -> None:
    values = iter([0, "", "ready"])
    assert wait_until(lambda: next(values), 5.0, poll_s=0.001) == "ready"


def test_waiting_gives_up_at_the_deadline_and_names_what_was_missing() -> None:
    with pytest.raises(AssertionError, match="for the fleet"):
        wait_until(lambda: False, 0.02, what="the fleet", poll_s=0.001)


def test_a_child_that_ignores_the_request_to_stop_is_killed_with_its_own_children(tmp_path: Path) -> None:
    stubborn = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "print(inner.pid, flush=True)\n"
        "signal.pause()\n"
    )
    with child_process([sys.executable, "-c", stubborn], log_path=tmp_path / "log", stop_deadline_s=0.1) as child:
        inner_pid = int(wait_until(lambda: child.output().strip(), 20.0, what="the inner process id"))
        assert child.is_running
    assert child.exit_code == -9
    wait_until(lambda: not _is_alive(inner_pid), 5.0, what="the inner process to end")


def _is_alive(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in ("Z", "X")


def test_a_child_that_ends_by_itself_keeps_its_exit_code_and_output(tmp_path: Path) -> None:
    script = "import sys; print('said'); sys.exit(3)"
    with child_process([sys.executable, "-c", script], log_path=tmp_path / "log") as child:
        assert child.wait(20.0) == 3
    assert child.output() == "said\n"


def test_a_missing_program_skips_and_fails_where_the_system_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(require.REQUIRE_VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="install-test-needs"):
        require.require_program("no-such-program-anywhere")
    monkeypatch.setenv(require.REQUIRE_VARIABLE, "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-program-anywhere"):
        require.require_program("no-such-program-anywhere")


def test_a_missing_schema_skips_even_where_the_system_is_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(require.REQUIRE_VARIABLE, "1")
    monkeypatch.setenv(require.SCHEMAS_VARIABLE, os.fspath(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"schemas/none\.json"):
        require.require_shared_schema("schemas/none.json")
    (tmp_path / "one.json").write_text("{}", encoding="utf-8")
    assert require.require_shared_schema("one.json") == tmp_path / "one.json"


@pytest.mark.system
def test_a_broker_is_back_on_its_port_after_a_kill(broker: MosquittoBroker) -> None:
    port, first_pid = broker.port, broker.pid
    broker.kill()
    assert not is_listening(port)
    broker.start()
    assert is_listening(port)
    assert broker.pid != first_pid


@pytest.mark.system
def test_two_brokers_run_beside_each_other(tmp_path: Path, broker: MosquittoBroker) -> None:
    with mosquitto(tmp_path, is_persistent=True) as other:
        assert other.port != broker.port
        assert is_listening(other.port)
        assert is_listening(broker.port)


@pytest.mark.system
def test_a_database_of_postgres_is_empty_and_reachable(postgres_url: str) -> None:
    engine = sqlalchemy.create_engine(postgres_url)
    try:
        assert sqlalchemy.inspect(engine).get_table_names() == []
    finally:
        engine.dispose()
