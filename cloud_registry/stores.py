"""What the API needs of the registry's database, as Protocols; `adapters.sql` implements them.

Every method blocks, may be called from any thread, is one transaction, and is durable on return. Methods that name a
model, version, alias, device, deployment or token raise `cloud.not-found` when there is none; names are checked and
refused with `cloud.name-invalid`. `by` is the name of the operator token that asks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from cloud_registry.core.condition import Condition
from cloud_registry.core.records import (
    Affected,
    AliasChange,
    Bases,
    Bundle,
    Changes,
    Deployment,
    DeploymentChange,
    DeploymentChanges,
    DeploymentDevice,
    Device,
    EnrolmentToken,
    EnteredDelta,
    KnownDelta,
    Model,
    NewDeployment,
    NewVersion,
    OperatorToken,
    Removed,
    Slice,
    Version,
)
from cloud_registry.core.roles import Role
from cloud_registry.core.search import ModelSearch, Page
from edge_contract.digest import Digest


class ModelStore(Protocol):
    """Models, versions, aliases and bundles."""

    def create(self, name: str, changes: Changes, by: str) -> Model:
        """Create a model; `cloud.conflict` if there is one."""
        ...

    def get(self, name: str) -> Model:
        """One model."""
        ...

    def update(self, name: str, changes: Changes) -> Model:
        """Change a model's description, tags or properties."""
        ...

    def delete(self, name: str) -> Removed:
        """Delete a model and its versions; `cloud.in-use` while something needs one. Numbers are not used again."""
        ...

    def search(self, search: ModelSearch, page: Page) -> Slice[Model]:
        """Models by name."""
        ...

    def register(self, model: str, content: NewVersion, by: str, confirm: Callable[[], None]) -> Version:
        """Give the next number; numbers have no gaps and no twins, however many register at once.

        Args:
            model: Name of the model.
            content: The version.
            by: Who asks.
            confirm: Called while nothing of the model is being freed; what it raises ends the registration.
        """
        ...

    def version(self, model: str, reference: str) -> Version:
        """A version by number or alias."""
        ...

    def versions(self, model: str, page: Page) -> Slice[Version]:
        """Versions, newest first."""
        ...

    def update_version(self, model: str, reference: str, changes: Changes) -> Version:
        """Change a version's description, tags or properties."""
        ...

    def delete_version(self, model: str, reference: str) -> Removed:
        """Delete a version; `cloud.in-use` while something needs it."""
        ...

    def free_files(self, model: str, files: Sequence[Digest], free: Callable[[Digest], None]) -> None:
        """Call `free` for those of these files that no version uses, while no version of the model is registered."""
        ...

    def set_alias(self, model: str, alias: str, version: int, by: str) -> AliasChange:
        """Point an alias at a version; a line of history unless it pointed there already."""
        ...

    def delete_alias(self, model: str, alias: str, by: str) -> None:
        """Remove an alias; its history stays."""
        ...

    def aliases(self, model: str) -> Sequence[AliasChange]:
        """Where each alias points."""
        ...

    def alias_history(self, model: str, alias: str) -> Sequence[AliasChange]:
        """Every change, oldest first; `cloud.not-found` if there never was such an alias."""
        ...

    def add_bundles(self, model: str, version: int, bundles: Sequence[Bundle]) -> Affected[Sequence[Bundle]]:
        """Enter the bundles of a version; `cloud.conflict` if a platform has another manifest already. Idempotent."""
        ...

    def bundles(self, model: str, reference: str) -> Sequence[Bundle]:
        """The bundles of a version by platform."""
        ...


class DeltaStore(Protocol):
    """Deltas between files of model versions."""

    def add(self, model: str, version: int, known: KnownDelta, by: str) -> Affected[EnteredDelta]:
        """Enter a delta in place of one for the same pair; idempotent.

        The devices are those on which a deployment of the version is under way. `cloud.not-found` when no version of
        the model has its base, `cloud.too-large` beyond `DELTAS_MAX`.
        """
        ...

    def list(self, model: str, reference: str) -> Sequence[KnownDelta]:
        """The deltas of a version, the smallest first."""
        ...

    def remove(self, model: str, reference: str, digest: Digest) -> KnownDelta:
        """Forget a delta by its own digest."""
        ...

    def bases(self, model: str, reference: str, names: Sequence[str], module: str) -> Bases:
        """What devices hold in a module that a version could be made from."""
        ...


class DeploymentStore(Protocol):
    """Deployments and how they stand."""

    def create(self, content: NewDeployment, by: str) -> Affected[Deployment]:
        """Create a deployment and write its assignments."""
        ...

    def get(self, deployment: str) -> Deployment:
        """One deployment."""
        ...

    def list(self, page: Page) -> Slice[Deployment]:
        """Deployments, newest first."""
        ...

    def devices(self, deployment: str, page: Page) -> Slice[DeploymentDevice]:
        """How it stands on each device, by name."""
        ...

    def update(self, deployment: str, changes: DeploymentChanges, by: str) -> Affected[Deployment]:
        """Change an active deployment; `cloud.conflict` when it was cancelled."""
        ...

    def cancel(self, deployment: str, by: str) -> Affected[Deployment]:
        """Cancel a deployment; nothing changes when it was cancelled before."""
        ...

    def standings(self) -> Mapping[str, int]:
        """Assignments in force by how they stand, over all deployments; every standing is there."""
        ...

    def history(self, deployment: str) -> Sequence[DeploymentChange]:
        """Every change by an operator, oldest first."""
        ...


class DeviceStore(Protocol):
    """Enrolled devices and the tokens that enrol them."""

    def create_enrolment(self, device: str, tags: Mapping[str, str], ttl_s: int, by: str) -> EnrolmentToken:
        """Make a one-time token for a device, new or enrolled before."""
        ...

    def get(self, device: str) -> Device:
        """One device."""
        ...

    def list(self, name: str, condition: Condition | None, page: Page) -> Slice[Device]:
        """Devices by name; `name` may hold `*`."""
        ...

    def matching(self, condition: Condition) -> Sequence[str]:
        """Names of the devices a condition matches now."""
        ...

    def set_tags(self, device: str, tags: Mapping[str, str]) -> Affected[Device]:
        """Replace a device's tags; its assignments follow."""
        ...

    def delete(self, device: str, by: str) -> str:
        """Forget a device, its keys and its enrolment tokens; gives its identity. Its telemetry and history stay."""
        ...


class TokenStore(Protocol):
    """Operator tokens; only hashes are kept."""

    def create(self, name: str, role: Role, by: str) -> str:
        """Make a token and give its text, which cannot be had again; `cloud.conflict` if the name is taken."""
        ...

    def list(self) -> Sequence[OperatorToken]:
        """All tokens by name."""
        ...

    def revoke(self, name: str) -> None:
        """Remove a token; `cloud.in-use` for the last one with the role admin."""
        ...

    def create_first_admin(self) -> str | None:
        """Make the token `admin` if there is no token with that role yet; its text, or none."""
        ...
