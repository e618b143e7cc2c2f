"""The emulator's service API, with Microsoft's azure-iot-hub as judge."""

from __future__ import annotations

import base64
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError
from azure.iot.hub import IoTHubConfigurationManager, IoTHubRegistryManager
from azure.iot.hub.models import (
    CloudToDeviceMethod,
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    ConfigurationQueriesTestInput,
    ExportImportDevice,
    QuerySpecification,
    Twin,
    TwinProperties,
)
from msrest.exceptions import HttpOperationError

from device_sim.iothub import sas
from device_sim.iothub.running import Emulator
from tests.integration.iothub.clients import device, module
from tests.support.iothub import SDK_LEAKS, running_hub

pytestmark = pytest.mark.filterwarnings(SDK_LEAKS)

_REFUSALS = (HttpOperationError, HttpResponseError)


@pytest.fixture(scope="module")
def registry(hub: Emulator) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(hub.ca_file))
        yield IoTHubRegistryManager.from_connection_string(hub.service_connection_string)


@pytest.fixture(scope="module")
def manager(hub: Emulator) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(hub.ca_file))
        yield IoTHubConfigurationManager.from_connection_string(hub.service_connection_string)


def _status(error: pytest.ExceptionInfo[Any]) -> int:
    return int(error.value.response.status_code)


def _key(letter: str) -> str:
    return base64.b64encode(letter.encode() * 32).decode()


def test_devices_are_made_read_changed_and_taken_out(registry: Any, name: str) -> None:
    made = registry.create_device_with_sas(name, _key("a"), _key("b"), "enabled")
    assert (made.device_id, made.status) == (name, "enabled")
    assert made.authentication.symmetric_key.primary_key == _key("a")
    changed = registry.update_device_with_sas(name, made.etag, _key("c"), _key("b"), "disabled", status_reason="rest")
    assert (changed.status, changed.status_reason) == ("disabled", "rest")
    assert changed.etag != made.etag
    with pytest.raises(_REFUSALS) as refused:
        registry.update_device_with_sas(name, made.etag, _key("d"), _key("b"), "enabled")
    assert _status(refused) == 412
    with pytest.raises(_REFUSALS) as refused:
        registry.create_device_with_sas(name, _key("a"), _key("b"), "enabled")
    assert _status(refused) == 409
    assert name in [item.device_id for item in registry.get_devices(1000)]
    registry.delete_device(name)
    with pytest.raises(_REFUSALS) as refused:
        registry.get_device(name)
    assert _status(refused) == 404


def test_devices_prove_themselves_by_thumbprint_or_authority(registry: Any, name: str) -> None:
    own = registry.create_device_with_x509(f"{name}-own", "AB" * 20, "CD" * 32, "enabled")
    assert own.authentication.x509_thumbprint.primary_thumbprint == "AB" * 20
    authority = registry.create_device_with_certificate_authority(f"{name}-ca", "enabled", iot_edge=True)
    assert (authority.authentication.type, authority.capabilities.iot_edge) == ("certificateAuthority", True)
    assert [item.module_id for item in registry.get_modules(f"{name}-ca")] == ["$edgeAgent", "$edgeHub"]


def test_modules_are_made_read_and_taken_out(registry: Any, name: str) -> None:
    registry.create_device_with_sas(name, "", "", "enabled")
    made = registry.create_module_with_sas(name, "reader", "me", _key("a"), _key("b"))
    assert (made.module_id, made.managed_by) == ("reader", "me")
    changed = registry.update_module_with_sas(name, "reader", "you", made.etag, _key("c"), _key("b"))
    assert changed.authentication.symmetric_key.primary_key == _key("c")
    assert registry.get_module(name, "reader").managed_by == "you"
    registry.delete_module(name, "reader")
    assert registry.get_modules(name) == []


def test_many_devices_at_once(registry: Any, name: str) -> None:
    entries = [ExportImportDevice(id=f"{name}-{n}", import_mode="create", status="enabled") for n in range(3)]
    assert registry.bulk_create_or_update_devices(entries).is_successful
    broken = registry.bulk_create_or_update_devices(
        [*entries[:1], ExportImportDevice(id="no such", import_mode="delete")]
    )
    assert not broken.is_successful
    assert [item.device_id for item in broken.errors] == [f"{name}-0", "no such"]


