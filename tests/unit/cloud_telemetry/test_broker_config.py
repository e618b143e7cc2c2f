"""What `broker-config` writes, as text; that it works is shown against a real broker elsewhere."""

from __future__ import annotations

import json
import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from cloud_registry.adapters.broker_roster import device_entry, device_role
from cloud_registry.adapters.pki import LocalAuthority
from cloud_registry.assembly import SystemClock
from cloud_registry.broker import BrokerPlan, first_roster, write_broker_config
from cloud_registry.cli import run
from cloud_registry.config import load_config
from edge_contract.errors import EdgeError
from tests.support.require import REPOSITORY_ROOT

USER = pwd.getpwuid(os.geteuid()).pw_name


class PaperAuthority:
    """Signs nothing."""

    def issue_server(self, names: Sequence[str]) -> tuple[str, str]:
        return f"key of {names[0]}", f"certificate of {names[0]}"

    def issue_service(self, name: str) -> tuple[str, str]:
        return f"key of {name}", f"certificate of {name}"

    def ca_pem(self) -> str:
        return "the authority"


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "plugin.so"
    path.write_bytes(b"")
    return path


def test_the_copy_for_reading_is_what_would_be_written(tmp_path: Path, plugin: Path) -> None:
    plan = BrokerPlan(["broker.example.org"], user=USER, plugin=plugin)
    written = write_broker_config(tmp_path / "out", PaperAuthority(), plan)
    text = written.config.read_text()
    text = text.replace(str(plugin), "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so")
    text = text.replace(str(tmp_path / "out"), "/etc/lighterman/broker").replace(f"user {USER}\n", "user mosquitto\n")
    assert text == (REPOSITORY_ROOT / "deploy" / "mosquitto" / "mosquitto.conf").read_text()


def test_the_registrys_part_is_configuration_it_accepts(tmp_path: Path, plugin: Path) -> None:
    plan = BrokerPlan(["broker.example.org", "127.0.0.1"], 1883, "", 1884, user=USER, plugin=plugin)
    written = write_broker_config(tmp_path / "out", PaperAuthority(), plan)
    config = load_config(written.registry_config, environ={})
    assert (config.mqtt.host, config.mqtt.port, config.mqtt.keeps_roster) == ("127.0.0.1", 1884, True)
    assert config.mqtt_public.host == "broker.example.org"
    assert (config.mqtt_public.port, config.mqtt_public.tls) == (1883, True)
    assert config.mqtt.tls_key is not None
    assert config.mqtt.tls_key.read_text() == "key of cloud:registry"


def test_secrets_are_closed_to_others(tmp_path: Path, plugin: Path) -> None:
    written = write_broker_config(
        tmp_path / "out", PaperAuthority(), BrokerPlan(["b"], user=USER, plugin=plugin), {"d1.0123456789ab": "d1"}
    )
    secret = [*(tmp_path / "out").rglob("*.key"), written.roster]
    assert len(secret) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_by_default_nothing_is_allowed_and_each_role_names_its_topics() -> None:
    roster = first_roster({"d2.0123456789ab": "d2", "d1.aaaaaaaaaaaa": "d1"})
    assert roster["defaultACLAccess"] == {
        "publishClientSend": False,
        "publishClientReceive": False,
        "subscribe": False,
        "unsubscribe": True,
    }
    names = [client["username"] for client in roster["clients"]]
    assert names == ["cloud:registry", "cloud:collector", "d1.aaaaaaaaaaaa", "d2.0123456789ab"]
    assert not any("password" in client for client in roster["clients"])
    given = {(acl["acltype"], acl["topic"]) for acl in device_role("d1.aaaaaaaaaaaa", "d1")["acls"]}
    assert given == {
        ("publishClientSend", "lighterman/1/d1/report"),
        ("publishClientSend", "lighterman/1/d1/telemetry"),
        ("subscribeLiteral", "lighterman/1/d1/nudge"),
        ("subscribeLiteral", "lighterman/1/d1/ack"),
        ("publishClientReceive", "lighterman/1/d1/nudge"),
        ("publishClientReceive", "lighterman/1/d1/ack"),
    }
    collector = next(role for role in roster["roles"] if role["rolename"] == "cloud:collector")
    assert not any("CONTROL" in acl["topic"] for acl in collector["acls"])


@pytest.mark.parametrize("name", ["+", "#", "a/b", "", "cloud:registry", "$SYS"])
def test_a_name_that_could_widen_a_role_is_refused(name: str) -> None:
    with pytest.raises(EdgeError, match=r"cloud\.name-invalid"):
        device_role(name, "d1")
    with pytest.raises(EdgeError, match=r"cloud\.name-invalid"):
        device_role("d1.aaaaaaaaaaaa", name)
    assert device_entry("d1")["roles"] == [{"rolename": "device:d1", "priority": 0}]


@pytest.mark.parametrize("name", ["d1", "cloud", "cloud:", "cloud:a b", "cloud:A"])
def test_a_service_is_never_named_like_a_device(tmp_path: Path, name: str) -> None:
    with pytest.raises(EdgeError, match=r"config\.invalid"):
        LocalAuthority(tmp_path, SystemClock()).issue_service(name)


def test_plans_that_cannot_work_are_refused(tmp_path: Path, plugin: Path) -> None:
    def code(plan: BrokerPlan, out_dir: str = "out") -> str:
        with pytest.raises(EdgeError) as caught:
            write_broker_config(tmp_path / out_dir, PaperAuthority(), plan)
        return caught.value.code

    assert code(BrokerPlan(["b"], 1883, "", 1883, plugin=plugin)) == "config.invalid"
    assert code(BrokerPlan(["b"], plugin=tmp_path / "missing.so")) == "config.file-missing"
    assert code(BrokerPlan(["b"], plugin=plugin), "with blank") == "config.invalid"
    if os.geteuid() == 0:
        assert code(BrokerPlan(["b"], plugin=plugin, user="nobody-of-that-name")) == "config.invalid"


def test_the_command_writes_it_and_says_how_to_go_on(
    tmp_path: Path, plugin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["broker-config", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data"), "--name", "127.0.0.1"]
    command += ["--plugin", str(plugin), "--user", USER]
    assert run(command) == 0
    assert f"mosquitto -c {tmp_path / 'out' / 'mosquitto.conf'}" in capsys.readouterr().out
    assert run([*command, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert Path(written["ca"]).read_bytes() == (tmp_path / "data" / "pki" / "ca.crt").read_bytes()
    assert run([*command, "--name", "not a name", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "config.invalid"
