"""Asks the registry for what a forecast needs."""

from cloud_registry.client import RegistryClient
from edge_contract.delta import Delta
from edge_contract.deployment import bundle_repository
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import MANIFEST_BYTES_MAX
from edge_contract.manifest import Manifest
from packager.delta.forecast import Content, Start, forecast


def ask_forecast(
    client: RegistryClient, model: str, version: int, condition: str, module: str, link_kbps: float
) -> JsonObject:
    """What deploying a version would bring over the network, with the deltas that there are; nothing is changed.

    Args:
        client: With a viewer's token at least.
        model: Name of the model.
        version: Number.
        condition: Which devices.
        module: Module on the devices; empty for the model's name.
        link_kbps: Speed of each device's link in kilobits a second.

    Returns:
        As `packager.delta.forecast.forecast`, and `current`: devices that run it already.

    Raises:
        EdgeError: `cloud.*`, `network.*`, `artifact.*`.
    """
    found = client.bases(model, version, condition, module)
    bundles = {str(item["platform"]): item for item in client.bundles(model, version)}
    contents: dict[tuple[str, str], Content | None] = {}

    def content(of_model: str, manifest: str) -> Content | None:
        if (of_model, manifest) not in contents:
            contents[of_model, manifest] = _content(client, of_model, Digest(manifest))
        return contents[of_model, manifest]

    starts = [
        Start(
            f"{item['model']}:{item['version']}",
            str(item["platform"]),
            int(item["devices"]),
            content(str(item["model"]), str(item["manifest"])),
            content(model, str(item["new_manifest"])),
        )
        for item in found["bases"]
    ]
    if found["without"]:
        # Which platforms they are of is not known: the largest bundle is the safe guess.
        largest = max(
            (content(model, str(item["digest"])) for item in bundles.values()),
            key=lambda item: 0 if item is None else sum(item.blobs.values()),
            default=None,
        )
        starts.append(Start("nothing known", "", int(found["without"]), None, largest))
    if unserved := int(found.get("unserved", 0)):  # a registry of an earlier version counts them among the others
        starts.append(Start("no bundle", "", unserved, None, None))
    deltas = [
        Delta.from_json({key: value for key, value in item.items() if key != "manifest"})
        for item in client.deltas(model, version)
    ]
    return forecast(starts, deltas, link_kbps) | {"current": int(found["current"])}


def _content(client: RegistryClient, model: str, manifest: Digest) -> Content | None:
    try:
        data = client.get_manifest(bundle_repository(model), str(manifest), MANIFEST_BYTES_MAX)
    except EdgeError as error:
        if error.code != "artifact.not-found":
            raise
        return None
    parsed = Manifest.parse(data)
    return Content({manifest: len(data)} | {blob.digest: blob.size for blob in parsed.blobs})
