"""`packager azureml import`: a model version from an Azure ML or MLflow registry."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

import tempfile
from pathlib import Path
from typing import Any

import click

from edge_contract.errors import EdgeError
from packager.commands.common import FILE, FOLDER, emit, json_option, make_reporter, registry, registry_options
from packager.limits import MLFLOW_BYTES_DEFAULT


@click.group("azureml")
def azureml() -> None:
    """Models from Azure ML and other MLflow registries."""


@azureml.command("import")
@click.argument("selector", metavar="MODEL")
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", metavar="URI", help="MLflow server, or azureml://….")
@click.option("--registry-uri", envvar="MLFLOW_REGISTRY_URI", metavar="URI", help="Where models are, when elsewhere.")
@click.option("--out", type=FOLDER, help="Write a folder that packager build takes.")
@click.option("--registry", "is_registered", is_flag=True, help="Register it in our registry (--url, LIGHTERMAN_URL).")
@click.option("--name", default="", help="Name of the model here; else the registry's in our letters.")
@click.option("--file", default="", metavar="PATH", help="Which file is the model, where there are several.")
@click.option("--script", type=FILE, help="A score.py that loads the files, for models that devices cannot run alone.")
@click.option("--allow-pickle", is_flag=True, help="With --script: devices may load the version's pickled files.")
@click.option("--ignore-signature", is_flag=True, help="The model file's own tensors stand where MLmodel has others.")
@click.option("--max-bytes", type=click.IntRange(1), default=MLFLOW_BYTES_DEFAULT, show_default=True)
@registry_options
@json_option
def import_(
    selector: str,
    tracking_uri: str | None,
    registry_uri: str | None,
    out: Path | None,
    is_registered: bool,
    script: Path | None,
    max_bytes: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Import a model version: NAME, NAME/VERSION, NAME/latest, NAME/Production or NAME@ALIAS.

    \b
    Examples:
      packager azureml import digits@champion --tracking-uri https://mlflow.example --out digits
      packager azureml import digits/7 --tracking-uri azureml://… --registry --url https://registry.example

    Credentials come from the environment alone: MLFLOW_TRACKING_TOKEN, MLFLOW_TRACKING_USERNAME and …_PASSWORD, or what
    az login left. Importing the same version again changes nothing but its tags and properties.
    """
    from packager.importing import Request, fetch, registered
    from packager.mlflowread import MlflowReader

    if not tracking_uri:
        hint = "Give --tracking-uri, or set MLFLOW_TRACKING_URI."
        raise EdgeError("config.invalid", "no MLflow registry was named", hint)
    if out is None and not is_registered:
        raise EdgeError("config.invalid", "nothing says where to", "Give --out FOLDER, --registry, or both.")
    if options["allow_pickle"] and script is None:
        raise EdgeError(
            "config.invalid", "--allow-pickle says something about scripts alone", "Give --script score.py."
        )
    if options["file"] and script is not None:
        raise EdgeError("config.invalid", "--file and --script exclude each other", "A script takes every file.")
    request = Request(
        selector,
        max_bytes,
        name=options["name"],
        file=options["file"],
        script=script,
        allow_pickle=options["allow_pickle"],
        is_signature_ignored=options["ignore_signature"],
    )
    version = None
    with tempfile.TemporaryDirectory() as temporary:
        folder = out.absolute() if out is not None else Path(temporary) / "import"
        notes = fetch(MlflowReader(tracking_uri, registry_uri or ""), request, folder)
        if is_registered:
            with registry(options["url"], options["token"], options["token_file"], options["ca_file"]) as client:
                version = registered(client, folder, notes, make_reporter(as_json))
    lines = [f"imported {notes['model']}/{notes['version']} as {notes['name']} ({notes['engine']})"]
    lines += (
        [f"  in {out}: packager build --spec {out}/lighterman.toml --version N --out BUNDLE"] if out is not None else []
    )
    if version is not None:
        lines.append(
            f"  {'registered' if version['is_new'] else 'there before'}: {version['name']}:{version['version']}"
        )
    lines += [f"  warning: {text}" for text in notes["warnings"]]
    emit(as_json, {"imported": notes, "folder": None if out is None else str(out), "version": version}, lines)
