"""Options that describe a bundle, for every command that takes model files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge_contract.errors import ContractError
from edge_contract.names import model_name, relative_path
from edge_contract.tensors import TensorSpec
from packager.commands.common import FILE, FOLDER, pairs, stacked
from packager.spec import SPEC_FILE, Flags, MemberSpec, SourceFile, Spec

if TYPE_CHECKING:
    from cloud_registry.client import RegistryClient

_Function = TypeVar("_Function", bound=Callable[..., Any])

about_options = stacked(
    click.option("--description", default="", help="What the model is, for people."),
    click.option("--tag", "tags", multiple=True, metavar="K=V", help="Tag to search by; may be repeated."),
    click.option("--property", "properties", multiple=True, metavar="K=V", help="Property, such as accuracy=0.98."),
    click.option("--lineage-run-id", default="", help="Training run that made the model."),
    click.option("--git-commit", default="", help="Commit of the code that made it."),
    click.option("--dataset", default="", help="Data it was trained on."),
)

spec_options = stacked(
    click.option("--spec", "spec_file", type=FILE, help=f"Description file; {SPEC_FILE} here, if it is there."),
    click.option("--root", type=FOLDER, help="Folder the description file's paths may not leave; its own by default."),
)

bundle_options = stacked(
    click.option("--engine", default="", help="onnx, litert or script, where the file's ending does not say."),
    click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH", help="Target platform; repeat for more."),
    click.option("--hardware-id", "hardware_ids", multiple=True, help="Hardware it is for; any by default."),
    click.option("--release-counter", type=click.IntRange(1), help="Never falls on a device; the version by default."),
    click.option("--extra-file", "extra_files", type=FILE, multiple=True, help="Another file that the model needs."),
    click.option("--code", type=FOLDER, multiple=True, help="Folder of Python code that a script imports."),
    click.option("--wheel", "wheels", type=FILE, multiple=True, help="Python package that a script imports."),
    click.option("--requirements", type=FILE, help="Requirements file to resolve into wheels; needs --resolve."),
    click.option("--resolve/--no-resolve", default=None, help="Let pip download wheels for the requirements."),
    click.option("--golden", type=FILE, help="Golden vectors (.npz, .safetensors); outputs are made when missing."),
    click.option("--rtol", type=click.FloatRange(0), help="Relative tolerance of the golden vectors."),
    click.option("--atol", type=click.FloatRange(0), help="Absolute tolerance of the golden vectors."),
    click.option("--trust-golden/--run-golden", default=None, help="Do not run the model here, or do."),
    click.option("--measure-load-peak/--no-measure-load-peak", default=None, help="Measure the memory of loading."),
    click.option("--probation-ms", type=click.IntRange(0), help="How long a device watches a fresh activation."),
    click.option("--sampling-ratio", type=click.FloatRange(0, 1), help="Share of requests whose data are collected."),
    click.option("--config", "config", multiple=True, metavar="K=V", help="Environment of scripts on the device."),
    click.option(
        "--bind", "bindings", multiple=True, metavar="IN=OUT", help="MQTT topics of the model's inputs and predictions."
    ),
    click.option(
        "--pipeline", "pipelines", multiple=True, metavar="NAME=A,B,...", help="Models that run one after another."
    ),
    click.option("--option", "knobs", multiple=True, metavar="[MEMBER.]K=V", help="Engine option, such as threads=1."),
    click.option(
        "--batch", "batching", multiple=True, metavar="[MEMBER=]ROWS:US", help="Compute up to ROWS together, after US."
    ),
    click.option("--doc", "docs", type=FILE, multiple=True, help="Licence, model card or other document."),
)


def flags_from(options: dict[str, Any], name: str, version: int, files: Sequence[str]) -> Flags:
    """The flags of a command as one value; takes what belongs to it out of `options`.

    Args:
        options: Keyword arguments of the command; groups of options that it does not have are simply missing.
        name: Name of the model, or empty.
        version: Its version, or 0.
        files: Model files, `FILE` or `NAME=FILE`; without names the first is the model and the others belong to it.

    Raises:
        EdgeError: `config.invalid`.
    """
    members, extra = _split(files)
    lineage = {
        "run_id": options.pop("lineage_run_id", ""),
        "git_commit": options.pop("git_commit", ""),
        "dataset": options.pop("dataset", ""),
    }
    return Flags(
        name=name,
        version=version,
        members=members,
        extra_files=(*extra, *options.pop("extra_files", ())),
        engine=options.pop("engine", ""),
        platforms=tuple(options.pop("platforms", ())),
        hardware_ids=tuple(options.pop("hardware_ids", ())),
        release_counter=options.pop("release_counter", None) or 0,
        code=tuple(options.pop("code", ())),
        wheels=tuple(options.pop("wheels", ())),
        requirements=options.pop("requirements", None),
        is_resolved=options.pop("resolve", None),
        golden=options.pop("golden", None),
        rtol=options.pop("rtol", None),
        atol=options.pop("atol", None),
        is_golden_trusted=options.pop("trust_golden", None),
        probation_ms=options.pop("probation_ms", None),
        sampling_ratio=options.pop("sampling_ratio", None),
        is_peak_measured=options.pop("measure_load_peak", None),
        config=pairs(options.pop("config", ()), "--config"),
        bindings=tuple(pairs(options.pop("bindings", ()), "--bind").items()),
        pipelines=tuple(options.pop("pipelines", ())),
        options=tuple(_knob(text) for text in options.pop("knobs", ())),
        batching=tuple(_batch(text) for text in options.pop("batching", ())),
        docs=tuple(options.pop("docs", ())),
        description=options.pop("description", ""),
        tags=pairs(options.pop("tags", ()), "--tag"),
        properties=pairs(options.pop("properties", ()), "--property"),
        lineage={key: value for key, value in lineage.items() if value},
    )


def _knob(text: str) -> tuple[str, str]:
    """`MEMBER.KEY=VALUE` or `KEY=VALUE`; a name of a member may have dots itself, an option has none."""
    place, mark, value = text.partition("=")
    member, _, key = place.rpartition(".")
    return member, f"{key}{mark}{value}"


def _batch(text: str) -> tuple[str, str]:
    member, mark, rest = text.rpartition("=")
    return (member, rest) if mark else ("", text)


def _split(files: Sequence[str]) -> tuple[tuple[tuple[str, Path], ...], tuple[Path, ...]]:
    named = [_named(text) for text in files]
    if all(name for name, _ in named) or len(named) == 1:
        return tuple(named), ()
    return (named[0],), tuple(path for _, path in named[1:])


def _named(text: str) -> tuple[str, Path]:
    name, mark, rest = text.partition("=")
    if mark and not Path(text).exists():
        try:
            return model_name(name), Path(rest)
        except ContractError:
            return "", Path(text)
    return "", Path(text)


def spec_from(options: dict[str, Any], flags: Flags, base: Spec | None = None) -> Spec:
    """The description that `--spec`, `--root` and the flags give together.

    Raises:
        EdgeError: as `packager.specload.load_spec`.
    """
    from packager.specload import load_spec

    file, root = options.pop("spec_file", None), options.pop("root", None)
    if file is None and base is None and not flags.members and Path(SPEC_FILE).is_file():
        file = Path(SPEC_FILE)
    return load_spec(file, flags, root, base)


def from_registry(client: "RegistryClient", model: str, version: int | str, folder: Path) -> Spec:
    """A description of a registered version, whose files are downloaded to a folder.

    Raises:
        EdgeError: `cloud.not-found`, `config.invalid`, `network.*`, `artifact.*`.
    """
    from packager.signature import FORMAT_BY_ENGINE

    record = client.get_version(model, version)
    engines = {form: engine for engine, form in FORMAT_BY_ENGINE.items()}
    files = []
    for item in record["files"]:
        path = relative_path(item["path"])
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download(model, int(record["version"]), path, target)
        files.append(SourceFile(target, path))
    entry = record.get("entry") or files[0].path
    first = next(file for file in files if file.path == entry)
    rest = tuple(file for file in files if file.path != entry)
    inputs, outputs = (
        tuple(TensorSpec.from_json(item, "cloud.unavailable") for item in record.get(side) or ())
        for side in ("inputs", "outputs")
    )
    member = MemberSpec(model_name(model), engines[record["format"]], first, rest, inputs, outputs)
    return Spec(name=model, members=(member,), version=int(record["version"]))
