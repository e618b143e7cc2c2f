"""Where settings come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_registry.config import RegistryConfig, load_config
from edge_contract.errors import EdgeError


def refused(**arguments: object) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        load_config(**({"environ": {}} | arguments))  # type: ignore[arg-type]
    return caught.value


def test_without_settings_everything_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(environ={})
    assert config == RegistryConfig()
    assert config.sqlalchemy_url == f"sqlite:///{tmp_path}/lighterman-data/registry.db"
    assert config.oci_dir == Path("lighterman-data/oci")


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "registry.toml"
    file.write_text('port = 1\nhost = "h"\n[mqtt]\nhost = "file"\nport = 2\n[mqtt_public]\ntls = true\n')
    environ = {"LIGHTERMAN_PORT": "3", "LIGHTERMAN_MQTT_HOST": "env", "LIGHTERMAN_URL": "http://elsewhere", "PORT": "9"}
    config = load_config(file, environ, {"mqtt.host": "flag", "port": None})
    assert (config.port, config.host, config.mqtt.host, config.mqtt.port) == (3, "h", "flag", 2)
    assert config.mqtt_public.tls is True


def test_the_life_of_certificates_is_a_setting() -> None:
    assert RegistryConfig().device_certificate_days == 90
    assert load_config(environ={"LIGHTERMAN_DEVICE_CERTIFICATE_DAYS": "7"}).device_certificate_days == 7


def test_the_file_of_the_working_directory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cloud-registry.toml").write_text("port = 7")
    assert load_config(environ={}).port == 7


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("postgresql://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgres://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
    ],
)
def test_database_urls_get_their_driver(given: str, driver: str) -> None:
    assert load_config(environ={"LIGHTERMAN_DATABASE_URL": given}).sqlalchemy_url == driver


@pytest.mark.parametrize(
    "overrides",
    [
        {"device_certificate_days": 0},
        {"device_certificate_days": 100_000},
        {"port": 70_000},
        {"port": "many"},
        {"mqtt_public.tls": "perhaps"},
        {"tls_cert": "only-one.pem"},
        {"public_url": "ftp://x"},
        {"database_url": "mysql://h/d"},
        {"colour": "red"},
        {"mqtt.colour": "red"},
        {"host": 5},
    ],
)
def test_settings_that_cannot_be_are_refused(overrides: dict[str, object]) -> None:
    assert refused(overrides=overrides).code == "config.invalid"


def test_a_refused_database_url_is_not_repeated_with_its_password() -> None:
    assert "secret" not in str(refused(overrides={"database_url": "mysql://u:secret@h/d"}))


def test_named_files_have_to_be_there(tmp_path: Path) -> None:
    assert refused(file=tmp_path / "absent.toml").code == "config.file-missing"
    assert refused(overrides={"mqtt.tls_ca": tmp_path / "absent.pem"}).code == "config.file-missing"


@pytest.mark.parametrize("text", ["port =", "[mqtt", "unknown = 1", "[mqtt.host]\nx = 1", "port = true"])
def test_a_file_that_cannot_be_read_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "registry.toml"
    file.write_text(text)
    assert refused(file=file).code == "config.invalid"
