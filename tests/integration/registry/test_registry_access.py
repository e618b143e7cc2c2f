"""Who may do what, how errors look, what is published, what is bounded."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from cloud_registry.adapters.sql.database import Database
from cloud_registry.adapters.sql.tokens import SqlTokens
from cloud_registry.core.roles import Role
from cloud_registry.limits import METADATA_REQUEST_BYTES_MAX, REQUEST_BYTES_MAX
from edge_contract.codes import CODES
from edge_contract.errors import EdgeError
from tests.integration.registry.running import Registry, SetClock, error_of
from tests.support.net import wait_until

V = "/api/v1/models/{name}/versions"
D = "/api/v1/deployments"
MATRIX: dict[tuple[str, str], Role | None] = {
    ("get", "/health/live"): None,
    ("get", "/health/ready"): None,
    ("get", "/metrics"): None,
    ("post", "/api/v1/enrol"): None,
    ("get", "/api/v1/models"): Role.VIEWER,
    ("post", "/api/v1/models"): Role.PUBLISHER,
    ("get", "/api/v1/models/{name}"): Role.VIEWER,
    ("patch", "/api/v1/models/{name}"): Role.PUBLISHER,
    ("delete", "/api/v1/models/{name}"): Role.PUBLISHER,
    ("get", V): Role.VIEWER,
    ("post", V): Role.PUBLISHER,
    ("get", V + "/{version}"): Role.VIEWER,
    ("patch", V + "/{version}"): Role.PUBLISHER,
    ("delete", V + "/{version}"): Role.PUBLISHER,
    ("get", V + "/{version}/files/{path}"): Role.VIEWER,
    ("get", V + "/{version}/bundles"): Role.VIEWER,
    ("post", V + "/{version}/bundles"): Role.PUBLISHER,
    ("get", "/api/v1/models/{name}/aliases"): Role.VIEWER,
    ("put", "/api/v1/models/{name}/aliases/{alias}"): Role.PUBLISHER,
    ("delete", "/api/v1/models/{name}/aliases/{alias}"): Role.PUBLISHER,
    ("get", "/api/v1/models/{name}/aliases/{alias}/history"): Role.VIEWER,
    ("get", D): Role.VIEWER,
    ("post", D): Role.OPERATOR,
    ("post", D + "/preview"): Role.VIEWER,
    ("get", D + "/{deployment}"): Role.VIEWER,
    ("patch", D + "/{deployment}"): Role.OPERATOR,
    ("post", D + "/{deployment}/cancel"): Role.OPERATOR,
    ("get", D + "/{deployment}/devices"): Role.VIEWER,
    ("get", D + "/{deployment}/history"): Role.VIEWER,
    ("post", "/api/v1/enrolment-tokens"): Role.OPERATOR,
    ("get", "/api/v1/devices"): Role.VIEWER,
    ("get", "/api/v1/devices/{device}"): Role.VIEWER,
    ("delete", "/api/v1/devices/{device}"): Role.OPERATOR,
    ("put", "/api/v1/devices/{device}/tags"): Role.OPERATOR,
    ("post", "/api/v1/devices/{device}/revocation"): Role.OPERATOR,
    ("get", "/api/v1/devices/{device}/history"): Role.VIEWER,
    ("get", "/api/v1/tokens"): Role.ADMIN,
    ("post", "/api/v1/tokens"): Role.ADMIN,
    ("delete", "/api/v1/tokens/{name}"): Role.ADMIN,
    ("get", "/api/v1/trust"): Role.VIEWER,
    ("post", V + "/{version}/deltas"): Role.PUBLISHER,
    ("get", V + "/{version}/deltas"): Role.VIEWER,
    ("delete", V + "/{version}/deltas/{digest}"): Role.PUBLISHER,
    ("get", V + "/{version}/bases"): Role.VIEWER,
    ("post", "/api/v1/trust/roots"): Role.PUBLISHER,
    ("post", "/api/v1/trust/metadata"): Role.PUBLISHER,
    ("post", "/api/v1/trust/online-keys"): Role.ADMIN,
    ("post", "/api/v1/query"): Role.VIEWER,
}
# Each of these has rules of its own, and a test of its own.
OTHER_RULES = {
    ("post", "/api/v1/devices/self/certificate"),
    ("get", "/api/v1/tokens/self"),
    ("get", "/tuf/image/{filename}"),
    ("get", "/tuf/director/{device}/{filename}"),
}
VALUES = {
    "{name}": "absent",
    "{version}": "1",
    "{path}": "m.onnx",
    "{alias}": "production",
    "{deployment}": "d1-abcdef",
    "{device}": "absent",
    "{digest}": "sha256:" + "0" * 64,
}
BODIES: dict[str, Any] = {
    "/api/v1/models": {"name": "x" * 70},
    V: {"format": "onnx", "files": [{"path": "m", "digest": "sha256:" + "0" * 64, "size": 1}]},
    V + "/{version}/bundles": {"index": "sha256:" + "0" * 64},
    V + "/{version}/deltas": {"manifest": "sha256:" + "0" * 64},
    "/api/v1/models/{name}/aliases/{alias}": {"version": 1},
    D: {"model": "absent", "version": 1, "condition": "*"},
    D + "/preview": {"condition": "*"},
    "/api/v1/enrolment-tokens": {"device": "x" * 70},
    "/api/v1/tokens": {"name": "x" * 70, "role": "viewer"},
    "/api/v1/trust/metadata": {"files": {}},
    "/api/v1/query": {"sql": "SELECT 1"},
}


def published(registry: Registry) -> dict[str, Any]:
    document: dict[str, Any] = registry.request("GET", "/openapi.json", token="").json()
    return document


def routes(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for path, operations in document["paths"].items():
        for method in operations:
            yield method, path


def test_every_published_route_has_a_line_in_the_matrix(local_registry: Registry) -> None:
    assert set(routes(published(local_registry))) == set(MATRIX) | OTHER_RULES


def test_every_route_lets_in_whom_it_has_to_and_nobody_else(local_registry: Registry) -> None:
    tokens = {role: local_registry.token_of(role) for role in Role}
    device_token = local_registry.enrol("cam-1")
    wrong = []
    for (method, path), needed in MATRIX.items():
        url = path
        for placeholder, value in VALUES.items():
            url = url.replace(placeholder, value)
        body = BODIES.get(path, {}) if method in ("post", "put", "patch") else None
        for who, token in [("nobody", ""), ("stranger", "lmo_guess"), ("device", device_token), *tokens.items()]:
            status = local_registry.request(method, url, token, json=body).status_code
            if needed is None:
                is_right = status not in (401, 403) or path == "/api/v1/enrol"
            elif who in ("nobody", "stranger"):
                is_right = status == 401
            elif who == "device" or list(Role).index(Role(who)) < list(Role).index(needed):
                is_right = status == 403
            else:
                is_right = status not in (401, 403)
            if not is_right:
                wrong.append(f"{method} {path} as {who}: {status}")
    assert not wrong


def test_a_token_says_whose_it_is(local_registry: Registry) -> None:
    device_token = local_registry.enrol("cam-1")
    assert local_registry.client().own_token() == {"name": "admin", "role": "admin"}
    assert local_registry.client(device_token).own_token() == {"name": "cam-1", "role": None}
    assert local_registry.request("GET", "/api/v1/tokens/self", "").status_code == 401


def test_basic_authentication_takes_the_token_as_password(local_registry: Registry) -> None:
    def status(scheme: str, text: str) -> int:
        return local_registry.request(
            "GET", "/api/v1/models", "", headers={"Authorization": f"{scheme} {text}"}
        ).status_code

    good = base64.b64encode(f"anybody:{local_registry.admin_token}".encode()).decode()
    assert status("Basic", good) == 200
    assert status("basic", good) == 200
    assert status("bearer", local_registry.admin_token) == 200
    swapped = base64.b64encode(f"{local_registry.admin_token}:".encode()).decode()
    for scheme, text in (
        ("Basic", swapped),
        ("Basic", "%%%"),
        ("Digest", "x"),
        ("Bearer", "lmo"),
        ("Bearer", "x" * 5_000),
    ):
        assert status(scheme, text) == 401
    answer = local_registry.request("GET", "/api/v1/models", "")
    assert answer.headers["www-authenticate"].startswith("Basic")


def test_only_hashes_of_tokens_are_kept(database: Database) -> None:
    tokens = SqlTokens(database, SetClock())
    token = tokens.create_first_admin()
    assert token is not None
    with database._engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM operator_tokens").all()
    assert token not in repr(rows)
    assert token.removeprefix("lmo_") not in repr(rows)


def test_the_first_admin_token_is_made_once_and_the_last_one_stays(database: Database) -> None:
    tokens = SqlTokens(database, SetClock())
    first = tokens.create_first_admin()
    assert first is not None
    assert tokens.create_first_admin() is None
    assert error_of(tokens.revoke, "admin").code == "cloud.in-use"
    second = tokens.create("chief", Role.ADMIN, "admin")
    tokens.revoke("admin")
    assert tokens.create_first_admin() is None
    assert tokens.authenticate(first) is None
    principal = tokens.authenticate(second)
    assert principal is not None
    assert (principal.name, principal.role) == ("chief", Role.ADMIN)
    assert error_of(tokens.revoke, "chief").code == "cloud.in-use"
    assert error_of(tokens.revoke, "nobody").code == "cloud.not-found"


def test_a_token_is_made_listed_and_revoked(registry: Registry) -> None:
    client = registry.client()
    made = client.create_token("ci", "publisher")
    assert registry.client(made["token"]).own_token() == {"name": "ci", "role": "publisher"}
    assert error_of(client.create_token, "ci", "viewer").code == "cloud.conflict"
    assert error_of(client.create_token, "other", "king").code == "cloud.bad-request"
    assert [(item["name"], item["role"]) for item in client.tokens()] == [("admin", "admin"), ("ci", "publisher")]
    assert made["token"] not in json.dumps(client.tokens())
    client.revoke_token("ci")
    assert error_of(registry.client(made["token"]).own_token).code == "cloud.unauthorized"


def test_an_error_is_a_problem_document(local_registry: Registry) -> None:
    answer = local_registry.request("GET", "/api/v1/models/absent")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "https://lighterman.dev/problems/cloud.not-found",
        "title": CODES["cloud.not-found"].summary,
        "status": 404,
        "detail": "there is no model 'absent'",
        "instance": "/api/v1/models/absent",
        "code": "cloud.not-found",
        "hint": "Create it first, or see the list of models.",
    }


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nowhere", {}, 404, "cloud.not-found"),
        ("PUT", "/api/v1/models", {"json": {}}, 405, "cloud.bad-request"),
        ("POST", "/api/v1/models", {"content": b"{"}, 400, "cloud.bad-request"),
        ("POST", "/api/v1/models", {"content": b"\xff\xfe"}, 400, "cloud.bad-request"),
        ("POST", "/api/v1/models", {"json": []}, 400, "cloud.bad-request"),
        ("POST", "/api/v1/models", {}, 400, "cloud.bad-request"),
        ("POST", "/api/v1/models", {"json": {"name": "a", "colour": "red"}}, 400, "cloud.bad-request"),
        ("POST", "/api/v1/models", {"json": {"name": 7}}, 400, "cloud.bad-request"),
        ("POST", "/api/v1/models", {"json": {"name": "a", "description": "\0"}}, 400, "cloud.bad-request"),
        ("POST", "/api/v1/models", {"content": b'{"name": "a", "description": "\\ud800"}'}, 400, "cloud.bad-request"),
        ("GET", "/api/v1/models?limit=0", {}, 400, "cloud.bad-request"),
        ("GET", "/api/v1/models?limit=many", {}, 400, "cloud.bad-request"),
        ("GET", "/api/v1/models?cursor=zzz", {}, 400, "cloud.bad-request"),
        ("GET", "/api/v1/devices?name=%00", {}, 400, "cloud.bad-request"),
        ("POST", "/api/v1/query", {"json": {"sql": "DROP TABLE x"}}, 400, "cloud.query-invalid"),
        ("POST", "/api/v1/trust/roots", {"json": {}}, 400, "cloud.bad-request"),
        ("POST", "/api/v1/trust/roots", {"json": {"image": "{}"}}, 422, "trust.metadata-invalid"),
    ],
)
def test_whatever_comes_the_answer_is_a_problem_document(
    local_registry: Registry, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    answer = local_registry.request(method, path, **options)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_bug_is_an_error_without_its_insides(
    local_registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_name: str) -> None:
        raise ValueError("the inside of the registry")

    monkeypatch.setattr(local_registry.services.models, "get", broken)
    with caplog.at_level(logging.ERROR):
        answer = local_registry.request("GET", "/api/v1/models/digits")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal.bug")
        assert "inside" not in answer.text
        # The log follows the answer.
        wait_until(lambda: "the inside of the registry" in caplog.text, 10, what="the log to tell of it")


def test_every_code_has_a_status() -> None:
    from cloud_registry.api.problems import status_of

    assert {code: status_of(code) for code in CODES if not 400 <= status_of(code) < 600} == {}


def test_long_bodies_are_refused_before_they_are_read(local_registry: Registry) -> None:
    long = b" " * (REQUEST_BYTES_MAX + 1)
    declared = local_registry.request("POST", "/api/v1/models", content=long)
    assert (declared.status_code, declared.json()["code"]) == (413, "cloud.too-large")
    streamed = local_registry.request("POST", "/api/v1/models", content=iter([long[:1000], long]))
    assert (streamed.status_code, streamed.json()["code"]) == (413, "cloud.too-large")


def test_only_a_publisher_may_send_long_metadata(local_registry: Registry) -> None:
    def status(token: str, size: int) -> int:
        headers = {"Content-Length": str(size), "Content-Type": "application/json"}
        body = b'{"files": {"targets": "' + b" " * (size - 26) + b'"}}'
        return local_registry.request(
            "POST", "/api/v1/trust/metadata", token, content=body, headers=headers
        ).status_code

    assert status(local_registry.token_of(Role.VIEWER), REQUEST_BYTES_MAX + 1) == 413
    assert status("", REQUEST_BYTES_MAX + 1) == 413
    assert status(local_registry.token_of(Role.PUBLISHER), REQUEST_BYTES_MAX + 1) in (409, 422)
    assert METADATA_REQUEST_BYTES_MAX > REQUEST_BYTES_MAX


def test_the_access_log_names_the_token_and_holds_no_secret(
    local_registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="cloud_registry.access"):
        local_registry.request("GET", "/api/v1/models?name=secret-model")
        local_registry.request("GET", "/api/v1/models/a%0Ab", "lmo_guess")
        # The log follows the answer.
        wait_until(lambda: " 401 " in caplog.text and " 200 " in caplog.text, 10, what="the log to tell of both")
    assert "admin GET /api/v1/models 200" in caplog.text
    assert "- GET /api/v1/models/a%0Ab 401" in caplog.text
    for secret in (local_registry.admin_token, "lmo_guess", "secret-model"):
        assert secret not in caplog.text


def test_health_needs_no_token_and_tells_the_truth(local_registry: Registry) -> None:
    assert local_registry.request("GET", "/health/live", "").json() == {"live": True}
    ready = local_registry.request("GET", "/health/ready", "")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    (local_registry.services.config.oci_dir / "oci-layout").unlink()
    broken = local_registry.request("GET", "/health/ready", "")
    assert (broken.status_code, broken.json()["checks"]["storage"]) == (503, "device.disk-error")
    assert local_registry.request("GET", "/health/live", "").status_code == 200


def test_the_openapi_document_is_whole(local_registry: Registry) -> None:
    document = published(local_registry)
    assert document["openapi"].startswith("3.1")
    assert set(document["components"]["securitySchemes"]) == {"bearer", "basic"}
    references = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                references.add(value["$ref"])
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(document)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references <= known
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    identifiers = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            identifiers.append(operation["operationId"])
            assert operation.get("description") or operation.get("summary"), (method, path)
            problem = operation["responses"]["default"]["content"]["application/problem+json"]
            assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert ("security" in operation) == (MATRIX.get((method, path), Role.VIEWER) is not None), (method, path)
            named = {item["name"] for item in operation.get("parameters", []) if item["in"] == "path"}
            assert named == {part.strip("{}") for part in path.split("/") if part.startswith("{")}, path
    assert len(set(identifiers)) == len(identifiers)


def test_answers_are_what_the_document_says(local_registry: Registry) -> None:
    local_registry.register("digits", tags={"a": "b"})
    local_registry.bundle("digits", 1)
    local_registry.enrol("cam-1")
    client = local_registry.client()
    deployment = client.create_deployment("digits", 1, "*")["id"]
    client.set_alias("digits", "production", 1)
    document = published(local_registry)
    for template, url in (
        ("/api/v1/models", "/api/v1/models"),
        ("/api/v1/models/{name}", "/api/v1/models/digits"),
        (V + "/{version}", "/api/v1/models/digits/versions/production"),
        (V + "/{version}/bundles", "/api/v1/models/digits/versions/1/bundles"),
        ("/api/v1/models/{name}/aliases/{alias}/history", "/api/v1/models/digits/aliases/production/history"),
        ("/api/v1/devices/{device}", "/api/v1/devices/cam-1"),
        (D + "/{deployment}", f"/api/v1/deployments/{deployment}"),
        (D + "/{deployment}/devices", f"/api/v1/deployments/{deployment}/devices"),
        (D + "/{deployment}/history", f"/api/v1/deployments/{deployment}/history"),
        ("/api/v1/tokens", "/api/v1/tokens"),
    ):
        schema = document["paths"][template]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        whole = schema | {"components": document["components"]}
        jsonschema.Draft202012Validator(whole).validate(local_registry.request("GET", url).json())
    problem = document["components"]["schemas"]["Problem"] | {"components": document["components"]}
    jsonschema.Draft202012Validator(problem).validate(local_registry.request("GET", "/api/v1/models/absent").json())


def test_a_registry_error_reaches_the_caller_of_the_client_with_its_extras(local_registry: Registry) -> None:
    error = error_of(local_registry.client()._transport.json, "POST", "/api/v1/models", {"name": 5})
    assert isinstance(error, EdgeError)
    assert error.extras["errors"][0]["where"] == "body.name"  # type: ignore[attr-defined]
