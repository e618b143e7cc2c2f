"""Registry and broker go away in the middle of things; the live model answers on, and nothing is lost."""

from __future__ import annotations

import pytest

from tests.e2e.stack import Stack, exactly_once
from tests.support.proxy import rough_proxy

pytestmark = [pytest.mark.e2e, pytest.mark.system]

MIB = 1024 * 1024
TRICKLE_S = 0.01
CUT_AFTER = MIB
CUTS = 3


def test_a_registry_that_dies_during_a_download_holds_up_nothing_but_the_download(stack: Stack) -> None:
    with rough_proxy(stack.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        device, first = stack.live_device("harbour-1", "harbour", url)
        with device.asker() as asker:
            asker.wait_for(1)
            proxy.delay_s = TRICKLE_S
            second = stack.ship("harbour", 2, device.name, padding_bytes=6 * MIB)
            device.wait(lambda: device.partial_bytes() > MIB, "the download to be under way")
            stack.kill_registry()
            device.wait(lambda: device.errors() & {"network.cut", "network.unreachable"}, "an error of the network")
            asker.go_on()
            assert device.module()["live"] == str(first.manifest)
            assert set(asker.answered.values()) == {1}
            proxy.delay_s = 0.0
            stack.start_registry()
            device.wait_confirmed(second.manifest)
            asker.wait_for(2)
            assert stack.wait_standing(second, device.name, "confirmed")["error"] is None
        asker.require_flawless()
        exactly_once(stack, device, set(asker.answered))


def test_a_broker_that_is_down_delays_neither_updates_nor_loses_telemetry(stack: Stack) -> None:
    device, _ = stack.live_device("quay-1", "quay")
    with device.asker() as asker:
        asker.wait_for(1)
        stack.broker.kill()
        device.wait(lambda: device.status().get("online") is False, "the agent to notice")
        second = stack.ship("quay", 2, device.name)
        device.wait_confirmed(second.manifest)  # found by polling: there is nobody to nudge
        asker.wait_for(2)
        device.wait(lambda: device.status()["spool"]["records"] > 20, "telemetry to wait")
        assert stack.standing(second, device.name)["standing"] == "pending"
        stack.broker.start()
        stack.wait_standing(second, device.name, "confirmed")
        device.wait(lambda: device.status()["online"], "the agent to be online again")
    asker.require_flawless()
    exactly_once(stack, device, set(asker.answered))
    device.wait(lambda: device.status()["spool"]["records"] == 0, "the spool to be trimmed")
    assert device.status()["spool"]["dropped"] == 0


def test_a_download_that_is_slow_and_cut_again_and_again_goes_on_where_it_was_cut(stack: Stack) -> None:
    with rough_proxy(stack.port) as proxy:
        device, _ = stack.live_device("lock-1", "lock", f"http://127.0.0.1:{proxy.port}")
        with device.asker() as asker:
            asker.wait_for(1)
            before = proxy.passed
            proxy.delay_s, proxy.cut_after = TRICKLE_S / 2, CUT_AFTER
            second = stack.ship("lock", 2, device.name, padding_bytes=CUTS * CUT_AFTER + CUT_AFTER // 2)
            device.wait_confirmed(second.manifest)
            asker.wait_for(2)
        asker.require_flawless()
        assert proxy.cuts >= CUTS
        # Everything that was ever sent, metadata and polls included, is little more than the model once.
        assert proxy.passed - before < second.size + MIB
        assert second.size * proxy.cuts > proxy.passed - before
        assert stack.wait_standing(second, device.name, "confirmed")["error"] is None


def test_a_registry_killed_in_the_midst_of_telemetry_stores_each_record_once(stack: Stack) -> None:
    device, _ = stack.live_device("ferry-1", "ferry")

    def collected(more_than: int) -> int:
        """How many records are in the lake, once they are more than that."""

        def count() -> int:
            with stack.client() as client:
                sql = f"SELECT count(*) FROM telemetry WHERE device = '{device.name}'"
                found = int(client.query(sql)["rows"][0][0])
            return found if found > more_than else 0

        return device.wait(count, "telemetry to flow", poll_s=0.3)

    with device.asker() as asker:
        so_far = 0
        for _ in range(2):
            so_far = collected(so_far + 20)
            stack.kill_registry()
            asker.go_on(30)
            stack.start_registry()
        asker.go_on()
    asker.require_flawless()
    exactly_once(stack, device, set(asker.answered))
    device.wait(lambda: device.status()["spool"]["records"] == 0, "the spool to be trimmed")
    # Nothing was given up on the way: the numbers of the one boot have no gap.
    sql = f"SELECT min(seq), max(seq), count(*) FROM telemetry WHERE device = '{device.name}'"
    ((low, high, count),) = stack.query(sql)
    assert (low, high) == (1, count)
