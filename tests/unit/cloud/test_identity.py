"""Names of enrolments fit where they have to, and are never a device's or a service's."""

from __future__ import annotations

import pytest

from cloud_registry.core.identity import identity_name
from edge_contract.errors import ContractError
from edge_contract.names import device_name


@pytest.mark.parametrize("device", ["d", "cam-1", "press_07.north", "x" * 52, "x" * 64])
def test_an_identity_fits_a_common_name_and_tells_enrolments_apart(device: str) -> None:
    first, second = identity_name(device, "0" * 12), identity_name(device, "f" * 12)
    assert first != second
    for name in (first, second):
        assert len(name) <= 64
        assert device_name(name) == name
        assert name != device
        assert ":" not in name


@pytest.mark.parametrize("device", ["", "../x", "a/b", "a:b", "x" * 65])
def test_a_name_that_no_device_has_gives_no_identity(device: str) -> None:
    with pytest.raises(ContractError):
        identity_name(device, "0" * 12)


@pytest.mark.parametrize("mark", ["", "0" * 11, "0" * 13, "G" * 12, "A" * 12, "0" * 11 + "."])
def test_a_mark_is_of_one_form(mark: str) -> None:
    with pytest.raises(ValueError, match="mark"):
        identity_name("cam-1", mark)
