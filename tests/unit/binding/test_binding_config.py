"""The device owner's side: which broker, and what `edge-agent status` says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.cli import _binding_lines
from edge_agent.config import BindingConfig, parse_config
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject

FILE = Path("/etc/lighterman/edge-agent.toml")


def test_nothing_runs_unless_a_broker_is_configured() -> None:
    assert parse_config("", FILE).binding is None
    assert parse_config("[binding]\nenabled = false\nhost = 'b'\n", FILE).binding is None
    assert parse_config("[binding]\n", FILE).binding == BindingConfig("127.0.0.1", 1883)


def test_a_broker_with_tls_and_a_password() -> None:
    text = (
        '[binding]\nhost = "b"\ntls = true\nca = "ca.crt"\ncertificate = "c.crt"\nkey = "c.key"\n'
        'username = "u"\npassword_file = "secret"\nprotocol = "3.1.1"\n'
    )
    folder = FILE.parent
    assert parse_config(text, FILE).binding == BindingConfig(
        "b", 8883, True, folder / "ca.crt", folder / "c.crt", folder / "c.key", "u", folder / "secret", "3.1.1"
    )


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("port = 0", "binding.port"),
        ('protocol = "4"', "binding.protocol"),
        ('ca = "x"', "binding.ca"),
        ('certificate = "x"\ntls = true', "binding.key"),
        ('password_file = "x"', "binding.password_file"),
        ("enabled = 1", "binding.enabled"),
        ('hots = "x"', "binding.hots"),
    ],
)
def test_mistakes_are_named_with_their_key(line: str, key: str) -> None:
    with pytest.raises(EdgeError) as caught:
        parse_config(f"[binding]\n{line}\n", FILE)
    assert caught.value.code == "config.invalid"
    assert key in caught.value.detail


def test_status_says_how_bindings_stand() -> None:
    counts = dict.fromkeys(
        ("answered", "invalid", "failed", "dropped", "passed_over", "unpublished", "duplicates", "retries"), 0
    )
    about: JsonObject = {"input_topic": "in", "output_topic": "out", "waiting": 3, "counts": counts | {"answered": 7}}
    module = {"online": True, "protocol": "5", "error": "", "denied": ["in/#"], "bindings": {"b": about}}
    lines = _binding_lines(
        {
            "phase": "running",
            "broker": "127.0.0.1:1883",
            "modules": {"digits": module, "other": None},
            "refused": [{"module": "x", "binding": "y", "why": "it goes round"}],
            "errors": {"z": "cannot be read"},
        }
    )
    text = "\n".join(lines)
    for words in (
        "bindings: running  127.0.0.1:1883",
        "digits: connected, MQTT 5",
        "b: in -> out  7 answered",
        "3 waiting",
        "does not let it subscribe to in/#",
        "other: no bindings run",
        "x/y does not run: it goes round",
        "z: cannot be read",
    ):
        assert words in text
    off = _binding_lines({"phase": "off", "modules": {"digits": None}, "error": "no [binding]"})
    assert off[:2] == ["bindings: off", "  no [binding]"]
