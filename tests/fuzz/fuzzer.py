"""A small coverage-guided fuzzer: inputs that take a new way through the code are kept and changed further."""

from __future__ import annotations

import base64
import json
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.fuzz.targets import INPUT_BYTES_MAX, Target

CORPUS: Final = Path(__file__).with_name("corpus")
SLOW_S: Final = 2.0
"""An input that takes more time of a processor has found something."""
_ROOT: Final = Path(__file__).resolve().parents[2]
_WATCHED: Final = tuple(str(_ROOT / folder) for folder in ("edge_agent", "edge_contract"))

Way = tuple[str, int, int, int]
"""File, line, the next line, and how often they followed each other: the number of its bits."""

WORDS: Final = (
    b"POST /v2/models/m/infer HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n\r\n", b"Content-Length: ", b"Host: d\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"\r\n\r\n", b"0\r\n\r\n",
    b"5\r\nhello\r\n", b"\r\n", b";x=y", b'"inputs":', b'"name":"x"', b'"shape":[1,2]', b'"datatype":"FP32"',
    b'"datatype":"BYTES"', b'"data":[1,2]', b'"parameters":{"binary_data_size":8}', b'"outputs":[{"name":"y"}]',
    b'"id":"1"', b'"binary_data_output":true', b"NaN", b"1e999", b"-1", b"2147483648", b"\\ud800", b"[[", b"]]", b"{}",
    b"null", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x01\x00\x00\x00", b"\x80", b"gzip\n", b"deflate\n",
)  # fmt: skip


class Coverage:
    """Which ways through the watched code a call takes: pairs of lines in a row, and how often roughly."""

    def __init__(self, watched: tuple[str, ...] = _WATCHED) -> None:
        """Watch files below these folders."""
        self._watched = watched
        self._is_watched: dict[str, bool] = {}
        self._counts: dict[tuple[str, int, int], int] = {}

    def of(self, call: Callable[[], None]) -> set[Way]:
        """Make a call and say which ways it took, however it ended."""
        counts: dict[tuple[str, int, int], int] = {}
        self._counts = counts
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(before)
        return {(*pair, min(count.bit_length(), 6)) for pair, count in counts.items()}

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        is_watched = self._is_watched.get(name)
        if is_watched is None:
            is_watched = self._is_watched[name] = name.startswith(self._watched)
        if not is_watched:
            return None
        last = 0
        counts = self._counts

        def follow(inner: FrameType, event: str, _argument: Any) -> Any:
            nonlocal last
            if event == "line":
                pair = (name, last, inner.f_lineno)
                counts[pair] = counts.get(pair, 0) + 1
                last = inner.f_lineno
            return follow

        return follow


@dataclass
class Finding:
    """An input that broke a rule."""

    target: str
    data: bytes
    error: BaseException


@dataclass
class Fuzzer:
    """One target and its corpus.

    Attributes:
        name: Of the target.
        target: What is called.
        numbers: Where chance comes from.
        corpus: Inputs that are worth changing, in the order they were found.
        calls: How often the target was called.
    """

    name: str
    target: Target
    numbers: random.Random
    corpus: list[bytes] = field(default_factory=list)
    calls: int = 0
    coverage: Coverage = field(default_factory=Coverage)
    _seen: set[Way] = field(default_factory=set)

    def start(self, seeds: Iterable[bytes]) -> Finding | None:
        """Call the target with what is known."""
        for data in seeds:
            if (finding := self.try_input(data)) is not None:
                return finding
        return None

    def step(self) -> Finding | None:
        """Call the target with something new."""
        return self.try_input(self._changed(self.numbers.choice(self.corpus) if self.corpus else b""))

    def try_input(self, data: bytes) -> Finding | None:
        """Call the target with this; keep it if it leads somewhere new."""
        self.calls += 1
        begun = time.thread_time()
        try:
            ways = self.coverage.of(lambda: self.target(data))
        except Exception as error:  # noqa: BLE001 - whatever escapes is a finding
            return Finding(self.name, data, error)
        took_s = time.thread_time() - begun
        if took_s > SLOW_S:
            return Finding(self.name, data, TimeoutError(f"it took {took_s:.1f} s of a processor"))
        if not ways <= self._seen:
            self._seen |= ways
            self.corpus.append(data)
        return None

    def _changed(self, data: bytes) -> bytes:
        made = bytearray(data)
        numbers = self.numbers
        for _ in range(numbers.choice((1, 1, 1, 2, 4, 8))):
            numbers.choice(_CHANGES)(made, numbers, self.corpus)
        return bytes(made[:INPUT_BYTES_MAX])

    def smallest(self) -> list[bytes]:
        """A few of the inputs that together take all the ways, the smallest first."""
        left = set(self._seen)
        kept = []
        for data in sorted(set(self.corpus), key=lambda item: (len(item), item)):
            try:
                ways = self.coverage.of(lambda data=data: self.target(data))  # type: ignore[misc]
            except Exception:  # noqa: BLE001 - not one that may be kept
                continue
            if ways & left:
                left -= ways
                kept.append(data)
        return kept


