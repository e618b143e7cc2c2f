"""Another project's tool as a judge: skopeo carries our artifacts to the registry, from it, and out of its folder."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_contract.digest import Digest
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE
from tests.support.registry import RegistryProcess, registry_process
from tests.support.require import require_program
from tests.unit.cloud_data.artifacts import modelpack_config, modelpack_manifest

pytestmark = pytest.mark.system

_TIMEOUT_S = 60
_WEIGHTS = os.urandom(1_500_000)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    require_program("skopeo")
    with registry_process(tmp_path_factory.mktemp("registry")) as running:
        yield running


def hand_made_layout(folder: Path, refs: dict[str, tuple[str, bytes]], blobs: list[bytes]) -> None:
    """An OCI layout written without any of the code under test."""
    store = folder / "blobs" / "sha256"
    store.mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    for data in [*blobs, *(data for _, data in refs.values())]:
        (store / Digest.of(data).hex).write_bytes(data)
    entries = [
        {
            "mediaType": kind,
            "digest": str(Digest.of(data)),
            "size": len(data),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }
        for name, (kind, data) in refs.items()
    ]
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))


def skopeo(registry: RegistryProcess, *arguments: str, cwd: Path) -> str:
    home = cwd / "home"
    home.mkdir(exist_ok=True)
    policy = cwd / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    finished = subprocess.run(
        [require_program("skopeo"), "--policy", str(policy), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(home), "TMPDIR": str(cwd)},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def address(registry: RegistryProcess, name: str) -> str:
    return f"docker://{registry.url.removeprefix('http://')}/{name}"


def test_an_artifact_goes_in_and_comes_back_the_same(registry: RegistryProcess, tmp_path: Path) -> None:
    config = modelpack_config(Digest.of(_WEIGHTS))
    manifest = modelpack_manifest(config, _WEIGHTS, None, purpose="interoperability")
    hand_made_layout(tmp_path / "in", {"v1": (MANIFEST_TYPE, manifest)}, [config, _WEIGHTS])
    target = address(registry, "bundles/digits:1")
    credentials = f"anybody:{registry.admin_token}"
    skopeo(
        registry, "copy", "--dest-tls-verify=false", "--dest-creds", credentials,
        f"oci:{tmp_path / 'in'}:v1", target, cwd=tmp_path,
    )  # fmt: skip
    raw = skopeo(registry, "inspect", "--raw", "--tls-verify=false", "--creds", credentials, target, cwd=tmp_path)
    assert raw.encode() == manifest
    skopeo(
        registry, "copy", "--src-tls-verify=false", "--src-creds", credentials,
        target, f"oci:{tmp_path / 'out'}:v1", cwd=tmp_path,
    )  # fmt: skip
    (entry,) = json.loads((tmp_path / "out" / "index.json").read_text())["manifests"]
    assert entry["digest"] == str(Digest.of(manifest))
    assert (tmp_path / "out" / "blobs" / "sha256" / Digest.of(_WEIGHTS).hex).read_bytes() == _WEIGHTS


def test_the_folder_of_the_registry_is_a_layout_like_any_other(registry: RegistryProcess, tmp_path: Path) -> None:
    config = modelpack_config(Digest.of(b"small"))
    manifest = modelpack_manifest(config, b"small")
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [
                {
                    "mediaType": MANIFEST_TYPE,
                    "digest": str(Digest.of(manifest)),
                    "size": len(manifest),
                    "platform": {"os": "linux", "architecture": architecture},
                }
                for architecture in ("amd64", "arm64")
            ],
        }
    ).encode()
    with registry.link() as link:
        for blob in (config, b"small"):
            query = {"digest": str(Digest.of(blob))}
            assert link.post("/v2/bundles/letters/blobs/uploads/", params=query, content=blob).status_code == 201
        for name, kind, data in ((str(Digest.of(manifest)), MANIFEST_TYPE, manifest), ("7", INDEX_TYPE, index)):
            answer = link.put(f"/v2/bundles/letters/manifests/{name}", content=data, headers={"Content-Type": kind})
            assert answer.status_code == 201, answer.text
    source = f"oci:{registry.data / 'oci'}:bundles/letters:7"
    skopeo(registry, "copy", "--all", source, f"oci:{tmp_path / 'out'}:v7", cwd=tmp_path)
    (entry,) = json.loads((tmp_path / "out" / "index.json").read_text())["manifests"]
    assert entry["digest"] == str(Digest.of(index))
    assert (tmp_path / "out" / "blobs" / "sha256" / Digest.of(manifest).hex).read_bytes() == manifest
    # And from the folder straight into the registry under another name, where the blobs are known already.
    credentials = f"anybody:{registry.admin_token}"
    target = address(registry, "mirror/letters:7")
    skopeo(
        registry, "copy", "--all", "--dest-tls-verify=false", "--dest-creds", credentials, source, target, cwd=tmp_path
    )
    with registry.link() as link:
        assert link.get("/v2/mirror/letters/manifests/7").content == index


def test_without_a_token_nothing_is_carried(registry: RegistryProcess, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"(?i)unauthorized|authentication"):
        skopeo(
            registry, "inspect", "--raw", "--tls-verify=false", "--no-creds",
            address(registry, "bundles/digits:1"), cwd=tmp_path,
        )  # fmt: skip
