"""What was pushed is served straight from the registry, vouched for by the root that the author's keys pinned."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from tests.integration.packager.conftest import Author
from tests.support.tufrepo import TufRepository
from tests.support.webservice import refused, web_service
from tests.unit.packager.support import WEIGHT, write_golden, write_model

pytestmark = pytest.mark.slow
IMAGE_ROOT_FILE = "image.root.json"
X = [0.5, -1.0, 2.0, 0.0]


@pytest.fixture
def pushed(author: Author, capsys: pytest.CaptureFixture[str]) -> str:
    """Digest of the index of a bundle that was pushed and signed."""
    write_model(author.home)
    golden = write_golden(author.home / "golden.npz")
    options = ("--golden", golden, "--measure-load-peak", "--out", "bundle")
    assert author.run(capsys, "register", "model.onnx", "--name", author.model)[0] == 0
    code, built = author.run(
        capsys, "build", "--model", author.model, "--version", "1", "--file", "model.onnx", *options
    )
    assert code == 0, built
    assert author.run(capsys, "push", "bundle")[0] == 0
    return str(built["index"])


def token_file(author: Author, text: str = "") -> Path:
    path = author.home / "token"
    path.write_text(text or author.server.token)
    return path


def test_it_is_served_by_signature_from_the_registry(author: Author, pushed: str) -> None:
    source = ("--registry", author.server.url, "--model", author.model, "--version", "1")
    root = author.keys / IMAGE_ROOT_FILE
    with web_service(*source, "--token-file", token_file(author), "--root", root) as service:
        assert service.facts["vouched"] == "signed-metadata"
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": X}
        body = json.dumps({"inputs": [tensor]}).encode()
        status, answer = service.ask(f"/v2/models/{author.model}/infer", body)
        assert status == 200
        wanted = [sum(a * b for a, b in zip(X, column, strict=True)) for column in WEIGHT.T.tolist()]
        assert answer["outputs"][0]["data"] == pytest.approx(wanted, rel=1e-5)
    # The token may come in the environment as well; the pinned digest has to be the bundle's.
    with web_service(*source, "--digest", pushed, environment={"LIGHTERMAN_TOKEN": author.server.token}) as service:
        assert service.facts["vouched"] == "pinned-digest"


def test_who_may_not_read_or_trusts_another_root_gets_nothing(author: Author, pushed: str) -> None:
    source = ("--registry", author.server.url, "--model", author.model, "--version", "1")
    token = ("--token-file", token_file(author))
    stranger = author.home / "stranger.root.json"
    stranger.write_bytes(TufRepository(int(time.time() * 1000)).files["1.root.json"])
    assert refused(*source, *token, "--root", stranger) == (3, "trust.signature-invalid")
    other = ("--registry", author.server.url, "--model", author.model, "--version", "9")
    assert refused(*other, *token, "--digest", pushed) == (4, "artifact.manifest-invalid")
    assert refused(*other, *token, "--root", author.keys / IMAGE_ROOT_FILE) == (4, "artifact.not-found")
    # The environment of these tests has a token, which the file's takes the place of.
    wrong = ("--token-file", token_file(author, "wrong"))
    assert refused(*source, *wrong, "--digest", pushed) == (7, "network.refused")


def test_a_bundle_that_was_never_signed_is_refused_beside_the_root(
    author: Author, pushed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = author.home / "other"
    other.mkdir()
    write_model(other, weight=WEIGHT + 1)
    options = ("--file", other / "model.onnx")
    assert author.run(capsys, "build", "--model", author.model, "--version", "1", *options, "--out", "forged")[0] == 0
    root = author.keys / IMAGE_ROOT_FILE
    trust = ("--registry", author.server.url, "--token-file", token_file(author), "--root", root)
    assert refused(author.home / "forged", *trust, "--allow-unproved") == (3, "trust.target-unknown")
    with web_service(author.home / "bundle", *trust) as service:
        assert service.facts["vouched"] == "signed-metadata"


def test_the_deployment_file_says_how_to_serve_it(
    author: Author, pushed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = author.keys / IMAGE_ROOT_FILE
    out = author.home / "service.yaml"
    options = ("--to", "kubernetes", "--image", "serve:1", "--registry", author.server.url, "--secret", "models")
    assert author.run(capsys, "service", "bundle", *options, "--root", root, "--out", out)[0] == 0
    documents = {document["kind"]: document for document in yaml.safe_load_all(out.read_text())}
    (container,) = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
    # The arguments as they stand, with this machine's folders in the place of the container's.
    copied = author.home / "image.root.json"
    copied.write_text(documents["ConfigMap"]["data"]["image.root.json"])
    assert copied.read_bytes() == root.read_bytes()
    skipped = ("--host=", "--port=", "--work-dir=", "--json")
    arguments = [
        argument.replace("/etc/lighterman", str(author.home))
        for argument in container["args"]
        if not argument.startswith(skipped)
    ]
    with web_service(*arguments, environment={"LIGHTERMAN_TOKEN": author.server.token}) as service:
        assert service.facts["vouched"] == "signed-metadata"
        assert service.ask(container["readinessProbe"]["httpGet"]["path"])[0] == 200
        assert service.ask(container["livenessProbe"]["httpGet"]["path"])[0] == 200
        assert service.child.stop(deadline_s=60) == 0
