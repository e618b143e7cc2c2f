"""A registry as its users start it, and an author with keys."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloud_registry.client import RegistryClient
from packager.cli import main
from tests.support.net import wait_until
from tests.support.processes import child_process
from tests.support.require import REPOSITORY_ROOT

_START_DEADLINE_S = 60.0
_LISTENING = "listening on "
PASSPHRASE = "correct horse"


@dataclass(frozen=True)
class Server:
    """A registry process that the tests of one module share.

    Attributes:
        url: Its base URL.
        token: The admin's token.
        keys: Folder of keys that it trusts.
    """

    url: str
    token: str
    keys: Path


@dataclass(frozen=True)
class Author:
    """Runs the packager's command line as its user does, against one registry.

    Attributes:
        server: The registry.
        home: Folder for models and bundles, the working directory.
        model: A name that no other test uses.
    """

    server: Server
    home: Path
    model: str

    @property
    def keys(self) -> Path:
        """The folder of keys."""
        return self.server.keys

    def client(self) -> RegistryClient:
        """A client with the admin's token."""
        return RegistryClient(self.server.url, self.server.token)

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, Any]:
        """Exit code and the JSON that was printed."""
        capsys.readouterr()
        code = main([*(str(item) for item in arguments), "--json"])
        return code, json.loads(capsys.readouterr().out)

    def enrol(self, device: str, platform: str = "linux/amd64") -> None:
        """Enrol a device that never reports; its tag `site` is the name of the model."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, SHA256())
        with self.client() as client:
            token = client.create_enrolment_token(device, {"site": self.model})["token"]
            client.enrol(token, request.public_bytes(Encoding.PEM).decode(), platform)

    @property
    def condition(self) -> str:
        """Matches the devices that this author enrolled."""
        return f"tags.site = '{self.model}'"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A registry process whose trust was set up by `packager keys init`."""
    folder = tmp_path_factory.mktemp("registry")
    token_file, log = folder / "admin.token", folder / "registry.log"
    start = "import sys; from cloud_registry.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "serve", "--data-dir", str(folder / "data"), "--port", "0"]
    command += ["--no-collector", "--admin-token-file", str(token_file), "--log-level", "warning"]
    with child_process(command, log_path=log, cwd=REPOSITORY_ROOT) as child:
        wait_until(
            lambda: _LISTENING in child.output() or not child.is_running,
            _START_DEADLINE_S,
            what="the registry to listen",
        )
        assert child.is_running, child.tail()
        line = next(line for line in child.output().splitlines() if line.startswith(_LISTENING))
        url = line.removeprefix(_LISTENING).strip()
        found = Server(url, token_file.read_text().strip(), folder / "keys")
        secret = folder / "passphrase"
        secret.write_text(PASSPHRASE)
        options = ["--url", found.url, "--token-file", str(token_file), "--passphrase-file", str(secret)]
        assert main(["keys", "init", str(found.keys), *options]) == 0
        yield found


@pytest.fixture
def author(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Author:
    """An author whose environment names the registry and the keys."""
    monkeypatch.setenv("LIGHTERMAN_URL", server.url)
    monkeypatch.setenv("LIGHTERMAN_TOKEN", server.token)
    monkeypatch.setenv("LIGHTERMAN_KEYS", str(server.keys))
    monkeypatch.setenv("LIGHTERMAN_KEY_PASSPHRASE", PASSPHRASE)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    return Author(server, home, f"model-{digest}")
