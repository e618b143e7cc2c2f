"""The device's private key on a PKCS#11 token: an HSM, a security key, a TPM through tpm2-pkcs11.

The key is made on the token and cannot leave it. Signatures are P-256 everywhere; Ed25519 where the token knows it.
"""

import hashlib
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

from edge_agent.keys import (
    ED25519,
    P256,
    PinRefusedError,
    PublicKey,
    algorithm_of,
    keyid_of,
    request_pem,
    require_private,
    unusable,
)
from edge_agent.keyuri import PIN_VARIABLE, Pkcs11Uri
from edge_agent.limits import PIN_BYTES_MAX
from edge_agent.store import durable
from edge_contract.errors import EdgeError

LABEL_DEFAULT: Final = "lighterman-device"
_ED25519_PARAMETERS: Final = b"\x13\x0cedwards25519"  # a PrintableString, as PKCS#11 2.40 has it
_ID_BYTES: Final = 8
_WRONG_PIN: Final = frozenset({"PinIncorrect", "PinInvalid", "PinLenRange", "PinExpired", "PinLocked"})
_COORDINATE_BYTES: Final = 32
_POINT_BYTES: Final = 65  # of P-256, not compressed


class TokenKey:
    """A key on a token. Implements `keys.DeviceKey`. Any thread; a token is asked one thing at a time."""

    def __init__(self, uri: Pkcs11Uri, link: Any, private: Any, public: PublicKey) -> None:
        """`open` and `provide` are the ways here."""
        self._uri = uri
        self._link = link
        self._private = private
        self._public = public
        self._keyid = keyid_of(public)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, uri: Pkcs11Uri) -> "TokenKey":
        """Find the key that the URI names.

        Raises:
            EdgeError: `device.key-unusable`, `config.dependency-missing`.
        """
        with _errors():
            link = _log_in(uri, is_writing=False)
            found = _find(link, uri)
            if found is None:
                raise unusable(f"the token has no private key {_named(uri)}", "Enrol the device again.")
            return cls(uri, link, *found)

    @classmethod
    def provide(cls, uri: Pkcs11Uri, key_type: str = P256) -> "TokenKey":
        """Find the key that the URI names, or make it on the token when there is none.

        Raises:
            EdgeError: As `open`.
        """
        with _errors():
            link = _log_in(uri, is_writing=True)
            found = _find(link, uri)
            if found is None:
                uri = uri.naming(uri.label or LABEL_DEFAULT, uri.key_id or secrets.token_bytes(_ID_BYTES))
                found = _make(link, uri, key_type)
            else:
                uri = uri.naming(found[0].label, found[0].id)
            return cls(uri, link, *found)

    @property
    def uri(self) -> str:
        """See `keys.DeviceKey.uri`."""
        return str(self._uri)

    @property
    def public(self) -> PublicKey:
        """See `keys.DeviceKey.public`."""
        return self._public

    @property
    def keyid(self) -> str:
        """See `ports.DeviceSigner.keyid`."""
        return self._keyid

    @property
    def algorithm(self) -> str:
        """See `ports.DeviceSigner.algorithm`."""
        return algorithm_of(self._public)

    def sign(self, content: bytes) -> bytes:
        """See `ports.DeviceSigner.sign`."""
        import pkcs11

        with self._lock, _errors():
            if isinstance(self._public, ed25519.Ed25519PublicKey):
                return bytes(self._private.sign(content, mechanism=pkcs11.Mechanism.EDDSA))
            # Hashed here: CKM_ECDSA is what every token has, and TPMs take no long input.
            raw = bytes(self._private.sign(hashlib.sha256(content).digest(), mechanism=pkcs11.Mechanism.ECDSA))
            r, s = raw[:_COORDINATE_BYTES], raw[_COORDINATE_BYTES:]
            return utils.encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))

    def request_pem(self) -> str:
        """See `keys.DeviceKey.request_pem`."""
        is_ed25519 = isinstance(self._public, ed25519.Ed25519PublicKey)
        return request_pem(_Ed25519AtToken(self) if is_ed25519 else _P256AtToken(self))

    def close(self) -> None:
        """See `keys.DeviceKey.close`."""
        with self._lock, _errors():
            self._link.close()


class _AtToken:
    """What `cryptography` needs of a private key to sign a request; everything else of it stays on the token."""

    def __init__(self, key: TokenKey) -> None:
        self._key = key

    def public_key(self) -> Any:
        return self._key.public

    def sign(self, data: Any, signature_algorithm: Any = None) -> bytes:  # noqa: ARG002 (there is one for each key)
        return self._key.sign(bytes(data))

    def private_bytes(self, *_: Any) -> bytes:
        raise unusable("it cannot leave its token")

    def private_bytes_raw(self) -> bytes:
        raise unusable("it cannot leave its token")

    def private_numbers(self) -> Any:
        raise unusable("it cannot leave its token")

    def exchange(self, *_: Any) -> bytes:
        raise unusable("it is for signatures alone")

    @property
    def curve(self) -> Any:
        return ec.SECP256R1()

    @property
    def key_size(self) -> int:
        return ec.SECP256R1().key_size

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, _: Any) -> Any:
        return self


