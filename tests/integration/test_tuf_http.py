"""Trust metadata and enrolment over HTTP, judged by the reference implementation's own client."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from edge_contract.deployment import Artifact, bundle_repository, read_director_custom, target_path
from edge_contract.digest import Digest
from edge_contract.manifest import (
    CODE_RAW,
    CONFIG_TYPE,
    FILEPATH,
    INDEX_TYPE,
    MANIFEST_TYPE,
    MODEL,
    ROLE,
    TITLE,
    VERSION,
    WEIGHT_CONFIG_RAW,
    Descriptor,
    Index,
    Manifest,
    Role,
)
from tests.support.author import Author, bundle
from tests.support.devicekey import TestKey
from tests.support.registry import RegistryProcess, registry_process

_DEVICE_KEY = ec.generate_private_key(ec.SECP256R1())


class LinkFetcher(FetcherInterface):
    """Lets python-tuf's client use a link with a token, and remembers what it asked for."""

    def __init__(self, link: httpx.Client) -> None:
        self._link = link
        self.asked: list[str] = []

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.asked.append(url.rsplit("/", 1)[-1])
        answer = self._link.get(url)
        if answer.status_code != 200:
            raise DownloadHTTPError(answer.text, answer.status_code)
        yield answer.content


def device_token(device: str) -> str:
    """A token of a device that enrolled with the key of these tests."""
    return TestKey(_DEVICE_KEY).token(device, time.time_ns() // 1_000_000)


def request_pem(key: ec.EllipticCurvePrivateKey = _DEVICE_KEY) -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "wanted")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@dataclass
class Site:
    """A registry whose trust is set up, its author, and an admin's link."""

    registry: RegistryProcess
    author: Author
    admin: httpx.Client
    folder: Path

    def post(self, path: str, body: Any, status: int = 201) -> Any:
        answer = self.admin.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def submit(self, files: dict[str, bytes]) -> httpx.Response:
        return self.admin.post(
            "/api/v1/trust/metadata", json={"files": {role: data.decode() for role, data in files.items()}}
        )

    def enrolment(self, device: str) -> str:
        return str(self.post("/api/v1/enrolment-tokens", {"device": device})["token"])

    def enrol(self, enrolment: str, **changes: Any) -> httpx.Response:
        body = {"token": enrolment, "csr_pem": request_pem(), "platform": "linux/amd64"} | changes
        with self.registry.link("") as nobody:
            return nobody.post("/api/v1/enrol", json=body)

    def updater(self, link: httpx.Client, place: str, root: str) -> tuple[Updater, LinkFetcher]:
        folder = self.folder / f"client-{place.replace('/', '-')}"
        folder.mkdir(exist_ok=True)
        fetcher = LinkFetcher(link)
        base = f"{self.registry.url}/tuf/{place}/"
        return Updater(str(folder), base, fetcher=fetcher, bootstrap=root.encode()), fetcher

    def ship(
        self, model: str, text: str, platforms: tuple[str, ...] = ("linux/amd64",)
    ) -> tuple[Digest, int, Artifact]:
        """Register a model with one version and a signed bundle; what a device on the first platform gets."""
        self.post("/api/v1/models", {"name": model})
        script = f"def init(): pass\ndef run(x): return {text!r}\n".encode()
        self.blob(f"models/{model}", script)
        content = {"format": "script", "entry": "score.py", "files": [_file("score.py", script)]}
        version = int(self.post(f"/api/v1/models/{model}/versions", content)["version"])
        notes = {MODEL: model, VERSION: str(version)}
        descriptors = []
        shipped: list[tuple[Digest, int, Artifact]] = []
        for platform in platforms:
            config, runtime = b'{"any": "configuration"}', f'{{"for": "{platform}"}}'.encode()
            layers = (
                _layer(CODE_RAW, script, "score.py", Role.CODE),
                _layer(WEIGHT_CONFIG_RAW, runtime, "lighterman/runtime.json", Role.RUNTIME),
            )
            manifest = Manifest(Descriptor(CONFIG_TYPE, Digest.of(config), len(config)), layers, notes).to_bytes()
            for data in (config, runtime, script):
                self.blob(bundle_repository(model), data)
            digest = Digest.of(manifest)
            self.manifest(bundle_repository(model), str(digest), MANIFEST_TYPE, manifest)
            descriptors.append(Descriptor(MANIFEST_TYPE, digest, len(manifest), platform=platform))
            artifact = Artifact(model, version, platform, version, bundle_repository(model))
            shipped.append((digest, len(manifest), artifact))
        index = Index(tuple(descriptors), notes).to_bytes()
        self.manifest(bundle_repository(model), str(version), INDEX_TYPE, index)
        unsigned = self.admin.post(
            f"/api/v1/models/{model}/versions/{version}/bundles", json={"index": str(Digest.of(index))}
        )
        assert unsigned.json()["code"] == "trust.target-unknown"
        assert self.submit(self.author.publish(shipped)).status_code == 204
        self.post(f"/api/v1/models/{model}/versions/{version}/bundles", {"index": str(Digest.of(index))})
        return shipped[0]

    def blob(self, repository: str, data: bytes) -> None:
        query = {"digest": str(Digest.of(data))}
        assert self.admin.post(f"/v2/{repository}/blobs/uploads/", params=query, content=data).status_code == 201

    def manifest(self, repository: str, reference: str, kind: str, data: bytes) -> None:
        answer = self.admin.put(f"/v2/{repository}/manifests/{reference}", content=data, headers={"Content-Type": kind})
        assert answer.status_code == 201, answer.text


