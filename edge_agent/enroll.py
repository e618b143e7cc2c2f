"""Enrolment: a key and a one-time token for an identity, which is stored as a whole or not at all."""

import logging
from pathlib import Path
from typing import Final

from edge_agent import exchange
from edge_agent import identity as ids
from edge_agent.identity import DeviceIdentity
from edge_agent.keyuri import FILE_DEFAULT, file_name
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
    key_uri: str = FILE_DEFAULT,
    key_type: str = "p256",
) -> DeviceIdentity:
    """Enrol this device and store its identity durably.

    Args:
        url: Base URL of the registry.
        token: One-time enrolment token; it decides the device's name.
        data: The data directory; made when missing.
        hardware_id: Identifier of the hardware, for bundles that are for some hardware alone.
        ca: Certificates to trust for https, kept for later; the system's when none.
        is_forced: Replace an identity that is there.
        key_uri: Where the device's private key is made, see `edge_agent.keyuri`. A key on a token is used when it is
            there, so another name brings another key.
        key_type: What is made, `p256` or `ed25519`.

    Returns:
        The identity that is stored now.

    Raises:
        EdgeError: `config.*` when an identity is there and it is not forced, or for unusable arguments;
            `device.busy` while an agent runs on this directory; `network.*`, `cloud.*`, `trust.*`, `device.*`.
    """
    from edge_agent import issuing

    token = token.strip()
    if not token or len(token) > TOKEN_CHARS_MAX or not token.isprintable():
        raise EdgeError("config.invalid", "the enrolment token is empty or not a token", "Ask an operator for one.")
    file_name(key_uri)
    origin = Origin(url, ca=ca)
    _warn_about_plain_http(url)
    with DataLock(data / "lock"), DataLock(data / ids.LOCK):
        exchange.finish_interrupted(data)
        if (data / ids.FOLDER / ids.ENROLMENT).exists() and not is_forced:
            raise EdgeError(
                "config.invalid",
                f"this device is enrolled already; its identity is in {data / ids.FOLDER}",
                "Use --force to replace it. What was trusted under the old identity is forgotten then.",
            )
        prepared = issuing.prepare(exchange.begin(data), key_uri, key_type)
        platform = detect_platform()
        wanted: JsonObject = {"token": token, "platform": platform, "hardware_id": hardware_id, **prepared.request()}
        answer = _ask(origin, wanted)
        try:
            certificates, valid = prepared.certificates(Fields(answer, "the registry's answer"))
            place = prepared.place(data / ids.FOLDER)
            identity = ids.from_answer(answer, origin.url, place, valid, platform, hardware_id)
            files = _files(answer, ca)
        except ContractError as error:
            raise EdgeError("cloud.unavailable", f"the registry's answer cannot be used: {error.detail}") from None
        finally:
            prepared.key.close()
        exchange.complete(data, {**files, **certificates, ids.ENROLMENT: identity.to_bytes()})
        _forget_trusted(data)
        exchange.exchange(data)
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


def _files(answer: JsonObject, ca: Path | None) -> dict[str, bytes]:
    """What the new identity holds beside its keys and certificates, checked."""
    from edge_agent.issuing import require_certificates

    fields = Fields(answer, "the registry's answer")
    files = {ids.DEVICE_CA: require_certificates(fields, "ca_pem")}
    mqtt = fields.take("mqtt")
    if isinstance(mqtt, dict) and mqtt.get("ca_pem"):
        files[ids.BROKER_CA] = require_certificates(Fields(mqtt, "mqtt"), "ca_pem")
    if ca is not None:
        with durable.disk_errors(f"reading {ca}"):
            files[ids.REGISTRY_CA] = durable.read_file(ca, CERTIFICATE_BYTES_MAX) or b""
    for name, field, repository in (
        (ids.DIRECTOR_ROOT, "director_root", "director"),
        (ids.IMAGE_ROOT, "image_root", "image"),
    ):
        files[name] = fields.text(field, chars_max=ROOT_BYTES_MAX).encode()
        _require_root(repository, files[name])
    return files


def _require_root(repository: str, data: bytes) -> None:
    """A root that does not even sign itself would only be noticed when the agent runs."""
    from edge_agent.trust.trusted import TrustedSet

    TrustedSet(repository, data)


def _forget_trusted(data: Path) -> None:
    """Forget the versions that were trusted under the old identity.

    Those of a device that was deleted and enrolled again start anew, under the same roots: what was trusted before
    would refuse them. Before the exchange, so that no new identity ever meets the old measures.
    """
    with durable.disk_errors(f"forgetting what was trusted in {data}"):
        for repository in ("director", "image"):
            durable.remove_tree(data / TRUST_FOLDER / repository)


def _warn_about_plain_http(url: str) -> None:
    host = url.partition("://")[2]
    if url.startswith("http://") and not host.startswith(_LOOPBACKS):
        _LOG.warning("%s is not https: whoever is on the way can read the token and choose the roots of trust", url)
