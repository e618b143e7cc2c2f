"""What a full verification found, in a form that passes between processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_agent.ports import Desired
from edge_agent.trust.timefloor import REPOSITORIES, SignedTime, signed_from_json, signed_to_json
from edge_contract.deployment import Assignment
from edge_contract.digest import Digest
from edge_contract.jsonio import Fields, JsonObject
from edge_contract.limits import MODULES_MAX


@dataclass(frozen=True, slots=True)
class Receipt:
    """As long as both repositories serve these very timestamps, and nothing has expired, nothing else can have changed.

    Attributes:
        desired: What verified metadata says this device should run.
        fresh_until_ms: When the first piece of the metadata expires, milliseconds since 1970.
        director: Digest of the director's timestamp as it was served.
        image: Digest of the image repository's timestamp as it was served; none when nothing is assigned.
        signed: When the timestamps of the repositories that were verified say they were signed.
    """

    desired: Desired
    fresh_until_ms: int
    director: Digest
    image: Digest | None
    signed: Mapping[str, SignedTime] = field(default_factory=dict)

    @property
    def repositories(self) -> tuple[str, ...]:
        """Names of the repositories that were verified."""
        return REPOSITORIES[:1] if self.image is None else REPOSITORIES

    def to_json(self) -> JsonObject:
        """The JSON form that `from_json` reads."""
        return {
            "director_version": self.desired.director_version,
            "assignments": [item.to_json() for item in self.desired.assignments],
            "fresh_until_ms": self.fresh_until_ms,
            "director": str(self.director),
            "image": None if self.image is None else str(self.image),
            "signed": signed_to_json(self.signed),
        }

    @classmethod
    def from_json(cls, value: object) -> "Receipt":
        """Read what `to_json` wrote.

        Raises:
            ContractError: `artifact.document-invalid`, or the code of the part that is wrong.
        """
        fields = Fields(value, "receipt")
        assignments = tuple(Assignment.from_json(item) for item in fields.items("assignments", MODULES_MAX))
        image = fields.take("image")
        return cls(
            Desired(fields.integer("director_version"), assignments),
            fields.integer("fresh_until_ms"),
            Digest(fields.text("director")),
            None if image is None else Digest(fields.text("image")),
            signed_from_json(fields.take("signed")),
        )
