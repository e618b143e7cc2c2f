"""A module that asks for a token over TCP, before a swap and after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.inference import InferenceClient
from edge_agent.serving.supervisor import WorkerSupervisor
from edge_contract.errors import EdgeError
from tests.integration.serving import MODULE, PATIENT, X
from tests.support.slots import adder_slot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_the_token_is_asked_for_over_tcp_by_every_worker(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    supervisor = WorkerSupervisor(run_dir, lambda *_: None, lambda *_: None, limits=PATIENT, tcp_token="open sesame")
    try:
        for version in (1, 2):
            supervisor.ensure(MODULE, *adder_slot(tmp_path / "slots", 10.0 * version, version=version))
            unix, host, port = supervisor.addresses(MODULE)
            for address, token, is_let_in in (
                ((host, port), "", False),
                ((host, port), "open sesam", False),
                ((host, port), "open sesame", True),
                (unix, "", True),
            ):
                with InferenceClient(address, token=token) as client:
                    if is_let_in:
                        assert client.infer("digits", [X]).version == version
                        continue
                    with pytest.raises(EdgeError) as caught:
                        client.infer("digits", [X])
                    assert caught.value.code == "cloud.unauthorized"
        log = (run_dir / f"{MODULE}.log").read_text(encoding="utf-8")
        assert "sesame" not in log
    finally:
        supervisor.close()
