"""`packager service`: files that deploy a bundle as a web service."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from edge_contract.errors import EdgeError
from packager.commands.common import FILE, FOLDER, emit, json_option
from packager.service.limits import (
    CPU_MILLIS_DEFAULT,
    CPU_MILLIS_MAX,
    DRAIN_S_DEFAULT,
    LINGER_S_DEFAULT,
    PORT_DEFAULT,
    REPLICAS_MAX,
    REPLICAS_MAX_DEFAULT,
    REPLICAS_MIN_DEFAULT,
    START_S_DEFAULT,
    TRUST_BYTES_MAX,
    UTILIZATION_DEFAULT,
)

_STDOUT: Final = Path("-")
_KUBERNETES_ONLY: Final = ("namespace", "replicas_min", "replicas_max", "utilization", "has_network_policy")
_COMPOSE_ONLY: Final = ("publish",)
_ABOUT: Final = """Written by `packager service`; the same bundle and options give the same bytes.
The digest pins the bundle: for another version, write the file again."""


@click.command("service")
@click.argument("bundle", metavar="BUNDLE_DIR", type=FOLDER)
@click.option("--to", "form", required=True, type=click.Choice(["kubernetes", "compose"]), help="What to write.")
@click.option("--image", required=True, metavar="IMAGE_REF", help="OCI image that runs edge-agent serve.")
@click.option("--name", default="", help="Name of what is deployed; the model's name by default.")
@click.option("--namespace", default="", help="Kubernetes namespace; that of whoever applies the file by default.")
@click.option("--registry", default="", metavar="URL", help="Pull the bundle from here; the image holds it by default.")
@click.option("--bundle-path", default="/bundle", show_default=True, help="Where the image holds it.")
@click.option("--secret", "token_secret", default="", help="Secret whose key `token` the registry wants.")
@click.option("--access-secret", default="", help="Secret whose key `token` clients have to present.")
@click.option("--root", type=FILE, help="Root metadata, to have signatures verified beside the pinned digest.")
@click.option("--ca", type=FILE, help="Certificates to trust for the registry; the image's own by default.")
@click.option("--hardware-id", default="", help="Hardware of the nodes, where the bundle is signed for certain ones.")
@click.option("--memory", "memory_mib", type=click.IntRange(1), help="Memory limit, MiB; from the measured load peak.")
@click.option(
    "--cpu-millis", type=click.IntRange(1, CPU_MILLIS_MAX), default=CPU_MILLIS_DEFAULT, show_default=True,
    help="Promised processors, thousandths.",
)  # fmt: skip
@click.option(
    "--cpu-limit-millis", type=click.IntRange(1, CPU_MILLIS_MAX), help="Most processors; no limit by default."
)
@click.option("--replicas-min", type=click.IntRange(1, REPLICAS_MAX), default=REPLICAS_MIN_DEFAULT, show_default=True)
@click.option("--replicas-max", type=click.IntRange(1, REPLICAS_MAX), default=REPLICAS_MAX_DEFAULT, show_default=True)
@click.option(
    "--utilization", type=click.IntRange(1, 100), default=UTILIZATION_DEFAULT, show_default=True,
    help="Percent of the promised processors at which more pods are started.",
)  # fmt: skip
@click.option("--port", type=click.IntRange(1024, 65_535), default=PORT_DEFAULT, show_default=True)
@click.option("--publish", default=f"127.0.0.1:{PORT_DEFAULT}", show_default=True, help="Compose: where on the host.")
@click.option("--start-seconds", "start_s", type=click.IntRange(1, 3600), default=START_S_DEFAULT, show_default=True)
@click.option("--linger-seconds", "linger_s", type=click.IntRange(0, 600), default=LINGER_S_DEFAULT, show_default=True)
@click.option("--drain-seconds", "drain_s", type=click.IntRange(1, 3600), default=DRAIN_S_DEFAULT, show_default=True)
@click.option("--allow-pickle", is_flag=True, help="Let scripts load pickles, where the bundle wants it too.")
@click.option("--allow-unproved", is_flag=True, help="Serve a bundle without golden vectors.")
@click.option("--network-policy", "has_network_policy", is_flag=True, help="Kubernetes: write a NetworkPolicy too.")
@click.option("--out", type=FILE, default=_STDOUT, show_default=True, help="File to write; - prints it.")
@json_option
@click.pass_context
def service(ctx: click.Context, /, bundle: Path, form: str, out: Path, as_json: bool, **options: Any) -> None:
    """Write what deploys a bundle as a web service: for Kubernetes, or for Compose on one machine.

    \b
    Examples:
      packager service bundle --to kubernetes --image registry.example/serve:1 \\
        --registry https://models.example --secret models --root keys/image.root.json --out service.yaml
      packager service bundle --to compose --image registry.example/digits:3 --out compose.yaml

    The service runs `edge-agent serve` and takes the bundle with this digest and no other. Its memory comes from the
    load peak that `packager build --measure-load-peak` measured.
    """
    from packager.files import write_durably
    from packager.layout import Layout
    from packager.service.compose import compose
    from packager.service.kubernetes import kubernetes
    from packager.service.request import Facts, ServiceRequest
    from packager.service.yamltext import to_yaml

    _require_used(ctx, form)
    root, ca, memory_mib = options.pop("root"), options.pop("ca"), options.pop("memory_mib")
    request = ServiceRequest(
        facts=Facts.of(Layout(bundle)),
        root="" if root is None else _read_text(root, "--root"),
        ca="" if ca is None else _read_text(ca, "--ca"),
        memory_bytes=(memory_mib or 0) * 2**20,
        cpu_limit_millis=options.pop("cpu_limit_millis") or 0,
        **options,
    ).check()
    documents = kubernetes(request) if form == "kubernetes" else [compose(request)]
    text = to_yaml(documents, _ABOUT)
    facts = {"name": request.service_name, "to": form, "bundle": str(request.facts.index), "documents": documents}
    if out == _STDOUT:
        emit(as_json, facts, [text.removesuffix("\n")])
        return
    write_durably(out, text.encode())
    del facts["documents"]
    emit(as_json, {**facts, "out": str(out)}, [f"wrote {out}: {request.facts.model}:{request.facts.version}"])


def _require_used(ctx: click.Context, form: str) -> None:
    """Require that no option was given which this form has no place for.

    Raises:
        EdgeError: `config.invalid`.
    """
    unused = set(_KUBERNETES_ONLY if form == "compose" else _COMPOSE_ONLY)
    unused |= {"bundle_path"} if ctx.params["registry"] else set()
    for option in ctx.command.params:
        is_given = ctx.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if option.name in unused and is_given:
            what = "a bundle that is pulled" if option.name == "bundle_path" else f"--to {form}"
            raise EdgeError("config.invalid", f"{option.opts[0]} means nothing for {what}", "Leave it out.")


def _read_text(path: Path, option: str) -> str:
    """A file as it is.

    Raises:
        EdgeError: `config.file-missing`, `config.invalid`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(TRUST_BYTES_MAX + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeError) as error:
        raise EdgeError("config.file-missing", f"{option} {path} cannot be read: {error}") from None
    if not 0 < len(data) <= TRUST_BYTES_MAX:
        raise EdgeError("config.invalid", f"{option} {path} is empty, or longer than {TRUST_BYTES_MAX} bytes")
    return text
