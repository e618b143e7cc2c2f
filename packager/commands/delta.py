"""`packager delta`: updates that carry only what changed."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from packager.commands.common import (
    FILE,
    FOLDER,
    FiniteRange,
    emit,
    json_option,
    make_reporter,
    registry,
    registry_options,
    stacked,
)
from packager.limits import DELTA_BUDGET_BYTES_DEFAULT, DELTA_BUDGET_S_DEFAULT, DELTA_JOBS_MAX, LINK_KBPS_DEFAULT

if TYPE_CHECKING:
    from cloud_registry.client import RegistryClient
    from packager.progress import Reporter

_MEGA: Final = 1_000_000

budget_options = stacked(
    click.option(
        "--budget-s",
        type=FiniteRange(0),
        default=DELTA_BUDGET_S_DEFAULT,
        show_default=True,
        help="Seconds that making deltas may take in all.",
    ),
    click.option(
        "--budget-bytes",
        type=click.IntRange(0),
        default=DELTA_BUDGET_BYTES_DEFAULT,
        show_default=True,
        help="Length of all new deltas together.",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(1, DELTA_JOBS_MAX),
        default=1,
        show_default=True,
        help="Files encoded at once, each on one processor.",
    ),
)

deploy_options = stacked(
    click.option(
        "--deltas/--no-deltas",
        "with_deltas",
        default=True,
        show_default=True,
        help="Make missing deltas first, for what the devices hold, the most common first.",
    ),
    budget_options,
    click.option("--dry-run", is_flag=True, help="Only show what would come over the network; nothing is changed."),
    click.option(
        "--link-kbps",
        type=FiniteRange(0, min_open=True),
        help=f"Speed of a device's link, for --dry-run; else {LINK_KBPS_DEFAULT:g}.",
    ),
)


@click.group("delta")
def delta() -> None:
    """Make updates small: deltas between versions of a model.

    \b
    Examples:
      packager delta make old.onnx new.onnx -o new.delta      between two files
      packager delta build digits:4                           for what the fleet holds, published
      packager deploy digits:4 --condition "*" --dry-run      what it will bring over the network

    A delta needs no trust of its own: devices compare what it makes with the digest in the signed bundle, and fetch the
    whole file where anything is wrong.
    """


@delta.command("make")
@click.argument("base", type=FILE)
@click.argument("new", type=FILE)
@click.option("-o", "--out", type=FILE, required=True, help="Where the delta goes.")
@json_option
def make(base: Path, new: Path, out: Path, as_json: bool) -> None:
    """Make the delta from one model file to another.

    ONNX, TensorFlow Lite and safetensors files are looked into; anything else is taken as bytes.
    """
    from packager.delta.process import EncodeRequest, Encoding

    for file in (base, new):
        if out.exists() and file.exists() and out.samefile(file):
            hint = "Give the delta a name of its own."
            raise EdgeError("config.invalid", f"the delta would take the place of {file}, which it is made of", hint)
    with make_reporter(as_json).task(f"encoding {new.name}"):
        encoded = Encoding(EncodeRequest(base.absolute(), new.absolute(), out.absolute())).wait()
    if encoded is None:
        raise AssertionError("without a bound on its time an encoding ends")
    facts: JsonObject = {
        "bytes": encoded.bytes,
        "new_bytes": encoded.new_bytes,
        "ratio": round(encoded.bytes / encoded.new_bytes, 4),
        "peak_bytes": encoded.peak_bytes,
        "cpu_seconds": round(encoded.seconds, 2),
        "operations": encoded.kinds,
    }
    line = f"{out}: {encoded.bytes} bytes make {encoded.new_bytes} ({facts['ratio']:.1%})"
    warning = ["warning: the delta is no smaller than the file"] if encoded.bytes >= encoded.new_bytes else []
    emit(as_json, facts, [line, *warning])


@delta.command("apply")
@click.argument("base", type=FILE)
@click.argument("delta_file", type=FILE, metavar="DELTA")
@click.option("-o", "--out", type=FILE, required=True, help="Where the new file goes.")
@json_option
def apply(base: Path, delta_file: Path, out: Path, as_json: bool) -> None:
    """Make the new file from its base and a delta, as a device does, and check its digest."""
    from edge_delta.decode import inspect

    with _opened(base) as base_file, _opened(delta_file) as delta_stream:
        info = inspect(delta_stream)
        _require_digest(base, base_file, info.base_prefix, "artifact.digest-mismatch")
        reporter = make_reporter(as_json)
        digest = _made(base_file, delta_stream, info, out, reporter)
    emit(as_json, {"digest": str(digest), "bytes": info.new_bytes}, [f"{out}: {info.new_bytes} bytes, {digest}"])


@delta.command("show")
@click.argument("delta_file", type=FILE, metavar="DELTA")
@json_option
def show(delta_file: Path, as_json: bool) -> None:
    """Say what a delta starts from, what it makes, and how."""
    from edge_delta.decode import inspect

    with _opened(delta_file) as stream:
        info = inspect(stream)
    size = delta_file.stat().st_size
    facts: JsonObject = {
        "bytes": size,
        "base_bytes": info.base_bytes,
        "base_sha256_prefix": info.base_prefix,
        "new_bytes": info.new_bytes,
        "new_sha256_prefix": info.new_prefix,
        "peak_bytes": info.peak_bytes,
        "operations": info.operations,
    }
    lines = [
        f"{size} bytes make {info.new_bytes} from {info.base_bytes}",
        f"  from sha256:{info.base_prefix}…",
        f"  to   sha256:{info.new_prefix}…",
        f"  memory beside Python, numpy and zstandard: {info.peak_bytes / _MEGA:.1f} MB",
        *(f"  {count:>12} bytes by {kind}" for kind, count in sorted(info.operations.items())),
    ]
    emit(as_json, facts, lines)


@delta.command("build")
@click.argument("reference", metavar="MODEL:VERSION")
@click.option("--from", "bases", type=click.IntRange(1), multiple=True, help="Version to start from; repeatable.")
@click.option("--condition", help="Devices whose versions count, without --from; else all.")
@click.option("--module", default="", help="Module on those devices; the model's name by default.")
@click.option("--work", type=FOLDER, help="Keep downloaded files in this folder.")
@budget_options
@registry_options
@json_option
def build(
    reference: str,
    bases: tuple[int, ...],
    condition: str | None,
    module: str,
    work: Path | None,
    budget_s: float,
    budget_bytes: int,
    jobs: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Make and publish deltas to a version, for what the fleet holds or from the versions given.

    \b
    Examples:
      packager delta build digits:4 --budget-s 600
      packager delta build digits:4 --from 3 --from 2

    What is there already is not made again. A pair that is not worth a delta is told, with the reason.
    """
    from packager.delta.building import check_budget
    from packager.deploy import parse_reference

    model, version = parse_reference(reference)
    budget = check_budget(budget_s, budget_bytes, jobs)
    if bases and (condition is not None or module):
        hint = "Leave out either --from, or --condition and --module."
        raise EdgeError("config.invalid", "--from names the versions, so what devices hold does not count", hint)
    with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
        number = int(client.get_version(model, version)["version"])
        reporter = make_reporter(as_json)
        result = _build(client, model, number, bases, condition or "*", module, budget, work, reporter)
    emit(as_json, result, built_lines(result))


