"""Checks a bundle as a device would, and a little more: every byte, document, golden vector and signature."""

import os
import platform
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import JsonObject, parse_object
from edge_contract.limits import GOLDEN_BYTES_MAX, UNPACK_BYTES_MAX, UNPACK_ENTRIES_MAX
from edge_contract.manifest import TAR_TYPES, Role
from edge_contract.names import relative_path
from packager import golden
from packager.bundle import Bundle, BundleSet
from packager.inspection import CONFIG_BYTES_MAX
from packager.layout import Layout
from packager.progress import Reporter
from packager.remote import RemoteBundles
from packager.sign import targets_of
from packager.spec import SourceFile
from packager.trial import run_trial
from packager.tufview import ImageReader
from packager.wheels import MACHINES, read_wheel


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: What.
        is_passed: Whether it held; none when it was not looked at.
        detail: What was seen, or why it was not looked at.
        code: Error code when it did not hold.
    """

    name: str
    is_passed: bool | None
    detail: str
    code: str = ""

    def to_json(self) -> JsonObject:
        """For `--json`."""
        verdict = "skipped" if self.is_passed is None else "passed" if self.is_passed else "failed"
        return {"name": self.name, "verdict": verdict, "detail": self.detail, "code": self.code}


class _Checks:
    def __init__(self, reporter: Reporter) -> None:
        self.items: list[Check] = []
        self.first_error: EdgeError | None = None
        self._reporter = reporter

    def run(self, name: str, check: Callable[[], str]) -> None:
        """Run one check; a coded error is its failure."""
        try:
            with self._reporter.task(f"checking {name}"):
                self.items.append(Check(name, True, check()))
        except EdgeError as error:
            self.first_error = self.first_error or error
            self.items.append(Check(name, False, error.detail, error.code))

    def skip(self, name: str, why: str) -> None:
        self.items.append(Check(name, None, why))


def verify(
    bundles: BundleSet, reader: ImageReader | None, run_golden: bool, reporter: Reporter
) -> tuple[list[Check], EdgeError | None]:
    """Check a bundle.

    Args:
        bundles: A layout, or a bundle in a registry.
        reader: Reads the registry's signed metadata; none leaves signatures out.
        run_golden: Run the models of a layout on their golden vectors here.
        reporter: Shows progress.

    Returns:
        The checks in order, and the first error among them.
    """
    checks = _Checks(reporter)
    documents = f"index and manifests of {', '.join(item.platform for item in bundles.bundles)}"
    checks.items.append(Check("manifests", True, f"{documents} are well-formed and belong together"))
    checks.run("blobs", lambda: _blobs(bundles))
    for item in bundles.bundles:
        checks.run(f"runtime descriptor {item.platform}", lambda item=item: _runtime(item))  # type: ignore[misc]
        checks.run(f"configuration {item.platform}", lambda item=item: _config(bundles, item))  # type: ignore[misc]
    if isinstance(bundles, Layout):
        checks.run("wheels", lambda: _wheels(bundles))
    if bundles.bundles[0].runtime.golden is None:
        checks.skip("golden vectors", "the bundle has none")
    else:
        checks.run("golden vectors", lambda: _golden_file(bundles))
        if run_golden and isinstance(bundles, Layout):
            checks.run("golden run", lambda: _golden_run(bundles))
        else:
            checks.skip("golden run", "only a layout on this machine is run, and only when asked")
    if reader is None:
        checks.skip("signatures", "no registry was named")
    else:
        checks.run("signatures", lambda: _signatures(bundles, reader))
    return checks.items, checks.first_error


def _blobs(bundles: BundleSet) -> str:
    for blob in bundles.blobs:
        if isinstance(bundles, Layout):
            bundles.verify_blob(blob)
        elif isinstance(bundles, RemoteBundles) and not bundles.has(blob.digest):
            raise EdgeError("artifact.not-found", f"the registry lacks {blob.digest}", "Push the bundle again.")
    how = "have their size and digest" if isinstance(bundles, Layout) else "are in the registry"
    return f"{len(bundles.blobs)} blobs {how}"


def _runtime(item: Bundle) -> str:
    paths = {layer.path: layer for layer in item.manifest.layers}
    for member in item.runtime.members:
        if member.entry and member.entry not in paths:
            raise EdgeError("artifact.runtime-invalid", f"{member.name}: there is no layer {member.entry!r}")
    vectors = item.runtime.golden
    if vectors is not None and (vectors.path not in paths or paths[vectors.path].role != Role.GOLDEN):
        raise EdgeError("artifact.runtime-invalid", f"there is no golden layer {vectors.path!r}")
    return f"{len(item.runtime.members)} members, entries present"


def _config(bundles: BundleSet, item: Bundle) -> str:
    config = item.manifest.config
    data = bundles.read(config.digest, config.size, CONFIG_BYTES_MAX)
    content = parse_object(data, "configuration", CONFIG_BYTES_MAX)
    model_files = content.get("modelfs")
    listed = model_files.get("diffIds") if isinstance(model_files, dict) else None
    if listed != [str(layer.digest) for layer in item.manifest.layers]:
        raise EdgeError("artifact.manifest-invalid", "the ModelPack configuration lists other layers than the manifest")
    return "the ModelPack configuration lists the manifest's layers"


def _wheels(layout: Layout) -> str:
    wheels = {layer.digest: layer for item in layout.bundles for layer in item.manifest.with_role(Role.WHEEL)}
    with tempfile.TemporaryDirectory(prefix="lighterman-verify-") as name:
        for digest, layer in wheels.items():
            path = Path(name, layer.path.rpartition("/")[2])
            path.symlink_to(layout.blob_path(digest).resolve())
            read_wheel(path)
    return f"{len(wheels)} wheels can be unpacked"


def _golden_tensors(bundles: BundleSet) -> golden.Tensors:
    item = bundles.bundles[0]
    layer = item.manifest.with_role(Role.GOLDEN)[0]
    tensors = golden.from_safetensors(bundles.read(layer.digest, layer.size, GOLDEN_BYTES_MAX))
    return golden.fit(tensors, item.runtime.members)


def _golden_file(bundles: BundleSet) -> str:
    tensors = _golden_tensors(bundles)
    inputs, outputs = golden.inputs_of(tensors), golden.outputs_of(tensors)
    if not inputs or not outputs:
        raise EdgeError("artifact.golden-invalid", "the golden file lacks inputs or outputs")
    return f"{len(inputs)} inputs and {len(outputs)} outputs fit the tensor signature"


def _golden_run(layout: Layout) -> str:
    here = MACHINES.get(platform.machine(), "")
    item = next((bundle for bundle in layout.bundles if bundle.platform == here), layout.bundles[0])
    vectors = item.runtime.golden
    if vectors is None:
        raise EdgeError("artifact.golden-invalid", "the bundle has no golden vectors")
    tensors = _golden_tensors(layout)
    with tempfile.TemporaryDirectory(prefix="lighterman-verify-") as name:
        files = _materialise(layout, item, Path(name))
        wheels = [file.source for file in files if file.path.startswith("wheels/")]
        trial = run_trial(
            [(member, Path(name, member.entry) if member.entry else None) for member in item.runtime.members],
            golden.inputs_of(tensors),
            [file for file in files if not file.path.startswith("wheels/")],
            wheels,
            item.runtime.config,
            item.runtime.allow_pickle,
        )
    comparison = golden.compare(golden.outputs_of(tensors), trial.outputs, vectors.rtol, vectors.atol)
    return f"within tolerance here; largest difference {comparison.max_error:.3g}"


def _materialise(layout: Layout, item: Bundle, folder: Path) -> list[SourceFile]:
    """The bundle's files under their own names, because runtimes look at them; hard links where the disk allows."""
    result = []
    for layer in item.manifest.layers:
        if layer.role in (Role.GOLDEN, Role.RUNTIME, Role.DOC):
            continue
        place = folder / layer.path
        place.parent.mkdir(parents=True, exist_ok=True)
        source = layout.blob_path(layer.digest)
        if layer.media_type in TAR_TYPES:
            _unpack_tar(source, place)
        else:
            try:
                os.link(source, place)
            except OSError:
                shutil.copyfile(source, place)
        result.append(SourceFile(place, layer.path))
    return result


