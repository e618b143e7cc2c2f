"""Configuration: every mistake is named with its key and file."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent import config as config_module
from edge_agent.config import AgentConfig, UpdateConfig, load_config, parse_config
from edge_contract.errors import EdgeError

ROOT = Path(__file__).resolve().parents[3]
FILE = Path("/etc/lighterman/agent.toml")


def test_without_a_file_there_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "SYSTEM_FILE", tmp_path / "absent.toml")
    config = load_config(data=tmp_path)
    assert config.data == tmp_path
    assert config.run == tmp_path / "run"
    assert config.poll_ms == 60_000
    assert config.serve.host == "127.0.0.1"


def test_the_systems_file_is_read_when_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "agent.toml").write_text('data = "state"\npoll_ms = 5000\n')
    monkeypatch.setattr(config_module, "SYSTEM_FILE", tmp_path / "agent.toml")
    config = load_config()
    assert (config.data, config.run, config.poll_ms) == (tmp_path / "state", tmp_path / "state" / "run", 5000)


def test_flags_override_the_file_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('data = "state"\nrun = "/run/x"\n')
    assert load_config(file).data == tmp_path / "state"
    assert load_config(file).run == Path("/run/x")
    config = load_config(file, data=tmp_path / "other", run=tmp_path / "r")
    assert (config.data, config.run) == (tmp_path / "other", tmp_path / "r")


def test_everything_can_be_said_in_the_file() -> None:
    config = parse_config(
        """
        data = "/d"
        run = "/r"
        poll_ms = 1000
        report_ms = 2000
        spool_bytes_max = 1000000
        reserve_bytes = 0
        preload = "bundle"
        log_level = "debug"
        [serve]
        host = "0.0.0.0"
        [serve.ports]
        digits = 8501
        "other.model" = 8502
        [mqtt]
        host = "broker"
        port = 8883
        tls = true
        ca = "ca.crt"
        username = "u"
        password_file = "/p"
        persistent = true
        """,
        FILE,
    )
    assert config.serve.ports == {"digits": 8501, "other.model": 8502}
    assert (config.mqtt.host, config.mqtt.port, config.mqtt.tls) == ("broker", 8883, True)
    assert config.mqtt.ca == FILE.parent / "ca.crt"
    assert config.mqtt.persistent
    assert config.reserve_bytes == 0
    assert config.preload == FILE.parent / "bundle"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("poll_ms = 10", ["poll_ms", "1000"]),
        ('poll_ms = "60"', ["poll_ms"]),
        ("poll_ms = true", ["poll_ms"]),
        ("pol_ms = 60000", ["pol_ms", "poll_ms"]),
        ("data = 5", ["data"]),
        ('data = ""', ["data"]),
        ('log_level = "loud"', ["log_level", "warning"]),
        ("serve = 1", ["serve"]),
        ("[serve]\nhots = 'x'", ["serve.hots", "serve.host"]),
        ("[serve.ports]\ndigits = 99999", ["serve.ports.digits"]),
        ("[serve.ports]\n'../x' = 80", ["serve.ports.../x"]),
        ("[serve.ports]\na = 80\nb = 80", ["serve.ports.b"]),
        ("[mqtt]\ntls = 'yes'", ["mqtt.tls", "true"]),
        ("[mqtt]\nport = 0", ["mqtt.port"]),
        ("data = ", ["TOML"]),
        ("spool_bytes_max = 1", ["spool_bytes_max"]),
    ],
)
def test_a_mistake_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(EdgeError) as caught:
        parse_config(text, FILE)
    assert caught.value.code == "config.invalid"
    for word in [*words, str(FILE)]:
        assert word in caught.value.detail


def test_too_many_modules_are_refused() -> None:
    lines = "\n".join(f"m{n} = {8000 + n}" for n in range(17))
    with pytest.raises(EdgeError, match=r"serve\.ports"):
        parse_config(f"[serve.ports]\n{lines}", FILE)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"absent\.toml") as caught:
        load_config(tmp_path / "absent.toml")
    assert caught.value.code == "config.file-missing"
    for content in (b"\xff\xfe", b"#" * 300_000):
        (tmp_path / "odd.toml").write_bytes(content)
        with pytest.raises(EdgeError, match=r"odd\.toml") as caught:
            load_config(tmp_path / "odd.toml")
        assert caught.value.code == "config.invalid"


def test_the_file_that_ships_says_the_defaults() -> None:
    file = ROOT / "deploy" / "systemd" / "edge-agent.toml"
    config = load_config(file)
    assert config == AgentConfig(run=Path("/run/lighterman"))
    # What is commented out is right as well.
    lines = [
        line[2:]
        if line.startswith("# [") or (line.startswith("# ") and " = " in line and not line.endswith(":"))
        else line
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    shown = parse_config("\n".join(lines), file)
    assert shown.mqtt.host == "broker.example"
    assert shown.serve.ports == {"digits": 8501}


def test_the_owners_say_in_updates_is_read() -> None:
    config = parse_config('[update]\nhook = "hooks/gate"\nhook_timeout_ms = 5000\nscrub_ms = 3600000\n', FILE)
    assert config.update == UpdateConfig(FILE.parent / "hooks/gate", 5_000, 3_600_000)
    assert parse_config("", FILE).update == UpdateConfig(None, 60_000, 24 * 3_600_000, deltas=True)
    assert parse_config("[update]\ndeltas = false\n", FILE).update == UpdateConfig(deltas=False)


def test_a_hook_may_not_run_for_ever() -> None:
    with pytest.raises(EdgeError, match=r"update\.hook_timeout_ms"):
        parse_config("[update]\nhook_timeout_ms = 3600001\n", FILE)
