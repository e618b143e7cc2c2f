"""Somebody between the device and its registry, or in the registry's own storage, changes what the device is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_contract.digest import Digest
from edge_contract.errors import EdgeError
from tests.e2e.device import Device
from tests.e2e.front import Front, lying_front
from tests.e2e.stack import Shipment, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.system]

ROUNDS_MAX = 50


@dataclass
class Mark:
    """A device that is lied to, in one test after the other."""

    device: Device
    front: Front
    live: Shipment

    def refuses(self, code: str, stack: Stack, new: Shipment) -> None:
        """Require that the device names the error, keeps its model, and takes the new one when nobody lies any more."""
        device, front, old = self.device, self.front, self.live
        with device.asker() as asker:
            device.wait_error(code)
            asker.go_on()
            assert device.module()["live"] == str(old.manifest)
            assert set(asker.answered.values()) == {old.version}

            def cloud_knows() -> bool:
                with stack.client() as client:
                    error = client.device(device.name)["report"]["error"]
                return error is not None and error["code"] == code

            device.wait(cloud_knows, f"the registry to hear of {code}")
            assert stack.standing(new, device.name)["standing"] == "pending"
            front.honest()
            device.wait_confirmed(new.manifest)
            device.wait(lambda: device.errors() == set(), "the error to go")
            asker.wait_for(new.version)
        asker.require_flawless()
        self.live = new


@pytest.fixture(scope="module")
def mark_of_module(stack_of_session: Stack) -> Iterator[Mark]:
    """A device with a live model, behind the front."""
    stack_of_session.heal()
    with stack_of_session.ending_devices(), lying_front(stack_of_session.port) as front:
        device, first = stack_of_session.live_device("gate-1", "gate", front.url)
        yield Mark(device, front, first)


@pytest.fixture
def mark(mark_of_module: Mark) -> Mark:
    """The device, told the truth."""
    mark_of_module.front.honest()
    return mark_of_module


def _in(part: str, change: Callable[[bytes], bytes]) -> Callable[[str, bytes], bytes]:
    return lambda path, body: change(body) if part in path else body


def _other_version(body: bytes) -> bytes:
    """Signed targets that name another manifest: one digit of its digest."""
    document = json.loads(body)
    (file,) = document["signed"]["targets"].values()
    digest = file["hashes"]["sha256"]
    file["hashes"]["sha256"] = ("0" if digest[0] != "0" else "1") + digest[1:]
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param(
            _in(".targets.json", _other_version),
            "trust.signature-invalid",
            id="another-digest",
        ),
        pytest.param(_in("timestamp.json", lambda _: b"<html>"), "trust.metadata-invalid", id="no-metadata"),
        pytest.param(
            _in("timestamp.json", lambda body: body + b" " * 100_000), "trust.metadata-too-large", id="endless"
        ),
        pytest.param(
            _in("timestamp.json", lambda body: body.replace(b'"signatures"', b'"signatures":[],"x"')),
            "trust.signature-invalid",
            id="unsigned",
        ),
    ],
)
def test_metadata_that_was_changed_on_the_way_is_refused(
    stack: Stack, mark: Mark, change: Callable[[str, bytes], bytes], code: str
) -> None:
    new = _deploy_lied_to(stack, mark, change)
    mark.refuses(code, stack, new)


def test_the_metadata_of_another_device_is_refused(stack: Stack, mark: Mark) -> None:
    other = stack.device("gate-2", "gate")
    _outrun(stack, mark, other)
    mark.front.token = stack.variables["LIGHTERMAN_TOKEN"]
    mark.front.reroute = lambda path: path.replace(f"/director/{mark.device.name}/", f"/director/{other.name}/")
    new = stack.ship("gate", mark.live.version + 1, mark.device.name)
    mark.refuses("trust.wrong-device", stack, new)


def test_metadata_of_yesterday_are_refused(stack: Stack, mark: Mark) -> None:
    mark.front.is_recording = True
    recorded = f"/tuf/director/{mark.device.name}/timestamp.json"
    mark.device.wait(lambda: recorded in mark.front.records, "a poll to be recorded")
    mark.front.is_recording = False
    new = stack.ship("gate", mark.live.version + 1, mark.device.name)
    mark.device.wait_confirmed(new.manifest)
    mark.live = new
    mark.front.is_replaying = True
    mark.refuses("trust.metadata-rollback", stack, stack.ship("gate", new.version + 1, mark.device.name))


def test_a_blob_changed_in_the_registrys_storage_never_becomes_a_model(stack: Stack) -> None:
    device, first = stack.live_device("vault-1", "vault")
    with device.asker() as asker:
        asker.wait_for(1)
        shipped = stack.ship("vault", 2)
        path = stack.data / "oci" / "blobs" / "sha256" / shipped.blob.hex
        whole = path.read_bytes()
        assert Digest.of(whole) == shipped.blob
        _rewrite(path, whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
        with stack.client() as client:
            client.create_deployment("vault", 2, f"deviceId = '{device.name}'", "", {}, "", 0)
        device.wait_error("artifact.digest-mismatch")
        asker.go_on()
        assert device.module()["live"] == str(first.manifest)
        assert not (device.data / "blobs" / "sha256" / shipped.blob.hex).exists()
        assert not (device.data / "slots" / shipped.manifest.hex).exists()
        # The wire or the registry are the suspects, not the bundle: made whole again, it is taken.
        _rewrite(path, whole)
        device.wait_confirmed(shipped.manifest)
        asker.wait_for(2)
    asker.require_flawless()


def test_the_registry_refuses_a_bundle_that_nobody_signed(stack: Stack) -> None:
    shipped = stack.ship("forgery", 1)
    with stack.client() as client:
        manifest = json.loads(client.get_manifest("bundles/forgery", str(shipped.manifest)))
        manifest["annotations"]["forged"] = "yes"
        data = json.dumps(manifest).encode()
        forged = client.put_manifest("bundles/forgery", str(Digest.of(data)), manifest["mediaType"], data)
        index = json.loads(client.get_manifest("bundles/forgery", "1"))
        index["manifests"][0] |= {"digest": str(forged), "size": len(data)}
        data = json.dumps(index).encode()
        client.put_manifest("bundles/forgery", "forged", index["mediaType"], data)
    answer = _register_bundle(stack, Digest.of(data))
    assert answer == "trust.target-unknown"


def _outrun(stack: Stack, mark: Mark, other: Device) -> None:
    """Give another device newer metadata, so that they are refused for whose they are and for nothing else."""
    wanted = mark.device.status()["director_version"] + 2
    version = 0
    with stack.client() as client:
        for number in range(1, ROUNDS_MAX):
            policy = {"sampling_ratio": number / ROUNDS_MAX}
            client.create_deployment("gate", 1, f"deviceId = '{other.name}'", "", policy, "", 0)
            version = json.loads(client.tuf_file(f"director/{other.name}/timestamp.json"))["signed"]["version"]
            if version >= wanted:
                return
    raise AssertionError(f"the metadata of {other.name} stay at {version}, behind {wanted}")


def _register_bundle(stack: Stack, index: Digest) -> str:
    with stack.client() as client, pytest.raises(EdgeError) as refused:
        client.register_bundle("forgery", 1, index)
    return refused.value.code


def _deploy_lied_to(stack: Stack, mark: Mark, change: Callable[[str, bytes], bytes]) -> Shipment:
    director = f"/tuf/director/{mark.device.name}/"
    mark.front.change = lambda path, body: change(path, body) if path.startswith(director) else body
    return stack.ship("gate", mark.live.version + 1, mark.device.name)


def _rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
