"""Commands about models."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cloud_registry.cli.options import pairs, remote
from cloud_registry.cli.output import print_fields, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from cloud_registry.client import RegistryClient


@click.group()
def models() -> None:
    """Search, show, download and delete models; move aliases."""


@models.command("search")
@click.argument("query", default="")
@click.option("--name", default="", help="Exact name, or with * for any characters.")
@click.option("--format", default="", help="onnx, tflite or script.")
@click.option("--tag", "tags", multiple=True, help="key=value, repeatable.")
@click.option("--property", "properties", multiple=True, help="key=value, repeatable.")
@click.option("--created-after", default="", help="RFC 3339, for example 2026-03-01.")
@click.option("--created-before", default="", help="RFC 3339.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="Models to show.")
@click.option("--cursor", default="", help="Go on behind an earlier page: its `next`.")
@remote
def search_models(
    query: str,
    name: str,
    format: str,
    tags: tuple[str, ...],
    properties: tuple[str, ...],
    created_after: str,
    created_before: str,
    limit: int,
    cursor: str,
    client: "RegistryClient",
    as_json: bool,
) -> None:
    """Find models; QUERY is a text in the name or a description."""
    page = client.search(
        name=name,
        query=query,
        format=format,
        tags=pairs(tags, "tag"),
        properties=pairs(properties, "property"),
        created_after=created_after,
        created_before=created_before,
        limit=limit,
        cursor=cursor,
    )
    if as_json:
        print_json(page)
        return
    rows = [
        (item["name"], item["latest_version"], item["aliases"], item["tags"], item["created_at"])
        for item in page["items"]
    ]
    print_table(("NAME", "LATEST", "ALIASES", "TAGS", "CREATED"), rows)
    if page["next"]:
        click.echo(f"more: --cursor {page['next']}")


@models.command("show")
@click.argument("name")
@click.argument("version", default="")
@remote
def show_model(name: str, version: str, client: "RegistryClient", as_json: bool) -> None:
    """Show a model with its newest versions, or one VERSION (number or alias) with its files and bundles.

    `digits 2` and `digits:2` mean the same.
    """
    name, version = _named(name, version)
    if version:
        record = client.get_version(name, version)
        record["bundles"] = client.bundles(name, record["version"])
        if as_json:
            print_json(record)
            return
        files, bundles = record.pop("files"), record.pop("bundles")
        print_fields(record)
        click.echo()
        print_table(("FILE", "BYTES", "DIGEST"), [(item["path"], item["size"], item["digest"]) for item in files])
        click.echo()
        print_table(("PLATFORM", "MANIFEST"), [(item["platform"], item["digest"]) for item in bundles])
        return
    record = client.model(name)
    versions = client.versions(name)["items"]
    if as_json:
        print_json(record | {"versions": versions})
        return
    print_fields(record)
    click.echo()
    rows = [(item["version"], item["format"], item["aliases"], item["tags"], item["created_at"]) for item in versions]
    print_table(("VERSION", "FORMAT", "ALIASES", "TAGS", "CREATED"), rows)


@models.command("download")
@click.argument("name")
@click.argument("version")
@click.argument("path")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Where it goes; the file's own name unless given."
)
@remote
def download_file(
    name: str, version: str, path: str, output: Path | None, client: "RegistryClient", as_json: bool
) -> None:
    """Download one file of a version, verified, going on where an earlier attempt was cut."""
    target = output or Path(Path(path).name)
    size = client.download(name, version, path, target, progress_bar(path))
    if as_json:
        print_json({"path": str(target), "size": size})
    else:
        click.echo(f"{target}  {size} bytes")


@models.command("delete")
@click.argument("name")
@click.argument("version", default="")
@click.option("--yes", is_flag=True, help="Do not ask.")
@remote
def delete_model(name: str, version: str, yes: bool, client: "RegistryClient", as_json: bool) -> None:
    """Delete a model, or one VERSION of it (`digits 2` or `digits:2`).

    It is refused, with the list, while something needs it.
    """
    name, version = _named(name, version)
    what = f"{name} version {version}" if version else f"{name} with all its versions"
    if not yes:
        click.confirm(f"Delete {what}?", abort=True, err=True)
    if version:
        client.delete_version(name, version)
    else:
        client.delete_model(name)
    if as_json:
        print_json({"deleted": what})
    else:
        click.echo(f"deleted {what}")


@models.group("alias")
def alias() -> None:
    """Show, set and remove aliases."""


@alias.command("set")
@click.argument("name")
@click.argument("alias_text", metavar="ALIAS")
@click.argument("version", type=click.IntRange(1))
@remote
def set_alias(name: str, alias_text: str, version: int, client: "RegistryClient", as_json: bool) -> None:
    """Point ALIAS at VERSION."""
    changed = client.set_alias(name, alias_text, version)
    if as_json:
        print_json(changed)
    else:
        click.echo(f"{name}: {alias_text} is version {changed['version']}")


@alias.command("remove")
@click.argument("name")
@click.argument("alias_text", metavar="ALIAS")
@remote
def remove_alias(name: str, alias_text: str, client: "RegistryClient", as_json: bool) -> None:
    """Remove ALIAS; its history stays."""
    client.delete_alias(name, alias_text)
    if as_json:
        print_json({"removed": alias_text})
    else:
        click.echo(f"{name}: {alias_text} removed")


@alias.command("list")
@click.argument("name")
@remote
def list_aliases(name: str, client: "RegistryClient", as_json: bool) -> None:
    """Where each alias of a model points."""
    _print_aliases(client.aliases(name), as_json)


@alias.command("history")
@click.argument("name")
@click.argument("alias_text", metavar="ALIAS")
@remote
def alias_history(name: str, alias_text: str, client: "RegistryClient", as_json: bool) -> None:
    """Every change of ALIAS, oldest first."""
    _print_aliases(client.alias_history(name, alias_text), as_json)


def _named(name: str, version: str) -> tuple[str, str]:
    """Name and version, from `name version` or `name:version`."""
    if version or ":" not in name:
        return name, version
    head, _, tail = name.partition(":")
    return head, tail


def _print_aliases(items: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        print_json(items)
        return
    rows = [(item["alias"], item["version"], item["changed_at"], item["changed_by"]) for item in items]
    print_table(("ALIAS", "VERSION", "SINCE", "BY"), rows)


COMMANDS: Final = (models,)
