"""Images of modules under other people's tools: carried by skopeo and a registry, unpacked by umoci, run by crun."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from packager.cli import main
from tests.e2e.stack import running_stack
from tests.e2e.test_edge_module import MODEL, MODULE, Hub
from tests.integration.module_ground import (
    Unpacked,
    base_of,
    debian_root,
    docker_registry,
    in_chroot,
    in_crun,
    prediction,
    python_of,
    run,
    wheelhouse,
)
from tests.support.bundles import HERE, Written, adder_bundle
from tests.support.images import base_layout, blob_path, wheel
from tests.support.iothub import running_hub
from tests.support.net import wait_until
from tests.support.processes import Child
from tests.support.require import REPOSITORY_ROOT, require_program, require_root

pytestmark = pytest.mark.system

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")
_ANSWER_S = 40.0


def module(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    """Run the command as its user does, and give what it says."""
    capsys.readouterr()
    code = main(["iotedge", "module", *(str(item) for item in arguments), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert code == 0, facts
    return facts


# -- carried: small images for three platforms


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require_program("skopeo")
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a bundle and wheels that nobody could run, small, for three platforms."""
    folder = tmp_path_factory.mktemp("parts")
    base_layout(folder / "base", *PLATFORMS)
    adder_bundle(folder / "bundle", platforms=PLATFORMS)
    wheel(folder / "wheels", "lighterman", "0.9", extras=["agent"])
    return folder


def skopeo(*arguments: str) -> str:
    return run([require_program("skopeo"), *arguments])


def copy(source: str, target: str) -> None:
    plain = ["--src-tls-verify=false", "--dest-tls-verify=false"]
    # Otherwise it would compress what is not, on its way to a registry.
    skopeo("--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", *plain, source, target)


