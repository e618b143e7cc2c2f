"""`packager iotedge module`: the container image of a module, made without a container engine."""

# ruff: noqa: D301  # a backslash and b is click's mark of a paragraph that keeps its lines

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edge_contract.errors import EdgeError
from packager.commands.common import FILE, FOLDER, emit, json_option, make_reporter, pairs, source_date_epoch

if TYPE_CHECKING:
    from packager.iotedge.image import AgentParts
    from packager.iotedge.image_base import ImageSource

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@click.command("module")
@click.argument("bundle", metavar="BUNDLE_DIR", type=FOLDER)
@click.option("--base", required=True, metavar="LAYOUT[:TAG]|REF", help="Image to build upon; it has Python.")
@click.option("--out", required=True, type=FOLDER, help="Folder for the image, an OCI layout.")
@click.option("--wheels", multiple=True, type=FOLDER, help="Folder of wheels to install the agent from; repeat it.")
@click.option("--lock", multiple=True, type=FILE, help="Requirements with hashes; other wheels are refused. Repeat it.")
@click.option("--extra", multiple=True, metavar="NAME", help="Extra of the agent; what the bundle needs by default.")
@click.option(
    "--base-provides",
    multiple=True,
    metavar="NAME",
    help="Distribution that the base has where no wheel of it fits; repeat it.",
)
@click.option("--python", metavar="PATH", help="Python of the base, like /usr/bin/python3.11; found by default.")
@click.option("--platform", multiple=True, metavar="OS/ARCH", help="All that bundle and base have by default.")
@click.option("--tag", default="", metavar="TAG", help="Tag in the layout; the version of the model by default.")
@click.option("--env", multiple=True, metavar="K=V", help="Environment of the image; no place for secrets.")
@click.option("--label", multiple=True, metavar="K=V", help="Label of the image.")
@click.option("--compress/--no-compress", default=True, show_default=True, help="Pack new layers with gzip.")
@click.option("--push", "reference", metavar="REF", help="Send the image to a registry, as HOST/NAME:TAG.")
@click.option("--ca-file", type=FILE, help="CA certificate of registries with a private authority.")
@json_option
def module(bundle: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Build the image of an IoT Edge module that serves a bundle, without a container engine.

    \b
    Examples:
      packager iotedge module bundle --base python-slim --wheels wheels --lock requirements.lock --out image
      packager iotedge module bundle --base registry.example/edge/agent:1 --out image \\
        --push registry.example/edge/digits:7

    The image is the base, a layer with the agent, and the bundle as content that the agent takes in once signed
    metadata lead to it. Nothing of base, wheels or bundle is run. A base with the label io.lighterman.agent needs no
    wheels. The same inputs give the same bytes; SOURCE_DATE_EPOCH is the time of creation that the image states.
    """
    from packager.iotedge.image import ImageRequest, build_image
    from packager.iotedge.image_push import push_image
    from packager.iotedge.image_remote import Reference, RegistryImage
    from packager.layout import Layout

    reporter = make_reporter(as_json)
    target = None if options["reference"] is None else Reference.parse(options["reference"])
    if target is not None and target.target.startswith("sha256:"):
        raise EdgeError("config.invalid", "--push names a digest", "Name a tag: HOST/NAME:TAG.")
    with ExitStack() as stack:
        base = _base(options["base"], options["ca_file"])
        stack.callback(base.close)
        request = ImageRequest(
            bundle=Layout(bundle),
            base=base,
            agent=_agent(options),
            platforms=tuple(options["platform"]),
            tag=options["tag"],
            env=pairs(options["env"], "--env"),
            labels=pairs(options["label"], "--label"),
            created_s=source_date_epoch() or 0,
            is_compressed=options["compress"],
        )
        built = build_image(request, out, reporter)
        facts = {**built.to_json(), "folder": str(out), "pushed": None}
        lines = [f"built {out}:{built.tag}, {built.index}, for {', '.join(built.manifests)}"]
        if target is not None:
            image = stack.enter_context(RegistryImage(target, options["ca_file"]))
            sent = push_image(image, out, built.index, target.target, reporter)
            facts["pushed"] = {"reference": str(target), "sent_bytes": sent}
            lines.append(f"pushed {target}")
    emit(as_json, facts, lines)


def _base(text: str, ca: Path | None) -> "ImageSource":
    from packager.iotedge.image_base import find_layout
    from packager.iotedge.image_remote import Reference, RegistryImage

    return find_layout(text) or RegistryImage(Reference.parse(text), ca)


def _agent(options: dict[str, Any]) -> "AgentParts | None":
    """What the agent is installed from.

    Raises:
        EdgeError: `config.invalid` for options about wheels without wheels.
    """
    if not options["wheels"]:
        for name in ("lock", "extra", "base_provides", "python"):
            if options[name]:
                flag = f"--{name.replace('_', '-')}"
                raise EdgeError("config.invalid", f"{flag} says how to install wheels, and none were named")
        return None
    from packager.iotedge.image import AgentParts
    from packager.iotedge.image_python import parse_interpreter
    from packager.iotedge.image_wheels import WheelHouse, normal_name, read_locks

    for name in (*options["extra"], *options["base_provides"]):
        if not _NAME.fullmatch(name):
            raise EdgeError("config.invalid", f"{name!r} is not the name of a distribution or an extra")
    return AgentParts(
        wheels=WheelHouse(options["wheels"]),
        lock=read_locks(options["lock"]) if options["lock"] else None,
        extras=options["extra"] or None,
        provided=frozenset(normal_name(name) for name in options["base_provides"]),
        interpreter=None if options["python"] is None else parse_interpreter(options["python"]),
    )
