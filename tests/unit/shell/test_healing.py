"""What rots on disk is found before it runs, and made anew from genuine bytes."""

import pytest

from edge_agent.core import commands as do
from edge_agent.core import inputs
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.manifest import Manifest, Role
from tests.unit.shell.device import Device
from tests.unit.shell.test_dispatch import Bench


def staged() -> tuple[Bench, Assignment]:
    """A dispatcher that has staged a bundle."""
    bench = Bench()
    assignment = bench.cloud.publish(1)
    bench.fetched(assignment)
    assert isinstance(bench.run(do.StageSlot(1, assignment)), inputs.SlotStaged)
    return bench, assignment


def test_a_slot_that_this_process_did_not_read_is_read_whole_before_it_serves() -> None:
    bench, assignment = staged()
    fresh = Bench()
    fresh.slots.staged, fresh.store.present = bench.slots.staged, bench.store.present
    fresh.slots.damaged.add(assignment.manifest)
    answer = fresh.run(do.ServeLive(2, "digits", assignment.manifest))
    assert isinstance(answer, inputs.CommandFailed)
    assert answer.code == "device.disk-corrupt"
    assert not fresh.server.live
    fresh.slots.damaged.clear()
    assert isinstance(fresh.run(do.ServeLive(3, "digits", assignment.manifest)), inputs.LiveServed)
    checked = len(fresh.slots.checked)
    fresh.run(do.ServeLive(4, "digits", assignment.manifest))
    assert len(fresh.slots.checked) == checked  # once a process is enough


def test_a_scrub_names_what_is_damaged_and_what_is_gone() -> None:
    bench, assignment = staged()
    gone = Digest.of(b"gone")
    assert bench.run(do.ScrubStore(2, frozenset({assignment.manifest}))) == inputs.StoreScrubbed(2, frozenset())
    bench.slots.damaged.add(assignment.manifest)
    found = bench.run(do.ScrubStore(3, frozenset({assignment.manifest, gone})))
    assert found == inputs.StoreScrubbed(3, frozenset({assignment.manifest, gone}))


def test_healing_takes_the_damaged_slot_away_fetches_what_is_missing_and_stages_it_anew() -> None:
    bench, assignment = staged()
    bench.slots.damaged.add(assignment.manifest)
    weights = next(digest for digest, data in bench.store.present.items() if data.startswith(b"weights"))
    del bench.store.present[weights]
    assert bench.run(do.HealSlot(2, assignment)) == inputs.SlotHealed(2, assignment.manifest)
    assert assignment.manifest in bench.slots.staged
    assert weights in bench.store.present


def test_a_slot_that_was_complete_and_has_rotted_is_not_taken_for_staged() -> None:
    bench, assignment = staged()
    bench.slots.damaged.add(assignment.manifest)
    answer = bench.run(do.StageSlot(2, assignment))
    assert isinstance(answer, inputs.CommandFailed)
    assert answer.code == "device.disk-corrupt"
    assert assignment.manifest not in bench.slots.staged
    assert isinstance(bench.run(do.StageSlot(3, assignment)), inputs.SlotStaged)


@pytest.mark.parametrize("name", ["manifest", "runtime"])
def test_a_document_that_rotted_since_it_was_fetched_is_fetched_once_more(name: str) -> None:
    bench, assignment = staged()
    manifest = Manifest.parse(bench.cloud.blobs[assignment.manifest])
    (runtime,) = manifest.with_role(Role.RUNTIME)
    damaged = assignment.manifest if name == "manifest" else runtime.digest
    bench.store.present[damaged] = b"rotten"
    assert isinstance(bench.run(do.ResolveBundle(2, assignment)), inputs.BundleResolved)
    assert bench.store.present[damaged] == bench.cloud.blobs[damaged]


def test_a_device_whose_live_slot_rotted_while_it_was_off_heals_and_serves_again() -> None:
    first = Device()
    first.thread.start()
    first.confirm(1)
    live = first.module.live
    first.end()
    assert live is not None
    second = Device(first)
    second.slots.damaged.add(live)
    second.thread.start()
    try:
        second.link.wait_for(lambda: second.link.reports and second.module.serving and second.module.answering == live)
        assert live in second.slots.staged
        assert not second.slots.damaged
    finally:
        second.end()


def test_another_bundle_that_answers_at_the_socket_is_never_confirmed() -> None:
    device = Device()
    device.thread.start()
    try:
        device.confirm(1)
        device.server.impostors["digits"] = Digest.of(b"somebody else")
        device.deploy(2)
        device.link.wait_for(lambda: device.ended == ("rolled_back", "device.answers-otherwise"))
        assert device.module.version == 1
    finally:
        device.end()


def test_a_hold_lasts_until_it_is_ended_and_shows_itself() -> None:
    device = Device()
    device.thread.start()
    try:
        device.confirm(1)
        device.runner.call(lambda: device.runner.ask_hold(""), 5)
        device.deploy(2)
        device.link.wait_for(lambda: device.module.held and _error(device) == "device.held")
        assert device.module.version == 1
        device.runner.call(lambda: device.runner.ask_resume(""), 5)
        device.link.wait_for(lambda: device.module.version == 2 and device.ended == ("confirmed", None))
    finally:
        device.end()


def _error(device: Device) -> str | None:
    deployment = device.module.deployment
    return deployment.error.code if deployment and deployment.error else None
