"""A registry that answers over a real socket from a thread of the test, with a clock that the test sets."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from cloud_registry.api.app import create_app
from cloud_registry.assembly import build_services
from cloud_registry.client import RegistryClient
from cloud_registry.config import MqttConfig, RegistryConfig
from cloud_registry.core.records import Bundle
from cloud_registry.core.roles import Role
from cloud_registry.ports import ReportMessage, ReportVerdict
from cloud_registry.services import Services
from cloud_registry.serving import listen, url_of
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.twin import Report
from tests.support.devicekey import TestKey
from tests.support.net import wait_until
from tests.unit.cloud.making import tiny_onnx

START_MS = 1_790_000_000_000
_START_DEADLINE_S = 30.0
_STOP_DEADLINE_S = 20.0


class SetClock:
    """A clock that moves only when told."""

    def __init__(self, start_ms: int = START_MS) -> None:
        self.now_ms = start_ms

    def wall_ms(self) -> int:
        return self.now_ms


@dataclass
class Registry:
    """A running registry.

    Attributes:
        services: Its parts.
        clock: Its clock.
        url: Where it answers.
        admin_token: The first token.
    """

    services: Services
    clock: SetClock
    url: str
    admin_token: str
    _clients: dict[str, RegistryClient] = field(default_factory=dict)

    def client(self, token: str | None = None) -> RegistryClient:
        """A client with the admin's token, or another one."""
        used = self.admin_token if token is None else token
        if used not in self._clients:
            self._clients[used] = RegistryClient(self.url, used)
        return self._clients[used]

    def client_of(self, role: Role) -> RegistryClient:
        """A client with a token of a role."""
        return self.client(self.token_of(role))

    def token_of(self, role: Role) -> str:
        """A fresh token of a role."""
        count = len(self.services.operators.list())
        return self.services.operators.create(f"{role}-{count}", role, "test")

    def request(self, method: str, path: str, token: str | None = None, **options: Any) -> httpx.Response:
        """A plain request, for what the client would never send."""
        used = self.admin_token if token is None else token
        headers = {"Authorization": f"Bearer {used}"} if used else {}
        headers |= options.pop("headers", {})
        return httpx.request(method, self.url + path, headers=headers, trust_env=False, timeout=30, **options)

    def register(self, model: str, **more: Any) -> dict[str, Any]:
        """A new version of a model with one small ONNX file; the model is made if need be."""
        client = self.client()
        with contextlib.suppress(EdgeError):
            client.create_model(model)
        data = tiny_onnx()
        digest = client.upload_bytes(f"models/{model}", data)
        file = {"path": "model.onnx", "digest": str(digest), "size": len(data)}
        return client.register_version(model, {"format": "onnx", "files": [file]} | more)

    def bundle(self, model: str, version: int, *platforms: str) -> None:
        """Enter made-up bundles, as if they had been pushed and signed."""
        added = [made_up_bundle(model, version, platform) for platform in platforms or ("linux/arm64",)]
        affected = self.services.models.add_bundles(model, version, added)
        self.services.notifier.devices_changed(affected.devices)

    def enrol(self, device: str, platform: str = "linux/arm64", hardware_id: str = "", **tags: str) -> str:
        """Enrol a device straight in the database, with `TestKey.of(device)`; a token that it signed."""
        made = self.services.devices.create_enrolment(device, tags, 60, "test")
        until_ms = self.clock.now_ms + self.services.authority.device_life_ms
        self.services.enrolments.redeem(made.token, TestKey.of(device).public, platform, hardware_id, until_ms)
        return TestKey.of(device).token(device, self.clock.now_ms)

    def report(self, report: Report) -> ReportVerdict:
        """Take a report in, signed with the key of `enrol`, as the collector does."""
        content = TestKey.of(report.device).envelope(report).to_bytes()
        (verdict,) = self.services.fleet.take_reports(report.device, [ReportMessage(content, self.clock.now_ms)])
        return verdict


def made_up_bundle(model: str, version: int, platform: str, hardware_ids: tuple[str, ...] = ()) -> Bundle:
    """A bundle that nobody pushed."""
    digest = Digest.of(f"{model} {version} {platform}".encode())
    return Bundle(platform, digest, 321, version, hardware_ids, f"bundles/{model}", Digest.of(b"index"))


@contextlib.contextmanager
def running_registry(
    folder: Path, database_url: str = "", mqtt: MqttConfig | None = None, start_ms: int = START_MS
) -> Iterator[Registry]:
    """A registry on a port of its own that ends with the block."""
    clock = SetClock(start_ms)
    config = RegistryConfig(data_dir=folder, database_url=database_url, mqtt=mqtt or MqttConfig())
    services = build_services(config.check(), clock)
    try:
        token = services.operators.create_first_admin()
        assert token is not None
        config = replace(services.config, port=0)
        with listen(config) as listener:
            url = url_of(config, listener)
            server = uvicorn.Server(
                uvicorn.Config(create_app(services), log_config=None, lifespan="off", timeout_graceful_shutdown=5)
            )
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            registry = Registry(services, clock, url, token)
            try:
                wait_until(lambda: server.started, _START_DEADLINE_S, what="the registry to answer")
                yield registry
            finally:
                for client in registry._clients.values():
                    client.close()
                server.should_exit = True
                thread.join(_STOP_DEADLINE_S)
    finally:
        services.close()


def error_of(call: Any, *arguments: Any, **options: Any) -> EdgeError:
    """The error that a call ends with."""
    with pytest.raises(EdgeError) as caught:
        call(*arguments, **options)
    return caught.value
