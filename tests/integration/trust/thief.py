"""Somebody who sits on the line of a device and holds some private keys: signs whatever they let him sign.

For keys he does not hold he uses keys of his own, so that what he serves is always complete and only its signatures
decide.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edge_contract.delegation import CATALOGUE, CATALOGUE_PATHS, model_role, paths_of
from edge_contract.deployment import Policy, director_custom
from packager.keystore import CURRENT, KeyFolder, KeyRing
from packager.tufmake import NewTarget, expiry
from tests.integration.trust.world import DEVICE, SECRET, Site, assignment

ONLINE = {
    "image-snapshot": ("image", "snapshot"),
    "image-timestamp": ("image", "timestamp"),
    "director-targets": ("director", "targets"),
    "director-snapshot": ("director", "snapshot"),
    "director-timestamp": ("director", "timestamp"),
}


def steal(site: Site, *names: str, folders: Collection[Any] = ()) -> dict[str, Signer]:
    """The signers of these keys, as they are at this moment: names of author's roles or of `ONLINE`."""
    stolen: dict[str, Signer] = {}
    for name in names:
        if name in ONLINE:
            stolen[name] = site.online.signer(*ONLINE[name])
            continue
        for folder in (site.keys, *folders):
            opened = KeyFolder.open(folder)
            for key in opened.of_role(name, (CURRENT,)):
                stolen[name] = KeyRing([opened], lambda _new: SECRET).signers([key.keyid], 1, name)[0]
    assert set(stolen) == set(names)
    return stolen


