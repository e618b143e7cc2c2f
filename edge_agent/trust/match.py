"""What the director assigns, held against what the image repository says of it (Uptane 2.1, 5.4.4). Pure."""

from typing import Any, Final

from tuf.api.metadata import Targets

from edge_agent.trust.search import as_target
from edge_agent.trust.target import Target
from edge_contract.deployment import Artifact, Assignment, read_director_custom, target_path
from edge_contract.digest import Digest
from edge_contract.errors import ContractError, EdgeError
from edge_contract.limits import MANIFEST_BYTES_MAX, MODULES_MAX

_HASH: Final = "sha256"


def director_assignments(targets: Targets, device: str) -> tuple[tuple[Assignment, Target], ...]:
    """Read the director's targets metadata, whose signatures hold, as this device's assignments.

    Args:
        targets: Verified top-level targets of the director.
        device: Name of this device.

    Returns:
        One assignment a module, in order of target path, each with the target it was read from.

    Raises:
        EdgeError: `trust.wrong-device`, `trust.metadata-invalid`.
    """
    named: Any = targets.unrecognized_fields.get("lighterman")
    owner = named.get("device") if isinstance(named, dict) else None
    if owner != device:
        raise EdgeError(
            "trust.wrong-device", f"the director metadata is for {str(owner)[:64]!r}, this device is {device!r}"
        )
    if targets.delegations is not None:
        raise EdgeError("trust.metadata-invalid", "director repository: targets delegate, which they must not")
    if len(targets.targets) > MODULES_MAX:
        raise EdgeError("trust.metadata-invalid", f"director repository: more than {MODULES_MAX} assignments")
    result = tuple(
        (assignment, target)
        for path, file in sorted(targets.targets.items())
        for target in (as_target(file),)
        for assignment in _assignments(path, target)
    )
    if len(result) > MODULES_MAX or len({assignment.module for assignment, _ in result}) != len(result):
        raise EdgeError("trust.metadata-invalid", "director repository: a module is named twice, or there are too many")
    return result


def _assignments(path: str, file: Target) -> tuple[Assignment, ...]:
    try:
        digest = Digest.from_hex(file.hashes.get(_HASH, ""))
        assignments = read_director_custom(file.custom, digest, file.length)
        artifact = assignments[0].artifact
        expected = target_path(artifact.model, artifact.version, digest)
    except ContractError as error:
        raise EdgeError(
            "trust.metadata-invalid", f"director repository: target {path[:200]!r}: {error.detail}"
        ) from None
    if path != expected or not 0 < file.length <= MANIFEST_BYTES_MAX:
        raise EdgeError(
            "trust.metadata-invalid", f"director repository: target {path[:200]!r} is not a bundle manifest's"
        )
    return assignments


def require_agreement(assignment: Assignment, director: Target, image: Target | None) -> None:
    """Require that the image repository knows an assigned artifact and says the same of it.

    Args:
        assignment: As read from the director's target.
        director: The director's target.
        image: The image repository's target of the same path, or none.

    Raises:
        EdgeError: `trust.target-unknown`, `trust.repositories-disagree`, `trust.metadata-invalid`.
    """
    if image is None:
        raise EdgeError("trust.target-unknown", f"the image repository does not know {director.path}")
    shared = director.hashes.keys() & image.hashes.keys()
    if _HASH not in shared or any(director.hashes[name] != image.hashes[name] for name in shared):
        raise _disagreement(director.path, "hashes")
    if director.length != image.length:
        raise _disagreement(director.path, "length")
    try:
        genuine = Artifact.from_json(image.custom)
    except ContractError as error:
        raise EdgeError("trust.metadata-invalid", f"image repository: {director.path}: {error.detail}") from None
    said, known = assignment.artifact.to_json(), genuine.to_json()
    for name in known:
        if said[name] != known[name]:
            raise _disagreement(director.path, name)


def _disagreement(path: str, what: str) -> EdgeError:
    return EdgeError("trust.repositories-disagree", f"director and image repository differ about the {what} of {path}")
