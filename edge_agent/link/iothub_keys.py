"""Keys of devices that are enrolled as a group at Azure's provisioning service. Pure."""

import base64
import binascii
import hashlib
import hmac

from edge_contract.errors import EdgeError


def derived_key(group_key: str, registration: str) -> str:
    """The key of one device of a group: HMAC-SHA256 of its registration identifier with the group's key.

    Better is to derive it where the group's key is kept and give the device its own alone.

    Args:
        group_key: Base64, as the service shows it.
        registration: Identifier of the registration.

    Returns:
        Base64.

    Raises:
        EdgeError: `config.invalid` for a key that is not base64.
    """
    try:
        secret = base64.b64decode(group_key, validate=True)
    except (binascii.Error, ValueError):
        raise EdgeError("config.invalid", "the key of the enrolment group is not base64") from None
    return base64.b64encode(hmac.new(secret, registration.encode(), hashlib.sha256).digest()).decode()