@delta.command("push")
@click.argument("reference", metavar="MODEL:VERSION")
@click.option("--to", "target", required=True, metavar="HOST/NAME", help="Repository of any OCI registry.")
@registry_options
@json_option
def push(reference: str, target: str, as_json: bool, **options: Any) -> None:
    """Copy a version's deltas to another OCI registry, for example one behind a CDN.

    A registry that lists no referrers gets the index that the distribution specification puts in their place.
    """
    from packager.delta.foreign import copy_deltas
    from packager.deploy import parse_reference
    from packager.iotedge.image_remote import Reference, RegistryImage

    model, version = parse_reference(reference)
    place = Reference.parse(target)
    if target.removeprefix("docker://") != f"{place.host}/{place.repository}":
        hint = f"Name the repository alone: {place.host}/{place.repository}."
        raise EdgeError("config.invalid", f"{target!r} names a tag or a digest, and deltas have none to choose", hint)
    with (
        registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client,
        RegistryImage(place, options["ca_file"]) as image,
    ):
        number = int(client.get_version(model, version)["version"])
        result = copy_deltas(client, model, number, image, make_reporter(as_json))
    lines = [f"copied {len(result['deltas'])} deltas to {target}, {result['bytes_sent']} bytes sent"]
    lines += [f"  listed under the tag {result['fallback_tag']}"] if result["fallback_tag"] else []
    emit(as_json, result, lines)


# -- for deploy and ship -----------------------------------------------------------------------------------------------


def build_before(
    client: "RegistryClient", model: str, version: int, condition: str, options: dict[str, Any], reporter: "Reporter"
) -> JsonObject:
    """Make missing deltas before a deployment; what goes wrong is told beside what was made, and stops nothing."""
    from packager.delta.building import Built, check_budget

    budget, result = check_budget(options["budget_s"], options["budget_bytes"], options["jobs"]), Built()
    try:
        return _build(client, model, version, (), condition, options["module"], budget, None, reporter, result)
    except EdgeError as error:
        return result.to_json() | {"error": error.to_json()}