def test_statistics_count_devices(registry: Any, hub: Emulator, name: str) -> None:
    before = registry.get_device_registry_statistics().disabled_device_count
    registry.create_device_with_sas(name, "", "", "disabled")
    counts = registry.get_device_registry_statistics()
    assert counts.disabled_device_count == before + 1
    assert counts.total_device_count == counts.enabled_device_count + counts.disabled_device_count
    with device(hub.add_device(f"{name}-on"), hub.ca_pem) as client:
        client.sdk.connect()
        assert registry.get_service_statistics().connected_device_count == 1


def test_twins_are_patched_replaced_and_guarded_by_their_tag(registry: Any, name: str) -> None:
    registry.create_device_with_sas(name, "", "", "enabled")
    twin = registry.get_twin(name)
    patch = Twin(tags={"site": "north", "line": 3}, properties=TwinProperties(desired={"a": {"b": 1}, "c": 2}))
    patched = registry.update_twin(name, patch, twin.etag)
    assert patched.tags == {"site": "north", "line": 3}
    assert patched.properties.desired["$version"] == 2
    assert patched.properties.desired["$metadata"]["a"]["b"]["$lastUpdated"]
    with pytest.raises(_REFUSALS) as refused:
        registry.update_twin(name, patch, twin.etag)
    assert _status(refused) == 412
    replaced = registry.replace_twin(name, Twin(tags={"x": 1}, properties=TwinProperties(desired={"c": 3})))
    assert (replaced.tags, replaced.properties.desired["c"]) == ({"x": 1}, 3)
    assert "a" not in replaced.properties.desired
    with pytest.raises(_REFUSALS) as refused:
        registry.update_twin(name, Twin(tags={"a": "x" * 5000}))
    assert _status(refused) == 400


def test_a_connected_device_hears_of_its_twin_and_answers_methods(registry: Any, hub: Emulator, name: str) -> None:
    with device(hub.add_device(name), hub.ca_pem) as client:
        client.hear_patches()
        client.answer_methods()
        registry.update_twin(name, Twin(properties=TwinProperties(desired={"rate": 5})))
        assert client.heard(client.patches) == {"rate": 5, "$version": 2}
        client.sdk.patch_twin_reported_properties({"free": 40})
        assert registry.get_twin(name).properties.reported["free"] == 40
        answer = registry.invoke_device_method(name, CloudToDeviceMethod(method_name="ping", payload={"n": 1}))
        assert (answer.status, answer.payload) == (200, {"echo": {"n": 1}})
        assert registry.get_device(name).connection_state == "Connected"


def test_modules_have_twins_and_methods_of_their_own(registry: Any, hub: Emulator, name: str) -> None:
    hub.add_device(name)
    with module(hub.add_module(name, "reader"), hub.ca_pem) as client:
        client.answer_methods(201)
        answer = registry.invoke_device_module_method(
            name, "reader", CloudToDeviceMethod(method_name="go", payload="x")
        )
        assert (answer.status, answer.payload) == (201, {"echo": "x"})
        registry.update_module_twin(name, "reader", Twin(properties=TwinProperties(desired={"a": 1})))
        assert registry.get_module_twin(name, "reader").properties.desired["a"] == 1
        assert "a" not in registry.get_twin(name).properties.desired


def test_a_method_of_who_is_not_there_is_refused(registry: Any, name: str) -> None:
    registry.create_device_with_sas(name, "", "", "enabled")
    with pytest.raises(_REFUSALS) as refused:
        registry.invoke_device_method(name, CloudToDeviceMethod(method_name="ping"))
    assert _status(refused) == 404
    hasty = CloudToDeviceMethod(method_name="ping", response_timeout_in_seconds=1)
    with pytest.raises(_REFUSALS) as refused:
        registry.invoke_device_method(name, hasty)
    assert _status(refused) == 400, "the service waits five seconds at least"


