"""The repository as a whole: what its files may not name, and locks that hold what the project asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture.tree import PACKAGES, ROOT, tracked_files

# Put together here so that this file does not name them either.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("".join(("python", "hosted")), "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("crates", "io"),
        ("rubygems", "org"),
        ("anaconda", "org"),
        ("proxy", "golang", "org"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
    )
)
TEXT_BYTES_MAX = 4_000_000
ROLES = ("agent", "onnx", "litert", "delta", "azure", "azure-cloud", "packager", "cloud", "hsm", "mlflow", "sim")
LOCKS: dict[str, tuple[str, ...]] = {"requirements.lock": ROLES, "requirements-dev.lock": (*ROLES, "iothub", "dev")}
LOCKED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;\\]+)", re.MULTILINE)


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_no_file_names_a_package_registry() -> None:
    wrong = []
    for path in tracked_files():
        content = path.read_bytes()
        assert len(content) <= TEXT_BYTES_MAX, f"{path} is too large to keep in the repository"
        text = content.decode("utf-8", errors="ignore").lower()
        wrong += [f"{path.relative_to(ROOT)}: {host}" for host in REGISTRY_HOSTS if host in text]
    assert not wrong, "\n".join(wrong)


def test_a_lock_that_names_hosts_is_not_kept() -> None:
    names = {path.name for path in tracked_files()}
    assert not names & {"uv.lock", "pylock.toml"}


@pytest.mark.parametrize("lock", sorted(LOCKS))
def test_a_lock_holds_what_the_project_asks_for(lock: str) -> None:
    project = _project()["project"]
    text = (ROOT / lock).read_text(encoding="utf-8")
    locked: dict[str, set[str]] = {}
    for name, version in LOCKED.findall(text):
        locked.setdefault(canonicalize_name(name), set()).add(version)
    wanted = [*project["dependencies"], *_project()["build-system"]["requires"]]
    for role in LOCKS[lock]:
        wanted += project["optional-dependencies"][role]
    wrong = []
    for line in wanted:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name == "lighterman":
            continue
        versions = locked.get(name, set())
        if not versions or not all(requirement.specifier.contains(version, prereleases=True) for version in versions):
            wrong.append(f"{line}: the lock holds {sorted(versions) or 'nothing'}")
    assert not wrong, "run make lock: " + "; ".join(wrong)


@pytest.mark.parametrize("lock", sorted(LOCKS))
def test_every_locked_package_has_hashes(lock: str) -> None:
    blocks = re.split(r"\n(?=[A-Za-z0-9])", (ROOT / lock).read_text(encoding="utf-8").strip())
    without = [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block]
    assert not without


def test_what_both_locks_hold_has_one_version() -> None:
    run, dev = (set(LOCKED.findall((ROOT / lock).read_text(encoding="utf-8"))) for lock in sorted(LOCKS, reverse=True))
    assert run <= dev, f"run make lock: {sorted(run - dev)}"


def test_every_extra_is_a_role_the_locks_know() -> None:
    assert set(_project()["project"]["optional-dependencies"]) == set(LOCKS["requirements-dev.lock"])


def test_every_direct_dependency_says_why_it_is_here() -> None:
    project = _project()["project"]
    record = (ROOT / "docs" / "adr" / "0002-dependencies.md").read_text(encoding="utf-8")
    lines = [*project["dependencies"], *(line for role in project["optional-dependencies"].values() for line in role)]
    names = {Requirement(line).name for line in lines} - {"lighterman"}
    missing = sorted(name for name in names if f"`{name}`" not in record)
    assert not missing, f"docs/adr/0002-dependencies.md does not mention {missing}"


def test_every_package_is_in_the_distribution() -> None:
    include = _project()["tool"]["setuptools"]["packages"]["find"]["include"]
    assert set(include) == {pattern for package in PACKAGES for pattern in (package, f"{package}.*")}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_with_python_in_it_is_a_package(package: str) -> None:
    """The build finds packages by their ``__init__.py``; a folder without one would be missing from the wheel."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    without = [
        folder.relative_to(ROOT).as_posix()
        for folder in sorted(folders)
        if not (folder / "__init__.py").is_file() and "migrations" not in folder.parts
    ]
    assert not without


def test_every_test_folder_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    without = [folder.relative_to(ROOT).as_posix() for folder in folders if not (folder / "__init__.py").is_file()]
    assert not without


def test_scripts_can_be_run() -> None:
    scripts = [path for path in tracked_files() if path.suffix == ".sh" or path == ROOT / ".ci" / "run"]
    assert scripts
    assert not [path.name for path in scripts if not _is_executable(path)]


def _is_executable(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o111)


def test_no_two_decisions_share_a_number() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "adr").glob("*.md"))
    numbers = [int(name[:4]) for name in names]
    assert len(set(numbers)) == len(numbers), f"two decisions share a number: {names}"
