"""Those who verify: every vector is taken or refused by the contract as it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import pytest

from edge_contract.codes import CODES
from edge_contract.deployment import Artifact, director_custom, read_director_custom
from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.manifest import Index, Manifest
from edge_contract.names import alias_name, device_name, model_name, platform_name, relative_path
from edge_contract.runtime import Runtime
from edge_contract.signed import Envelope
from edge_contract.telemetry import Ack, Batch
from edge_contract.tensors import read_safetensors_header
from edge_contract.twin import Nudge, Report
from tests.contract.reading import Vector, every, kinds, read

MANIFEST: Final = Digest.from_hex("a" * 64)

DOCUMENTS: Final[dict[str, Callable[[bytes], Any]]] = {
    "ack": Ack.parse,
    "batch": Batch.parse,
    "envelope": Envelope.parse,
    "index": Index.parse,
    "manifest": Manifest.parse,
    "nudge": Nudge.parse,
    "report": Report.parse,
    "runtime": Runtime.parse,
}
CUSTOMS: Final[dict[str, Callable[[Any], Any]]] = {
    "artifact": Artifact.from_json,
    "assignment": lambda value: read_director_custom(value, MANIFEST, 700),
}
VALUES: Final[dict[str, Callable[[Any], Any]]] = {
    "alias-name": alias_name,
    "device-name": device_name,
    "digest": Digest,
    "model-name": model_name,
    "path": relative_path,
    "platform-name": platform_name,
}
BINARIES: Final = {"safetensors": read_safetensors_header}
EVERYBODY: Final = "json"


def name_of(item: object) -> str:
    return item.name if isinstance(item, Vector) else str(item)


def verdict(read_it: Callable[[Any], Any], content: Any) -> tuple[str, Any]:
    """`valid` and what was read, or the code of the refusal."""
    try:
        return "valid", read_it(content)
    except ContractError as error:
        return error.code, None


def test_every_kind_has_a_reader() -> None:
    assert set(kinds()) == {*DOCUMENTS, *CUSTOMS, *VALUES, *BINARIES, EVERYBODY}


@pytest.mark.parametrize("kind", kinds())
def test_vectors_are_good_and_bad_and_name_codes_that_exist(kind: str) -> None:
    vectors = read(kind)
    refused = [vector for vector in vectors if not vector.is_valid]
    assert {vector.expect for vector in refused} <= set(CODES)
    assert len(refused) >= 3
    assert kind == EVERYBODY or len(refused) < len(vectors)
    assert len({vector.name for vector in vectors}) == len(vectors)


@pytest.mark.parametrize(("kind", "vector"), every(*DOCUMENTS), ids=name_of)
def test_documents(kind: str, vector: Vector) -> None:
    found, parsed = verdict(DOCUMENTS[kind], vector.data)
    assert found == vector.expect
    if vector.is_valid:
        written = parsed.to_bytes()
        assert DOCUMENTS[kind](written) == parsed
        assert (json.loads(written) == vector.value) is not vector.is_rewritten


@pytest.mark.parametrize("kind", sorted(DOCUMENTS))
@pytest.mark.parametrize("vector", read(EVERYBODY), ids=name_of)
def test_what_no_document_may_be(kind: str, vector: Vector) -> None:
    assert verdict(DOCUMENTS[kind], vector.data)[0] == vector.expect


@pytest.mark.parametrize(("kind", "vector"), every(*CUSTOMS), ids=name_of)
def test_customs_of_targets(kind: str, vector: Vector) -> None:
    found, parsed = verdict(CUSTOMS[kind], vector.value)
    assert found == vector.expect
    if vector.is_valid:
        written = parsed.to_json() if kind == "artifact" else director_custom(parsed)
        assert (written == vector.value) is not vector.is_rewritten


@pytest.mark.parametrize(("kind", "vector"), every(*VALUES), ids=name_of)
def test_values(kind: str, vector: Vector) -> None:
    found, checked = verdict(VALUES[kind], vector.value)
    assert found == vector.expect
    assert not vector.is_valid or str(checked) == vector.value


@pytest.mark.parametrize(("kind", "vector"), every(*BINARIES), ids=name_of)
def test_binaries(kind: str, vector: Vector) -> None:
    assert verdict(BINARIES[kind], vector.data)[0] == vector.expect
