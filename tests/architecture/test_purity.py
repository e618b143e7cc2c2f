"""The contract and the cores compute: they read no clock, disk, network or environment, and draw no chance."""

from __future__ import annotations

import ast

import pytest

from tests.architecture.rules import (
    IMPURE_CALLS,
    IMPURE_METHODS,
    IMPURE_MODULES,
    LEAVES,
    PLAIN_NUMBER_MAX,
    PURE_PARTS,
)
from tests.architecture.tree import Module, all_modules, core_modules

# The state machines keep to the strictest form; leaf modules of a package are used by its core, so they are pure too.
PURE = [
    *core_modules(),
    *(
        module
        for module in all_modules()
        if module.package != "edge_contract"
        and len(module.name.split(".")) == 2
        and module.name.split(".")[1] in LEAVES
    ),
]


@pytest.mark.parametrize("module", PURE, ids=lambda module: module.relative)
def test_a_pure_module_reaches_nothing_outside_itself(module: Module) -> None:
    wrong = [
        f"{module.relative}:{imported.line} imports {imported.module}"
        for imported in module.imports
        if imported.top in IMPURE_MODULES and not _is_pure_part(module, imported.module)
    ]
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            wrong.append(f"{module.at(node)} calls {node.func.id}()")
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr in IMPURE_METHODS
            and ast.unparse(node.func.value).rpartition(".")[2] in ("datetime", "date")
        ):
            wrong.append(f"{module.at(node)} looks at the clock: {ast.unparse(node.func)}()")
    assert not wrong, "\n".join(wrong)


def _is_pure_part(module: Module, name: str) -> bool:
    if any(name == part or name.startswith(part + ".") for part in PURE_PARTS):
        return True
    # "from pathlib import PurePosixPath" is listed as pathlib and as pathlib.PurePosixPath: the first is fine only
    # when every name taken from it is.
    taken = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.module == name
        for alias in node.names
    ]
    plainly = any(
        alias.name == name for node in ast.walk(module.tree) if isinstance(node, ast.Import) for alias in node.names
    )
    return bool(taken) and not plainly and all(part in PURE_PARTS for part in taken)


@pytest.mark.parametrize("module", core_modules(), ids=lambda module: module.relative)
def test_a_pure_module_keeps_no_state_of_its_own(module: Module) -> None:
    """Two machines in one process must not see each other: no ``global``, no mutable module-level collection."""
    wrong = [f"{module.at(node)} says global" for node in ast.walk(module.tree) if isinstance(node, ast.Global)]
    for statement in module.tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(
            statement.value, ast.ListComp | ast.SetComp | ast.List | ast.Set
        ):
            names = [ast.unparse(target) for target in _targets(statement)]
            if names != ["__all__"]:
                wrong.append(f"{module.at(statement)} {', '.join(names)} can be changed: use a tuple or a frozenset")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "module",
    [module for module in core_modules() if module.path.name != "limits.py"],
    ids=lambda module: module.relative,
)
def test_large_numbers_have_names(module: Module) -> None:
    """A size, count or wait in the contract or a core is a named limit, so that it can be found and argued about."""
    named = {
        id(inner)
        for statement in module.tree.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        and all(ast.unparse(target).isupper() for target in _targets(statement))
        for inner in ast.walk(statement)
    }
    wrong = [
        f"{module.at(node)} has the plain number {node.value}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant)
        and type(node.value) is int
        and node.value > PLAIN_NUMBER_MAX
        and id(node) not in named
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", core_modules(), ids=lambda module: module.relative)
def test_no_loop_of_a_core_is_endless_by_its_form(module: Module) -> None:
    wrong = [
        module.at(node)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.While) and isinstance(node.test, ast.Constant)
    ]
    assert not wrong, "loops without a bound in their head: " + ", ".join(wrong)


def _targets(statement: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return statement.targets if isinstance(statement, ast.Assign) else [statement.target]
