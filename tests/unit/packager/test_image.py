"""The image of a module: the base, the agent and the bundle, and what a container of it runs with."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.preload import PreloadedFetcher
from edge_agent.store.blobs import FileBlobStore
from edge_agent.web.sources import LayoutContent
from edge_contract.errors import EdgeError
from edge_contract.manifest import Manifest
from edge_contract.runtime import Member
from packager.cli import main
from packager.iotedge.image import AgentParts, BuiltImage, ImageRequest, build_image
from packager.iotedge.image_base import LayoutSource
from packager.iotedge.image_wheels import WheelHouse
from packager.layout import Layout
from packager.progress import QuietReporter
from tests.support.bundles import Written, adder_bundle, write_bundle
from tests.support.images import base_layout, blob_path, read_file, read_json, read_layers, wheel
from tests.support.oci_schemas import oci_validator
from tests.support.require import REPOSITORY_ROOT

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")
BUNDLE = "opt/lighterman/bundle"
SITE = "opt/lighterman/lib/python3.11/site-packages"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Written:
    large = ("application/vnd.cncf.model.weight.v1.raw", "model", "weights.bin", bytes(range(256)) * 8192)
    return adder_bundle(tmp_path_factory.mktemp("bundle") / "layout", platforms=PLATFORMS, layers=[large])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> WheelHouse:
    folder = tmp_path_factory.mktemp("wheels")
    requires = ['tuf; extra == "agent"', 'onnxruntime; extra == "onnx"', 'ai-edge-litert; extra == "litert"']
    requires.append('azure-iot-device; extra == "azure"')
    wheel(folder, "lighterman", "0.9", requires=requires, extras=["agent", "onnx", "litert", "azure"])
    wheel(folder, "tuf")
    wheel(folder, "azure_iot_device")
    for machine in ("x86_64", "aarch64", "armv7l"):
        files = {"onnxruntime/native.so": machine.encode()}
        wheel(folder, "onnxruntime", tags=f"cp311-cp311-manylinux_2_28_{machine}", files=files)
    return WheelHouse([folder])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_layout(tmp_path_factory.mktemp("base") / "layout", *PLATFORMS)


@pytest.fixture(scope="module")
def request_of(bundle: Written, house: WheelHouse, base: Path) -> ImageRequest:
    return ImageRequest(
        Layout(bundle.folder), LayoutSource(base), AgentParts(house), is_compressed=False, env={"SITE": "north"}
    )


@pytest.fixture(scope="module")
def image(request_of: ImageRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuiltImage]:
    folder = tmp_path_factory.mktemp("image") / "layout"
    return folder, build_image(request_of, folder, QuietReporter())


def manifest_of(image: tuple[Path, BuiltImage], platform: str = "linux/amd64") -> Any:
    folder, built = image
    return json.loads(blob_path(folder, str(built.manifests[platform])).read_bytes())


def every_file(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refusal(request: ImageRequest, folder: Path) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        build_image(request, folder, QuietReporter())
    assert not folder.exists()
    return caught.value


def test_there_is_an_image_for_each_platform(image: tuple[Path, BuiltImage]) -> None:
    folder, built = image
    (entry,) = json.loads((folder / "index.json").read_bytes())["manifests"]
    assert entry["digest"] == str(built.index)
    places = [item["platform"] for item in read_json(folder, entry)["manifests"]]
    assert places == [
        {"os": "linux", "architecture": "amd64"},
        {"os": "linux", "architecture": "arm64"},
        {"os": "linux", "architecture": "arm", "variant": "v7"},
    ]


def test_the_same_inputs_give_the_same_bytes(
    image: tuple[Path, BuiltImage], request_of: ImageRequest, tmp_path: Path
) -> None:
    build_image(request_of, tmp_path / "again", QuietReporter())
    assert every_file(tmp_path / "again") == every_file(image[0])


def test_documents_are_what_the_specification_says(image: tuple[Path, BuiltImage]) -> None:
    folder, built = image
    manifests, indexes = oci_validator("image-manifest-schema.json"), oci_validator("image-index-schema.json")
    indexes.validate(json.loads(blob_path(folder, str(built.index)).read_bytes()))
    for platform in PLATFORMS:
        manifests.validate(manifest_of(image, platform))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_configuration_lists_what_the_layers_hold(image: tuple[Path, BuiltImage], platform: str) -> None:
    manifest = manifest_of(image, platform)
    config = read_json(image[0], manifest["config"])
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]  # nothing is compressed
    assert len(config["history"]) == len(manifest["layers"])
    assert "/".join(config[key] for key in ("os", "architecture", "variant") if key in config) == platform


def test_a_container_runs_the_agent_as_nobody_in_particular(image: tuple[Path, BuiltImage], bundle: Written) -> None:
    settings = read_json(image[0], manifest_of(image)["config"])["config"]
    assert settings["Entrypoint"] == ["/opt/lighterman/bin/edge-agent", "module"]
    assert "Cmd" not in settings
    assert settings["User"] == "65532:65532"
    assert settings["Volumes"] == {"/var/lib/lighterman": {}}
    assert settings["Healthcheck"]["Test"] == ["CMD", "/opt/lighterman/bin/edge-agent", "healthcheck"]
    environment = dict(item.split("=", 1) for item in settings["Env"])
    assert environment["PATH"].split(":") == ["/opt/lighterman/bin", "/usr/bin", "/bin"]
    assert environment["LIGHTERMAN_AGENT_PRELOAD"] == f"/{BUNDLE}"
    assert environment["SITE"] == "north"
    assert settings["Labels"]["io.lighterman.agent"] == "0.9"
    assert settings["Labels"]["io.lighterman.bundle.index"] == str(bundle.index)
    assert settings["Labels"]["io.lighterman.bundle.manifest"] == str(bundle.manifests["linux/amd64"][0])


def test_the_agent_is_a_virtual_environment_on_the_bases_python(image: tuple[Path, BuiltImage]) -> None:
    folder, manifest = image[0], manifest_of(image, "linux/arm64")
    entries: dict[str, tarfile.TarInfo] = {}
    for layer in read_layers(folder, manifest):
        entries |= layer
    assert entries["opt/lighterman/bin/python3"].linkname == "/usr/bin/python3.11"
    assert entries["opt/lighterman/bin/edge-agent"].mode == 0o755
    assert b"home = /usr/bin\ninclude-system-site-packages = false" in read_file(
        folder, manifest, "opt/lighterman/pyvenv.cfg"
    )
    assert read_file(folder, manifest, f"{SITE}/onnxruntime/native.so") == b"aarch64"
    assert f"{SITE}/tuf/__init__.py" in entries
    assert f"{SITE}/azure_iot_device/__init__.py" in entries
    data = entries["var/lib/lighterman"]
    assert (data.uid, data.mode) == (65532, 0o700)
    mine = [entry for name, entry in entries.items() if name.startswith("opt/")]
    assert {(entry.uid, entry.gid, entry.mtime) for entry in mine} == {(0, 0, 0)}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_bundle_in_the_image_is_the_very_bundle(
    image: tuple[Path, BuiltImage], bundle: Written, platform: str, tmp_path: Path
) -> None:
    """Unpacked it is a layout that `edge-agent serve` reads and that the agent takes content from."""
    manifest = manifest_of(image, platform)
    for layer in manifest["layers"]:
        with tarfile.open(blob_path(image[0], layer["digest"])) as archive:
            mine = [entry for entry in archive if entry.name.startswith(BUNDLE)]
            archive.extractall(tmp_path, mine, filter="data")
    digest, _ = bundle.manifests[platform]
    found = LayoutContent(tmp_path / BUNDLE)
    assert Manifest.parse(found.first()) == bundle.manifest(platform)
    assert Manifest.parse(found.document(digest)) == bundle.manifest(platform)

    class Nobody:
        def fetch(self, repository: str, blob: object, is_cancelled: object) -> int:
            raise AssertionError(f"{blob} is not in the image")

        def is_near(self, blob: object) -> bool:
            return False

    store = FileBlobStore(tmp_path / "data", reserve_bytes=0)
    fetcher = PreloadedFetcher(tmp_path / BUNDLE, store, Nobody())
    for blob in bundle.manifest(platform).blobs:
        assert fetcher.fetch("bundles/digits", blob, lambda: False) == 0
        assert store.read(blob.digest, blob.size) == bundle.blob(blob.digest).read_bytes()


def test_a_large_file_has_a_layer_that_all_platforms_share(image: tuple[Path, BuiltImage]) -> None:
    layers = [{item["digest"]: item["size"] for item in manifest_of(image, name)["layers"]} for name in PLATFORMS]
    shared = set.intersection(*(set(item) for item in layers))
    assert [size for digest, size in layers[0].items() if digest in shared and size > 2**21]


def test_compression_changes_no_content(
    image: tuple[Path, BuiltImage], request_of: ImageRequest, tmp_path: Path
) -> None:
    packed = (
        tmp_path / "packed",
        build_image(replace(request_of, is_compressed=True), tmp_path / "packed", QuietReporter()),
    )
    plain, small = manifest_of(image), manifest_of(packed)
    contents = [
        read_json(found[0], document["config"])["rootfs"] for found, document in ((image, plain), (packed, small))
    ]
    assert contents[0] == contents[1]
    kinds = [layer["mediaType"].rpartition("+")[2] for layer in small["layers"]]
    assert kinds.count("gzip") == 2
    assert sum(layer["size"] for layer in small["layers"]) < sum(layer["size"] for layer in plain["layers"])


def test_a_base_with_the_agent_needs_no_wheels(request_of: ImageRequest, tmp_path: Path) -> None:
    settings = {"Env": ["PATH=/opt/lighterman/bin:/usr/bin"], "Labels": {"io.lighterman.agent": "0.8"}}
    base = LayoutSource(base_layout(tmp_path / "base", settings=settings))
    built = build_image(replace(request_of, base=base, agent=None), tmp_path / "image", QuietReporter())
    assert built.agents == {"linux/amd64": "0.8"}
    config = read_json(tmp_path / "image", manifest_of((tmp_path / "image", built))["config"])
    assert "PATH=/opt/lighterman/bin:/usr/bin" in config["config"]["Env"]
    assert refusal(replace(request_of, base=base), tmp_path / "twice").code == "config.invalid"
    assert "--wheels" in (refusal(replace(request_of, agent=None), tmp_path / "none").hint or "")


@pytest.mark.parametrize(
    ("engine", "platform", "wanted"),
    [
        ("onnx", "linux/arm64", {"onnxruntime"}),
        ("litert", "linux/arm64", {"ai_edge_litert"}),
        ("litert", "linux/arm/v7", {"tflite_runtime", "numpy", "httptools"}),
        ("script", "linux/amd64", {"numpy", "httptools"}),
    ],
)
def test_the_engines_of_the_bundle_decide_what_the_agent_brings(
    tmp_path: Path, base: Path, engine: str, platform: str, wanted: set[str]
) -> None:
    extras = ["agent", "azure", "onnx", "litert"]
    requires = ["onnxruntime; extra == 'onnx'", "ai-edge-litert; extra == 'litert'"]
    wheel(tmp_path / "wheels", "lighterman", "0.9", requires=requires, extras=extras)
    known = ("onnxruntime", "ai_edge_litert", "tflite_runtime", "numpy", "httptools")
    for name in known:
        wheel(tmp_path / "wheels", name)
    entry = {"onnx": "m.onnx", "litert": "m.tflite", "script": "score.py"}[engine]
    made = write_bundle(tmp_path / "bundle", [Member("digits", engine, entry)], {entry: b"x"}, platforms=[platform])
    request = ImageRequest(
        Layout(made.folder), LayoutSource(base), AgentParts(WheelHouse([tmp_path / "wheels"])), is_compressed=False
    )
    built = build_image(request, tmp_path / "image", QuietReporter())
    layers = read_layers(tmp_path / "image", manifest_of((tmp_path / "image", built), platform))
    assert {name for name in known if any(f"{SITE}/{name}/__init__.py" in layer for layer in layers)} == wanted


def test_a_base_with_another_bundle_is_refused(
    image: tuple[Path, BuiltImage], request_of: ImageRequest, tmp_path: Path
) -> None:
    wrong = replace(request_of, base=LayoutSource(image[0]), agent=None)
    assert "a bundle of digits already" in refusal(wrong, tmp_path / "image").detail


def test_platforms_are_those_of_both(request_of: ImageRequest, tmp_path: Path) -> None:
    base = LayoutSource(base_layout(tmp_path / "base", "linux/arm64"))
    built = build_image(replace(request_of, base=base), tmp_path / "image", QuietReporter())
    assert set(built.manifests) == {"linux/arm64"}
    wrong = refusal(replace(request_of, base=base, platforms=("linux/amd64",)), tmp_path / "wrong")
    assert (wrong.code, "linux/amd64" in wrong.detail) == ("config.invalid", True)
    base = LayoutSource(base_layout(tmp_path / "other", "linux/arm/v6"))
    assert "no platform" in refusal(replace(request_of, base=base), tmp_path / "none").detail


def test_a_bundle_that_has_rotted_makes_no_image(
    image: tuple[Path, BuiltImage], request_of: ImageRequest, tmp_path: Path
) -> None:
    rotten = adder_bundle(tmp_path / "bundle", platforms=PLATFORMS)
    model = rotten.manifest().with_role("model")[0]
    rotten.blob(model.digest).write_bytes(b"x" * model.size)
    request = replace(request_of, bundle=Layout(rotten.folder))
    assert refusal(request, tmp_path / "image").code == "artifact.digest-mismatch"
    # What was there before stays as it was.
    build_image(request_of, tmp_path / "kept", QuietReporter())
    with pytest.raises(EdgeError):
        build_image(request, tmp_path / "kept", QuietReporter())
    assert every_file(tmp_path / "kept") == every_file(image[0])


def command(*arguments: str | Path) -> int:
    return main(["iotedge", "module", *(str(item) for item in arguments), "--json"])


def test_the_command_says_what_it_made(
    bundle: Written, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "wheels", "lighterman", "0.9", extras=["agent"])
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    more: Mapping[str, str] = {"--wheels": str(tmp_path / "wheels"), "--extra": "agent", "--platform": "linux/arm64"}
    options = [part for pair in more.items() for part in pair]
    assert command(bundle.folder, "--base", base, "--out", tmp_path / "image", "--tag", "7", *options) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["tag"], facts["pushed"], list(facts["platforms"])) == ("7", None, ["linux/arm64"])
    manifest = json.loads(blob_path(tmp_path / "image", facts["platforms"]["linux/arm64"]["manifest"]).read_bytes())
    assert read_json(tmp_path / "image", manifest["config"])["created"] == "1970-01-02T00:00:00Z"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--base", "nothing"), "host of a registry"),
        (("--base", "BASE", "--python", "/usr/bin/python3.11"), "--python"),
        (("--base", "BASE", "--env", "novalue"), "--env"),
        (("--base", "BASE", "--tag", "no tag"), "'no tag'"),
        (("--base", "BASE", "--push", "digits"), "host of a registry"),
        (("--base", "BASE", "--push", f"127.0.0.1:1/x@sha256:{'0' * 64}"), "--push"),
    ],
)
def test_mistakes_are_named(
    bundle: Written,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: str,
) -> None:
    given = [str(base) if item == "BASE" else item for item in options]
    assert command(bundle.folder, "--out", tmp_path / "image", *given) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "config.invalid"
    assert words in error["detail"]


def test_the_image_of_the_web_service_says_which_agent_it_has() -> None:
    text = (REPOSITORY_ROOT / "deploy" / "container" / "Containerfile").read_text()
    project = tomllib.loads((REPOSITORY_ROOT / "pyproject.toml").read_text())["project"]
    assert f'LABEL io.lighterman.agent="{project["version"]}"' in text
