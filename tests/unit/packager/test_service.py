"""Deployment files: the published schemas take them and refuse broken ones, and they hold what they promise."""

from __future__ import annotations

import copy
import dataclasses
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError

from edge_agent.serving.limits import MEMORY_SHARE_MAX
from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from edge_contract.limits import MIB
from packager.build import build
from packager.cli import main
from packager.layout import Layout
from packager.progress import QuietReporter
from packager.service.compose import compose
from packager.service.kubernetes import kubernetes
from packager.service.limits import OWN_BYTES
from packager.service.request import Facts, ServiceRequest
from packager.service.yamltext import to_yaml
from tests.support.require import REPOSITORY_ROOT
from tests.unit.packager.support import make_spec

IMAGE = "registry.example:5000/edge/serve:1@sha256:" + "a" * 64
KUBERNETES = ("1.30", "1.33", kubernetes_validate.latest_version())
FACTS = Facts(
    model="digits.v2_large",
    version=3,
    index=Digest.of(b"index"),
    manifests={"linux/amd64": Digest.of(b"amd64"), "linux/arm/v7": Digest.of(b"arm")},
    load_peak_bytes=200 * MIB,
    store_bytes=90 * MIB + 1,
    is_proved=True,
)
PLAIN = ServiceRequest(FACTS, IMAGE)
FULL = ServiceRequest(
    FACTS,
    IMAGE,
    name="digits",
    namespace="models",
    registry="https://models.example:8400",
    token_secret="models-token",
    root='{"signed": "$HOME ${X} é 😀 \\n: # --- \'"}',
    ca="-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n",
    hardware_id="board 9 #1",
    cpu_limit_millis=2_000,
    replicas_min=1,
    replicas_max=1,
    allow_pickle=True,
    has_network_policy=True,
)
EVERY_KIND = ["ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"]


def written(request: ServiceRequest) -> list[Any]:
    """The Kubernetes documents as somebody else's reader reads them."""
    return list(yaml.safe_load_all(to_yaml(kubernetes(request.check()), "a comment")))


def deployment(request: ServiceRequest) -> Any:
    (found,) = (document for document in written(request) if document["kind"] == "Deployment")
    return found


def container(request: ServiceRequest) -> Any:
    (found,) = deployment(request)["spec"]["template"]["spec"]["containers"]
    return found


def compose_validator() -> Draft202012Validator:
    path = REPOSITORY_ROOT / "tests" / "support" / "schemas" / "compose-spec.json"
    return Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))


def composed(request: ServiceRequest) -> Any:
    return yaml.safe_load(to_yaml([compose(request.check())]))


# --- what others published


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("request_", [PLAIN, FULL], ids=["plain", "full"])
def test_the_schemas_of_kubernetes_take_every_document(request_: ServiceRequest, version: str) -> None:
    documents = written(request_)
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)
    assert [document["kind"] for document in documents] == (EVERY_KIND if request_ is FULL else EVERY_KIND[1:5])


def _rename_probe(document: Any) -> None:
    pod = document["spec"]["template"]["spec"]
    pod["containers"][0]["readynessProbe"] = pod["containers"][0].pop("readinessProbe")


def _wrong_type(document: Any) -> None:
    document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = "50s"


def _no_selector(document: Any) -> None:
    del document["spec"]["selector"]