def _file(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "digest": str(Digest.of(data)), "size": len(data)}


def _layer(kind: str, data: bytes, path: str, role: str) -> Descriptor:
    return Descriptor(kind, Digest.of(data), len(data), {FILEPATH: path, TITLE: path, ROLE: role})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with registry_process(folder / "registry") as registry, registry.link() as admin:
        author = Author(admin.get("/api/v1/trust").json()["online_keys"])
        made = Site(registry, author, admin, folder)
        too_early = made.enrol(made.enrolment("too-early"))
        assert too_early.json()["code"] == "trust.root-unknown"
        roots = {name: author.signed_root(name).decode() for name in ("image", "director")}
        made.post("/api/v1/trust/roots", roots, 204)
        assert made.submit(author.first_publish()).status_code == 204
        yield made


# --- enrolment ---


def test_a_device_gets_its_identity_for_its_token_once(site: Site) -> None:
    token = site.enrolment("cam-1")
    answer = site.enrol(token, hardware_id="jetson-nano")
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body["device"] == "cam-1"
    assert body["mqtt"] is None
    certificate = x509.load_pem_x509_certificate(body["certificate_pem"].encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(body["ca_pem"].encode()))
    assert certificate.public_key() == _DEVICE_KEY.public_key()
    assert body["image_root"] == site.admin.get("/tuf/image/1.root.json").text
    assert body["director_root"] == site.admin.get("/tuf/director/cam-1/1.root.json").text
    shown = site.admin.get("/api/v1/devices/cam-1").json()
    assert (shown["platform"], shown["hardware_id"]) == ("linux/amd64", "jetson-nano")
    stranger = site.enrol(token, csr_pem=request_pem(ec.generate_private_key(ec.SECP256R1())))
    assert (stranger.status_code, stranger.json()["code"]) == (403, "cloud.token-spent")
    # The answer may have been lost: the same key may ask again, and is who it was.
    again = site.enrol(token)
    assert (again.status_code, again.json()["identity"]) == (201, body["identity"])
    with site.registry.link(device_token("cam-1")) as device, site.registry.link(device_token("cam-2")) as other:
        assert device.get("/v2/").status_code == 200
        assert other.get("/v2/").status_code == 401


