"""The source tree as data: which modules exist, what each imports, parsed once a run."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = ("edge_contract", "edge_delta", "edge_agent", "packager", "cloud_registry", "device_sim")


@dataclass(frozen=True)
class Import:
    """One import of one module, wherever in the file it stands."""

    module: str
    line: int
    is_for_types_only: bool

    @property
    def top(self) -> str:
        """The first part of the dotted name."""
        return self.module.partition(".")[0]

    def is_in(self, package: str) -> bool:
        """Whether it names this package or something inside."""
        return self.module == package or self.module.startswith(package + ".")


@dataclass(frozen=True)
class Module:
    """One Python file of the product."""

    path: Path

    @property
    def relative(self) -> str:
        """The path below the repository's root, with forward slashes."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def package(self) -> str:
        """The top package it belongs to."""
        return self.relative.partition("/")[0]

    @property
    def name(self) -> str:
        """Its dotted name."""
        dotted = self.relative.removesuffix(".py").replace("/", ".")
        return dotted.removesuffix(".__init__")

    @property
    def source(self) -> str:
        """Its text."""
        return self.path.read_text(encoding="utf-8")

    @property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return _parse(self.path)

    @property
    def imports(self) -> tuple[Import, ...]:
        """Every import statement, with relative ones resolved; ``from a import b`` counts as ``a.b`` too."""
        return _imports_of(self.path, self.name, is_package=self.path.name == "__init__.py")

    def at(self, node: ast.AST) -> str:
        """A place to click on."""
        return f"{self.relative}:{getattr(node, 'lineno', 0)}"


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def _imports_of(path: Path, name: str, *, is_package: bool) -> tuple[Import, ...]:
    tree = _parse(path)
    types_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, id(node) in types_only) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _resolved(name, node, is_package=is_package)
            found.append(Import(base, node.lineno, id(node) in types_only))
            found += [Import(f"{base}.{alias.name}", node.lineno, id(node) in types_only) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
            # A library loaded by name is imported all the same.
            found += [
                Import(argument.value, node.lineno, False)
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
    return tuple(found)


def _resolved(name: str, node: ast.ImportFrom, *, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = name.split(".")
    kept = len(parts) - node.level + (1 if is_package else 0)
    return ".".join([*parts[:kept], *([node.module] if node.module else [])])


@cache
def modules(package: str) -> tuple[Module, ...]:
    """All Python files of a package, in order; revision files of database migrations included."""
    return tuple(Module(path) for path in sorted((ROOT / package).rglob("*.py")))


def all_modules() -> Iterator[Module]:
    """All Python files of the product."""
    for package in PACKAGES:
        yield from modules(package)


def core_modules() -> list[Module]:
    """The pure part: the contract, and the core of each package."""
    cores = [module for module in all_modules() if module.relative.split("/")[1] == "core"]
    return [*modules("edge_contract"), *cores]


def skip_while_empty(package: str) -> None:
    """Skip while a package is only a name: nothing but ``__init__.py`` files."""
    if not any(module.path.name != "__init__.py" for module in modules(package)):
        pytest.skip(f"{package} is still empty")


@cache
def tracked_files() -> tuple[Path, ...]:
    """Every file that git tracks, or would after ``git add``; outside a checkout every file of the tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=30,
    )
    if listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name]
        return tuple(path for path in (ROOT / name for name in names) if path.is_file())
    hidden = (".venv", ".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis")
    return tuple(
        path
        for path in sorted(ROOT.rglob("*"))
        if path.is_file() and not any(part.startswith(hidden) for part in path.relative_to(ROOT).parts)
    )
