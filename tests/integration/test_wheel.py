"""The built wheel is whole: installed elsewhere, its programs start and its packages find their files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT, skip_while_empty, tracked_files

pytestmark = pytest.mark.slow

BUILD_TIMEOUT_S = 90
RUN_TIMEOUT_S = 60
PROGRAMS = {
    "cloud-registry": "cloud_registry",
    "device-sim": "device_sim",
    "edge-agent": "edge_agent",
    "packager": "packager",
}


def _run(argv: Sequence[str | Path], *, cwd: Path, timeout_s: float) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        argv, cwd=cwd, env=environment, capture_output=True, check=False, text=True, timeout=timeout_s
    )
    assert finished.returncode == 0, f"{argv} ended with {finished.returncode}:\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what git tracks, so that leftovers of the working tree play no part."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for path in tracked_files():
        relative = path.relative_to(ROOT)
        if relative.parts[0] in PACKAGES or len(relative.parts) == 1:
            target = source / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    _run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source],
        cwd=folder,
        timeout_s=BUILD_TIMEOUT_S,
    )
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel; third-party packages are borrowed from this one by a .pth file."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    _run([sys.executable, "-m", "venv", "--without-pip", folder], cwd=folder.parent, timeout_s=RUN_TIMEOUT_S)
    python = folder / "bin" / "python"
    _run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        cwd=folder.parent,
        timeout_s=RUN_TIMEOUT_S,
    )
    site_packages = Path(
        _run([python, "-c", "import site; print(site.getsitepackages()[0])"], cwd=folder, timeout_s=30).strip()
    )
    # A path line only: the borrowed folder's own .pth files, with the editable project, are not read.
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


def test_the_wheel_holds_every_file_of_every_package_and_nothing_else(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix() for path in tracked_files() if path.relative_to(ROOT).parts[0] in PACKAGES
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert sorted(expected - held) == [], "not in the wheel: add the kind of file to package-data in pyproject.toml"
    assert sorted(held - expected) == []


def test_the_wheel_says_under_which_licence_it_comes(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        described = archive.read(name).decode()
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert re.search(r"^License-Expression: Apache-2\.0$", described, re.MULTILINE)
    assert "\nRequires-Python: <3.14,>=3.11\n" in described
    assert len(licences) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_an_installed_package_is_imported_from_the_wheel(environment: Path, package: str) -> None:
    python = environment / "bin" / "python"
    shown = _run(
        [python, "-c", f"import {package}; print({package}.__file__)"], cwd=environment, timeout_s=RUN_TIMEOUT_S
    )
    assert Path(shown.strip()).is_relative_to(environment)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_of_an_installed_package_can_be_imported(environment: Path, package: str) -> None:
    """Each in the wheel's own environment, all in one process; a module that another runtime needs is told by name."""
    skip_while_empty(package)
    script = (
        "import importlib, pkgutil, sys\n"
        f"import {package} as top\n"
        "for info in pkgutil.walk_packages(top.__path__, top.__name__ + '.'):\n"
        "    if '.migrations.' in info.name or info.name.endswith('__main__'):\n"
        "        continue\n"
        "    importlib.import_module(info.name)\n"
        "    print(info.name)\n"
    )
    python = environment / "bin" / "python"
    names = _run([python, "-c", script], cwd=environment, timeout_s=RUN_TIMEOUT_S).split()
    assert names


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_an_installed_program_explains_itself(environment: Path, program: str) -> None:
    package = PROGRAMS[program]
    if not (ROOT / package / "cli.py").is_file() and not (ROOT / package / "cli").is_dir():
        skip_while_empty(package)
        pytest.skip(f"{package} has no command line yet")
    shown = _run([environment / "bin" / program, "--help"], cwd=environment, timeout_s=RUN_TIMEOUT_S)
    assert shown.startswith("Usage: ")
