"""Strict reading and reproducible writing of JSON (RFC 8259).

The reader refuses what two parsers could understand differently: duplicate keys, NaN and infinities, invalid UTF-8,
lone surrogates, and anything deeper or longer than its bound. The writer gives the same bytes for the same value.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

from edge_contract.errors import ContractError
from edge_contract.limits import JSON_DEPTH_MAX, TEXT_CHARS_MAX

JsonObject = dict[str, Any]

# A string with its quotes, the last of them missing where the document was cut. Possessive, and matching in every case,
# so that no document makes it look at a byte twice.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> JsonObject:
    result: JsonObject = {}
    for key, value in pairs:
        if key in result:
            raise ContractError("artifact.duplicate-key", f"the key {key!r} stands twice in one object")
        result[key] = value
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ContractError("artifact.document-invalid", f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):  # 1e999 is valid JSON, and no number that anybody could write back
        raise ContractError("artifact.document-invalid", f"{text[:40]} is too large a number")
    return value


def is_nested_deeper(data: bytes, levels: int) -> bool:
    """Whether a JSON document nests deeper than so many levels, or does not close what it opens.

    Found without parsing, so that a hostile document cannot exhaust the parser's stack, and with a few passes in
    compiled code over data that shrink: a loop over bytes would cost a small device a second a megabyte.
    """
    if data.count(b"{") + data.count(b"[") <= levels:
        return False
    brackets = _STRING.sub(b"", data).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(levels):
        brackets = brackets.replace(b"[]", b"")  # what holds nothing (any more) goes: one level a pass
    return bool(brackets)


def _is_text(value: Any, chars_max: int) -> bool:
    """Whether a value is a string within its bound that UTF-8 can hold; other readers let lone surrogates through."""
    if not isinstance(value, str) or len(value) > chars_max:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def parse_object(data: bytes, what: str, bytes_max: int) -> JsonObject:
    """Read one JSON object strictly.

    Args:
        data: The bytes of the document, already verified where they need to be.
        what: Name of the document for messages, for example "manifest".
        bytes_max: Upper bound of `len(data)`.

    Returns:
        The object.

    Raises:
        ContractError: `artifact.document-too-large`, `artifact.duplicate-key` or `artifact.document-invalid`.
    """
    if len(data) > bytes_max:
        raise ContractError(
            "artifact.document-too-large", f"{what} has {len(data)} bytes, at most {bytes_max} are allowed"
        )
    if is_nested_deeper(data, JSON_DEPTH_MAX):
        raise ContractError(
            "artifact.document-invalid", f"{what} is nested deeper than {JSON_DEPTH_MAX} levels, or not closed"
        )
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if "\\u" in data.decode("utf-8"):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates fail here
    except ContractError:
        raise
    except (UnicodeError, ValueError, RecursionError) as error:
        raise ContractError("artifact.document-invalid", f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ContractError("artifact.document-invalid", f"{what} has to be a JSON object")
    return value


def dump(value: Mapping[str, Any]) -> bytes:
    """Write JSON reproducibly: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


class Fields:
    """Typed access to the fields of one JSON object, refusing fields nobody asked for.

    Use: take every known field with one of the getters, then call `close`, which refuses what is left over.
    """

    def __init__(self, value: Any, what: str, code: str = "artifact.document-invalid") -> None:
        """Wrap an object.

        Args:
            value: What has to be a JSON object.
            what: Name for messages.
            code: Error code for missing or ill-typed fields.

        Raises:
            ContractError: `code`, if the value is not an object.
        """
        self._what = what
        self._code = code
        if not isinstance(value, dict):
            raise ContractError(code, f"{what} has to be a JSON object")
        self._value: JsonObject = value
        self._seen: set[str] = set()

    def _fail(self, key: str, need: str) -> NoReturn:
        raise ContractError(self._code, f"{self._what}: field {key!r} has to be {need}")

    def take(self, key: str, default: Any = None) -> Any:
        """The raw value of a field, `default` when absent; marks it known."""
        self._seen.add(key)
        return self._value.get(key, default)

    def text(self, key: str, default: str | None = None, chars_max: int = TEXT_CHARS_MAX) -> str:
        """A string of at most `chars_max` characters; required when there is no default."""
        value = self.take(key, default)
        if not _is_text(value, chars_max):
            self._fail(key, f"a string of at most {chars_max} characters")
        return str(value)

    def integer(self, key: str, default: int | None = None, low: int = 0, high: int = 2**53 - 1) -> int:
        """A whole number within `low..high`; required when there is no default."""
        value = self.take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self._fail(key, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0, high: float = 1e308) -> float:
        """A finite number within `low..high`; required when there is no default."""
        value = self.take(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            self._fail(key, f"a number from {low} to {high}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A boolean; required when there is no default."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            self._fail(key, "true or false")
        return value

    def items(self, key: str, count_max: int, required: bool = False) -> list[Any]:
        """An array of at most `count_max` items; empty when absent and not required."""
        value = self.take(key, None if required else [])
        if not isinstance(value, list) or len(value) > count_max:
            self._fail(key, f"an array of at most {count_max} items")
        return value

    def texts(self, key: str, count_max: int, chars_max: int = TEXT_CHARS_MAX) -> tuple[str, ...]:
        """An array of strings; empty when absent."""
        value = self.items(key, count_max)
        if not all(_is_text(item, chars_max) for item in value):
            self._fail(key, f"an array of strings of at most {chars_max} characters")
        return tuple(value)

    def mapping(self, key: str, count_max: int, chars_max: int = TEXT_CHARS_MAX) -> dict[str, str]:
        """An object of strings; empty when absent."""
        value = self.take(key, {})
        if not isinstance(value, dict) or len(value) > count_max:
            self._fail(key, f"an object of at most {count_max} strings")
        if not all(_is_text(name, TEXT_CHARS_MAX) and _is_text(item, chars_max) for name, item in value.items()):
            self._fail(key, f"an object of strings of at most {chars_max} characters")
        return dict(value)

    def schema(self, expected: str) -> None:
        """Require the field `schema` to be exactly `expected`, for example `lighterman.report/1`."""
        if self.take("schema") != expected:
            self._fail("schema", repr(expected))

    def close(self, ignore: Iterable[str] = ()) -> None:
        """Refuse fields that were never taken.

        Raises:
            ContractError: `artifact.unknown-field`.
        """
        extra = sorted(set(self._value) - self._seen - set(ignore))
        if extra:
            raise ContractError("artifact.unknown-field", f"{self._what} has an unknown field {extra[0]!r}")