def test_skopeo_carries_an_image_to_a_registry_and_back(
    registry: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: list[str | Path] = ["--wheels", parts / "wheels", "--extra", "agent", "--out", tmp_path / "image"]
    facts = module(capsys, parts / "bundle", "--base", parts / "base", *options)
    name = f"docker://{registry}/edge/digits:1"
    copy(f"oci:{tmp_path / 'image'}:1", name)
    found = json.loads(skopeo("inspect", "--tls-verify=false", "--raw", name))
    assert {item["digest"] for item in found["manifests"]} == {item["manifest"] for item in facts["platforms"].values()}
    for platform in PLATFORMS:
        system, architecture, *variant = platform.split("/")
        choice = ["--override-os", system, "--override-arch", architecture, "--override-variant", *(variant or [""])]
        seen = json.loads(skopeo(*choice, "inspect", "--tls-verify=false", name))
        assert (seen["Architecture"], seen["Labels"]["io.lighterman.agent"]) == (architecture, "0.9")
        config = json.loads(skopeo(*choice, "inspect", "--tls-verify=false", "--config", "--raw", name))
        assert config["config"]["Healthcheck"]["Test"][-1] == "healthcheck"
    copy(name, f"oci:{tmp_path / 'back'}:1")
    digest = json.loads((tmp_path / "back" / "index.json").read_bytes())["manifests"][0]["digest"]
    assert digest == facts["index"]


def test_bases_come_from_a_registry_and_images_go_there(
    registry: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(f"oci:{parts / 'base'}:base", f"docker://{registry}/bases/python:3.11")
    options: list[str | Path] = ["--wheels", parts / "wheels", "--extra", "agent"]
    told = module(capsys, parts / "bundle", "--base", parts / "base", *options, "--out", tmp_path / "one")
    base, target = f"{registry}/bases/python:3.11", f"{registry}/edge/pushed:7"
    facts = module(capsys, parts / "bundle", "--base", base, *options, "--out", tmp_path / "two", "--push", target)
    assert facts["index"] == told["index"]
    assert facts["pushed"]["reference"] == target
    assert facts["pushed"]["sent_bytes"] > 0
    raw = skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{target}").encode()
    assert raw == blob_path(tmp_path / "two", facts["index"]).read_bytes()
    again = module(capsys, parts / "bundle", "--base", base, *options, "--out", tmp_path / "two", "--push", target)
    assert again["pushed"]["sent_bytes"] == 0


def test_an_image_that_a_registry_does_not_have_is_named(
    registry: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "iotedge",
        "module",
        str(parts / "bundle"),
        "--base",
        f"{registry}/none:1",
        "--out",
        str(tmp_path / "x"),
    ]
    assert main([*arguments, "--json"]) == 4
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "artifact.not-found"
    assert f"{registry}/none:1" in error["detail"]


# -- run: the real agent on a real system


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return adder_bundle(tmp_path_factory.mktemp("bundle") / "layout")


@pytest.fixture(scope="module")
def unpacked(bundle: Written, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unpacked]:
    """An image of this machine's Debian, the agent and a bundle, as umoci unpacks it."""
    require_root("unpacking an image with the owners of its files")
    umoci = require_program("umoci")
    folder = tmp_path_factory.mktemp("module")
    root = debian_root(folder / "root")
    wheels = wheelhouse(folder, python_of(root))
    base = base_of({HERE: root}, folder / "base")
    command = ["iotedge", "module", str(bundle.folder), "--base", str(base), "--wheels", str(wheels)]
    command += ["--lock", str(REPOSITORY_ROOT / "requirements.lock")]
    assert main([*command, "--out", str(folder / "image"), "--no-compress"]) == 0
    run([umoci, "unpack", "--image", f"{folder / 'image'}:1", folder / "unpacked"])
    yield Unpacked(folder / "unpacked")
    shutil.rmtree(folder, ignore_errors=True)


Contain = Callable[..., AbstractContextManager[Child]]


@pytest.mark.parametrize("contain", [in_crun, in_chroot])
def test_a_container_of_the_image_answers_predictions(
    unpacked: Unpacked, bundle: Written, tmp_path: Path, contain: Contain
) -> None:
    digest = str(bundle.manifests[HERE][0])
    serve = ["/opt/lighterman/bin/edge-agent", "serve", "/opt/lighterman/bundle", "--digest", digest]
    with contain(unpacked, tmp_path / "run", *serve, "--port", "0", "--work-dir", "/tmp", "--json") as child:
        assert prediction(child, _ANSWER_S) == (digest, [11.0, 12.0, 13.0, 14.0])


def test_what_the_image_starts_is_the_module(unpacked: Unpacked, tmp_path: Path) -> None:
    """Without IoT Edge around it says so, which only the right program with all its libraries can."""
    with in_crun(unpacked, tmp_path / "run") as child:
        assert child.wait(_ANSWER_S) == 2
    assert "IOTEDGE_" in child.output()


def test_the_hubs_library_is_in_the_image(unpacked: Unpacked, tmp_path: Path) -> None:
    ask = "import azure.iot.device, onnxruntime, sys; print(sys.prefix, sys.version_info.major)"
    with in_crun(unpacked, tmp_path / "run", "python3", "-c", ask) as child:
        assert child.wait(_ANSWER_S) == 0, child.tail()
    assert child.output().strip().splitlines()[-1] == "/opt/lighterman 3"


def test_the_health_check_runs_in_the_image(unpacked: Unpacked, tmp_path: Path) -> None:
    with in_crun(unpacked, tmp_path / "run", "/opt/lighterman/bin/edge-agent", "healthcheck", "--json") as child:
        assert child.wait(_ANSWER_S) == 1
    assert json.loads(child.output().strip().splitlines()[-1])["healthy"] is False


def test_the_container_is_a_module_of_iot_edge(unpacked: Unpacked, tmp_path: Path) -> None:
    """All of it at once: enrols, takes its identity from the workload API, follows two assignments, answers inputs."""
    socket = tmp_path / "iotedge"
    socket.mkdir(mode=0o755)
    (tmp_path / "stack").mkdir()
    with running_stack(tmp_path / "stack") as stack, running_hub() as emulator:
        emulator.add_device("gate", edge=True)
        emulator.add_module("gate", MODULE)
        hub = Hub(emulator, socket, "gate")
        hub.daemon.path.chmod(0o666)
        try:
            with stack.client() as client:
                token = client.create_enrolment_token("gate")["token"]
            variables = hub.daemon.environment(MODULE) | {
                "LIGHTERMAN_ENROLMENT_TOKEN": token,
                "LIGHTERMAN_REGISTRY_URL": stack.url,
                "LIGHTERMAN_POLL_MS": "1000",
            }
            with in_crun(replace(unpacked, shared=(socket,)), tmp_path / "run", **variables) as child:
                stack.ship(MODEL, 1, "gate")
                hub.ask()  # it waits in the container until there is a model
                assert hub.wait_answers(1) == [(0, 1.0)]
                stack.ship(MODEL, 2, "gate")

                def follows() -> bool:
                    hub.ask()
                    return hub.wait_answers(hub.sent)[-1][1] == 2.0

                wait_until(follows, _ANSWER_S, what="the second model to answer", poll_s=0.2)
                assert hub.numbers() == set(range(hub.sent))
                assert child.is_running
                assert token not in child.output()
        finally:
            hub.daemon.stop()