def test_a_query_gives_all_its_pages(registry: Any, name: str) -> None:
    for number in range(5):
        registry.create_device_with_sas(f"{name}-{number}", "", "", "enabled")
        registry.update_twin(f"{name}-{number}", Twin(tags={"set": name, "n": number}))
    asked = QuerySpecification(query=f"SELECT * FROM devices WHERE tags.set = '{name}' AND tags.n > 0")
    found, token, pages = [], None, 0
    while True:
        page = registry.query_iot_hub(asked, token, 3)
        found += [twin.device_id for twin in page.items]
        pages += 1
        token = page.continuation_token
        if not token:
            break
    assert (found, pages) == ([f"{name}-{number}" for number in range(1, 5)], 2)
    counted = registry.query_iot_hub(QuerySpecification(query="SELECT COUNT() AS n FROM devices"))
    assert (counted.type, counted.items[0].additional_properties["n"] >= 5) == ("raw", True)
    for wrong, mark in (("SELECT * FROM nowhere", None), (asked.query, "bm9uZQ==")):
        with pytest.raises(_REFUSALS) as refused:
            registry.query_iot_hub(QuerySpecification(query=wrong), mark)
        assert _status(refused) == 400


def _edge_content(image: str) -> ConfigurationContent:
    agent = {"schemaVersion": "1.1", "modules": {"reader": {"type": "docker", "settings": {"image": image}}}}
    hub = {"schemaVersion": "1.1", "routes": {"up": "FROM /messages/* INTO $upstream"}}
    parts = {"$edgeAgent": {"properties.desired": agent}, "$edgeHub": {"properties.desired": hub}}
    return ConfigurationContent(modules_content=parts)


def test_a_deployment_with_a_layer_reaches_its_devices(registry: Any, manager: Any, name: str) -> None:
    registry.create_device_with_certificate_authority(name, "enabled", iot_edge=True)
    registry.update_twin(name, Twin(tags={"ring": name}))
    condition, query = f"tags.ring = '{name}'", f"SELECT deviceId FROM devices WHERE tags.ring = '{name}'"
    base = Configuration(
        id=f"{name}-base",
        schema_version="1.0",
        content=_edge_content("registry.test/reader:1"),
        target_condition=condition,
        priority=1,
        metrics=ConfigurationMetrics(queries={"all": query}),
    )
    manager.create_configuration(base)
    place = "properties.desired.modules.reader.settings.image"
    layer = ConfigurationContent(modules_content={"$edgeAgent": {place: "registry.test/reader:2"}})
    manager.create_configuration(
        Configuration(id=f"{name}-layer", content=layer, target_condition=condition, priority=2)
    )
    agent = registry.get_module_twin(name, "$edgeAgent").properties.desired
    assert agent["modules"]["reader"] == {"type": "docker", "settings": {"image": "registry.test/reader:2"}}
    shown = manager.get_configuration(f"{name}-base")
    assert shown.system_metrics.results["appliedCount"] == 1
    assert shown.metrics.results == {"all": 1}
    assert {item.id for item in manager.get_configurations(100)} >= {f"{name}-base", f"{name}-layer"}
    shown.priority = 3
    assert manager.update_configuration(shown, shown.etag).priority == 3
    assert registry.get_module_twin(name, "$edgeAgent").properties.desired["modules"]["reader"]["settings"] == {
        "image": "registry.test/reader:1"
    }
    for item in (f"{name}-base", f"{name}-layer"):
        manager.delete_configuration(item)
    with pytest.raises(_REFUSALS) as refused:
        manager.get_configuration(f"{name}-base")
    assert _status(refused) == 404


def test_content_goes_to_one_device_at_once(registry: Any, manager: Any, name: str) -> None:
    registry.create_device_with_certificate_authority(name, "enabled", iot_edge=True)
    manager.apply_configuration_on_edge_device(name, _edge_content("registry.test/reader:7"))
    agent = registry.get_module_twin(name, "$edgeAgent").properties.desired
    assert agent["modules"]["reader"]["settings"] == {"image": "registry.test/reader:7"}
    assert registry.get_module(name, "reader").managed_by == "IotEdge"
    registry.create_device_with_sas(f"{name}-plain", "", "", "enabled")
    with pytest.raises(_REFUSALS) as refused:
        manager.apply_configuration_on_edge_device(f"{name}-plain", _edge_content("registry.test/reader:7"))
    assert _status(refused) == 400


