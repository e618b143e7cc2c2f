"""Layered deployments and deployments at scale: only what is named, valid on top of a base, within every limit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from edge_contract.errors import EdgeError
from edge_contract.hub import HubDesired, HubSettings
from packager.cli import main
from packager.iotedge.layered import apply_layer, make_configuration, make_layer
from packager.iotedge.limits import MODULES_MAX
from packager.iotedge.manifest import Credentials, ModuleRequest, RouteTerms, make_manifest
from tests.unit.packager.test_iotedge import IMAGE, RELEASE, TEMPLATE, folder, require_published_schemas, run

__all__ = ["folder"]  # a fixture

ASKED = ModuleRequest(
    IMAGE,
    name="grader",
    env={"A": "b"},
    startup_order=3,
    image_pull_policy="never",
    routes={"up": "FROM /messages/modules/grader/* INTO $upstream"},
    route_terms={"up": RouteTerms(0, 60)},
    credentials={"main": Credentials("registry.example", "user", "secret")},
    settings=HubSettings(report_ms=5_000),
    desired={"camera": {"rate": 5}},
)


def test_a_layer_names_its_own_parts_and_nothing_else() -> None:
    content = make_layer(RELEASE, ASKED)["modulesContent"]
    assert {module: sorted(parts) for module, parts in content.items()} == {
        "$edgeAgent": [
            "properties.desired.modules.grader",
            "properties.desired.runtime.settings.registryCredentials.main",
        ],
        "$edgeHub": ["properties.desired.routes.up"],
        "grader": ["properties.desired.camera", "properties.desired.lighterman"],
    }
    route = {"route": ASKED.routes["up"], "priority": 0, "timeToLiveSecs": 60}
    assert content["$edgeHub"]["properties.desired.routes.up"] == route
    twin = content["grader"]["properties.desired.lighterman"]
    assert HubDesired.read(twin).settings == HubSettings(report_ms=5_000)


def test_a_layer_on_a_base_gives_the_manifest_that_putting_the_module_in_gives() -> None:
    on_top = apply_layer(TEMPLATE, make_layer(RELEASE, ASKED))
    assert on_top == make_manifest(RELEASE, ASKED, TEMPLATE)
    require_published_schemas(on_top)


def test_a_layer_of_somebody_else_keeps_what_was_not_named() -> None:
    others = make_layer(RELEASE, ModuleRequest(IMAGE, name="other", routes={"o": "FROM /* INTO $upstream"}))
    both = make_layer(RELEASE, ASKED, others)["modulesContent"]
    for module, parts in others["modulesContent"].items():
        assert both[module].items() >= parts.items()
    assert others == make_layer(RELEASE, ModuleRequest(IMAGE, name="other", routes={"o": "FROM /* INTO $upstream"}))


@pytest.mark.parametrize(
    ("module", "path", "value", "said"),
    [
        ("$edgeAgent", "properties.desired", {}, "is no part that a layer may have"),
        ("$edgeAgent", "properties.desired.systemModules.edgeHub", {}, "is no part that a layer may have"),
        ("$edgeAgent", "properties.desired.modules.a.b", {}, "has to match"),
        ("$edgeAgent", "properties.desired.modules.x", {"type": "docker"}, "is missing"),
        ("$edgeHub", "properties.desired.routes.r", 5, "routes.r"),
        ("$edgeHub", "properties.desired.storeAndForwardConfiguration", {}, "is no part"),
        ("camera", "properties.reported.x", 1, "has to begin with properties.desired."),
        ("camera", "properties.desired..x", 1, "has to begin with properties.desired."),
        ("camera", "properties.desired.x", "y" * 4_097, "a text of more than"),
        ("camera", "properties.desired.x", ["y" * 4_000] * 9, "IoT Hub takes at most"),
        ("$edgeOther", "properties.desired.x", 1, "a module's name"),
    ],
)
def test_a_bad_part_of_a_layer_is_refused_by_its_name(module: str, path: str, value: Any, said: str) -> None:
    template = {"modulesContent": {module: {path: value}}}
    with pytest.raises(EdgeError) as caught:
        make_layer(RELEASE, ModuleRequest(IMAGE), template)
    assert caught.value.code == "config.invalid"
    assert said in caught.value.detail
    assert module in caught.value.detail


def test_fifty_modules_in_a_layer_and_no_more() -> None:
    entry = make_layer(RELEASE, ModuleRequest(IMAGE))["modulesContent"]["$edgeAgent"][
        "properties.desired.modules.digits"
    ]
    full = {f"properties.desired.modules.m{number}": entry for number in range(MODULES_MAX)}
    with pytest.raises(EdgeError, match="51 modules, at most 50"):
        make_layer(RELEASE, ModuleRequest(IMAGE), {"modulesContent": {"$edgeAgent": full}})


def test_a_layer_does_not_fit_on_what_it_contradicts() -> None:
    base = copy.deepcopy(TEMPLATE)
    base["modulesContent"]["camera"] = {"properties.desired": {"x": 5}}
    with pytest.raises(EdgeError, match="no object in the base deployment"):
        apply_layer(base, {"modulesContent": {"camera": {"properties.desired.x.y": 1}}})


def test_a_manifest_and_a_layer_are_not_taken_for_each_other() -> None:
    with pytest.raises(EdgeError, match="belongs to a layered deployment"):
        make_manifest(RELEASE, ASKED, make_layer(RELEASE, ASKED))
    with pytest.raises(EdgeError, match="is no part that a layer may have"):
        make_layer(RELEASE, ASKED, TEMPLATE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"identifier": "Upper"}, "no identifier"),
        ({"identifier": ""}, "no identifier"),
        ({"condition": " "}, "is empty"),
        ({"priority": -1}, "not within"),
        ({"labels": {str(number): "" for number in range(11)}}, "11 labels"),
    ],
)
def test_a_bad_deployment_at_scale_is_refused(changes: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"identifier": "digits", "condition": "*", "priority": 1, "labels": {}}
    with pytest.raises(EdgeError, match=said):
        make_configuration(TEMPLATE, **(good | changes))


def test_a_deployment_at_scale_as_a_template_keeps_what_stands_beside_its_content(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    around = {"id": "theirs", "labels": {"owner": "line 4"}, "priority": 3, "etag": "MQ==", "future": [1]}
    (folder / "theirs.json").write_text(json.dumps({**around, "content": TEMPLATE}))
    code, made = run(capsys, "--template", "theirs.json")
    assert code == 0
    assert {key: value for key, value in made.items() if key != "content"} == around
    require_published_schemas(made["content"])
    again = ["--template", "theirs.json", "--configuration", "ours", "--target-condition", "*", "--json"]
    assert main(["iotedge", "manifest", "bundle", "--image", IMAGE, *again]) == 2
    assert "is a deployment at scale already" in capsys.readouterr().out


def test_the_command_writes_a_layer_for_a_deployment_at_scale(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "base.json").write_text(json.dumps({"content": TEMPLATE}))
    code, made = run(
        capsys,
        *("--module", "grader", "--layered", "--base", "base.json", "--report-ms", "5000", "--log-level", "debug"),
        *("--route", "up=FROM /messages/* INTO $upstream", "--route-priority", "up=0", "--route-ttl", "up=60"),
        *("--registry-credentials", "main=registry.example:5000:PULL_USER:PULL_PASSWORD", "--references"),
        *("--configuration", "digits", "--target-condition", "tags.site='north'", "--priority", "20"),
        *("--label", "team=vision", "--image-pull-policy", "on-create"),
    )
    assert code == 0
    assert (made["id"], made["targetCondition"], made["priority"]) == ("digits", "tags.site='north'", 20)
    assert made["labels"] == {"team": "vision"}
    content = made["content"]["modulesContent"]
    credentials = content["$edgeAgent"]["properties.desired.runtime.settings.registryCredentials.main"]
    assert credentials == {
        "address": "registry.example:5000", "username": "$PULL_USER", "password": "$PULL_PASSWORD"
    }  # fmt: skip
    assert content["$edgeHub"]["properties.desired.routes.up"]["timeToLiveSecs"] == 60
    settings = content["grader"]["properties.desired.lighterman"]["settings"]
    assert settings == {"report_ms": 5_000, "log_level": "debug"}


def test_a_wrapped_template_stays_wrapped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "base.json").write_text(json.dumps({"content": TEMPLATE}))
    code, made = run(capsys, "--template", "base.json")
    assert code == 0
    assert "Camera" in made["content"]["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--base", "base.json"), "--base is for --layered"),
        (("--priority", "1"), "--priority is for --configuration"),
        (("--target-condition", "*"), "--target-condition is for --configuration"),
        (("--configuration", "digits"), "target-condition"),
        (("--route-priority", "r=1"), "no route given here"),
        (("--route", "r=FROM /* INTO $upstream", "--route-priority", "r=x"), "whole number from 0 to 9"),
        (("--route", "r=FROM /* INTO $upstream", "--route-priority", "r=10"), "whole number from 0 to 9"),
        (("--report-ms", "1"), "report_ms"),
        (("--registry-credentials", "m=r.example:a-b:c", "--references"), "names of two variables"),
        (("--desired-file", "own.json"), "is written by this command"),
    ],
)
def test_bad_input_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    (folder / "base.json").write_text(json.dumps(TEMPLATE))
    (folder / "own.json").write_text('{"lighterman": {"director_version": 5}}')
    code, error = run(capsys, *arguments, "--json")
    assert code != 0
    assert said in error["error"]["detail"]
