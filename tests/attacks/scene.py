"""A device with two live models, somebody between it and the registry, and what has to be true whatever he does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.metadata import Metadata

from edge_agent.control import ask
from edge_contract.jsonio import JsonObject
from tests.attacks.attacker import Attacker
from tests.attacks.forgery import DIRECTOR, IMAGE, Forgery
from tests.attacks.ground import Ground
from tests.e2e.asker import Asker
from tests.e2e.device import Device
from tests.e2e.stack import Shipment, condition

_T = TypeVar("_T")
HURRIED: Mapping[str, str] = {
    "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).with_name("hurry")), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
}
"""Environment of an agent whose patience is short enough for a test; its numbers alone differ."""

Play = Callable[["Scene"], None]
"""What an attacker does; it stays until he tells the truth again."""


@dataclass(frozen=True)
class Attack:
    """One attack and how the device has to name it.

    Attributes:
        code: The code.
        words: A part of the error's detail, so that one code for several attacks cannot be mistaken.
        play: Begins it.
    """

    code: str
    words: str
    play: Play = field(repr=False)


class Victim(Device):
    """A device that may serve several models."""

    def wait(self, predicate: Callable[[], _T], what: str, poll_s: float = 0.05, deadline_s: float = 30.0) -> _T:
        """See `Device.wait`; there is nothing to wait for when the agent has ended."""

        def look() -> _T:
            assert self.child is not None
            assert self.child.is_running, "the agent ended"
            return predicate()

        return super().wait(look, what, poll_s, deadline_s)

    def refresh(self) -> None:
        """Make it look at its metadata now."""
        ask(self._folder / "run", {"op": "refresh"})

    def module_of(self, model: str) -> JsonObject:
        """What it says of a module; empty while there is none."""
        found: JsonObject = self.status().get("modules", {}).get(model, {})
        return found

    def all_errors(self) -> list[JsonObject]:
        """Every error it names, its own and those of its modules."""
        status = self.status()
        found = [status.get("error")]
        for module in status.get("modules", {}).values():
            deployments = (module.get("deployment") or {}, module.get("refused") or {})
            found += [module.get("error"), *(item.get("error") for item in deployments)]
        return [error for error in found if error]

    def has_confirmed(self, shipment: Shipment) -> bool:
        """Whether this very deployment is live, answers and is confirmed."""
        module = self.module_of(shipment.model)
        deployment = module.get("deployment") or {}
        return bool(
            module.get("live") == str(shipment.manifest)
            and module["serving"]
            and (deployment["deployment"], deployment["outcome"]) == (shipment.deployment, "confirmed")
        )


class Scene:
    """What a test of this folder plays with. Used by one thread.

    Attributes:
        ground: The cloud's side.
        attacker: Between `victim` and the registry.
        victim: The device.
        live: What it runs, by model.
    """

    def __init__(self, ground: Ground, attacker: Attacker, victim: Victim, live: dict[str, Shipment]) -> None:
        """Put it together; every model of `live` is confirmed."""
        self.ground = ground
        self.attacker = attacker
        self.victim = victim
        self.live = live

    @property
    def model(self) -> str:
        """The model that most attacks are about."""
        return self.victim.model

    @property
    def others(self) -> list[str]:
        """Its other models."""
        return [name for name in self.live if name != self.model]

    def place(self, repository: str) -> str:
        """Where the device finds a repository, as a path."""
        return "/tuf/image/" if repository == IMAGE else f"/tuf/director/{self.victim.name}/"

    def yesterday(self, repository: str) -> dict[str, bytes | None]:
        """The oldest timestamp that the device was told of, of those that the present key signed."""
        path = self.place(repository) + "timestamp.json"
        keyids = set(self.forge(repository).root.signed.roles["timestamp"].keyids)
        signed = [body for body in self.attacker.heard[path] if keyids & set(Metadata.from_bytes(body).signatures)]
        return {path: signed[0]}

    # -- what the cloud does ---------------------------------------------------------------------------------------

    def ship(self, model: str = "", *devices: str, **more: Any) -> Shipment:
        """Publish the next version of a model, and assign it to the victim unless other devices are named."""
        model = model or self.model
        version = self.live[model].version + 1
        return self.ground.ship(model, self._next(model, version), *(devices or (self.victim.name,)), **more)

    def assign(self, shipment: Shipment, **policy: Any) -> Shipment:
        """Assign a version that is published already."""
        with self.ground.client() as client:
            made = client.create_deployment(
                shipment.model, shipment.version, condition(self.victim.name), shipment.model, policy, "", 0
            )
        return Shipment(shipment.model, shipment.version, made["id"], shipment.manifest, shipment.blob, shipment.size)

    def forge(self, repository: str, *stolen: str) -> Forgery:
        """The repository as it is now, in hands that hold the keys of some roles."""
        return Forgery(self.ground, repository, self.victim.name, stolen)

    def settle(self) -> None:
        """Bring everybody to rest, also behind a test that failed half way."""
        self.attacker.tell_the_truth()

        def is_quiet() -> bool:
            return not self.victim.all_errors() and all(map(self.victim.has_confirmed, self.live.values()))

        if is_quiet():
            return
        with self.ground.client() as client:
            for item in client.deployments(limit=200)["items"]:
                if item["model"] in self.live and item["state"] == "active":
                    client.cancel_deployment(item["id"])
        self.live = {model: self.ship(model) for model in self.live}
        self.victim.wait(is_quiet, "the victim to be at rest")

    # -- what has to be true ---------------------------------------------------------------------------------------

    def withstands(self, *attacks: Attack, new: Callable[[], Shipment] | None = None) -> Shipment:
        """Play attacks, one after the other, against a device that is to get something new.

        Each is named by the device and, through its report, by the registry, and changes nothing: the live models
        answer every request, the new version stays out. When the last ends, the device takes the new version by itself.

        Args:
            attacks: One or more.
            new: Makes the deployment; the next version of the scene's model when none.
        """
        with self.under_watch() as asker:
            self.attacker.is_shut = True
            shipment = (new or self.ship)()
            for attack in attacks:
                self._play(attack, shipment, asker)
            self.recovers(shipment, asker)
        return shipment

    def believes(self, forgery: Forgery) -> None:
        """Let the device see forged metadata, and wait until it keeps their timestamp as the one it trusts."""
        repository = IMAGE if forgery.place == self.place(IMAGE) else DIRECTOR
        kept, told = self.victim.data / "trust" / repository / "timestamp.json", forgery.place + "timestamp.json"
        self.attacker.files = forgery.files
        self.attacker.is_shut = False
        self.victim.refresh()
        self.victim.wait(lambda: kept.read_bytes() == forgery.files[told], f"the device to believe {told}")

    def recovers(self, shipment: Shipment, asker: Asker, except_for: str = "") -> None:
        """Let the attacks end: the device takes what is honest, and no error stays but one that is named."""
        self.attacker.tell_the_truth()
        what = f"{shipment.model} {shipment.version} to be taken"
        self.victim.wait(lambda: self.victim.has_confirmed(shipment), what)
        self.victim.wait(lambda: {e["code"] for e in self.victim.all_errors()} <= {except_for}, "the errors to go")
        self.live[shipment.model] = shipment
        if shipment.model == self.model:
            asker.wait_for(shipment.version)

    @contextmanager
    def under_watch(self) -> Iterator[Asker]:
        """Somebody asks the model all the time; not one request of the block may fail."""
        before = {model: self._answers(model) for model in self.live}
        assert before == {model: str(shipment.manifest) for model, shipment in self.live.items()}
        try:
            with self.victim.asker() as asker:
                asker.go_on(3)
                yield asker
            asker.require_flawless()
        finally:
            self.attacker.tell_the_truth()

    def is_unmoved(self, asker: Asker) -> None:
        """What was live before the attack answers, and nothing else is being tried."""
        asker.go_on(5)
        for model, shipment in self.live.items():
            module = self.victim.module_of(model)
            assert module["live"] == str(shipment.manifest)
            assert module["serving"]
        assert asker.newest() == self.live[self.model].version

    def names(self, code: str, words: str = "") -> JsonObject:
        """Wait until the device names an error, and until the registry has heard of it."""

        def named() -> JsonObject | None:
            return next((e for e in self.victim.all_errors() if e["code"] == code and words in e["detail"]), None)

        found = self.victim.wait(named, f"{self.victim.name} to name {code}: {words}")
        self.victim.wait(lambda: code in self.reported_codes(), f"the registry to hear of {code}")
        assert found is not None
        return found

    def standing(self, shipment: Shipment) -> str:
        """How a deployment stands on the victim, as the registry has heard."""
        return str(self.ground.standing(shipment, self.victim.name)["standing"])

    def outrun_forgery(self) -> None:
        """Let the registry come past a version that was forged with its own keys and believed."""
        live = self.live[self.model]
        for ratio in (0.4, 0.6):
            self.assign(live, sampling_ratio=ratio)
            with self.ground.client() as client:
                client.tuf_file(f"director/{self.victim.name}/timestamp.json")

    def reported_codes(self) -> set[str]:
        """Codes of the errors in the newest report that the registry believes."""
        with self.ground.client() as client:
            report = client.device(self.victim.name)["report"] or {}
        found = [report.get("error")]
        for module in report.get("modules", {}).values():
            deployments = (module.get("deployment") or {}, module.get("refused") or {})
            found += [module.get("error"), *(item.get("error") for item in deployments)]
        return {error["code"] for error in found if error}

    def _play(self, attack: Attack, shipment: Shipment, asker: Asker) -> None:
        self.attacker.tell_the_truth()
        self.attacker.is_shut = True
        attack.play(self)
        self.attacker.is_shut = False
        self.victim.refresh()
        self.names(attack.code, attack.words)
        self.is_unmoved(asker)
        assert self.standing(shipment) != "confirmed"

    def _answers(self, model: str) -> str:
        return str(self.victim.module_of(model).get("live"))

    def _next(self, model: str, version: int) -> int:
        """The registry counts versions by itself, also those that never became live."""
        with self.ground.client() as client:
            items = client.versions(model, limit=1)["items"]
        return max(version, int(items[0]["version"]) + 1) if items else version
