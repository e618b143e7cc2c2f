"""Terms of a policy as people type them."""

from typing import Any

import pytest

from edge_contract.deployment import Policy
from edge_contract.errors import EdgeError
from edge_contract.terms import Resources, Trial
from packager.terms import parse_cpus, parse_size, terms_of


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("200MiB", 200 * 2**20), ("1.5GB", 1_500_000_000), ("2 k", 2_000), ("7B", 7), ("1gi", 2**30)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1TB", "1e9", "200 M i B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(EdgeError, match="is no size"):
        parse_size(text)


def test_processors() -> None:
    assert parse_cpus("0,2-3") == [0, 2, 3]
    for text in ("", "3-2", "a", "0,,1", "5000"):
        with pytest.raises(EdgeError, match="no list of processors"):
            parse_cpus(text)


def test_terms_become_the_policy_that_the_contract_reads() -> None:
    told = {
        "allow_pickle": True,
        "memory_max": "300MiB",
        "cpu_max": 0.5,
        "cpus": "1,0",
        "nice": 5,
        "latency_ratio_max": 2.5,
        "trial_s": 60.0,
        "trial_share": 0.1,
        "trial_top1": 0.99,
        "trial_gate": True,
    }
    policy = Policy.from_json(terms_of(told))
    assert policy == Policy(
        allow_pickle=True,
        resources=Resources(300 * 2**20, 500, (0, 1), 5),
        trial=Trial(60_000, sampling_ppm=100_000, top1_ppm_min=990_000, gate=True),
        latency_permille_max=2_500,
    )
    assert Policy.from_json(policy.to_custom()) == policy


def test_nothing_told_overrides_nothing() -> None:
    assert terms_of({}) == {}
    assert terms_of(dict.fromkeys(("allow_pickle", "trial_gate"), False) | {"memory_max": None}) == {}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"trial_gate": True}, "without its length"),
        ({"trial_s": 10**9}, "window_ms"),
        ({"nice": 99}, "nice"),
        ({"cpu_max": 10**9}, "cpu_permille_max"),
    ],
)
def test_terms_that_no_device_would_accept_are_refused_here(told: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgeError, match=said) as caught:
        terms_of(told)
    assert caught.value.code == "config.invalid"