def check_unused(why: str, *more: str) -> None:
    """Refuse options of making deltas where none are made. For a running command.

    Args:
        why: What makes none, for the message.
        more: Names of further parameters that would mean nothing.

    Raises:
        EdgeError: `config.invalid`.
    """
    context = click.get_current_context()
    names = {"budget_s", "budget_bytes", "jobs", *more}
    given = [
        "/".join((*parameter.opts, *parameter.secondary_opts))
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise EdgeError(
            "config.invalid", f"{why} no deltas are made, so that {', '.join(given)} says nothing", "Leave one out."
        )


def forecast_link(is_dry_run: bool, is_waiting: bool, link_kbps: float | None) -> float:
    """The speed to forecast with.

    Raises:
        EdgeError: `config.invalid` for options that do not go together.
    """
    if is_dry_run and is_waiting:
        raise EdgeError("config.invalid", "--dry-run deploys nothing that --wait could wait for", "Leave one out.")
    if link_kbps is not None and not is_dry_run:
        raise EdgeError("config.invalid", "--link-kbps is for --dry-run", "Add --dry-run, or leave it out.")
    return LINK_KBPS_DEFAULT if link_kbps is None else link_kbps


def built_lines(result: JsonObject) -> list[str]:
    """What was made, for people."""
    lines = [
        f"  delta from version {item['base_version']}: {item['path']}, {item['bytes']} of {item['new_bytes']} bytes "
        f"({item['ratio']:.1%})"
        for item in result["deltas"]
    ]
    lines += [
        f"  no delta from version {item['base_version']} for {item['path']}: {item['reason']}"
        for item in result["skipped"]
        if item["reason"] != "there is one already"
    ]
    if "error" in result:
        lines.append(f"  warning: no more deltas were made: {result['error']['detail']} [{result['error']['code']}]")
    return lines or ["  no delta is missing"]


def forecast_lines(found: JsonObject) -> list[str]:
    """What a deployment would bring over the network, as a table."""
    lines = [
        f"{'holds':<24} {'platform':<16} {'devices':>8} {'by':<7} {'bytes each':>14} {'bytes in all':>16} {'s each':>9}"
    ]
    lines += [
        f"{row['base']:<24} {row['platform']:<16} {row['devices']:>8} {row['by']:<7} {row['bytes']:>14,} "
        f"{row['bytes_in_all']:>16,} {row['seconds']:>9,.1f}"
        for row in found["rows"]
    ]
    saved = 1 - found["bytes"] / found["bytes_full"] if found["bytes_full"] else 0.0
    lines.append(
        f"{found['devices']} devices, {found['bytes']:,} bytes; {found['bytes_full']:,} without deltas "
        f"({saved:.0%} saved); {found['current']} more run it already; link {found['link_kbps']:g} kbit/s"
    )
    return lines


def _build(
    client: "RegistryClient",
    model: str,
    version: int,
    bases: tuple[int, ...],
    condition: str,
    module: str,
    budget: Any,
    work: Path | None,
    reporter: "Reporter",
    result: Any = None,
) -> JsonObject:
    from packager.delta.building import build_deltas, common_bases
    from packager.files import disk_errors

    wanted = list(bases) or common_bases(client, model, version, condition, module)
    with contextlib.ExitStack() as stack:
        stack.enter_context(disk_errors(work or Path(tempfile.gettempdir())))
        folder = work
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lighterman-deltas-")))
        folder.mkdir(parents=True, exist_ok=True)
        return build_deltas(client, model, version, wanted, budget, folder, reporter, result).to_json()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise EdgeError("config.file-missing", f"{path} cannot be read: {error.strerror}") from None
    with file:
        yield file


def _require_digest(path: Path, file: Any, prefix: str, code: str) -> Digest:
    import hashlib

    file.seek(0)
    found = Digest.from_hex(hashlib.file_digest(file, "sha256").hexdigest())
    if not found.hex.startswith(prefix):
        raise EdgeError(
            code, f"{path} is {found}, the delta says sha256:{prefix}…", "Take the files that it was made of."
        )
    return found


def _made(base: Any, stream: Any, info: Any, out: Path, reporter: "Reporter") -> Digest:
    """Decode into a file beside `out`, check it, and give it its name."""
    import os

    from edge_delta.decode import decode
    from packager.files import disk_errors, sync_folder

    partial = out.with_name(out.name + ".partial")
    try:
        with disk_errors(partial), partial.open("w+b") as output:
            with reporter.task(f"making {out.name}", info.new_bytes) as advance:
                done = 0
                for point in decode(base, stream, output, base_bytes=info.base_bytes, new_bytes=info.new_bytes):
                    advance(point.output_bytes - done)
                    done = point.output_bytes
            digest = _require_digest(partial, output, info.new_prefix, "artifact.delta-invalid")
            output.flush()
            os.fsync(output.fileno())
            os.replace(partial, out)
        sync_folder(out.absolute().parent)
    finally:
        partial.unlink(missing_ok=True)
    return digest