def _flat_limits(document: Any) -> None:
    document["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] = ["memory"]


@pytest.mark.parametrize("spoil", [_rename_probe, _wrong_type, _no_selector, _flat_limits])
def test_the_schemas_of_kubernetes_refuse_a_broken_file(spoil: Callable[[Any], None]) -> None:
    broken = copy.deepcopy(deployment(FULL))
    spoil(broken)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("request_", [PLAIN, FULL], ids=["plain", "full"])
def test_the_compose_specification_takes_the_file(request_: ServiceRequest) -> None:
    compose_validator().validate(composed(request_))


@pytest.mark.parametrize(
    ("key", "value"),
    [("read_only", ["definitely"]), ("healthchek", {}), ("deploy", {"resources": {"limits": {"mem": "1M"}}})],
)
def test_the_compose_specification_refuses_a_broken_file(key: str, value: Any) -> None:
    broken = composed(PLAIN)
    broken["services"]["digits-v2-large"][key] = value
    with pytest.raises(ValidationError):
        compose_validator().validate(broken)


# --- what the files promise


def test_probes_ask_what_the_service_answers() -> None:
    found = container(PLAIN)
    assert found["startupProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
    assert found["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert found["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert found["ports"] == [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    start = found["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= PLAIN.start_s


def test_nothing_in_the_pod_has_more_rights_than_it_needs() -> None:
    pod, found = deployment(FULL)["spec"]["template"]["spec"], container(FULL)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert found["securityContext"]["readOnlyRootFilesystem"] is True
    assert found["securityContext"]["allowPrivilegeEscalation"] is False
    assert found["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    writable = [mount["mountPath"] for mount in found["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/work"]
    assert "--work-dir=/work" in found["args"]


@pytest.mark.parametrize("peak_mib", [1, 64, 700, 5_000, 60_000])
def test_a_model_with_the_measured_peak_fits_in_the_limit(peak_mib: int) -> None:
    facts = dataclasses.replace(FACTS, load_peak_bytes=peak_mib * MIB)
    resources = container(ServiceRequest(facts, IMAGE))["resources"]
    promised, limit = (int(resources[what]["memory"].removesuffix("Mi")) for what in ("requests", "limits"))
    assert peak_mib + OWN_BYTES // MIB <= promised <= limit
    # The service measures the room before it loads anything.
    assert peak_mib <= (limit - OWN_BYTES // MIB) * MEMORY_SHARE_MAX
    service = composed(ServiceRequest(facts, IMAGE))["services"]["digits-v2-large"]
    room = int(service["deploy"]["resources"]["limits"]["memory"].removesuffix("M"))
    assert room >= limit + FACTS.store_bytes // MIB


def test_the_autoscaler_has_something_to_measure_and_owns_the_replicas() -> None:
    found = {document["kind"]: document for document in written(PLAIN)}
    scaler = found["HorizontalPodAutoscaler"]
    assert scaler["apiVersion"] == "autoscaling/v2"
    assert scaler["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    assert "replicas" not in found["Deployment"]["spec"]
    assert container(PLAIN)["resources"]["requests"]["cpu"] == "500m"


def test_everything_selects_the_same_pods() -> None:
    found = {document["kind"]: document["spec"] for document in written(FULL) if "spec" in document}
    labels = found["Deployment"]["template"]["metadata"]["labels"]
    for selector in (
        found["Deployment"]["selector"]["matchLabels"],
        found["Service"]["selector"],
        found["PodDisruptionBudget"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_the_bundle_is_pinned_and_named() -> None:
    assert f"--digest={FACTS.index}" in container(PLAIN)["args"]
    assert container(PLAIN)["args"][0] == "/bundle"
    notes = deployment(PLAIN)["spec"]["template"]["metadata"]["annotations"]
    assert notes["io.lighterman.model"] == "digits.v2_large"
    assert notes["io.lighterman.version"] == "3"
    assert notes["io.lighterman.bundle"] == str(FACTS.index)
    assert notes["io.lighterman.manifest.linux-arm-v7"] == str(FACTS.manifests["linux/arm/v7"])
    service = composed(PLAIN)["services"]["digits-v2-large"]
    assert service["labels"] == notes
    assert f"--digest={FACTS.index}" in service["command"]


def test_pods_go_only_where_the_bundle_runs() -> None:
    affinity = deployment(PLAIN)["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == ["amd64", "arm"]


def test_the_platform_waits_longer_than_the_service_takes_to_end() -> None:
    grace = deployment(FULL)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > FULL.linger_s + FULL.drain_s
    assert int(composed(FULL)["services"]["digits"]["stop_grace_period"].removesuffix("s")) == grace


def test_the_root_arrives_as_it_was_and_the_token_stays_a_secret() -> None:
    found = {document["kind"]: document for document in written(FULL)}
    assert found["ConfigMap"]["data"] == {"image.root.json": FULL.root, "ca.pem": FULL.ca}
    (variable,) = container(FULL)["env"]
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "models-token", "key": "token"}}
    document = composed(FULL)
    # Compose fills in `$NAME`; a doubled dollar is one.
    root = document["configs"]["image.root.json"]["content"]
    assert root.replace("$$", "$") == FULL.root
    assert "$" not in root.replace("$$", "")
    assert document["configs"]["ca.pem"]["content"] == FULL.ca
    assert document["secrets"] == {"token": {"environment": "LIGHTERMAN_TOKEN"}}
    assert "--token-file=/run/secrets/token" in document["services"]["digits"]["command"]


def test_the_network_policy_lets_out_what_pulling_needs_and_nothing_else() -> None:
    pulled = written(FULL)[-1]["spec"]
    assert [rule["ports"][-1]["port"] for rule in pulled["egress"]] == [53, 8400]
    held = written(dataclasses.replace(PLAIN, has_network_policy=True))[-1]["spec"]
    assert held["egress"] == []
    assert held["policyTypes"] == ["Ingress", "Egress"]


def test_the_arguments_are_those_of_the_command() -> None:
    from edge_agent.web.command import serve

    plain, full = (serve.make_context("serve", request.arguments()).params for request in (PLAIN, FULL))
    assert plain["digest"] == full["digest"] == str(FACTS.index)
    assert (plain["bundle"], plain["root"]) == (Path("/bundle"), None)
    assert full["root"] == Path("/etc/lighterman/image.root.json")
    assert full["allow_pickle"]
    assert (full["ca"], full["hardware_id"]) == (Path("/etc/lighterman/ca.pem"), "board 9 #1")


# --- wishes that cannot be met


@pytest.mark.parametrize(
    "wish",
    [
        {"image": "has space"},
        {"name": "Upper"},
        {"name": "1st"},
        {"namespace": "a" * 60},
        {"registry": "ftp://x"},
        {"registry": "https://x y"},
        {"registry": "", "token_secret": "x", "root": ""},
        {"bundle_path": "relative"},
        {"replicas_min": 3, "replicas_max": 2},
        {"cpu_limit_millis": 10},
        {"memory_bytes": 10 * MIB},
        {"publish": "everywhere"},
        {"facts": dataclasses.replace(FACTS, load_peak_bytes=0)},
        {"facts": dataclasses.replace(FACTS, is_proved=False)},
        {"facts": dataclasses.replace(FACTS, wants_pickle=True), "allow_pickle": False},
        {"facts": dataclasses.replace(FACTS, hardware_ids=("board-9",))},
        {"root": "", "hardware_id": "board-9"},
    ],
)
def test_what_cannot_work_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(EdgeError) as caught:
        dataclasses.replace(FULL, **wish).check()
    assert caught.value.code == "config.invalid"


def test_without_a_measured_peak_the_operator_says_how_much_memory() -> None:
    facts = dataclasses.replace(FACTS, load_peak_bytes=0)
    resources = container(ServiceRequest(facts, IMAGE, memory_bytes=300 * MIB))["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"] == "300Mi"


def test_a_name_is_made_from_any_model_name() -> None:
    for model in ("a.b_c", "9lives", "x" * 64, "a" + "-" * 0 + ".b" * 30, "m" * 51 + ".x"):
        request = ServiceRequest(dataclasses.replace(FACTS, model=model), IMAGE)
        for document in written(request):
            kubernetes_validate.validate(document, KUBERNETES[-1], strict=True)
        assert ServiceRequest(FACTS, IMAGE, name=request.service_name).check().name == request.service_name


# --- the writer


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _TEXT | st.sampled_from(["no", "1e3", "~", "0x1", ""]),
    lambda inner: (
        st.lists(inner.filter(lambda item: not isinstance(item, list)), max_size=3)
        | st.dictionaries(_TEXT.filter(bool), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(_TEXT.filter(bool), _VALUES, max_size=4))
def test_another_reader_reads_what_was_written(document: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml([document]) if document else "{}") == document


# --- the command


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service")
    build(make_spec(folder / "src", is_peak_measured=True), folder / "bundle", QuietReporter(), None)
    return folder / "bundle"


def test_the_command_writes_the_same_bytes_each_time(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ("kubernetes", "compose"):
        outs = [tmp_path / f"{form}-{count}.yaml" for count in (1, 2)]
        for out in outs:
            assert main(["service", str(bundle), "--to", form, "--image", IMAGE, "--out", str(out)]) == 0
        assert outs[0].read_bytes() == outs[1].read_bytes()
        capsys.readouterr()
        assert main(["service", str(bundle), "--to", form, "--image", IMAGE, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["documents"] == list(yaml.safe_load_all(outs[0].read_text()))
        assert said["bundle"] == str(Layout(bundle).index_digest)


def test_memory_follows_the_peak_that_was_measured(bundle: Path) -> None:
    facts = Facts.of(Layout(bundle))
    assert facts.load_peak_bytes > 0
    wanted = (facts.load_peak_bytes + OWN_BYTES) // MIB
    assert container(ServiceRequest(facts, IMAGE))["resources"]["requests"]["memory"] == f"{wanted}Mi"


@pytest.mark.parametrize(
    "extra",
    [
        ["--to", "compose", "--namespace", "x"],
        ["--to", "compose", "--network-policy"],
        ["--to", "kubernetes", "--publish", "8080"],
        ["--to", "kubernetes", "--registry", "https://x", "--bundle-path", "/y"],
        ["--to", "kubernetes", "--root", "/nowhere"],
    ],
)
def test_no_option_is_taken_and_ignored(bundle: Path, extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", str(bundle), "--image", IMAGE, *extra]) == 2
    assert "error:" in capsys.readouterr().err


# --- the image


def test_the_image_is_built_from_what_is_there_and_runs_as_nobody() -> None:
    text = (REPOSITORY_ROOT / "deploy" / "container" / "Containerfile").read_text(encoding="utf-8")
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    own = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from=" not in line]
    sources = [source for copied in own for source in copied]
    assert sources
    for source in sources:
        assert (REPOSITORY_ROOT / source).exists(), source
    packages = tomllib.loads((REPOSITORY_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [name for name in packages["tool"]["setuptools"]["packages"]["find"]["include"] if "*" not in name]
    assert {"edge_agent", "edge_contract"} <= set(sources) <= {*wanted, *sources}
    assert "USER 65532:65532" in lines
    assert 'ENTRYPOINT ["edge-agent", "serve"]' in lines


def test_the_token_of_clients_comes_from_a_secret_and_stands_in_no_file() -> None:
    request = dataclasses.replace(FULL, access_secret="clients")
    (container,) = [
        part
        for document in kubernetes(request)
        if document["kind"] == "Deployment"
        for part in document["spec"]["template"]["spec"]["containers"]
    ]
    key = {"name": "clients", "key": "token"}
    assert {"name": "LIGHTERMAN_ACCESS_TOKEN", "valueFrom": {"secretKeyRef": key}} in container["env"]
    document = compose(request)
    (service,) = document["services"].values()
    assert "--access-token-file=/run/secrets/access-token" in service["command"]
    assert "access-token" in service["secrets"]
    assert document["secrets"]["access-token"] == {"environment": "LIGHTERMAN_ACCESS_TOKEN"}
    with pytest.raises(EdgeError, match="--access-secret"):
        dataclasses.replace(FULL, access_secret="No Name").check()
