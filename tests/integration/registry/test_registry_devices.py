"""Enrolment tokens, devices, tags, lists by condition, deletion."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cloud_registry.identities import DeviceKey
from edge_contract.errors import EdgeError
from tests.integration.registry.running import Registry, error_of
from tests.support.devicekey import TestKey

KEY = TestKey.of("the device").public
OTHER_KEY = TestKey.of("somebody else").public


def redeem(registry: Registry, token: str, key: DeviceKey = KEY) -> str:
    until_ms = registry.clock.now_ms + 1_000_000
    return registry.services.enrolments.redeem(token, key, "linux/arm64", "board-7", until_ms).device


def test_a_token_enrols_one_device(registry: Registry) -> None:
    client = registry.client()
    made = client.create_enrolment_token("cam-1", {"site": "north"}, ttl_s=60)
    assert made["token"].startswith("lme_")
    assert made["expires_at"] == "2026-09-21T14:14:20.000Z"
    assert redeem(registry, made["token"]) == "cam-1"
    device = client.device("cam-1")
    assert (device["platform"], device["hardware_id"], device["tags"]) == ("linux/arm64", "board-7", {"site": "north"})
    assert (device["report"], device["is_online"], device["desired"]) == (None, False, {})


def test_a_spent_token_works_again_for_the_same_key_alone(registry: Registry) -> None:
    token = registry.client().create_enrolment_token("cam-1")["token"]
    redeem(registry, token)
    identity = registry.client().device("cam-1")["identity"]
    assert redeem(registry, token) == "cam-1"
    assert registry.client().device("cam-1")["identity"] == identity
    assert error_of(redeem, registry, token, OTHER_KEY).code == "cloud.token-spent"
    principal = registry.services.tokens.authenticate(TestKey.of("the device").token("cam-1", registry.clock.now_ms))
    assert principal is not None
    assert (principal.name, principal.is_device) == ("cam-1", True)


def test_an_expired_or_unknown_token_enrols_nobody(registry: Registry) -> None:
    token = registry.client().create_enrolment_token("cam-1", ttl_s=1)["token"]
    registry.clock.now_ms += 1_000
    assert error_of(redeem, registry, token).code == "cloud.token-spent"
    for text in ("lme_guess", "", "x" * 10_000, registry.admin_token):
        assert error_of(redeem, registry, text).code == "cloud.token-spent"
    assert registry.client().devices()["items"] == []


def test_of_many_keys_that_race_for_a_token_one_wins(registry: Registry) -> None:
    token = registry.client().create_enrolment_token("cam-1")["token"]

    def attempt(number: int) -> str:
        try:
            return redeem(registry, token, TestKey.of(str(number)).public)
        except EdgeError as error:
            return error.code

    with ThreadPoolExecutor(8) as racers:
        results = list(racers.map(attempt, range(8)))
    assert sorted(results) == ["cam-1"] + ["cloud.token-spent"] * 7


def test_a_device_that_enrols_again_keeps_its_tags_unless_the_token_brings_some(registry: Registry) -> None:
    client = registry.client()
    redeem(registry, client.create_enrolment_token("cam-1", {"site": "north"})["token"])
    redeem(registry, client.create_enrolment_token("cam-1")["token"], OTHER_KEY)
    assert client.device("cam-1")["tags"] == {"site": "north"}
    redeem(registry, client.create_enrolment_token("cam-1", {"floor": "2"})["token"], OTHER_KEY)
    assert client.device("cam-1")["tags"] == {"floor": "2"}


@pytest.mark.parametrize("name", ["", "a b", "../x", "ü", "x" * 65, "#", "+", "a/b", "$SYS"])
def test_odd_device_names_are_refused(local_registry: Registry, name: str) -> None:
    assert error_of(local_registry.client().create_enrolment_token, name).code == "cloud.name-invalid"


@pytest.mark.parametrize("tags", [{"a b": "x"}, {"": "x"}, {"a..b": "x"}, {"k": "x" * 300}, {"k\u0000": "x"}])
def test_odd_tags_are_refused(local_registry: Registry, tags: dict[str, str]) -> None:
    local_registry.enrol("cam-1", site="north")
    assert error_of(local_registry.client().set_tags, "cam-1", tags).code in ("cloud.name-invalid", "cloud.bad-request")
    assert local_registry.client().device("cam-1")["tags"] == {"site": "north"}


def test_devices_are_listed_by_name_and_condition_in_pages(registry: Registry) -> None:
    for number in range(9):
        registry.enrol(f"cam-{number}", site="north" if number % 2 else "south")
    client = registry.client()
    first = client.devices(limit=5)
    second = client.devices(limit=5, cursor=first["next"])
    names = [item["name"] for page in (first, second) for item in page["items"]]
    assert names == [f"cam-{number}" for number in range(9)]
    assert second["next"] is None
    assert [item["name"] for item in client.devices(name="cam-7")["items"]] == ["cam-7"]
    assert len(client.devices(name="cam-*")["items"]) == 9
    assert client.devices(name="cam_*")["items"] == []
    page = client.devices("tags.site = 'north'", limit=3)
    rest = client.devices("tags.site = 'north'", limit=3, cursor=page["next"])
    assert [item["name"] for found in (page, rest) for item in found["items"]] == ["cam-1", "cam-3", "cam-5", "cam-7"]
    assert error_of(client.devices, "tags.site").code == "cloud.condition-invalid"


def test_a_deleted_device_is_gone_with_its_token(registry: Registry) -> None:
    registry.register("digits")
    registry.bundle("digits", 1)
    token = registry.enrol("cam-1")
    client = registry.client()
    deployment = client.create_deployment("digits", 1, "*")["id"]
    client.delete_device("cam-1")
    assert error_of(client.device, "cam-1").code == "cloud.not-found"
    assert error_of(registry.services.tokens.authenticate, token).code == "cloud.unauthorized"
    assert client.deployment(deployment)["devices"] == 0
    assert error_of(client.delete_device, "cam-1").code == "cloud.not-found"
    registry.enrol("cam-1")
    assert client.deployment(deployment)["counts"]["pending"] == 1
