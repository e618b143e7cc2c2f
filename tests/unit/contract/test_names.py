"""Names and paths: what passes is safe wherever it is used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_contract import names
from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from tests.unit.contract import strategies as some

BAD_NAMES = ["", "A", "a b", "a/b", "..", "a..b", ".a", "a.", "-a", "a-", "a\n", "\na", "a\x00", "é", "ａ", "a" * 65]


@pytest.mark.parametrize("value", BAD_NAMES)
def test_a_name_that_is_not_plain_is_refused(value: str) -> None:
    with pytest.raises(ContractError):
        names.model_name(value)


@pytest.mark.parametrize("value", ["", "a b", "a/b", "a+b", "a#", "$a", "-a", ".a", "_a", "a\n", "é", "a" * 65])
def test_a_device_name_is_safe_in_a_topic(value: str) -> None:
    with pytest.raises(ContractError):
        names.device_name(value)


@pytest.mark.parametrize("value", [None, 7, b"a", ["a"]])
def test_what_is_no_text_is_no_name(value: object) -> None:
    for check in (names.model_name, names.device_name, names.alias_name, names.platform_name, names.relative_path):
        with pytest.raises(ContractError):
            check(value)
    with pytest.raises(ContractError):
        names.tags({"a": value})


@pytest.mark.parametrize("value", ["1", "12", "Production", "a/b", "", "a\n"])
def test_a_number_is_never_an_alias(value: str) -> None:
    with pytest.raises(ContractError):
        names.alias_name(value)


@pytest.mark.parametrize("value", ["windows/amd64", "linux", "linux/arm64/v8", "linux/amd64 ", "LINUX/amd64"])
def test_a_platform_is_one_of_four(value: str) -> None:
    with pytest.raises(ContractError):
        names.platform_name(value)
    assert all(names.platform_name(known) == known for known in names.PLATFORMS)


@pytest.mark.parametrize(
    "value",
    [
        "", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/..", "../a", "a/../b", "a\\b", "a\x00", "a\nb", "a\t",
        " a", "a ", "a/ b", "a:b", "a*b", "a?b", "é", "a\u202eb", "a" * 256, "/".join("a" * 17),
    ],
)  # fmt: skip
def test_a_path_that_leaves_its_folder_or_is_not_plain_is_refused(value: str) -> None:
    with pytest.raises(ContractError) as caught:
        names.relative_path(value)
    assert caught.value.code == "artifact.path-unsafe"


@given(st.text(max_size=30))
def test_a_path_that_passes_stays_below_its_folder(value: str) -> None:
    try:
        path = names.relative_path(value)
    except ContractError:
        return
    assert path == value
    assert path.isascii()
    assert all(part not in ("", ".", "..") for part in path.split("/"))


@given(some.names, some.names)
def test_a_repository_is_names_joined_by_slashes(first: str, second: str) -> None:
    assert names.repository_name(f"{first}/{second}") == f"{first}/{second}"


@pytest.mark.parametrize("value", ["", "/a", "a/", "a//b", "../a", "a/..", "a?b", "a#b", "A/b", "a b", "a" * 256, 7])
def test_a_repository_cannot_lead_a_request_elsewhere(value: str) -> None:
    with pytest.raises(ContractError):
        names.repository_name(value)


@pytest.mark.parametrize(
    "value",
    [
        "", "sha256:", "sha256:" + "g" * 64, "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha256:" + "a" * 65,
        "sha512:" + "a" * 64, "sha256:" + "a" * 64 + "\n", " sha256:" + "a" * 64, "sha256:" + "٣" * 64, 7, None, [],
        Digest.of(b"x"),
    ],
)  # fmt: skip
def test_nothing_but_a_digest_is_a_digest(value: object) -> None:
    with pytest.raises(ContractError):
        Digest(value)  # type: ignore[arg-type]


@given(st.binary(max_size=64))
def test_a_digest_is_read_back_from_its_digits(data: bytes) -> None:
    digest = Digest.of(data)
    assert Digest.from_hex(digest.hex) == digest == Digest(str(digest)) == Digest.of(memoryview(data))
    assert digest.hex.startswith(digest.short)
