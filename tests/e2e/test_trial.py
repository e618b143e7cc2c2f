"""A candidate on trial, from the author's command line to the device and back in its reports."""

from __future__ import annotations

import pytest

from tests.e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.system]

GATED = ["--trial-s", "60", "--trial-predictions", "5", "--trial-cpu", "2", "--trial-gate"]


def test_a_trial_refuses_what_disagrees_and_lets_in_what_agrees_enough(stack: Stack) -> None:
    device, first = stack.live_device("trial-1", "trialled")
    where = ["--condition", f"deviceId = '{device.name}'", "--wait", "--timeout-s", "90", "--json"]
    with device.asker() as asker:
        asker.wait_for(1)
        path, golden = stack.model_files(2)
        ship = ["packager", "ship", str(path), "--name", "trialled", "--golden", str(golden), "--probation-ms", "0"]
        refused = stack.run(*ship, *where, *GATED, "--trial-distance", "0.000001")
        assert refused.exit_code == 1, refused.stdout + refused.stderr
        (failed,) = refused.document["wait"]["failed"]
        assert (failed["outcome"], failed["error"]["code"]) == ("refused", "model.trial-failed")
        module = device.module()
        assert module["live"] == str(first.manifest)
        assert module["trial"]["compared"] >= 5
        assert module["trial"]["distance_ppm"] > 0
        shown = stack.run("edge-agent", "status", "--config", str(device.config))
        assert "predictions compared" in shown.stdout
        asker.go_on()
        assert set(asker.answered.values()) == {1}, "a candidate on trial answers nobody"
        path, golden = stack.model_files(3)
        ship[2], ship[6] = str(path), str(golden)
        taken = stack.run(*ship, *where, *GATED)
        assert taken.exit_code == 0, taken.stdout + taken.stderr
        asker.wait_for(3)
        module = device.module()
        assert (module["trial"]["failed"], module["trial"]["compared"] >= 5) == (0, True)
        assert module["health"]["failures"] == 0
    asker.require_flawless()
