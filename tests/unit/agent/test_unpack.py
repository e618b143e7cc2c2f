"""Hostile archives. Nothing of them may reach the disk outside the slot, and none may exhaust the device."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from edge_agent.limits import BOMB_FREE_BYTES
from edge_agent.store.limits import ENTRY_BYTES
from edge_agent.store.unpack import tar_bytes, tar_entries, wheel_bytes, wheel_entries
from edge_contract.errors import ContractError
from edge_contract.limits import UNPACK_ENTRIES_MAX


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for info, data in entries:
            info.size = len(data) if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, data


def wheel(files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None, level: int = 0) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", level or zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = level or zipfile.ZIP_STORED
            if change is not None:
                change(info)
            archive.writestr(info, data)
    return target.getvalue()


def read_tar(data: bytes) -> dict[str, bytes | None]:
    return {
        item.path: None if item.is_folder else b"".join(item.chunks) for item in tar_entries(io.BytesIO(data), "layer")
    }


def read_wheel(data: bytes) -> dict[str, bytes | None]:
    return {
        item.path: None if item.is_folder else b"".join(item.chunks)
        for item in wheel_entries(io.BytesIO(data), "layer")
    }


def refused(read: Callable[[bytes], object], data: bytes) -> str:
    with pytest.raises(ContractError) as caught:
        read(data)
    return caught.value.code


UNSAFE = [
    "../evil",
    "a/../../evil",
    "/etc/passwd",
    "//etc/passwd",
    "a//b",
    "a/./b",
    "..",
    "C:\\evil",
    "a\\..\\b",
    "a\nb",
    "a\x01b",
    " a",
    "ü",
    "x/" * 17 + "x",
    "n" * 256,
]


# --- tar
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_files_and_folders_come_out(form: int) -> None:
    deep = "package/" + "long-name-" * 9 + ".py"
    data = tar(
        entry("package", tarfile.DIRTYPE), entry("./package/a.py", data=b"a" * 1000), entry(deep, data=b"b"), form=form
    )
    assert read_tar(data) == {"package": None, "package/a.py": b"a" * 1000, deep: b"b"}


def test_a_large_file_comes_in_pieces() -> None:
    data = tar(entry("big", data=b"x" * 3_000_000))
    (item,) = list(tar_entries(io.BytesIO(data), "layer"))
    (again,) = tar_entries(io.BytesIO(data), "layer")
    assert item.path == again.path == "big"
    assert read_tar(data)["big"] == b"x" * 3_000_000


def test_an_empty_archive_is_fine() -> None:
    assert read_tar(tar()) == {}
    assert read_tar(tar(entry("./", tarfile.DIRTYPE), entry("a"))) == {"": None, "a": b""}


@pytest.mark.parametrize("name", UNSAFE)
def test_a_tar_entry_with_an_unsafe_path_is_refused(name: str) -> None:
    assert refused(read_tar, tar(entry(name, data=b"x"))) == "artifact.path-unsafe"
    assert refused(read_tar, tar(entry("ok"), entry(name, tarfile.DIRTYPE))) == "artifact.path-unsafe"


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Z"],
)
def test_a_tar_entry_that_is_no_plain_file_is_refused(kind: bytes) -> None:
    assert refused(read_tar, tar(entry("link", kind, link="/etc/passwd"))) == "artifact.entry-forbidden"


def test_a_sparse_file_is_refused() -> None:
    info, _ = entry("sparse")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": str(10**15),
    }
    assert refused(read_tar, tar((info, b"x"))) in ("artifact.entry-forbidden", "artifact.archive-bomb")


def test_a_size_in_an_extension_header_is_not_believed() -> None:
    info, _ = entry("big")
    info.pax_headers = {"size": str(10**15)}
    assert refused(read_tar, tar((info, b"x"))) in ("artifact.archive-bomb", "artifact.archive-invalid")
    info.pax_headers = {"size": "-1000"}
    assert refused(read_tar, tar((info, b"x"))) == "artifact.archive-invalid"


def test_a_negative_size_in_a_header_is_refused() -> None:
    data = bytearray(tar(entry("a", data=b"x" * 600)))
    data[124:136] = b"\xff" * 12  # base-256 minus one
    assert refused(read_tar, _with_sum(data)) in ("artifact.archive-invalid", "artifact.archive-bomb")


def test_a_giant_extension_header_is_not_read_into_memory() -> None:
    info, _ = entry("a")
    info.pax_headers = {"comment": "c" * 2_000_000}
    assert refused(read_tar, tar((info, b"x"))) == "artifact.archive-bomb"


def test_a_chain_of_extension_headers_is_refused() -> None:
    (one,) = [tar((_commented(), b""))[: 512 * 2]]
    assert refused(read_tar, one * 5000) == "artifact.archive-invalid"


def _commented() -> tarfile.TarInfo:
    info, _ = entry("a")
    info.pax_headers = {"comment": "c"}
    return info


def test_too_many_entries_are_refused() -> None:
    header = tar(entry("a"))[:512]
    assert refused(read_tar, header * (UNPACK_ENTRIES_MAX + 1)) == "artifact.archive-bomb"


def test_a_truncated_tar_is_refused() -> None:
    whole = tar(entry("a", data=b"x" * 5000))
    assert refused(read_tar, whole[:3000]) == "artifact.archive-invalid"
    assert refused(read_tar, whole[:300]) == "artifact.archive-invalid"
    assert refused(read_tar, b"") == "artifact.archive-invalid"


def test_a_broken_header_is_not_taken_for_the_end() -> None:
    data = bytearray(tar(entry("a", data=b"x" * 512), entry("b", data=b"y" * 512)))
    data[1024 + 10] ^= 0xFF
    assert refused(read_tar, bytes(data)) == "artifact.archive-invalid"


def test_what_is_no_tar_is_refused() -> None:
    for data in (b"x" * 5000, wheel({"a": b"b"}), b"\x1f\x8b" + b"\x00" * 600):
        assert refused(read_tar, data) == "artifact.archive-invalid"


def _with_sum(data: bytearray) -> bytes:
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    return bytes(data)


# --- wheels
# -------------------------------------------------------------------------------------------------------------


def test_the_library_of_a_wheel_comes_out() -> None:
    data = wheel(
        {
            "lib/__init__.py": b"1",
            "lib-1.0.dist-info/RECORD": b"2",
            "lib-1.0.data/purelib/pure.py": b"3",
            "lib-1.0.data/platlib/native/x.so": b"4",
            "lib-1.0.data/scripts/run": b"5",
            "lib-1.0.data/data/etc/x": b"6",
        },
        level=zipfile.ZIP_DEFLATED,
    )
    assert read_wheel(data) == {
        "lib/__init__.py": b"1",
        "lib-1.0.dist-info/RECORD": b"2",
        "pure.py": b"3",
        "native/x.so": b"4",
    }
    assert wheel_bytes(io.BytesIO(data), "layer") == 6 * ENTRY_BYTES


def test_the_space_that_an_archive_takes_is_counted_in_blocks() -> None:
    files = {"empty": b"", "one": b"1", "full": b"x" * ENTRY_BYTES, "more": b"x" * (ENTRY_BYTES + 1)}
    assert tar_bytes(io.BytesIO(tar(*(entry(name, data=data) for name, data in files.items()))), "layer") == (
        wheel_bytes(io.BytesIO(wheel(files)), "layer")
    )
    assert wheel_bytes(io.BytesIO(wheel(files)), "layer") == 5 * ENTRY_BYTES


@pytest.mark.parametrize("name", [name for name in UNSAFE if name != "ü"])
def test_a_wheel_entry_with_an_unsafe_path_is_refused(name: str) -> None:
    assert refused(read_wheel, wheel({name: b"x"})) == "artifact.path-unsafe"
    assert refused(read_wheel, wheel({f"x.data/purelib/{name}": b"x"})) == "artifact.path-unsafe"


def test_a_name_cut_at_a_zero_byte_is_refused() -> None:
    assert refused(read_wheel, wheel({"abcd": b"x"}).replace(b"abcd", b"ab\0d")) == "artifact.path-unsafe"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_a_wheel_entry_that_is_no_plain_file_is_refused(kind: int) -> None:
    def change(info: zipfile.ZipInfo) -> None:
        info.external_attr = (kind | 0o777) << 16

    assert refused(read_wheel, wheel({"link": b"/etc/passwd"}, change)) == "artifact.entry-forbidden"


@pytest.mark.parametrize("level", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_odd_compression_is_refused(level: int) -> None:
    assert refused(read_wheel, wheel({"a": b"x"}, level=level)) == "artifact.archive-invalid"


def test_an_encrypted_entry_is_refused() -> None:
    data = bytearray(wheel({"a": b"x"}))
    place = data.rfind(b"PK\x01\x02")
    data[place + 8] |= 1
    assert refused(read_wheel, bytes(data)) == "artifact.archive-invalid"


def test_a_wheel_that_unpacks_to_far_more_is_a_bomb() -> None:
    bomb = wheel({"zeros": b"\0" * (BOMB_FREE_BYTES * 8)}, level=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 20_000
    assert refused(read_wheel, bomb) == "artifact.archive-bomb"


def test_a_bomb_that_lies_about_its_size_is_noticed_while_it_unpacks() -> None:
    data = bytearray(wheel({"zeros": b"\0" * (BOMB_FREE_BYTES * 8)}, level=zipfile.ZIP_DEFLATED))
    place = data.rfind(b"PK\x01\x02")
    struct.pack_into("<L", data, place + 24, 10)
    assert refused(read_wheel, bytes(data)) == "artifact.archive-invalid"  # its sum is wrong behind ten bytes


def test_many_names_for_the_same_compressed_bytes_are_a_bomb() -> None:
    """Entries that overlap give an archive a far higher ratio than deflate can."""
    data = wheel({"zeros": b"\0" * (BOMB_FREE_BYTES // 2)}, level=zipfile.ZIP_DEFLATED)
    place = data.rfind(b"PK\x01\x02")
    end = data.rfind(b"PK\x05\x06")
    directory = data[place:end] * 50
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 50, 50, len(directory), place, 0)
    # Newer zipfile modules notice the overlap by themselves.
    code = refused(read_wheel, data[:place] + directory + tail)
    assert code in ("artifact.archive-bomb", "artifact.archive-invalid")


def test_a_giant_directory_is_not_read_into_memory() -> None:
    data = bytearray(wheel({"a": b"x"}))
    end = data.rfind(b"PK\x05\x06")
    for field, value in ((8, UNPACK_ENTRIES_MAX + 1), (10, UNPACK_ENTRIES_MAX + 1)):
        struct.pack_into("<H", data, end + field, value)
    assert refused(read_wheel, bytes(data)) == "artifact.archive-bomb"
    data = bytearray(wheel({"a": b"x"}))
    struct.pack_into("<L", data, end + 12, 2**31)
    assert refused(read_wheel, bytes(data)) == "artifact.archive-bomb"


def test_a_64_bit_locator_is_refused() -> None:
    data = wheel({"a": b"x"})
    end = data.rfind(b"PK\x05\x06")
    locator = b"PK\x06\x07" + b"\0" * 16
    assert refused(read_wheel, data[:end] + locator + data[end:]) == "artifact.layer-unsupported"


def test_a_damaged_or_truncated_wheel_is_refused() -> None:
    whole = wheel({"a": b"x" * 1000, "b": b"y" * 1000}, level=zipfile.ZIP_DEFLATED)
    for data in (b"", b"PK", whole[:-10], whole[10:], whole[: len(whole) // 2], b"\0" * 5000):
        assert refused(read_wheel, data) == "artifact.archive-invalid"
    for place in range(30, len(whole) - 22, 7):
        spoiled = bytearray(whole)
        spoiled[place] ^= 0x55
        with_errors: dict[str, Any] = {}
        try:
            with_errors = read_wheel(bytes(spoiled))
        except ContractError:
            continue
        # A byte that carries no meaning (a time, a version) may differ; contents never may.
        assert set(with_errors.values()) == {b"x" * 1000, b"y" * 1000}
