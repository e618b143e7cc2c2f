"""Any history: several collectors, crashes, faults and repeats, and still each record once and no ack too early."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cloud_registry.collect.core import FlushRules
from cloud_registry.collect.inputs import LinkLost, SendAck
from tests.unit.cloud_telemetry.storing import Bench, MemoryStore

_DEVICES = ("d1", "d2")
_COLLECTORS = 2
_BOOTS_MAX = 2
_RULES = FlushRules(age_ms=100, quiet_messages=3)


class Publisher:
    """A device that keeps to the protocol: one batch at a time, repeated until its last number is acknowledged."""

    def __init__(self) -> None:
        self.boot = 0
        self.made = 0
        self.acked = 0
        self.owed: list[tuple[str, str, int]] = []  # what it ever let go of, so what has to be in the lake

    def acknowledge(self, device: str, ack: SendAck) -> None:
        """Let go of what is durable."""
        if ack.boot == f"{self.boot:x}" and ack.upto > self.acked:
            assert ack.upto <= self.made, "nobody sent that number"
            self.owed += [(device, ack.boot, seq) for seq in range(self.acked + 1, ack.upto + 1)]
            self.acked = ack.upto


class Histories(RuleBasedStateMachine):
    """Draws what happens next."""

    @initialize()
    def begin(self) -> None:
        """Two devices, two collectors on one shared subscription."""
        self.store = MemoryStore(enrolled=set(_DEVICES))
        self.benches = [Bench(self.store, _RULES) for _ in range(_COLLECTORS)]
        self.publishers = {device: Publisher() for device in _DEVICES}
        self.late: list[tuple[str, int, int, str]] = []

    @rule(
        device=st.sampled_from(_DEVICES),
        new=st.integers(0, 3),
        collectors=st.lists(st.integers(0, _COLLECTORS - 1), min_size=1, max_size=3),
    )
    def send(self, device: str, new: int, collectors: list[int]) -> None:
        """A device takes samples and sends its batch, which reaches one collector or several, once or more often."""
        publisher = self.publishers[device]
        publisher.made += new
        if publisher.made > publisher.acked:
            message = (device, publisher.acked + 1, publisher.made, f"{publisher.boot:x}")
            self.late = [*self.late[-3:], message]
            for collector in collectors:
                self.deliver(message, collector)

    @rule(pick=st.integers(0, 3), collector=st.integers(0, _COLLECTORS - 1))
    def send_late(self, pick: int, collector: int) -> None:
        """A message of some time ago arrives again."""
        if self.late:
            self.deliver(self.late[pick % len(self.late)], collector)

    @rule(
        collector=st.integers(0, _COLLECTORS - 1),
        ms=st.sampled_from([100, 0, 30_000]),
        steps=st.sampled_from([20, 1, 2, 3, 4, 5]),
        fault=st.sampled_from(["", "", "before", "after"]),
        end=st.sampled_from(["", "", "", "", "crash", "link"]),
    )
    def work(self, collector: int, ms: int, steps: int, fault: str, end: str) -> None:
        """A collector runs its next commands; the last fails, or works unheard, or the collector is killed after it."""
        bench = self.benches[collector]
        bench.pass_time(ms)
        for step in range(steps):
            if bench.waiting:
                bench.step(fault if step == steps - 1 else "")
        self.hear()
        if end == "link":
            bench.feed(LinkLost())
        elif end == "crash":
            self.benches[collector] = Bench(self.store, _RULES)

    @rule(device=st.sampled_from(_DEVICES))
    def reboot(self, device: str) -> None:
        """A device starts again and numbers anew; what it still had is of no interest here."""
        publisher = self.publishers[device]
        if publisher.boot < _BOOTS_MAX:
            publisher.boot, publisher.made, publisher.acked = publisher.boot + 1, 0, 0

    def deliver(self, message: tuple[str, int, int, str], collector: int) -> None:
        """The broker gives a message to a collector."""
        if self.benches[collector].core.is_accepting:
            self.benches[collector].receive(*message)

    def hear(self) -> None:
        """Acknowledgements reach the devices."""
        for bench in self.benches:
            for ack in bench.acks:
                self.publishers[ack.device].acknowledge(ack.device, ack)
            bench.acks.clear()

    @invariant()
    def each_record_is_seen_at_most_once(self) -> None:
        """Whatever a query reads, it reads once."""
        repeated = {record: count for record, count in Counter(self.store.records()).items() if count > 1}
        assert not repeated

    @invariant()
    def what_was_acknowledged_is_there(self) -> None:
        """No device lets go of a record that is not durable."""
        missing = {record for device in self.publishers.values() for record in device.owed} - set(self.store.records())
        assert not missing

    @invariant()
    def releases_keep_their_order(self) -> None:
        """As MQTT demands."""
        for bench in self.benches:
            assert bench.released == sorted(bench.released)

    def teardown(self) -> None:
        """When the faults end, everything arrives: a last collector takes what the devices still have."""
        last = Bench(self.store, _RULES)
        for device, publisher in self.publishers.items():
            if publisher.made > publisher.acked:
                last.receive(device, publisher.acked + 1, publisher.made, f"{publisher.boot:x}")
        last.flush()
        self.benches.append(last)
        self.hear()
        assert all(publisher.acked == publisher.made for publisher in self.publishers.values())
        self.each_record_is_seen_at_most_once()
        self.what_was_acknowledged_is_there()


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=150, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)
