"""Threads that take turns on one core."""

import os
import threading

import pytest

from edge_agent.worker.cores import share_core


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores that this process may use")
def test_a_thread_is_bound_and_let_go_and_nobody_else_is() -> None:
    found: list[set[int]] = []

    def work() -> None:
        for is_shared in (True, False):
            share_core(is_shared)
            found.append(os.sched_getaffinity(0))

    mine = os.sched_getaffinity(0)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join(30)
    assert [len(cores) for cores in found] == [1, len(mine)] * 2
    assert found[0] == found[2], "threads of one process meet on the same core"
    assert found[1] == mine
    assert os.sched_getaffinity(0) == mine
