"""Heavy libraries stay in their adapters, and starting a light program loads none of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict

import pytest

from tests.architecture.patterns import matches_any
from tests.architecture.rules import HEAVY_LIBRARIES, HEAVY_NAMES, LIGHT_STARTS, HeavyLibrary
from tests.architecture.tree import ROOT, all_modules, skip_while_empty

_IMPORT_TIMEOUT_S = 60


@pytest.mark.parametrize("library", HEAVY_LIBRARIES, ids=lambda library: library.name)
def test_a_heavy_library_is_imported_in_its_adapter_alone(library: HeavyLibrary) -> None:
    users: dict[str, set[str]] = defaultdict(set)
    for module in all_modules():
        if any(imported.is_in(library.name) and not imported.is_for_types_only for imported in module.imports):
            users[module.package].add(module.relative)
    outside = sorted(path for paths in users.values() for path in paths if not matches_any(path, library.places))
    assert not outside, f"{library.name} has no business in {outside}; its places are {library.places}"
    for package, paths in users.items():
        most = library.files_max_in.get(package, library.files_max)
        assert len(paths) <= most, f"{package} imports {library.name} in {sorted(paths)}: at most {most} may"


@pytest.mark.parametrize("name", sorted(LIGHT_STARTS))
def test_a_light_start_loads_nothing_heavy(name: str) -> None:
    package = name.partition(".")[0]
    skip_while_empty(package)
    path = ROOT / name.replace(".", "/")
    if not path.with_suffix(".py").is_file() and not (path / "__init__.py").is_file():
        pytest.skip(f"{name} is not written yet")
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import json, sys\nimport {name}\nprint(json.dumps(sorted(sys.modules)))",
        ],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=_IMPORT_TIMEOUT_S,
    )
    assert finished.returncode == 0, finished.stderr
    loaded = {module.partition(".")[0] for module in json.loads(finished.stdout)}
    heavy = sorted(loaded & LIGHT_STARTS[name])
    assert not heavy, f"import {name} loads {heavy}: import them where they are used"


def test_every_library_with_a_light_start_rule_is_a_known_one() -> None:
    unknown = {name for names in LIGHT_STARTS.values() for name in names} - HEAVY_NAMES - {"click", "cryptography"}
    assert not unknown
