"""`packager build`, `inspect` and `verify`: a bundle on this machine."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_contract.errors import EdgeError
from packager.bundle import BundleSet
from packager.commands.common import (
    FILE,
    FOLDER,
    FiniteRange,
    emit,
    json_option,
    make_reporter,
    registry,
    registry_options,
    source_date_epoch,
)
from packager.commands.describe import about_options, bundle_options, flags_from, from_registry, spec_from, spec_options
from packager.limits import SNAP_DROP_DEFAULT

if TYPE_CHECKING:
    from packager.delta.snapping import SnapWish


@click.command("build")
@click.option("--model", "name", default="", help="Name of the model.")
@click.option("--version", type=click.IntRange(1), help="Its version, as the registry numbered it.")
@click.option("--file", "files", multiple=True, metavar="[NAME=]FILE", help="Model or entry script; NAME for sets.")
@click.option("--from-registry", is_flag=True, help="Take the model files from the registry.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the OCI layout.")
@click.option("--snap", "kappa", type=float, metavar="KAPPA", help="Snap weights to a grid around --against; try 0.5.")
@click.option("--against", type=click.IntRange(1), help="The registered version that devices hold, for --snap.")
@click.option("--evaluate", "script", type=FILE, help="Script with evaluate(path), run on both models, for --snap.")
@click.option(
    "--gate",
    "drop_max",
    type=FiniteRange(0),
    help=f"How far a metric may fall, for --snap; else {SNAP_DROP_DEFAULT:g}.",
)
@spec_options
@bundle_options
@about_options
@registry_options
@json_option
def build(name: str, version: int | None, files: tuple[str, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Build a bundle: an OCI layout with one manifest for each platform.

    \b
    Examples:
      packager build --model digits --version 1 --file model.onnx --golden golden.npz --out bundle
      packager build --model digits --version 1 --from-registry --out bundle
      packager build --spec lighterman.toml --version 3 --out bundle
      packager build --model digits --file model.onnx --snap 0.5 --against 3 --evaluate score.py --out bundle

    The model is run here on its golden vectors and has to meet them. The same inputs give the same bytes; a time of
    creation is stated only if SOURCE_DATE_EPOCH is set.

    With --snap the weights are moved to a grid around those of --against, with steps of about KAPPA deviations of a
    row's change, so that the update takes a small part of the file. That is another model than was trained: your script
    evaluates both, and when a metric falls by more than --gate nothing is made. Else the snapped model is registered as
    a version of its own, and built.
    """
    from packager.build import build as run

    reporter = make_reporter(as_json)
    wish = _snap_wish(options, version)
    flags = flags_from(options, name, version or 0, files)
    with ExitStack() as stack:
        base = None
        if options["from_registry"]:
            if files or not (name and version):
                raise EdgeError("config.invalid", "--from-registry needs --model and --version, and no --file")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lighterman-build-")))
            with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
                base = from_registry(client, name, version, folder)
        spec, snapped = spec_from(options, flags, base), None
        if wish is not None:
            from packager.delta.snapping import snap_release

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lighterman-snap-")))
            with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
                spec, snapped = snap_release(client, spec, wish, folder, reporter)
        built = run(spec, out, reporter, source_date_epoch())
    lines = [] if snapped is None else _snap_lines(snapped)
    lines += [f"built {built.name}:{built.version} in {out}"]
    lines += [f"  {platform:14} {digest}" for platform, digest in built.manifests.items()]
    if built.golden_error is not None:
        lines.append(f"  golden vectors met; largest difference {built.golden_error:.3g}")
    document = built.to_json() | ({} if snapped is None else {"snapped": snapped})
    emit(as_json, document, [*lines, *(f"  warning: {text}" for text in built.warnings)])


