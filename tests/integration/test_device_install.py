"""What a device gets: the roles ``agent`` and ``onnx`` bring nothing of the cloud's, author's or simulator's."""

from __future__ import annotations

from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CLOUD_ONLY = frozenset({"alembic", "duckdb", "fastapi", "psycopg", "sqlalchemy", "starlette", "uvicorn"})
AUTHORS_ONLY = frozenset({"httpx", "onnx", "rich", "safetensors", "scikit-learn", "scipy"})
SIMULATOR_ONLY = frozenset({"aiomqtt", "iotcore"})
DISTRIBUTIONS_MAX = 30


def closure(requirement: str) -> set[str]:
    """The names of all distributions that installing this would bring, itself included, by installed metadata."""
    found: set[str] = set()
    waiting = [Requirement(requirement)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        extras = frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(name)
        for line in metadata.requires(name) or ():
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(inner)
    return found


@pytest.mark.parametrize("roles", ["agent,onnx", "agent,litert", "agent"])
def test_a_device_gets_nothing_that_belongs_elsewhere(roles: str) -> None:
    installed = closure(f"lighterman[{roles}]")
    assert {"lighterman", "click", "paho-mqtt", "tuf", "cryptography"} <= installed
    foreign = installed & (CLOUD_ONLY | AUTHORS_ONLY | SIMULATOR_ONLY)
    assert not foreign
    assert len(installed) <= DISTRIBUTIONS_MAX, sorted(installed)


def test_an_agent_without_a_runtime_has_no_numpy() -> None:
    assert not closure("lighterman[agent]") & {"numpy", "onnxruntime", "ai-edge-litert"}


def test_a_device_with_onnx_has_its_runtime() -> None:
    assert {"numpy", "onnxruntime", "httptools"} <= closure("lighterman[agent,onnx]")


def test_the_walk_follows_extras_of_extras() -> None:
    everything = closure("lighterman[sim]")
    assert everything >= CLOUD_ONLY | SIMULATOR_ONLY | {"httpx", "onnx", "onnxruntime", "paho-mqtt"}
