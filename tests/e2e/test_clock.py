"""Clocks that are wrong: a device without a battery wakes up in 1970, another one lives in the future."""

from __future__ import annotations

import time

import pytest

from tests.e2e.stack import Stack, exactly_once

pytestmark = [pytest.mark.e2e, pytest.mark.system]

WAKING_MS = 12_345
MONTHS_MS = 120 * 24 * 3600 * 1000


@pytest.mark.parametrize(
    ("wall_ms", "code"),
    [
        pytest.param(WAKING_MS, "device.clock-untrusted", id="1970"),
        pytest.param(int(time.time() * 1000) + MONTHS_MS, "trust.metadata-expired", id="future"),
    ],
)
def test_with_a_wrong_clock_the_live_model_serves_and_nothing_is_installed(
    stack: Stack, wall_ms: int, code: str
) -> None:
    name = f"buoy-{code.rpartition('-')[2]}"
    device, first = stack.live_device(name, "buoy" + code[:5].replace(".", ""), is_clocked=True)
    device.stop()
    device.set_clock(wall_ms=wall_ms)
    device.start()
    device.wait(lambda: device.module().get("serving"), "the live model to be served again")
    with device.asker() as asker:
        second = stack.ship(first.model, 2, device.name)
        device.wait_error(code)

        def cloud_knows() -> bool:
            with stack.client() as client:
                report = client.device(device.name)["report"]
            error = report["error"]
            return error is not None and error["code"] == code

        device.wait(cloud_knows, "the registry to hear of the clock")
        asker.go_on()
        assert device.module()["live"] == str(first.manifest)
        assert device.module()["phase"] == "idle"
        assert stack.standing(second, device.name)["standing"] == "pending"
        device.set_clock()
        device.wait_confirmed(second.manifest)
        assert device.errors() == set()
        asker.wait_for(2)
    asker.require_flawless()
    exactly_once(stack, device, set(asker.answered))
