"""The loop under interference: floods, signals, disks that cannot be written, servers that refuse."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from edge_agent.core import inputs
from edge_agent.shell.limits import SAMPLES_BYTES_MAX
from edge_contract.errors import EdgeError
from edge_contract.telemetry import Ack
from tests.unit.shell.device import Device
from tests.unit.shell.fakes import FakeLink

READ_ONLY = EdgeError("device.disk-error", "read-only file system")
FLOOD = 30_000


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    device.end()


class FloodingLink(FakeLink):
    """Says far too much before the loop even listens, on the loop's own thread."""

    def start(
        self,
        on_nudge: Callable[[int], None],
        on_ack: Callable[[Ack], None],
        on_online: Callable[[bool], None],
    ) -> None:
        """Flood."""
        for number in range(FLOOD):
            on_nudge(number)
            on_ack(Ack({f"{number:016x}": number}))
            on_online(number % 2 == 0)
        super().start(on_nudge, on_ack, on_online)


def test_a_flood_from_the_network_neither_blocks_nor_fills_the_loop() -> None:
    device = Device()
    device.link = device.runner._link = FloodingLink()
    device.thread.start()
    device.link.wait_for(lambda: device.link.reports)
    assert len(device.link.reports) < 20
    device.confirm(1)
    device.end()


def test_a_signal_handler_ends_the_loop_that_it_interrupts() -> None:
    """The loop runs on the main thread, where handlers run: they may interrupt it anywhere."""
    device = Device()

    def stop(_signum: int, _frame: FrameType | None) -> None:
        device.runner.stop()

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        device.runner.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert device.supervisor.signs == ["ready", "stopping"]


def test_a_link_that_does_not_even_start_leaves_no_thread_behind() -> None:
    device = Device()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    device.link.start = broken  # type: ignore[method-assign,assignment]
    device.thread.start()
    device.thread.join(20)
    assert isinstance(device.raised, ZeroDivisionError)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]


# -- a disk that cannot be written ---------------------------------------------------------------------------------


def test_a_live_worker_that_ends_comes_up_again_though_the_record_cannot_be_written(device: Device) -> None:
    device.thread.start()
    device.confirm(1)
    live = device.server.live["digits"]
    device.journal.error = READ_ONLY
    device.deploy(2)
    device.link.wait_for(lambda: device.link.reports[-1].error)
    came_up = threading.Event()
    ensure = device.server.ensure

    def watched(*arguments: object) -> object:
        came_up.set()
        return ensure(*arguments)  # type: ignore[arg-type]

    device.server.ensure = watched  # type: ignore[method-assign,assignment]
    del device.server.live["digits"]
    device.runner.post(inputs.WorkerExited("digits", live))
    assert came_up.wait(20)
    assert not device.server.proved


def test_a_device_that_starts_with_a_disk_that_cannot_be_written_serves_its_live_bundle(device: Device) -> None:
    device.thread.start()
    device.confirm(1)
    device.store.fail = EdgeError("network.unreachable", "no route")
    device.deploy(2)
    device.link.wait_for(lambda: device.module.deployment and device.module.deployment.error)
    device.end()
    record = device.journal.record
    assert record is not None
    record["modules"]["digits"]["phase"] = "fetching"  # as if the power had failed there: the start changes the record
    device.journal.error = READ_ONLY
    again = Device(device)
    again.store.fail = device.store.fail
    again.thread.start()
    again.link.wait_for(lambda: again.link.reports)
    again.runner.post(inputs.LinkChanged(is_online=True))
    again.link.wait_for(lambda: again.server.live)
    again.end()
    assert again.journal.record == record


def test_reports_claim_nothing_that_a_power_cut_could_take_back(device: Device) -> None:
    device.thread.start()
    device.confirm(1)
    device.journal.error = READ_ONLY
    device.deploy(2)
    device.link.wait_for(lambda: device.link.reports[-1].error)
    count = len(device.link.reports)
    device.link.online(True)
    device.link.wait_for(lambda: len(device.link.reports) > count)
    last = device.link.reports[-1]
    assert last.error is not None
    assert last.error.code == "device.disk-error"
    assert last.modules["digits"].deployment is not None
    assert last.modules["digits"].deployment.deployment == "d1"
    assert last.director_version == 1
    device.journal.error = None
    device.link.wait_for(lambda: device.module.version == 2 and device.ended == ("confirmed", None))
    assert device.link.reports[-1].error is None


def test_a_disk_that_stays_as_it_is_does_not_let_waiting_reports_grow(device: Device) -> None:
    device.thread.start()
    device.confirm(1)
    device.journal.error = READ_ONLY
    device.deploy(2)
    device.link.wait_for(lambda: device.link.reports[-1].error)
    for _ in range(50):
        device.runner.post(inputs.LinkChanged(is_online=True))
    device.runner.call(lambda: None, 10)
    assert device.runner.call(lambda: len(device.runner._commands), 10) < 10


# -- workers -------------------------------------------------------------------------------------------------------


def test_a_worker_that_takes_no_word_of_sampling_does_not_end_the_agent(device: Device) -> None:
    def broken(module: str, ratio: float) -> None:
        raise EdgeError("model.worker-crashed", "the worker is gone")

    device.server.set_sampling = broken  # type: ignore[method-assign]
    device.thread.start()
    device.confirm(1)
    device.confirm(2)


def test_samples_that_wait_are_bounded_in_bytes(device: Device) -> None:
    large = {"body": {"inputs": ["x" * 100_000] * 10}}
    for _ in range(2 * SAMPLES_BYTES_MAX // 1_000_000):
        device.runner.sample_taken("digits", large)
    assert device.runner._telemetry.dropped >= SAMPLES_BYTES_MAX // 1_000_000 - 1
    device.thread.start()
    device.link.wait_for(lambda: device.link.reports)
