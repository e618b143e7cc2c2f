"""Rows of models and versions as records, and back. Functions work inside the caller's transaction."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select

from cloud_registry.adapters.sql.assigning import read_bundle
from cloud_registry.adapters.sql.tables import aliases, bundles, labels, models, version_files, versions
from cloud_registry.core.records import Bundle, Changes, File, Model, NewVersion, Removed, Version
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.tensors import TensorSpec

_NUMBER_DIGITS_MAX: Final = 15


def no_model(name: str) -> EdgeError:
    """The error for a model that is not there."""
    return EdgeError(
        "cloud.not-found", f"there is no model {name[:80]!r}", "Create it first, or see the list of models."
    )


def resolve(connection: Connection, model: str, reference: str) -> int:
    """The number that a number or alias stands for.

    Raises:
        EdgeError: `cloud.not-found`.
    """
    if connection.execute(select(models.c.name).where(models.c.name == model)).first() is None:
        raise no_model(model)
    number: int | None
    if reference[:1].isdecimal():
        # An alias never starts with a digit; "07" and numbers beyond the column are no versions either.
        is_number = reference.isascii() and reference.isdecimal() and len(reference) <= _NUMBER_DIGITS_MAX
        is_it = versions.c.number == (int(reference) if is_number and reference[0] != "0" else 0)
        number = connection.execute(select(versions.c.number).where(versions.c.model == model, is_it)).scalar()
    else:
        query = select(aliases.c.number).where(aliases.c.model == model, aliases.c.alias == reference)
        number = connection.execute(query).scalar()
    if number is None:
        raise EdgeError("cloud.not-found", f"{model} has no version or alias {reference[:80]!r}")
    return int(number)


def write_labels(connection: Connection, model: str, number: int, changes: Changes) -> None:
    """Replace the tags and properties of a model (number 0) or version, as far as they change."""
    for kind, values in (("tag", changes.tags), ("property", changes.properties)):
        if values is None:
            continue
        connection.execute(
            delete(labels).where(labels.c.model == model, labels.c.number == number, labels.c.kind == kind)
        )
        if values:
            connection.execute(
                insert(labels),
                [
                    {"model": model, "number": number, "kind": kind, "key": key, "value": value}
                    for key, value in values.items()
                ],
            )


def insert_version(
    connection: Connection, model: str, number: int, content: NewVersion, created_ms: int, by: str
) -> None:
    """Store a version with its files and labels."""
    connection.execute(
        insert(versions).values(
            model=model,
            number=number,
            format=content.format,
            entry=content.entry,
            description=content.description,
            lineage=json.dumps(dict(content.lineage)),
            inputs=json.dumps([item.to_json() for item in content.inputs]),
            outputs=json.dumps([item.to_json() for item in content.outputs]),
            created_ms=created_ms,
            created_by=by,
        )
    )
    connection.execute(
        insert(version_files),
        [
            {
                "model": model,
                "number": number,
                "path": file.path,
                "position": position,
                "digest": str(file.digest),
                "size": file.size,
            }
            for position, file in enumerate(content.files)
        ],
    )
    write_labels(connection, model, number, Changes(tags=content.tags, properties=content.properties))


def bundle_values(model: str, number: int, bundle: Bundle) -> dict[str, Any]:
    """The columns of a bundle."""
    return {
        "model": model,
        "number": number,
        "platform": bundle.platform,
        "manifest": str(bundle.manifest),
        "manifest_bytes": bundle.manifest_bytes,
        "release_counter": bundle.release_counter,
        "hardware_ids": json.dumps(list(bundle.hardware_ids)),
        "repository": bundle.repository,
        "index_digest": str(bundle.index),
    }


def read_removed(connection: Connection, model: str, number: int | None) -> Removed:
    """What a version (none: every version) of a model has in the blob storage."""
    of_files, of_bundles = version_files.c.model == model, bundles.c.model == model
    if number is not None:
        of_files &= version_files.c.number == number
        of_bundles &= bundles.c.number == number
    digests = connection.execute(select(version_files.c.digest).where(of_files).distinct()).scalars()
    found = connection.execute(select(bundles).where(of_bundles).order_by(bundles.c.number, bundles.c.platform))
    return Removed(tuple(Digest(text) for text in digests), tuple(read_bundle(row) for row in found))


def read_models(connection: Connection, found: Sequence[Any]) -> tuple[Model, ...]:
    """Rows of models with what belongs to them, in the same order."""
    names = [row.name for row in found]
    if not names:
        return ()
    newest = select(versions.c.model, func.max(versions.c.number).label("latest"))
    newest = newest.where(versions.c.model.in_(names)).group_by(versions.c.model)
    latest = {row.model: row.latest for row in connection.execute(newest)}
    pointers: dict[str, dict[str, int]] = defaultdict(dict)
    query = select(aliases).where(aliases.c.model.in_(names)).order_by(aliases.c.alias)
    for row in connection.execute(query):
        pointers[row.model][row.alias] = row.number
    texts: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    label_query = select(labels).where(labels.c.model.in_(names), labels.c.number == 0).order_by(labels.c.key)
    for row in connection.execute(label_query):
        texts[(row.model, row.kind)][row.key] = row.value
    return tuple(
        Model(
            name=row.name,
            description=row.description,
            tags=texts[(row.name, "tag")],
            properties=texts[(row.name, "property")],
            latest=latest.get(row.name),
            aliases=pointers[row.name],
            created_ms=row.created_ms,
            created_by=row.created_by,
        )
        for row in found
    )


def read_versions(connection: Connection, model: str, found: Sequence[Any]) -> tuple[Version, ...]:
    """Rows of one model's versions with what belongs to them, in the same order."""
    numbers = [row.number for row in found]
    if not numbers:
        return ()
    files: dict[int, list[File]] = defaultdict(list)
    of_files = (version_files.c.model == model) & version_files.c.number.in_(numbers)
    for row in connection.execute(select(version_files).where(of_files).order_by(version_files.c.position)):
        files[row.number].append(File(row.path, Digest(row.digest), row.size))
    pointers: dict[int, list[str]] = defaultdict(list)
    of_aliases = (aliases.c.model == model) & aliases.c.number.in_(numbers)
    for row in connection.execute(select(aliases).where(of_aliases).order_by(aliases.c.alias)):
        pointers[row.number].append(row.alias)
    texts: dict[tuple[int, str], dict[str, str]] = defaultdict(dict)
    of_labels = (labels.c.model == model) & labels.c.number.in_(numbers)
    for row in connection.execute(select(labels).where(of_labels).order_by(labels.c.key)):
        texts[(row.number, row.kind)][row.key] = row.value
    return tuple(
        Version(
            model=model,
            number=row.number,
            content=NewVersion(
                format=row.format,
                entry=row.entry,
                files=tuple(files[row.number]),
                description=row.description,
                tags=texts[(row.number, "tag")],
                properties=texts[(row.number, "property")],
                lineage=json.loads(row.lineage),
                inputs=tuple(TensorSpec.from_json(item) for item in json.loads(row.inputs)),
                outputs=tuple(TensorSpec.from_json(item) for item in json.loads(row.outputs)),
            ),
            aliases=tuple(pointers[row.number]),
            created_ms=row.created_ms,
            created_by=row.created_by,
        )
        for row in found
    )
