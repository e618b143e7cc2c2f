"""Operator tokens, and the lookup of one that comes with a request."""

import hmac

from sqlalchemy import Connection, delete, func, insert, select

from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.hashing import OPERATOR_PREFIX, new_token, token_hash
from cloud_registry.adapters.sql.tables import operator_tokens
from cloud_registry.core.records import OperatorToken, needed_by
from cloud_registry.core.roles import Principal, Role
from cloud_registry.errors import RegistryError
from cloud_registry.limits import TOKENS_MAX
from cloud_registry.ports import Clock
from edge_contract.errors import EdgeError
from edge_contract.names import device_name

FIRST_ADMIN = "admin"


class SqlTokens:
    """Implements `TokenStore` and `Authenticator`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use a migrated database."""
        self._database = database
        self._clock = clock

    def authenticate(self, token: str) -> Principal | None:
        """Whose token this is, or none. The lookup is by hash, so its time tells nothing of a token."""
        hashed = token_hash(token)

        def work(connection: Connection) -> Principal | None:
            table = operator_tokens
            found = connection.execute(
                select(table.c.name, table.c.role, table.c.token_hash).where(table.c.token_hash == hashed)
            ).first()
            if found is not None and hmac.compare_digest(found.token_hash, hashed):
                return Principal(found.name, Role(found.role))
            return None

        return self._database.read(work) if hashed else None

    def create(self, name: str, role: Role, by: str) -> str:
        """Make a token."""
        device_name(name)

        def work(connection: Connection) -> str:
            self._database.lock_assignments(connection)
            if connection.execute(select(operator_tokens.c.name).where(operator_tokens.c.name == name)).first():
                raise EdgeError(
                    "cloud.conflict", f"there is a token {name!r} already", "Revoke it, or use another name."
                )
            return self._insert(connection, name, role, by)

        return self._database.write(work)

    def list(self) -> "tuple[OperatorToken, ...]":
        """All tokens by name."""
        table = operator_tokens

        def work(connection: Connection) -> tuple[OperatorToken, ...]:
            rows = connection.execute(select(table).order_by(table.c.name).limit(TOKENS_MAX))
            return tuple(OperatorToken(row.name, Role(row.role), row.created_ms, row.created_by) for row in rows)

        return self._database.read(work)

    def revoke(self, name: str) -> None:
        """Remove a token."""
        table = operator_tokens

        def work(connection: Connection) -> None:
            self._database.lock_assignments(connection)
            found = connection.execute(select(table.c.role).where(table.c.name == name)).first()
            if found is None:
                raise EdgeError("cloud.not-found", f"there is no token {name[:80]!r}")
            if found.role == Role.ADMIN and self._admins(connection) == 1:
                detail = f"{name!r} is the last token with the role admin"
                hint = "Make another admin token first."
                raise RegistryError("cloud.in-use", detail, hint, {"needed_by": [needed_by("role", "admin")]})
            connection.execute(delete(table).where(table.c.name == name))

        self._database.write(work)

    def create_first_admin(self) -> str | None:
        """Make the token `admin` if nobody is one."""

        def work(connection: Connection) -> str | None:
            self._database.lock_assignments(connection)
            if self._admins(connection):
                return None
            connection.execute(delete(operator_tokens).where(operator_tokens.c.name == FIRST_ADMIN))
            return self._insert(connection, FIRST_ADMIN, Role.ADMIN, "first start")

        return self._database.write(work)

    def _admins(self, connection: Connection) -> int:
        table = operator_tokens
        return connection.execute(select(func.count()).where(table.c.role == Role.ADMIN.value)).scalar_one()

    def _insert(self, connection: Connection, name: str, role: Role, by: str) -> str:
        if connection.execute(select(func.count()).select_from(operator_tokens)).scalar_one() >= TOKENS_MAX:
            raise EdgeError("cloud.too-large", f"there are {TOKENS_MAX} tokens", "Revoke those that nobody uses.")
        token = new_token(OPERATOR_PREFIX)
        connection.execute(
            insert(operator_tokens).values(
                name=name,
                token_hash=token_hash(token),
                role=role.value,
                created_ms=self._clock.wall_ms(),
                created_by=by,
            )
        )
        return token
