"""docs/threats.md and the tests of this folder say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from edge_contract.codes import CODES, Category
from tests.support.require import REPOSITORY_ROOT

PAGE = (REPOSITORY_ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
FOLDER = Path(__file__).parent
CATEGORIES = "|".join(Category)


def test_every_test_of_this_folder_is_on_the_page_and_every_test_of_the_page_is_in_this_folder() -> None:
    there = {
        node.name
        for path in FOLDER.glob("test_*.py")
        if path != Path(__file__)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert set(re.findall(r"`(test_\w+)`", PAGE)) == there


def test_every_code_of_the_page_is_asserted_by_the_test_of_its_line() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("test_*.py")}
    lines = [line for line in PAGE.splitlines() if "`test_" in line]
    assert lines
    for line in lines:
        codes = re.findall(rf"`((?:{CATEGORIES})\.[a-z-]+)`", line)
        (test, *_) = re.findall(r"`(test_\w+)`", line)
        (source,) = (text for text in sources.values() if f"def {test}(" in text)
        for code in codes:
            assert code in CODES, code
            assert f'"{code}"' in source, f"{test} does not look for {code}"
