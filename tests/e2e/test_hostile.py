"""What people and programs give the command lines and the registry by mistake or on purpose."""

from __future__ import annotations

import hashlib
import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from packager.progress import QuietReporter
from packager.register import register
from packager.spec import Flags
from packager.specload import load_spec
from tests.e2e.stack import Stack
from tests.support.net import LOOPBACK

pytestmark = [pytest.mark.e2e, pytest.mark.system]

REGISTRATIONS = 20
PROCESSES = 4
WAIT_S = 60


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.onnx", b""),
        ("letter.onnx", b"Dear Sir or Madam,\n"),
        ("archive.onnx", b"PK\x03\x04" + bytes(200)),
        ("noise.onnx", hashlib.sha256(b"noise").digest() * 50),
        ("letter.tflite", b"Dear Sir or Madam, this is no flatbuffer.\n"),
    ],
)
def test_what_is_no_model_gets_no_version(stack: Stack, tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    model = name.replace(".", "-")
    done = stack.run("packager", "register", str(path), "--name", model, "--json")
    assert done.exit_code == 4, done.stdout + done.stderr
    assert done.error_code == "artifact.not-a-model"
    assert name in done.document["error"]["detail"]
    shown = stack.run("cloud-registry", "models", "show", model, "--json")
    assert (shown.exit_code, shown.error_code) == (8, "cloud.not-found")
    # The registry looks for itself: whoever asks it without the packager is refused as well.
    with stack.client() as client:
        client.create_model(model)
        digest = client.upload_bytes(f"models/{model}", content)
        version = {
            "format": "onnx" if name.endswith(".onnx") else "tflite",
            "files": [{"path": name, "digest": str(digest), "size": len(content)}],
        }
        with pytest.raises(EdgeError) as refused:
            client.register_version(model, version)
        assert refused.value.code == "artifact.not-a-model"
        assert client.versions(model)["items"] == []


def test_a_cut_off_model_gets_no_version(stack: Stack, tmp_path: Path) -> None:
    whole, _ = stack.model_files(1, padding_bytes=100_000)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole.read_bytes()[:50_000])
    done = stack.run("packager", "register", str(cut), "--name", "cut", "--json")
    assert (done.exit_code, done.error_code) == (4, "artifact.not-a-model")


ODD = ("../up", "a/b", "-dash", "sp ace", "naïve", "🚢", "x" * 129, "nul\\0", "a\nb", "%2e%2e", ".")


@pytest.mark.parametrize("name", [*ODD, "UPPER", "dot."])
def test_odd_names_of_models_are_refused_with_what_is_allowed(stack: Stack, name: str) -> None:
    path, _ = stack.model_files(1)
    done = stack.run("packager", "register", str(path), f"--name={name}", "--json")
    assert (done.exit_code, done.error_code) == (8, "cloud.name-invalid")
    assert done.document["error"]["hint"]


def test_odd_names_of_devices_are_refused(stack: Stack) -> None:
    for name in ODD:
        done = stack.run("cloud-registry", "devices", "enrol-token", "--json", "--", name)
        assert (done.exit_code, done.error_code) == (8, "cloud.name-invalid"), name


def test_an_upload_that_ends_early_or_has_another_digest_leaves_nothing(stack: Stack) -> None:
    content = b"\x08\x08" + bytes(range(256)) * 400
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    headers = {"Authorization": f"Bearer {stack.variables['LIGHTERMAN_TOKEN']}"}

    def begin() -> str:
        link.request("POST", "/v2/models/torn/blobs/uploads/", headers=headers)
        answer = link.getresponse()
        answer.read()
        assert answer.status == 202
        return answer.headers["Location"].removeprefix(stack.url)

    def is_there() -> bool:
        link.request("HEAD", f"/v2/models/torn/blobs/{digest}", headers=headers)
        answer = link.getresponse()
        answer.read()
        return answer.status == 200

    link = http.client.HTTPConnection(LOOPBACK, stack.port, timeout=30)
    # The connection ends in the middle of the body.
    place = begin()
    torn = http.client.HTTPConnection(LOOPBACK, stack.port, timeout=30)
    torn.putrequest("PUT", f"{place}?digest={digest}")
    for name, value in headers.items():
        torn.putheader(name, value)
    torn.putheader("Content-Length", str(len(content)))
    torn.endheaders(content[:30_000])
    torn.close()
    assert not is_there()
    # All of it comes, but it is something else.
    link.request("PUT", f"{begin()}?digest={digest}", content[:-1] + b"?", headers)
    answer = link.getresponse()
    assert answer.status == 400
    assert json.loads(answer.read())["errors"][0]["code"] == "DIGEST_INVALID"
    assert not is_there()
    # The same bytes, whole, are welcome after all that.
    link.request("PUT", f"{begin()}?digest={digest}", content, headers)
    answer = link.getresponse()
    answer.read()
    assert answer.status == 201
    assert is_there()
    link.close()


def test_twenty_registrations_at_once_get_the_numbers_one_to_twenty(stack: Stack) -> None:
    paths = [stack.model_files(offset)[0] for offset in range(1, REGISTRATIONS + 1)]
    everybody = Barrier(REGISTRATIONS)

    def register_here(path: Path) -> JsonObject:
        spec = load_spec(None, Flags(name="regatta", members=(("", path),)))
        with stack.client() as client:
            everybody.wait(WAIT_S)
            return register(client, spec, QuietReporter())

    def register_there(path: Path) -> JsonObject:
        everybody.wait(WAIT_S)
        done = stack.run("packager", "register", str(path), "--name", "regatta", "--json")
        assert done.exit_code == 0, done.stdout + done.stderr
        document: JsonObject = done.document
        return document

    with ThreadPoolExecutor(REGISTRATIONS) as pool:
        under_way = [pool.submit(register_there, path) for path in paths[:PROCESSES]]
        under_way += [pool.submit(register_here, path) for path in paths[PROCESSES:]]
        answers = [item.result() for item in under_way]
    registered = {answer["version"]: answer["files"][0]["digest"] for answer in answers}
    assert sorted(registered) == list(range(1, REGISTRATIONS + 1))
    with stack.client() as client:
        items = client.versions("regatta", limit=100)["items"]
    assert {item["version"]: item["files"][0]["digest"] for item in items} == registered


def test_tokens_that_nobody_gave_out_or_that_are_spent_open_nothing(stack: Stack, tmp_path: Path) -> None:
    path, _ = stack.model_files(1)
    stranger = stack.run("packager", "register", str(path), "--name", "stranger", "--token", "lmo_made-up", "--json")
    assert (stranger.exit_code, stranger.error_code) == (8, "cloud.unauthorized")
    with stack.client() as client:
        token = client.create_enrolment_token("twin")["token"]
    codes = []
    for place, secret in (("owner", token), ("thief", token), ("stranger", "lme_made-up")):
        enrol = ["--url", stack.url, "--token-file", "-", "--data", str(tmp_path / place), "--json"]
        done = stack.run("edge-agent", "enroll", *enrol, secret_input=secret)
        codes.append((done.exit_code, done.document.get("error", {}).get("code")))
        assert secret not in done.stdout + done.stderr
    assert codes == [(0, None), (8, "cloud.token-spent"), (8, "cloud.token-spent")]