def _snap_wish(options: dict[str, Any], version: int | None) -> "SnapWish | None":
    """What the options say of snapping; none without `--snap`.

    Raises:
        EdgeError: `config.invalid` for some of them without the others.
    """
    kappa, against, script, drop_max = (options.pop(key) for key in ("kappa", "against", "script", "drop_max"))
    if kappa is None:
        if not (against is script is drop_max is None):
            why = "--against, --evaluate and --gate say how to snap, and --snap KAPPA is missing"
            raise EdgeError("config.invalid", why)
        return None
    if against is None or script is None:
        raise EdgeError("config.invalid", "--snap needs --against VERSION and --evaluate SCRIPT")
    if version is not None or options["from_registry"]:
        why = "a snapped model gets a version of its own: give its file, without --version and --from-registry"
        raise EdgeError("config.invalid", why)
    from packager.delta.snapping import SnapWish

    return SnapWish(kappa, against, script, SNAP_DROP_DEFAULT if drop_max is None else drop_max)


def _snap_lines(found: dict[str, Any]) -> list[str]:
    metrics = ", ".join(
        f"{name} {value:g} -> {found['metrics_snapped'][name]:g}" for name, value in found["metrics_trained"].items()
    )
    return [
        f"snapped {found['tensors']} tensors to version {found['against']}, kappa {found['kappa']:g}: {metrics}",
        f"  another model than was trained ({found['parent']}); registered as version {found['version']}",
    ]


def _open(stack: ExitStack, what: str, options: dict[str, Any]) -> BundleSet:
    """A layout's folder, or MODEL:VERSION in a registry."""
    from packager.layout import Layout

    if Path(what).is_dir():
        return Layout(Path(what))
    if ":" not in what:
        raise EdgeError("config.file-missing", f"{what} is neither a folder nor MODEL:VERSION")
    from packager.deploy import parse_reference
    from packager.remote import RemoteBundles

    model, version = parse_reference(what)
    client = stack.enter_context(registry(options["url"], options["token"], options["token_file"], options["ca_file"]))
    return RemoteBundles(client, model, version)


@click.command("inspect")
@click.argument("what", metavar="DIR|MODEL:VERSION")
@registry_options
@json_option
def inspect(what: str, as_json: bool, **options: Any) -> None:
    """Show what is in a bundle: platforms, layers, tensor signature, golden vectors, policy.

    \b
    Examples:
      packager inspect bundle
      packager inspect digits:production --url http://127.0.0.1:8400 --json
    """
    from packager.inspection import inspect as run
    from packager.inspection import render

    with ExitStack() as stack:
        facts = run(_open(stack, what, options))
    emit(as_json, facts, render(facts))


@click.command("verify")
@click.argument("what", metavar="DIR|MODEL:VERSION")
@registry_options
@click.option("--keys", "key_folder", type=FOLDER, help="Folder with the pinned root, to verify signatures by.")
@click.option("--run-golden/--no-run-golden", default=True, help="Run the models of DIR on their golden vectors here.")
@json_option
def verify(what: str, as_json: bool, key_folder: Path | None, run_golden: bool, **options: Any) -> None:
    """Check a bundle as a device would: every digest, every document, golden vectors, signatures.

    Signatures are checked where a registry is named (--url). Without --keys the registry's first root is taken as it
    comes, which proves only that the registry agrees with itself. Exits with the code of the first failure.
    """
    from packager.tufview import ImageReader
    from packager.verify import verify as run

    with ExitStack() as stack:
        reader = None
        if options["url"]:
            client = stack.enter_context(
                registry(options["url"], options["token"], options["token_file"], options["ca_file"])
            )
            reader = ImageReader(client, key_folder)
        checks, error = run(_open(stack, what, options), reader, run_golden, make_reporter(as_json))
    marks = {True: "passed ", False: "FAILED ", None: "skipped"}
    lines = [f"{marks[check.is_passed]}  {check.name}: {check.detail}" for check in checks]
    document = {"is_passed": error is None, "checks": [check.to_json() for check in checks]}
    emit(as_json, document, lines)
    if error is not None:
        raise click.exceptions.Exit(error.exit_code)
