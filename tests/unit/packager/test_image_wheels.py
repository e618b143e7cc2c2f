"""Wheels of an image: which go in, by their tags and requirements, and what of them."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edge_contract.errors import EdgeError
from packager.iotedge.image_wheels import Target, WheelHouse, files_of, read_locks
from tests.support.images import wheel

AMD64 = Target("linux/amd64", 11)
ARM64 = Target("linux/arm64", 11)
ARM32 = Target("linux/arm/v7", 11)


def chosen(folder: Path, *wanted: str, target: Target = AMD64, **options: Any) -> list[str]:
    options = {"provided": frozenset(), "lock": None} | options
    return [item.path.name for item in WheelHouse([folder]).choose(wanted or ("app",), target, **options)]


def refused(folder: Path, *wanted: str, **options: Any) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        chosen(folder, *wanted, **options)
    return caught.value


def test_what_is_required_comes_along_and_nothing_else(tmp_path: Path) -> None:
    wheel(tmp_path, "app", requires=["Lib-A>=1", 'extra_one; extra == "one"', 'never; sys_platform == "win32"'])
    wheel(tmp_path, "lib_a", requires=['older; python_version < "3.11"', "leaf"])
    wheel(tmp_path, "leaf", requires=["app"])
    wheel(tmp_path, "extra_one")
    wheel(tmp_path, "stranger")
    assert [name.split("-")[0] for name in chosen(tmp_path)] == ["app", "leaf", "lib_a"]
    assert [name.split("-")[0] for name in chosen(tmp_path, "app[one]")] == ["app", "extra_one", "leaf", "lib_a"]


def test_each_platform_gets_the_wheel_that_runs_there(tmp_path: Path) -> None:
    names = {}
    for target, tags in (
        (AMD64, "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64"),
        (ARM64, "cp37-abi3-manylinux_2_28_aarch64"),
        (ARM32, "cp311-cp311-linux_armv7l"),
    ):
        names[target] = wheel(tmp_path, "app", tags=tags).name
    for target, name in names.items():
        assert chosen(tmp_path, target=target) == [name]


@pytest.mark.parametrize(
    "tags",
    [
        "cp311-cp311-musllinux_1_2_x86_64",
        "cp312-cp312-manylinux_2_17_x86_64",
        "cp312-abi3-manylinux_2_17_x86_64",
        "cp311-cp311-win_amd64",
        "cp311-cp311-manylinux_2_17_aarch64",
        "py2-none-any",
    ],
)
def test_a_wheel_for_something_else_is_none(tmp_path: Path, tags: str) -> None:
    wheel(tmp_path, "app", tags=tags)
    error = refused(tmp_path)
    assert error.code == "config.invalid"
    assert "app" in error.detail
    assert "linux/amd64" in error.detail


def test_of_two_wheels_the_one_for_the_older_system_is_taken(tmp_path: Path) -> None:
    wheel(tmp_path, "app", tags="cp311-cp311-manylinux_2_34_x86_64")
    old = wheel(tmp_path, "app", tags="cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64")
    assert chosen(tmp_path) == [old.name]


def test_a_special_wheel_goes_before_one_for_everybody(tmp_path: Path) -> None:
    wheel(tmp_path, "app", tags="py3-none-any")
    special = wheel(tmp_path, "app", tags="cp311-cp311-manylinux_2_28_x86_64")
    assert chosen(tmp_path) == [special.name]


def test_an_extra_that_the_agent_does_not_have_is_refused(tmp_path: Path) -> None:
    wheel(tmp_path, "lighterman", extras=["agent"])
    error = refused(tmp_path, "lighterman[agnet]")
    assert "agnet" in error.detail
    assert "agent" in (error.hint or "")


def test_two_versions_are_no_choice(tmp_path: Path) -> None:
    wheel(tmp_path, "app", "1.0")
    wheel(tmp_path, "app", "2.0")
    assert "app-1.0" in refused(tmp_path).detail


def test_a_version_that_does_not_do_is_refused(tmp_path: Path) -> None:
    wheel(tmp_path, "app", requires=["lib>=2"])
    wheel(tmp_path, "lib", "1.0")
    error = refused(tmp_path)
    assert "lib>=2" in error.detail
    assert "lib-1.0" in error.detail


def test_what_the_base_has_is_needed_where_no_wheel_fits(tmp_path: Path) -> None:
    wheel(tmp_path, "app", requires=["numpy>=2"])
    assert "numpy" in refused(tmp_path).detail
    wheel(tmp_path, "numpy", "2.1", "cp311-cp311-manylinux_2_28_aarch64")
    has_numpy = frozenset({"numpy"})
    assert len(chosen(tmp_path, target=ARM32, provided=has_numpy)) == 1
    assert len(chosen(tmp_path, target=ARM64, provided=has_numpy)) == 2


def test_a_lock_decides_which_bytes_are_genuine(tmp_path: Path) -> None:
    path = wheel(tmp_path / "wheels", "App_Lib")
    wheel(tmp_path / "wheels", "lighterman", requires=["app-lib"])  # our own is in no lock
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        f"app-lib==1.0 ; python_version >= '3' \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{digest}\n"
    )
    assert len(chosen(tmp_path / "wheels", "lighterman", lock=read_locks([lock]))) == 2
    path.write_bytes(path.read_bytes() + b"\0")
    error = refused(tmp_path / "wheels", "lighterman", lock=read_locks([lock]))
    assert error.code == "artifact.digest-mismatch"
    assert path.name in error.detail
    more = tmp_path / "more.lock"
    more.write_text(f"app-lib==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    assert len(chosen(tmp_path / "wheels", "lighterman", lock=read_locks([lock, more]))) == 2
    lock.write_text("app-lib==1.0\n")
    with pytest.raises(EdgeError, match="no distribution"):
        read_locks([lock])


def test_a_folder_without_wheels_or_with_odd_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="0 wheels"):
        WheelHouse([tmp_path])
    (tmp_path / "odd.whl").write_bytes(b"")
    with pytest.raises(EdgeError, match=r"odd\.whl"):
        WheelHouse([tmp_path])


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {file.path: b"".join(file.chunks()) for file in files_of(archive)}


def test_files_go_where_they_are_imported_from(tmp_path: Path) -> None:
    files = {
        "app/one.py": b"1",
        "app-1.0.data/purelib/app/two.py": b"2",
        "app-1.0.data/platlib/app/three.so": b"3",
        "app-1.0.data/scripts/app": b"#!python\n",
        "app-1.0.data/data/share/x": b"x",
        "app-1.0.data/headers/app.h": b"h",
    }
    found = contents(wheel(tmp_path, "app", files=files))
    assert {path: data for path, data in found.items() if "dist-info" not in path} == {
        "app/one.py": b"1",
        "app/two.py": b"2",
        "app/three.so": b"3",
    }
    assert "app-1.0.dist-info/RECORD" in found


def test_a_file_that_is_not_what_the_wheel_lists_is_refused(tmp_path: Path) -> None:
    other = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"
    with pytest.raises(EdgeError, match="RECORD") as caught:
        contents(wheel(tmp_path, "app", files={"app.py": b"1"}, record={"app.py": other}))
    assert caught.value.code == "artifact.digest-mismatch"


def test_a_file_that_the_wheel_does_not_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"app\.py") as caught:
        contents(wheel(tmp_path, "app", files={"app.py": b"1"}, unlisted=["app.py"]))
    assert caught.value.code == "artifact.archive-invalid"


def test_a_wheel_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    wheel(tmp_path, "app", files={"../escape.py": b"1"})
    assert refused(tmp_path).code == "artifact.path-unsafe"
