"""One image of a module for three architectures, each run where it belongs, the ARM ones emulated."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_contract.runtime import Member
from packager.cli import main
from tests.integration.module_ground import (
    Unpacked,
    base_of,
    debian_root,
    download,
    in_crun,
    prediction,
    python_of,
    run,
    wheelhouse,
)
from tests.support.bundles import Written, write_bundle
from tests.support.require import REPOSITORY_ROOT, require_program, require_root
from tests.support.slots import adder_golden
from tests.unit.worker.tiny_models import require_litert, tflite_adder

_VARIABLE = "LIGHTERMAN_TRY_ARM"
_ANSWER_S = 240.0
_ARCHITECTURES = {"linux/amd64": "amd64", "linux/arm64": "arm64", "linux/arm/v7": "armhf"}
_ARM32_PACKAGES = ("python3-numpy", "python3-httptools", "python3-cffi-backend")
# It has wheels for 32-bit ARM and no place in our lock, because it has none for today's Python elsewhere.
_ARM32_LOCK = "tflite-runtime==2.14.0 --hash=sha256:c4e66a74165b18089c86788400af19fa551768ac782d231a9beae2f6434f7949\n"
_LIBRARIES = "/usr/lib/arm-linux-gnueabihf"
_BINFMT = Path("/proc/sys/fs/binfmt_misc")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.timeout(960),
    pytest.mark.skipif(
        os.environ.get(_VARIABLE, "") in ("", "0"),
        reason=f"emulates ARM systems for minutes and downloads their packages; {_VARIABLE}=1 asks for it",
    ),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Written:
    require_litert()
    files = {"model.tflite": tflite_adder(10.0)}
    member = Member("digits", "litert", "model.tflite")
    folder = tmp_path_factory.mktemp("bundle") / "layout"
    return write_bundle(folder, [member], files, golden=adder_golden(10.0), platforms=tuple(_ARCHITECTURES))


@pytest.fixture(scope="module")
def image(bundle: Written, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image's layout, for all three at once."""
    require_root("root file systems of other architectures")
    folder = tmp_path_factory.mktemp("arm")
    roots = {}
    for platform, architecture in _ARCHITECTURES.items():
        more = _ARM32_PACKAGES if architecture == "armhf" else ()
        roots[platform] = debian_root(folder / architecture, architecture, *more)
    python = python_of(roots["linux/arm64"])
    machines = ("x86_64", "aarch64", "armv7l")
    wheels = wheelhouse(folder, python, "agent,azure,litert", machines[:2])
    lock = folder / "arm32.lock"
    pins = (folder / "wanted.lock").read_text()
    lock.write_text(_of(pins, "cryptography", "charset-normalizer") + _ARM32_LOCK)
    download(wheels, machines[2], python, lock)
    command = ["iotedge", "module", str(bundle.folder), "--base", str(base_of(roots, folder / "base"))]
    command += ["--wheels", str(wheels), "--lock", str(REPOSITORY_ROOT / "requirements.lock"), "--lock", str(lock)]
    command += [part for name in ("numpy", "httptools", "cffi") for part in ("--base-provides", name)]
    assert main([*command, "--out", str(folder / "image"), "--no-compress"]) == 0
    yield folder / "image"
    shutil.rmtree(folder, ignore_errors=True)


def _of(lock: str, *names: str) -> str:
    """Some distributions of a lock."""
    kept, is_kept = [], False
    for line in lock.splitlines():
        if not line.startswith(" "):
            is_kept = line.partition("==")[0] in names
        if is_kept:
            kept.append(line)
    return "\n".join(kept) + "\n"


def emulate(machine: str) -> None:
    """Have the kernel run programs of another architecture by qemu, as installing qemu-user-static does."""
    require_program(f"qemu-{machine}-static")
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT], check=True, timeout=_ANSWER_S)
    if not (_BINFMT / f"qemu-{machine}").exists():
        run([require_program("update-binfmts"), "--enable", f"qemu-{machine}"])


@pytest.mark.parametrize("platform", _ARCHITECTURES)
def test_each_platform_of_an_image_answers(image: Path, bundle: Written, platform: str, tmp_path: Path) -> None:
    variables = {}
    if platform == "linux/arm64":
        emulate("aarch64")
        # Without a processor named, qemu emulates vector extensions that make it ten times slower.
        variables["QEMU_CPU"] = "cortex-a72"
    elif platform == "linux/arm/v7":
        emulate("arm")
        # Debian chooses among libraries of linear algebra by links that are made when packages are configured.
        variables["LD_LIBRARY_PATH"] = f"{_LIBRARIES}/blas:{_LIBRARIES}/lapack"
    _, architecture, *variant = platform.split("/")
    choice = ["--override-arch", architecture, "--override-variant", *(variant or [""])]
    one = f"oci:{tmp_path / 'one'}:1"
    skopeo = [require_program("skopeo"), "--insecure-policy", *choice]
    run([*skopeo, "copy", "--quiet", "--preserve-digests", f"oci:{image}:1", one])
    run([require_program("umoci"), "unpack", "--image", f"{tmp_path / 'one'}:1", tmp_path / "unpacked"])
    found = Unpacked(tmp_path / "unpacked")
    digest = str(bundle.manifests[platform][0])
    serve = ["/opt/lighterman/bin/edge-agent", "serve", "/opt/lighterman/bundle", "--digest", digest]
    options = ["--port", "0", "--work-dir", "/tmp", "--json"]
    with in_crun(found, tmp_path / "run", *serve, *options, **variables) as child:
        assert prediction(child, _ANSWER_S) == (digest, [11.0, 12.0, 13.0, 14.0])