class _P256AtToken(_AtToken, ec.EllipticCurvePrivateKey):
    pass


class _Ed25519AtToken(_AtToken, ed25519.Ed25519PrivateKey):
    pass


def _log_in(uri: Pkcs11Uri, is_writing: bool) -> Any:
    try:
        import pkcs11
    except ImportError:
        raise EdgeError(
            "config.dependency-missing",
            "a key on a PKCS#11 token needs a library that is not installed",
            "Install it: pip install 'lighterman[hsm]'.",
        ) from None
    if not uri.module.is_file():
        raise unusable(f"the token's driver {uri.module} is missing", "Correct module-path in the key's URI.")
    pin = _pin(uri)
    library = pkcs11.lib(str(uri.module))
    found = [token for token in library.get_tokens() if _is_it(token, uri)]
    if len(found) != 1:
        what = "no token" if not found else f"{len(found)} tokens"
        raise unusable(f"{what} at {uri.module} fit the URI", "Say which one: token=LABEL, serial=NUMBER or slot-id=N.")
    return found[0].open(rw=is_writing, user_pin=pin)


def _is_it(token: Any, uri: Pkcs11Uri) -> bool:
    serial = token.serial.decode("ascii", "replace").strip() if isinstance(token.serial, bytes) else str(token.serial)
    return (
        (uri.token is None or token.label == uri.token)
        and (uri.serial is None or serial == uri.serial)
        and (uri.slot is None or token.slot.slot_id == uri.slot)
    )


def _pin(uri: Pkcs11Uri) -> str | None:
    """The PIN from its file or from the environment; none for a token that asks for none."""
    if uri.pin_file is None:
        return os.environ.get(PIN_VARIABLE)
    with durable.disk_errors(f"reading the PIN in {uri.pin_file}"):
        data = durable.read_file(uri.pin_file, PIN_BYTES_MAX)
    if data is None:
        raise unusable(f"the PIN's file {uri.pin_file} is missing", "Correct pin-source in the key's URI.")
    require_private(uri.pin_file)
    return data.decode("utf-8", "replace").strip()


def _find(link: Any, uri: Pkcs11Uri) -> tuple[Any, PublicKey] | None:
    import pkcs11

    wanted: dict[Any, Any] = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY}
    if uri.label is not None or uri.key_id is None:
        wanted[pkcs11.Attribute.LABEL] = uri.label or LABEL_DEFAULT
    if uri.key_id is not None:
        wanted[pkcs11.Attribute.ID] = uri.key_id
    found = list(link.get_objects(wanted))
    if not found:
        return None
    if len(found) > 1:
        raise unusable(f"the token has {len(found)} private keys {_named(uri)}", "Say which one by its id: id=%01%02.")
    private = found[0]
    public = link.get_key(object_class=pkcs11.ObjectClass.PUBLIC_KEY, id=private.id, label=private.label)
    return private, _public(public)


def _make(link: Any, uri: Pkcs11Uri, key_type: str) -> tuple[Any, PublicKey]:
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    how: dict[str, Any] = {}
    kind, parameters = pkcs11.KeyType.EC, encode_named_curve_parameters("secp256r1")
    if key_type == ED25519:
        kind, parameters = pkcs11.KeyType.EC_EDWARDS, _ED25519_PARAMETERS
        how["mechanism"] = pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN
    curve = link.create_domain_parameters(kind, {pkcs11.Attribute.EC_PARAMS: parameters}, local=True)
    public, private = curve.generate_keypair(
        store=True,
        id=uri.key_id,
        label=uri.label,
        capabilities=pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
        private_template={pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False},
        **how,
    )
    return private, _public(public)


def _public(key: Any) -> PublicKey:
    """The public half, from a DER octet string with the point."""
    import pkcs11

    point = bytes(key[pkcs11.Attribute.EC_POINT])
    if len(point) == _POINT_BYTES + 2:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point[2:])
    if len(point) == _COORDINATE_BYTES + 2:
        return ed25519.Ed25519PublicKey.from_public_bytes(point[2:])
    raise unusable("the key on the token is neither P-256 nor Ed25519", "Name another one: object=NAME.")


def _named(uri: Pkcs11Uri) -> str:
    key_id = "" if uri.key_id is None else f" id {uri.key_id.hex()}"
    return f"named {uri.label or LABEL_DEFAULT!r}{key_id}"


@contextmanager
def _errors() -> Iterator[None]:
    """Turn what the token and its library say into our error. It never holds the PIN."""
    try:
        yield
    except EdgeError:
        raise
    except Exception as error:  # noqa: BLE001 (the library is imported lazily, and drivers fail in every way)
        name = type(error).__name__
        if name in _WRONG_PIN:
            hint = "It is not tried again before the agent starts anew, because tokens lock themselves."
            raise PinRefusedError("device.key-unusable", f"the token does not take the PIN: {name}", hint) from None
        raise unusable(
            f"the token said {name}: {str(error)[:200]}", "Is the token there, and its service up?"
        ) from None
