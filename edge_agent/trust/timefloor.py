"""What this device knows of the time without asking anybody (ADR 15).

A device without a battery-backed clock wakes up in 1970, where all expired metadata looks fresh. What is certain
without a clock: the software was released at some time; a clock that once agreed with fresh signed metadata was about
right; a verified timestamp was signed no later than now; and since any of these was learned, at least the time that
this process has been running since has passed.

What a timestamp says is believed for its own repository alone and only while root names the keys that signed it, so
that somebody who stole an online key cannot drive the time up for good: rotating the key ends it.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge_agent.limits import CLOCK_SKEW_MS_MAX, CLOCK_STEP_BACK_MS_MAX
from edge_agent.store import durable
from edge_contract.digest import Digest
from edge_contract.errors import ContractError
from edge_contract.jsonio import Fields, JsonObject, dump, parse_object

RELEASED_MS: Final = 1_735_689_600_000
"""A time before which this software did not exist: 2025-01-01T00:00:00Z. A later release may raise it."""

REPOSITORIES: Final = ("director", "image")

_FILE_BYTES_MAX: Final = 1024
_SCHEMA: Final = "lighterman.timefloor/1"
_RAISE_MS_MIN: Final = 3_600_000  # for the sake of flash memory, the floor is written about once an hour
_KEYS_CHARS_MAX: Final = 80
_WALL_MS_MAX: Final = 253_402_300_799_000  # the end of the year 9999
_CODE: Final = "artifact.document-invalid"
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SignedTime:
    """When a repository's newest verified timestamp was signed.

    Attributes:
        wall_ms: Milliseconds since 1970, less than the expiry of all metadata that was verified with it; 0 when it says
            nothing that can be believed.
        keys: Digest of the keys that root names for the timestamp.
    """

    wall_ms: int
    keys: str

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {"wall_ms": self.wall_ms, "keys": self.keys}

    @classmethod
    def from_json(cls, value: object) -> "SignedTime":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `artifact.document-invalid`.
        """
        fields = Fields(value, "signed time", _CODE)
        return cls(fields.integer("wall_ms", high=_WALL_MS_MAX), fields.text("keys", chars_max=_KEYS_CHARS_MAX))


