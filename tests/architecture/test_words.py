"""Names: what crosses a wire uses the glossary's words, errors end in Error, status numbers stay in one file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

import pytest

from tests.architecture.patterns import matches_any
from tests.architecture.rules import STATUS_CODE_PLACES, STATUS_CODES, UNWANTED_WORDS, WIRE_NAMES_OF_OTHERS
from tests.architecture.tree import ROOT, Module, all_modules, modules

_JSON_NAME = re.compile(r"[a-z][a-z0-9]*(?:[_-][a-z0-9]+)*|[a-z]+(?:[A-Z][a-z0-9]*)+")
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+")


@pytest.mark.parametrize("module", modules("edge_contract"), ids=lambda module: module.relative)
def test_wire_names_use_the_words_of_the_glossary(module: Module) -> None:
    wrong = []
    for name, node in _wire_names(module):
        for word in (part.lower() for part in _WORDS.findall(name)):
            if word in UNWANTED_WORDS and name not in WIRE_NAMES_OF_OTHERS:
                wrong.append(f"{module.at(node)} {name!r}: the glossary says {UNWANTED_WORDS[word]}, not {word}")
    assert not wrong, "\n".join(wrong)


def _wire_names(module: Module) -> Iterator[tuple[str, ast.AST]]:
    """Field names of classes, members of enumerations, and strings used as keys of objects."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            for statement in node.body:
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    yield statement.target.id, statement
                elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
                    yield from _texts([statement.value])
        elif isinstance(node, ast.Dict):
            yield from _texts(node.keys)
        elif isinstance(node, ast.Subscript):
            yield from _texts([node.slice])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
            yield from _texts(node.args[:1])


def _texts(nodes: Sequence[ast.expr | None]) -> Iterator[tuple[str, ast.AST]]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _JSON_NAME.fullmatch(node.value):
            yield node.value, node


@pytest.mark.parametrize("module", list(all_modules()), ids=lambda module: module.relative)
def test_classes_that_are_raised_end_in_error(module: Module) -> None:
    wrong = [
        f"{module.at(node)} {node.name}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        and any(_is_exception(ast.unparse(base)) for base in node.bases)
        and not node.name.endswith(("Error", "Warning"))
    ]
    assert not wrong, "\n".join(wrong)


def _is_exception(base: str) -> bool:
    return base.rpartition(".")[2] in ("Exception", "BaseException") or base.endswith("Error")


def test_the_cloud_writes_the_numbers_of_failed_answers_in_one_file() -> None:
    wrong = []
    for module in modules("cloud_registry"):
        if matches_any(module.relative, STATUS_CODE_PLACES):
            continue
        wrong += [
            f"{module.at(node)} has {node.value}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Constant) and type(node.value) is int and node.value in STATUS_CODES
        ]
    assert not wrong, "numbers that look like HTTP status codes: " + "; ".join(wrong)


def test_exit_codes_are_given_by_command_lines_alone() -> None:
    wrong = []
    for module in all_modules():
        last = module.name.split(".")[1:2]
        if last in (["cli"], ["__main__"]) or module.name.endswith(".__main__"):
            continue
        wrong += [
            module.at(node)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit", "quit")
        ]
    assert not wrong, "sys.exit outside a cli.py: " + ", ".join(wrong)


def test_the_glossary_page_holds_every_word_that_replaces_another() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").lower()
    replacements = {
        word
        for advice in UNWANTED_WORDS.values()
        for word in re.findall(r"[a-z]+", advice)
        if word not in ("or", "content", "version")
    }
    missing = sorted(word for word in replacements if word not in page)
    assert not missing