class Thief:
    """Serves forged files of both repositories. `Device.wire = Thief(...).wire`."""

    def __init__(self, site: Site, stolen: dict[str, Signer]) -> None:
        self.site = site
        self.stolen = stolen
        self.own = CryptoSigner.generate_ed25519()
        self.files: dict[tuple[str, str], bytes] = {}

    def wire(self, repository: str, name: str, data: bytes | None) -> bytes | None:
        """What he lets through: his own file where he has one."""
        return self.files.get((repository, name), data)

    def signer(self, name: str) -> Signer:
        """A stolen key, or his own."""
        return self.stolen.get(name, self.own)

    def real(self, kind: Any, repository: str, name: str) -> Any:
        """What the registry has, parsed."""
        data = self.site.serve(repository, name)
        assert data is not None, name
        metadata: Metadata[Any] = Metadata.from_bytes(data)
        assert isinstance(metadata.signed, kind)
        return metadata.signed

    def put(self, repository: str, name: str, content: Any, *signers: Signer) -> bytes:
        """Sign and serve."""
        metadata: Metadata[Any] = Metadata(content)
        for signer in signers:
            metadata.sign(signer, append=True)
        self.files[repository, name] = metadata.to_bytes()
        return self.files[repository, name]

    # --- whole chains ---

    def forge_image(self, target: NewTarget, jump: int = 1) -> None:
        """An image repository that lists a bundle, by the way that needs the fewest keys of those he does not hold."""
        timestamp, snapshot, top = self.newest("image")
        metas = {name.removesuffix(".json"): meta for name, meta in snapshot.meta.items()}
        versions = {name: meta.version for name, meta in metas.items()}
        names = ["image-timestamp", "image-snapshot"]
        model = model_role(target.artifact.model)
        lists: dict[str, tuple[Targets, Signer]] = {}
        if "image-root" in self.stolen:
            self.new_root("image", ("targets", "snapshot", "timestamp"))
            names = ["", ""]
        if model in self.stolen and "image-root" not in self.stolen:
            lists[model] = (self.list_of(target, versions[model] + 1), self.stolen[model])
        elif "image-targets" in self.stolen and model not in top.delegations.roles:
            catalogue = self.real(Targets, "image", f"{versions[CATALOGUE]}.{CATALOGUE}.json")
            role = catalogue.delegations.succinct_roles.get_role_for_target(target.path)
            lists[role] = (self.list_of(target, versions[role] + 1), self.stolen["image-targets"])
        else:
            lists |= self.own_levels(target, versions)
        for role, (content, signer) in lists.items():
            data = self.put("image", f"{content.version}.{role}.json", content, signer)
            metas[role] = MetaFile.from_data(content.version, data, ["sha256"])
        self.chain("image", metas, snapshot.version + jump, timestamp.version + jump, names)

    def replace_lists(self, target: NewTarget) -> None:
        """Forge nothing but lists, under the very versions that the registry's snapshot names.

        It takes no online key, and would deceive a device that has not read the real ones.
        """
        _, snapshot, top = self.newest("image")
        versions = {name.removesuffix(".json"): meta.version for name, meta in snapshot.meta.items()}
        role = model_role(target.artifact.model)
        if role in top.delegations.roles:
            self.put("image", f"{versions[role]}.{role}.json", self.list_of(target, versions[role]), self.signer(role))
        catalogue = self.real(Targets, "image", f"{versions[CATALOGUE]}.{CATALOGUE}.json")
        name = catalogue.delegations.succinct_roles.get_role_for_target(target.path)
        signer = self.signer("image-targets")
        self.put("image", f"{versions[name]}.{name}.json", self.list_of(target, versions[name]), signer)

    def own_levels(self, target: NewTarget, versions: dict[str, int]) -> dict[str, tuple[Targets, Signer]]:
        """Top-level targets that delegate the model to the thief himself."""
        role = model_role(target.artifact.model)
        key = self.own.public_key
        roles = {
            role: DelegatedRole(role, [key.keyid], 1, True, paths=list(paths_of(role))),
            CATALOGUE: DelegatedRole(CATALOGUE, [key.keyid], 1, False, paths=list(CATALOGUE_PATHS)),
        }
        top = Targets(
            version=versions["targets"] + 1, expires=expiry(30), delegations=Delegations({key.keyid: key}, roles=roles)
        )
        signer = self.own if "image-root" in self.stolen else self.signer("image-targets")
        return {"targets": (top, signer), role: (self.list_of(target, versions.get(role, 0) + 1), self.own)}

    def forge_director(self, target: NewTarget, jump: int = 1, **policy: Any) -> None:
        """A director that assigns a bundle to the device."""
        timestamp, snapshot, targets = self.newest("director")
        names = ["director-timestamp", "director-snapshot"]
        signer = self.signer("director-targets")
        if "director-root" in self.stolen:
            self.new_root("director", ("targets", "snapshot", "timestamp"))
            names, signer = ["", ""], self.own
        wanted = replace(assignment(target), policy=Policy(**policy))
        file = TargetFile(
            target.length, {"sha256": target.digest.hex}, target.path, {"custom": director_custom([wanted])}
        )
        content = Targets(
            version=targets.version + jump,
            expires=expiry(30),
            targets={target.path: file},
            unrecognized_fields={"lighterman": {"device": DEVICE}},
        )
        data = self.put("director", f"{content.version}.targets.json", content, signer)
        meta = MetaFile.from_data(content.version, data, ["sha256"])
        self.chain("director", {"targets": meta}, snapshot.version + jump, timestamp.version + jump, names)

    def chain(
        self, repository: str, lists: dict[str, MetaFile], snapshot: int, timestamp: int, names: list[str]
    ) -> None:
        """Snapshot and timestamp over these lists."""
        content = Snapshot(snapshot, expires=expiry(30), meta={f"{name}.json": meta for name, meta in lists.items()})
        data = self.put(repository, f"{snapshot}.snapshot.json", content, self.signer(names[1]))
        meta = MetaFile.from_data(snapshot, data, ["sha256"])
        said = {"lighterman": {"signed_ms": self.site.registry.clock.wall_ms()}}
        stamp = Timestamp(timestamp, expires=expiry(30), snapshot_meta=meta, unrecognized_fields=said)
        self.put(repository, "timestamp.json", stamp, self.signer(names[0]))

    def new_root(self, repository: str, roles: Collection[str]) -> None:
        """The next root, which gives these roles to the thief."""
        number = int(self.site.registry.trust()[f"{repository}_root_version"])
        root: Root = self.real(Root, repository, f"{number}.root.json")
        root.version += 1
        for role in roles:
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            root.add_key(self.own.public_key, role)
            root.roles[role].threshold = 1
        self.put(repository, f"{root.version}.root.json", root, self.signer(f"{repository}-root"))

    def newest(self, repository: str) -> tuple[Timestamp, Snapshot, Any]:
        """What the registry serves at this moment."""
        timestamp: Timestamp = self.real(Timestamp, repository, "timestamp.json")
        number = timestamp.snapshot_meta.version
        snapshot: Snapshot = self.real(Snapshot, repository, f"{number}.snapshot.json")
        version = snapshot.meta["targets.json"].version
        return timestamp, snapshot, self.real(Targets, repository, f"{version}.targets.json")

    @staticmethod
    def list_of(target: NewTarget, version: int) -> Targets:
        """A list with this bundle alone."""
        return Targets(version=version, expires=expiry(30), targets={target.path: target.to_file()})
