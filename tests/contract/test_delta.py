"""What metadata say of a delta, and the artifact that carries it: read as written, refused when it makes no sense."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edge_contract.delta import (
    DELTA_ARTIFACT_TYPE,
    EMPTY,
    Delta,
    delta_manifest,
    read_delta_manifest,
    read_deltas,
    write_deltas,
)
from edge_contract.deployment import Artifact, Assignment, director_custom, read_director_custom
from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields
from edge_contract.limits import DELTA_PEAK_BYTES_MAX, DELTAS_MAX
from edge_contract.manifest import INDEX_TYPE, Descriptor

DELTA = Delta(Digest.of(b"base"), 4_000, Digest.of(b"new"), 5_000, Digest.of(b"delta"), 900, 9_000_000)
SUBJECT = Descriptor(INDEX_TYPE, Digest.of(b"index"), 700)
ASSIGNMENT = Assignment(
    "digits", "d-1", Digest.of(b"manifest"), 800, Artifact("digits", 2, "linux/arm64", 2, "bundles/digits")
)


def test_a_delta_is_read_as_it_was_written() -> None:
    assert Delta.from_json(DELTA.to_json()) == DELTA
    assert DELTA.descriptor.digest == DELTA.digest
    assert all(isinstance(value, int | str) for value in DELTA.to_json().values())


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": 5_000},
        {"bytes": 0},
        {"new": DELTA.base},
        {"base_bytes": 0},
        {"peak_bytes": DELTA_PEAK_BYTES_MAX + 1},
        {"peak_bytes": -1},
        {"format": "x" * 17},
    ],
)
def test_a_delta_without_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ContractError) as caught:
        Delta.from_json(replace(DELTA, **change).to_json())  # type: ignore[arg-type]
    assert caught.value.code == "trust.metadata-invalid"


def test_metadata_list_so_many_and_no_more() -> None:
    known = [replace(DELTA, digest=Digest.of(str(number).encode())) for number in range(DELTAS_MAX + 1)]
    code = "trust.metadata-invalid"
    assert read_deltas(Fields(write_deltas(known[:-1]), "target", code)) == tuple(known[:-1])
    assert read_deltas(Fields({}, "target", code)) == ()
    with pytest.raises(ContractError):
        read_deltas(Fields(write_deltas(known), "target", code))


def test_a_delta_of_a_later_format_keeps_nobody_from_the_others() -> None:
    code = "trust.metadata-invalid"
    later = [
        DELTA.to_json() | {"format": "lmd2", "peak_bytes": DELTA_PEAK_BYTES_MAX * 9},
        {"format": "a name much longer than formats have", "places": [1, 2]},
    ]
    known = replace(DELTA, format="lmd2")
    fields = Fields({"deltas": [later[0], DELTA.to_json(), later[1], known.to_json()]}, "target", code)
    assert read_deltas(fields) == (DELTA, known)
    for broken in (DELTA.to_json() | {"peak_bytes": DELTA_PEAK_BYTES_MAX * 9}, {"format": 2}, {}, "lmd2", None):
        with pytest.raises(ContractError) as caught:
            read_deltas(Fields({"deltas": [DELTA.to_json(), broken]}, "target", code))
        assert caught.value.code == code


def test_the_directors_target_and_the_devices_record_carry_deltas() -> None:
    told = replace(ASSIGNMENT, deltas=(DELTA,))
    (read,) = read_director_custom(director_custom([told]), told.manifest, told.manifest_bytes)
    assert read.deltas == (DELTA,)
    assert Assignment.from_json(told.to_json()).deltas == (DELTA,)
    assert "deltas" not in director_custom([ASSIGNMENT])


def test_a_delta_that_was_made_meanwhile_makes_no_other_assignment() -> None:
    assert replace(ASSIGNMENT, deltas=(DELTA,)) == ASSIGNMENT


def test_the_artifact_says_what_the_metadata_say() -> None:
    data = delta_manifest(DELTA, SUBJECT)
    assert read_delta_manifest(data) == (DELTA, SUBJECT.digest)
    document = json.loads(data)
    assert document["artifactType"] == DELTA_ARTIFACT_TYPE
    assert document["config"]["digest"] == str(Digest.of(EMPTY))
    assert document["subject"]["mediaType"] == INDEX_TYPE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("artifactType",), "application/other"),
        (("layers",), []),
        (("layers", 0, "mediaType"), "application/vnd.lighterman.delta.v1.lmd9"),
        (("layers", 0, "size"), 9_000),
        (("annotations", "io.lighterman.delta.base"), "sha256:short"),
        (("annotations", "io.lighterman.delta.peak-bytes"), "many"),
        (("annotations",), {}),
        (("subject", "digest"), "none"),
    ],
)
def test_an_artifact_that_is_no_such_delta_is_refused(path: tuple[str | int, ...], value: object) -> None:
    document = json.loads(delta_manifest(DELTA, SUBJECT))
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ContractError):
        read_delta_manifest(json.dumps(document).encode())
