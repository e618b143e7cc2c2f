"""A PKCS#11 token in software, in a folder of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.require import require_program

PIN = "246810"
_LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)


@dataclass(frozen=True)
class Token:
    """An initialised token.

    Attributes:
        label: Its name.
        module: The PKCS#11 module that reaches it.
        environ: What a process needs in its environment to reach it; the PIN is not among it.
    """

    label: str
    module: Path
    environ: dict[str, str]

    def make_key(self, number: int) -> str:
        """Have the token make a P-256 key that never leaves it; its URI."""
        import pkcs11
        from pkcs11.util.ec import encode_named_curve_parameters

        token = pkcs11.lib(str(self.module)).get_token(token_label=self.label)
        with token.open(rw=True, user_pin=PIN) as session:
            curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
            parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
            identifier = number.to_bytes(1, "big")
            parameters.generate_keypair(id=identifier, label=f"key {number}", store=True)
        return f"hsm:{number}?label={self.label}"


@contextmanager
def softhsm_token(folder: Path, label: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Token]:
    """A fresh token; this process and its children reach it while the block lasts.

    The library reads its configuration once a process, so all tokens of a process share the folder that was first.
    """
    tool = require_program("softhsm2-util")
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed: pip install 'lighterman[hsm]'")
    library = next((Path(path) for path in _LIBRARIES if Path(path).is_file()), None)
    if library is None:
        pytest.skip("the library of softhsm2 is not where it is expected")
    tokens, config = folder / "tokens", folder / "softhsm2.conf"
    tokens.mkdir(parents=True, exist_ok=True)
    config.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    environ = {"SOFTHSM2_CONF": str(config), "PYKCS11LIB": str(library)}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    argv = [tool, "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "1357911"]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
    yield Token(label, library, environ)
