"""Makes deltas between registered versions, publishes them, and tells the registry; within a budget."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from cloud_registry.client import RegistryClient
from edge_contract.delta import EMPTY, Delta, delta_manifest
from edge_contract.deployment import bundle_repository
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.manifest import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from packager.delta.process import EncodeRequest, encode_apart
from packager.files import digest_of
from packager.progress import Reporter, upload_progress

_FILE_BYTES_MIN: Final = 4_096
"""Smaller files are fetched whole."""
_SAVING_MIN: Final = 0.05
"""Share of a file that a delta has to save to be published."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What making deltas may take.

    Attributes:
        seconds: Time in all; an encoding under way is ended when it is up.
        bytes: Length of all deltas together.
    """

    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class FilePair:
    """A file of the new version, and the one of a base version that it is likely made from."""

    path: str
    base_path: str
    base: Digest
    base_bytes: int
    new: Digest
    new_bytes: int


@dataclass(slots=True)
class Built:
    """What was done.

    Attributes:
        deltas: Published ones: base version, path, lengths, seconds.
        skipped: Pairs without a delta, each with the reason.
        bytes: Length of all deltas that were made.
    """

    deltas: list[JsonObject] = field(default_factory=list)
    skipped: list[JsonObject] = field(default_factory=list)
    bytes: int = 0

    def to_json(self) -> JsonObject:
        """What `--json` prints."""
        return {"deltas": self.deltas, "skipped": self.skipped, "bytes": self.bytes}


def file_pairs(base: JsonObject, new: JsonObject) -> Iterator[FilePair]:
    """Files of two versions that go together: by path, else the only one left of a kind.

    Args:
        base: A version as the registry describes it.
        new: Likewise.
    """
    known = {str(file["path"]): file for file in base["files"]}
    wanted = {str(file["path"]): file for file in new["files"]}
    left = {path: file for path, file in known.items() if path not in wanted}
    for path, file in wanted.items():
        found = known.get(path)
        if found is None:
            suffix = PurePosixPath(path).suffix
            alike = [other for other in left if PurePosixPath(other).suffix == suffix]
            rivals = [other for other in wanted if other not in known and PurePosixPath(other).suffix == suffix]
            if len(alike) != 1 or len(rivals) != 1:
                continue
            found = left[alike[0]]
        if found["digest"] != file["digest"] and min(found["size"], file["size"]) >= _FILE_BYTES_MIN:
            yield FilePair(
                path,
                str(found["path"]),
                Digest(found["digest"]),
                int(found["size"]),
                Digest(file["digest"]),
                int(file["size"]),
            )


def build_deltas(
    client: RegistryClient,
    model: str,
    version: int,
    bases: Sequence[int],
    budget: Budget,
    folder: Path,
    reporter: Reporter,
) -> Built:
    """Make and publish what is missing of the deltas from some versions, in their order, until the budget is spent.

    Args:
        client: With a publisher's token.
        model: Name of the model.
        version: The version to make.
        bases: Versions to start from, the most common first.
        budget: What it may take.
        folder: Where files are downloaded to and deltas are made; what is there already is used.
        reporter: Shows progress.

    Raises:
        EdgeError: `cloud.*`, `network.*`, `device.disk-*`.
    """
    began, result = time.monotonic(), Built()
    new = client.get_version(model, version)
    made = {(item["base"], item["new"]) for item in client.deltas(model, version)}
    index = client.get_manifest(bundle_repository(model), str(version))
    for number in bases:
        for pair in file_pairs(client.get_version(model, number), new):
            left = budget.seconds - (time.monotonic() - began)
            name = {"base_version": number, "path": pair.path}
            if (str(pair.base), str(pair.new)) in made:
                result.skipped.append(name | {"reason": "there is one already"})
                continue
            if left <= 0 or result.bytes >= budget.bytes:
                result.skipped.append(name | {"reason": "the budget is spent"})
                continue
            request = _fetched(client, model, number, version, pair, folder, new, reporter)
            with reporter.task(f"encoding {pair.path} from version {number}"):
                encoded = encode_apart(request, left)
            made.add((str(pair.base), str(pair.new)))
            if encoded is None:
                result.skipped.append(name | {"reason": "the budget is spent"})
            elif encoded.bytes > pair.new_bytes * (1 - _SAVING_MIN):
                result.skipped.append(name | {"reason": f"it would save nothing: {encoded.bytes} bytes"})
            elif result.bytes + encoded.bytes > budget.bytes:
                result.skipped.append(name | {"reason": f"{encoded.bytes} bytes are more than the budget has left"})
            else:
                delta = _published(client, model, version, pair, request.out, encoded.peak_bytes, index, reporter)
                result.bytes += delta.bytes
                result.deltas.append(name | delta.to_json() | {"ratio": round(delta.bytes / delta.new_bytes, 4)})
                reporter.say(f"{pair.path} from version {number}: {delta.bytes} of {delta.new_bytes} bytes")
            request.out.unlink(missing_ok=True)
    return result


def _fetched(
    client: RegistryClient,
    model: str,
    base_version: int,
    version: int,
    pair: FilePair,
    folder: Path,
    new: JsonObject,
    reporter: Reporter,
) -> EncodeRequest:
    """Both files, and the ONNX files beside them if they may be the external data of one."""
    base_file = _download(client, model, base_version, pair.base_path, pair.base, folder, reporter)
    new_file = _download(client, model, version, pair.path, pair.new, folder, reporter)
    out = folder / f"{pair.base.hex[:16]}-{pair.new.hex[:16]}.delta"
    if pair.path != pair.base_path or pair.path == new["entry"] or PurePosixPath(pair.path).suffix == ".onnx":
        return EncodeRequest(base_file, new_file, out)
    old = client.get_version(model, base_version)
    entries = [next((file for file in item["files"] if file["path"] == item["entry"]), None) for item in (old, new)]
    if any(entry is None or not str(entry["path"]).endswith(".onnx") for entry in entries):
        return EncodeRequest(base_file, new_file, out)
    onnx = [
        _download(client, model, number, str(entry["path"]), Digest(entry["digest"]), folder, reporter)
        for number, entry in zip((base_version, version), entries, strict=True)
        if entry is not None
    ]
    # External data are named from the folder of the ONNX file.
    parent = PurePosixPath(str(new["entry"])).parent
    location = str(PurePosixPath(pair.path).relative_to(parent)) if parent in PurePosixPath(pair.path).parents else ""
    return EncodeRequest(base_file, new_file, out, onnx[0], onnx[1], location)


def _download(
    client: RegistryClient, model: str, version: int, path: str, digest: Digest, folder: Path, reporter: Reporter
) -> Path:
    target = folder / f"{digest.hex}{PurePosixPath(path).suffix}"
    if not target.is_file():
        with reporter.task(f"downloading {path} of version {version}") as advance:
            client.download(model, version, path, target, upload_progress(advance))
    return target


def _published(
    client: RegistryClient,
    model: str,
    version: int,
    pair: FilePair,
    file: Path,
    peak_bytes: int,
    index: bytes,
    reporter: Reporter,
) -> Delta:
    """Upload a delta, put the artifact that refers to the bundle, and tell the registry."""
    repository = bundle_repository(model)
    digest, size = digest_of(file)
    delta = Delta(pair.base, pair.base_bytes, pair.new, pair.new_bytes, digest, size, peak_bytes)
    with reporter.task(f"pushing the delta of {pair.path}", size) as advance:
        client.upload_blob(repository, file, digest, upload_progress(advance))
    client.upload_bytes(repository, EMPTY)
    data = delta_manifest(delta, Descriptor(INDEX_TYPE, Digest.of(index), len(index)))
    manifest = client.put_manifest(repository, str(Digest.of(data)), MANIFEST_TYPE, data)
    client.register_delta(model, version, manifest)
    return delta


def common_bases(client: RegistryClient, model: str, version: int, condition: str, module: str) -> list[int]:
    """Versions of the model that devices of a condition hold, the most common first.

    Raises:
        EdgeError: `cloud.*`, `network.*`.
    """
    counts: dict[int, int] = {}
    for item in client.bases(model, version, condition, module)["bases"]:
        if item["model"] == model and int(item["version"]) != version:
            counts[int(item["version"])] = counts.get(int(item["version"]), 0) + int(item["devices"])
    return sorted(counts, key=lambda number: (-counts[number], -number))


def check_budget(seconds: float, size: int) -> Budget:
    """A budget from the command line.

    Raises:
        EdgeError: `config.invalid`.
    """
    if seconds < 0 or size < 0:
        raise EdgeError("config.invalid", "a budget is not negative")
    return Budget(seconds, size)
