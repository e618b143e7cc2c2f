"""The whole way in one go: prove, register, build, push, deploy, and wait."""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud_registry.client import RegistryClient
from edge_contract.jsonio import JsonObject
from packager.build import assemble, prepare
from packager.deploy import wait
from packager.keystore import KeyRing
from packager.layout import Layout
from packager.progress import Reporter
from packager.push import push
from packager.register import register
from packager.sign import require_signer
from packager.spec import Spec


@dataclass(frozen=True, slots=True)
class Voyage:
    """Where a shipment goes.

    Attributes:
        condition: Which devices; empty pushes and deploys nothing.
        module: Module name; empty means the model's.
        policy: Policy of the deployment.
        name: Name of the deployment, for people.
        priority: The higher wins where conditions meet.
        wait_s: How long to wait for the devices; none does not wait.
        expires_days: Life of the signed bins.
        out: Where to keep the layout; none keeps nothing.
        created_s: Time of creation to state.
        before: Makes deltas before the deployment: registry, model, version, condition; none makes none.
    """

    condition: str
    module: str
    policy: Mapping[str, Any]
    name: str
    priority: int
    wait_s: float | None
    expires_days: int
    out: Path | None
    created_s: int | None
    before: Callable[..., JsonObject] | None = None


def ship(client: RegistryClient, spec: Spec, ring: KeyRing, voyage: Voyage, reporter: Reporter) -> JsonObject:
    """Take a model from its file to the devices.

    The model is read and proved before it gets a version. With a version in `spec` that version is taken and nothing is
    registered, which is how a shipment that was cut goes on.

    Returns:
        `{model, version, build, push, deployment, deltas, wait}`; the last three may be none.

    Raises:
        EdgeError: whatever the steps raise.
    """
    require_signer(client, ring, spec.name)
    with ExitStack() as stack:
        material = prepare(spec, reporter, stack)
        version = spec.version
        if version == 0:
            version = int(register(client, spec, reporter)["version"])
            reporter.say(f"registered {spec.name}:{version}")
        folder = voyage.out
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lighterman-ship-"))) / "layout"
        built = assemble(material, version, folder, reporter, voyage.created_s)
        pushed = push(client, Layout(folder), ring, voyage.expires_days, reporter)
        reporter.say(f"pushed and signed {spec.name}:{version} for {', '.join(built.manifests)}")
    result: JsonObject = {"model": spec.name, "version": version, "build": built.to_json(), "push": pushed}
    result |= {"deployment": None, "deltas": None, "wait": None}
    if voyage.condition:
        if voyage.before is not None:
            result["deltas"] = voyage.before(client, spec.name, version, voyage.condition, reporter=reporter)
        record = client.create_deployment(
            spec.name, version, voyage.condition, voyage.module, voyage.policy, voyage.name, voyage.priority
        )
        result["deployment"] = record
        reporter.say(f"deployment {record['id']} for {record['devices']} devices")
        if voyage.wait_s is not None:
            result["wait"] = wait(client, str(record["id"]), voyage.wait_s, reporter)
    return result
