"""Full verification: whose assignments, agreement of both repositories, counters, rubbish, the clock, power cuts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Delegations, SuccinctRoles

from edge_agent.store import durable
from edge_contract.deployment import Assignment, Policy, director_custom
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.phases import Outcome
from tests.support.tufrepo import path_of
from tests.unit.agent.trustbench import Device

# --- the wrong device
# -----------------------------------------------------------------------------------------------------------


def test_another_devices_metadata_is_refused_and_does_not_shut_out_our_own(device: Device) -> None:
    device.repositories.deploy(1)
    device.refresh()
    before = device.on_disk()
    director = device.repositories.director
    honest = dict(director.files)
    # The same keys sign for every device, and the other one is far ahead of us.
    director.signed_fields = {"lighterman": {"device": "dev-2"}}
    for _ in range(20):
        director.publish()
    assert device.refused() == "trust.wrong-device"
    assert device.on_disk() == before
    director.files = honest
    device.refresh()


@pytest.mark.parametrize(
    "fields", [{}, {"lighterman": "dev-1"}, {"lighterman": {}}, {"lighterman": {"device": ["dev-1"]}}]
)
def test_director_targets_that_name_no_device_are_refused(device: Device, fields: dict[str, object]) -> None:
    device.repositories.director.signed_fields = fields
    device.repositories.director.publish()
    assert device.refused() == "trust.wrong-device"


# --- the two repositories
# -------------------------------------------------------------------------------------------------------


def spoilt(made: Assignment, **change: object) -> JsonObject:
    """The director's custom object of one assignment, with something wrong in its entry."""
    custom = director_custom([made])
    return custom | {"assignments": [custom["assignments"][0] | change]}


def test_an_artifact_the_image_repository_never_signed_is_refused(device: Device) -> None:
    made = device.repositories.release(1)
    del device.repositories.image.targets[path_of(made)]
    device.repositories.image.publish()
    device.repositories.assign(made)
    assert device.refused() == "trust.target-unknown"


def test_a_director_that_changes_the_artifact_is_refused(device: Device) -> None:
    made = device.repositories.release(1)
    custom = director_custom([made])
    for key, value in {
        "platform": "linux/arm64",
        "release_counter": 99,
        "repository": "bundles/other",
        "hardware_ids": ["board-7"],
    }.items():
        device.repositories.director.targets.clear()
        device.repositories.director.set_target(
            path_of(made), made.manifest_bytes, {"sha256": made.manifest.hex}, {**custom, key: value}
        )
        device.repositories.director.publish()
        with pytest.raises(EdgeError, match=key) as caught:
            device.refresh()
        assert caught.value.code == "trust.repositories-disagree"


def test_a_director_that_changes_the_length_is_refused(device: Device) -> None:
    made = device.repositories.release(1)
    device.repositories.director.set_target(
        path_of(made), made.manifest_bytes + 1, {"sha256": made.manifest.hex}, director_custom([made])
    )
    device.repositories.director.publish()
    assert device.refused() == "trust.repositories-disagree"


def test_hashes_that_differ_in_one_algorithm_are_refused(device: Device) -> None:
    made = device.repositories.deploy(1)
    image, path = device.repositories.image, path_of(made)
    hashes = {"sha256": made.manifest.hex, "sha512": "0" * 128}
    image.set_target(path, made.manifest_bytes, hashes, made.artifact.to_json())
    image.publish()
    device.refresh()  # one algorithm is enough, as long as none of both contradicts
    director = device.repositories.director
    director.set_target(path, made.manifest_bytes, hashes | {"sha512": "1" * 128}, director_custom([made]))
    director.publish()
    assert device.refused() == "trust.repositories-disagree"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda made: {"path": "digits/1/other.json"},
        lambda made: {"path": "digits/2/" + made.manifest.hex + ".json"},
        lambda made: {"hashes": {"sha512": "0" * 128}},
        lambda made: {"custom": {}},
        lambda made: {"custom": spoilt(made, module="../etc")},
        lambda made: {"custom": spoilt(made, policy={"sampling_ppm": 2_000_000})},
        lambda made: {"length": 0},
        lambda made: {"length": 2**40},
    ],
)
def test_a_director_target_that_is_no_assignment_is_refused(
    device: Device, spoil: Callable[..., dict[str, object]]
) -> None:
    made = device.repositories.release(1)
    fields = {
        "path": path_of(made),
        "length": made.manifest_bytes,
        "hashes": {"sha256": made.manifest.hex},
        "custom": director_custom([made]),
        **spoil(made),
    }
    device.repositories.director.set_target(**fields)  # type: ignore[arg-type]
    device.repositories.director.publish()
    assert device.refused() == "trust.metadata-invalid"


def test_two_bundles_for_one_module_are_refused(device: Device) -> None:
    device.repositories.assign(device.repositories.release(1), device.repositories.release(2))
    assert device.refused() == "trust.metadata-invalid"


def test_a_director_that_delegates_is_refused(device: Device) -> None:
    director = device.repositories.director
    targets = director.make_targets()
    key = CryptoSigner.generate_ed25519().public_key
    targets.delegations = Delegations({key.keyid: key}, succinct_roles=SuccinctRoles([key.keyid], 1, 4, "x"))
    director.put("targets", targets)
    director.publish("snapshot")
    assert device.refused() == "trust.metadata-invalid"


# --- release counters
# -----------------------------------------------------------------------------------------------------------


