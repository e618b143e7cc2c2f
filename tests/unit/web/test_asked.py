"""What a command line may ask of a service, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_agent.web.asked import Asked, make_policy, parse_bytes, parse_cpus
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import WORKER_BYTES_MAX

FOLDER = Path("bundle")
ROOT = Path("root.json")
DIGEST = Digest.of(b"x")
PULLED: dict[str, Any] = {"registry": "https://r.example", "model": "digits", "version": 3}


@pytest.mark.parametrize(
    "options",
    [
        {"bundle": FOLDER, "digest": DIGEST},
        {"bundle": FOLDER, "is_unsigned": True},
        {"bundle": FOLDER, "root": ROOT, "metadata": "trust"},
        {"bundle": FOLDER, "root": ROOT, "registry": "https://r.example", "token": "t"},
        {"bundle": FOLDER, "root": ROOT, "metadata": "trust", "digest": DIGEST},
        {**PULLED, "root": ROOT},
        {**PULLED, "root": ROOT, "metadata": "https://other.example"},
        {**PULLED, "digest": DIGEST, "token": "t"},
        {**PULLED, "is_unsigned": True},
    ],
)
def test_what_belongs_together_is_taken(options: dict[str, Any]) -> None:
    asked = Asked(**options)
    assert asked.check() is asked


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ({}, "no bundle"),
        ({"registry": "https://r.example", "model": "digits", "is_unsigned": True}, "no bundle"),
        ({"bundle": FOLDER}, "genuine"),
        ({**PULLED}, "genuine"),
        ({"bundle": FOLDER, "digest": DIGEST, "is_unsigned": True}, "contradicts"),
        ({"bundle": FOLDER, "digest": DIGEST, "metadata": "trust"}, "--metadata needs --root"),
        ({"bundle": FOLDER, "root": ROOT}, "needs the image repository's metadata"),
        ({"bundle": FOLDER, "digest": DIGEST, "registry": "https://r.example"}, "two sources"),
        ({"bundle": FOLDER, "root": ROOT, "metadata": "x", "registry": "https://r.example"}, "two sources"),
        ({"bundle": FOLDER, "digest": DIGEST, "token": "t"}, "no --registry"),
        ({"bundle": FOLDER, "digest": DIGEST, "ca": ROOT}, "no --registry"),
        ({"bundle": FOLDER, "digest": DIGEST, "providers": ("CUDA;rm",)}, "--provider"),
    ],
)
def test_what_does_not_is_refused(options: dict[str, Any], about: str) -> None:
    with pytest.raises(EdgeError, match=about) as caught:
        Asked(**options).check()
    assert caught.value.code == "config.invalid"


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("300000000", 300_000_000), ("512Mi", 2**29), ("512MiB", 2**29), ("2g", 2 * 10**9), ("1K", 1000)],
)
def test_memory_is_read_as_people_write_it(text: str, count: int) -> None:
    assert parse_bytes(text) == count
    assert make_policy(False, text, None).resources.memory_bytes_max == count


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "lots", "5 Mi", f"{WORKER_BYTES_MAX + 1}", "9" * 16, "1Ki i"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(EdgeError, match="--memory"):
        parse_bytes(text)


def test_processors_are_read_in_thousandths() -> None:
    assert [parse_cpus(text) for text in ("2", "0.5", "1.25", "0.001")] == [2000, 500, 1250, 1]
    assert make_policy(True, None, "1.5").resources.cpu_permille_max == 1500
    for text in ("", "0", "0.0", "-1", "2e3", "1.2345", "nan", "1025", "99999"):
        with pytest.raises(EdgeError, match="--cpus"):
            parse_cpus(text)


def test_a_policy_permits_no_more_than_was_asked_for() -> None:
    plain = make_policy(False, None, None)
    assert (plain.allow_pickle, plain.resources.memory_bytes_max, plain.resources.cpu_permille_max) == (False, 0, 0)
    assert make_policy(True, None, None).allow_pickle
    assert plain.sampling_ratio == 0.0
