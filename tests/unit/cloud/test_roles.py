"""Each role has the rights of those before it, and devices have none of them."""

from __future__ import annotations

import pytest

from cloud_registry.core.roles import Principal, Role, parse_role
from edge_contract.errors import EdgeError

ORDER = [Role.VIEWER, Role.PUBLISHER, Role.OPERATOR, Role.ADMIN]


@pytest.mark.parametrize("have", ORDER)
@pytest.mark.parametrize("need", ORDER)
def test_a_role_includes_those_before_it(have: Role, need: Role) -> None:
    assert Principal("x", have).may(need) is (ORDER.index(have) >= ORDER.index(need))


@pytest.mark.parametrize("need", ORDER)
def test_a_device_has_no_role(need: Role) -> None:
    device = Principal("cam-1", None)
    assert device.is_device
    with pytest.raises(EdgeError) as caught:
        device.require(need)
    assert caught.value.code == "cloud.forbidden"


def test_only_the_four_roles_exist() -> None:
    assert [parse_role(str(role)) for role in ORDER] == ORDER
    for text in ("root", "", "ADMIN", "admin "):
        with pytest.raises(EdgeError):
            parse_role(text)