def test_a_falling_release_counter_is_refused_for_its_module_alone_unless_permitted(device: Device) -> None:
    device.installed = {("digits", "digits"): 5, ("other", "digits"): 6}
    old, fine = device.repositories.release(4), device.repositories.release(9, model="letters")
    device.repositories.assign(old, fine)
    desired = device.refresh()
    assert desired.assignments == (fine,)
    refused = desired.refused["digits"]
    assert (refused.deployment, refused.manifest, refused.outcome) == (old.deployment, old.manifest, Outcome.REFUSED)
    assert refused.error is not None
    assert refused.error.code == "trust.release-rollback"
    assert device.refresh() == desired, "and is refused as long as it stands"
    made = device.repositories.deploy(4, Policy(allow_release_rollback=True))
    assert device.refresh().assignments == (made,)
    device.repositories.deploy(5)
    assert device.refresh().assignments[0].artifact.version == 5


def test_what_was_refused_is_judged_again_when_what_is_live_changes(device: Device) -> None:
    device.installed = {("digits", "digits"): 5}
    device.repositories.deploy(4)
    assert "digits" in device.refresh().refused
    device.installed = {}
    assert device.refresh().refused == {}


# --- endless data, rubbish
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json"])
def test_endless_metadata_is_refused(device: Device, name: str) -> None:
    device.repositories.director.files[name] = b" " * 6_000_000
    assert device.refused() == "trust.metadata-too-large"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"signed":{},"signatures":[]}',
        b'{"signed":{"_type":"timestamp"},"signatures":[]}',
        b'{"signed":null,"signatures":null}',
    ],
)
def test_rubbish_is_refused(device: Device, data: bytes) -> None:
    device.repositories.director.files["timestamp.json"] = data[:16_000]
    assert device.refused() == "trust.metadata-invalid"


def _mutations(document: object) -> list[object]:
    """The document with each of its values replaced by each of some odd ones, one at a time."""
    odd: list[object] = [None, True, -1, 1.5, 2**70, "", "x" * 50, [], {}, [None], {"a": None}]
    result: list[object] = []

    def walk(node: object, rebuild: Callable[[object], object]) -> None:
        result.extend(rebuild(value) for value in odd)
        if isinstance(node, dict):
            result.extend(rebuild({k: v for k, v in node.items() if k != key}) for key in node)
            for key, value in node.items():
                walk(value, lambda new, key=key: rebuild({**node, key: new}))  # type: ignore[misc]
        elif isinstance(node, list):
            for place, value in enumerate(node):
                walk(value, lambda new, place=place: rebuild([*node[:place], new, *node[place + 1 :]]))  # type: ignore[misc]

    walk(document, lambda new: new)
    return result


@pytest.mark.parametrize(
    "name", ["timestamp.json", "2.root.json", "{snapshot}.snapshot.json", "{targets}.targets.json"]
)
def test_no_spoiled_document_is_trusted_or_breaks_the_verifier(device: Device, name: str) -> None:
    device.repositories.deploy(1)
    director = device.repositories.director
    director.publish_root()
    name = name.format(**director.versions)
    genuine = director.files[name]
    original = json.loads(genuine)
    spoiled = [document for document in _mutations(original) if document != original]
    assert len(spoiled) > 100
    for document in spoiled:
        director.files[name] = json.dumps(document).encode()
        (device.folder / "director" / "root.json").write_bytes(device.roots[0])
        device.start()
        try:
            device.refresh()
        except EdgeError as error:
            assert error.code.startswith("trust."), error  # noqa: PT017
        else:
            # Unsigned surroundings and further signatures carry no meaning; what is signed has to be whole.
            assert isinstance(document, dict)
            assert document["signed"] == original["signed"]
    director.files[name] = genuine
    device.refresh()


def test_a_key_that_stands_twice_is_refused(device: Device) -> None:
    files = device.repositories.director.files
    files["timestamp.json"] = files["timestamp.json"].replace(b'"_type"', b'"_type":"timestamp","_type"', 1)
    assert device.refused() == "trust.metadata-invalid"


# --- what stays in force
# --------------------------------------------------------------------------------------------------------


def test_bad_metadata_changes_nothing_on_disk_and_the_next_good_one_is_taken(device: Device) -> None:
    device.repositories.deploy(1)
    device.refresh()
    before = device.on_disk()
    director = device.repositories.director
    good = director.signers["targets"]
    director.signers["targets"] = [CryptoSigner.generate_ed25519()]
    device.repositories.deploy(2)
    assert device.refused() == "trust.signature-invalid"
    assert {name: data for name, data in device.on_disk().items() if "image" not in name} == {
        name: data for name, data in before.items() if "image" not in name
    }
    director.signers["targets"] = good
    made = device.repositories.deploy(3)
    assert device.refresh().assignments == (made,)


def test_missing_files_are_a_matter_of_waiting(device: Device) -> None:
    device.repositories.deploy(1)
    director = device.repositories.director
    del director.files[f"{director.versions['snapshot']}.snapshot.json"]
    assert device.refused() == "cloud.unavailable"


def test_a_power_cut_between_any_two_files_is_survived(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.repositories.deploy(1)
    device.refresh()
    real = durable.write_file
    for survivors in range(8):
        device.repositories.director.rotate("timestamp")
        made = device.repositories.deploy(2 + survivors)
        written = 0

        def dying(path: Path, data: bytes, mode: int = 0o600, limit: int = survivors) -> None:
            nonlocal written
            if written == limit:
                raise KeyboardInterrupt
            written += 1
            real(path, data, mode)

        with monkeypatch.context() as patched:
            patched.setattr(durable, "write_file", dying)
            try:
                device.refresh()
            except KeyboardInterrupt:
                device.start()
        assert device.refresh().assignments == (made,)
