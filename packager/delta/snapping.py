"""A snapped release: snapped, evaluated beside what was trained, and registered as a version of its own."""

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cloud_registry.client import RegistryClient
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.names import relative_path
from packager.build import prepare, with_extra_files
from packager.delta.evaluating import evaluate, failures
from packager.delta.formats import read_external
from packager.delta.process import external_tensors
from packager.delta.snap import SnapReport, Tally, snap_file, snap_part
from packager.files import digest_of, disk_errors
from packager.progress import Reporter
from packager.register import register
from packager.signature import read_facts
from packager.spec import MemberSpec, Spec


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
    facts = read_facts(member.entry.source, member.engine)  # refuses files that it keeps numbers in elsewhere
    base = _fetch_base(client, spec.name, wish.against, folder, reporter)
    snapped = folder / "snapped" / member.entry.source.name
    snapped.parent.mkdir(parents=True)
    with reporter.task(f"snapping {member.entry.path} to version {wish.against}"):
        report = _snap(member.entry.source, base, snapped, wish.kappa, facts.extra_files)
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
    about = replace(spec.about, properties=dict(spec.about.properties) | _properties(found))
    taken = _made_of(with_extra_files(member, facts), snapped, facts.extra_files)
    made = replace(spec, members=(taken,), about=about, version=0)
    with ExitStack() as stack:
        prepare(made, reporter, stack)  # golden vectors that it does not meet would leave a version without a bundle
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
        target = root / relative_path(file["path"])
        target.parent.mkdir(parents=True, exist_ok=True)
        with reporter.task(f"downloading {file['path']} of version {version}"):
            client.download(model, version, str(file["path"]), target)
            if digest_of(target)[0] != Digest(str(file["digest"])):
                raise EdgeError("artifact.digest-mismatch", f"{file['path']} of {model}:{version} has another digest")
    return root / PurePosixPath(str(record["entry"]))


def _made_of(member: MemberSpec, snapped: Path, extra: Iterable[str]) -> MemberSpec:
    """The member with what was snapped in place of what was trained: its entry, and the files with its numbers.

    Args:
        member: All its files are listed.
        snapped: The snapped entry.
        extra: Files with its numbers, relative to its folder.
    """
    folder = PurePosixPath(member.entry.path).parent
    made = {str(folder / name): snapped.parent / name for name in extra}
    files = tuple(replace(file, source=made.get(file.path, file.source)) for file in member.files)
    return replace(member, entry=replace(member.entry, source=snapped), files=files)


def _snap(new: Path, base: Path, out: Path, kappa: float, extra: Iterable[str]) -> SnapReport:
    """Snap a file and, for ONNX, the files that hold its numbers.

    Args:
        new: What was trained.
        base: What devices hold.
        out: Where the snapped one goes; the files beside it go beside it.
        kappa: See `snap_file`.
        extra: Files beside it that hold its numbers, relative to its folder.
    """
    outside = read_external(new)
    if not outside:
        return snap_file(base, new, out, kappa)
    tally = Tally()
    for location in extra:
        target = out.parent / location
        ours, theirs = new.parent / location, base.parent / location
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if location not in outside or not theirs.is_file():
                shutil.copyfile(ours, target)
                continue
        known = external_tensors(base, location, theirs)
        snap_part(theirs, ours, target, kappa, tally, known, external_tensors(new, location, ours))
    # Weights lie in those files; what is left in the model itself is small and stays as it is.
    with disk_errors(out):
        shutil.copyfile(new, out)
    return tally.report(base, new, kappa)
