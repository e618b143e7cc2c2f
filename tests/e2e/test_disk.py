"""A disk that fills up, and one that spoils what it holds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import Stack, exactly_once
from tests.support.proxy import rough_proxy
from tests.support.require import require_root

pytestmark = [pytest.mark.e2e, pytest.mark.system]

MIB = 1024 * 1024
DISK = 12 * MIB
TRICKLE_S = 0.01
HOLD_MS = 61_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with little room."""
    require_root("mounting a small file system")
    mount = tmp_path / "disk"
    mount.mkdir()
    how = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "lighterman-test", str(mount)]
    done = subprocess.run(how, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True, capture_output=True)


def test_a_disk_that_fills_up_during_a_download_holds_it_until_there_is_room(stack: Stack, small_disk: Path) -> None:
    with rough_proxy(stack.port) as proxy:
        device, first = stack.live_device(
            "barge-1", "barge", f"http://127.0.0.1:{proxy.port}", data=small_disk / "data", is_clocked=True
        )
        with device.asker() as asker:
            asker.wait_for(1)
            proxy.delay_s = TRICKLE_S
            second = stack.ship("barge", 2, device.name, padding_bytes=6 * MIB)
            device.wait(lambda: device.partial_bytes() > MIB, "the download to be under way")
            ballast = _fill(small_disk / "ballast")
            device.wait_error("device.disk-full")
            proxy.delay_s = 0.0
            asker.go_on()
            # Reports leave the device although nothing more can be written on it.

            def cloud_knows() -> bool:
                with stack.client() as client:
                    report = client.device(device.name)["report"]
                deployment = report["modules"]["barge"]["deployment"]
                return "device.disk-full" in {
                    error["code"] for error in (report["error"], deployment["error"]) if error is not None
                }

            device.wait(cloud_knows, "the registry to hear of the disk")
            assert device.module()["live"] == str(first.manifest)
            ballast.unlink()
            device.set_clock(passed_ms=HOLD_MS)  # a full disk is looked at once a minute
            device.wait_confirmed(second.manifest)
            asker.wait_for(2)
            assert device.errors() == set()
        asker.require_flawless()
        assert stack.wait_standing(second, device.name, "confirmed")["error"] is None


def test_an_agent_that_starts_on_a_full_disk_serves_its_live_model(stack: Stack, small_disk: Path) -> None:
    device, _ = stack.live_device("skiff-1", "skiff", data=small_disk / "data")
    ballast = _fill(small_disk / "ballast")
    device.kill()
    device.start()
    device.wait(lambda: device.module().get("serving"), "the live model to be served again")
    device.wait_error("device.disk-full")
    with device.asker() as asker:
        asker.go_on()
        ballast.unlink()
        second = stack.ship("skiff", 2, device.name)
        device.wait_confirmed(second.manifest)
        device.wait(lambda: device.errors() == set(), "the error to go")
        asker.wait_for(2)
        with_room = len(asker.answered)
        asker.go_on()
    asker.require_flawless()
    exactly_once(stack, device, set(list(asker.answered)[with_room:]))
    assert device.status()["spool"]["dropped"] > 0, "what there was no room for is counted"


def test_a_bundle_that_can_never_fit_is_not_even_begun(stack: Stack, small_disk: Path) -> None:
    device, first = stack.live_device("punt-1", "punt", data=small_disk / "data")
    with device.asker() as asker:
        asker.wait_for(1)
        stack.ship("punt", 2, device.name, padding_bytes=DISK)
        device.wait_error("device.disk-full")
        asker.go_on()
        assert device.partial_bytes() == 0
        assert device.module()["live"] == str(first.manifest)
        detail = device.module()["deployment"]["error"]["detail"]
        assert str(small_disk) in detail
        # A smaller one takes its place at once.
        third = stack.ship("punt", 3, device.name)
        device.wait_confirmed(third.manifest)
        asker.wait_for(3)
    asker.require_flawless()


def test_verify_finds_one_flipped_byte(stack: Stack) -> None:
    device, first = stack.live_device("pontoon-1", "pontoon")
    second = stack.ship("pontoon", 2, device.name, padding_bytes=MIB)
    device.wait_confirmed(second.manifest)
    sound = stack.run("edge-agent", "verify", "--all", "--config", str(device.config), "--json")
    assert (sound.exit_code, sound.document["damaged"]) == (0, 0)
    with device.asker() as asker:
        asker.wait_for(2)
        _flip_a_byte(device.data / "blobs" / "sha256" / first.blob.hex)
        found = stack.run("edge-agent", "verify", "--all", "--config", str(device.config), "--json")
        assert found.exit_code == 6
        bad = [item["error"] for item in found.document["findings"] if item["error"]]
        assert {error["code"] for error in bad} == {"device.disk-corrupt"}
        assert any(first.blob.hex in error["detail"] for error in bad)
        said = stack.run("edge-agent", "verify", "--config", str(device.config))
        assert said.exit_code == 6
        assert "device.disk-corrupt" in said.stdout
        asker.go_on()
    asker.require_flawless()


def test_a_live_model_that_the_disk_spoiled_is_not_served_after_a_restart(stack: Stack) -> None:
    device, _ = stack.live_device("float-1", "float")
    second = stack.ship("float", 2, device.name)
    device.wait_confirmed(second.manifest)
    device.stop()
    _flip_a_byte(device.data / "blobs" / "sha256" / second.blob.hex)
    with device.asker() as asker:
        with asker.expecting_silence():
            device.start()
            device.wait(lambda: device.module().get("serving"), "a model to be up")
            asker.go_on(1)
        asker.go_on()
    # Version 1 answers, or version 2 from a fresh copy; never the damaged one, which is what `failed` would show.
    assert asker.failed == []


def _fill(path: Path) -> Path:
    """Write until nothing more goes in."""
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


def _flip_a_byte(path: Path) -> None:
    """Damage a file in place, as a bad sector would: links to it see it too."""
    place = path.stat().st_size // 2
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x40]))
    path.chmod(0o444)
