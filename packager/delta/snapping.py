"""A snapped release: snapped, evaluated beside what was trained, and registered as a version of its own."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cloud_registry.client import RegistryClient
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from packager.delta.evaluating import evaluate, failures
from packager.delta.formats import read_external
from packager.delta.process import external_tensors
from packager.delta.snap import SnapReport, snap_file
from packager.files import digest_of
from packager.progress import Reporter
from packager.register import register
from packager.spec import Spec


@dataclass(frozen=True, slots=True)
class SnapWish:
    """What is asked for.

    Attributes:
        kappa: See `packager.delta.snap.snap_file`.
        against: Version whose weights are the base.
        script: Evaluates both models.
        drop_max: How far a metric may fall.
    """

    kappa: float
    against: int
    script: Path
    drop_max: float


def snap_release(
    client: RegistryClient, spec: Spec, wish: SnapWish, folder: Path, reporter: Reporter
) -> tuple[Spec, JsonObject]:
    """Snap a model, evaluate it, and register it; nothing is registered when the gate fails.

    Args:
        client: With a publisher's token.
        spec: Of one model, as it was trained.
        wish: How.
        folder: For the snapped files; it has to stay until the bundle is built.
        reporter: Shows progress.

    Returns:
        The description of the snapped model with its version, and what was found.

    Raises:
        EdgeError: `model.gate-failed`, `model.evaluation-failed`, `config.*`, `cloud.*`, `network.*`.
    """
    if len(spec.members) != 1:
        raise EdgeError("config.invalid", f"{len(spec.members)} models are described; one is snapped at a time")
    member = spec.members[0]
    base = _fetch_base(client, spec.name, wish.against, folder, reporter)
    snapped = folder / "snapped" / member.entry.source.name
    snapped.parent.mkdir(parents=True)
    with reporter.task(f"snapping {member.entry.path} to version {wish.against}"):
        report = _snap(member.entry.source, base, snapped, wish.kappa)
    with reporter.task("evaluating the trained model"):
        before = evaluate(wish.script, member.entry.source)
    with reporter.task("evaluating the snapped model"):
        after = evaluate(wish.script, snapped)
    if failed := failures(before, after, wish.drop_max):
        raise EdgeError(
            "model.gate-failed",
            f"the snapped model is worse than the trained one by more than {wish.drop_max:g}: {'; '.join(failed)}",
            "Take a smaller kappa, or release the model as it was trained. Nothing was registered.",
        )
    parent, _ = digest_of(member.entry.source)
    found: JsonObject = report.to_json() | {
        "against": wish.against,
        "parent": str(parent),
        "metrics_trained": before,
        "metrics_snapped": after,
    }
    entry = replace(member.entry, source=snapped)
    about = replace(spec.about, properties=dict(spec.about.properties) | _properties(found))
    made = replace(spec, members=(replace(member, entry=entry),), about=about, version=0)
    version = int(register(client, made, reporter)["version"])
    reporter.say(f"registered the snapped model as {spec.name}:{version}")
    return replace(made, version=version), found | {"version": version}


def _properties(found: JsonObject) -> dict[str, str]:
    """What the version's record says of how it was made."""
    texts = {
        "snap.kappa": f"{found['kappa']:g}",
        "snap.against": str(found["against"]),
        "snap.parent": str(found["parent"]),
        "snap.error_ratio": f"{found['error_ratio']:g}",
    }
    for name, value in found["metrics_trained"].items():
        texts[f"snap.metric.{name}"] = f"trained {value:g}, snapped {found['metrics_snapped'][name]:g}"
    return texts


def _fetch_base(client: RegistryClient, model: str, version: int, folder: Path, reporter: Reporter) -> Path:
    """The base's entry, with its other files beside it."""
    record = client.get_version(model, version)
    root = folder / "base"
    for file in record["files"]:
        target = root / PurePosixPath(str(file["path"]))
        target.parent.mkdir(parents=True, exist_ok=True)
        with reporter.task(f"downloading {file['path']} of version {version}"):
            client.download(model, version, str(file["path"]), target)
            if digest_of(target)[0] != Digest(str(file["digest"])):
                raise EdgeError("artifact.digest-mismatch", f"{file['path']} of {model}:{version} has another digest")
    return root / PurePosixPath(str(record["entry"]))


def _snap(new: Path, base: Path, out: Path, kappa: float) -> SnapReport:
    """Snap a file and, for ONNX, the files that hold its numbers; gives what was done to most of them."""
    reports = []
    outside = read_external(new)
    for location in outside:
        target = out.parent / location
        target.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = new.parent / location, base.parent / location
        known = external_tensors(base, location, theirs) if theirs.is_file() else ()
        reports.append(snap_file(theirs, ours, target, kappa, known, external_tensors(new, location, ours)))
    if outside:
        # Weights lie in those files; what is left in the model itself is small and stays as it is.
        shutil.copyfile(new, out)
    else:
        reports.append(snap_file(base, new, out, kappa))
    return max(reports, key=lambda report: report.elements)