def _unpack_tar(source: Path, target: Path) -> None:
    total = 0
    target.mkdir(parents=True)
    try:
        with tarfile.open(source, "r:") as archive:
            for count, entry in enumerate(archive):
                relative_path(entry.name)
                total += entry.size
                if not entry.isreg() or count >= UNPACK_ENTRIES_MAX or total > UNPACK_BYTES_MAX:
                    raise EdgeError("artifact.entry-forbidden", f"{entry.name!r} may not be in a code layer")
                archive.extract(entry, target, filter="data")
    except tarfile.TarError as error:
        raise EdgeError("artifact.archive-invalid", f"a code layer cannot be unpacked: {error}") from None
    except ContractError as error:
        raise EdgeError(error.code, error.detail, error.hint) from None


def _signatures(bundles: BundleSet, reader: ImageReader) -> str:
    targets = targets_of(bundles)
    view = reader.view(target.path for target in targets)
    for target in targets:
        listed = view.target(target.path)
        if listed is None:
            raise EdgeError(
                "trust.target-unknown",
                f"the registry's signed metadata do not list {target.artifact.platform}, {target.digest}",
                "Sign it: `packager push`.",
            )
        if listed != target.to_file():
            why = f"what is signed of {target.path} is not what the bundle says"
            raise EdgeError("trust.repositories-disagree", why)
    how = "from the pinned root" if reader.is_pinned else "from the registry's own first root, for which nobody vouched"
    return f"{len(targets)} manifests are listed, verified {how}"
