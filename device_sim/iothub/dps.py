"""The provisioning service: enrolments of single devices and of groups, and registrations of devices. No I/O.

Enrolments have the form of the service's own REST API and live in the hub's documents, so they are kept with it.
Source: Azure DPS documentation, "Communicate with your DPS using the MQTT protocol", "Symmetric key attestation".
"""

import itertools
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from device_sim.iothub import codec, sas, tls
from device_sim.iothub.hub import Hub
from device_sim.iothub.identities import HubError, checked_name
from device_sim.iothub.limits import DPS_RETRY_S, ENROLMENTS_MAX, OPERATIONS_MAX
from device_sim.iothub.twins import instant
from edge_contract.errors import ContractError
from edge_contract.hub import HubAddress
from edge_contract.jsonio import JsonObject, parse_object

ENROLMENT: Final = "enrolment"
GROUP: Final = "enrolment-group"
REGISTRATION: Final = "registration"
RESULTS_TOPIC: Final = "$dps/registrations/res/#"
_REGISTER: Final = "$dps/registrations/PUT/iotdps-register/"
_POLL: Final = "$dps/registrations/GET/iotdps-get-operationstatus/"
_PAYLOAD_BYTES_MAX: Final = 128 * 1024


@dataclass(frozen=True, slots=True)
class Applicant:
    """A device that proved to an enrolment who it is.

    Attributes:
        registration: Its identifier there.
        kind: `ENROLMENT` or `GROUP`.
        enrolment: Name of the enrolment.
        certificate: What it showed, or none.
    """

    registration: str
    kind: str
    enrolment: str
    certificate: tls.PeerCertificate | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a device: a status, perhaps seconds to wait, and a document."""

    status: int
    document: JsonObject
    retry_s: int = 0

    def topic(self, request: str) -> str:
        """Where the device expects it."""
        more = f"&retry-after={self.retry_s}" if self.retry_s else ""
        return f"$dps/registrations/res/{self.status}/?$rid={request}{more}"


class Provisioning:
    """One provisioning service, before one hub.

    Attributes:
        scope: The identifier that devices are configured with.
        polls: How often a device hears "assigning" before it is assigned.
    """

    def __init__(self, hub: Hub, scope: str = "0ne00000001") -> None:
        """Begin with the enrolments that the hub keeps."""
        self.scope = scope
        self.polls = 0
        self._hub = hub
        self._numbers = itertools.count(1)
        self._operations: dict[str, tuple[str, int]] = {}

    # What an operator does

    def put(self, kind: str, name: str, document: JsonObject) -> JsonObject:
        """Make or write an enrolment; missing symmetric keys are made. `kind` is `ENROLMENT` or `GROUP`.

        Raises:
            HubError: 400, 403.
        """
        checked_name(name, "the identifier of an enrolment")
        attestation = document.get("attestation")
        if not isinstance(attestation, dict) or attestation.get("type") not in ("symmetricKey", "x509"):
            raise HubError(400, "ArgumentInvalid", "attestation.type is symmetricKey or x509")
        if sum(1 for _ in self._hub.documents_of(kind)) >= ENROLMENTS_MAX:
            raise HubError(403, "TooManyEnrollments", f"at most {ENROLMENTS_MAX}")
        if attestation["type"] == "symmetricKey":
            keys = dict(attestation.get("symmetricKey") or {})
            for slot in ("primaryKey", "secondaryKey"):
                keys[slot] = keys.get(slot) or self._hub.new_key()
            attestation = attestation | {"symmetricKey": keys}
        elif not certificates(document):
            raise HubError(400, "ArgumentInvalid", "attestation.x509 needs a certificate in PEM")
        key = "registrationId" if kind == ENROLMENT else "enrollmentGroupId"
        made = {"provisioningStatus": "enabled", **document, key: name, "attestation": attestation}
        self._hub.put_document(kind, name, made)
        return made

    def get(self, kind: str, name: str) -> JsonObject:
        """An enrolment.

        Raises:
            HubError: 404.
        """
        found = self._hub.documents.get((kind, name))
        if found is None:
            raise HubError(404, "EnrollmentNotFound", f"there is no enrolment {name!r}", 404201)
        return found

    def delete(self, kind: str, name: str) -> None:
        """Take out an enrolment; devices that it made stay.

        Raises:
            HubError: 404.
        """
        self.get(kind, name)
        self._hub.put_document(kind, name, None)

    def trusted(self) -> list[str]:
        """Certificates in PEM that devices may show, or may show descendants of."""
        documents = [document for kind in (ENROLMENT, GROUP) for _name, document in self._hub.documents_of(kind)]
        return [pem for document in documents for pem in certificates(document)]

    # What a device does

    def judge(self, connect: codec.Connect, peer: tls.PeerCertificate | None) -> tuple[int, Applicant | None, str]:
        """(code of CONNACK, who it is, why not) for a device that connects to the service."""
        refused = codec.REFUSED_UNAUTHORIZED
        scope, _, rest = connect.username.partition("/registrations/")
        registration, _, query = rest.partition("/")
        if scope != self.scope or registration != connect.client or "api-version" not in parse_qs(query):
            return refused, None, f"the user name {connect.username[:80]!r} does not fit"
        if connect.password:
            applicant = self._by_token(registration, connect.password)
        else:
            applicant = self._by_certificate(registration, peer) if peer else None
        if applicant is None:
            return refused, None, f"no enrolment knows {registration[:80]!r} by what it showed"
        return codec.ACCEPTED, applicant, ""

    def _by_token(self, registration: str, password: str) -> Applicant | None:
        token = sas.parse(password)
        resource = f"{self.scope}/registrations/{registration}"
        if token is None or token.plain_resource.lower() != resource.lower():
            return None
        if token.expires_s * 1000 <= self._hub.now_ms():
            return None
        single = self._hub.documents.get((ENROLMENT, registration))
        if single is not None:
            is_its = any(token.is_signed_with(key) for key in _keys(single))
            return Applicant(registration, ENROLMENT, registration) if is_its else None
        for name, group in self._hub.documents_of(GROUP):
            if any(token.is_signed_with(derived_key(key, registration)) for key in _keys(group)):
                return Applicant(registration, GROUP, name)
        return None

    def _by_certificate(self, registration: str, peer: tls.PeerCertificate) -> Applicant | None:
        if peer.common_name != registration:
            return None
        single = self._hub.documents.get((ENROLMENT, registration))
        if single is not None:
            is_its = any(tls.thumbprint(pem) == peer.sha256 for pem in certificates(single))
            return Applicant(registration, ENROLMENT, registration, peer) if is_its else None
        for name, group in self._hub.documents_of(GROUP):
            if any(peer.is_issued_by(pem) for pem in certificates(group)):
                return Applicant(registration, GROUP, name, peer)
        return None

    def published(self, applicant: Applicant, topic: str, content: bytes) -> tuple[str, Answer] | None:
        """Answer what a device asks; none for a topic that is no question. Gives its request's name beside."""
        path, _, query = topic.partition("?")
        fields = parse_qs(query)
        request = fields.get("$rid", [""])[0]
        if path == _REGISTER:
            return request, self._register(applicant, content)
        if path == _POLL:
            return request, self._poll(applicant, fields.get("operationId", [""])[0])
        return None

    def _register(self, applicant: Applicant, content: bytes) -> Answer:
        try:
            wish = parse_object(content, "a registration", _PAYLOAD_BYTES_MAX)
        except ContractError as error:
            return Answer(400, {"errorCode": 400004, "message": error.detail})
        if wish.get("registrationId") != applicant.registration:
            return Answer(401, {"errorCode": 401002, "message": "the registration is of another device"})
        if len(self._operations) >= OPERATIONS_MAX:
            del self._operations[next(iter(self._operations))]
        operation = f"5.{next(self._numbers):08x}"
        self._operations[operation] = (applicant.registration, self.polls)
        self._hub.put_document("payload", applicant.registration, {"payload": wish.get("payload")})
        return Answer(202, {"operationId": operation, "status": "assigning"}, DPS_RETRY_S)

    def _poll(self, applicant: Applicant, operation: str) -> Answer:
        registration, left = self._operations.get(operation, ("", 0))
        if registration != applicant.registration:
            return Answer(404, {"errorCode": 404202, "message": "there is no such operation"})
        if left > 0:
            self._operations[operation] = (registration, left - 1)
            return Answer(202, {"operationId": operation, "status": "assigning"}, DPS_RETRY_S)
        try:
            state = self._assign(applicant)
        except HubError as error:
            state = {"registrationId": registration, "status": "failed", "errorCode": error.code}
            state["errorMessage"] = error.detail
        return Answer(200, {"operationId": operation, "status": state["status"], "registrationState": state})

    def _assign(self, applicant: Applicant) -> JsonObject:
        now = instant(self._hub.now_ms())
        state: JsonObject = {"registrationId": applicant.registration, "createdDateTimeUtc": now}
        state |= {"lastUpdatedDateTimeUtc": now, "etag": "IjEi"}
        enrolment = self.get(applicant.kind, applicant.enrolment)
        if enrolment.get("provisioningStatus") == "disabled":
            return state | {"status": "disabled"}
        wanted = enrolment.get("deviceId") if applicant.kind == ENROLMENT else None
        device = HubAddress(checked_name(wanted or applicant.registration, "deviceId"))
        document = {"authentication": _authentication(enrolment, applicant)}
        document["capabilities"] = enrolment.get("capabilities") or {}
        substatus = "initialAssignment"
        if device in self._hub.identities:
            substatus = "deviceDataMigrated"
            known = self._hub.identity(device)
            self._hub.update(device, document | {"capabilities": {"iotEdge": known.is_edge}})
        else:
            self._hub.create(device, document)
            if isinstance(enrolment.get("initialTwin"), dict):
                self._hub.write_twin(device, enrolment["initialTwin"], is_patch=True)
        payload = self._hub.documents.get(("payload", applicant.registration), {}).get("payload")
        state |= {
            "assignedHub": self._hub.name,
            "deviceId": device.device,
            "status": "assigned",
            "substatus": substatus,
        }
        if payload is not None:
            state["payload"] = payload
        self._hub.put_document(REGISTRATION, applicant.registration, state)
        return state