def test_a_token_out_of_its_time_is_refused_with_the_time_it_is_here(site: Site) -> None:
    assert site.enrol(site.enrolment("late")).status_code == 201
    now_ms = time.time_ns() // 1_000_000
    for off_ms in (-86_400_000, 86_400_000):
        with site.registry.link(TestKey(_DEVICE_KEY).token("late", now_ms + off_ms)) as device:
            answer = device.get("/v2/")
        assert answer.status_code == 401
        assert answer.json()["errors"][0]["detail"] == {"code": "cloud.token-expired"}
        told = parsedate_to_datetime(answer.headers["Date"]).timestamp() * 1000
        assert abs(told - now_ms) < 60_000


def test_of_twenty_keys_that_race_for_one_token_one_wins(site: Site) -> None:
    token = site.enrolment("raced")
    requests = [request_pem(ec.generate_private_key(ec.SECP256R1())) for _ in range(20)]
    results: list[int] = []
    barrier = threading.Barrier(20)

    def enrol(csr: str) -> None:
        barrier.wait(20)
        results.append(site.enrol(token, csr_pem=csr).status_code)

    threads = [threading.Thread(target=enrol, args=(csr,)) for csr in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [201] + [403] * 19


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"csr_pem": "nothing"}, "cloud.bad-request"),
        ({"csr_pem": "x" * 20_000}, "cloud.bad-request"),
        ({"csr_pem": 7}, "cloud.bad-request"),
        ({"platform": "windows/amd64"}, "cloud.bad-request"),
        ({"hardware_id": "x" * 1000}, "cloud.bad-request"),
        ({"surprise": True}, "cloud.bad-request"),
        ({"csr_pem": "x" * 100_000}, "cloud.too-large"),
        ({"token": "lme_wrong"}, "cloud.token-spent"),
    ],
)
def test_a_bad_request_does_not_spend_the_token(site: Site, changes: dict[str, Any], code: str) -> None:
    token = site.enrolment("patient")
    answer = site.enrol(token, **changes)
    assert answer.status_code >= 400
    assert answer.json()["code"] == code
    assert answer.headers["content-type"] == "application/problem+json"
    assert site.enrol(token).status_code == 201


def test_enrolment_is_in_the_published_interface(site: Site) -> None:
    document = site.admin.get("/openapi.json").json()
    operation = document["paths"]["/api/v1/enrol"]["post"]
    assert "csr_pem" in operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert "security" not in operation
    assert "/tuf/image/{filename}" in document["paths"]


# --- who may read what ---


def test_metadata_is_for_those_with_a_token_and_a_devices_for_itself(site: Site) -> None:
    assert site.enrol(site.enrolment("mine")).status_code == 201
    mine = device_token("mine")
    site.enrol(site.enrolment("other"))
    with site.registry.link("") as nobody:
        for path in ("image/timestamp.json", "director/mine/timestamp.json"):
            assert nobody.get(f"/tuf/{path}").status_code == 401
    with site.registry.link(mine) as device:
        assert device.get("/tuf/image/timestamp.json").status_code == 200
        assert device.get("/tuf/director/mine/timestamp.json").status_code == 200
        refused = device.get("/tuf/director/other/timestamp.json")
        assert (refused.status_code, refused.json()["code"]) == (403, "cloud.forbidden")
        assert device.post("/v2/a/blobs/uploads/").status_code == 403
        assert device.get("/api/v1/trust").status_code == 403
    with site.registry.link(site.registry.token("viewer")) as viewer:
        assert viewer.get("/tuf/director/other/timestamp.json").status_code == 200
        assert viewer.get("/tuf/director/nobody/timestamp.json").status_code == 404
        assert viewer.post("/api/v1/trust/metadata", json={"files": {}}).status_code == 403


# --- the image repository ---


