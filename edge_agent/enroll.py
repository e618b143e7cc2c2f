"""Enrolment: a fresh key and a one-time token for an identity, which is stored as a whole or not at all.

The new identity is built beside the old one, in `<data>/identity.new`, and takes its name when it is complete. The
key is kept there even when the answer gets lost: the registry lets the same key repeat the same request.
"""

import contextlib
import logging
from pathlib import Path
from typing import Final

from edge_agent import identity as ids
from edge_agent.identity import DeviceIdentity
from edge_agent.limits import CERTIFICATE_BYTES_MAX, ENROL_BYTES_MAX, ROOT_BYTES_MAX, TOKEN_CHARS_MAX
from edge_agent.platforms import detect_platform
from edge_agent.store import durable
from edge_agent.store.lock import DataLock
from edge_agent.transport import Origin
from edge_contract.errors import ContractError, EdgeError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object

TRUST_FOLDER: Final = "trust"
"""Folder of trusted metadata in a data directory; the floor under the clock in it outlives an enrolment."""

_LOOPBACKS: Final = ("127.", "localhost", "[::1]")
_LOG: Final = logging.getLogger(__name__)


def enroll(
    url: str,
    token: str,
    data: Path,
    *,
    hardware_id: str = "",
    ca: Path | None = None,
    is_forced: bool = False,
) -> DeviceIdentity:
    """Enrol this device and store its identity durably.

    Args:
        url: Base URL of the registry.
        token: One-time enrolment token; it decides the device's name.
        data: The data directory; made when missing.
        hardware_id: Identifier of the hardware, for bundles that are for some hardware alone.
        ca: Certificates to trust for https, kept for later; the system's when none.
        is_forced: Replace an identity that is there.

    Returns:
        The identity that is stored now.

    Raises:
        EdgeError: `config.invalid` when an identity is there and it is not forced, or for unusable arguments;
            `device.busy` while an agent runs on this directory; `network.*`, `cloud.*`, `trust.*`, `device.*`.
    """
    token = token.strip()
    if not token or len(token) > TOKEN_CHARS_MAX or not token.isprintable():
        raise EdgeError("config.invalid", "the enrolment token is empty or not a token", "Ask an operator for one.")
    origin = Origin(url, ca=ca)
    _warn_about_plain_http(url)
    with DataLock(data / "lock"):
        _finish_interrupted(data)
        if (data / ids.FOLDER / ids.ENROLMENT).exists() and not is_forced:
            raise EdgeError(
                "config.invalid",
                f"this device is enrolled already; its identity is in {data / ids.FOLDER}",
                "Use --force to replace it. What was trusted under the old identity is forgotten then.",
            )
        folder = data / ids.NEW_FOLDER
        with durable.disk_errors(f"making {folder}"):
            durable.make_folder(folder)
        key_pem, request_pem = _key_and_request(folder)
        platform = detect_platform()
        wanted: JsonObject = {"token": token, "csr_pem": request_pem, "platform": platform, "hardware_id": hardware_id}
        answer = _ask(origin, wanted)
        try:
            identity = ids.from_answer(answer, origin.url, platform, hardware_id, data / ids.FOLDER)
            files = _files(answer, identity, key_pem, ca)
        except ContractError as error:
            raise EdgeError("cloud.unavailable", f"the registry's answer cannot be used: {error.detail}") from None
        _store(data, files)
    return identity


def _ask(origin: Origin, wanted: JsonObject) -> JsonObject:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    try:
        with origin.request("POST", "/api/v1/enrol", headers=headers, body=dump(wanted)) as answer:
            if answer.status != 201:
                raise answer.error()
            data = answer.read(ENROL_BYTES_MAX, "cloud.unavailable")
    finally:
        origin.close()
    try:
        return parse_object(data, "the registry's answer", ENROL_BYTES_MAX)
    except ContractError as error:
        raise EdgeError("cloud.unavailable", f"the registry's answer cannot be read: {error.detail}") from None


