"""The page about keys, typed in from top to bottom against a registry over HTTP, with a device's verifier behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cloud_registry.cli import run as cloud_registry
from edge_agent.trust.metastore import MetadataStore
from edge_agent.trust.repository import Repository
from edge_agent.trust.source import FetchMetadata
from edge_agent.trust.timefloor import TimeFloor
from packager.cli import main
from tests.integration.trust.runbook import plain, run, steps
from tests.support.registry import RegistryProcess, registry_process
from tests.support.require import REPOSITORY_ROOT
from tests.unit.packager.support import write_model

PAGE = REPOSITORY_ROOT / "docs" / "trust.md"


class Follower:
    """Follows the image repository with the verifier of the agent, from the first root on."""

    def __init__(self, registry: RegistryProcess, folder: Path) -> None:
        self.registry = registry
        self.store = MetadataStore(folder / "image")
        self.floor = TimeFloor(folder / "time.json", 0, lambda: 0)
        self.repository = Repository("image", self.store, self._fetch())
        self.paths: set[str] = set()

    def _fetch(self) -> FetchMetadata:
        def fetch(name: str, bytes_max: int) -> bytes | None:
            with self.registry.link() as link:
                answer = link.get(f"/tuf/image/{name}")
            assert answer.status_code in (200, 404), answer.text
            return None if answer.status_code == 404 else answer.content

        return fetch

    def look(self, wall_ms: int) -> None:
        """Verify from the root down to the lists, as an agent does, and find what was found before."""
        fetch = self._fetch()
        if self.store.read("root") is None:
            first = fetch("1.root.json", 512_000)
            if first is None:
                return
            self.store.write("root", first)
        self.repository.refresh(self.floor.times(wall_ms))
        for path in sorted(self.paths):
            self.repository.find(path)
        self.repository.commit()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_page_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    write_model(home)
    with registry_process(tmp_path / "registry") as registry:
        monkeypatch.chdir(home)
        for name, value in (
            ("LIGHTERMAN_URL", registry.url),
            ("LIGHTERMAN_TOKEN", registry.admin_token),
            ("LIGHTERMAN_KEY_PASSPHRASE", "correct horse battery"),
            ("LIGHTERMAN_DATA_DIR", str(registry.data)),
        ):
            monkeypatch.setenv(name, value)
        device = Follower(registry, tmp_path / "device")

        def typed(tool: Callable[[Sequence[str]], int]) -> Callable[[list[str]], str]:
            def type_in(words: list[str]) -> str:
                capsys.readouterr()
                tool(words)
                said = capsys.readouterr()
                return said.out + said.err

            return type_in

        def on_the_registrys_machine(command: str) -> str:
            registry.stop()
            said = typed(cloud_registry)(command.split()[1:])
            registry.start()
            monkeypatch.setenv("LIGHTERMAN_URL", registry.url)
            return said

        wrong = []
        count = 0
        for step in steps(PAGE):
            count += 1
            said = run(step, home, typed(main), on_the_registrys_machine)
            if plain(said) != plain("\n".join(step.output)):
                wrong.append(f"docs/trust.md:{step.line}: $ {step.command}\n{said}")
            if step.command.startswith("cloud-registry"):
                device = Follower(registry, tmp_path / "device-enrolled-anew")
            device.look(int(time.time() * 1000))
        assert not wrong, "\n".join(wrong)
        assert count > 20
