"""Everything that fuzzing has found worth keeping is tried again; and the fuzzer finds what is there to be found."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.fuzzer import CORPUS, Coverage, Fuzzer, read_corpus
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import INPUT_BYTES_MAX, TARGETS, run_on_loop


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_breaks_nothing(name: str) -> None:
    inputs = [*SEEDS[name], *read_corpus(name)]
    assert inputs

    def replay() -> None:
        for data in inputs:
            TARGETS[name](data)

    run_on_loop(replay)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_small_and_says_nothing_twice(name: str) -> None:
    inputs = read_corpus(name)
    assert 0 < len(inputs) == len(set(inputs)) <= 500
    assert max(map(len, inputs)) <= INPUT_BYTES_MAX
    assert {path.name for path in CORPUS.iterdir()} == {f"{target}.txt" for target in TARGETS}


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_hundred_new_inputs_break_nothing(name: str) -> None:
    fuzzer = Fuzzer(name, TARGETS[name], random.Random(name))

    def work() -> None:
        finding = fuzzer.start(SEEDS[name])
        for _ in range(300):
            finding = finding or fuzzer.step()
        assert finding is None, (finding.data, finding.error)

    run_on_loop(work)
    assert len(fuzzer.corpus) > 3


def _picky(data: bytes) -> None:
    if data[:1] != b"b":
        return
    if data[1:2] != b"u":
        return
    if data[2:3] == b"g":
        raise ZeroDivisionError


def test_the_fuzzer_finds_its_way_to_a_bug_step_by_step() -> None:
    fuzzer = Fuzzer("picky", _picky, random.Random(1), coverage=Coverage((__file__,)))
    finding = fuzzer.start([b"...."])
    while finding is None and fuzzer.calls < 200_000:
        finding = fuzzer.step()
    assert finding is not None
    assert finding.data.startswith(b"bug")
    assert isinstance(finding.error, ZeroDivisionError)