def test_conditions_and_queries_are_tried(manager: Any) -> None:
    tried = manager.test_configuration_queries(
        ConfigurationQueriesTestInput(
            target_condition="tags.a =", custom_metric_queries={"m": "SELECT", "n": "SELECT * FROM devices"}
        )
    )
    assert "expected a name" in tried.target_condition_error
    assert sorted(tried.custom_metric_query_errors) == ["m"]


def _plain(hub: Emulator, path: str, token: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{hub.url}{path}", body, {"Authorization": token})
    context = ssl.create_default_context(cafile=hub.ca_file)
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def _token(hub: Emulator, policy: str, *, age_s: int = -600, resource: str = "", key: str = "") -> str:
    resource = resource or f"{hub.host}:{hub.http_port}"
    return sas.make(key or hub.hub.policies[policy], resource, int(time.time()) - age_s, policy)


def test_only_a_good_token_of_a_policy_with_the_right_is_let_in(hub: Emulator) -> None:
    for wrong in (
        "",
        "Bearer x",
        _token(hub, "iothubowner", age_s=10),
        _token(hub, "iothubowner", resource="another.test"),
        _token(hub, "iothubowner", key=_key("z")),
        _token(hub, "device"),
        _token(hub, "service"),
    ):
        status, answer = _plain(hub, "/statistics/devices", wrong)
        assert (status, answer["Message"].partition(";")[0]) == (401, "ErrorCode:IotHubUnauthorizedAccess")
    for good in (_token(hub, "registryRead"), _token(hub, "iothubowner", resource=hub.name)):
        assert _plain(hub, "/statistics/devices", good)[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/devices/query", b"{", 400),
        ("/devices/query", b"[1]", 400),
        ("/devices/query", b'{"query": 1}', 400),
        ("/devices", b'[{"id": 5}]', 400),
        ("/devices/none/applyConfigurationContent", b"{}", 400),
        ("/devices/query", b" " * 1_100_000, 413),
        ("/twins/none/methods", b"{}", 400),
    ],
    ids=["cut", "list", "number", "import", "content", "long", "method"],
)
def test_a_request_that_is_none_is_refused(hub: Emulator, path: str, body: bytes, status: int) -> None:
    assert _plain(hub, path, _token(hub, "iothubowner"), body)[0] == status


def test_faults_meet_the_service_too(hub: Emulator) -> None:
    owner = _token(hub, "iothubowner")
    hub.admin.fault(kind="refuse", operation="service", code=503, count=1)
    hub.admin.fault(kind="throttle", operation="service", count=1)
    hub.admin.fault(kind="delay", operation="service", delay_ms=10, count=1)
    found = [_plain(hub, "/statistics/devices", owner)[0] for _ in range(4)]
    assert found == [503, 429, 200, 200]


def test_what_the_service_wrote_outlives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"deviceContent": {"properties.desired.rate": 5}}
    with running_hub(tmp_path) as emulator:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(emulator.ca_file))
        first = IoTHubRegistryManager.from_connection_string(emulator.service_connection_string)
        first.create_device_with_sas("kept", _key("a"), _key("b"), "enabled")
        emulator.call(lambda: emulator.configurations.put("one", {"content": settings, "targetCondition": "*"}, None))
        before = first.get_twin("kept")
        emulator.stop()
        again = Emulator(emulator.host, data=tmp_path).start()
        try:
            second = IoTHubRegistryManager.from_connection_string(again.service_connection_string)
            assert second.get_device("kept").authentication.symmetric_key.primary_key == _key("a")
            after = second.get_twin("kept")
            assert (after.etag, after.properties.desired) == (before.etag, before.properties.desired)
            assert after.properties.desired["rate"] == 5
            second.create_device_with_sas("later", "", "", "enabled")
            assert second.get_twin("later").properties.desired["rate"] == 5, "the configuration is still there"
        finally:
            again.stop()
