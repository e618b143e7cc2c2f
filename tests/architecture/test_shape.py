"""The shape of the sources: size, documentation, nothing left for later, limits that are numbers with a unit."""

from __future__ import annotations

import ast
import importlib

import pytest

from tests.architecture.rules import FILE_LINES_MAX, FUNCTION_LINES_MAX
from tests.architecture.tree import PACKAGES, ROOT, Module, all_modules, modules, tracked_files

PYTHON_FILES = [path for path in tracked_files() if path.suffix == ".py"]

# What others call: the contract, and the ports of each package.
DOCUMENTED = [
    *modules("edge_contract"),
    *(module for module in all_modules() if module.name.split(".")[1:2] == ["ports"]),
]


def test_no_file_is_too_long_to_read_in_one_sitting() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in PYTHON_FILES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES_MAX
    }
    assert not long, f"split by meaning: {long}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_is_too_long(package: str) -> None:
    wrong = [
        f"{module.at(node)} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for module in modules(package)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", DOCUMENTED, ids=lambda module: module.relative)
def test_what_others_call_is_documented(module: Module) -> None:
    missing = [] if ast.get_docstring(module.tree) else [f"{module.relative} itself"]
    missing += _undocumented(module, module.tree)
    assert not missing, "without a docstring: " + ", ".join(missing)


def _undocumented(module: Module, parent: ast.Module | ast.ClassDef) -> list[str]:
    missing = []
    for node in parent.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        is_variant = any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)
        if not is_variant and not ast.get_docstring(node):
            missing.append(f"{module.at(node)} {node.name}")
        if isinstance(node, ast.ClassDef):
            missing += _undocumented(module, node)
    return missing


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is_for(package: str) -> None:
    missing = [module.relative for module in modules(package) if not ast.get_docstring(module.tree)]
    assert not missing


def test_nothing_is_left_unfinished() -> None:
    wrong = [
        module.at(node)
        for module in all_modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.unparse(node.exc)
    ]
    assert not wrong, ", ".join(wrong)


@pytest.mark.parametrize("package", [name for name in PACKAGES if (ROOT / name / "limits.py").is_file()])
def test_limits_are_positive_numbers_with_a_name(package: str) -> None:
    values = vars(importlib.import_module(f"{package}.limits"))
    limits = {name: value for name, value in values.items() if name.isupper() and isinstance(value, int | float)}
    assert limits
    assert not {name: value for name, value in limits.items() if isinstance(value, bool) or value <= 0}
    plain = [name for name, value in values.items() if isinstance(value, int | float) and not name.isupper()]
    assert not plain, f"limits are written in capitals: {plain}"