def test_the_reference_client_finds_a_published_bundle_through_the_bins(site: Site) -> None:
    digest, length, artifact = bundle("judged", 1)
    assert site.submit(site.author.publish([(digest, length, artifact)])).status_code == 204
    root = site.admin.get("/tuf/image/1.root.json").text
    updater, fetcher = site.updater(site.admin, "image", root)
    updater.refresh()
    path = target_path("judged", 1, digest)
    found = updater.get_targetinfo(path)
    assert found is not None
    assert (found.length, found.hashes) == (length, {"sha256": digest.hex})
    assert Artifact.from_json(found.custom) == artifact
    assert updater.get_targetinfo("judged/9/" + digest.hex + ".json") is None
    role = site.author.bins.get_role_for_target(path)
    assert fetcher.asked[0] == "2.root.json"
    assert fetcher.asked[1] == "timestamp.json"
    assert fetcher.asked[5].endswith(f".{role}.json")
    assert len(fetcher.asked) == 7, "root probe, timestamp, snapshot, targets, catalogue, and a bin for each question"


def test_the_reference_client_follows_a_rotation_of_all_offline_keys(site: Site) -> None:
    root = site.admin.get("/tuf/image/1.root.json").text
    author = site.author
    former_roots, former_targets = list(author.root_signers), author.targets_signer
    author.root_signers = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()]
    author.targets_signer = CryptoSigner.generate_ed25519()
    both = [former_targets, author.targets_signer]
    assert site.submit({"targets": author.bump("targets", signers=both)}).status_code == 204
    half_signed = author.signed_root("image", 2).decode()
    refused = site.admin.post("/api/v1/trust/roots", json={"image": half_signed})
    assert refused.json()["code"] == "trust.signature-invalid"
    signed = author.signed_root("image", 2, signers=[*former_roots, *author.root_signers]).decode()
    site.post("/api/v1/trust/roots", {"image": signed}, 204)
    # Catalogue and bins are still delegated to the former key; from here on the new one signs everything.
    assert site.submit(author.delegate_to(author.targets_signer)).status_code == 204
    digest, length, artifact = bundle("rotated", 1)
    assert site.submit(author.publish([(digest, length, artifact)])).status_code == 204
    updater, fetcher = site.updater(site.admin, "image", root)
    updater.refresh()
    assert fetcher.asked[:2] == ["2.root.json", "3.root.json"]
    assert updater.get_targetinfo(target_path("rotated", 1, digest)) is not None