def _place(made: bytearray, numbers: random.Random) -> int:
    return numbers.randrange(len(made) + 1)


def _flip(made: bytearray, numbers: random.Random, _corpus: list[bytes]) -> None:
    if made:
        made[numbers.randrange(len(made))] ^= 1 << numbers.randrange(8)


def _set(made: bytearray, numbers: random.Random, _corpus: list[bytes]) -> None:
    if made:
        made[numbers.randrange(len(made))] = numbers.choice((0, 1, 10, 13, 32, 127, 128, 255, numbers.randrange(256)))


def _insert(made: bytearray, numbers: random.Random, _corpus: list[bytes]) -> None:
    place = _place(made, numbers)
    made[place:place] = numbers.randbytes(numbers.choice((1, 1, 2, 4, 8)))


def _remove(made: bytearray, numbers: random.Random, _corpus: list[bytes]) -> None:
    place = _place(made, numbers)
    del made[place : place + numbers.choice((1, 1, 2, 4, 8, 32, 128))]


def _repeat(made: bytearray, numbers: random.Random, _corpus: list[bytes]) -> None:
    place = _place(made, numbers)
    piece = made[place : place + numbers.choice((1, 4, 16, 64))]
    made[place:place] = piece * numbers.choice((1, 1, 2, 20))


def _word(made: bytearray, numbers: random.Random, _corpus: list[bytes]) -> None:
    word, place = numbers.choice(WORDS), _place(made, numbers)
    made[place : place + (len(word) if numbers.random() < 0.5 else 0)] = word


def _number(made: bytearray, numbers: random.Random, _corpus: list[bytes]) -> None:
    digits = [place for place, byte in enumerate(made) if 48 <= byte <= 57]
    if digits:
        place = numbers.choice(digits)
        end = place
        while end < len(made) and 48 <= made[end] <= 57:
            end += 1
        value = int(made[place:end][:15])
        new = numbers.choice((value + 1, value - 1, value * 2, 0, 1, 2**31, 2**32, 2**63, numbers.randrange(300)))
        made[place:end] = str(new).encode()


def _splice(made: bytearray, numbers: random.Random, corpus: list[bytes]) -> None:
    if corpus:
        other, place = numbers.choice(corpus), _place(made, numbers)
        made[place:] = other[numbers.randrange(len(other) + 1) :]


def _node(made: bytearray, numbers: random.Random, _corpus: list[bytes]) -> None:
    """Change one value of the JSON that is there, and leave the rest of it whole."""
    start = made.find(b"{")
    try:
        value, size = json.JSONDecoder().raw_decode(made[start:].decode("latin-1")) if start >= 0 else (None, 0)
    except (ValueError, RecursionError):
        return
    places: list[tuple[Any, Any]] = []
    rest = [value]
    while rest and len(places) < 500:
        item = rest.pop()
        children = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, child in children:
            places.append((item, key))
            rest.append(child)
    if places:
        holder, key = numbers.choice(places)
        new = json.loads(numbers.choice(_VALUES))
        if isinstance(holder, dict) and numbers.random() < 0.2:
            holder[numbers.choice(_NAMES)] = holder.pop(key)
        elif isinstance(holder, list) and numbers.random() < 0.3:
            holder[key:key] = [holder[key]] if numbers.random() < 0.5 else [new]
        else:
            holder[key] = new
        made[start : start + size] = json.dumps(value, ensure_ascii=False).encode("latin-1", "replace")


_VALUES: Final = (
    "null", "true", "false", "0", "1", "-1", "2", "0.5", "1e400", "-1e400", "1e999", "2147483648",
    "18446744073709551616", '""', '"x"', '"BYTES"', '"FP16"', '"BF16"', '"UINT8"', '"BOOL"', "[]", "[1,2]",
    "[[1,2],[3,4]]", "[[1],[2,3]]", "{}", "[0]", '{"binary_data_size":4}', '{"binary_data":true}',
    '{"shared_memory_region":"r"}', '{"timeout":1}', '[{"name":"x"}]',
)  # fmt: skip
_NAMES: Final = ("name", "shape", "datatype", "data", "inputs", "outputs", "parameters", "id", "x", "binary_data_size")
_CHANGES: Final = (_node, _node, _flip, _set, _insert, _remove, _repeat, _word, _number, _splice)


def read_corpus(name: str) -> list[bytes]:
    """The inputs kept for a target: one a line, base64."""
    path = CORPUS / f"{name}.txt"
    return (
        [base64.b64decode(line, validate=True) for line in path.read_text("ascii").splitlines()]
        if path.exists()
        else []
    )


def write_corpus(name: str, inputs: Iterable[bytes]) -> None:
    """Keep these inputs, and no others, for a target."""
    lines = [
        base64.b64encode(data).decode("ascii") + "\n"
        for data in sorted(set(inputs), key=lambda item: (len(item), item))
    ]
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{name}.txt").write_text("".join(lines), "ascii")
