"""The benchmark of engine settings measures what it says, on a model that takes no time."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import engines
from edge_contract.engines import check_options
from tests.support.slots import adder


def test_every_setting_is_one_that_bundles_may_have() -> None:
    for options in engines.SETTINGS.values():
        check_options("onnx", options, "config.invalid", "the benchmark")


@pytest.mark.slow
def test_settings_and_the_compiled_form_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "tiny.onnx"
    model.write_bytes(adder(10))
    monkeypatch.setattr(engines, "SETTINGS", {name: engines.SETTINGS[name] for name in ("default", "arena off")})
    found = engines.run({**engines.OPTIONS, "model": str(model), "rounds": "1", "runs": "3", "neighbours": "1"})
    assert set(found["settings"]) == {"default", "arena off"}
    for figures in (*found["settings"].values(), found["compiled"]["reload"]):
        assert figures["load_cpu_ms"] > 0
        assert figures["run_p50_ms"] > 0
    assert found["compiled"]["is_same_output"]
    assert found["compiled"]["bytes"] > 0
