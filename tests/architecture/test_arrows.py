"""Who may import whom: between packages, and between the layers inside one."""

from __future__ import annotations

import ast
import sys

import pytest

from tests.architecture.rules import (
    DOORS,
    LEAVES,
    MAY_IMPORT,
    NEVER_IMPORTED_BY,
    RANK_OF_OTHERS,
    RANKS,
    SELF_SUFFICIENT,
)
from tests.architecture.tree import PACKAGES, Import, Module, all_modules, modules, skip_while_empty


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_the_packages_below_it(package: str) -> None:
    wrong = []
    for module in modules(package):
        for imported in module.imports:
            if imported.top not in PACKAGES or imported.top == package:
                continue
            door = DOORS.get((package, imported.top))
            # "from cloud_registry import client" names the package first and the door second.
            is_allowed = imported.top in MAY_IMPORT[package] and (
                door is None or imported.is_in(door) or _leads_only_to(module, imported, door)
            )
            if not is_allowed:
                wrong.append(f"{module.relative}:{imported.line} imports {imported.module}")
    assert not wrong, "\n".join(wrong)


def _leads_only_to(module: Module, imported: Import, door: str) -> bool:
    """Whether it is the first half of ``from package import door`` and nothing else comes through."""
    if not door.startswith(imported.module + "."):
        return False
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.lineno == imported.line:
            return all(f"{node.module}.{alias.name}" == door for alias in node.names)
    return False


def test_nothing_that_ships_imports_the_tests_or_the_benchmarks() -> None:
    wrong = [
        f"{module.relative}:{imported.line}"
        for module in all_modules()
        for imported in module.imports
        if imported.top in ("tests", "benchmarks", "pytest", "hypothesis")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_contract_needs_nothing_but_the_standard_library() -> None:
    wrong = [
        f"{module.relative}:{imported.line} imports {imported.module}"
        for module in modules("edge_contract")
        for imported in module.imports
        if imported.top not in sys.stdlib_module_names and imported.top != "edge_contract"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "edge_contract"])
def test_a_core_imports_the_contract_and_itself(package: str) -> None:
    allowed = [f"{package}.core", "edge_contract", *(f"{package}.{leaf}" for leaf in LEAVES)]
    wrong = []
    for module in modules(package):
        if not _is_core(module):
            continue
        for imported in module.imports:
            is_standard = imported.top in sys.stdlib_module_names
            if not is_standard and imported.module != package and not any(imported.is_in(name) for name in allowed):
                wrong.append(f"{module.relative}:{imported.line} imports {imported.module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "edge_contract"])
def test_inside_a_package_imports_point_towards_the_core(package: str) -> None:
    skip_while_empty(package)
    wrong = []
    for module in modules(package):
        own = _rank(module.name)
        for imported in module.imports:
            if imported.top == package and _rank(imported.module) > own:
                wrong.append(f"{module.relative}:{imported.line} imports {imported.module}, which is above it")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("higher", sorted(NEVER_IMPORTED_BY))
def test_a_part_stays_out_of_the_parts_that_must_not_know_it(higher: str) -> None:
    users = NEVER_IMPORTED_BY[higher]
    wrong = [
        f"{module.relative}:{imported.line} imports {imported.module}"
        for module in all_modules()
        if any(module.name == user or module.name.startswith(user + ".") for user in users)
        for imported in module.imports
        if imported.is_in(higher)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(SELF_SUFFICIENT))
def test_a_module_others_install_alone_needs_only_what_it_names(name: str) -> None:
    package = name.partition(".")[0]
    found = [module for module in modules(package) if module.name == name or module.name.startswith(name + ".")]
    if not found:
        skip_while_empty(package)
        pytest.skip(f"{name} is not written yet")
    leaves = [f"{package}.{leaf}" for leaf in LEAVES]
    wrong = [
        f"{module.relative}:{imported.line} imports {imported.module}"
        for module in found
        for imported in module.imports
        if imported.top not in sys.stdlib_module_names
        and imported.top not in ("edge_contract", *SELF_SUFFICIENT[name])
        and imported.module != package
        and not any(imported.is_in(allowed) for allowed in (name, *leaves))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "edge_contract"])
def test_importing_a_package_runs_no_other_module_of_it(package: str) -> None:
    """A package's ``__init__`` that imports its parts would load them all for whoever needs one.

    The contract is the exception: it is small, pure, and needed whole.
    """
    top = next(module for module in modules(package) if module.relative == f"{package}/__init__.py")
    wrong = [imported.module for imported in top.imports if imported.is_in(package) and not imported.is_for_types_only]
    assert not wrong, f"{package}/__init__.py imports {wrong}"


def _is_core(module: Module) -> bool:
    parts = module.name.split(".")
    return len(parts) > 1 and parts[1] == "core"


def _rank(name: str) -> int:
    parts = name.split(".")
    if len(parts) == 1:
        return 0
    if parts[1] in LEAVES:
        return 0
    if parts[1] == "__main__":
        return max(RANKS.values())
    return RANKS.get(parts[1], RANK_OF_OTHERS)
