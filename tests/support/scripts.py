"""Scripts loaded in the process of the tests, without leaving traces for others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def python_as_before() -> Iterator[None]:
    """Scripts change the interpreter's path and forbid pickles for good; other tests are not to see it."""
    path, modules, is_frozen = list(sys.path), set(sys.modules), sys.dont_write_bytecode
    with mock.patch("edge_agent.worker.engines.script._refuse_pickles"):
        yield
    sys.path[:] = path
    sys.dont_write_bytecode = is_frozen
    for name in set(sys.modules) - modules:
        if name.startswith(("lighterman_member_", "dep_", "helper_")):
            del sys.modules[name]
