"""Deployment manifests for IoT Edge: the published schemas take them, limits hold, passwords stay where they belong."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from packager.build import build
from packager.cli import main
from packager.iotedge.limits import CHUNK_BYTES, MODULES_MAX
from packager.iotedge.manifest import (
    Credentials,
    ModuleRequest,
    Release,
    make_manifest,
    option_tree,
    split_create_options,
)
from packager.iotedge.shape import desired_chars
from packager.layout import Layout
from packager.progress import QuietReporter
from tests.support.require import REPOSITORY_ROOT, require_shared_schema
from tests.unit.packager.support import make_spec

RELEASE = Release("digits", 3, Digest.of(b"index"))
IMAGE = "registry.example:5000/edge/lighterman:1@sha256:" + "a" * 64
TEMPLATE: dict[str, Any] = {
    "modulesContent": {
        "$edgeAgent": {
            "properties.desired": {
                "schemaVersion": "1.1",
                "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.40"}},
                "systemModules": {
                    "edgeAgent": {"type": "docker", "settings": {"image": "private.example/agent:1.4"}},
                    "edgeHub": {
                        "type": "docker",
                        "status": "running",
                        "restartPolicy": "on-unhealthy",
                        "settings": {"image": "private.example/hub:1.4", "createOptions": "{}"},
                    },
                },
                "modules": {
                    "Camera": {
                        "type": "docker",
                        "status": "stopped",
                        "restartPolicy": "never",
                        "settings": {"image": "camera:7"},
                    }
                },
            }
        },
        "$edgeHub": {
            "properties.desired": {
                "schemaVersion": "1.2",
                "routes": {"frames": {"route": "FROM /messages/modules/Camera/* INTO $upstream", "priority": 3}},
            }
        },
        "Camera": {"properties.desired": {"fps": 5, "zones": [{"x": 1.5}, None, True]}},
    }
}


def agent_of(manifest: Any) -> Any:
    return manifest["modulesContent"]["$edgeAgent"]["properties.desired"]


def hub_of(manifest: Any) -> Any:
    return manifest["modulesContent"]["$edgeHub"]["properties.desired"]


def require_published_schemas(manifest: Any) -> None:
    """The whole manifest, and the two system modules by themselves, against what was published for them."""
    for name, document in (
        ("azure-iot-edge-deployment-2.0", manifest),
        ("azure-iot-edgeagent-deployment-1.1", {"$edgeAgent": manifest["modulesContent"]["$edgeAgent"]}),
        ("azure-iot-edgehub-deployment-1.2", {"$edgeHub": manifest["modulesContent"]["$edgeHub"]}),
    ):
        schema = json.loads(require_shared_schema(f"schemas/iotedge/{name}.json").read_text())
        Draft4Validator(schema).validate(document)


FULL = ModuleRequest(
    image=IMAGE,
    name="grader",
    env={"LOG_LEVEL": "info"},
    create_options={"HostConfig": {"Binds": ["/var/lib/é" + "é" * 700 + ":/data"], "Memory": 2**28}},
    restart_policy="on-failure",
    startup_order=2**32 - 1,
    routes={"grades": 'FROM /messages/modules/grader/outputs/* INTO BrokeredEndpoint("/modules/sink/inputs/in")'},
    credentials={"main": Credentials("registry.example:5000", "puller", "secret")},
)


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["new", "template"])
@pytest.mark.parametrize("asked", [ModuleRequest(IMAGE), FULL], ids=["least", "full"])
def test_the_published_schemas_take_every_manifest(asked: ModuleRequest, template: Any) -> None:
    require_published_schemas(make_manifest(RELEASE, asked, template))


def test_a_new_manifest_runs_the_module_and_sends_all_upstream() -> None:
    manifest = make_manifest(RELEASE, ModuleRequest(IMAGE))
    agent = agent_of(manifest)
    assert agent["schemaVersion"] == "1.1"
    assert agent["systemModules"]["edgeAgent"]["settings"]["image"].endswith("azureiotedge-agent:1.5")
    assert agent["systemModules"]["edgeHub"]["settings"]["image"].endswith("azureiotedge-hub:1.5")
    assert agent["modules"] == {
        "digits": {
            "type": "docker",
            "status": "running",
            "restartPolicy": "always",
            "version": "3",
            "settings": {"image": IMAGE},
        }
    }
    assert hub_of(manifest)["routes"] == {"upstream": "FROM /messages/* INTO $upstream"}


def test_the_twin_names_the_bundle_and_instructs_nothing() -> None:
    twin = make_manifest(RELEASE, FULL)["modulesContent"]["grader"]["properties.desired"]
    index = str(RELEASE.index)
    assert twin == {"lighterman": {"module": "grader", "model": "digits", "version": 3, "index": index}}


def test_routes_that_are_given_replace_the_default_one() -> None:
    assert list(hub_of(make_manifest(RELEASE, FULL))["routes"]) == ["grades"]


@pytest.mark.parametrize("size", [0, 505, 506, 507, 1100])
def test_create_options_come_in_parts_that_join_to_the_same_json(size: int) -> None:
    options = {"é": "é" * size}
    parts = split_create_options(options)
    assert list(parts)[:2] == ["createOptions", "createOptions01"][: len(parts)]
    assert all(0 < len(part.encode()) <= CHUNK_BYTES for part in parts.values())
    assert json.loads("".join(parts[key] for key in sorted(parts))) == options


def test_parts_of_old_create_options_do_not_stay_behind() -> None:
    long = make_manifest(RELEASE, FULL)
    short = make_manifest(RELEASE, ModuleRequest(IMAGE, name="grader", create_options={"User": "1000"}), long)
    assert agent_of(short)["modules"]["grader"]["settings"] == {"image": IMAGE, "createOptions": '{"User":"1000"}'}


def test_a_template_keeps_all_that_was_not_named() -> None:
    before = copy.deepcopy(TEMPLATE)
    manifest = make_manifest(RELEASE, FULL, TEMPLATE)
    assert before == TEMPLATE
    del agent_of(manifest)["modules"]["grader"], hub_of(manifest)["routes"]["grades"]
    del agent_of(manifest)["runtime"]["settings"]["registryCredentials"], manifest["modulesContent"]["grader"]
    assert manifest == TEMPLATE


def test_a_module_that_a_template_has_keeps_what_was_not_named() -> None:
    first = make_manifest(RELEASE, FULL)
    agent_of(first)["modules"]["grader"] |= {"imagePullPolicy": "never", "status": "stopped"}
    first["modulesContent"]["grader"]["properties.desired"]["mine"] = {"kept": True}
    newer = Release("digits", 4, Digest.of(b"newer"))
    second = make_manifest(newer, ModuleRequest("other:2", name="grader", env={"MORE": "1"}), first)
    wanted = copy.deepcopy(first)
    module = agent_of(wanted)["modules"]["grader"]
    module["version"], module["settings"]["image"] = "4", "other:2"
    module["env"]["MORE"] = {"value": "1"}
    twin = wanted["modulesContent"]["grader"]["properties.desired"]
    twin["lighterman"] |= {"version": 4, "index": str(newer.index)}
    assert second == wanted


def test_single_create_options_go_over_a_file() -> None:
    base = {"HostConfig": {"Memory": 1, "Init": True}}
    tree = option_tree({"HostConfig.Memory": "268435456", "Cmd": '["run"]', "User": "me", "Tag": '1,"a":2'}, base)
    assert tree == {"HostConfig": {"Memory": 2**28, "Init": True}, "Cmd": ["run"], "User": "me", "Tag": '1,"a":2'}
    assert base == {"HostConfig": {"Memory": 1, "Init": True}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": "has space"}, "image"),
        ({"image": ""}, "image"),
        ({"image": "Upper/Case:1"}, "image"),
        ({"name": "with.dot"}, "module"),
        ({"name": "$edgeAgent"}, "module"),
        ({"name": "n" * 200}, "module"),
        ({"env": {"A.B": "1"}}, "env"),
        ({"env": {"A": "x" * 4097}}, "env.A"),
        ({"env": {"A": "\udc80"}}, "env"),
        ({"routes": {"a.b": "FROM /* INTO $upstream"}}, "route"),
        ({"routes": {"a": "everything to the cloud"}}, "route 'a'"),
        ({"routes": {"a": 'FROM /* INTO BrokeredEndpoint("/modules/m")'}}, "route 'a'"),
        ({"restart_policy": "sometimes"}, "grader.restartPolicy"),
        ({"startup_order": 2**32}, "grader.startupOrder"),
        ({"create_options": {"Env": ["x" * 60_000]}}, "create-options"),
        ({"create_options": {"Env": ["x" * 33_000]}}, "counts"),
        ({"credentials": {"a b": Credentials("r.example", "u", "secret")}}, "registry-credentials"),
        ({"credentials": {"a": Credentials("r.example", "u", "secret" * 800)}}, "registryCredentials.a.password"),
    ],
)
def test_a_bad_request_is_refused_by_the_name_of_its_field(changes: dict[str, Any], said: str) -> None:
    asked = ModuleRequest(**({"image": IMAGE, "name": "grader"} | changes))
    with pytest.raises(EdgeError) as caught:
        make_manifest(RELEASE, asked)
    assert caught.value.code == "config.invalid"
    assert said in caught.value.detail
    assert "secret" not in str(caught.value)


DELETED = object()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ((), DELETED, "modulesContent: is missing"),
        (("$edgeHub",), DELETED, "$edgeHub: is missing"),
        (("$edgeAgent",), [], "has to be an object"),
        (("$edgeAgent", "properties.desired.modules.m"), {}, "layered"),
        (("$edgeAgent", "properties.desired", "schemaVersion"), "2.0", "schemaVersion"),
        (("$edgeAgent", "properties.desired", "integrity"), {}, "integrity"),
        (("$edgeAgent", "properties.desired", "modules", "a b"), {}, "a b"),
        (("$edgeAgent", "properties.desired", "modules", "Camera", "status"), "idle", "Camera.status"),
        (("$edgeAgent", "properties.desired", "modules", "Camera", "startupOrder"), True, "startupOrder"),
        (("$edgeAgent", "properties.desired", "modules", "Camera", "settings", "image"), DELETED, "image: is missing"),
        (("$edgeAgent", "properties.desired", "modules", "Camera", "settings", "createOptions"), {}, "createOptions"),
        (("$edgeAgent", "properties.desired", "modules", "Camera", "env"), {"A": {"value": None}}, "env.A.value"),
        (("$edgeHub", "properties.desired", "routes", "x"), 5, "routes.x"),
        (("$edgeHub", "properties.desired", "routes", "x"), {"route": "FROM", "priority": 10}, "priority"),
        (("$edgeHub", "properties.desired", "mqttBroker"), {}, "mqttBroker"),
        (("Camera", "properties.desired", "big"), ["x" * 4000] * 9, "Camera.properties.desired: counts"),
        (("Camera", "properties.desired", "long"), "x" * 4097, "Camera.properties.desired.long"),
        (("Camera", "properties.desired", "a.b"), 1, "a.b"),
        (("Camera", "properties.desired", "whole"), 2**52, "whole"),
        (("Camera", "properties.desired", "deep"), [[[[[[[[[[[]]]]]]]]]]], "deeper"),
    ],
)
def test_a_bad_template_is_refused_by_the_name_of_its_field(path: tuple[str, ...], value: Any, said: str) -> None:
    template = copy.deepcopy(TEMPLATE)
    place, keys = template, ("modulesContent", *path)
    for key in keys[:-1]:
        place = place[key]
    if value is DELETED:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    with pytest.raises(EdgeError) as caught:
        make_manifest(RELEASE, ModuleRequest(IMAGE), template)
    assert caught.value.code == "config.invalid"
    assert said in caught.value.detail


def test_fifty_modules_and_no_more() -> None:
    template = copy.deepcopy(TEMPLATE)
    modules = agent_of(template)["modules"]
    modules |= {f"m{number}": modules["Camera"] for number in range(MODULES_MAX - 2)}
    full = make_manifest(RELEASE, ModuleRequest(IMAGE), template)
    assert len(agent_of(full)["modules"]) == MODULES_MAX
    with pytest.raises(EdgeError, match="51 modules, at most 50"):
        make_manifest(RELEASE, ModuleRequest(IMAGE, name="another"), full)


def test_startup_order_needs_the_schema_that_knows_it() -> None:
    template = copy.deepcopy(TEMPLATE)
    agent_of(template)["schemaVersion"] = "1.0"
    assert agent_of(make_manifest(RELEASE, ModuleRequest(IMAGE), template))["schemaVersion"] == "1.0"
    with pytest.raises(EdgeError, match="startup order"):
        make_manifest(RELEASE, ModuleRequest(IMAGE, startup_order=1), template)


def test_desired_properties_count_as_the_hub_counts() -> None:
    assert desired_chars({"ab": "c\nd", "n": 1.5, "f": True, "l": [1, None]}, "twin") == 2 + 2 + 1 + 8 + 1 + 4 + 1 + 8


@pytest.mark.parametrize(("path", "text"), [("a..b", "1"), ("a.b.c", "1"), ("x", "[1"), ("x", '{"a":1,"a":2}')])
def test_a_bad_create_option_is_refused(path: str, text: str) -> None:
    with pytest.raises(EdgeError, match="create-option") as caught:
        option_tree({path: text}, {"a": {"b": 1}})
    assert caught.value.code == "config.invalid"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    build(make_spec(tmp_path), tmp_path / "bundle", QuietReporter(), None)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["iotedge", "manifest", "bundle", "--image", IMAGE, *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_the_command_prints_a_manifest_of_the_bundle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, manifest = run(capsys)
    assert code == 0
    require_published_schemas(manifest)
    index = str(Layout(folder / "bundle").index_digest)
    assert manifest["modulesContent"]["linear"]["properties.desired"]["lighterman"]["index"] == index
    assert run(capsys, "--json")[1]["manifest"] == manifest


def test_the_command_takes_every_option(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULL_USER", "puller")
    monkeypatch.setenv("PULL_PASSWORD", "s:e=cret")
    (folder / "template.json").write_text(json.dumps(TEMPLATE))
    (folder / "options.json").write_text('{"HostConfig": {"Memory": 1, "Init": true}}')
    code, facts = run(
        capsys,
        *("--module", "grader", "--env", "A=b=c", "--restart-policy", "never", "--startup-order", "7"),
        *("--create-options-file", "options.json", "--create-option", "HostConfig.Memory=2"),
        *("--route", "up=FROM /messages/modules/grader/outputs/* WHERE $body.x > 1 INTO $upstream"),
        *("--registry-credentials", "main=registry.example:5000:PULL_USER:PULL_PASSWORD"),
        *("--template", "template.json", "--out", "made.json", "--json"),
    )
    assert (code, facts["module"], facts["file"]) == (0, "grader", "made.json")
    assert "cret" not in json.dumps(facts)
    assert (folder / "made.json").stat().st_mode & 0o777 == 0o600
    manifest = json.loads((folder / "made.json").read_text())
    require_published_schemas(manifest)
    module = agent_of(manifest)["modules"]["grader"]
    assert (module["env"], module["restartPolicy"], module["startupOrder"]) == ({"A": {"value": "b=c"}}, "never", 7)
    assert json.loads(module["settings"]["createOptions"]) == {"HostConfig": {"Memory": 2, "Init": True}}
    assert set(hub_of(manifest)["routes"]) == {"frames", "up"}
    credentials = agent_of(manifest)["runtime"]["settings"]["registryCredentials"]
    wanted = {"address": "registry.example:5000", "username": "puller", "password": "s:e=cret"}
    assert credentials == {"main": wanted}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--registry-credentials", "a=registry.example:USER_VAR:hunter2", "--out", "x.json"),
        ("--registry-credentials", "a=hunter2", "--out", "x.json"),
        ("--registry-credentials", "hunter2", "--out", "x.json"),
        ("--registry-credentials", "a=r:USER_VAR:WORD_VAR"),
        ("--registry-credentials", "a=r:USER_VAR:WORD_VAR", "--registry-credentials", "a=r:USER_VAR:WORD_VAR"),
        ("--template", "broken.json"),
        ("--template", "none.json"),
        ("--create-options-file", "broken.json"),
        ("--env", "novalue"),
        ("--startup-order", "-1"),
    ],
)
def test_bad_input_is_refused_without_a_password_or_a_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("USER_VAR", "puller")
    monkeypatch.setenv("WORD_VAR", "hunter2")
    (folder / "broken.json").write_text('{"modulesContent": {"hunter2"')
    code, document = run(capsys, *arguments, "--json")
    assert (code, document["error"]["code"].partition(".")[0]) == (2, "config")
    assert "hunter2" not in json.dumps(document)
    assert not (folder / "x.json").exists()


def test_the_example_in_the_documentation_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (REPOSITORY_ROOT / "docs" / "packager.md").read_text().partition("## Azure IoT Edge")[2]
    command, shown = section.split("```")[1], section.split("```json")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    build(make_spec(tmp_path, name="digits"), tmp_path / "bundle", QuietReporter(), None)
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    assert (program, main(arguments)) == ("packager", 0)
    manifest = json.loads((tmp_path / "deployment.json").read_text())
    twin = manifest["modulesContent"]["digits"]["properties.desired"]
    twin["lighterman"]["index"] = "sha256:…"
    assert json.loads(shown) == {
        "$edgeAgent": agent_of(manifest)["modules"]["digits"],
        "$edgeHub": hub_of(manifest)["routes"],
        "digits": twin,
    }
