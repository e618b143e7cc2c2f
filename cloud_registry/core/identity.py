"""Names of enrolments. Each enrolment of a device is an identity of its own, so that nothing of a former one works."""

import re
from typing import Final

from edge_contract.limits import NAME_CHARS_MAX
from edge_contract.names import device_name

MARK_BYTES: Final = 6
"""Random bytes that tell the enrolments of a device apart."""

_MARK: Final = re.compile(rf"[0-9a-f]{{{2 * MARK_BYTES}}}")


def identity_name(device: str, mark: str) -> str:
    """The common name of an enrolment's certificates, and its user name at the broker: `<device>.<mark>`.

    A common name has at most 64 characters, as many as a device's name: a long one is shortened here. That the result
    is unique is up to the store.

    Args:
        device: Name of the device.
        mark: `2 * MARK_BYTES` lower-case hexadecimal digits, random.

    Raises:
        ContractError: `cloud.name-invalid`.
    """
    if not _MARK.fullmatch(mark):
        raise ValueError(f"{mark!r} is not the mark of an enrolment")
    return f"{device_name(device)[: NAME_CHARS_MAX - len(mark) - 1]}.{mark}"
