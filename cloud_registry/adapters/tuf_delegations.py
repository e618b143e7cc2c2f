"""The one shape that the image repository's delegations may have (`edge_contract.delegation`), and who signs what.

Devices would believe other shapes too. They are refused, because a shape that nobody has thought through can hide a
bundle from some devices, or let a server's key vouch for one.
"""

from collections.abc import Collection, Mapping
from typing import Final

from tuf.api.metadata import DelegatedRole, Delegations, Role, SuccinctRoles, Targets

from cloud_registry.adapters.tuf_rules import image_target
from cloud_registry.limits import BINS_MAX
from edge_contract.delegation import (
    CATALOGUE,
    MODELS_DELEGATED_MAX,
    bin_prefix,
    delegator_of,
    model_of,
    paths_of,
)
from edge_contract.errors import EdgeError

TOP: Final = Targets.type


def parent_of(role: str) -> str | None:
    """The role that has to delegate to a role: none for the top-level targets.

    Raises:
        EdgeError: `trust.metadata-invalid` for a name that no delegation can have.
    """
    if role == TOP:
        return None
    if paths_of(role):
        return TOP
    parent = delegator_of(role)
    if parent is None:
        raise EdgeError("trust.metadata-invalid", f"nothing delegates to {role[:80]!r}")
    return parent


def top_roles(top: Targets) -> Mapping[str, DelegatedRole]:
    """The roles that checked top-level targets delegate to, in order."""
    delegations = top.delegations
    return {} if delegations is None or delegations.roles is None else delegations.roles


def bins_of(content: Targets) -> SuccinctRoles | None:
    """The hash bins that a role delegates to, or none when it lists its bundles itself."""
    return None if content.delegations is None else content.delegations.succinct_roles


def delegates_to(content: Targets, role: str) -> bool:
    """Whether a role's metadata names another role as its delegate."""
    bins = bins_of(content)
    return role in top_roles(content) or (bins is not None and bins.is_delegated_role(role))


def holder_of(top: Targets, path: str) -> str:
    """The role on the first level that answers for a target path."""
    model = path.partition("/")[0]
    for name in top_roles(top):
        if model_of(name) == model:
            return name
    return CATALOGUE


def check_content(role: str, content: Targets, parent: Targets | None, own: Collection[str]) -> None:
    """Require that a role says only what it may say.

    Args:
        role: Its name.
        content: Its metadata, whose signatures hold.
        parent: Metadata of the role that delegates to it; none for the top-level targets.
        own: Identifiers of this server's keys, none of which may sign for an author.

    Raises:
        EdgeError: `trust.metadata-invalid`.
    """
    if role == TOP:
        _check_top(content)
    elif paths_of(role):
        _check_first_level(role, content)
    else:
        _check_bin(role, content, None if parent is None else bins_of(parent))
    if content.delegations is not None and set(content.delegations.keys).intersection(own):
        raise _invalid(role, "delegates to a key of this server")


def _check_top(content: Targets) -> None:
    roles = top_roles(content)
    if content.targets:
        raise _invalid(TOP, "lists an artifact itself, not in a role")
    if content.delegations is None or content.delegations.succinct_roles is not None or not roles:
        raise _invalid(TOP, f"delegates neither to models nor to the {CATALOGUE!r}")
    if len(roles) > MODELS_DELEGATED_MAX + 1:
        raise _invalid(TOP, f"delegates to more than {MODELS_DELEGATED_MAX} models")
    for name, role in roles.items():
        if not paths_of(name) or tuple(role.paths or ()) != paths_of(name) or role.path_hash_prefixes is not None:
            raise _invalid(TOP, f"gives {name[:80]!r} other paths than its own, {paths_of(name) or 'none'}")
        if role.terminating != (name != CATALOGUE):
            raise _invalid(TOP, f"has to let a model's role end the search, and the {CATALOGUE!r} not: {name!r}")
        _require_signable(TOP, name, role, content.delegations)
    if list(roles)[-1] != CATALOGUE:
        raise _invalid(TOP, f"has to name the {CATALOGUE!r} last")


def _check_first_level(role: str, content: Targets) -> None:
    bins = bins_of(content)
    if bins is not None and content.delegations is not None:
        if content.targets:
            raise _invalid(role, "lists an artifact itself, not in a bin")
        if bins.number_of_bins > BINS_MAX or bins.name_prefix != bin_prefix(role):
            raise _invalid(role, f"may have up to {BINS_MAX} bins, with names that begin {bin_prefix(role)!r}")
        _require_signable(role, bins.name_prefix, bins, content.delegations)
        return
    if content.delegations is not None:
        raise _invalid(role, "delegates to others than hash bins")
    if role == CATALOGUE:
        raise _invalid(role, "does not delegate to succinct hash bins")
    _check_entries(role, content, model_of(role))


def _check_bin(role: str, content: Targets, bins: SuccinctRoles | None) -> None:
    if content.delegations is not None:
        raise _invalid(role, "delegates to others")
    for path in content.targets:
        if bins is None or bins.get_role_for_target(path) != role:
            raise _invalid(role, f"lists {path!r}, which belongs into another bin")
    _check_entries(role, content, model_of(delegator_of(role) or ""))


def _check_entries(role: str, content: Targets, model: str | None) -> None:
    for path, target in content.targets.items():
        artifact = image_target(path, target).artifact
        if model is not None and artifact.model != model:
            raise _invalid(role, f"lists a bundle of {artifact.model!r}, for which it may not sign")


def _require_signable(delegator: str, name: str, role: Role, delegations: Delegations) -> None:
    if len(role.keyids) < role.threshold:
        raise _invalid(delegator, f"wants {role.threshold} signatures of {name}, which has {len(role.keyids)} keys")
    missing = [keyid for keyid in role.keyids if keyid not in delegations.keys]
    if missing:
        raise _invalid(delegator, f"names the key {missing[0][:16]} of {name} and does not bring it")


def is_same_delegation(before: Targets | None, after: Targets, role: str) -> bool:
    """Whether a role has to be signed by the same keys under two versions of its delegator."""
    if before is None or not delegates_to(before, role):
        return False
    return _wanted(before, role) == _wanted(after, role)


def _wanted(content: Targets, role: str) -> tuple[object, ...]:
    entry: Role | None = top_roles(content).get(role) or bins_of(content)
    if entry is None or content.delegations is None:
        return ()
    keys = {keyid: content.delegations.keys.get(keyid) for keyid in entry.keyids}
    return entry.threshold, keys


def _invalid(role: str, what: str) -> EdgeError:
    return EdgeError("trust.metadata-invalid", f"{role} {what}")
