"""Who may connect to the hub: the name in CONNECT, the token or the certificate. Pure.

Source: Azure IoT Hub documentation, "Communicate with an IoT hub using the MQTT protocol".
"""

from dataclasses import dataclass
from typing import Final

from device_sim.iothub import codec, sas
from device_sim.iothub.hub import Hub, address_of
from device_sim.iothub.identities import AUTHORITY, SAS, SELF_SIGNED, Identity
from device_sim.iothub.tls import PeerCertificate
from edge_contract.hub import HubAddress

_NOBODY: Final = HubAddress("")
_MAY_CONNECT: Final = ("iothubowner", "device")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What CONNECT gets.

    Attributes:
        code: Of CONNACK.
        address: Who it is, where that was accepted.
        authentication: `sas` or `x509`.
        expires_s: When the token ends, seconds since 1970; 0 for never.
        why: For the log of the emulator.
    """

    code: int
    address: HubAddress = _NOBODY
    authentication: str = "sas"
    expires_s: int = 0
    why: str = ""


def judge(hub: Hub, connect: codec.Connect, peer: PeerCertificate | None) -> Verdict:
    """Look at who connects."""
    address = address_of(connect.client)
    host, _, rest = connect.username.partition("/")
    client, _, query = rest.partition("/?")
    if host.lower() != hub.name.lower() or client != connect.client or "api-version=" not in query:
        return _refused(f"the user name {connect.username[:80]!r} does not belong to {connect.client[:80]!r}")
    identity = hub.identities.get(address)
    device = hub.identities.get(HubAddress(address.device))
    if identity is None or device is None:
        return _refused(f"{address} is not registered")
    if not device.is_enabled or not identity.is_enabled:
        return _refused(f"{address} is disabled")
    if connect.password:
        return _token(hub, identity, connect.password)
    if peer is None:
        return _refused("neither a token nor a certificate")
    return _certificate(identity, peer)


def _token(hub: Hub, identity: Identity, password: str) -> Verdict:
    token = sas.parse(password)
    if token is None:
        return _refused("the password is no token")
    if token.expires_s * 1000 <= hub.now_ms():
        return _refused("the token has expired")
    own = f"{hub.name}/devices/{identity.address.device}"
    if identity.address.module:
        own += f"/modules/{identity.address.module}"
    resource = token.plain_resource.lower()
    if token.policy:
        keys: tuple[str, ...] = (hub.policies[token.policy],) if token.policy in _MAY_CONNECT else ()
        is_for_it = own.lower() == resource or own.lower().startswith(f"{resource}/")
    else:
        keys = identity.authentication.keys if identity.authentication.kind == SAS else ()
        is_for_it = own.lower() == resource
    if not is_for_it:
        return _refused(f"the token is for {resource[:120]!r}")
    if not any(token.is_signed_with(key) for key in keys):
        return _refused("no key of it made the token")
    return Verdict(codec.ACCEPTED, identity.address, "sas", token.expires_s)


def _certificate(identity: Identity, peer: PeerCertificate) -> Verdict:
    known, good = identity.authentication, Verdict(codec.ACCEPTED, identity.address, "x509")
    if known.kind == SELF_SIGNED:
        return good if known.has_thumbprint(peer.sha1, peer.sha256) else _refused("the certificate is another one")
    if known.kind == AUTHORITY:
        is_its = not peer.is_self_issued and peer.common_name == identity.address.device
        return good if is_its else _refused(f"the certificate is for {peer.common_name[:80]!r}")
    return _refused("it proves who it is by tokens")


def _refused(why: str) -> Verdict:
    return Verdict(codec.REFUSED_UNAUTHORIZED, why=why)
