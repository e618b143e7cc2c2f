"""Worlds whose devices update by deltas, good and bad: the code that chooses and falls back is the one that ships."""

from __future__ import annotations

import pytest

from device_sim.cloud import DeltaFlaw
from device_sim.content import SimContent
from device_sim.world import World, WorldError
from edge_contract.delta import Delta

SEEDS = range(6)


def test_deltas_of_every_kind_are_met_and_good_ones_save_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: set[DeltaFlaw] = set()
    make = SimContent.make

    def watched(content: SimContent, delta: Delta, *rest: object) -> None:
        decoded.add(content._cloud.delta_flaws[delta.digest])
        make(content, delta, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(SimContent, "make", watched)
    saved = fetched = 0
    for seed in SEEDS:
        world = World(devices=6, seed=seed, steps=1_500)
        world.run()
        saved += sum(device.content.fetching.saved_bytes for device in world.devices)
        fetched += sum(device.content.fetching.network_bytes for device in world.devices)
    assert decoded == set(DeltaFlaw) - {DeltaFlaw.MISSING}
    assert saved > fetched / 100


def test_a_device_that_forgets_which_deltas_failed_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimContent, "can_make", lambda *_: True)
    found = set()
    for seed in SEEDS:
        try:
            World(devices=6, seed=seed, steps=1_500).run()
        except WorldError as error:
            found.add(error.rule)
    assert "failed-deltas-rest" in found
