"""Automatic configurations: who is meant, which one applies, what layers make together."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from device_sim.iothub.configuration_content import composed, difference, with_paths
from device_sim.iothub.configurations import Configurations
from device_sim.iothub.hub import Hub
from device_sim.iothub.identities import HubError
from device_sim.iothub.twins import merged
from edge_contract.hub import HubAddress


@pytest.fixture
def hub() -> Hub:
    ticks = itertools.count(1_700_000_000_000, 1_000)
    hub = Hub("hub", lambda: next(ticks), lambda: "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0")
    for name, site in (("d1", "north"), ("d2", "south")):
        hub.create(HubAddress(name))
        hub.write_twin(HubAddress(name), {"tags": {"site": site}}, is_patch=True)
    hub.create(HubAddress("e1"), {"capabilities": {"iotEdge": True}})
    hub.write_twin(HubAddress("e1"), {"tags": {"site": "north"}}, is_patch=True)
    return hub


@pytest.fixture
def configurations(hub: Hub) -> Configurations:
    return Configurations(hub)


def _device_settings(value: Any, condition: str, priority: int) -> dict[str, Any]:
    content = {"deviceContent": {"properties.desired.settings": value}}
    return {"content": content, "targetCondition": condition, "priority": priority}


def _deployment(modules: dict[str, Any], priority: int = 1, condition: str = "tags.site = 'north'") -> dict[str, Any]:
    agent = {"schemaVersion": "1.1", "modules": modules}
    content = {
        "modulesContent": {
            "$edgeAgent": {"properties.desired": agent},
            "$edgeHub": {"properties.desired": {"routes": {"up": "FROM /* INTO $upstream"}}},
        }
    }
    return {"content": content, "targetCondition": condition, "priority": priority}


def _layer(content: dict[str, Any], priority: int, condition: str = "tags.site = 'north'") -> dict[str, Any]:
    return {"content": {"modulesContent": content}, "targetCondition": condition, "priority": priority}


def _desired(hub: Hub, device: str, module: str = "") -> dict[str, Any]:
    return hub.twin(HubAddress(device, module)).desired.values


def _states(hub: Hub, device: str) -> dict[str, str]:
    return {name: state["status"] for name, state in hub.twin(HubAddress(device)).configurations.items()}


def test_the_highest_priority_applies_and_the_rest_stay_targeted(hub: Hub, configurations: Configurations) -> None:
    configurations.put("low", _device_settings({"rate": 1}, "*", 1), None)
    configurations.put("high", _device_settings({"rate": 9}, "tags.site = 'north'", 5), None)
    assert (_desired(hub, "d1"), _desired(hub, "d2")) == ({"settings": {"rate": 9}}, {"settings": {"rate": 1}})
    assert _states(hub, "d1") == {"low": "Targeted", "high": "Applied"}
    assert configurations.get("low")["systemMetrics"]["results"] == {"targetedCount": 3, "appliedCount": 1}


def test_of_equal_priority_the_newest_applies(hub: Hub, configurations: Configurations) -> None:
    for name, rate in (("b-first", 1), ("a-second", 2)):
        configurations.put(name, _device_settings({"rate": rate}, "*", 3), None)
    assert _desired(hub, "d2") == {"settings": {"rate": 2}}


def test_a_device_that_comes_to_match_later_is_configured(hub: Hub, configurations: Configurations) -> None:
    configurations.put("late", _device_settings({"rate": 4}, "tags.site = 'east'", 1), None)
    hub.write_twin(HubAddress("d2"), {"tags": {"site": "east"}}, is_patch=True)
    assert _desired(hub, "d2") == {"settings": {"rate": 4}}
    hub.write_reported(HubAddress("d1"), {"free": 7})
    configurations.put("free", _device_settings({"rate": 5}, "properties.reported.free > 5", 1), None)
    assert (_states(hub, "d1"), _states(hub, "d2")) == ({"free": "Applied"}, {"late": "Applied"})


def test_a_removed_or_retargeted_configuration_leaves_the_next_lower(hub: Hub, configurations: Configurations) -> None:
    configurations.put("low", _device_settings({"rate": 1}, "*", 1), None)
    high = _device_settings({"rate": 9}, "tags.site = 'north'", 5)
    configurations.put("high", high, None)
    configurations.put("high", high | {"targetCondition": "tags.site = 'south'"}, "*")
    assert (_desired(hub, "d1"), _desired(hub, "d2")) == ({"settings": {"rate": 1}}, {"settings": {"rate": 9}})
    configurations.delete("high", "*")
    assert (_desired(hub, "d2"), _states(hub, "d2")) == ({"settings": {"rate": 1}}, {"low": "Applied"})


def test_nothing_is_written_twice(hub: Hub, configurations: Configurations) -> None:
    configurations.put("one", _device_settings({"rate": 1}, "*", 1), None)
    before = hub.twin(HubAddress("d1")).desired.version
    hub.write_reported(HubAddress("d1"), {"free": 7})
    hub.write_twin(HubAddress("d1"), {"tags": {"more": 1}}, is_patch=True)
    assert hub.twin(HubAddress("d1")).desired.version == before


def test_a_deployment_writes_the_runtime_and_makes_its_modules(hub: Hub, configurations: Configurations) -> None:
    configurations.put("base", _deployment({"reader": {"settings": {"image": "a:1"}}}), None)
    assert _desired(hub, "e1", "$edgeAgent")["modules"] == {"reader": {"settings": {"image": "a:1"}}}
    assert hub.identity(HubAddress("e1", "reader")).managed_by == "IotEdge"
    assert _states(hub, "d1") == {}, "a device without IoT Edge takes no deployment"


def test_layers_go_on_top_of_the_strongest_base_below_them(hub: Hub, configurations: Configurations) -> None:
    configurations.put("old", _deployment({"gone": {"settings": {"image": "z:1"}}}, priority=1), None)
    configurations.put("base", _deployment({"reader": {"settings": {"image": "a:1"}}}, priority=5), None)
    place = "properties.desired.modules.reader"
    layers: dict[str, tuple[int, dict[str, Any]]] = {
        "under": (4, {"$edgeAgent": {place: {"settings": {"image": "under:1"}}}}),
        "first": (6, {"$edgeAgent": {place: {"settings": {"image": "b:2"}}}, "reader": {"properties.desired.a": 1}}),
        "second": (
            7,
            {
                "$edgeHub": {"properties.desired.routes.in": "FROM /x INTO $upstream"},
                "reader": {"properties.desired.b": 2},
            },
        ),
    }
    for name, (priority, content) in layers.items():
        configurations.put(name, _layer(content, priority), None)
    assert _desired(hub, "e1", "$edgeAgent")["modules"] == {"reader": {"settings": {"image": "b:2"}}}
    assert sorted(_desired(hub, "e1", "$edgeHub")["routes"]) == ["in", "up"]
    assert _desired(hub, "e1", "reader") == {"a": 1, "b": 2}
    states = {"old": "Targeted", "base": "Applied", "under": "Targeted", "first": "Applied", "second": "Applied"}
    assert _states(hub, "e1") == states


def test_a_layer_without_a_base_applies_nowhere(hub: Hub, configurations: Configurations) -> None:
    configurations.put("lone", _layer({"reader": {"properties.desired.a": 1}}, 9), None)
    assert _states(hub, "e1") == {"lone": "Targeted"}
    assert HubAddress("e1", "reader") not in hub.identities


def test_a_whole_section_overwrites_what_lower_layers_made() -> None:
    lower = {"modulesContent": {"m": {"properties.desired": {"a": 1, "b": {"c": 1}}}}}
    upper = {"modulesContent": {"m": {"properties.desired": {"z": 1}, "properties.desired.b.d": 2}}}
    assert composed([lower, upper]) == {"m": {"z": 1, "b": {"d": 2}}}


def test_what_the_runtime_reports_is_counted(hub: Hub, configurations: Configurations) -> None:
    configurations.put("base", _deployment({}), None)
    agent = HubAddress("e1", "$edgeAgent")

    def report(code: int) -> dict[str, int]:
        version = hub.twin(agent).desired.version
        hub.write_reported(agent, {"lastDesiredVersion": version, "lastDesiredStatus": {"code": code}})
        result: dict[str, int] = configurations.get("base")["systemMetrics"]["results"]
        return result

    assert report(200)["reportedSuccessfulCount"] == 1
    assert report(400) | {} == {
        "targetedCount": 1,
        "appliedCount": 1,
        "reportedSuccessfulCount": 0,
        "reportedFailedCount": 1,
    }


def test_metrics_count_the_twins_of_their_queries(configurations: Configurations) -> None:
    query = "SELECT deviceId FROM devices WHERE configurations.[[one]].status = 'Applied'"
    body = _device_settings({"rate": 1}, "tags.site = 'north'", 1) | {"metrics": {"queries": {"done": query}}}
    configurations.put("one", body, None)
    assert configurations.get("one")["metrics"]["results"] == {"done": 2}


def test_module_settings_go_to_the_modules_of_their_condition(hub: Hub, configurations: Configurations) -> None:
    hub.create(HubAddress("d1", "reader"))
    hub.create(HubAddress("d1", "writer"))
    content = {"moduleContent": {"properties.desired.level": 3}}
    condition = "FROM devices.modules WHERE moduleId = 'reader'"
    configurations.put("mods", {"content": content, "targetCondition": condition, "priority": 1}, None)
    assert (_desired(hub, "d1", "reader"), _desired(hub, "d1", "writer")) == ({"level": 3}, {})


def test_content_that_does_not_fit_leaves_the_device_targeted(hub: Hub, configurations: Configurations) -> None:
    hub.write_twin(
        HubAddress("d1"), {"properties": {"desired": {f"k{n}": "x" * 4000 for n in range(7)}}}, is_patch=True
    )
    configurations.put("big", _device_settings({"a": "y" * 4000, "b": "y" * 4000}, "tags.site = 'north'", 1), None)
    assert _states(hub, "d1") == {"big": "Targeted"}


@pytest.mark.parametrize(
    "change",
    [
        {"content": {}},
        {"content": {"deviceContent": {"x": 1}, "moduleContent": {"x": 1}}},
        {"content": {"deviceContent": {"settings": 1}}},
        {"content": {"modulesContent": {"m": {"properties.desired": {}}}}},
        {"content": {"modulesContent": {"m": {"properties.desired..a": {}}}}},
        {"targetCondition": "tags.site ="},
        {"targetCondition": "FROM devices.modules WHERE moduleId = 'a'"},
        {"priority": -1},
        {"priority": True},
        {"metrics": {"queries": {str(n): "SELECT * FROM devices" for n in range(6)}}},
        {"metrics": {"queries": {"a": "SELECT"}}},
        {"id": "another"},
    ],
    ids=str,
)
def test_a_configuration_that_is_none_is_refused(configurations: Configurations, change: dict[str, Any]) -> None:
    with pytest.raises(HubError) as refused:
        configurations.put("one", _device_settings({"rate": 1}, "*", 1) | change, None)
    assert refused.value.status == 400
    assert configurations.first(10) == []


def test_tags_and_rights_of_a_configuration_are_kept(hub: Hub, configurations: Configurations) -> None:
    body = _device_settings({"rate": 1}, "*", 1)
    made, is_new = configurations.put("one", body, None)
    assert is_new
    for status, call in (
        (409, lambda: configurations.put("one", body, None)),
        (412, lambda: configurations.put("one", body, '"wrong"')),
        (404, lambda: configurations.put("two", body, "*")),
        (412, lambda: configurations.delete("one", '"wrong"')),
        (400, lambda: configurations.put("one", _device_settings({"rate": 2}, "*", 1), made["etag"])),
        (400, lambda: configurations.put("UPPER", body, None)),
    ):
        with pytest.raises(HubError) as refused:
            call()
        assert refused.value.status == status
    reread = Configurations(hub)
    assert reread.get("one") == made


def test_a_difference_is_the_patch_from_one_to_the_other() -> None:
    old = {"a": 1, "b": {"c": 1, "d": 2}, "e": [1], "f": True}
    new = {"a": 1, "b": {"c": 3}, "e": [1, 2], "f": 1, "g": {"h": {}}}
    patch = difference(old, new)
    assert patch == {"b": {"c": 3, "d": None}, "e": [1, 2], "f": 1, "g": {"h": {}}}
    assert merged(old, patch) == new
    assert difference(new, new) == {}


def test_places_are_set_within_a_copy() -> None:
    values: dict[str, Any] = {"a": {"b": 1}}
    assert with_paths(values, {"properties.desired.a.c.d": 2}) == {"a": {"b": 1, "c": {"d": 2}}}
    assert values == {"a": {"b": 1}}