@dataclass(frozen=True, slots=True)
class Times:
    """What one verification judges expiry by.

    Attributes:
        wall_ms: The system's clock, or the time known to have passed when that is later; milliseconds since 1970.
        signed: What timestamps said, by repository.
    """

    wall_ms: int
    signed: Mapping[str, SignedTime] = field(default_factory=dict)

    def of(self, repository: str, keys: str) -> int:
        """The time to judge a repository's metadata by, when its root names these keys for the timestamp."""
        said = self.signed.get(repository)
        return self.wall_ms if said is None or said.keys != keys else max(self.wall_ms, said.wall_ms)

    def latest(self, repositories: Iterable[str]) -> int:
        """The latest time among the clock and what these repositories said."""
        said = (self.signed[name].wall_ms for name in repositories if name in self.signed)
        return max(self.wall_ms, *said, 0)

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {"wall_ms": self.wall_ms, "signed": signed_to_json(self.signed)}

    @classmethod
    def from_json(cls, value: object) -> "Times":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `artifact.document-invalid`.
        """
        fields = Fields(value, "times", _CODE)
        return cls(fields.integer("wall_ms"), signed_from_json(fields.take("signed")))


def signed_to_json(signed: Mapping[str, SignedTime]) -> JsonObject:
    """Signed times by repository as a JSON object."""
    return {name: said.to_json() for name, said in signed.items()}


def signed_from_json(value: object) -> dict[str, SignedTime]:
    """Read what `signed_to_json` wrote; repositories of another name are passed over.

    Raises:
        ContractError: `artifact.document-invalid`.
    """
    fields = Fields({} if value is None else value, "signed times", _CODE)
    found = {name: fields.take(name) for name in REPOSITORIES}
    return {name: SignedTime.from_json(said) for name, said in found.items() if said is not None}


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class TimeFloor:
    """The latest time this device knows to have passed; it outlives restarts and never falls. Used by one thread."""

    def __init__(
        self, path: Path, released_ms: int = RELEASED_MS, monotonic_ms: Callable[[], int] = _monotonic_ms
    ) -> None:
        """Read the floor; a missing or damaged file means that only the release is known.

        Args:
            path: For example `<data>/trust/time.json`; its folder is made on the first write.
            released_ms: The floor of a new device, milliseconds since 1970.
            monotonic_ms: Time that passes while this process runs, from any origin.
        """
        self._path = path
        floor_ms, self._signed = _read(path)
        self._known_ms = max(released_ms, floor_ms)
        self._written_ms, self._written = self._known_ms, dict(self._signed)
        self._monotonic_ms = monotonic_ms
        self._advanced_ms = monotonic_ms()

    @property
    def floor_ms(self) -> int:
        """The latest time known to have passed, milliseconds since 1970."""
        return self.times(0).latest(REPOSITORIES)

    def times(self, wall_ms: int) -> Times:
        """What to judge expiry by now.

        Args:
            wall_ms: The system's claim of the time, milliseconds since 1970.
        """
        self._advance()
        return Times(min(max(wall_ms, self._known_ms), _WALL_MS_MAX), dict(self._signed))

    def is_trusted(self, wall_ms: int, repositories: Iterable[str]) -> bool:
        """Whether a clock is not behind the time known to have passed, give or take `CLOCK_SKEW_MS_MAX`.

        Args:
            wall_ms: The system's claim of the time.
            repositories: Whose signed times count: those that were verified.
        """
        return wall_ms >= self.times(0).latest(repositories) - CLOCK_SKEW_MS_MAX

    def learn(self, wall_ms: int, signed: Mapping[str, SignedTime]) -> None:
        """Raise the floor by a verification that succeeded, at which nothing was expired.

        A clock that agreed raises it to `CLOCK_STEP_BACK_MS_MAX` before the clock's time; the margin lets a clock that
        ran in a wrong time zone be put right. A clock beyond the expiry of signed metadata does not agree with it, and
        neither does one behind the floor, so neither raises it.

        Args:
            wall_ms: The system's claim of the time.
            signed: What verified timestamps say, by repository.

        Raises:
            EdgeError: `device.disk-full`, `device.disk-error`.
        """
        self._advance()
        for name, said in signed.items():
            before = self._signed.get(name)
            if before is None or before.keys != said.keys or before.wall_ms < said.wall_ms:
                self._signed[name] = said
        if self.is_trusted(wall_ms, signed):
            self._known_ms = max(self._known_ms, wall_ms - CLOCK_STEP_BACK_MS_MAX)
        if not self._is_worth_writing():
            return
        content: JsonObject = {"floor_ms": self._known_ms, "signed": signed_to_json(self._signed)}
        content |= {"schema": _SCHEMA, "digest": str(Digest.of(dump(content)))}
        with durable.disk_errors(f"writing {self._path}"):
            durable.make_folder(self._path.parent)
            durable.write_file(self._path, dump(content))
        self._written_ms, self._written = self._known_ms, dict(self._signed)

    def _advance(self) -> None:
        """Let the time that this process has run since the last call count."""
        now_ms = self._monotonic_ms()
        passed_ms, self._advanced_ms = max(0, now_ms - self._advanced_ms), now_ms
        self._known_ms += passed_ms
        self._signed = {
            name: SignedTime(min(said.wall_ms + passed_ms, _WALL_MS_MAX), said.keys)
            for name, said in self._signed.items()
        }

    def _is_worth_writing(self) -> bool:
        if self._known_ms >= self._written_ms + _RAISE_MS_MIN:
            return True
        for name, said in self._signed.items():
            before = self._written.get(name)
            if before is None or before.keys != said.keys or said.wall_ms >= before.wall_ms + _RAISE_MS_MIN:
                return True
        return False


def _read(path: Path) -> tuple[int, dict[str, SignedTime]]:
    try:
        data = durable.read_file(path, _FILE_BYTES_MAX)
        if data is None:
            return 0, {}
        fields = Fields(parse_object(data, str(path), _FILE_BYTES_MAX), str(path))
        fields.schema(_SCHEMA)
        floor_ms, signed = fields.integer("floor_ms", high=_WALL_MS_MAX), fields.take("signed")
        # One digit gone bad could otherwise drive the time up for good.
        if fields.text("digest") != str(Digest.of(dump({"floor_ms": floor_ms, "signed": signed}))):
            raise ContractError(_CODE, f"{path} is damaged")
        return floor_ms, signed_from_json(signed)
    except (OSError, ContractError) as error:
        _LOG.warning("the floor under the clock cannot be read and starts anew: %s", error)
        return 0, {}