def _key_and_request(folder: Path) -> tuple[bytes, str]:
    """The private key, made and stored when there is none yet, and a request signed with it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = folder / ids.KEY
    with durable.disk_errors(f"reading {path}"):
        pem = durable.read_file(path, CERTIFICATE_BYTES_MAX)
    key: ec.EllipticCurvePrivateKey | None = None
    if pem is not None:
        with contextlib.suppress(ValueError, TypeError):
            found = serialization.load_pem_private_key(pem, None)
            key = found if isinstance(found, ec.EllipticCurvePrivateKey) else None
    if key is None or pem is None:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with durable.disk_errors(f"writing {path}"):
            durable.write_file(path, pem, 0o600)
    # The token names the device, not the request.
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return pem, request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _files(answer: JsonObject, identity: DeviceIdentity, key_pem: bytes, ca: Path | None) -> dict[str, bytes]:
    """The checked contents of the identity's files; `enrolment.json` last."""
    fields = Fields(answer, "the registry's answer")
    certificate = fields.text("certificate_pem", chars_max=CERTIFICATE_BYTES_MAX).encode()
    _require_our_key(certificate, key_pem)
    files = {ids.CERTIFICATE: certificate, ids.DEVICE_CA: _pem(fields, "ca_pem")}
    mqtt = fields.take("mqtt")
    if isinstance(mqtt, dict) and mqtt.get("ca_pem"):
        files[ids.BROKER_CA] = _pem(Fields(mqtt, "mqtt"), "ca_pem")
    if ca is not None:
        with durable.disk_errors(f"reading {ca}"):
            files[ids.REGISTRY_CA] = durable.read_file(ca, CERTIFICATE_BYTES_MAX) or b""
    for name, field, repository in (
        (ids.DIRECTOR_ROOT, "director_root", "director"),
        (ids.IMAGE_ROOT, "image_root", "image"),
    ):
        files[name] = fields.text(field, chars_max=ROOT_BYTES_MAX).encode()
        _require_root(repository, files[name])
    return files | {ids.ENROLMENT: identity.to_bytes()}


def _pem(fields: Fields, key: str) -> bytes:
    from cryptography import x509

    data = fields.text(key, chars_max=CERTIFICATE_BYTES_MAX).encode()
    try:
        x509.load_pem_x509_certificates(data)
    except ValueError:
        raise ContractError("artifact.document-invalid", f"{key} holds no certificates") from None
    return data


def _require_our_key(certificate: bytes, key_pem: bytes) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        issued = x509.load_pem_x509_certificate(certificate).public_key()
    except ValueError:
        raise ContractError("artifact.document-invalid", "certificate_pem holds no certificate") from None
    if issued != serialization.load_pem_private_key(key_pem, None).public_key():
        raise ContractError("artifact.document-invalid", "the certificate is for another key")


def _require_root(repository: str, data: bytes) -> None:
    """A root that does not even sign itself would only be noticed when the agent runs."""
    from edge_agent.trust.trusted import TrustedSet

    TrustedSet(repository, data)


def _store(data: Path, files: dict[str, bytes]) -> None:
    """Complete the new identity and let it take the place of the old one."""
    new = data / ids.NEW_FOLDER
    with durable.disk_errors(f"storing the identity in {data}"):
        for name, content in files.items():
            durable.write_file(new / name, content, 0o600)
        # Versions of a device that was deleted and enrolled again start anew, under the same roots: what was trusted
        # before would refuse them. Before the exchange, so that no new identity ever meets the old measures.
        for repository in ("director", "image"):
            durable.remove_tree(data / TRUST_FOLDER / repository)
        _exchange(data)


def _exchange(data: Path) -> None:
    current, old = data / ids.FOLDER, data / ids.OLD_FOLDER
    durable.remove_tree(old)
    if current.exists():
        durable.rename(current, old)
    durable.rename(data / ids.NEW_FOLDER, current)
    durable.remove_tree(old)


def _finish_interrupted(data: Path) -> None:
    """Finish an exchange that a power cut stopped between its renames; a complete new identity wins."""
    with durable.disk_errors(f"looking into {data}"):
        if ids.is_half_exchanged(data):
            _exchange(data)
        durable.remove_tree(data / ids.OLD_FOLDER)


def _warn_about_plain_http(url: str) -> None:
    host = url.partition("://")[2]
    if url.startswith("http://") and not host.startswith(_LOOPBACKS):
        _LOG.warning("%s is not https: whoever is on the way can read the token and choose the roots of trust", url)
