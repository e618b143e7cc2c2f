"""IoT Edge's workload API over a unix socket, with Microsoft's device SDK as judge."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from device_sim.iothub import sas
from device_sim.iothub.identities import HubError
from device_sim.iothub.running import Emulator
from device_sim.iothub.workload import API_VERSION, Workload
from tests.integration.iothub.clients import WAIT_S, IoTHubModuleClient, closing, message
from tests.support.iothub import SDK_LEAKS

pytestmark = pytest.mark.filterwarnings(SDK_LEAKS)

DEVICE, MODULE = "line-7", "reader"


@pytest.fixture(scope="module")
def workload(hub: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workload]:
    hub.add_device(DEVICE, edge=True)
    hub.add_module(DEVICE, MODULE)
    with Workload(hub, DEVICE, tmp_path_factory.mktemp("edge") / "w.sock") as running:
        yield running


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=WAIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(str(self._path))


def _ask(
    workload: Workload, method: str, path: str, body: Any = None, *, version: str = API_VERSION
) -> tuple[int, Any]:
    connection = _Connection(workload.path)
    try:
        query = f"?api-version={version}" if version else ""
        connection.request(method, f"{path}{query}", json.dumps(body) if body is not None else None)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _own(workload: Workload) -> str:
    return f"/modules/{MODULE}/genid/{workload.environment(MODULE)['IOTEDGE_MODULEGENERATIONID']}"


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_module_connects_by_its_environment_alone(
    hub: Emulator, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in workload.environment(MODULE).items():
        monkeypatch.setenv(key, value)
    with closing(IoTHubModuleClient.create_from_edge_environment()) as client:
        client.hear_messages()
        client.sdk.send_message_to_output(message("seen", kind="batch"), "scores")
        (sent,) = hub.admin.drain_telemetry()
        assert (sent["device"], sent["module"], sent["text"]) == (DEVICE, MODULE, "seen")
        assert sent["system"]["output-name"] == "scores"
        hub.admin.input(device=DEVICE, module=MODULE, input="frames", text="look")
        heard = client.heard(client.messages)
        assert (heard.input_name, heard.data) == ("frames", b"look")


def test_it_signs_with_the_keys_of_the_module(hub: Emulator, workload: Workload) -> None:
    order = {"keyId": "primary", "algo": "HMACSHA256", "data": _base64("some text")}
    assert _ask(workload, "POST", f"{_own(workload)}/sign", order) == (
        200,
        {"digest": sas.hmac_b64(hub.key(DEVICE, MODULE), "some text")},
    )


def test_the_trust_bundle_is_the_authority_of_the_hub(hub: Emulator, workload: Workload) -> None:
    for path in ("/trust-bundle", "/manifest-trust-bundle"):
        assert _ask(workload, "GET", path) == (200, {"certificate": hub.ca_pem})


def test_what_it_encrypts_it_decrypts_for_the_same_module_and_vector(hub: Emulator, workload: Workload) -> None:
    hub.add_module(DEVICE, "other")
    own, vector = _own(workload), _base64("vector-1")
    order = {"plaintext": _base64("secret"), "initializationVector": vector}
    status, sealed = _ask(workload, "POST", f"{own}/encrypt", order)
    assert (status, "secret" in base64.b64decode(sealed["ciphertext"]).decode("latin1")) == (200, False)
    back = sealed | {"initializationVector": vector}
    assert _ask(workload, "POST", f"{own}/decrypt", back) == (200, {"plaintext": _base64("secret")})
    wrong = sealed | {"initializationVector": _base64("vector-2")}
    assert _ask(workload, "POST", f"{own}/decrypt", wrong)[0] == 400
    other = f"/modules/other/genid/{workload.environment('other')['IOTEDGE_MODULEGENERATIONID']}"
    assert _ask(workload, "POST", f"{other}/decrypt", back)[0] == 400


@pytest.mark.parametrize("kind", ["server", "identity"])
def test_certificates_come_from_the_authority(hub: Emulator, workload: Workload, kind: str) -> None:
    path = f"{_own(workload)}/certificate/server" if kind == "server" else f"/modules/{MODULE}/certificate/identity"
    status, made = _ask(workload, "POST", path, {"commonName": "reader.local", "expiration": "2030-01-01T00:00:00Z"})
    assert (status, made["privateKey"]["type"]) == (201, "key")
    certificate = x509.load_pem_x509_certificate(made["certificate"].encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(hub.ca_pem.encode()))
    key = load_pem_private_key(made["privateKey"]["bytes"].encode(), None)
    assert key.public_key() == certificate.public_key()
    assert made["expiration"] == certificate.not_valid_after_utc.isoformat()


def test_it_tells_which_modules_there_are(workload: Workload) -> None:
    status, told = _ask(workload, "GET", "/modules")
    assert (status, {item["name"] for item in told["modules"]} >= {"$edgeAgent", "$edgeHub", MODULE}) == (200, True)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/modules/nobody/genid/1/sign", {"algo": "HMACSHA256", "data": ""}, 404),
        (f"/modules/{MODULE}/genid/wrong/sign", {"algo": "HMACSHA256", "data": ""}, 404),
        ("OWN/sign", {"algo": "MD5", "data": ""}, 400),
        ("OWN/sign", {"algo": "HMACSHA256", "data": "not base64!"}, 400),
        ("OWN/sign", [1], 400),
        ("OWN/encrypt", {"plaintext": 5, "initializationVector": ""}, 400),
        ("OWN/certificate/server", {}, 400),
        ("OWN/sign", {"data": "x" * 300_000}, 413),
    ],
)
def test_what_it_cannot_do_it_refuses(workload: Workload, path: str, body: Any, status: int) -> None:
    found, told = _ask(workload, "POST", path.replace("OWN", _own(workload)), body)
    assert (found, bool(told["message"])) == (status, True)


def test_a_request_names_its_version(workload: Workload) -> None:
    assert _ask(workload, "GET", "/trust-bundle", version="")[0] == 400


def test_a_socket_takes_no_long_path_and_no_unknown_module(hub: Emulator, workload: Workload, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long"):
        Workload(hub, DEVICE, tmp_path / ("x" * 120))
    with pytest.raises(HubError):
        workload.environment("nobody")