def derived_key(group_key: str, registration: str) -> str:
    """The key of one device of a group, in base64."""
    return sas.hmac_b64(group_key, registration)


def certificates(enrolment: JsonObject) -> list[str]:
    """Certificates in PEM that an enrolment names."""
    x509: Any = (enrolment.get("attestation") or {}).get("x509") or {}
    found = []
    for group in ("clientCertificates", "signingCertificates"):
        for slot in ("primary", "secondary"):
            pem = ((x509.get(group) or {}).get(slot) or {}).get("certificate")
            if isinstance(pem, str) and "BEGIN CERTIFICATE" in pem:
                found.append(pem)
    return found


def _keys(enrolment: JsonObject) -> list[str]:
    keys: Any = (enrolment.get("attestation") or {}).get("symmetricKey") or {}
    return [key for key in (keys.get("primaryKey"), keys.get("secondaryKey")) if key]


def _authentication(enrolment: JsonObject, applicant: Applicant) -> JsonObject:
    if applicant.certificate is not None:
        return {"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": applicant.certificate.sha256}}
    keys = _keys(enrolment)
    if applicant.kind == GROUP:
        keys = [derived_key(key, applicant.registration) for key in keys]
    return {"type": "sas", "symmetricKey": {"primaryKey": keys[0], "secondaryKey": keys[-1]}}
