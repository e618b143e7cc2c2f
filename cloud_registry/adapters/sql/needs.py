"""What still needs a model or a version: aliases, active deployments, devices that run it."""

from typing import Final

from sqlalchemy import Connection, func, select

from cloud_registry.adapters.sql.tables import aliases, deployments, device_modules
from cloud_registry.core.records import needed_by
from edge_contract.jsonio import JsonObject

_LISTED_MAX: Final = 100


def needs_of(connection: Connection, model: str, number: int | None) -> tuple[list[JsonObject], int]:
    """At most `_LISTED_MAX` things of each kind that need a version (none: any version), and the count of all."""
    needs: list[JsonObject] = []
    count = 0
    for kind, table, column in (
        ("alias", aliases, aliases.c.alias),
        ("deployment", deployments, deployments.c.id),
        ("device", device_modules, device_modules.c.device),
    ):
        conditions = [table.c.model == model]
        if number is not None:
            conditions.append(table.c.number == number)
        if kind == "deployment":
            conditions.append(deployments.c.is_cancelled.is_(False))
        count += connection.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one()
        query = select(column.label("name"), table.c.number.label("version")).where(*conditions).order_by(column)
        for row in connection.execute(query.limit(_LISTED_MAX)):
            needs.append(needed_by(kind, row.name, version=row.version))
    return needs, count