def test_racing_publishes_over_http_end_in_one_taken_and_conflicts(site: Site) -> None:
    # All are the next version of one bin; their expiry tells them apart.
    candidates = [{"bins-aa": site.author.bump("bins-aa", by=int(days == 90), days=days)} for days in range(90, 94)]
    results: list[int] = []
    barrier = threading.Barrier(4)

    def publish(files: dict[str, bytes]) -> None:
        with site.registry.link() as link:
            barrier.wait(20)
            body = {"files": {role: data.decode() for role, data in files.items()}}
            results.append(link.post("/api/v1/trust/metadata", json=body).status_code)

    threads = [threading.Thread(target=publish, args=(files,)) for files in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [204, 409, 409, 409]


@pytest.mark.parametrize("case", ["unsigned", "stranger", "old", "skipped", "garbage"])
def test_metadata_that_is_not_the_authors_next_is_refused(site: Site, case: str) -> None:
    author = site.author
    before = author.contents["bins-55"].version
    stranger = [CryptoSigner.generate_ed25519()]
    made: dict[str, Callable[[], bytes]] = {
        "unsigned": lambda: author.bump("bins-55", signers=[]),
        "stranger": lambda: author.bump("bins-55", signers=stranger),
        "old": lambda: author.bump("bins-55", by=0, days=50),
        "skipped": lambda: author.bump("bins-55", by=2),
        "garbage": lambda: b"{}",
    }
    answer = site.submit({"bins-55": made[case]()})
    author.contents["bins-55"].version = before
    codes = {"unsigned": "trust.signature-invalid", "stranger": "trust.signature-invalid"}
    codes |= {"old": "cloud.conflict", "skipped": "cloud.conflict", "garbage": "trust.metadata-invalid"}
    assert answer.json()["code"] == codes[case]
    assert answer.status_code in (409, 422)


# --- the director ---


def test_the_reference_client_reads_a_devices_assignments_and_their_versions(site: Site) -> None:
    answer = site.enrol(site.enrolment("cam-7")).json()
    with site.registry.link(device_token("cam-7")) as device:
        updater, _ = site.updater(device, "director/cam-7", answer["director_root"])
        updater.refresh()
        empty = updater._trusted_set.targets
        assert (empty.version, empty.targets) == (1, {})
        assert empty.unrecognized_fields["lighterman"] == {"device": "cam-7"}

        digest, length, artifact = site.ship("letters", "hello", ("linux/amd64", "linux/arm64"))
        policy = {"sampling_ratio": 0.5, "probation_ms": 700}
        deployment = site.post(
            "/api/v1/deployments",
            {"model": "letters", "version": 1, "condition": "deviceId = 'cam-7'", "policy": policy},
        )
        updater, _ = site.updater(device, "director/cam-7", answer["director_root"])
        updater.refresh()
        found = updater.get_targetinfo(target_path("letters", 1, digest))
        assert found is not None
        (assignment,) = read_director_custom(found.custom, digest, found.length)
        assert (assignment.module, assignment.deployment) == ("letters", deployment["id"])
        assert (assignment.artifact, found.length) == (artifact, length)
        assert (assignment.policy.sampling_ratio, assignment.policy.probation_ms) == (0.5, 700)
        assert updater._trusted_set.targets.version == 2
        # Both repositories agree about the bundle.
        images, _ = site.updater(device, "image", answer["image_root"])
        images.refresh()
        genuine = images.get_targetinfo(target_path("letters", 1, digest))
        assert genuine is not None
        assert (genuine.length, genuine.hashes) == (found.length, found.hashes)
        assert Artifact.from_json(genuine.custom) == artifact
        # And the device can pull it with its own token.
        pulled = device.get(f"/v2/bundles/letters/manifests/{digest}")
        assert Digest.of(pulled.content) == digest

        site.admin.post(f"/api/v1/deployments/{deployment['id']}/cancel")
        updater, _ = site.updater(device, "director/cam-7", answer["director_root"])
        updater.refresh()
        assert updater._trusted_set.targets.version == 3
        assert updater._trusted_set.targets.targets == {}


def test_a_restart_keeps_keys_metadata_and_identity(tmp_path: Path) -> None:
    with registry_process(tmp_path / "registry") as registry:
        with registry.link() as admin:
            online = admin.get("/api/v1/trust").json()["online_keys"]
            author = Author(online)
            roots = {name: author.signed_root(name).decode() for name in ("image", "director")}
            assert admin.post("/api/v1/trust/roots", json=roots).status_code == 204
            site = Site(registry, author, admin, tmp_path)
            assert site.submit(author.first_publish()).status_code == 204
            assert site.enrol(site.enrolment("d1")).status_code == 201
            before = [admin.get(f"/tuf/{place}/timestamp.json").content for place in ("image", "director/d1")]
        registry.kill()
        registry.start()
        with registry.link() as admin, registry.link(device_token("d1")) as device:
            assert admin.get("/api/v1/trust").json()["online_keys"] == online
            after = [device.get(f"/tuf/{place}/timestamp.json").content for place in ("image", "director/d1")]
            assert after == before


def test_the_summary_names_public_keys_alone(site: Site) -> None:
    summary = site.admin.get("/api/v1/trust").json()
    assert summary["initialised"] is True
    assert set(summary["online_keys"]) == {"image", "director"}
    text = site.admin.get("/api/v1/trust").text
    for path in (site.registry.data / "keys").iterdir():
        secret = "".join(path.read_text().splitlines()[1:-1])
        assert secret not in text
        assert base64.b64decode(secret)[-32:].hex() not in text
