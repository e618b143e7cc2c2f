"""Who may do what.

Operators have one of four roles, each with the rights of those before it; devices have rights of their own.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edge_contract.errors import EdgeError


class Role(StrEnum):
    """Role of an operator token."""

    VIEWER = "viewer"
    PUBLISHER = "publisher"
    OPERATOR = "operator"
    ADMIN = "admin"


_RANK: Final = {Role.VIEWER: 0, Role.PUBLISHER: 1, Role.OPERATOR: 2, Role.ADMIN: 3}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request, as its token proves.

    Attributes:
        name: Name of the token, or of the device.
        role: Role of an operator token; none for a device.
        body_sha256: Of the body of the one request that a device's token is for; empty when it is for any.
    """

    name: str
    role: Role | None
    body_sha256: str = ""

    @property
    def is_device(self) -> bool:
        """Whether a device's token came with the request."""
        return self.role is None

    def may(self, role: Role) -> bool:
        """Whether this is an operator whose role includes `role`."""
        return self.role is not None and _RANK[self.role] >= _RANK[role]

    def require(self, role: Role) -> None:
        """Refuse whoever may not act as `role`.

        Raises:
            EdgeError: `cloud.forbidden`.
        """
        if not self.may(role):
            have = "a device's token" if self.role is None else f"the role {self.role}"
            raise EdgeError("cloud.forbidden", f"this needs the role {role}, {self.name!r} has {have}")


def parse_role(value: str) -> Role:
    """The role with this name.

    Raises:
        EdgeError: `cloud.bad-request`.
    """
    try:
        return Role(value)
    except ValueError:
        raise EdgeError("cloud.bad-request", f"{value!r} is not a role", f"Roles: {', '.join(Role)}.") from None
