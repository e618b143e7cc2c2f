"""Deploying: references, and waiting for devices that take their time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from cloud_registry.client import RegistryClient
from edge_contract.errors import EdgeError
from packager.deploy import parse_reference, policy_of, wait
from packager.progress import QuietReporter


class Fleet:
    """Answers for a deployment: one set of counts, or one error, for each time it is asked."""

    def __init__(self, answers: Sequence[dict[str, int] | EdgeError], state: str = "active") -> None:
        self.answers = list(answers)
        self.state = state
        self.asked = 0

    def deployment(self, deployment: str) -> dict[str, Any]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, EdgeError):
            raise answer
        return {"id": deployment, "counts": answer, "devices": sum(answer.values()), "state": self.state}

    def deployment_devices(self, deployment: str) -> list[dict[str, Any]]:
        error = {"code": "model.golden-mismatch", "detail": "3 of 160 numbers"}
        return [
            {"device": "a", "standing": "confirmed", "outcome": "confirmed", "phase": "idle", "error": None},
            {"device": "b", "standing": "refused", "outcome": "refused", "phase": "idle", "error": error},
            {"device": "c", "standing": "reverted", "outcome": "confirmed", "phase": "idle", "error": error},
        ]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packager.deploy.WAIT_POLL_S", 0.0)


def wait_for(fleet: Fleet, timeout_s: float = 30.0) -> dict[str, Any]:
    return wait(cast(RegistryClient, fleet), "d-1", timeout_s, QuietReporter())


def test_it_ends_when_the_last_device_confirmed() -> None:
    fleet = Fleet(
        [{"pending": 2}, {"pending": 1, "in_progress": 1}, {"confirmed": 1, "in_progress": 1}, {"confirmed": 2}]
    )
    outcome = wait_for(fleet)
    assert outcome["is_confirmed"]
    assert outcome["failed"] == []
    assert fleet.asked == 4


def test_it_ends_when_every_device_has_an_outcome_and_names_those_that_failed() -> None:
    outcome = wait_for(Fleet([{"pending": 3}, {"confirmed": 1, "refused": 1, "reverted": 1}]))
    assert not outcome["is_confirmed"]
    assert [(item["device"], item["standing"]) for item in outcome["failed"]] == [("b", "refused"), ("c", "reverted")]
    assert outcome["failed"][0]["error"]["code"] == "model.golden-mismatch"


@pytest.mark.parametrize("answers", [[{"pending": 2}], [{}]], ids=["nobody reports", "no devices"])
def test_silence_is_not_success(answers: list[dict[str, int]]) -> None:
    assert not wait_for(Fleet(answers), timeout_s=0.05)["is_confirmed"]


def test_a_deployment_that_was_cancelled_is_not_waited_for() -> None:
    fleet = Fleet([{"pending": 2}], state="cancelled")
    assert not wait_for(fleet)["is_confirmed"]
    assert fleet.asked == 1


def test_a_registry_that_is_away_for_a_moment_is_asked_again() -> None:
    away = EdgeError("network.unreachable", "restarting")
    assert wait_for(Fleet([{"pending": 1}, away, away, {"confirmed": 1}]))["is_confirmed"]


def test_a_registry_that_stays_away_ends_it() -> None:
    with pytest.raises(EdgeError, match="restarting"):
        wait_for(Fleet([{"pending": 1}, EdgeError("network.unreachable", "restarting")]))


def test_a_refusal_of_the_registry_ends_it_at_once() -> None:
    fleet = Fleet([{"pending": 1}, EdgeError("cloud.unauthorized", "revoked")])
    with pytest.raises(EdgeError, match="revoked"):
        wait_for(fleet)
    assert fleet.asked == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("digits:3", ("digits", 3)), ("digits:production", ("digits", "production")), ("a.b:v2", ("a.b", "v2"))],
)
def test_references(text: str, expected: tuple[str, int | str]) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text", ["digits", "digits:", ":1", "digits:Production", "Digits:1", "digits:-1", "digits:1:2"]
)
def test_odd_references_are_refused(text: str) -> None:
    with pytest.raises(EdgeError):
        parse_reference(text)


def test_a_policy_says_only_what_was_asked() -> None:
    assert policy_of(None, None, False) == {}
    assert policy_of(0.0, 0, True) == {"sampling_ratio": 0.0, "probation_ms": 0, "allow_release_rollback": True}
