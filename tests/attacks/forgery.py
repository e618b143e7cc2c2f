"""Metadata as an attacker makes them: from what is published, with the keys he stole, and a stranger's for the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from edge_contract.deployment import target_path
from edge_contract.errors import EdgeError
from tests.attacks.ground import Ground
from tests.attacks.keys import STRANGER, sign
from tests.e2e.stack import Shipment

DIRECTOR, IMAGE = "director", "image"
_ROOTS_MAX = 50


class Forgery:
    """One repository in the attacker's hands.

    Every method changes one file, makes the files above it fit, and signs them: with the key of the role where he has
    it, in its name but with a stranger's key where he has not.

    Attributes:
        files: What to tell the device, by path.
        root: The root as it is, or as it was forged; likewise the others.
    """

    def __init__(self, ground: Ground, repository: str, device: str = "", stolen: Collection[str] = ()) -> None:
        """Read what is published.

        Args:
            ground: Where.
            repository: `DIRECTOR` or `IMAGE`.
            device: Whose director metadata.
            stolen: Roles whose keys the attacker has; `model` for those of a model of its own.
        """
        self.files: dict[str, bytes | None] = {}
        self.stolen = frozenset(stolen)
        self._ground = ground
        self._place = IMAGE if repository == IMAGE else f"{DIRECTOR}/{device}"
        self.timestamp: Metadata[Timestamp] = self._published("timestamp.json")
        number = self.timestamp.signed.snapshot_meta.version
        self.snapshot: Metadata[Snapshot] = self._published(f"{number}.snapshot.json")
        self.targets: dict[str, Metadata[Targets]] = {}
        self._delegator: dict[str, str] = {}
        self.role("targets")
        self.root: Metadata[Root] = self._newest_root()
        self._keys: dict[str, list[Key]] = {
            name: [self.root.signed.keys[keyid] for keyid in role.keyids]
            for name, role in self.root.signed.roles.items()
        }

    def role(self, name: str) -> Metadata[Targets]:
        """The targets metadata of a role, delegated ones too."""
        if name not in self.targets:
            number = self.snapshot.signed.meta[f"{name}.json"].version
            self.targets[name] = self._published(f"{number}.{name}.json")
        return self.targets[name]

    def last(self, path: str) -> str:
        """The role that would list a target: the last that the delegations lead to."""
        name = "targets"
        while (delegations := self.role(name).signed.delegations) is not None:
            child = next(child for child, _ in delegations.get_roles_for_target(path))
            self._delegator[child] = name
            name = child
        return name

    def lister(self, path: str) -> str:
        """The delegated role that lists a target."""
        pending = ["targets"]
        while pending:
            name = pending.pop(0)
            content = self.role(name).signed
            if path in content.targets:
                return name
            for child, _ in content.delegations.get_roles_for_target(path) if content.delegations else ():
                self._delegator[child] = name
                pending.append(child)
        raise AssertionError(f"{path} is listed nowhere")

    def target(self, shipment: Shipment) -> TargetFile:
        """What the image repository says of a version."""
        path = target_path(shipment.model, shipment.version, shipment.manifest)
        return self.role(self.lister(path)).signed.targets[path]

    @property
    def place(self) -> str:
        """Where devices find the repository, as a path."""
        return f"/tuf/{self._place}/"

    # -- what he does ----------------------------------------------------------------------------------------------

    def put_targets(
        self, change: Callable[[Targets], None], role: str = "targets", *, is_next_version: bool = True
    ) -> None:
        """Change targets metadata; with the same version nothing above it has to be touched."""
        metadata = self.role(role)
        change(metadata.signed)
        if is_next_version:
            metadata.signed.version += 1
        self._tell(f"{metadata.signed.version}.{role}.json", metadata, role)
        if is_next_version:
            self.put_snapshot(lambda snapshot: _list(snapshot, role, metadata.signed.version))

    def put_snapshot(self, change: Callable[[Snapshot], None] = lambda _: None) -> None:
        """Change the snapshot."""
        change(self.snapshot.signed)
        self.snapshot.signed.version += 1
        data = self._tell(f"{self.snapshot.signed.version}.snapshot.json", self.snapshot, "snapshot")
        meta = MetaFile.from_data(self.snapshot.signed.version, data, ["sha256"])
        self.put_timestamp(lambda timestamp: setattr(timestamp, "snapshot_meta", meta))

    def put_timestamp(self, change: Callable[[Timestamp], None] = lambda _: None) -> None:
        """Change the timestamp."""
        change(self.timestamp.signed)
        self.timestamp.signed.version += 1
        self._tell("timestamp.json", self.timestamp, "timestamp")

    def put_root(self, change: Callable[[Root], None]) -> None:
        """Put the next root behind the one that is trusted; it is signed for the roots before and after."""
        before = self._keys["root"]
        change(self.root.signed)
        self.root.signed.version += 1
        after = [self.root.signed.keys[keyid] for keyid in self.root.signed.roles["root"].keyids]
        self._keys = {
            name: [self.root.signed.keys[keyid] for keyid in role.keyids]
            for name, role in self.root.signed.roles.items()
        }
        keys = list({key.keyid: key for key in (*before, *after)}.values())
        data = sign(self.root, keys, self._ground.stolen if "root" in self.stolen else None)
        self.files[f"/tuf/{self._place}/{self.root.signed.version}.root.json"] = data

    def take_over(self) -> None:
        """Put a root that trusts the attacker's own key for everything, and no other."""

        def change(root: Root) -> None:
            for role, entry in root.roles.items():
                for keyid in list(entry.keyids):
                    root.revoke_key(keyid, role)
                root.add_key(STRANGER.public_key, role)
                entry.threshold = 1

        self.put_root(change)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _tell(self, name: str, metadata: Metadata[Any], role: str) -> bytes:
        is_delegated = role in self._delegator
        owner = role
        if is_delegated:
            # The author of the targets signs the catalogue and its bins too; a model may have keys of its own.
            owner = "model" if ".model" in f".{role}" or role.startswith("bins.") else "targets"
        held = owner in self.stolen
        keys = self._delegated_keys(role) if is_delegated else self._keys[role]
        data = sign(metadata, keys, self._ground.stolen if held else None)
        self.files[f"/tuf/{self._place}/{name}"] = data
        return data

    def _delegated_keys(self, role: str) -> list[Key]:
        delegations = self.role(self._delegator[role]).signed.delegations
        assert delegations is not None
        listed = (delegations.roles or {}).get(role) or delegations.succinct_roles
        assert listed is not None
        return [delegations.keys[keyid] for keyid in listed.keyids]

    def _published(self, name: str) -> Metadata[Any]:
        with self._ground.client() as client:
            return Metadata.from_bytes(client.tuf_file(f"{self._place}/{name}"))

    def _newest_root(self) -> Metadata[Root]:
        newest: Metadata[Root] = self._published("1.root.json")
        with suppress(EdgeError):
            for _ in range(_ROOTS_MAX):
                newest = self._published(f"{newest.signed.version + 1}.root.json")
        return newest


def _list(snapshot: Snapshot, role: str, version: int) -> None:
    snapshot.meta[f"{role}.json"] = MetaFile(version)


def assign_instead(targets: Targets, old: Shipment, new: Shipment, listed: TargetFile) -> None:
    """Let the director's targets assign another bundle where they assigned one.

    Args:
        targets: Changed in place.
        old: Is assigned.
        new: Takes its place.
        listed: What the image repository says of it.
    """
    file = targets.targets.pop(target_path(old.model, old.version, old.manifest))
    said = listed.unrecognized_fields["custom"] | {"assignments": file.unrecognized_fields["custom"]["assignments"]}
    path = target_path(new.model, new.version, new.manifest)
    targets.targets[path] = TargetFile(listed.length, dict(listed.hashes), path, {"custom": said})
