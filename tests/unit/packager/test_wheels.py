"""Wheels: for which platform, and what no device would unpack."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from edge_contract.errors import EdgeError
from packager.wheels import for_platform, read_wheel, resolve_requirements, unpack_wheel
from tests.unit.packager.support import write_wheel

ANY = "pure_part-1.0-py3-none-any.whl"
X86 = "fast-2.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
ARM = "fast-2.0-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl"


@pytest.mark.parametrize(
    ("name", "platforms"),
    [
        (ANY, None),
        (X86, {"linux/amd64"}),
        (ARM, {"linux/arm64"}),
        ("fast-2.0-1-cp311-cp311-linux_armv7l.whl", {"linux/arm/v7"}),
        ("fast-2.0-cp311-cp311-linux_armv6l.linux_armv7l.whl", {"linux/arm/v6", "linux/arm/v7"}),
    ],
)
def test_the_name_says_for_which_platform(tmp_path: Path, name: str, platforms: set[str] | None) -> None:
    found = read_wheel(write_wheel(tmp_path, name, {"a.py": ""})).platforms
    assert found == (None if platforms is None else frozenset(platforms))


@pytest.mark.parametrize(
    "name",
    [
        "a.whl",
        "fast-2.0-cp311-cp311-macosx_11_0_arm64.whl",
        "fast-2.0-cp311-cp311-win_amd64.whl",
        "fast-2.0-cp311-cp311-manylinux_2_17_s390x.whl",
        "fast 2.0-py3-none-any.whl",
    ],
)
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(EdgeError) as caught:
        read_wheel(write_wheel(tmp_path, name, {"a.py": ""}))
    assert caught.value.code == "config.invalid"


def test_each_platform_gets_its_own(tmp_path: Path) -> None:
    wheels = [read_wheel(write_wheel(tmp_path, name, {"a.py": ""})) for name in (ANY, X86, ARM)]
    assert [wheel.source.name for wheel in for_platform(wheels, "linux/amd64")] == [X86, ANY]
    assert [wheel.source.name for wheel in for_platform(wheels, "linux/arm64")] == [ARM, ANY]
    with pytest.raises(EdgeError, match="no wheel of fast for linux/arm/v7"):
        for_platform(wheels, "linux/arm/v7")


def test_two_versions_of_one_distribution_are_refused(tmp_path: Path) -> None:
    other = "Pure.Part-1.1-py3-none-any.whl"
    wheels = [read_wheel(write_wheel(tmp_path, name, {"a.py": ""})) for name in (ANY, other)]
    with pytest.raises(EdgeError, match="are both pure-part"):
        for_platform(wheels, "linux/amd64")


@pytest.mark.parametrize("entry", ["../a.py", "/a.py", "a/../../b.py", "a\\b.py", "a//b.py", "./a.py"])
def test_entries_that_leave_the_folder_are_refused(tmp_path: Path, entry: str) -> None:
    path = write_wheel(tmp_path, ANY, {entry: "boo"})
    for action in (read_wheel, lambda wheel: unpack_wheel(wheel, tmp_path / "site")):
        with pytest.raises(EdgeError) as caught:
            action(path)
        assert caught.value.code == "artifact.path-unsafe"
    assert not list(tmp_path.rglob("*.py"))


def test_a_link_in_a_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ANY
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(EdgeError) as caught:
        read_wheel(path)
    assert caught.value.code == "artifact.entry-forbidden"


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / ANY
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.py", "good")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.py", "evil")
    with pytest.raises(EdgeError) as caught:
        read_wheel(path)
    assert caught.value.code == "artifact.archive-invalid"


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = write_wheel(tmp_path, ANY, {"zeros.bin": "\0" * 50_000_000})
    assert path.stat().st_size < 100_000
    with pytest.raises(EdgeError) as caught:
        read_wheel(path)
    assert caught.value.code == "artifact.archive-bomb"


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ANY
    path.write_bytes(content)
    with pytest.raises(EdgeError) as caught:
        read_wheel(path)
    assert caught.value.code == "artifact.archive-invalid"


def test_a_wheel_unpacks_to_importable_files(tmp_path: Path) -> None:
    site = tmp_path / "site"
    unpack_wheel(write_wheel(tmp_path, ANY, {"part/__init__.py": "x = 1", "part/data.txt": "data"}), site)
    assert (site / "part" / "data.txt").read_text() == "data"


def test_requirements_resolve_to_wheels_from_a_local_folder(tmp_path: Path) -> None:
    metadata = "Metadata-Version: 2.1\nName: pure-part\nVersion: 1.0\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    write_wheel(
        tmp_path / "shelf",
        ANY,
        {
            "pure_part.py": "",
            "pure_part-1.0.dist-info/METADATA": metadata,
            "pure_part-1.0.dist-info/WHEEL": wheel,
            "pure_part-1.0.dist-info/RECORD": "",
        },
    )
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"--no-index\n--find-links {tmp_path / 'shelf'}\npure-part==1.0\n")
    (tmp_path / "wheels").mkdir()
    found = resolve_requirements(requirements, "3.11", ("linux/amd64", "linux/arm64"), tmp_path / "wheels")
    assert [path.name for path in found] == [ANY]
    requirements.write_text(f"--no-index\n--find-links {tmp_path / 'shelf'}\npure-part==2.0\n")
    with pytest.raises(EdgeError, match="does not resolve for linux/amd64"):
        resolve_requirements(requirements, "3.11", ("linux/amd64",), tmp_path / "wheels")
