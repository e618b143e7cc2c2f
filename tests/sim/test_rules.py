"""Every rule a world can break is explained to whoever meets it."""

from __future__ import annotations

import re

from tests.support.require import REPOSITORY_ROOT

_BROKEN = re.compile(r'InvariantError\(\s*"([a-z-]+)"')


def test_the_documentation_names_exactly_the_rules_there_are() -> None:
    sources = (REPOSITORY_ROOT / "device_sim").glob("*.py")
    rules = {rule for path in sources for rule in _BROKEN.findall(path.read_text(encoding="utf-8"))}
    page = (REPOSITORY_ROOT / "docs" / "simulation.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)) == rules
