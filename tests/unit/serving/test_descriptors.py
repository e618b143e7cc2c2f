"""The agent asks the system for the descriptors that it may need."""

import resource
from collections.abc import Iterator

import pytest

from edge_agent.serving.limits import DESCRIPTORS_WANTED
from edge_agent.serving.supervisor import _want_descriptors


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_low_limit_is_raised_as_far_as_it_may_be(limits: tuple[int, int]) -> None:
    hard = limits[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1_024, hard), hard))
    _want_descriptors()
    granted = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert granted == min(DESCRIPTORS_WANTED, hard if hard != resource.RLIM_INFINITY else DESCRIPTORS_WANTED)


def test_a_higher_limit_stays(limits: tuple[int, int]) -> None:
    hard = limits[1]
    if hard != resource.RLIM_INFINITY and hard <= DESCRIPTORS_WANTED:
        pytest.skip("the system allows no more than what is wanted")
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS_WANTED + 1, hard))
    _want_descriptors()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == DESCRIPTORS_WANTED + 1
